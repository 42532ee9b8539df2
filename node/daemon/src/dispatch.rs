//! Dispatch: an event gets a permit and a fresh sandbox. The second stop of the hot path, after the source that took
//! the event (`providers/http/src/server.rs`) and before the sandbox (`node/sandbox/src/run.rs`).

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;
use trellis_placement::{Beside, HeldComponent};
use trellis_provider::delivery::Ran;
use trellis_provider::{Delivered, Lease, Outgoing, Permit, PermitSource, Run, Want};
use trellis_sandbox::{Component, ComponentError, Engine, Limits, Setup};
use trellis_wire::{
    Answer, Call, CallError, ComponentKey, Config, Error, Event, EventId, Failure, LinkId, Outcome, Reply, Secrets,
    Settle,
};

use crate::abortable::Abortable;
use crate::artifacts::Artifacts;
use crate::clock;
use crate::counts::{Asking, Counts, Tally};
use crate::far::message::Origin;
use crate::far::send::Elsewhere;
use crate::grants::{Grant, Grants, Outward};
use crate::leases::leased;
use crate::logs::Logs;
use crate::outbox::Outbox;
use crate::pool::{self, Pool, Slot};
use crate::shards::Shards;
use crate::telemetry::{Trace, Traces, Waking};

/// How long one event may take where the manifest says nothing.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How much linear memory one sandbox may have where the manifest says nothing, in bytes.
pub(crate) const MEMORY_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;

/// Components whose code may be in memory; beyond that those go that were used least recently. Each takes a few of the
/// mappings that the kernel gives one process (65,530, unless it is told otherwise).
const LOADED_MAX: usize = 2_000;
/// How many loads it takes until it is looked whether there are too many.
const LOADS_BETWEEN: usize = 200;
/// Pools that are gone and still have their entry, beyond as many as there are components.
const POOLS_GONE_MAX: usize = 256;
/// Lines of each output of a run by a link that go to the log.
const RUN_LINES_MAX: usize = 100;

/// The components that this node holds, and the permits to run them.
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    artifacts: Artifacts,
    /// Permits of the node as a whole, under those of each component.
    node_pool: Arc<Pool>,
    permits_max: u32,
    /// The pool of each component that is held, or has a permit out.
    pools: Mutex<HashMap<ComponentKey, Weak<Pool>>>,
    held: Shards<ComponentKey, Forms>,
    /// How often code was loaded.
    loads: AtomicUsize,
    grants: Grants,
    logs: Arc<Logs>,
    traces: Traces,
    node: String,
    /// The nodes that hold what this one does not, or has no permit for now.
    elsewhere: Arc<Elsewhere>,
    /// The node ends: messages that are still handled are given back.
    aborted: CancellationToken,
    /// Itself, for the permits it hands out.
    this: Weak<Self>,
}

/// The versions of one component that this node holds; at least one.
#[derive(Clone, Default)]
pub(crate) struct Forms {
    deployed: Option<Arc<Holding>>,
    /// The other version of a roll-out, with its share of the events in percent.
    beside: Option<(Arc<Holding>, u8)>,
}

/// One version of a component that this node holds.
pub(crate) struct Holding {
    key: ComponentKey,
    held: HeldComponent,
    /// The digest of its code, as messages that it handled are marked with it.
    digest: String,
    /// Where it is to stop when this node is cut off from the lattice.
    lease: Option<Lease>,
    config: Arc<Config>,
    secrets: Arc<Secrets>,
    limits: Limits,
    pool: Arc<Pool>,
    /// Loaded by the first event; cleared when it has been idle.
    loaded: ArcSwapOption<Component>,
    counts: Arc<Counts>,
    /// What this version did.
    tally: Arc<Tally>,
}

impl Forms {
    fn all(&self) -> impl Iterator<Item = &Arc<Holding>> {
        self.deployed.iter().chain(self.beside.iter().map(|(beside, _)| beside))
    }

    /// Which version an event is for: the one that has the link it comes by or is its caller's own, else each by its share.
    fn choose(&self, origin: &Origin) -> Option<&Arc<Holding>> {
        let (Some(deployed), Some((beside, share))) = (&self.deployed, &self.beside) else { return self.all().next() };
        let (link, caller) = match origin {
            Origin::Link(link, _) => (Some(link), None),
            Origin::Component(link, version) => (Some(link), Some(version)),
            Origin::Invoke => (None, None),
        };
        let is_for = |one: &Holding, other: &Holding| {
            let has = |holding: &Holding| link.is_some_and(|link| holding.held.links.contains(link));
            (has(one) && !has(other)) || caller.is_some_and(|version| *version == one.held.version)
        };
        match () {
            () if is_for(deployed, beside) => Some(deployed),
            () if is_for(beside, deployed) => Some(beside),
            () if rand::random_range(0..100) < *share => Some(beside),
            () => Some(deployed),
        }
    }
}

impl Dispatch {
    /// Nothing is held yet.
    pub(crate) fn new(
        engine: Arc<Engine>,
        artifacts: Artifacts,
        permits_max: u32,
        logs: Arc<Logs>,
        traces: Traces,
        node: String,
        elsewhere: Arc<Elsewhere>,
    ) -> Arc<Self> {
        let node_pool = Pool::new("this node".into(), permits_max as usize);
        Arc::new_cyclic(|this| Self {
            engine,
            artifacts,
            node_pool,
            permits_max,
            pools: Mutex::default(),
            held: Shards::default(),
            loads: AtomicUsize::new(0),
            grants: Grants::default(),
            logs,
            traces,
            node,
            elsewhere,
            aborted: CancellationToken::new(),
            this: this.clone(),
        })
    }

    /// Holds a component, or the new form of one: events that began with the old form end with it. With a lease it runs
    /// only while that is held.
    pub(crate) fn hold(&self, key: &ComponentKey, held: HeldComponent, lease: Option<Lease>) {
        let pool = self.pool(key, self.permits_of(&held));
        let holding = self.form(key, held, pool, lease);
        self.change(key, |forms| forms.deployed = Some(holding.clone()));
    }

    /// Holds a component in the other version of a roll-out, which draws on the same permits.
    pub(crate) fn hold_beside(&self, key: &ComponentKey, beside: Beside, lease: Option<Lease>) {
        let pool = match self.holding(key) {
            Some(holding) => holding.pool.clone(),
            None => self.pool(key, self.permits_of(&beside.held)),
        };
        let (holding, share) = (self.form(key, beside.held, pool, lease), beside.share);
        self.change(key, |forms| forms.beside = Some((holding.clone(), share)));
        self.resize(key);
    }

    fn form(&self, key: &ComponentKey, held: HeldComponent, pool: Arc<Pool>, lease: Option<Lease>) -> Arc<Holding> {
        let before = self.forms(key);
        let same_code = before.all().find(|before| before.held.digest == held.digest);
        let same_version = before.all().find(|before| before.is_version(&held));
        Arc::new(Holding {
            config: Arc::new(held.config.clone()),
            secrets: Arc::new(held.secrets.clone()),
            limits: Limits {
                memory_bytes: held.limits.memory_bytes.unwrap_or(MEMORY_BYTES_DEFAULT),
                timeout: held.limits.timeout.unwrap_or(TIMEOUT_DEFAULT),
                reply: Some(Limits::REPLY_DEFAULT),
            },
            pool,
            loaded: ArcSwapOption::new(same_code.and_then(|before| before.loaded.load_full())),
            counts: before.all().next().map(|before| before.counts.clone()).unwrap_or_default(),
            tally: same_version.map(|before| before.tally.clone()).unwrap_or_default(),
            key: key.clone(),
            digest: held.digest.to_string(),
            held,
            lease,
        })
    }

    fn permits_of(&self, held: &HeldComponent) -> usize {
        held.permits.unwrap_or(self.permits_max).min(held.limits.max_in_flight.unwrap_or(u32::MAX)) as usize
    }

    /// Gives the pool the size that the version which is left asks for.
    fn resize(&self, key: &ComponentKey) {
        if let Some(holding) = self.holding(key) {
            holding.pool.open(self.permits_of(&holding.held));
        }
    }

    /// The component's pool, with so many permits. It outlives its holding for as long as a permit is out, so that a
    /// component which goes and comes back never has more sandboxes than permits.
    fn pool(&self, key: &ComponentKey, permits: usize) -> Arc<Pool> {
        let mut pools = self.pools.lock().expect("no code panics while it holds this lock");
        // Now and then, so that each of many holds does not look at all of them.
        if pools.len() > 2 * self.held.len() + POOLS_GONE_MAX {
            pools.retain(|_, pool| pool.strong_count() > 0);
        }
        let pool = pools.get(key).and_then(Weak::upgrade).unwrap_or_else(|| Pool::new(key.to_string(), permits));
        pool.open(permits);
        pools.insert(key.clone(), Arc::downgrade(&pool));
        pool
    }

    /// Lets go of a component: no new event gets a permit, those under way end on their own.
    pub(crate) fn release(&self, key: &ComponentKey) {
        self.let_go(key, |forms| forms.deployed = None);
    }

    /// Lets go of the other version of a roll-out.
    pub(crate) fn release_beside(&self, key: &ComponentKey) {
        self.let_go(key, |forms| forms.beside = None);
    }

    fn let_go(&self, key: &ComponentKey, without: impl Fn(&mut Forms)) {
        let before = self.holding(key);
        self.change(key, without);
        match (self.holding(key), before) {
            (Some(_), _) => self.resize(key),
            (None, Some(before)) => before.pool.close(),
            (None, None) => {}
        }
    }

    /// A component as this node holds it, if it does: in the deployed version if that is here.
    pub(crate) fn holding(&self, key: &ComponentKey) -> Option<Arc<Holding>> {
        self.forms(key).all().next().cloned()
    }

    /// The same in the other version of a roll-out.
    pub(crate) fn beside(&self, key: &ComponentKey) -> Option<Arc<Holding>> {
        self.forms(key).beside.map(|(beside, _)| beside)
    }

    /// Whether this node holds a component in this version, ready for events.
    pub(crate) fn holds(&self, key: &ComponentKey, version: &str) -> bool {
        self.forms(key).all().any(|holding| holding.held.version == version)
    }

    /// A version as it is held now, where both are: links may have changed since an event began.
    pub(crate) fn now(&self, holding: &Arc<Holding>) -> Option<Arc<Holding>> {
        let forms = self.held.get(&holding.key).filter(|forms| forms.all().count() > 1)?;
        forms.all().find(|form| form.is_version(&holding.held)).cloned()
    }

    /// Every component held now, once.
    pub(crate) fn holdings(&self) -> Vec<Arc<Holding>> {
        self.held.values().filter_map(|forms| forms.all().next().cloned()).collect()
    }

    /// Sandboxes that may run now are taken from these permits.
    pub(crate) fn running(&self) -> usize {
        self.node_pool.taken()
    }

    /// How many events ever had a permit here, if none has one now: as long as that stays the same, no count changes.
    pub(crate) fn at_rest(&self) -> Option<u64> {
        self.node_pool.at_rest()
    }

    /// Whether no component has more permits out than it has.
    pub(crate) fn is_within_permits(&self) -> bool {
        self.holdings().iter().all(|holding| holding.pool.is_within())
    }

    /// Drops the code of components that had no event since `idle`: they cost disk, not memory.
    pub(crate) fn unload_idle(&self, idle: Duration) {
        let before_ms = clock::now_ms().saturating_sub(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX));
        let held = self.all();
        held.iter().filter(|holding| holding.last_event_ms() < before_ms).for_each(|holding| holding.unload());
    }

    /// Code was loaded. Now and then it is looked whether that is too much, beside the event that it was loaded for.
    fn note_load(&self) {
        if self.loads.fetch_add(1, Ordering::Relaxed) % LOADS_BETWEEN == LOADS_BETWEEN - 1
            && let Some(dispatch) = self.this.upgrade()
        {
            tokio::task::spawn_blocking(move || dispatch.unload_beyond(LOADED_MAX));
        }
    }

    /// Drops the code of those that were used least recently, if more than `max` are loaded.
    fn unload_beyond(&self, max: usize) {
        let mut loaded = self.all();
        loaded.retain(|holding| holding.loaded.load().is_some());
        if loaded.len() > max {
            loaded.sort_by_key(|holding| holding.last_event_ms());
            let beyond = loaded.len() - max;
            loaded.iter().take(beyond).for_each(|holding| holding.unload());
        }
    }

    /// Everything held now, in every version.
    fn all(&self) -> Vec<Arc<Holding>> {
        self.held.values().flat_map(|forms| forms.all().cloned().collect::<Vec<_>>()).collect()
    }

    fn forms(&self, key: &ComponentKey) -> Forms {
        self.held.get(key).unwrap_or_default()
    }

    /// Changes what is held of a component.
    fn change(&self, key: &ComponentKey, change: impl Fn(&mut Forms)) {
        self.held.change(key, |before| {
            let mut forms = before.unwrap_or_default();
            change(&mut forms);
            let is_held = forms.all().next().is_some();
            is_held.then_some(forms)
        });
    }

    fn run_done(&self, holding: &Holding, event: EventId, origin: &Origin, outcome: &Outcome) {
        match outcome {
            // Who runs it by hand is given what it wrote; a timer has nobody to give it to.
            Ok(Reply::Run(output)) if matches!(origin, Origin::Link(..)) => {
                for (context, written) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
                    for line in String::from_utf8_lossy(written).lines().take(RUN_LINES_MAX) {
                        self.logs.push(clock::log_line(&self.node, &holding.key, event, "info", context, line.into()));
                    }
                }
            }
            Ok(_) => {}
            Err(Failure::Fault(fault)) => {
                self.logs.push(clock::log_line(&self.node, &holding.key, event, "error", "fault", fault.to_string()));
            }
            Err(Failure::Error(error)) => {
                tracing::warn!(component = %holding.key, %event, "{error}");
            }
        }
    }
}

impl Dispatch {
    /// Waits for a permit of `component`: here if this node holds it, else on a node that does. What waits for an
    /// answer and finds no free permit here goes where one is.
    pub(crate) async fn permit(&self, component: &ComponentKey, want: Want, source: Source) -> Result<Permit, Error> {
        if matches!(want, Want::Pull) {
            return self.permit_to_pull(component, source).await;
        }
        // One for all that is tried: who is busy here and served elsewhere was not refused.
        let asking = self.holding(component).map(|holding| holding.counts.ask());
        if let Some(since) = asking.as_ref().map(Asking::since) {
            let now = Want::Answer { at_most: Duration::ZERO };
            let mut here = self.permit_since(component, now, source.clone(), Some(since)).await;
            let is_busy = matches!(here, Err(Error::Busy(_)));
            let goes_on = is_busy && self.elsewhere.is_held(component);
            if is_busy && !goes_on {
                here = self.permit_since(component, want, source.clone(), Some(since)).await;
            }
            match here {
                Ok(permit) => {
                    asking.into_iter().for_each(Asking::granted);
                    return Ok(permit);
                }
                // Or it went to another node during the wait.
                Err(Error::NotHeld(_)) => {}
                Err(Error::Busy(_)) if goes_on => {}
                Err(why) => return Err(why),
            }
        }
        let dispatch = self.this.upgrade().ok_or(Error::ShuttingDown)?;
        self.elsewhere.permit(dispatch, component, want, source, asking)
    }

    /// Waits for a permit to pull with: of this node, or one that a holder keeps for it. Where only one node pulls, it takes
    /// them wherever they are.
    async fn permit_to_pull(&self, component: &ComponentKey, source: Source) -> Result<Permit, Error> {
        let dispatch = self.this.upgrade().ok_or(Error::ShuttingDown)?;
        let far = || {
            Box::pin(async {
                let permit = self.elsewhere.reserve(dispatch, component, source.clone()).await?;
                Ok(Abortable::permit(permit, self.aborted.clone().cancelled_owned().map(|()| Error::ShuttingDown)))
            })
        };
        if self.holding(component).is_none() {
            return far().await;
        }
        let here = self.permit_here(component, Want::Pull, source.clone());
        if !source.pulls_alone || !self.elsewhere.is_held(component) {
            return match here.await {
                // It went to another node during the wait.
                Err(Error::NotHeld(_)) => far().await,
                done => done,
            };
        }
        first(here, far()).await
    }

    /// Sends what a handler published: from here if this node holds the component, else from a node that does.
    pub(crate) async fn send(
        &self,
        component: &ComponentKey,
        outgoing: Outgoing,
        origin: Origin,
    ) -> Result<(), CallError> {
        match self.grant_to_send(component, &outgoing.link) {
            // Which version asks matters to other components only: providers know none.
            Some(grant) => match grant.call(self, &Trace::default(), "", Call::Publish(outgoing.message)).await? {
                Answer::Published => Ok(()),
                other => Err(CallError::Other(format!("a publish was answered with {other:?}"))),
            },
            None => self.elsewhere.send(component, outgoing, origin).await,
        }
    }

    /// The grant by which this node sends what a handler published: of its link as it was then. Where no node has that any
    /// more, the link was given another config since, and the message goes by that: it may have been stored for long.
    pub(crate) fn grant_to_send(&self, component: &ComponentKey, link: &LinkId) -> Option<Arc<Grant>> {
        let as_it_is_now = || match self.elsewhere.is_granted(component, link) {
            true => None,
            false => self.grants.of_link_now(component, link),
        };
        self.grants.of_link(component, link).or_else(as_it_is_now)
    }

    /// Waits for a permit of `component` on this node: to pull with, or for another node, where who asks is counted.
    pub(crate) async fn permit_here(
        &self,
        component: &ComponentKey,
        want: Want,
        source: Source,
    ) -> Result<Permit, Error> {
        self.permit_since(component, want, source, None).await
    }

    /// The same for who asks for the answer to a request, and has waited since then.
    pub(crate) async fn permit_since(
        &self,
        component: &ComponentKey,
        want: Want,
        source: Source,
        since: Option<Instant>,
    ) -> Result<Permit, Error> {
        let holding = self.holding(component).ok_or_else(|| Error::NotHeld(component.to_string()))?;
        let slots = pool::acquire_both(&holding.pool, &self.node_pool, want).await?;
        let dispatch = self.this.upgrade().ok_or(Error::ShuttingDown)?;
        let waited = since.map(|since| since.elapsed());
        // Looked up anew: a new version may have come during the wait.
        let chosen = self.forms(component).choose(&source.origin).cloned();
        let holding = chosen.ok_or_else(|| Error::NotHeld(component.to_string()))?;
        let strict = holding.lease.clone();
        let permit = Permit::new(Turn { dispatch, holding, source, waited, slots });
        let Some(lease) = strict else { return Ok(permit) };
        let cut_off = || Error::Busy(format!("{component} is strict, and this node is cut off from its lattice"));
        let token = lease.token().ok_or_else(cut_off)?;
        Ok(leased(permit, lease, token))
    }
}

/// The permit that is there first, of this node or another one. What fails on one side ends no wait on the other.
async fn first(
    here: impl Future<Output = Result<Permit, Error>>,
    far: impl Future<Output = Result<Permit, Error>>,
) -> Result<Permit, Error> {
    let (mut here, mut far) = (pin!(here), pin!(far));
    tokio::select! {
        biased;
        here = &mut here => match here {
            // It went to another node during the wait.
            Err(Error::NotHeld(_)) => far.await,
            done => done,
        },
        far = &mut far => match far {
            Err(_) => here.await,
            done => done,
        },
    }
}

/// Where an event comes from.
#[derive(Clone)]
pub(crate) struct Source {
    /// What brings it: another node must be able to check that it may.
    pub(crate) origin: Origin,
    /// What the provider speaks to, such as `nats`.
    pub(crate) system: &'static str,
    /// The call that leads to it, if one does.
    pub(crate) because_of: Trace,
    /// Whether replies may go on for as long as they like.
    pub(crate) streams: bool,
    /// Whether it pulls, and no other node does for the link.
    pub(crate) pulls_alone: bool,
}

impl From<Origin> for Source {
    fn from(origin: Origin) -> Self {
        Self { origin, system: "trellis", because_of: Trace::default(), streams: false, pulls_alone: false }
    }
}

/// The permits that one link's events are run with.
pub(crate) struct OfLink {
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) provider: ComponentKey,
    pub(crate) link: LinkId,
    pub(crate) name: String,
    /// What the provider speaks to, such as `nats`.
    pub(crate) system: &'static str,
    /// Whether the link says `streaming`.
    pub(crate) streams: bool,
    /// Where the link may be at work on one node of the lattice only.
    pub(crate) lease: Option<Lease>,
    /// Whether the home pulls for it, and no other node.
    pub(crate) is_pulled_at_home: bool,
}

#[async_trait]
impl PermitSource for OfLink {
    async fn acquire(&self, component: &ComponentKey, want: Want) -> Result<Permit, Error> {
        let origin = Origin::Link(self.link.clone(), self.name.clone());
        let has_one_puller = self.lease.is_some() || self.is_pulled_at_home;
        let alone = || has_one_puller || self.dispatch.elsewhere.runs_once(&self.provider);
        let pulls_alone = want == Want::Pull && alone();
        let source = Source { system: self.system, streams: self.streams, pulls_alone, ..Source::from(origin) };
        if want == Want::Pull {
            self.dispatch.elsewhere.unpaused(component).await;
        }
        let Some(mut lease) = self.lease.clone() else {
            return self.dispatch.permit(component, want, source).await;
        };
        let token = match want {
            Want::Pull => lease.held().await,
            Want::Answer { .. } => {
                lease.token().ok_or_else(|| Error::Busy("another node has its link's lease".into()))?
            }
        };
        let permit = self.dispatch.permit(component, want, source).await?;
        Ok(leased(permit, lease, token))
    }

    fn on_trial(&self, component: &ComponentKey, code: &str) -> Option<String> {
        self.dispatch.elsewhere.on_trial(component, code.parse().ok())
    }

    fn is_taken_back(&self, component: &ComponentKey, version: &str) -> bool {
        self.dispatch.elsewhere.is_taken_back(component, version)
    }

    async fn send(&self, component: &ComponentKey, outgoing: Outgoing) -> Result<(), CallError> {
        let origin = Origin::Link(self.link.clone(), self.name.clone());
        self.dispatch.send(component, outgoing, origin).await
    }
}

/// A permit of [`Dispatch`]: what one event needs to run.
struct Turn {
    dispatch: Arc<Dispatch>,
    holding: Arc<Holding>,
    source: Source,
    /// How long someone waited for it, if someone did.
    waited: Option<Duration>,
    slots: (Slot, Slot),
}

#[async_trait]
impl Run for Turn {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        self.unless_aborted(event, Duration::MAX, Sends::Here).await.outcome
    }

    async fn run_within(self: Box<Self>, event: Event, at_most: Duration) -> Outcome {
        self.unless_aborted(event, at_most, Sends::Here).await.outcome
    }

    async fn deliver(self: Box<Self>, event: Event, at_most: Duration) -> Delivered {
        self.unless_aborted(event, at_most, Sends::BySource).await
    }
}

/// Who sends what a message handler published.
#[derive(PartialEq, Eq)]
enum Sends {
    /// The node that ran it, at once.
    Here,
    /// The source, which stores it first.
    BySource,
}

impl Turn {
    /// Runs an event; one that its source tries again when the node ends is broken off then.
    async fn unless_aborted(self, event: Event, at_most: Duration, sends: Sends) -> Delivered {
        if matches!(event, Event::Http(_)) {
            return self.go(event, at_most, sends).await;
        }
        let aborted = self.dispatch.aborted.clone();
        tokio::select! {
            biased;
            () = aborted.cancelled() => Outcome::Err(Error::ShuttingDown.into()).into(),
            done = self.go(event, at_most, sends) => done,
        }
    }

    /// How long an event may take. For those of a delivery policy its `timeout` counts where the component says nothing.
    fn timeout(&self, event: &Event, at_most: Duration) -> Duration {
        let is_delivered = !matches!(event, Event::Http(_)) && at_most < Duration::MAX;
        match self.holding.held.limits.timeout {
            None if is_delivered => at_most,
            _ => self.holding.limits.timeout.min(at_most),
        }
    }

    async fn go(self, mut event: Event, at_most: Duration, sends: Sends) -> Delivered {
        let id = EventId::new(uuid::Uuid::now_v7());
        let (trace, timeout) = (self.trace(&mut event, id), self.timeout(&event, at_most));
        let Self { dispatch, holding, source, slots, .. } = self;
        let begun = Instant::now();
        holding.counts.began();
        let outbox = Outbox::of(&event, id, &holding.key, source.origin.source());
        // The permit goes back when the sandbox is gone and what it published is sent.
        let slots = Arc::new(slots);
        let mut outcome = match holding.component(&dispatch).await {
            Ok(component) => {
                let setup = Setup {
                    event_id: id,
                    component: holding.key.clone(),
                    source: source.origin.source().to_string(),
                    config: holding.config.clone(),
                    secrets: holding.secrets.clone(),
                    limits: Limits {
                        timeout,
                        reply: holding.limits.reply.filter(|_| !source.streams),
                        ..holding.limits
                    },
                    outside: Arc::new(Outward::new(&dispatch, &holding, id, outbox.clone(), trace.clone(), begun)),
                    held: Box::new(slots.clone()),
                };
                component.run(event, setup).await
            }
            Err(error) => Err(error.into()),
        };
        let mut held = Vec::new();
        if let (Ok(Reply::Settle(settle @ Settle::Ack)), Some(outbox)) = (&mut outcome, outbox) {
            match sends {
                // Boxed: most events send nothing, and would be moved about with room for it.
                Sends::Here => *settle = Box::pin(outbox.send(&dispatch, &trace, holding.version())).await,
                Sends::BySource => held = outbox.take(),
            }
        }
        trace.came_to(&outcome);
        holding.counts.ended(&outcome, begun.elapsed());
        holding.tally.ended(&outcome);
        dispatch.run_done(&holding, id, &source.origin, &outcome);
        let ran = match sends {
            Sends::Here => Ran::default(),
            Sends::BySource => {
                Ran { digest: holding.digest.clone(), generation: dispatch.elsewhere.generation().0, trace: trace.id() }
            }
        };
        Delivered { outcome, sends: held, ran, lost: false }
    }

    fn trace(&self, event: &mut Event, id: EventId) -> Trace {
        let waking = Waking {
            component: &self.holding.key,
            version: self.holding.held.digest,
            id,
            link: self.source.origin.source(),
            system: self.source.system,
            waited: self.waited,
            cold: self.holding.loaded.load().is_none(),
            because_of: &self.source.because_of,
        };
        self.dispatch.traces.event(event, &waking)
    }
}

impl Holding {
    /// The component's key.
    pub(crate) fn key(&self) -> &ComponentKey {
        &self.key
    }

    /// Permits taken now.
    pub(crate) fn running(&self) -> usize {
        self.pool.taken()
    }

    /// Requests that wait for a permit.
    pub(crate) fn waiting(&self) -> usize {
        self.pool.waiting()
    }

    fn last_event_ms(&self) -> u64 {
        self.counts.last_event_ms.load(Ordering::Relaxed)
    }

    /// Drops the code, unless a sandbox may be running it.
    fn unload(&self) {
        if self.pool.taken() == 0 {
            self.loaded.store(None);
        }
    }

    /// What the component did, in whichever version.
    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// What this version did.
    pub(crate) fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Its version.
    pub(crate) fn version(&self) -> &str {
        &self.held.version
    }

    /// The links that this version has.
    pub(crate) fn links(&self) -> &BTreeSet<LinkId> {
        &self.held.links
    }

    fn is_version(&self, other: &HeldComponent) -> bool {
        self.held.version == other.version && self.held.digest == other.digest
    }

    /// The code, loaded from the ahead-of-time cache if need be, which takes less than a millisecond; compiled anew
    /// where the cache has lost it.
    async fn component(&self, dispatch: &Dispatch) -> Result<Arc<Component>, Error> {
        if let Some(component) = &*self.loaded.load() {
            return Ok(component.clone());
        }
        let digest = self.held.digest;
        let component = match dispatch.engine.load(digest) {
            Err(ComponentError::NotCompiled(_)) => {
                tracing::warn!(component = %self.key, "its compiled code is gone and is made anew");
                dispatch.artifacts.compile(&dispatch.engine, digest).await.map_err(|why| self.unusable(why))?;
                dispatch.engine.load(digest)
            }
            loaded => loaded,
        };
        let component = component.map_err(|why| match why.is_retryable() {
            true => Error::Busy(format!("{}: {why}", self.key)),
            false => self.unusable(why),
        })?;
        self.counts.cold_starts.fetch_add(1, Ordering::Relaxed);
        self.loaded.store(Some(component.clone()));
        dispatch.note_load();
        Ok(component)
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Error {
        Error::Unusable(format!("{}: {why}", self.key))
    }
}

impl Dispatch {
    /// Breaks off the handlers of messages, which were given long enough: their sources are told that they did not run.
    pub(crate) fn abort(&self) {
        self.aborted.cancel();
    }

    /// What sandboxes may call, and through which links.
    pub(crate) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Who makes spans.
    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// The other nodes.
    pub(crate) fn elsewhere(&self) -> &Elsewhere {
        &self.elsewhere
    }

    /// Where guest logs go.
    pub(crate) fn logs(&self) -> &Logs {
        &self.logs
    }

    /// This node's id, for log lines.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::{pending, ready};

    use trellis_provider::Run;

    use super::*;

    /// A permit by which nothing runs.
    pub(crate) struct Nothing;

    #[async_trait]
    impl Run for Nothing {
        async fn run(self: Box<Self>, _: Event) -> Outcome {
            Err(Error::ShuttingDown.into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_on_one_side_ends_no_wait_on_the_other() {
        let soon = async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Permit::new(Nothing))
        };
        let (broken, not_held) = (Error::Unusable("broken".into()), Error::NotHeld("shop/api".into()));
        assert!(first(soon(), ready(Err(broken.clone()))).await.is_ok(), "this node has one in a moment");
        assert!(first(ready(Err(not_held.clone())), soon()).await.is_ok(), "it went to another node");
        assert!(first(soon(), pending()).await.is_ok() && first(pending(), soon()).await.is_ok());
        assert_eq!(
            first(ready(Err(not_held.clone())), ready(Err(broken))).await.err(),
            Some(Error::Unusable("broken".into()))
        );
        assert_eq!(first(ready(Err(Error::ShuttingDown)), soon()).await.err(), Some(Error::ShuttingDown));
    }
}
