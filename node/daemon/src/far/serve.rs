//! The answering side: checks that the asker may, says at once whether the work is taken, and does it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trellis_bus::{Heard, Reply, Sealed};
use trellis_placement::Direction;
use trellis_provider::{Begun, Permit, Want};
use trellis_wire::{Body, Call, ComponentKey, Error, Event, LinkId, NodeId, frame, subject};

use super::cargo::{self, Load};
use super::line::{Line, Lines};
use super::message::{Ask, Back, Offer, Origin, Taken, What, Word};
use super::places::Places;
use super::reserved::{Kept, Reserved};
use crate::board::Board;
use crate::dispatch::{Dispatch, Source};
use crate::grants::Grant;
use crate::providers::Providers;
use crate::shares::Shares;
use crate::telemetry::Trace;
use crate::triggers::Triggers;

/// How often it is looked whether a place that was lent is still needed.
const LENT_LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a reply is waited for before the asker is told that its offer is taken. One that is there by then goes with
/// that: one message in place of two.
const TOGETHER_MAX: Duration = Duration::from_millis(5);

/// What a node does for others.
pub(crate) struct Service {
    pub(crate) sealed: Sealed,
    pub(crate) shares: Arc<Shares>,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) providers: Providers,
    pub(crate) board: Arc<Board>,
    pub(crate) triggers: Triggers,
    pub(crate) reserved: Reserved,
    pub(crate) lines: Lines,
    pub(crate) places: Places,
    /// Cancelled when nothing new is taken any more.
    pub(crate) shutdown: CancellationToken,
}

/// What was taken, and the means to do it.
enum Work {
    Event(Permit),
    Reserved(Kept),
    Call(ComponentCall),
    Send(Arc<Grant>),
    Slot(Begun),
    Ask,
    Publish,
}

struct ComponentCall {
    link: LinkId,
    tech: trellis_manifest::Tech,
}

impl Service {
    /// Serves until `ended`: the pieces of what is under way are taken for longer than anything new.
    pub(crate) async fn run(self, ended: CancellationToken) {
        let service = Arc::new(self);
        let (lattice, me) = (service.sealed.lattice(), service.sealed.node());
        let subjects = [subject::event(lattice, me), subject::call(lattice, me), subject::stream(lattice, me)];
        let [events, calls, pieces] = subjects;
        tokio::select! {
            () = ended.cancelled() => {}
            () = service.listen(events, |asked| service.clone().take(asked, true)) => {}
            () = service.listen(calls, |asked| service.clone().take(asked, false)) => {}
            () = service.listen(pieces, |piece| service.lines.take(piece.from, &piece.body)) => {}
        }
    }

    async fn listen(&self, subject: String, each: impl Fn(Heard)) {
        let mut words = self.sealed.words(subject);
        loop {
            // Who sent what is not taken was told.
            if let Ok(word) = words.next().await {
                each(word);
            }
        }
    }

    /// One question. What is long is done beside the others; there is a bound on how many.
    fn take(self: Arc<Self>, asked: Heard, events: bool) {
        let Some(reply) = asked.reply else { return };
        let place = self.places.take(asked.from, self.shares.state().nodes().len());
        tokio::spawn(async move {
            let offer = match frame::decode(&asked.body) {
                Ok(Ask::Still(exchange)) => return self.say(reply, Taken::Still(self.lines.is_open(exchange))).await,
                Ok(Ask::Holds(component, version)) => {
                    return self.say(reply, Taken::Still(self.dispatch.holds(&component, &version))).await;
                }
                Ok(Ask::Echo(component, version)) => {
                    let reached = self.dispatch.elsewhere().reaches(asked.from, component, version).await;
                    return self.say(reply, Taken::Still(reached)).await;
                }
                Ok(Ask::Offer(offer)) => *offer,
                Err(why) => return self.say(reply, Taken::Refused(format!("not understood: {why}"))).await,
            };
            let Some(_place) = place else {
                return self.say(reply, Taken::Busy("too much of others is under way here".into())).await;
            };
            let is_event = matches!(offer.what, What::Event { .. } | What::Deliver { .. } | What::Reserve { .. });
            if events != is_event {
                return self.say(reply, Taken::Refused("it came on another subject".into())).await;
            }
            match self.consider(asked.from, &offer).await {
                Err(no) => self.say(reply, no).await,
                Ok(work) => {
                    let Some(line) = self.lines.open(offer.exchange, false, asked.from) else { return };
                    self.work(offer, work, line, reply).await;
                }
            }
        });
    }

    async fn say(&self, reply: Reply, taken: Taken) {
        if let Err(why) = self.sealed.answer(reply, &frame::encode(&taken)).await {
            // The asker sees a time-out and asks another node.
            tracing::debug!(%why, "an offer was not answered");
        }
    }

    /// Whether the asker may, by this node's own plan, and whether there is a permit now.
    async fn consider(&self, from: NodeId, offer: &Offer) -> Result<Work, Taken> {
        if self.shutdown.is_cancelled() {
            return Err(Taken::Busy("the node is shutting down".into()));
        }
        let state = self.shares.state();
        let denied = |why: String| {
            // What the asker's newer plan allows will be allowed here in a moment.
            if offer.generation > state.plan().generation() { Taken::Busy(why) } else { Taken::Refused(why) }
        };
        if state.node(from).is_none() {
            return Err(denied(format!("node {from} is no member")));
        }
        match &offer.what {
            What::Event { component, origin, .. }
            | What::Deliver { component, origin, .. }
            | What::Reserve { component, origin } => {
                if !self.may_wake(from, component, origin) {
                    return Err(denied(format!("no link lets node {from} wake {component}")));
                }
                if let What::Deliver { reserved: Some(reserved), .. } = &offer.what
                    && let Some(permit) = self.reserved.take(*reserved, from, component)
                {
                    return Ok(Work::Event(permit));
                }
                let now = Want::Answer { at_most: Duration::ZERO };
                let source = Source { because_of: offer.what.trace(), ..Source::from(origin.clone()) };
                match self.dispatch.permit_here(component, now, source).await {
                    Ok(permit) if matches!(offer.what, What::Reserve { .. }) => {
                        Ok(Work::Reserved(Kept { asker: from, component: component.clone(), permit }))
                    }
                    Ok(permit) => Ok(Work::Event(permit)),
                    Err(why @ (Error::Busy(_) | Error::NotHeld(_) | Error::ShuttingDown)) => {
                        Err(Taken::Busy(why.to_string()))
                    }
                    Err(why) => Err(Taken::Refused(why.to_string())),
                }
            }
            What::Send { component, origin, link, .. } => match self.dispatch.grant_to_send(component, link) {
                _ if !self.may_wake(from, component, origin) => {
                    Err(denied(format!("no link lets node {from} speak for {component}")))
                }
                Some(grant) => Ok(Work::Send(grant)),
                None => Err(denied(format!("{component} has no link {link} here"))),
            },
            What::Slot { component, .. } if !self.may_hold(from, component) => {
                Err(denied(format!("node {from} does not hold {component}")))
            }
            What::Slot { component, link } => {
                let grant = self.dispatch.grants().of_link(component, link);
                let lent = grant.and_then(|grant| grant.gate()?.lend());
                lent.map(Work::Slot).ok_or_else(|| Taken::Busy("no place is free here".into()))
            }
            What::Ask(_) => Ok(Work::Ask),
            What::Publish { .. } if state.home_node() == Some(self.sealed.node()) => Ok(Work::Publish),
            What::Publish { .. } => Err(denied("this node is not the home of what is embedded".into())),
            What::Call { link, .. } if !self.may_call(from, link) => {
                Err(denied(format!("link {link} does not grant node {from} a call here")))
            }
            What::Call { link, .. } => {
                let not_here = || Taken::Busy(format!("link {link} is not answered here now"));
                let (link, tech) = self.board.answering(link).ok_or_else(not_here)?;
                self.providers.of(tech).health(&link).map_err(Taken::Busy)?;
                Ok(Work::Call(ComponentCall { link, tech }))
            }
        }
    }

    /// Who was told to give a component up holds it until it says that it did.
    fn may_hold(&self, from: NodeId, component: &ComponentKey) -> bool {
        self.shares.of(from).holds(component) || self.shares.state().gives_up(from, component)
    }

    /// The right is the component's, wherever its provider is to run. Who is to answer may not be ready yet, and who is to no
    /// more goes on until the next one is. So does who is to call no more.
    fn may_call(&self, from: NodeId, link: &LinkId) -> bool {
        let theirs = self.shares.of(from);
        let is_granted = theirs.link(link).is_some_and(|held| {
            matches!(held.direction, Direction::GrantsElsewhere { .. } | Direction::Grants { .. })
                && theirs.holds(&held.link.component)
        });
        is_granted || self.shares.state().gives_up_caller(from, link)
    }

    fn may_wake(&self, from: NodeId, component: &ComponentKey, origin: &Origin) -> bool {
        let theirs = self.shares.of(from);
        let (link, may) = match origin {
            Origin::Invoke => return true,
            Origin::Link(link, _) => {
                let wakes = theirs.exact_link(link).is_some_and(|held| {
                    matches!(held.direction, Direction::Wakes { .. }) && held.link.component == *component
                });
                (link, wakes)
            }
            Origin::Component(link, _) => {
                let calls = theirs.link(link).is_some_and(|held| {
                    matches!(&held.direction, Direction::Between { target } if target == component)
                        && theirs.holds(&held.link.component)
                });
                (link, calls)
            }
        };
        may || self.shares.state().gives_up_waker(from, link, component)
    }

    /// Takes an offer. Returns when nothing of it is left to do here.
    async fn work(&self, offer: Offer, work: Work, mut line: Line, reply: Reply) {
        match work {
            Work::Slot(lent) => {
                self.say(reply, Taken::Accepted).await;
                self.keep_for(&line).await;
                drop(lent);
                line.done();
            }
            Work::Reserved(kept) => {
                self.reserved.keep(offer.exchange, kept);
                self.say(reply, Taken::Accepted).await;
                self.keep_for(&line).await;
                self.reserved.forget(offer.exchange);
                line.done();
            }
            work => self.answer(offer, work, line, reply).await,
        }
    }

    /// Does what was offered and sends what came of it. Ends at once when the asker breaks it off.
    async fn answer(&self, offer: Offer, work: Work, mut line: Line, reply: Reply) {
        let over = line.over();
        let together = offer.whole && self.shares.state().node(line.peer()).is_some_and(|node| node.facts.takes_done());
        let body = line.request_body(offer.first, offer.whole);
        let doing = async {
            let mut done = pin!(self.done(offer.what, work, body, offer.within));
            let early = if together { timeout(TOGETHER_MAX, &mut done).await.ok() } else { None };
            let early = match early.map(loaded) {
                Some((back, Load { first, rest: None })) => {
                    return self.say(reply, Taken::Done(Box::new(back), first)).await;
                }
                early => early,
            };
            self.say(reply, Taken::Accepted).await;
            let (back, load) = match early {
                Some(answer) => answer,
                None => loaded(done.await),
            };
            send_back(back, load, &line).await;
        };
        tokio::select! {
            biased;
            () = over.cancelled() => tracing::debug!(exchange = %line.exchange(), "{}", line.why()),
            () = doing => {}
        }
        line.done();
    }

    /// Waits until another node says, or shows, that it needs no more what is kept for it.
    async fn keep_for(&self, line: &Line) {
        let over = line.over();
        loop {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(LENT_LOOK_EVERY) => {}
            }
            let is_gone = self.shares.state().node(line.peer()).is_none_or(trellis_placement::Node::is_lost);
            if is_gone || self.lines.is_still(line.peer(), line.exchange()).await == Some(false) {
                return;
            }
        }
    }

    async fn done(&self, what: What, work: Work, body: Body, within: Duration) -> (Back, Body) {
        match (what, work) {
            (What::Event { head, .. }, Work::Event(permit)) => match cargo::event_in(head, body).await {
                Ok(event) if within == Duration::MAX => cargo::outcome_out(permit.run(event).await),
                Ok(event) => cargo::outcome_out(permit.run_within(event, within).await),
                Err(why) => (Error::Internal(why.to_string()).into(), Body::empty()),
            },
            (What::Deliver { head, .. }, Work::Event(permit)) => match cargo::event_in(head, body).await {
                Ok(event @ Event::Message(_)) => cargo::delivered_out(permit.deliver(event, within).await),
                Ok(_) => (Error::Internal("what is delivered is no message".into()).into(), Body::empty()),
                Err(why) => (Error::Internal(why.to_string()).into(), Body::empty()),
            },
            (What::Send { head, .. }, Work::Send(grant)) => match cargo::call_in(head, body).await {
                Ok(call) => cargo::answer_out(grant.call(&self.dispatch, &Trace::default(), "", call).await),
                Err(why) => (Error::Internal(why.to_string()).into(), Body::empty()),
            },
            (What::Ask(question), Work::Ask) => (Back::Answer, self.triggers.answer(question).await.into()),
            (What::Publish { head }, Work::Publish) => match cargo::call_in(head, body).await {
                Ok(Call::Publish(message)) => match self.providers.embedded.publish(message).await {
                    Ok(took) => (Back::Took(took as u64), Body::empty()),
                    Err(why) => (Back::CallFailed(why), Body::empty()),
                },
                Ok(_) => (Error::Internal("what is published is no message".into()).into(), Body::empty()),
                Err(why) => (Error::Internal(why.to_string()).into(), Body::empty()),
            },
            (What::Call { head, .. }, Work::Call(ComponentCall { link, tech })) => {
                match cargo::call_in(head, body).await {
                    Ok(call) => cargo::answer_out(self.providers.of(tech).call(&link, call).await),
                    Err(why) => (Error::Internal(why.to_string()).into(), Body::empty()),
                }
            }
            _ => (Error::Internal("an offer changed on its way".into()).into(), Body::empty()),
        }
    }
}

/// A reply with its body's beginning.
fn loaded((back, body): (Back, Body)) -> (Back, Load) {
    match Load::of(body) {
        Ok(load) => (back, load),
        Err(why) => (Error::Internal(why.to_string()).into(), Load { first: Default::default(), rest: None }),
    }
}

/// Sends a reply: the head with the body's beginning, then the rest as the asker takes it.
async fn send_back(back: Back, load: Load, line: &Line) {
    let reply = Word::Reply(Box::new(back), load.first, load.rest.is_none());
    if let Err(why) = line.say(reply).await {
        return tracing::warn!("a reply did not reach node {}: {why}", line.peer());
    }
    if let Some(rest) = load.rest {
        // Whether it went is the asker's to see.
        line.outflow().send(rest).await;
    }
}
