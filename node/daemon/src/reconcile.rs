//! Reconcile: carries out this node's share of the plan. What to do is decided by `placement::diff`; nothing is
//! decided here but when to try again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_manifest::Tech;
use trellis_placement::{
    Assigned, Beside, Command, Direction, HeldComponent, HeldLink, Life, Section, State, Step, diff,
};
use trellis_provider::{Lease, LinkError, Permits, Provider};
use trellis_raft::Raft;
use trellis_sandbox::Engine;
use trellis_wire::{ComponentKey, Digest, LinkId, NodeId};

use crate::artifacts::Artifacts;
use crate::board::{Board, Health, Mark};
use crate::dispatch::{Dispatch, Holding, OfLink};
use crate::fetch::Fetch;
use crate::grants::{Answers, Grant};
use crate::leases::Leases;
use crate::liveness::Liveness;
use crate::planner;
use crate::proposal;
use crate::providers::Providers;
use crate::secrets::{self, Secrets};
use crate::shares::Shares;
use crate::telemetry;

/// The first wait before a failed step is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a plan may take that belongs to a change. Without a leader there will be none.
const PLAN_WAIT: Duration = Duration::from_secs(1);
/// How long a link that goes may hold up the steps after it. It goes on ending in the background.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// How long a component is held on to that is placed elsewhere now, until it is ready there, and how often that is looked
/// at.
const HANDOVER_MAX: Duration = Duration::from_secs(20);
const HANDOVER_LOOK: Duration = Duration::from_millis(100);
/// How long calls that found a grant before it was taken back may still be made under it, and how often that is looked at.
const GRANT_ENDS_MAX: Duration = Duration::from_secs(60);
const GRANT_LOOK: Duration = Duration::from_millis(50);
/// How long a provider that comes to a component gets to reach what it needs, while the former one answers.
const REACH_MAX: Duration = Duration::from_secs(5);
/// Components without an event for so long leave memory.
const IDLE: Duration = Duration::from_secs(60);
/// How long an artifact that no version names is kept: an upload comes before its deploy.
const UNWANTED_AGE: Duration = Duration::from_secs(3600);
/// How often such artifacts are looked for.
const SWEPT_EVERY: Duration = Duration::from_secs(600);

/// What it needs to carry out steps.
pub(crate) struct Reconcile {
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) providers: Providers,
    pub(crate) artifacts: Artifacts,
    pub(crate) engine: Arc<Engine>,
    pub(crate) board: Arc<Board>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    /// Grants that end once no call uses them; each ends by itself, unless its link is applied again.
    pub(crate) leaving: Leaving,
    /// Links that wake components and are removed, until their events have ended.
    pub(crate) removals: TaskTracker,
    pub(crate) secrets: Secrets,
    /// Threads that guests cannot hold up.
    pub(crate) threads: Handle,
}

/// Since when each component is held on to that is placed elsewhere.
type Handing = BTreeMap<ComponentKey, Instant>;

/// Components that are held no more, of which events are still under way, and since when.
type Ending = BTreeMap<ComponentKey, (Arc<Holding>, Instant)>;

/// What says that a grant stays after all, and the task that ends it.
pub(crate) type Leaving = Arc<Mutex<HashMap<LinkId, (CancellationToken, JoinHandle<()>)>>>;

impl Reconcile {
    /// Runs until `shutdown`. Wakes when the state changes, when a failed step is due again, when secrets are to be read
    /// again, and when it is time to unload what is idle.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut states: watch::Receiver<Arc<State>> = self.raft.state();
        let mut running = Assigned::default();
        let mut retry = RETRY_FIRST;
        let (mut handing, mut ending) = (Handing::new(), Ending::new());
        let mut idle = tokio::time::interval(IDLE);
        let mut swept = tokio::time::interval(SWEPT_EVERY);
        let mut reread = tokio::time::interval(secrets::POLL);
        reread.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (state, assigned) = self.planned(&mut states, &running).await;
            let hands_over = self.hands_over(&mut handing, &state, &running, &assigned);
            let (assigned, all_over) = with_handed(&running, assigned, &hands_over);
            // What failed before may not fail by the next plan, and others wait for what that takes away.
            if running.generation < assigned.generation {
                retry = RETRY_FIRST;
            }
            let mut all_done = self.carry_out(&mut running, &assigned, &hands_over, &mut ending).await && all_over;
            let gave_up = hands_over.is_empty() && ending.is_empty() && has_given_up(&running, &assigned);
            all_done &= self.acknowledge(&state, &running, gave_up).await;
            // Others may use of a cap what this node no longer may, once it says that it has gone along.
            let within = self.dispatch.grants().gates().iter().all(|gate| gate.is_within());
            if within {
                self.board.passed(running.generation);
            }
            all_done &= within;
            // What ends is looked at again after as long as it has taken so far.
            let ends_for = ending.values().map(|(_, since)| since.elapsed()).min();
            let ends = ends_for.map(|taken| taken.clamp(GRANT_LOOK / 5, RETRY_FIRST));
            let wait = if hands_over.is_empty() { ends.unwrap_or(retry) } else { HANDOVER_LOOK };
            retry = if all_done { RETRY_FIRST } else { (retry * 2).min(RETRY_MAX) };
            let changed = async {
                if states.changed().await.is_err() {
                    // Raft is gone, and with it any further change: only shutdown is left.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed => {}
                () = tokio::time::sleep(wait), if !all_done => {}
                _ = reread.tick(), if self.secrets.are_used() => self.secrets.refresh().await,
                _ = idle.tick() => self.dispatch.unload_idle(IDLE),
                _ = swept.tick() => self.sweep(&state).await,
            }
        }
    }

    /// The state as it is now, and this node's share with its secrets. Where something ends by it and a plan or a home is
    /// still to come, that is waited for a moment: it says what takes the place of what ends.
    async fn planned(
        &self,
        states: &mut watch::Receiver<Arc<State>>,
        running: &Assigned,
    ) -> (Arc<State>, Arc<Assigned>) {
        let deadline = tokio::time::Instant::now() + PLAN_WAIT;
        loop {
            let state = states.borrow_and_update().clone();
            let assigned = self.secrets.filled(self.shares.by(&state, self.node)).await;
            let ends = diff(running, &assigned)
                .iter()
                .any(|step| matches!(step, Step::RemoveLink(_) | Step::RemoveComponent(_) | Step::RemoveBeside(_)));
            if !ends || planner::next(&state).is_none() {
                return (state, assigned);
            }
            match tokio::time::timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                // No plan in time, or Raft is gone: what ends, ends.
                Ok(Err(_)) | Err(_) => return (state, assigned),
            }
        }
    }

    /// The components, and the providers with a scaler or a home, that this node holds on to though they are placed elsewhere
    /// now: until those who have them next say that they are ready, at most [`HANDOVER_MAX`].
    fn hands_over(
        &self,
        handing: &mut Handing,
        state: &State,
        running: &Assigned,
        assigned: &Assigned,
    ) -> BTreeSet<ComponentKey> {
        let mut moved = BTreeSet::new();
        for (_, running, _) in running.apart(assigned) {
            let held = running.components.keys().chain(running.beside.keys());
            moved.extend(held.filter(|key| !assigned.holds(key) && self.waits_for_next(state, key)).cloned());
            let run = running.links.values().filter_map(|held| handed_with(held));
            moved.extend(run.filter(|key| self.waits_for_next_provider(state, key)).cloned());
        }
        handing.retain(|key, _| moved.contains(key));
        let mut began = |key: &ComponentKey| *handing.entry(key.clone()).or_insert_with(Instant::now);
        moved.into_iter().filter(|key| began(key).elapsed() < HANDOVER_MAX).collect()
    }

    /// Whether another node that lives is to hold a component and has not said yet that it does.
    fn waits_for_next(&self, state: &State, key: &ComponentKey) -> bool {
        let next = state.holding(key).into_iter().flat_map(|holding| holding.keys());
        let mut next = next.filter(|node| **node != self.node && self.liveness.life(**node) == Life::Alive);
        next.any(|node| {
            let wanted = self.shares.of(*node).component(key).map(Mark::of);
            let report = self.liveness.component(*node, key);
            !report.is_some_and(|report| report.health == Health::Ready && Some(report.mark) == wanted)
        })
    }

    /// Whether a provider with a scaler or a home is to run on another node that lives, not here, and not all that it does
    /// there is ready.
    fn waits_for_next_provider(&self, state: &State, key: &ComponentKey) -> bool {
        let placed = state.holding(key).into_iter().flat_map(|holding| holding.keys().copied());
        let next: Vec<NodeId> = state.kept_at(key).into_iter().chain(placed).collect();
        if next.contains(&self.node) {
            return false;
        }
        let mut next = next.iter().filter(|node| self.liveness.life(**node) == Life::Alive);
        next.any(|node| {
            let share = self.shares.of(*node);
            share.links().filter(|held| handed_with(held) == Some(key)).any(|held| {
                let report = self.liveness.link(*node, &held.link.id);
                !report.is_some_and(|report| report.health.is_ready() && report.mark == Mark::of(&**held))
            })
        })
    }

    /// Takes every step from `running` to `assigned` and notes in `running` those that succeeded. Whether all did.
    ///
    /// What ends goes on until what takes its place is there, so that a new version finds no request without an answer.
    /// A link that could not begin is tried once more afterwards: what ended may have been in its way.
    async fn carry_out(
        &self,
        running: &mut Assigned,
        assigned: &Assigned,
        hands_over: &BTreeSet<ComponentKey>,
        ending: &mut Ending,
    ) -> bool {
        if assigned.generation < running.generation {
            tracing::warn!(older = %assigned.generation, newer = %running.generation, "an older plan is refused");
            return true;
        }
        self.board.keep(assigned);
        self.board.goes_on(running, assigned);
        let (mut late, mut steps): (Vec<_>, Vec<_>) =
            diff(running, assigned).into_iter().partition(|step| is_late(step, running, assigned));
        steps.sort_by_key(|step| rank(step, running));
        late.sort_by_key(|step| rank(step, running));
        for step in &late {
            if let Step::RemoveLink(id) = step {
                self.providers.http.leave(id);
            }
        }
        let left = left(running, assigned);
        let (mut all_done, mut behind, mut kept) = (true, Vec::new(), BTreeSet::new());
        for step in steps {
            match (self.take(step.clone(), running, assigned).await, step) {
                (Taken::Done, _) => {}
                (Taken::InTheWay, step) if !late.is_empty() => behind.push(step),
                (_, Step::AddLink(held)) => {
                    all_done = false;
                    kept.insert(held.link.id.link());
                }
                _ => all_done = false,
            }
        }
        self.forget_ended(ending);
        for step in late {
            if is_of(&step, running, hands_over) || grants_to(&step, running, ending) {
                all_done = false;
                continue;
            }
            if let Step::RemoveComponent(key) | Step::RemoveBeside(key) = &step
                && let Some(holding) = self.dispatch.holding(key)
            {
                ending.insert(key.clone(), (holding, Instant::now()));
                self.take(step, running, assigned).await;
                self.forget_ended(ending);
                continue;
            }
            let stays = match &step {
                // What took its place is there under its id already; or cannot be, and the former one goes on.
                Step::RemoveLink(id) => running.exact_link(id) == assigned.exact_link(id) || kept.contains(&id.link()),
                _ => false,
            };
            if !stays {
                self.take(step, running, assigned).await;
            }
        }
        for step in behind {
            all_done &= self.take(step, running, assigned).await == Taken::Done;
        }
        for (id, tech) in left.into_iter().filter(|(id, _)| running.exact_link(id).is_none()) {
            self.providers.of(tech).forget(&id).await;
        }
        running.meet(assigned);
        running.generation = assigned.generation;
        all_done
    }

    /// Of what is held again, or has nothing under way any more, nothing is to be waited for.
    fn forget_ended(&self, ending: &mut Ending) {
        ending.retain(|key, (holding, since)| {
            holding.running() > 0 && since.elapsed() < GRANT_ENDS_MAX && self.dispatch.holding(key).is_none()
        });
    }

    /// Takes one step and notes it in `running` if it succeeded.
    async fn take(&self, step: Step, running: &mut Assigned, assigned: &Assigned) -> Taken {
        match step {
            Step::RemoveLink(id) => {
                let section = running.section_of(&id);
                if let Some(held) = running.change(section, |share| share.links.remove(&id)) {
                    self.board.link_gone(&id);
                    self.remove_link(&id, &held).await;
                }
                Taken::Done
            }
            Step::RemoveComponent(key) => {
                running.change(Section::of(&key), |share| share.components.remove(&key));
                self.board.component_gone(&key);
                self.dispatch.release(&key);
                Taken::Done
            }
            Step::RemoveBeside(key) => {
                running.change(Section::of(&key), |share| share.beside.remove(&key));
                self.board.beside_gone(&key);
                self.dispatch.release_beside(&key);
                Taken::Done
            }
            Step::HoldBeside(key, beside) => {
                self.shrink_beside(running, &key, &beside.held);
                let done = self.hold_beside(&key, &beside).await;
                if let Err(why) = &done {
                    tracing::warn!(component = %key, version = beside.held.version, "not ready yet: {why}");
                }
                let taken = if done.is_ok() { Taken::Done } else { Taken::Failed };
                if taken == Taken::Done {
                    running.change(Section::of(&key), |share| share.beside.insert(key.clone(), (*beside).clone()));
                }
                self.board.beside(key, &beside, done);
                taken
            }
            Step::Hold(key, held) | Step::Adjust(key, held) => {
                self.shrink(running, &key, &held);
                let done = self.hold(&key, &held).await;
                if let Err(why) = &done {
                    tracing::warn!(component = %key, "not held yet: {why}");
                }
                let taken = if done.is_ok() { Taken::Done } else { Taken::Failed };
                if taken == Taken::Done {
                    running.change(Section::of(&key), |share| share.components.insert(key.clone(), (*held).clone()));
                }
                self.board.component(key, &held, done);
                taken
            }
            Step::AddLink(held) => {
                let former = self.answered_here(running, &held);
                let done = self.add_link(&held, running.exact_link(&held.link.id)).await;
                match (&done, former) {
                    (Ok(()), Some((tech, granted))) => self.end_later(&held.link.id, tech, granted).await,
                    (Ok(()), None) => {}
                    (Err(why), _) => tracing::warn!(link = %held.link.id, "not linked yet: {why}"),
                }
                let taken = match &done {
                    Ok(()) => Taken::Done,
                    Err(LinkError::Taken(_)) => Taken::InTheWay,
                    Err(_) => Taken::Failed,
                };
                if taken == Taken::Done {
                    let (section, id) = (assigned.section_of(&held.link.id), held.link.id.clone());
                    running.change(section, |share| share.links.insert(id, held.clone()));
                }
                self.board.link(&held, done.map_err(|why| why.to_string()));
                taken
            }
        }
    }

    /// Tells the lattice that permits which this node gave up are free, where others wait for them. Whether nothing is
    /// owed any more. What cannot begin here is no reason to keep what ended.
    async fn acknowledge(&self, state: &State, running: &Assigned, gave_up: bool) -> bool {
        let Some(generation) = state.owes(self.node).filter(|owed| *owed <= running.generation) else { return true };
        if !gave_up || !self.dispatch.is_within_permits() {
            return false;
        }
        let acked = Command::Acked { node: self.node, generation };
        let told = self.raft.propose(proposal::entry(acked)).await;
        if let Err(why) = &told {
            tracing::warn!(%generation, "the lattice was not told that permits are free: {why}; it is told again");
        }
        told.is_ok()
    }

    /// Removes artifacts, and the code made of them, that no version which is kept names.
    async fn sweep(&self, state: &Arc<State>) {
        let (artifacts, engine, state) = (self.artifacts.clone(), self.engine.clone(), state.clone());
        let sweeping = tokio::task::spawn_blocking(move || {
            let kept = state.apps().flat_map(|(_, versions)| versions.kept());
            let wanted: BTreeSet<Digest> = kept.flat_map(|kept| kept.release.digests()).collect();
            for digest in
                artifacts.sweep(UNWANTED_AGE, |digest| wanted.contains(&digest)).map_err(|why| why.to_string())?
            {
                engine.forget(digest).map_err(|why| why.to_string())?;
            }
            Ok::<_, String>(())
        });
        match sweeping.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!("artifacts that nobody wants stay for now: {why}"),
            Err(why) => tracing::warn!("sweeping artifacts broke off: {why}"),
        }
    }

    /// What runs of a component goes on with no more permits than it is to have: others wait for the rest, whether or not it
    /// can be held as it is to be.
    fn shrink(&self, running: &mut Assigned, key: &ComponentKey, next: &HeldComponent) {
        if let Some(held) = running.component(key).filter(|held| has_more(held, next)) {
            let held = HeldComponent { permits: next.permits, ..held.clone() };
            self.dispatch.hold(key, held.clone(), self.lease_of(&held));
            running.change(Section::of(key), |share| share.components.insert(key.clone(), held));
        }
    }

    /// The same for the other version of a roll-out.
    fn shrink_beside(&self, running: &mut Assigned, key: &ComponentKey, next: &HeldComponent) {
        if let Some(beside) = running.beside(key).filter(|beside| has_more(&beside.held, next)) {
            let beside = Beside { held: HeldComponent { permits: next.permits, ..beside.held.clone() }, ..*beside };
            self.dispatch.hold_beside(key, beside.clone(), self.lease_of(&beside.held));
            running.change(Section::of(key), |share| share.beside.insert(key.clone(), beside));
        }
    }

    /// Lets events in once all is there that it runs with.
    async fn hold(&self, key: &ComponentKey, held: &HeldComponent) -> Result<(), String> {
        self.prepared(held).await?;
        self.dispatch.hold(key, held.clone(), self.lease_of(held));
        Ok(())
    }

    /// The same for the other version of a roll-out, which is ready once another node reaches it here.
    async fn hold_beside(&self, key: &ComponentKey, beside: &Beside) -> Result<(), String> {
        self.prepared(&beside.held).await?;
        self.dispatch.hold_beside(key, beside.clone(), self.lease_of(&beside.held));
        self.dispatch.elsewhere().is_reached(key, &beside.held.version).await
    }

    /// What a component that is strict may run under: this node must not be cut off.
    fn lease_of(&self, held: &HeldComponent) -> Option<Lease> {
        held.limits.strict.then(|| self.leases.of_node())
    }

    /// Whether its secrets are at hand; then has its code compiled.
    async fn prepared(&self, held: &HeldComponent) -> Result<(), String> {
        if let Some(why) = self.secrets.missing(&held.secret_refs) {
            return Err(why);
        }
        if !self.engine.is_compiled(held.digest) {
            self.fetch.ensure(held.digest).await.map_err(|why| why.to_string())?;
            self.artifacts.compile(&self.engine, held.digest).await?;
        }
        Ok(())
    }

    async fn add_link(&self, held: &HeldLink, before: Option<&Arc<HeldLink>>) -> Result<(), LinkError> {
        self.stay(&held.link.id).await;
        if let Some(why) = &held.refused {
            let problem = format!("`{}` does not fit: {} is expected", why.value, why.wanted);
            return Err(LinkError::config(&format!("delivery.{}", why.key), problem));
        }
        if let Some(why) = self.secrets.missing(&held.secret_refs) {
            return Err(LinkError::Failed(why));
        }
        match &held.direction {
            Direction::Wakes { provider, tech } => {
                let provider = provider.clone();
                let (dispatch, link, name) = (self.dispatch.clone(), held.link.id.clone(), held.link.name.to_string());
                let streams = *tech == Tech::Http && held.link.config.get("streaming") == Some("true");
                let lease = held.needs_lease().then(|| self.leases.of(&link));
                let system = telemetry::system(*tech);
                let is_pulled_at_home = held.is_pulled_at_home();
                let source =
                    OfLink { dispatch, provider, link, name, system, streams, lease: lease.clone(), is_pulled_at_home };
                let permits =
                    Permits::new(held.link.component.clone(), Arc::new(source)).extended_on(self.threads.clone());
                let permits = lease.into_iter().fold(permits, Permits::leased);
                self.providers.of(*tech).wake(held.link.clone(), permits).await
            }
            Direction::Grants { tech, .. } => {
                let provider = self.providers.of(*tech);
                provider.grant(held.link.clone()).await?;
                if before.is_some_and(|before| matches!(before.direction, Direction::GrantsElsewhere { .. })) {
                    until_well(&*provider, &held.link.id).await;
                }
                self.dispatch.grants().add(&held.link, Answers::Provider(provider, telemetry::system(*tech)))
            }
            Direction::Between { target } => self.dispatch.grants().add(&held.link, Answers::Component(target.clone())),
            Direction::GrantsElsewhere { provider, tech } => {
                let far = Answers::Elsewhere(provider.clone(), telemetry::system(*tech));
                self.dispatch.grants().add(&held.link, far)
            }
        }
    }

    async fn remove_link(&self, id: &LinkId, held: &HeldLink) {
        let granted = self.dispatch.grants().remove(&held.link.component, id);
        let (tech, is_grant) = match held.direction {
            Direction::Wakes { tech, .. } => (tech, false),
            Direction::Grants { tech, .. } => (tech, true),
            Direction::Between { .. } | Direction::GrantsElsewhere { .. } => return,
        };
        if is_grant {
            return self.end_later(id, tech, granted).await;
        }
        let (provider, gone) = (self.providers.of(tech), id.clone());
        let ending = self.removals.spawn(async move { provider.remove(&gone).await });
        if tokio::time::timeout(REMOVE_WAIT, ending).await.is_err() {
            tracing::info!(link = %id, "events under way take longer than {REMOVE_WAIT:?}; the link ends when they do");
        }
        self.leases.end(id);
    }

    /// What answers a link here that is to be answered elsewhere, for the same component.
    fn answered_here(&self, running: &Assigned, next: &HeldLink) -> Option<(Tech, Option<Arc<Grant>>)> {
        let before = running.exact_link(&next.link.id)?;
        match (&before.direction, &next.direction) {
            (Direction::Grants { tech, .. }, Direction::GrantsElsewhere { .. }) => {
                Some((*tech, self.dispatch.grants().of_link(&before.link.component, &before.link.id)))
            }
            _ => None,
        }
    }

    /// Ends what a link granted, beside what else is done.
    async fn end_later(&self, id: &LinkId, tech: Tech, granted: Option<Arc<Grant>>) {
        let stays = CancellationToken::new();
        let ending = end_grant(self.providers.of(tech), id.clone(), granted, stays.clone());
        self.leaving.lock().await.insert(id.clone(), (stays, tokio::spawn(ending)));
    }

    /// A link that is to be applied does not end any more.
    async fn stay(&self, id: &LinkId) {
        let mut leaving = self.leaving.lock().await;
        leaving.retain(|_, (_, ending)| !ending.is_finished());
        if let Some((stays, ending)) = leaving.remove(id) {
            stays.cancel();
            if let Err(why) = ending.await {
                tracing::warn!(link = %id, "ending it broke off: {why}");
            }
        }
    }
}

/// Ends what a link granted, once no call that found it before can still be made.
async fn end_grant(provider: Arc<dyn Provider>, gone: LinkId, granted: Option<Arc<Grant>>, stays: CancellationToken) {
    let until = tokio::time::Instant::now() + GRANT_ENDS_MAX;
    while granted.as_ref().is_some_and(|granted| Arc::strong_count(granted) > 1) && tokio::time::Instant::now() < until
    {
        tokio::select! {
            () = stays.cancelled() => return,
            () = tokio::time::sleep(GRANT_LOOK) => {}
        }
    }
    provider.remove(&gone).await;
}

/// The provider with which a link goes on until another node has it: one that answers calls. Where two would take messages
/// both would take the same.
const fn handed_with(held: &HeldLink) -> Option<&ComponentKey> {
    match &held.direction {
        Direction::Grants { provider, .. } => Some(provider),
        _ => None,
    }
}

/// The share with the links of providers that are handed over as they are; and whether there are none.
fn with_handed(
    running: &Assigned,
    assigned: Arc<Assigned>,
    hands_over: &BTreeSet<ComponentKey>,
) -> (Arc<Assigned>, bool) {
    let is_handed = |held: &HeldLink| handed_with(held).is_some_and(|provider| hands_over.contains(provider));
    if hands_over.is_empty() {
        return (assigned, true);
    }
    let (mut kept, mut all_over) = ((*assigned).clone(), true);
    for (section, running, _) in running.apart(&assigned) {
        let handed = running.links.iter().filter(|(_, held)| is_handed(held));
        let handed: Vec<_> = handed.map(|(id, held)| (id.clone(), held.clone())).collect();
        if !handed.is_empty() {
            all_over = false;
            kept.change(section, |share| share.links.extend(handed));
        }
    }
    if all_over { (assigned, true) } else { (Arc::new(kept), false) }
}

/// Whether nothing is left of what a node is to give up: no component, no permit, and no provider that is not to run here
/// any more. A link that goes on because the next form of it cannot begin is none of that.
fn has_given_up(running: &Assigned, assigned: &Assigned) -> bool {
    let is_by_provider = |held: &HeldLink| matches!(held.direction, Direction::Wakes { .. } | Direction::Grants { .. });
    diff(running, assigned).iter().all(|step| match step {
        Step::RemoveComponent(_) | Step::RemoveBeside(_) => false,
        Step::RemoveLink(id) => {
            let ends = running.exact_link(id).is_some_and(|held| is_by_provider(held));
            !ends || assigned.links_of(&id.link()).any(|next| is_by_provider(next))
        }
        Step::Hold(key, held) | Step::Adjust(key, held) => {
            !running.component(key).is_some_and(|before| has_more(before, held))
        }
        Step::HoldBeside(key, beside) => {
            !running.beside(key).is_some_and(|before| has_more(&before.held, &beside.held))
        }
        Step::AddLink(_) => true,
    })
}

/// Whether a component has more permits than it is to have next.
fn has_more(held: &HeldComponent, next: &HeldComponent) -> bool {
    let most = |held: &HeldComponent| held.permits.unwrap_or(u32::MAX);
    most(held) > most(next)
}

/// Returns when a link's provider has what it needs, at the latest after [`REACH_MAX`].
async fn until_well(provider: &dyn Provider, link: &LinkId) {
    let until = tokio::time::Instant::now() + REACH_MAX;
    while provider.health(link).is_err() && tokio::time::Instant::now() < until {
        tokio::time::sleep(GRANT_LOOK).await;
    }
}

/// What came of a step.
#[derive(PartialEq, Eq)]
enum Taken {
    Done,
    /// Something has what it needs: perhaps what ends in the same round.
    InTheWay,
    Failed,
}

/// The links that wake a component here and are not placed here any more.
fn left(running: &Assigned, assigned: &Assigned) -> Vec<(LinkId, Tech)> {
    let links = running.apart(assigned).flat_map(|(_, running, _)| &running.links);
    let gone = links.filter(|(id, _)| assigned.exact_link(id).is_none());
    let waking = gone.filter_map(|(id, held)| match held.direction {
        Direction::Wakes { tech, .. } => Some((id.clone(), tech)),
        _ => None,
    });
    waking.collect()
}

/// The order of steps: what a component calls is there before it, where it is new here, so that its first event finds that;
/// code before what wakes it; what wakes a component ends before the component, and the component before what it calls.
fn rank(step: &Step, running: &Assigned) -> u8 {
    let wakes = |held: &HeldLink| matches!(held.direction, Direction::Wakes { .. });
    // What is held goes on with what it calls until its next form is here.
    let is_new = |held: &HeldLink| !running.holds(&held.link.component) && running.exact_link(&held.link.id).is_none();
    match step {
        Step::AddLink(held) if !wakes(held) && is_new(held) => 0,
        Step::Hold(..) | Step::Adjust(..) | Step::HoldBeside(..) => 1,
        Step::RemoveLink(id) if running.exact_link(id).is_some_and(|held| wakes(held)) => 2,
        Step::RemoveComponent(_) | Step::RemoveBeside(_) => 3,
        Step::RemoveLink(_) => 4,
        Step::AddLink(held) if !wakes(held) => 5,
        Step::AddLink(_) => 6,
    }
}

/// Whether a step would end something that one of these components needs.
fn is_of(step: &Step, running: &Assigned, components: &BTreeSet<ComponentKey>) -> bool {
    match step {
        Step::RemoveComponent(key) | Step::RemoveBeside(key) => components.contains(key),
        Step::RemoveLink(id) => running.exact_link(id).is_some_and(|held| {
            let called = match &held.direction {
                Direction::Between { target } => components.contains(target),
                _ => false,
            };
            called || components.contains(&held.link.component)
        }),
        Step::Hold(..) | Step::HoldBeside(..) | Step::Adjust(..) | Step::AddLink(_) => false,
    }
}

/// Whether a step would take a grant from events that are still under way.
fn grants_to(step: &Step, running: &Assigned, ending: &Ending) -> bool {
    let Step::RemoveLink(id) = step else { return false };
    running.exact_link(id).is_some_and(|held| {
        !matches!(held.direction, Direction::Wakes { .. }) && ending.contains_key(&held.link.component)
    })
}

/// Whether a step waits until what takes its place is there. Subscriptions do not: a message that both the former and
/// the new one take would be handled twice. Those of MQTT are shared, and one that ends before the next begins is missed.
fn is_late(step: &Step, running: &Assigned, assigned: &Assigned) -> bool {
    match step {
        Step::RemoveLink(id) => running.exact_link(id).is_some_and(|held| {
            let next = assigned.exact_link(id).map(|next| &next.direction);
            match (&held.direction, next) {
                (Direction::Wakes { tech, .. }, None) => matches!(tech, Tech::Http | Tech::Mqtt),
                (Direction::Wakes { tech: Tech::Http, .. }, Some(Direction::Wakes { tech: Tech::Http, .. })) => true,
                (Direction::Grants { .. } | Direction::GrantsElsewhere { .. } | Direction::Between { .. }, None) => {
                    true
                }
                (Direction::Grants { tech: old, .. }, Some(Direction::Grants { tech: new, .. })) => old == new,
                // The provider moves, and the component stays.
                (Direction::Grants { .. }, Some(Direction::GrantsElsewhere { .. })) => true,
                (Direction::GrantsElsewhere { .. }, Some(Direction::Grants { .. })) => true,
                (Direction::Between { .. }, Some(Direction::Between { .. })) => true,
                _ => false,
            }
        }),
        Step::RemoveComponent(_) | Step::RemoveBeside(_) => true,
        Step::Hold(..) | Step::HoldBeside(..) | Step::Adjust(..) | Step::AddLink(_) => false,
    }
}
