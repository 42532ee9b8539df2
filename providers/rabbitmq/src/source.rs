//! Messages of a queue wake a component, at least once.
//!
//! | key | means |
//! | --- | --- |
//! | `queue` | the queue |
//! | `exchange`, `routing_key` | what it is bound to; the routing key is the queue's name by default |
//! | `create` | `"true"` makes a queue (of type quorum) and an exchange (topic) where there is none |
//!
//! No more is taken than there are permits, by `basic.get`. A message stays in its queue until it is settled:
//!
//! - done: acknowledged;
//! - another try: a copy that knows of its attempts, faults and kills goes through a delay queue (`delays.rs`) back to the
//!   end of the queue; when the server has confirmed the copy, the message is acknowledged. A node that dies in between leaves
//!   both, and the message is handled once more;
//! - given up: the same with the queue of dead letters (`<queue>.dead`, or what `delivery.dead_letter` names).
//!
//! Order is not kept: what comes back stands last. The ledger is the lattice's (`kept.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::{BasicProperties, Channel};
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, Ledger, PULL_MAX, Place, Queue, Record, Settlement, Standing, Trouble,
};
use trellis_provider::{Ledgers, LinkError};
use trellis_wire::Link;
use uuid::Uuid;

use crate::Queues;
use crate::claims::{Claims, Held, give_back};
use crate::config::Settings;
use crate::connection::{self, Connection, Connections, Line, Unanswered, within};
use crate::kept::Kept;
use crate::known::{Known, returns};
use crate::letters::{self, Letters};
use crate::wanted::Wanted;
use crate::young::Young;

/// Messages that are asked for at once.
const GETTERS: usize = 8;
/// How often an idle queue is asked for news.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Waits up to this need no delay queue.
const AT_ONCE: Duration = Duration::from_millis(50);

/// A queue as the engine of one link sees it.
#[derive(Debug)]
pub struct Source {
    connection: Arc<Connection>,
    wanted: Wanted,
    component: String,
    letters: Letters,
    kept: Kept,
    queue: Arc<Common>,
    bound: tokio::sync::Mutex<Option<Bound>>,
    /// Set once the queue was there: before, what is published to it would be lost.
    found: Arc<AtomicBool>,
}

/// What the links of this node to one queue share.
#[derive(Debug)]
pub(crate) struct Common {
    claims: Arc<Claims>,
    young: Young,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self { claims: Claims::new(), young: Young::default() }
    }
}

/// The queue, found on the connection of this number.
#[derive(Debug, Clone)]
struct Bound {
    number: u64,
    getters: Vec<Channel>,
}

/// Names a message that was given out.
#[derive(Debug)]
pub struct Claim(u64);

impl Source {
    /// Reads a link. Nothing is asked of the server yet.
    pub(crate) fn open(
        connections: &Connections,
        queues: &Queues,
        ledgers: &Arc<dyn Ledgers>,
        link: &Link,
    ) -> Result<Self, LinkError> {
        let (wanted, settings) = (Wanted::read(link)?, Settings::read(link)?);
        let component = link.component.to_string();
        Ok(Self {
            connection: connections.get(&settings, || connection::open(&settings))?,
            kept: Kept::new(ledgers, &settings, &wanted.queue, link),
            queue: queues.get(&(settings, wanted.queue.clone()), || Ok::<_, LinkError>(Arc::new(Common::new())))?,
            letters: Letters::new(&wanted.dead, &component),
            component,
            wanted,
            bound: tokio::sync::Mutex::default(),
            found: Arc::default(),
        })
    }

    pub(crate) fn connection(&self) -> Arc<Connection> {
        self.connection.clone()
    }

    /// Whether the queue was there yet.
    pub(crate) fn found(&self) -> Arc<AtomicBool> {
        self.found.clone()
    }

    /// The queue, found or made, and channels to take from it.
    async fn bound(&self) -> Result<(Arc<Line>, Bound), Trouble> {
        let (number, line) = self.connection.get().await?;
        let mut bound = self.bound.lock().await;
        let stands =
            |bound: &&Bound| bound.number == number && bound.getters.iter().all(|get| get.status().connected());
        if let Some(bound) = bound.as_ref().filter(stands) {
            return Ok((line, bound.clone()));
        }
        *bound = None;
        self.kept.find().await?;
        let found = async {
            self.wanted.find(&line, &self.queue.young).await?;
            let mut getters = Vec::with_capacity(GETTERS);
            for _ in 0..GETTERS {
                getters.push(line.channel().await?);
            }
            Ok::<_, String>(getters)
        };
        let getters = found.await?;
        self.queue.young.outgrown().await;
        let found = Bound { number, getters };
        *bound = Some(found.clone());
        self.found.store(true, Ordering::Relaxed);
        Ok((line, found))
    }

    /// Something failed: whether the queue is still there is looked up before it is used again.
    async fn failed(&self, doing: &str, why: Unanswered) -> Trouble {
        let mut bound = self.bound.lock().await;
        let before = bound.take();
        drop(bound);
        if let (Some(before), Unanswered::Away(why)) = (before, &why) {
            let _ = self.connection.broke(before.number, why).await;
        }
        format!("{doing} queue `{}`: {why}", self.wanted.queue)
    }

    /// Takes up to `max` messages by one channel.
    async fn take(&self, line: &Line, getter: &Channel, max: usize) -> (Vec<Claimed<Claim>>, Option<Unanswered>) {
        let mut taken = Vec::new();
        while taken.len() < max {
            let got = within(getter.basic_get(self.wanted.queue.as_str().into(), BasicGetOptions::default())).await;
            let delivery = match got {
                Ok(Some(message)) => message.delivery,
                Ok(None) => break,
                Err(why) => return (taken, Some(why)),
            };
            match self.claimed(line, delivery).await {
                Ok(claimed) => taken.extend(claimed),
                Err(why) => return (taken, Some(why)),
            }
        }
        (taken, None)
    }

    /// A message with what is known of it; none, if it is not to be run.
    async fn claimed(&self, line: &Line, delivery: Delivery) -> Result<Option<Claimed<Claim>>, Unanswered> {
        let now_ms = now_ms();
        let known = Known::read(&delivery, now_ms, || Uuid::now_v7().to_string());
        let returned = if delivery.redelivered { returns(&delivery) } else { Some(0) };
        let mut held = Held::new(delivery, known);
        if held.delivery.redelivered && self.queue.claims.is_settled(&held) {
            within(held.delivery.acker.ack(BasicAckOptions::default())).await?;
            return Ok(None);
        }
        if held.known.left_ms > 0 {
            let left = Duration::from_millis(std::mem::take(&mut held.known.left_ms));
            return self.pass_on(line, &held, left).await;
        }
        let Some(returned) = returned else {
            // A classic queue says that it was given out before, not how often: a copy that counts takes its place.
            held.known.killed(1);
            return self.pass_on(line, &held, Duration::ZERO).await;
        };
        held.known.killed(returned);
        let known = &held.known;
        let attempt = known.attempts.saturating_add(1);
        let age = Duration::from_millis(now_ms.saturating_sub(known.since_ms));
        let place = Place {
            key: key(known, &held.delivery.data),
            has_twins: known.is_named,
            position: None,
            again: attempt > 1 || held.delivery.redelivered || !is_first(&held.delivery),
            name: known.is_named.then(|| known.id.clone()),
            replay_of: known.replay_of.clone(),
        };
        let message = known.message(&held.delivery, attempt);
        let record = Record { attempt, faults: known.faults, kills: known.kills, age };
        Ok(Some(Claimed { message, record, place, claim: Claim(self.queue.claims.hold(held)) }))
    }

    /// Has a copy take its place without a run.
    async fn pass_on(&self, line: &Line, held: &Held, after: Duration) -> Result<Option<Claimed<Claim>>, Unanswered> {
        if let Err(why) = self.give_again(line, held, after).await {
            give_back(held).await;
            return Err(why);
        }
        Ok(None)
    }

    /// Has a copy given out after a wait, and acknowledges the message.
    async fn give_again(&self, line: &Line, held: &Held, after: Duration) -> Result<(), Unanswered> {
        let (original, body) = (&held.delivery.properties, &held.delivery.data);
        if after <= AT_ONCE {
            self.put(line, &self.wanted.queue, body, held.known.write(original, &[])).await?;
        } else {
            let wait = self.wanted.delays.wait(after);
            let known = Known { left_ms: wait.left_ms, ..held.known.clone() };
            let properties = known.write(original, &[]).with_expiration(wait.ms.to_string().into());
            self.put(line, &wait.queue, body, properties).await?;
        }
        acknowledge(held).await;
        Ok(())
    }

    /// Puts a message into one of the link's queues. If someone deleted that, it is made again first.
    async fn put(&self, line: &Line, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), Unanswered> {
        match publish(line, queue, body, properties.clone()).await {
            Err(Unanswered::Refused(connection::NOT_FOUND, _)) => {
                self.wanted.find(line, &self.queue.young).await.map_err(Unanswered::Away)?;
                self.queue.young.outgrown().await;
                publish(line, queue, body, properties).await
            }
            done => done,
        }
    }

    async fn carry_out(&self, held: &mut Held, settlement: &Settlement) -> Result<(), Unanswered> {
        if matches!(settlement, Settlement::Ack | Settlement::Drop { .. }) {
            self.queue.claims.remember(held);
            acknowledge(held).await;
            return Ok(());
        }
        let (_, line) = self.connection.get().await.map_err(Unanswered::Away)?;
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => {}
            Settlement::GiveBack { after } => self.give_again(&line, held, *after).await?,
            Settlement::Retry { after, fault } => {
                let before = held.known.clone();
                held.known.attempts = held.known.attempts.saturating_add(1);
                held.known.note(fault.as_deref());
                let given = self.give_again(&line, held, *after).await;
                held.known = before;
                given?;
                self.queue.claims.remember(held);
            }
            Settlement::DeadLetter { reason, fault, ran } => {
                let mut known = held.known.clone();
                known.attempts = known.attempts.saturating_add(1);
                known.note(fault.as_deref());
                let beside = letters::beside(&self.wanted.queue, &self.component, reason, ran, now_ms());
                let properties = known.write(&held.delivery.properties, &beside);
                self.put(&line, &self.wanted.dead, &held.delivery.data, properties).await?;
                self.queue.claims.remember(held);
                acknowledge(held).await;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Queue for Source {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            let (line, bound) = self.bound().await?;
            match line.waiting(&bound.getters[0], &self.wanted.queue).await {
                Ok(0) => tokio::time::sleep(LOOK_EVERY).await,
                Ok(waiting) => return Ok(usize::try_from(waiting).unwrap_or(PULL_MAX)),
                Err(why) => return Err(self.failed("looking at", why).await),
            }
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        let (line, bound) = self.bound().await?;
        let parts = max.clamp(1, GETTERS);
        let takes = bound.getters.iter().take(parts).enumerate().map(|(part, getter)| {
            let most = max / parts + usize::from(part < max % parts);
            self.take(&line, getter, most)
        });
        let (mut claimed, mut trouble) = (Vec::new(), None);
        for (taken, why) in join_all(takes).await {
            claimed.extend(taken);
            trouble = trouble.or(why);
        }
        match trouble {
            // What came before it is run; what is wrong shows at the next pull.
            Some(why) if claimed.is_empty() => Err(self.failed("taking from", why).await),
            Some(_) | None => Ok(claimed),
        }
    }

    async fn settle(&self, Claim(number): &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        let Some(mut held) = self.queue.claims.take(*number) else { return Ok(()) };
        let Err(why) = self.carry_out(&mut held, settlement).await else { return Ok(()) };
        if !held.delivery.acker.usable() {
            // The claim ended with its connection.
            return Ok(());
        }
        self.queue.claims.put_back(*number, held);
        Err(why.to_string())
    }

    async fn extend(&self, Claim(number): &Claim) -> Result<(), Trouble> {
        self.queue.claims.extend(*number);
        Ok(())
    }

    async fn note(&self, _: &Claim, _: Option<&str>) -> Result<(), Trouble> {
        Err("RabbitMQ counts no attempts under a claim that goes on".into())
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let (line, bound) = self.bound().await?;
        let mut waiting = match line.waiting(&bound.getters[0], &self.wanted.queue).await {
            Ok(waiting) => waiting,
            Err(why) => return Err(self.failed("looking at", why).await),
        };
        // Not by a getter: one that is missing ends its channel, and with that the claims of a getter.
        let channel = line.channel().await?;
        for delay in self.wanted.delays.names() {
            waiting += line.waiting(&channel, &delay).await?;
        }
        connection::close(&channel).await;
        let dead = self.letters.count(&line).await?;
        Ok(Standing { waiting, claimed: self.queue.claims.count(), oldest_age: None, dead: Some(dead) })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let (line, _) = self.bound().await?;
        self.letters.list(&line, after, max).await
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let (line, _) = self.bound().await?;
        self.letters.decide(&line, id, (fate, &self.wanted.queue)).await
    }

    fn ledger(&self) -> Option<&dyn Ledger> {
        self.kept.ledger()
    }

    fn keeps_order(&self) -> bool {
        false
    }
}

/// Puts a message into a queue.
pub(crate) async fn publish(
    line: &Line,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), Unanswered> {
    let published = line.publish("", queue, body, properties).await.map_err(|why| match why {
        Unanswered::Refused(code, why) => Unanswered::Refused(code, format!("queue `{queue}`: {why}")),
        Unanswered::Away(why) => Unanswered::Away(format!("queue `{queue}`: {why}")),
    });
    if published? {
        return Ok(());
    }
    Err(Unanswered::Refused(connection::NOT_FOUND, format!("queue `{queue}` does not exist")))
}

/// Takes a message off. An acknowledgement that is lost with its connection has the message given out again.
async fn acknowledge(held: &Held) {
    if let Err(why) = within(held.delivery.acker.ack(BasicAckOptions::default())).await {
        tracing::debug!(%why, "a claim had ended with its connection");
    }
}

/// Whether no copy of ours was made of it yet.
fn is_first(delivery: &Delivery) -> bool {
    crate::known::header(delivery.properties.headers().as_ref(), "attempts").is_none()
}

/// What names a message at every delivery. One that its publisher gave no id has a new one until there is a copy of it, so
/// that it never is another's. Messages with one id are told apart by their bodies.
fn key(known: &Known, body: &[u8]) -> String {
    let told_by: &[u8] = if known.is_named { body } else { &[] };
    let replay_of = known.replay_of.as_deref().unwrap_or_default();
    let of = [known.id.as_bytes(), replay_of.as_bytes(), told_by].join(&0);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &of).to_string()
}

pub(crate) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_messages_share_a_key_but_those_with_one_id_and_body() {
        let named = |id: &str| Known { id: id.into(), is_named: true, ..Known::default() };
        assert_eq!(key(&named("a"), b"1"), key(&named("a"), b"1"));
        assert_ne!(key(&named("a"), b"1"), key(&named("a"), b"2"));
        let replay = Known { replay_of: Some("letter".into()), ..named("a") };
        assert_ne!(key(&named("a"), b"1"), key(&replay, b"1"));
        let unnamed = || Known { id: Uuid::now_v7().to_string(), ..Known::default() };
        assert_ne!(key(&unnamed(), b"1"), key(&unnamed(), b"1"));
    }
}
