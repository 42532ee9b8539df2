//! The asking side: finds a node that takes an event or a call, and waits for what comes of it.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use trellis_bus::{BusError, Sealed, SealedError};
use trellis_placement::{Direction, Life, Node, State, TRACED_CALLS};
use trellis_provider::{Delivered, Outgoing, Permit, Run, Want};
use trellis_wire::{
    Answer, Body, Call, CallError, ComponentKey, Digest, Error, Event, Generation, LinkId, Message, NodeId, Outcome,
    frame, subject,
};
use uuid::Uuid;

use super::cargo::{self, Load};
use super::line::{Line, Lines};
use super::message::{Ask, Back, Head, Offer, Origin, Taken, What, Word};
use super::{EXCHANGES_MAX, HEAD_BYTES_MAX, STILL_EVERY, TAKE_WAIT, TRIES_MAX, unreached};
use crate::clock;
use crate::counts::Asking;
use crate::dispatch::{Dispatch, Source, TIMEOUT_DEFAULT};
use crate::home;
use crate::liveness::Liveness;
use crate::node::HANDOVER_MAX;
use crate::shares::Shares;
use crate::triggers::Question;

/// How many events that went elsewhere are remembered, to explain where they went.
const ROUTED_MAX: usize = 64;
/// How long a node may take to ask this one and to say what came of it.
const ECHO_WAIT: Duration = Duration::from_secs(2);
/// How long an answer about triggers may take.
const ASK_WAIT: Duration = Duration::from_secs(10);
/// The pause before those who were busy are asked again, and the longest that it grows to.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(800);
/// How long an event waits for this node's own bus to be connected again, where only other nodes hold its component. Where
/// the bus has been gone for so long that this node does not hear itself, it does not wait.
const RECONNECT_WAIT: Duration = Duration::from_secs(2);

/// The other nodes, as the data plane sees them.
pub(crate) struct Elsewhere {
    sealed: Sealed,
    shares: Arc<Shares>,
    liveness: Arc<Liveness>,
    lines: Lines,
    places: Places,
    /// A message that this node had another one handle is handled: a permit there is free again.
    freed: Notify,
    /// The same of any event, for one of those who wait with theirs.
    done: Notify,
    routed: Mutex<VecDeque<Routed>>,
}

/// How much of this node may be elsewhere. Each kind has places of its own, since a pull keeps its place for a whole run,
/// and a call may be what such a run waits for.
struct Places {
    answers: Arc<Semaphore>,
    pulls: Arc<Semaphore>,
    calls: Semaphore,
}

/// An event that another node took.
#[derive(Debug, Clone)]
pub(crate) struct Routed {
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    pub(crate) component: ComponentKey,
    pub(crate) to: NodeId,
    /// Why it did not run here.
    pub(crate) why: &'static str,
}

/// Why no node took an offer.
enum NotTaken {
    /// Those who could are busy, suspect, or did not answer.
    Busy(String),
    /// Nobody was asked: this node's own bus is not connected.
    CutOff(String),
    /// There is none that could.
    Nobody,
    /// It cannot be offered as it is, or was refused for good.
    Never(String),
}

impl NotTaken {
    fn text(self, whose: impl std::fmt::Display) -> String {
        match self {
            Self::Busy(why) | Self::CutOff(why) | Self::Never(why) => format!("{whose}: {why}"),
            Self::Nobody => format!("no other node holds {whose}"),
        }
    }
}

impl Elsewhere {
    pub(crate) fn new(sealed: Sealed, shares: Arc<Shares>, liveness: Arc<Liveness>, lines: Lines) -> Self {
        let all = || Semaphore::new(EXCHANGES_MAX);
        let places = Places { answers: Arc::new(all()), pulls: Arc::new(all()), calls: all() };
        let (freed, done) = (Notify::new(), Notify::new());
        Self { sealed, shares, liveness, lines, places, freed, done, routed: Mutex::default() }
    }

    /// The events that other nodes took last, oldest first.
    pub(crate) fn routed(&self) -> Vec<Routed> {
        self.routed.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn note(&self, component: &ComponentKey, to: NodeId, why: &'static str) {
        let mut routed = self.routed.lock().unwrap_or_else(PoisonError::into_inner);
        if routed.len() == ROUTED_MAX {
            routed.pop_front();
        }
        routed.push_back(Routed { at_ms: clock::now_ms(), component: component.clone(), to, why });
    }

    /// Whether another node holds the component and seems alive.
    pub(crate) fn is_held(&self, component: &ComponentKey) -> bool {
        self.is_held_by(component, |node| self.liveness.life(node) == Life::Alive)
    }

    /// Whether another node holds the component that is such a one.
    fn is_held_by(&self, component: &ComponentKey, is_such: impl Fn(NodeId) -> bool) -> bool {
        let state = self.shares.state();
        let is_it = |node: NodeId| node != self.sealed.node() && is_such(node);
        state.holding(component).into_iter().flatten().any(|(node, _)| is_it(*node))
            || self.giving_up(&state, component).any(is_it)
    }

    /// Whether any node has a link of a component with just this config.
    pub(crate) fn is_granted(&self, component: &ComponentKey, link: &LinkId) -> bool {
        let holders = self.shares.state().holders(component);
        holders.into_iter().any(|node| self.shares.of(node).exact_link(link).is_some())
    }

    /// A permit to have one event run elsewhere. Which node runs it is found when there is an event to offer. `asking`: who
    /// waits for it, where that is counted here.
    pub(crate) fn permit(
        self: &Arc<Self>,
        dispatch: Arc<Dispatch>,
        component: &ComponentKey,
        want: Want,
        source: Source,
        asking: Option<Asking>,
    ) -> Result<Permit, Error> {
        if !self.is_held_by(component, |_| true) {
            return Err(Error::NotHeld(component.to_string()));
        }
        let busy = |_| Error::Busy(format!("{EXCHANGES_MAX} events of this node are on other nodes already"));
        let place = self.places.answers.clone().try_acquire_owned().map_err(busy)?;
        let wait = match want {
            Want::Answer { at_most } => at_most,
            Want::Pull => TIMEOUT_DEFAULT,
        };
        let (elsewhere, component) = (self.clone(), component.clone());
        let (reserved, queue) = (None, None);
        Ok(Permit::new(Turn { elsewhere, dispatch, component, source, wait, asking, queue, reserved, _place: place }))
    }

    /// Waits for a permit of a node that holds the component, which is kept there until it is used or dropped.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        dispatch: Arc<Dispatch>,
        component: &ComponentKey,
        source: Source,
    ) -> Result<Permit, Error> {
        let closed = |_| Error::ShuttingDown;
        let place = self.places.pulls.clone().acquire_owned().await.map_err(closed)?;
        let mut pause = BUSY_PAUSE;
        loop {
            // First, so that who only looks whether one is free at once asks nobody.
            tokio::task::yield_now().await;
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Heard from before anybody is asked, so that nothing comes in between unseen.
            freed.as_mut().enable();
            let what = || What::Reserve { component: component.clone(), origin: source.origin.clone() };
            let reserved = match self.offer(&self.holders(component), what, (&Bytes::new(), true), Duration::MAX).await
            {
                Ok(line) => Some(line),
                // While it is still held here, its plan is about to be another one.
                Err(NotTaken::Never(why)) if dispatch.holding(component).is_none() => {
                    return Err(Error::Unusable(format!("{component}: {why}")));
                }
                Err(NotTaken::Busy(_) | NotTaken::CutOff(_) | NotTaken::Never(_)) => {
                    pause = rest(freed, pause).await;
                    continue;
                }
                Err(NotTaken::Nobody) => return Err(Error::NotHeld(component.to_string())),
            };
            let (elsewhere, component, wait) = (self.clone(), component.clone(), TIMEOUT_DEFAULT);
            let (asking, queue, _place) = (None, None, place);
            let turn = Turn { elsewhere, dispatch, component, source, wait, asking, queue, reserved, _place };
            return Ok(Permit::new(turn));
        }
    }

    /// Has a call answered by a node on which the provider runs.
    pub(crate) async fn call(&self, provider: &ComponentKey, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        let unavailable = |why: String| CallError::Unavailable(why);
        let busy = |_| unavailable("too many calls to other nodes".into());
        let _place = self.places.calls.try_acquire().map_err(busy)?;
        let (head, body) = cargo::call_out(call);
        let load = Load::of(body).map_err(|why| CallError::Other(why.to_string()))?;
        let what = || What::Call { link: link.clone(), head: head.clone() };
        let home = self.shares.state().kept_at(provider);
        let lost = |why: String| unavailable(home.map_or_else(|| why.clone(), |home| self.not_home(home, &why)));
        self.check_home(home).map_err(unavailable)?;
        let nodes = self.answering(provider, link);
        match self.offer(&nodes, what, (&load.first, load.rest.is_none()), TIMEOUT_DEFAULT).await {
            Ok(line) => match self.reply(line, load, TIMEOUT_DEFAULT).await {
                Ok((back, body)) => cargo::answer_in(back, body).await,
                Err(why) => Err(lost(why)),
            },
            Err(NotTaken::Never(why)) => Err(CallError::Denied(why)),
            Err(NotTaken::Busy(why) | NotTaken::CutOff(why)) => Err(lost(why)),
            Err(NotTaken::Nobody) => Err(lost(format!("{provider} runs on no node"))),
        }
    }

    /// Has the home publish to what is embedded. To how many queues and links.
    pub(crate) async fn publish(&self, home: NodeId, message: Message) -> Result<usize, CallError> {
        let unavailable = |why: String| CallError::Unavailable(why);
        self.check_home(Some(home)).map_err(unavailable)?;
        let (head, body) = cargo::call_out(Call::Publish(message));
        let load = Load::of(body).map_err(|why| CallError::Other(why.to_string()))?;
        let what = || What::Publish { head: head.clone() };
        let taken = self.offer(&[home], what, (&load.first, load.rest.is_none()), ASK_WAIT).await;
        let line = taken.map_err(|why| unavailable(self.not_home(home, &why.text("publish"))))?;
        let back = self.reply(line, load, ASK_WAIT).await;
        match back.map_err(|why| unavailable(self.not_home(home, &why)))? {
            (Back::Took(links), _) => Ok(usize::try_from(links).unwrap_or(usize::MAX)),
            (Back::CallFailed(why), _) => Err(why),
            (other, _) => Err(CallError::Other(format!("a publish was answered with {other:?}"))),
        }
    }

    /// Says at once that the home is away, where it has been for so long that it need not be asked.
    fn check_home(&self, home: Option<NodeId>) -> Result<(), String> {
        match home.filter(|home| self.liveness.is_gone(*home)) {
            Some(home) => Err(self.not_home(home, &home::heard(&self.liveness, home))),
            None => Ok(()),
        }
    }

    fn not_home(&self, home: NodeId, why: &str) -> String {
        home::unavailable(&self.shares.state(), home, why)
    }

    /// Has what a handler published sent by a node that holds its component.
    pub(crate) async fn send(
        &self,
        component: &ComponentKey,
        outgoing: Outgoing,
        origin: Origin,
    ) -> Result<(), CallError> {
        let (head, body) = cargo::call_out(Call::Publish(outgoing.message));
        let load = Load::of(body).map_err(|why| CallError::Other(why.to_string()))?;
        let what = || What::Send {
            component: component.clone(),
            origin: origin.clone(),
            link: outgoing.link.clone(),
            head: head.clone(),
        };
        let (holders, first) = (self.holders(component), (&load.first, load.rest.is_none()));
        let line = self
            .offer(&holders, what, first, TIMEOUT_DEFAULT)
            .await
            .map_err(|why| CallError::Unavailable(why.text(component)))?;
        let (back, body) = self.reply(line, load, TIMEOUT_DEFAULT).await.map_err(CallError::Unavailable)?;
        cargo::answer_in(back, body).await.map(drop)
    }

    /// Borrows a place under the cap of a link from another node that holds the component, for as long as the line lives.
    pub(crate) async fn borrow(&self, component: &ComponentKey, link: &LinkId) -> Option<Line> {
        let what = || What::Slot { component: component.clone(), link: link.clone() };
        self.offer(&self.holders(component), what, (&Bytes::new(), true), Duration::MAX).await.ok()
    }

    /// Asks a node about its triggers; one that is gone says nothing.
    pub(crate) async fn ask(&self, node: NodeId, question: &Question) -> Result<Bytes, String> {
        let what = || What::Ask(question.clone());
        let taken = match self.liveness.is_gone(node) {
            true => Err(NotTaken::Busy(home::heard(&self.liveness, node))),
            false => self.offer(&[node], what, (&Bytes::new(), true), ASK_WAIT).await,
        };
        let is_home = self.shares.state().home_node() == Some(node);
        let line = taken.map_err(|why| match why.text(node) {
            why if is_home => self.not_home(node, &why),
            why => why,
        })?;
        let none = Load { first: Bytes::new(), rest: None };
        let (back, body) = self.reply(line, none, ASK_WAIT).await?;
        match back {
            Back::Answer => cargo::whole(body).await.map_err(|why| why.to_string()),
            other => Err(format!("node {node} answered with {other:?}")),
        }
    }

    /// Whether a provider runs on one node at most, so that what it takes there is for every holder.
    pub(crate) fn runs_once(&self, provider: &ComponentKey) -> bool {
        self.shares.state().runs_once(provider)
    }

    /// Waits while a person pauses the queues of a component.
    pub(crate) async fn unpaused(&self, component: &ComponentKey) {
        if self.shares.state().is_paused(component) {
            self.shares.until(|state| !state.is_paused(component)).await;
        }
    }

    /// The version of a component that is on trial, if this may be its code.
    pub(crate) fn on_trial(&self, component: &ComponentKey, code: Option<Digest>) -> Option<String> {
        self.shares.state().on_trial(component, code).map(str::to_owned)
    }

    /// Whether a version of a component was taken back.
    pub(crate) fn is_taken_back(&self, component: &ComponentKey, version: &str) -> bool {
        self.shares.state().rolled_back(&component.app, version).is_some()
    }

    /// The generation of the plan that this node knows.
    pub(crate) fn generation(&self) -> Generation {
        self.shares.state().plan().generation()
    }

    /// The other nodes on which a provider answers a link, with the config that this node knows; and those that were told
    /// to give the provider up and have not said yet that they did, for who has it next may not be ready.
    fn answering(&self, provider: &ComponentKey, link: &LinkId) -> Vec<NodeId> {
        let answers = |node: &NodeId| {
            let here = self.shares.of(*node);
            here.exact_link(link).is_some_and(|held| matches!(held.direction, Direction::Grants { .. }))
        };
        let state = self.shares.state();
        let mut nodes: Vec<NodeId> = state.provider_nodes(provider).into_iter().filter(answers).collect();
        nodes.extend(self.giving_up(&state, provider).filter(|node| !answers(node)));
        nodes.retain(|node| *node != self.sealed.node());
        nodes
    }

    /// The other nodes that hold a component, those with the most permits first; last those that were told to give it up
    /// and have not said yet that they did.
    fn holders(&self, component: &ComponentKey) -> Vec<NodeId> {
        let state = self.shares.state();
        let mut holders: Vec<(NodeId, u32)> = Vec::new();
        for (&node, permits) in state.holding(component).into_iter().flatten() {
            holders.push((node, permits.unwrap_or(u32::MAX)));
        }
        for node in self.giving_up(&state, component) {
            if !holders.iter().any(|(holder, _)| *holder == node) {
                holders.push((node, 0));
            }
        }
        holders.retain(|(node, _)| *node != self.sealed.node());
        holders.sort_by_key(|(_, permits)| std::cmp::Reverse(*permits));
        holders.into_iter().map(|(node, _)| node).collect()
    }

    /// The nodes that were told to give a component or provider up and have not said yet that they did. Who is lost never
    /// says so, and has it no more, but while it goes by itself and hands over.
    fn giving_up<'a>(&'a self, state: &'a State, key: &'a ComponentKey) -> impl Iterator<Item = NodeId> + 'a {
        let is_lost = |node: &NodeId| state.node(*node).is_none_or(Node::is_lost);
        let nodes = state.plan().unacked(key).map(|(node, _)| node);
        nodes.filter(move |node| !is_lost(node) || self.liveness.left_within(*node, HANDOVER_MAX))
    }

    /// Whether this node is reached by another one for events of a component in this version. Where there is no other
    /// one alive, nobody needs to reach it.
    ///
    /// # Errors
    /// Which nodes do not reach it.
    pub(crate) async fn is_reached(&self, component: &ComponentKey, version: &str) -> Result<(), String> {
        let state = self.shares.state();
        let is_other = |node: &NodeId| *node != self.sealed.node() && self.liveness.life(*node) == Life::Alive;
        let others: Vec<NodeId> = state.nodes().keys().copied().filter(is_other).collect();
        let mut not_by = Vec::new();
        for other in self.in_turn(&others) {
            if self.says_so(other, &Ask::Echo(component.clone(), version.into()), ECHO_WAIT).await {
                return Ok(());
            }
            not_by.push(other.to_string());
        }
        if not_by.is_empty() { Ok(()) } else { Err(format!("it is not reached by {}", not_by.join(", "))) }
    }

    /// Whether another node holds a component in this version, ready for events: the echo that it asked for.
    pub(crate) async fn reaches(&self, node: NodeId, component: ComponentKey, version: String) -> bool {
        self.says_so(node, &Ask::Holds(component, version), TAKE_WAIT).await
    }

    async fn says_so(&self, node: NodeId, question: &Ask, within: Duration) -> bool {
        let subject = subject::event(self.sealed.lattice(), node);
        let answer = self.sealed.ask(node, &subject, &frame::encode(question), within).await;
        answer.is_ok_and(|answer| matches!(frame::decode(&answer), Ok(Taken::Still(true))))
    }

    /// Whom to ask, in which order: who seems alive first, and among those with a share of the load each as likely.
    fn in_turn(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let (mut alive, late): (Vec<_>, Vec<_>) =
            nodes.iter().partition(|node| self.liveness.life(**node) == Life::Alive);
        if !alive.is_empty() {
            let first = rand::random_range(0..alive.len());
            alive.rotate_left(first);
        }
        alive.extend(late);
        alive.truncate(TRIES_MAX);
        alive
    }

    /// Offers to one node after the other until one takes it. What was not accepted is as it was.
    async fn offer(
        &self,
        nodes: &[NodeId],
        what: impl Fn() -> What,
        (first, whole): (&Bytes, bool),
        within: Duration,
    ) -> Result<Line, NotTaken> {
        let state = self.shares.state();
        let (mut busy, mut refused, mut cut_off) = (None, None, true);
        for to in self.in_turn(nodes) {
            let exchange = Uuid::now_v7();
            let offer = Offer {
                generation: state.plan().generation(),
                exchange,
                what: what(),
                within,
                first: first.clone(),
                whole,
            };
            let subject = match &offer.what {
                What::Event { .. } | What::Deliver { .. } | What::Reserve { .. } => {
                    subject::event(self.sealed.lattice(), to)
                }
                What::Call { .. } | What::Send { .. } | What::Slot { .. } | What::Ask(_) | What::Publish { .. } => {
                    subject::call(self.sealed.lattice(), to)
                }
            };
            let question = frame::encode(&Ask::Offer(Box::new(offer)));
            if question.len() > HEAD_BYTES_MAX + super::FIRST_BYTES_MAX {
                return Err(NotTaken::Never(format!("its head is longer than {HEAD_BYTES_MAX} bytes")));
            }
            let mut line = self.lines.open(exchange, true, to).expect("only what is offered can be unwanted");
            let answered = self.sealed.ask(to, &subject, &question, TAKE_WAIT).await;
            cut_off &= matches!(answered, Err(SealedError::Bus(BusError::Disconnected(_))));
            match answered {
                Ok(answer) => match frame::decode(&answer) {
                    Ok(Taken::Accepted) => return Ok(line),
                    Ok(Taken::Done(back, first)) => {
                        line.hear(Word::Reply(back, first, true));
                        return Ok(line);
                    }
                    Ok(Taken::Busy(why)) => busy = Some(why),
                    // By its own plan, which may not be that of the next one.
                    Ok(Taken::Refused(why)) => refused = Some(why),
                    Ok(Taken::Still(_)) | Err(_) => busy = Some(format!("node {to} does not understand this one")),
                },
                Err(why) => {
                    busy = Some(unreached(to, &why));
                    // It may have been taken: the line is dropped, which tells that node to let it be.
                    if matches!(why, SealedError::Bus(BusError::TimedOut { .. })) {
                        continue;
                    }
                }
            }
            line.done();
        }
        Err(match (busy, refused) {
            (None, None) => NotTaken::Nobody,
            (None, Some(why)) => NotTaken::Never(why),
            (Some(why), _) if cut_off => NotTaken::CutOff(why),
            (Some(why), _) => NotTaken::Busy(why),
        })
    }

    /// Sends the rest of the body and waits for the reply. After a node took it, its loss is told and not mended.
    async fn reply(&self, mut line: Line, load: Load, within: Duration) -> Result<(Back, Body), String> {
        if let Some(rest) = load.rest {
            // It ends with the line, whatever is left of it.
            tokio::spawn(line.outflow().send(rest));
        }
        let (peer, exchange) = (line.peer(), line.exchange());
        // A little longer than the other node, which knows better why it took so long.
        let deadline = Instant::now() + within.min(Duration::from_secs(24 * 60 * 60)) + 2 * STILL_EVERY;
        tokio::select! {
            biased;
            word = line.next() => match word {
                Some(Word::Reply(back, first, whole)) => Ok((*back, line.into_body(first, whole))),
                Some(_) => Err(format!("node {peer} sent something else than a reply")),
                None => Err(format!("node {peer} broke off: {}", line.why())),
            },
            () = tokio::time::sleep_until(deadline) => Err(format!("no reply from node {peer} in time")),
            why = self.lines.gone(peer, exchange) => Err(why),
        }
    }
}

/// A permit for one event elsewhere.
struct Turn {
    elsewhere: Arc<Elsewhere>,
    dispatch: Arc<Dispatch>,
    component: ComponentKey,
    source: Source,
    /// How long it may take until a node takes it.
    wait: Duration,
    /// Who waits, where this node counts that.
    asking: Option<Asking>,
    /// Where those wait for whom no permit is free at once, if that is bounded.
    queue: Option<Arc<Semaphore>>,
    /// The node that keeps a permit for it.
    reserved: Option<Line>,
    _place: OwnedSemaphorePermit,
}

#[async_trait]
impl Run for Turn {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        self.go(event, Duration::MAX, false).await.outcome
    }

    async fn run_within(self: Box<Self>, event: Event, at_most: Duration) -> Outcome {
        self.go(event, at_most, false).await.outcome
    }

    async fn deliver(self: Box<Self>, event: Event, at_most: Duration) -> Delivered {
        let elsewhere = self.elsewhere.clone();
        let delivered = self.go(event, at_most, true).await;
        elsewhere.freed.notify_waiters();
        delivered
    }

    fn waits_in(&mut self, queue: Arc<Semaphore>) {
        self.queue = Some(queue);
    }
}

/// The wait for a permit of this node, which keeps its place in the pool's queue while others are asked too.
type Here = BoxFuture<'static, Result<Permit, Error>>;

/// What ends a rest.
enum Rested {
    /// A permit is free here.
    Here(Permit),
    /// It is time to ask the others again, and to wait for so long after that.
    Ask(Duration),
}

/// Waits where all were busy: for this long, or until a permit is free again that this node had. How long to wait the next
/// time; others' permits show only by asking.
async fn rest(freed: Pin<&mut Notified<'_>>, pause: Duration) -> Duration {
    sleep(BUSY_PAUSE).await;
    tokio::select! {
        biased;
        () = freed => BUSY_PAUSE,
        () = sleep((pause - BUSY_PAUSE).mul_f64(rand::random_range(0.75..=1.0))) => (pause * 2).min(BUSY_PAUSE_MAX),
    }
}

impl Turn {
    /// Until the wait is over: whoever holds the component elsewhere, then this node if it holds it too, and again.
    /// `delivers`: what the handler publishes for a message comes back, and what ran.
    async fn go(mut self, event: Event, at_most: Duration, delivers: bool) -> Delivered {
        let done = self.tried(event, at_most, delivers).await;
        self.elsewhere.done.notify_one();
        done.unwrap_or_else(|why| Outcome::Err(why.into()).into())
    }

    async fn tried(&mut self, event: Event, at_most: Duration, delivers: bool) -> Result<Delivered, Error> {
        // What a run publishes goes out at once, on whichever node it is: there it is an event as others are.
        let of_message = delivers && matches!(event, Event::Message(_));
        if !of_message {
            // Only a delivery can name it; kept, it would be in the event's way.
            self.reserved = None;
        }
        let (elsewhere, deadline) = (self.elsewhere.clone(), Instant::now() + self.wait);
        let (mut head, body) = cargo::event_out(event);
        if matches!(head, Head::Invoke { .. })
            && let Some(trace) = self.source.because_of.carried()
            && elsewhere.shares.state().everyone_knows(TRACED_CALLS)
        {
            head = head.within(trace);
        }
        let load = Load::of(body).map_err(|why| Error::Internal(why.to_string()))?;
        let (first, whole) = (load.first.clone(), load.rest.is_none());
        let (mut cut_off, mut here, mut place, mut pause) = (None, None::<Here>, None, BUSY_PAUSE);
        loop {
            let holders = match &self.reserved {
                // It may have lost the permit with its life: then any other is as good.
                Some(line) if !line.over().is_cancelled() => vec![line.peer()],
                _ => self.elsewhere.holders(&self.component),
            };
            let what = || self.what(&head, of_message);
            let why = match self.elsewhere.offer(&holders, what, (&first, whole), at_most).await {
                Ok(line) => {
                    self.granted();
                    // Neither is waited for while the event runs.
                    drop((here, place));
                    let is_held = self.dispatch.holding(&self.component).is_some();
                    let why = if is_held { "no permit was free here" } else { "this node does not hold it" };
                    self.elsewhere.note(&self.component, line.peer(), why);
                    return Ok(self.finish(line, load, at_most).await);
                }
                Err(why) => {
                    if matches!(why, NotTaken::CutOff(_)) {
                        // Nobody was asked, and so nobody is spared.
                        pause = BUSY_PAUSE;
                    }
                    self.not_taken(why, &mut cut_off)?
                }
            };
            here = here.or_else(|| self.wait_here(deadline));
            let rested = match now(&mut here) {
                Some(permit) => Rested::Here(permit),
                None if Instant::now() >= deadline => {
                    return Err(Error::Busy(format!("no node took an event for {}: {why}", self.component)));
                }
                None => {
                    if place.is_none() {
                        place = self.queue_up()?;
                    }
                    // Only from here on: who runs its event, or asks, would keep the word from those who wait.
                    let done = pin!(elsewhere.done.notified());
                    let until_then = timeout_at(deadline, rest(done, pause));
                    rested(&mut here, async { until_then.await.unwrap_or(pause) }).await
                }
            };
            match rested {
                Rested::Ask(next) => pause = next,
                Rested::Here(permit) => {
                    self.granted();
                    drop(place);
                    return run_here(permit, head, load, at_most, delivers).await;
                }
            }
        }
    }

    /// Why nobody took it so far, where it may still be taken. `cut_off`: since when this node's bus is gone.
    fn not_taken(&mut self, why: NotTaken, cut_off: &mut Option<Instant>) -> Result<String, Error> {
        let is_held = self.dispatch.holding(&self.component).is_some();
        match why {
            // While it is still held here, it may run here yet.
            NotTaken::Never(why) if !is_held => Err(Error::Unusable(format!("{}: {why}", self.component))),
            NotTaken::CutOff(why) => {
                self.reserved = None;
                self.check_bus(*cut_off.get_or_insert_with(Instant::now)).map(|()| why)
            }
            NotTaken::Busy(why) | NotTaken::Never(why) => {
                (self.reserved, *cut_off) = (None, None);
                Ok(why)
            }
            NotTaken::Nobody if !is_held => Err(Error::NotHeld(self.component.to_string())),
            NotTaken::Nobody => Ok(String::new()),
        }
    }

    /// It has a permit, of whichever node.
    fn granted(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.granted();
        }
    }

    /// Begins to wait for a permit of this node, if it holds the component.
    fn wait_here(&self, deadline: Instant) -> Option<Here> {
        let (dispatch, component, source) = (self.dispatch.clone(), self.component.clone(), self.source.clone());
        dispatch.holding(&component)?;
        let want = Want::Answer { at_most: deadline.saturating_duration_since(Instant::now()) };
        let since = self.asking.as_ref().map(Asking::since);
        Some(Box::pin(async move { dispatch.permit_since(&component, want, source, since).await }))
    }

    /// A place among those who wait, where that is bounded.
    fn queue_up(&self) -> Result<Option<OwnedSemaphorePermit>, Error> {
        let full = |_| Error::Busy(format!("as many as may wait for a permit of {} are waiting", self.component));
        self.queue.clone().map(|queue| queue.try_acquire_owned().map_err(full)).transpose()
    }

    /// Says that this node's own bus is gone, which has been seen disconnected since then, where it was waited for in vain
    /// and the event cannot run here.
    fn check_bus(&self, since: Instant) -> Result<(), Error> {
        let goes_on = since.elapsed() < RECONNECT_WAIT && !self.elsewhere.liveness.is_deaf();
        if goes_on || self.dispatch.holding(&self.component).is_some() {
            return Ok(());
        }
        let component = &self.component;
        Err(Error::Busy(format!("this node is not connected to its bus, and only other nodes hold {component}")))
    }

    fn what(&self, head: &Head, of_message: bool) -> What {
        let (component, origin, head) = (self.component.clone(), self.source.origin.clone(), head.clone());
        match of_message {
            true => {
                let reserved = self.reserved.as_ref().map(Line::exchange);
                What::Deliver { component, origin, head, reserved }
            }
            false => What::Event { component, origin, head },
        }
    }

    async fn finish(&self, line: Line, load: Load, at_most: Duration) -> Delivered {
        match self.elsewhere.reply(line, load, at_most).await {
            Ok((back, body)) => cargo::delivered_in(back, body).await,
            Err(why) => {
                // Who is cut off itself does not know that of another.
                let lost = !self.elsewhere.liveness.is_deaf();
                let outcome = Outcome::Err(Error::Internal(format!("{}: {why}", self.component)).into());
                Delivered { lost, ..outcome.into() }
            }
        }
    }
}

/// The permit that is waited for here, if it is there now. A wait that failed is over, and another one may begin.
fn now(here: &mut Option<Here>) -> Option<Permit> {
    let waited = here.as_mut()?.now_or_never()?;
    *here = None;
    waited.ok()
}

/// Until a permit is free here, or the rest is over.
async fn rested(here: &mut Option<Here>, rest: impl Future<Output = Duration>) -> Rested {
    let mut rest = pin!(rest);
    if let Some(waiting) = here {
        tokio::select! {
            biased;
            permit = waiting => if let Ok(permit) = permit {
                return Rested::Here(permit);
            },
            pause = &mut rest => return Rested::Ask(pause),
        }
        *here = None;
    }
    Rested::Ask(rest.await)
}

async fn run_here(
    permit: Permit,
    head: Head,
    load: Load,
    at_most: Duration,
    delivers: bool,
) -> Result<Delivered, Error> {
    let event = cargo::event_in(head, load.into_body()).await;
    let event = event.map_err(|why| Error::Internal(why.to_string()))?;
    Ok(match event {
        event if delivers => permit.deliver(event, at_most).await,
        event if at_most == Duration::MAX => permit.run(event).await.into(),
        event => permit.run_within(event, at_most).await.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::sync::{mpsc, watch};
    use trellis_bus::members::members;
    use trellis_bus::{Bus, Memory};
    use trellis_manifest::Limits;
    use trellis_placement::{HeldComponent, Patience};
    use trellis_sandbox::Engine;
    use trellis_wire::{Config, Failure, LatticeId, Secrets};

    use super::*;
    use crate::artifacts::Artifacts;
    use crate::logs::Logs;
    use crate::telemetry::Traces;

    /// A node that holds one component, with one permit. What runs by that ends at once: the code is missing.
    struct Place {
        elsewhere: Arc<Elsewhere>,
        dispatch: Arc<Dispatch>,
        component: ComponentKey,
        _folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let node = NodeId::new(Uuid::from_u128(1));
            let [sealed] = members(&Bus::Memory(Memory::alone()), LatticeId::new(Uuid::nil()), [node]);
            let liveness = Arc::new(Liveness::new(node, Patience::default()));
            let shares = Arc::new(Shares::new(watch::channel(Arc::new(State::default())).1));
            let lines = Lines::new(sealed.clone(), liveness.clone());
            let elsewhere = Arc::new(Elsewhere::new(sealed, shares, liveness, lines));
            let folder = tempfile::tempdir().unwrap();
            let options = trellis_sandbox::Options {
                cache_dir: folder.path().join("compiled"),
                sandboxes_max: 1,
                memory_bytes_max: 1 << 20,
                wasi_p3: false,
            };
            let (engine, artifacts) = (Engine::new(options).unwrap(), Artifacts::open(folder.path()).unwrap());
            let (logs, traces) = (Arc::new(Logs::new()), Traces::from_environment(node));
            let dispatch = Dispatch::new(engine, artifacts, 1, logs, traces, "one".into(), elsewhere.clone());
            let component: ComponentKey = "shop/api".parse().unwrap();
            let held = HeldComponent {
                digest: Digest::new([0; 32]),
                version: "1".into(),
                permits: Some(1),
                limits: Limits::default(),
                config: Config::default(),
                secret_refs: Vec::new(),
                secrets: Secrets::default(),
                id: "shop-api".into(),
                links: Default::default(),
            };
            dispatch.hold(&component, held, None);
            Self { elsewhere, dispatch, component, _folder: folder }
        }

        async fn taken(&self) -> Permit {
            let want = Want::Answer { at_most: Duration::ZERO };
            self.dispatch.permit_here(&self.component, want, Origin::Invoke.into()).await.unwrap()
        }

        /// A permit as one gets it who finds none free here.
        fn permit(&self, queue: &Arc<Semaphore>) -> Permit {
            let place = self.elsewhere.places.answers.clone().try_acquire_owned().unwrap();
            let mut permit = Permit::new(Turn {
                elsewhere: self.elsewhere.clone(),
                dispatch: self.dispatch.clone(),
                component: self.component.clone(),
                source: Origin::Invoke.into(),
                wait: Duration::from_secs(10),
                asking: Some(self.dispatch.holding(&self.component).unwrap().counts().ask()),
                queue: None,
                reserved: None,
                _place: place,
            });
            permit.waits_in(queue.clone());
            permit
        }

        /// How many were refused, and how many were not.
        fn counted(&self) -> (u64, u64) {
            let holding = self.dispatch.holding(&self.component).unwrap();
            let counts = holding.counts();
            (counts.refused.load(Ordering::Relaxed), counts.permit_wait.read().count)
        }
    }

    fn is_busy(outcome: &Outcome, because: &str) -> bool {
        matches!(outcome, Err(Failure::Error(Error::Busy(why))) if why.contains(because))
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_any_nodes_permit_waits_in_the_bounded_queue() {
        let (place, queue) = (Place::new(), Arc::new(Semaphore::new(1)));
        let taken = place.taken().await;
        let waits = tokio::spawn(place.permit(&queue).run(Event::Run(Vec::new())));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(queue.available_permits(), 0, "it waits for longer than a moment");
        let began = Instant::now();
        let refused = place.permit(&queue).run(Event::Run(Vec::new())).await;
        assert!(is_busy(&refused, "as many as may wait") && began.elapsed().is_zero(), "{refused:?}");
        drop(taken);
        let ran = waits.await.unwrap();
        assert!(matches!(ran, Err(Failure::Error(Error::Unusable(_)))), "{ran:?}");
        assert_eq!((queue.available_permits(), place.counted()), (1, (1, 1)));
        let nobody = Arc::new(Semaphore::new(0));
        let ran = place.permit(&nobody).run(Event::Run(Vec::new())).await;
        assert!(matches!(ran, Err(Failure::Error(Error::Unusable(_)))), "a free permit is not waited for: {ran:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_others_again_keeps_its_place_here() {
        let (place, queue) = (Place::new(), Arc::new(Semaphore::new(9)));
        let taken = place.taken().await;
        let (done, mut order) = mpsc::unbounded_channel();
        for nth in 0..3 {
            let (permit, done) = (place.permit(&queue), done.clone());
            tokio::spawn(async move {
                drop(permit.run(Event::Run(Vec::new())).await);
                done.send(nth).unwrap();
            });
            sleep(Duration::from_millis(1_234)).await;
        }
        drop(taken);
        for nth in 0..3 {
            assert_eq!(order.recv().await, Some(nth));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_got_no_permit_anywhere_was_refused() {
        let (place, queue) = (Place::new(), Arc::new(Semaphore::new(9)));
        let taken = place.taken().await;
        let wants = [Duration::ZERO, Duration::from_secs(1)].map(|at_most| Want::Answer { at_most });
        let looks = place.dispatch.permit_here(&place.component, wants[0], Origin::Invoke.into()).await;
        assert!(looks.is_err());
        assert_eq!(place.counted(), (0, 0), "another node goes on looking");
        let waited = place.permit(&queue).run(Event::Run(Vec::new())).await;
        assert!(is_busy(&waited, "no node took an event"), "{waited:?}");
        assert_eq!(place.counted(), (1, 0), "however often it was tried");
        assert!(place.dispatch.permit(&place.component, wants[1], Origin::Invoke.into()).await.is_err());
        assert_eq!(place.counted(), (2, 0));
        drop(taken);
        assert!(place.dispatch.permit(&place.component, wants[1], Origin::Invoke.into()).await.is_ok());
        assert_eq!(place.counted(), (2, 1));
    }

    #[tokio::test]
    async fn pulls_that_are_elsewhere_are_in_no_call_and_no_requests_way() {
        let place = Place::new();
        let all = u32::try_from(EXCHANGES_MAX).unwrap();
        let _pulls = place.elsewhere.places.pulls.try_acquire_many(all).unwrap();
        let link = LinkId::new(&place.component, &place.component, &"default".parse().unwrap(), "a", "b", &[]);
        let message = Message { subject: "orders".into(), ..Message::default() };
        let failed = place.elsewhere.call(&place.component, &link, Call::Publish(message)).await.unwrap_err();
        assert!(failed.to_string().contains("runs on no node"), "{failed}");
        assert!(place.elsewhere.places.answers.try_acquire().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_all_busy_asks_less_and_less_until_a_permit_is_free_that_it_had() {
        let (freed, began, mut asked, mut pause) = (Notify::new(), Instant::now(), 0, BUSY_PAUSE);
        while began.elapsed() < Duration::from_secs(10) {
            let heard = freed.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            pause = rest(heard, pause).await;
            asked += 1;
        }
        assert!((12..25).contains(&asked), "{asked} times in ten seconds");
        let (heard, began) = (freed.notified(), Instant::now());
        tokio::pin!(heard);
        heard.as_mut().enable();
        freed.notify_waiters();
        assert_eq!((rest(heard, pause).await, began.elapsed()), (BUSY_PAUSE, BUSY_PAUSE));
    }
}
