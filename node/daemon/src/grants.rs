//! Grants: a component's right to make a call. It comes only from a link; what no link grants is denied, and the
//! denial shows the link to add. The stop of the hot path between a host interface and the provider that answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http_body::Body as _;
use http_body_util::{BodyExt as _, StreamBody};
use trellis_provider::{Begun, Caps, LinkError, Provider, Share, Want};
use trellis_sandbox::{Level, Outside};
use trellis_wire::{
    Answer, Body, Call, CallError, Capability, ComponentKey, Event, EventId, Link, LinkId, Message, Reply,
};

use crate::clock;
use crate::dispatch::{Dispatch, Holding, Source, TIMEOUT_DEFAULT};
use crate::far::line::Line;
use crate::far::message::Origin;
use crate::far::send::Elsewhere;
use crate::outbox::Outbox;
use crate::shards::Shards;
use crate::telemetry::{self, Trace};

/// The highest `max_in_flight`.
const CALLS_MAX: u32 = 65_536;
/// Calls that may wait at one `max_in_flight`.
const GATE_WAITING_MAX: usize = 1_024;
/// How often another node is asked for a place, while none is free here.
const BORROW_EVERY: Duration = Duration::from_millis(20);
/// How long a call may wait there.
const GATE_WAIT: Duration = Duration::from_secs(30);

/// The grants of every component on this node: an in-memory copy of what the links say.
#[derive(Default)]
pub(crate) struct Grants {
    by_component: Shards<ComponentKey, Arc<Vec<Arc<Grant>>>>,
    /// Every bound on calls, beside the grants that have one: few, and looked at often.
    gates: Mutex<BTreeMap<(ComponentKey, LinkId), Arc<Gate>>>,
}

/// One grant.
pub(crate) struct Grant {
    link: Link,
    answers: Answers,
    /// `max_in_flight`: calls under way at one time, so that functions which scale out cannot flood what is behind.
    gate: Option<Arc<Gate>>,
}

/// A bound on calls of the whole lattice, and on those who wait here for one. Each holder of the component has a part of
/// it; where all of that is in use, a place is borrowed from one that has some free, for one call.
pub(crate) struct Gate {
    component: ComponentKey,
    link: LinkId,
    /// In the lattice.
    calls_max: u32,
    /// What this node may use by itself.
    share: Arc<Share>,
    waiting: AtomicUsize,
}

/// The right to make one call.
#[expect(dead_code, reason = "it is held for as long as the call takes")]
enum Place {
    Own(Begun),
    /// The other node's is free again when the line is dropped.
    Borrowed(Line),
}

/// Who answers the calls of a grant.
pub(crate) enum Answers {
    /// A provider on this node, and what it speaks to, such as `nats`.
    Provider(Arc<dyn Provider>, &'static str),
    /// Another component.
    Component(ComponentKey),
    /// A provider on other nodes, and what it speaks to there.
    Elsewhere(ComponentKey, &'static str),
}

impl Grants {
    /// Adds what a link grants, in place of what a link of the same id granted.
    ///
    /// # Errors
    /// `max_in_flight` is no number.
    pub(crate) fn add(&self, link: &Link, answers: Answers) -> Result<(), LinkError> {
        let grant = Arc::new(Grant { link: link.clone(), answers, gate: Gate::of(link)? });
        self.set_gate(&link.component, &link.id, grant.gate.clone());
        self.by_component.change(&link.component, |before| {
            let others = before.iter().flat_map(|all| all.iter()).filter(|grant| grant.link.id != link.id);
            Some(Arc::new(others.chain([&grant]).cloned().collect()))
        });
        Ok(())
    }

    /// Every bound on calls there is here.
    pub(crate) fn gates(&self) -> Vec<Arc<Gate>> {
        self.locked_gates().values().cloned().collect()
    }

    fn set_gate(&self, component: &ComponentKey, link: &LinkId, gate: Option<Arc<Gate>>) {
        let (mut gates, of) = (self.locked_gates(), (component.clone(), link.clone()));
        match gate {
            Some(gate) => drop(gates.insert(of, gate)),
            None => drop(gates.remove(&of)),
        }
    }

    fn locked_gates(&self) -> MutexGuard<'_, BTreeMap<(ComponentKey, LinkId), Arc<Gate>>> {
        self.gates.lock().expect("no code panics while it holds this lock")
    }

    /// Takes back what a link granted. Returns it, if it did: calls that found it before may still be made.
    pub(crate) fn remove(&self, component: &ComponentKey, link: &LinkId) -> Option<Arc<Grant>> {
        self.set_gate(component, link, None);
        let removed = self.by_component.get(component)?.iter().find(|grant| grant.link.id == *link).cloned();
        self.by_component.change(component, |before| {
            let others = before.iter().flat_map(|all| all.iter()).filter(|grant| grant.link.id != *link);
            let others: Vec<_> = others.cloned().collect();
            (!others.is_empty()).then(|| Arc::new(others))
        });
        removed
    }

    /// The grant of a link, if the component has it on this node.
    pub(crate) fn of_link(&self, component: &ComponentKey, link: &LinkId) -> Option<Arc<Grant>> {
        self.by_component.get(component)?.iter().find(|grant| grant.link.id == *link).cloned()
    }

    /// The newest grant of the same link, whatever its config.
    pub(crate) fn of_link_now(&self, component: &ComponentKey, link: &LinkId) -> Option<Arc<Grant>> {
        self.by_component.get(component)?.iter().rfind(|grant| grant.link.id.link() == link.link()).cloned()
    }

    /// The grant for a call: the link of that name, or else the component's own link for the capability: its only
    /// one, or the one named `default`. Where two versions of the component are held, `links` are those of the caller's.
    fn find(
        &self,
        component: &ComponentKey,
        link_name: &str,
        capability: &Capability,
        links: Option<&BTreeSet<LinkId>>,
    ) -> Result<Arc<Grant>, CallError> {
        let all = self.by_component.get(component).unwrap_or_default();
        let is_own = |grant: &&Arc<Grant>| links.is_none_or(|links| links.contains(&grant.link.id));
        let of_component = all.iter().filter(is_own);
        let candidates: Vec<_> = of_component.filter(|grant| grants(&grant.link, capability)).collect();
        let Some((last, others)) = candidates.split_last() else {
            return Err(CallError::Denied(denial(component, capability)));
        };
        // Of two of one name the former one is on its way out: the link's config has just changed.
        let named = |name: &str| candidates.iter().rfind(|grant| grant.link.name.as_str() == name);
        let is_only = others.iter().all(|other| other.link.name == last.link.name);
        let found = match named(link_name) {
            Some(grant) => Some(*grant),
            None if is_only => Some(*last),
            None => named("default").copied(),
        };
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = candidates.iter().map(|grant| grant.link.name.as_str()).collect();
            CallError::Denied(format!("no link of {component} is named `{link_name}`; there are {}", names.join(", ")))
        })
    }
}

impl Grant {
    /// The bound on its calls, if it has one.
    pub(crate) const fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// The link that it comes from.
    pub(crate) const fn link(&self) -> &LinkId {
        &self.link.id
    }

    /// Makes a call, for an event that stands there in its trace and runs in this version of its component.
    pub(crate) async fn call(
        &self,
        dispatch: &Dispatch,
        within: &Trace,
        version: &str,
        mut call: Call,
    ) -> Result<Answer, CallError> {
        let system = match &self.answers {
            Answers::Provider(_, system) | Answers::Elsewhere(_, system) => system,
            Answers::Component(_) => "trellis",
        };
        let trace = dispatch.traces().call(within, &mut call, |call| telemetry::call(call, &self.link, system));
        let answer = self.ask(dispatch, &trace, version, call).await;
        trace.answered(&answer);
        answer
    }

    async fn ask(&self, dispatch: &Dispatch, trace: &Trace, version: &str, call: Call) -> Result<Answer, CallError> {
        let place = match &self.gate {
            Some(gate) => Some(gate.pass(Some(dispatch.elsewhere())).await?),
            None => None,
        };
        let answer = match &self.answers {
            Answers::Provider(provider, _) => provider.call(&self.link.id, call).await?,
            Answers::Component(target) => {
                let origin = Origin::Component(self.link.id.clone(), version.into());
                wake(dispatch, trace, target, call, origin).await?
            }
            Answers::Elsewhere(provider, _) => dispatch.elsewhere().call(provider, &self.link.id, call).await?,
        };
        Ok(match (answer, place) {
            (Answer::Http(response), Some(place)) => Answer::Http(response.map(|body| held(body, place))),
            (answer, _) => answer,
        })
    }

    /// Says now what a publish would be refused for later.
    pub(crate) fn check_publish(&self, message: &Message) -> Result<(), CallError> {
        match &self.answers {
            Answers::Provider(provider, _) => provider.check_publish(&self.link.id, message),
            Answers::Component(_) | Answers::Elsewhere(..) => Ok(()),
        }
    }
}

impl Gate {
    /// Nothing passes until [`Gate::set`] says how much of it is this node's.
    fn of(link: &Link) -> Result<Option<Arc<Self>>, LinkError> {
        if link.delivery.rate_limit.is_some() {
            tracing::warn!(link = %link.id, "`delivery.rate_limit` holds for messages; calls are bound by `max_in_flight` only");
        }
        let by_config = link.config.get("max_in_flight").map(|text| ("max_in_flight", text.to_owned()));
        let by_delivery = link.delivery.max_in_flight.map(|calls| ("delivery.max_in_flight", calls.to_string()));
        let mut calls_max = None;
        for (key, text) in by_config.into_iter().chain(by_delivery) {
            let calls = text.parse().ok().filter(|calls| (1..=CALLS_MAX).contains(calls));
            let wrong = || LinkError::config(key, format!("`{text}` is no number from 1 to {CALLS_MAX}"));
            let calls = calls.ok_or_else(wrong)?;
            calls_max = Some(calls_max.map_or(calls, |other: u32| other.min(calls)));
        }
        Ok(calls_max.map(|calls_max| {
            Arc::new(Self {
                component: link.component.clone(),
                link: link.id.clone(),
                calls_max,
                share: Share::new(in_flight(0)),
                waiting: AtomicUsize::new(0),
            })
        }))
    }

    /// The link whose calls it bounds.
    pub(crate) const fn link(&self) -> &LinkId {
        &self.link
    }

    /// Calls under way in places of this node, its own and those of others.
    pub(crate) fn in_use(&self) -> usize {
        self.share.used().in_use as usize
    }

    /// Calls of this node that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The component whose calls it bounds.
    pub(crate) const fn component(&self) -> &ComponentKey {
        &self.component
    }

    /// Calls under way at one time, in the lattice.
    pub(crate) const fn calls_max(&self) -> u32 {
        self.calls_max
    }

    /// What this node may use of it now.
    pub(crate) fn own(&self) -> u32 {
        self.share.caps().in_flight.unwrap_or(0)
    }

    /// From now on this node may use so much of it.
    pub(crate) fn set(&self, own: u32) {
        if self.own() != own {
            self.share.set(in_flight(own));
        }
    }

    /// Whether no more calls are under way than this node may make.
    pub(crate) fn is_within(&self) -> bool {
        self.share.used().in_use <= self.own()
    }

    /// A place for a call of another node, if one is free now.
    pub(crate) fn lend(&self) -> Option<Begun> {
        self.share.try_begin().ok()
    }

    async fn pass(&self, elsewhere: Option<&Elsewhere>) -> Result<Place, CallError> {
        if let Ok(place) = self.share.try_begin() {
            return Ok(Place::Own(place));
        }
        let busy = |what: String| CallError::Unavailable(format!("link {}: {what}", self.link));
        let place = Waiting::begin(&self.waiting);
        if place.before >= GATE_WAITING_MAX {
            return Err(busy(format!("{GATE_WAITING_MAX} calls wait already")));
        }
        let borrowing = async {
            let Some(elsewhere) = elsewhere else { return std::future::pending().await };
            loop {
                // Boxed: few calls get here, and all would be moved about with room for it.
                if let Some(line) = Box::pin(elsewhere.borrow(&self.component, &self.link)).await {
                    return line;
                }
                tokio::time::sleep(BORROW_EVERY).await;
            }
        };
        let passing = async {
            tokio::select! {
                biased;
                own = self.share.begin() => Place::Own(own),
                line = borrowing => Place::Borrowed(line),
            }
        };
        let passed = tokio::time::timeout(GATE_WAIT, passing).await;
        passed.map_err(|_| busy(format!("{} calls were under way in the lattice for {GATE_WAIT:?}", self.calls_max)))
    }
}

/// A body that keeps a place until it has ended, broke off or was dropped: so long is what answers at work.
fn held(body: Body, place: Place) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(StreamBody::new(Box::pin(futures::stream::unfold(Some((body, place)), async |held| {
        let (mut body, place) = held?;
        let frame = body.frame().await?;
        let goes_on = frame.is_ok() && !body.is_end_stream();
        Some((frame, goes_on.then_some((body, place))))
    }))))
}

const fn in_flight(calls: u32) -> Caps {
    Caps { in_flight: Some(calls), rate: None }
}

/// One who waits, counted until dropped: also where the wait is given up.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a link's interfaces cover the capability.
fn grants(link: &Link, capability: &Capability) -> bool {
    let names = |interface: &str| link.interfaces.iter().any(|named| named == interface);
    match capability {
        Capability::KeyValue => link.namespace == "wasi" && link.package == "keyvalue",
        Capability::Messaging => link.package == "messaging" && (names("consumer") || names("producer")),
        Capability::Http => {
            link.namespace == "wasi" && link.package == "http" && (names("outgoing-handler") || names("client"))
        }
        Capability::Custom(interface) => {
            interface.strip_prefix(&format!("{}:{}/", link.namespace, link.package)).is_some_and(names)
        }
    }
}

/// Says that nothing grants the capability, with the trait to add.
fn denial(component: &ComponentKey, capability: &Capability) -> String {
    let (namespace, package, interfaces) = match capability {
        Capability::KeyValue => ("wasi", "keyvalue", "store, atomics, batch"),
        Capability::Messaging => ("wasmcloud", "messaging", "consumer"),
        Capability::Http => ("wasi", "http", "outgoing-handler"),
        Capability::Custom(name) => {
            let (namespace, rest) = name.split_once(':').unwrap_or(("", name));
            let (package, interface) = rest.split_once('/').unwrap_or((rest, ""));
            (namespace, package, interface)
        }
    };
    let add = trait_to_add(namespace, package, interfaces, None);
    format!("no link of {component} grants {namespace}:{package}; {add}")
}

/// The trait that grants an interface, ready to paste below the component's `traits:`. Where no `target` is known, a
/// word in capitals stands for it.
pub(crate) fn trait_to_add(namespace: &str, package: &str, interfaces: &str, target: Option<&str>) -> String {
    let target = target.unwrap_or(match package {
        "keyvalue" => "KEYVALUE_PROVIDER",
        "messaging" => "MESSAGING_PROVIDER",
        "http" => "HTTP_CLIENT_PROVIDER",
        _ => "COMPONENT_OR_PROVIDER_THAT_EXPORTS_IT",
    });
    format!(
        "add to its traits: {{type: link, properties: {{target: {{name: {target}}}, namespace: {namespace}, \
         package: {package}, interfaces: [{interfaces}]}}}}"
    )
}

/// The way out of one sandbox: it knows whose sandbox it is, so that no call can speak for another component.
pub(crate) struct Outward {
    dispatch: Weak<Dispatch>,
    holding: Arc<Holding>,
    event: EventId,
    /// Where a message handler's publishes wait; others are sent at once.
    outbox: Option<Arc<Outbox>>,
    trace: Trace,
    begun: Instant,
}

impl Outward {
    /// For a sandbox that is about to be made, for an event that began then.
    pub(crate) fn new(
        dispatch: &Arc<Dispatch>,
        holding: &Arc<Holding>,
        event: EventId,
        outbox: Option<Arc<Outbox>>,
        trace: Trace,
        begun: Instant,
    ) -> Self {
        Self { dispatch: Arc::downgrade(dispatch), holding: holding.clone(), event, outbox, trace, begun }
    }
}

#[async_trait]
impl Outside for Outward {
    async fn call(&self, link_name: &str, call: Call) -> Result<Answer, CallError> {
        let gone = || CallError::Unavailable("the node is shutting down".into());
        let dispatch = self.dispatch.upgrade().ok_or_else(gone)?;
        let now = dispatch.now(&self.holding);
        let links = now.as_ref().map(|now| now.links());
        let grant = dispatch.grants().find(self.holding.key(), link_name, &call.capability(), links)?;
        match (call, &self.outbox) {
            (Call::Publish(message), Some(outbox)) if outbox.holds(&message) => {
                outbox.hold(grant, message).map(|()| Answer::Published)
            }
            (call, _) => grant.call(&dispatch, &self.trace, self.holding.version(), call).await,
        }
    }

    fn instantiated(&self) {
        let took = self.begun.elapsed();
        self.holding.counts().init.record(took);
        if let Some(dispatch) = self.dispatch.upgrade() {
            dispatch.traces().step(&self.trace, "instantiate", took);
        }
    }

    fn log(&self, level: Level, context: &str, message: &str) {
        if let Some(dispatch) = self.dispatch.upgrade() {
            let line =
                clock::log_line(dispatch.node(), self.holding.key(), self.event, word(level), context, message.into());
            dispatch.logs().push(line);
        }
    }

    fn failed_late(&self, why: &str) {
        self.holding.counts().faults.fetch_add(1, Ordering::Relaxed);
        self.holding.tally().failed_late();
        self.log(Level::Error, "fault", why);
    }
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
        Level::Critical => "critical",
    }
}

/// A call that another component answers, in a fresh sandbox of its own.
async fn wake(
    dispatch: &Dispatch,
    trace: &Trace,
    target: &ComponentKey,
    call: Call,
    origin: Origin,
) -> Result<Answer, CallError> {
    let Call::Invoke { interface, function, params } = call else {
        return Err(CallError::Other(format!("{target} is a component; only functions of its exports can be called")));
    };
    let unavailable = |error: trellis_wire::Error| CallError::Unavailable(error.to_string());
    let source = Source { because_of: trace.clone(), ..Source::from(origin) };
    let permit =
        dispatch.permit(target, Want::Answer { at_most: TIMEOUT_DEFAULT }, source).await.map_err(unavailable)?;
    match permit.run(Event::Invoke { interface, function, params }).await {
        Ok(Reply::Values(results)) => Ok(Answer::Values(results)),
        Ok(other) => Err(CallError::Other(format!("{target} answered a call with {other:?}"))),
        Err(failure) => Err(CallError::Other(format!("{target}: {failure}"))),
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use trellis_wire::{BodyError, Config, LinkName};

    use super::*;

    fn link(name: &str, package: &str, interfaces: &[&str], config: Config) -> Link {
        let (component, provider) = ("shop/api".parse().unwrap(), "shop/store".parse().unwrap());
        let name: LinkName = name.parse().unwrap();
        let interfaces: Vec<String> = interfaces.iter().map(ToString::to_string).collect();
        let id = LinkId::new(&component, &provider, &name, "wasi", package, &interfaces);
        Link {
            id,
            component,
            name,
            namespace: "wasi".into(),
            package: package.into(),
            interfaces,
            config,
            delivery: trellis_wire::Delivery::default(),
            secrets: Default::default(),
            part: Default::default(),
        }
    }

    fn found(grants: &Grants, name: &str) -> Result<String, CallError> {
        let component = "shop/api".parse().unwrap();
        grants.find(&component, name, &Capability::KeyValue, None).map(|grant| grant.link.name.to_string())
    }

    #[test]
    fn a_call_finds_the_link_it_names_or_the_only_one_or_default() {
        let grants = Grants::default();
        let far = || Answers::Component("shop/other".parse().unwrap());
        let denied = found(&grants, "").unwrap_err().to_string();
        assert!(denied.contains("namespace: wasi, package: keyvalue"), "{denied}");
        let cart = link("cart", "keyvalue", &["store"], Config::default());
        grants.add(&cart, far()).unwrap();
        assert_eq!(found(&grants, "anything").unwrap(), "cart");
        grants.add(&link("stock", "keyvalue", &["store"], Config::default()), far()).unwrap();
        assert_eq!(found(&grants, "stock").unwrap(), "stock");
        let unclear = found(&grants, "anything").unwrap_err().to_string();
        assert!(unclear.contains("cart, stock"), "{unclear}");
        grants.add(&link("default", "keyvalue", &["store"], Config::default()), far()).unwrap();
        assert_eq!(found(&grants, "anything").unwrap(), "default");
        grants.remove(&cart.component, &cart.id);
        assert_eq!(found(&grants, "cart").unwrap(), "default");
    }

    #[test]
    fn a_link_grants_what_it_names_and_nothing_else() {
        let messaging = link("default", "http", &["incoming-handler"], Config::default());
        assert!(!grants(&messaging, &Capability::Http), "to be woken is no right to call");
        let custom = link("default", "shipping", &["rates"], Config::default());
        assert!(grants(&custom, &Capability::Custom("wasi:shipping/rates".into())));
        assert!(!grants(&custom, &Capability::Custom("wasi:shipping/labels".into())));
        assert!(!grants(&custom, &Capability::KeyValue));
    }

    #[tokio::test(start_paused = true)]
    async fn max_in_flight_bounds_the_calls_under_way() {
        let config = Config::from_iter([("max_in_flight", "1")]);
        let one = link("default", "keyvalue", &["store"], config);
        let gate = Gate::of(&one).unwrap().unwrap();
        let waits = gate.pass(None).await.err().unwrap();
        assert!(waits.to_string().contains("1 calls were under way in the lattice for 30s"), "{waits}");
        gate.set(1);
        let first = gate.pass(None).await.unwrap();
        assert!(gate.pass(None).await.is_err() && gate.lend().is_none());
        gate.set(0);
        assert!(!gate.is_within(), "what is under way ends by itself");
        drop(first);
        assert!(gate.is_within() && gate.lend().is_none());
        let wrong = link("default", "keyvalue", &["store"], Config::from_iter([("max_in_flight", "many")]));
        assert!(Gate::of(&wrong).err().unwrap().to_string().contains("max_in_flight"));
    }

    #[test]
    fn max_in_flight_is_taken_from_delivery_too_and_the_smaller_one_holds() {
        let gate = |by_config: &[(&str, &str)], by_delivery| {
            let mut one = link("default", "keyvalue", &["store"], Config::from_iter(by_config.iter().copied()));
            one.delivery.max_in_flight = by_delivery;
            Gate::of(&one).map(|gate| gate.map(|gate| gate.calls_max()))
        };
        assert_eq!(gate(&[], None), Ok(None));
        assert_eq!(gate(&[], Some(4)), Ok(Some(4)));
        assert_eq!(gate(&[("max_in_flight", "3")], Some(4)), Ok(Some(3)));
        assert_eq!(gate(&[("max_in_flight", "5")], Some(4)), Ok(Some(4)));
        let many = gate(&[], Some(100_000)).unwrap_err().to_string();
        assert!(many.contains("`delivery.max_in_flight`: `100000` is no number from 1 to 65536"), "{many}");
    }

    #[tokio::test]
    async fn a_response_keeps_its_place_until_its_body_has_ended_or_is_dropped() {
        let gate = Gate::of(&link("default", "http", &["client"], Config::from_iter([("max_in_flight", "1")])));
        let gate = gate.unwrap().unwrap();
        gate.set(1);
        let pieces = || futures::stream::iter(["a", "b"].map(|piece| Ok::<_, BodyError>(Frame::data(piece.into()))));
        let body = async || held(Body::new(StreamBody::new(pieces())), gate.pass(None).await.unwrap());
        let mut read = body().await;
        assert_eq!(read.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        assert_eq!(gate.in_use(), 1, "more may come");
        assert_eq!(read.collect().await.unwrap().to_bytes(), "b");
        assert_eq!(gate.in_use(), 0, "it has ended");
        let dropped = body().await;
        assert_eq!(gate.in_use(), 1);
        drop(dropped);
        assert_eq!(gate.in_use(), 0, "nobody reads it");
        drop(held(Body::empty(), gate.pass(None).await.unwrap()));
        assert_eq!(gate.in_use(), 0, "there is nothing to come");
    }
}
