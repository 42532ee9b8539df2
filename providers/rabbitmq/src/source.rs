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
//! - another try: a copy that knows of its attempts, faults and kills goes through a delay queue
//!   (`<queue>.trellis.delay.<ms>`) back to the end of the queue; when the server has confirmed the copy, the message is
//!   acknowledged. A node that dies in between leaves both, and the message is handled once more;
//! - given up: the same with the queue of dead letters (`<queue>.dead`, or what `delivery.dead_letter` names).
//!
//! All messages of a delay queue wait equally long, so none waits behind another; waits are rounded up to a quarter of
//! their power of two, which bounds how many such queues there are. They go away by themselves.
//!
//! Order is not kept: what comes back stands last. There is no ledger for `delivery.dedupe`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::join_all;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use tokio::time::Instant;
use trellis_provider::LinkError;
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, Ledger, PULL_MAX, Place, Queue, Record, Settlement, Standing, Trouble,
};
use trellis_wire::Link;
use uuid::Uuid;

use crate::Queues;
use crate::claims::{Claims, Held};
use crate::config::Settings;
use crate::connection::{self, Connection, Connections, Line, Unanswered, within};
use crate::known::{Known, returns};
use crate::letters::{self, Letters};
use crate::wanted::{Wanted, long, quorum, word};

/// Messages that are asked for at once.
const GETTERS: usize = 8;
/// How often an idle queue is asked for news.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Waits up to this need no delay queue.
const AT_ONCE: Duration = Duration::from_millis(50);
/// How much longer than two waits a delay queue stays that nobody uses.
const DELAY_KEPT: Duration = Duration::from_secs(120);

/// A queue as the engine of one link sees it.
#[derive(Debug)]
pub struct Source {
    connection: Arc<Connection>,
    wanted: Wanted,
    component: String,
    letters: Letters,
    queue: Arc<Common>,
    bound: tokio::sync::Mutex<Option<Bound>>,
    /// Set once the queue was there: before, what is published to it would be lost.
    found: Arc<AtomicBool>,
}

/// What the links of this node to one queue share.
#[derive(Debug)]
pub(crate) struct Common {
    claims: Arc<Claims>,
    /// Delay queues that this node has used.
    delays: Mutex<HashSet<String>>,
}

impl Common {
    pub(crate) fn new() -> Self {
        Self { claims: Claims::new(), delays: Mutex::default() }
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
    pub(crate) fn open(connections: &Connections, queues: &Queues, link: &Link) -> Result<Self, LinkError> {
        let (wanted, settings) = (Wanted::read(link)?, Settings::read(link)?);
        let component = link.component.to_string();
        Ok(Self {
            connection: connections.get(&settings, || connection::open(&settings))?,
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
        let found = async {
            self.wanted.find(&line).await?;
            let mut getters = Vec::with_capacity(GETTERS);
            for _ in 0..GETTERS {
                getters.push(line.channel().await?);
            }
            Ok::<_, String>(getters)
        };
        let getters = found.await?;
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
        let Some(returned) = returned else {
            // A classic queue says that it was given out before, not how often: a copy that counts takes its place.
            held.known.killed(1);
            self.give_again(line, &held, Duration::ZERO).await?;
            return Ok(None);
        };
        held.known.killed(returned);
        let known = &held.known;
        let attempt = known.attempts.saturating_add(1);
        let age = Duration::from_millis(now_ms.saturating_sub(known.since_ms));
        let place = Place {
            key: key(&known.id),
            position: None,
            again: attempt > 1 || held.delivery.redelivered || !is_first(&held.delivery),
            name: known.is_named.then(|| known.id.clone()),
            replay_of: known.replay_of.clone(),
        };
        let message = known.message(&held.delivery, attempt);
        let record = Record { attempt, faults: known.faults, kills: known.kills, age };
        Ok(Some(Claimed { message, record, place, claim: Claim(self.queue.claims.hold(held)) }))
    }

    /// Has a copy given out after a wait, and acknowledges the message.
    async fn give_again(&self, line: &Line, held: &Held, after: Duration) -> Result<(), Unanswered> {
        let properties = held.known.write(&held.delivery.properties, &[]);
        let to = if after <= AT_ONCE { self.wanted.queue.clone() } else { self.delay(line, after).await? };
        publish(line, &to, &held.delivery.data, properties).await?;
        acknowledge(held).await;
        Ok(())
    }

    /// A queue whose messages come back to this one after at least so long.
    async fn delay(&self, line: &Line, after: Duration) -> Result<String, Unanswered> {
        let wait_ms = rounded_up(after);
        let name = format!("{}.trellis.delay.{wait_ms}", self.wanted.queue);
        let lasts = Duration::from_millis(wait_ms) * 2 + DELAY_KEPT;
        let declared = line.declared.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied();
        // Declaring it is what keeps it: messages alone do not.
        if declared.is_some_and(|at| at.elapsed() < DELAY_KEPT / 2) {
            return Ok(name);
        }
        let number = |ms: u128| long(i64::try_from(ms).unwrap_or(i64::MAX));
        let arguments = quorum(&[
            ("x-message-ttl", number(u128::from(wait_ms))),
            ("x-expires", number(lasts.as_millis())),
            ("x-dead-letter-exchange", word("")),
            ("x-dead-letter-routing-key", word(&self.wanted.queue)),
            ("x-dead-letter-strategy", word("at-least-once")),
            ("x-overflow", word("reject-publish")),
        ]);
        line.declare(&name, arguments).await.map_err(|why| match why {
            Unanswered::Refused(code, why) => {
                let problem = "cannot be made; RabbitMQ 3.10 or later is needed for waits that lose nothing";
                Unanswered::Refused(code, format!("queue `{name}` {problem}: {why}"))
            }
            away @ Unanswered::Away(_) => away,
        })?;
        line.declared.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), Instant::now());
        self.queue.delays.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        Ok(name)
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
                publish(&line, &self.wanted.dead, &held.delivery.data, properties).await?;
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
        let delays: Vec<_> = self.queue.delays.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        for delay in delays {
            let channel = line.channel().await?;
            // One that has gone away held nothing.
            waiting += line.waiting(&channel, &delay).await.unwrap_or_default();
        }
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
        None
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
    properties: lapin::BasicProperties,
) -> Result<(), Unanswered> {
    if line.publish("", queue, body, properties).await? {
        return Ok(());
    }
    line.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
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

/// An id as a ledger's key may hold it.
fn key(id: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.len() <= 100 && id.bytes().all(is_plain) {
        return id.into();
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).to_string()
}

/// A wait in milliseconds, rounded up to a quarter of its power of two.
fn rounded_up(wait: Duration) -> u64 {
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX >> 1).max(1);
    let step = (1_u64 << (63 - ms.leading_zeros())) / 4;
    ms.next_multiple_of(step.max(1))
}

pub(crate) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_never_shorter_and_few() {
        let mut found = HashSet::new();
        for ms in (50..604_800_000_u64).step_by(12_345) {
            let rounded = rounded_up(Duration::from_millis(ms));
            assert!(rounded >= ms && rounded <= ms + ms / 4 + 1, "{ms} became {rounded}");
            found.insert(rounded);
        }
        assert!(found.len() < 100, "{}", found.len());
    }

    #[test]
    fn keys_hold_what_a_ledger_takes() {
        assert_eq!(key("a-1.b"), "a-1.b");
        assert_ne!(key("a b"), key("a c"));
        assert!(key(&"x".repeat(500)).len() < 100);
    }
}
