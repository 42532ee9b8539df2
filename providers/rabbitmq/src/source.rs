//! Messages of a queue wake a component, at least once, in whatever order.
//!
//! | key | means |
//! | --- | --- |
//! | `queue` | the queue |
//! | `exchange`, `routing_key` | what it is bound to; the routing key is the queue's name by default |
//! | `create` | `"true"` makes a queue (of type quorum) and an exchange (topic) where there is none |
//!
//! No more is taken than there are permits: by `basic.get`, and where there is plenty by a consumer that is there for one pull
//! and has just so many messages, since each get costs the server as much as a message. One that stayed would be given messages
//! without a permit. A message stays in its queue until it is settled:
//!
//! - done: acknowledged;
//! - another try: a copy that knows of its attempts, faults and kills goes through a delay queue (`delays.rs`) back to the
//!   end of the queue; when the server has confirmed the copy, the message is acknowledged. A node that dies in between leaves
//!   both, and the message is handled once more;
//! - given up: the same with the queue of dead letters (`<queue>.dead`, or what `delivery.dead_letter` names).
//!
//! Order is not kept: what comes back stands last. Links that ask for it pull by `ordered.rs` instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::join_all;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use tokio::time::timeout;
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, Ledger, PULL_MAX, Place, Queue, Record, Settlement, Standing, Trouble,
};
use trellis_provider::now_ms;
use uuid::Uuid;

use crate::base::{Base, acknowledge, is_first, key};
use crate::claims::{Held, give_back};
use crate::connection::{Line, NOT_FOUND, Unanswered, close, within};
use crate::known::{Known, returns};

/// Messages that are asked for at once. More are had from a consumer, which costs the server as much as about so many gets.
const GETTERS: usize = 8;
/// There is plenty where a queue has this many times what is asked for, so that others who ask leave enough.
const PLENTY: usize = 4;
/// How long a consumer is waited for that has been given less than it asked for. What a quorum queue gives to one in the moment in
/// which it is cancelled, the server takes back, and counts that as if a node had died: so it is waited for first.
const REST_WITHIN: Duration = Duration::from_millis(100);
/// How often an idle queue is asked for news.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Waits up to this need no delay queue.
const AT_ONCE: Duration = Duration::from_millis(50);

/// A queue as the engine of one link sees it.
#[derive(Debug)]
pub struct Source {
    base: Base,
    bound: tokio::sync::Mutex<Option<Bound>>,
    /// How many messages waited, as was said last.
    waiting: AtomicUsize,
    /// The last of its consumers.
    consumers: AtomicU64,
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
    /// What pulls from a link's queue.
    pub(crate) fn new(base: Base) -> Self {
        let (bound, waiting, consumers) = Default::default();
        Self { base, bound, waiting, consumers }
    }

    /// The queue, found or made, and channels to take from it.
    async fn bound(&self) -> Result<(Arc<Line>, Bound), Trouble> {
        let (number, line) = self.base.connection.get().await?;
        let mut bound = self.bound.lock().await;
        let stands =
            |bound: &&Bound| bound.number == number && bound.getters.iter().all(|get| get.status().connected());
        if let Some(bound) = bound.as_ref().filter(stands) {
            return Ok((line, bound.clone()));
        }
        *bound = None;
        self.base.find(&line).await?;
        let mut getters = Vec::with_capacity(GETTERS);
        for _ in 0..GETTERS {
            getters.push(line.channel().await?);
        }
        let found = Bound { number, getters };
        *bound = Some(found.clone());
        Ok((line, found))
    }

    /// Something failed: whether the queue is still there is looked up before it is used again.
    async fn failed(&self, doing: &str, why: Unanswered) -> Trouble {
        let mut bound = self.bound.lock().await;
        let before = bound.take();
        drop(bound);
        if let (Some(before), Unanswered::Away(why)) = (before, &why) {
            let _ = self.base.connection.broke(before.number, why);
        }
        format!("{doing} queue `{}`: {why}", self.base.wanted.queue)
    }

    /// Takes up to `max` messages, of which so many wait. What came before something went wrong is there too.
    async fn take(&self, bound: &Bound, max: usize, waiting: usize) -> (Vec<Delivery>, Option<Unanswered>) {
        if max > GETTERS && waiting / PLENTY >= max {
            let (taken, trouble) = self.consume(&bound.getters[0], max, waiting).await;
            // A queue may prefer another consumer, and has all the same something for who gets.
            if !taken.is_empty() || trouble.is_some() {
                return (taken, trouble);
            }
        }
        let parts = max.clamp(1, GETTERS);
        let gets = bound.getters.iter().take(parts).enumerate().map(|(part, getter)| {
            let most = max / parts + usize::from(part < max % parts);
            self.get(getter, most)
        });
        let (mut taken, mut trouble, mut left) = (Vec::new(), None, usize::MAX);
        for (got, then_left, why) in join_all(gets).await {
            taken.extend(got);
            left = left.min(then_left);
            trouble = trouble.or(why);
        }
        self.waiting.store(left, Ordering::Relaxed);
        (taken, trouble)
    }

    /// Takes up to `max` messages by one channel, one after the other, and says how many waited then.
    async fn get(&self, getter: &Channel, max: usize) -> (Vec<Delivery>, usize, Option<Unanswered>) {
        let (mut taken, mut left) = (Vec::new(), 0);
        while taken.len() < max {
            let got = getter.basic_get(self.base.wanted.queue.as_str().into(), BasicGetOptions::default());
            match within(got).await {
                Ok(Some(message)) => {
                    left = usize::try_from(message.message_count).unwrap_or(usize::MAX);
                    taken.push(message.delivery);
                }
                Ok(None) => return (taken, 0, None),
                Err(why) => return (taken, 0, Some(why)),
            }
        }
        (taken, left, None)
    }

    /// Takes up to `max` messages by a consumer of its own. It is gone before one of them is acknowledged, for which the server
    /// would give it another.
    async fn consume(&self, channel: &Channel, max: usize, waiting: usize) -> (Vec<Delivery>, Option<Unanswered>) {
        let tag: ShortString = format!("pull-{}", self.consumers.fetch_add(1, Ordering::Relaxed)).into();
        let mut taken = Vec::with_capacity(max);
        let mut consumer = match self.begin_to_consume(channel, &tag, max).await {
            Ok(consumer) => consumer,
            Err(why) => return (taken, Some(why)),
        };
        while taken.len() < max {
            match timeout(REST_WITHIN, consumer.next()).await {
                Ok(Some(Ok(delivery))) => taken.push(delivery),
                Ok(Some(Err(why))) => return (taken, Some(why.into())),
                Ok(None) => return (taken, Some(Unanswered::Refused(NOT_FOUND, "it was deleted".into()))),
                // Others were quicker.
                Err(_) => break,
            }
        }
        let is_full = taken.len() == max;
        // Nothing more can come to one that is full, so nobody waits for its end.
        let cancelled = within(channel.basic_cancel(tag, BasicCancelOptions { nowait: is_full })).await;
        if !is_full {
            while let Ok(Some(Ok(delivery))) = timeout(REST_WITHIN, consumer.next()).await {
                taken.push(delivery);
            }
        }
        self.waiting.store(if is_full { waiting - max } else { 0 }, Ordering::Relaxed);
        (taken, cancelled.err())
    }

    /// A consumer that holds at most so many messages. Both are asked for at once.
    async fn begin_to_consume(&self, channel: &Channel, tag: &ShortString, max: usize) -> Result<Consumer, Unanswered> {
        let (queue, at_most) = (self.base.wanted.queue.as_str().into(), u16::try_from(max).unwrap_or(u16::MAX));
        let bounded = channel.basic_qos(at_most, BasicQosOptions::default());
        let unanswered = BasicConsumeOptions { nowait: true, ..BasicConsumeOptions::default() };
        let begun = channel.basic_consume(queue, tag.clone(), unanswered, FieldTable::default());
        let (bounded, begun) = within(async { Ok(tokio::join!(biased; bounded, begun)) }).await?;
        bounded?;
        Ok(begun?)
    }

    /// A message with what is known of it; none, if it is not to be run.
    async fn claimed(&self, line: &Line, delivery: Delivery) -> Result<Option<Claimed<Claim>>, Unanswered> {
        let now_ms = now_ms();
        let known = Known::read(&delivery, now_ms, || Uuid::now_v7().to_string());
        let returned = if delivery.redelivered { returns(&delivery) } else { Some(0) };
        let mut held = Held::new(delivery, known);
        if held.delivery.redelivered && self.base.queue.settled.has(held.mark) {
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
            replay_of: known.letter(),
            once: known.letter(),
        };
        let message = known.message(&held.delivery, held.delivery.data.clone().into(), attempt);
        let record = Record { attempt, faults: known.faults, kills: known.kills, age };
        Ok(Some(Claimed { message, record, place, claim: Claim(self.base.queue.claims.hold(held)) }))
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
            self.base.put(line, &self.base.wanted.queue, body, held.known.write(original, &[])).await?;
        } else {
            let wait = self.base.wanted.delays.wait(after);
            let known = Known { left_ms: wait.left_ms, ..held.known.clone() };
            let properties = known.write(original, &[]).with_expiration(wait.ms.to_string().into());
            self.base.put(line, &wait.queue, body, properties).await?;
        }
        acknowledge(&held.delivery).await;
        Ok(())
    }

    async fn carry_out(&self, held: &mut Held, settlement: &Settlement) -> Result<(), Unanswered> {
        if matches!(settlement, Settlement::Ack | Settlement::Drop { .. }) {
            self.base.queue.settled.remember(held.mark);
            acknowledge(&held.delivery).await;
            return Ok(());
        }
        let (_, line) = self.base.connection.get().await.map_err(Unanswered::Away)?;
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => {}
            Settlement::GiveBack { after } => self.give_again(&line, held, *after).await?,
            Settlement::Retry { after, fault } => {
                let tried = held.known.tried(fault.as_deref());
                let before = std::mem::replace(&mut held.known, tried);
                let given = self.give_again(&line, held, *after).await;
                held.known = before;
                given?;
                self.base.queue.settled.remember(held.mark);
            }
            Settlement::DeadLetter { reason, fault, ran } => {
                let (of, known) = (&held.delivery, held.known.tried(fault.as_deref()));
                self.base.bury(&line, (&of.properties, &of.data), &known, (reason, ran)).await?;
                self.base.queue.settled.remember(held.mark);
                acknowledge(&held.delivery).await;
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
            // Said by each pull, so that a queue that is busy is not asked before each of them.
            let known = self.waiting.load(Ordering::Relaxed);
            if known > 0 {
                return Ok(known);
            }
            let (line, bound) = self.bound().await?;
            match line.waiting(&bound.getters[0], &self.base.wanted.queue).await {
                Ok(0) => tokio::time::sleep(LOOK_EVERY).await,
                Ok(waiting) => self.waiting.store(usize::try_from(waiting).unwrap_or(PULL_MAX), Ordering::Relaxed),
                Err(why) => return Err(self.failed("looking at", why).await),
            }
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        // What a pull that fails leaves is to be asked for.
        let waiting = self.waiting.swap(0, Ordering::Relaxed);
        let (line, bound) = self.bound().await?;
        let (taken, mut trouble) = self.take(&bound, max, waiting).await;
        let mut claimed = Vec::with_capacity(taken.len());
        for one in join_all(taken.into_iter().map(|delivery| self.claimed(&line, delivery))).await {
            match one {
                Ok(one) => claimed.extend(one),
                Err(why) => trouble = trouble.or(Some(why)),
            }
        }
        match trouble {
            // What came before it is run; what is wrong shows at the next pull.
            Some(why) if claimed.is_empty() => Err(self.failed("taking from", why).await),
            Some(_) | None => Ok(claimed),
        }
    }

    async fn settle(&self, Claim(number): &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        let Some(mut held) = self.base.queue.claims.take(*number) else { return Ok(()) };
        let Err(why) = self.carry_out(&mut held, settlement).await else { return Ok(()) };
        if !held.delivery.acker.usable() {
            // The claim ended with its connection.
            return Ok(());
        }
        self.base.queue.claims.put_back(*number, held);
        Err(why.to_string())
    }

    fn buries_in_two_steps(&self) -> bool {
        true
    }

    async fn extend(&self, Claim(number): &Claim) -> Result<(), Trouble> {
        self.base.queue.claims.extend(*number);
        Ok(())
    }

    async fn note(&self, _: &Claim, _: Option<&str>) -> Result<(), Trouble> {
        Err("RabbitMQ counts no attempts under a claim that goes on".into())
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let (line, bound) = self.bound().await?;
        let mut waiting = match line.waiting(&bound.getters[0], &self.base.wanted.queue).await {
            Ok(waiting) => waiting,
            Err(why) => return Err(self.failed("looking at", why).await),
        };
        // Not by a getter: one that is missing ends its channel, and with that the claims of a getter.
        let channel = line.channel().await?;
        for delay in self.base.wanted.delays.names() {
            waiting += line.waiting(&channel, &delay).await?;
        }
        close(&channel).await;
        let dead = self.base.dead(&line).await?;
        Ok(Standing { waiting, claimed: self.base.queue.claims.count(), oldest_age: None, dead: Some(dead) })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let (line, _) = self.bound().await?;
        self.base.letters(&line, after, max).await
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let (line, _) = self.bound().await?;
        self.base.decide(&line, id, fate).await
    }

    fn ledger(&self) -> Option<&dyn Ledger> {
        self.base.kept.ledger()
    }

    fn keeps_order(&self) -> bool {
        false
    }
}
