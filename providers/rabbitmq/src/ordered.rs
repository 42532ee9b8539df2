//! Messages of a queue wake a component in their order (`delivery.order_by`), pulled by one consumer.
//!
//! What goes back to RabbitMQ by itself may be overtaken, and a copy stands last. So nothing goes back: a message stays on the
//! consumer's channel, unacknowledged, through all its attempts, and waits here for the next one. When the link ends or its
//! lease does, the channel is closed, and the server has all of it in its order again, before what is new. Replays come from a
//! queue of their own (`<queue>.trellis.replay`): what a parked key holds up must not hold up what opens it.
//!
//! The fence is the server's: who begins to consume waits until the queue has no other consumer, since it goes together with
//! what that one held. A classic queue gives nobody else one beside it (`exclusive`); a quorum queue does not know that, so
//! its consumers are counted. A server that was killed knows of no consumer for a moment, though it still holds messages for
//! one: on a new connection none must be seen for [`ALONE_FOR`].
//!
//! Attempts and faults are kept in the ledger (`noted/<message>`), for messages that their publisher named: no other can be
//! told from its equals once its node is gone.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, KILLS_MAX, Ledger, Out, Place, Queue, Ran, Reason, Record, Settlement, Standing, Trouble,
};
use trellis_provider::now_ms;
use uuid::Uuid;

use crate::base::{Base, Common, acknowledge, is_first, key};
use crate::connection::{ACCESS_REFUSED, Line, Unanswered, close, within};
use crate::known::{Known, mark, returns};
use crate::outstanding::{Given, Outstanding};
use crate::wanted::Wanted;

/// Messages that a consumer holds: those that the engine does, and those that wait here for it to have room again. It must
/// always be the same: who takes fewer than another held puts them back in another order.
pub const HELD_MAX: u16 = 1_024;
/// How long no other consumer must be seen on a new connection, and how often is looked.
const ALONE_FOR: Duration = Duration::from_secs(2);
const ALONE_LOOK: Duration = Duration::from_millis(50);
/// The longest time after which is looked anyway whether the consumer still stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long is kept what is known of a message: as long as what the engine keeps of it.
const NOTED_KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Entries of the ledger that are read at a time.
const READING_MAX: usize = 32;

/// A queue as the engine of one ordered link sees it. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ordered(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Base,
    holding: Arc<Holding>,
    session: tokio::sync::Mutex<Option<Session>>,
    /// How often the link has left: who began to open before that must not go on.
    left: AtomicU64,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

/// A consumer that stands.
#[derive(Debug)]
struct Session {
    /// Of the connection.
    number: u64,
    channel: Channel,
    /// Of what is replayed, and of the queue.
    readers: Vec<AbortOnDropHandle<()>>,
}

/// What the consumer brought.
struct Holding {
    queue: Arc<Common>,
    began: Instant,
    messages: Mutex<Outstanding<Message>>,
    changed: Notify,
}

/// A message that is held.
struct Message {
    /// Without its body.
    delivery: Arc<Delivery>,
    body: Bytes,
    channel: Channel,
    /// What names it in the ledger.
    key: String,
    known: Known,
    mark: u64,
    /// How often the server had given it out before, to whomever.
    returned: u32,
    again: bool,
    /// The ledger was not asked yet what it has of it.
    is_unread: bool,
    /// The ledger may have something of it.
    is_noted: bool,
    /// It is among the dead letters.
    is_buried: bool,
}

/// What the ledger keeps of a message.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    attempts: u32,
    faults: u32,
    texts: Vec<String>,
}

/// Names a message that was given out.
#[derive(Debug)]
pub struct Claim(u64);

impl Ordered {
    /// What pulls from a link's queue.
    pub(crate) fn new(base: Base) -> Self {
        let (queue, began, changed) = (base.queue.clone(), Instant::now(), Notify::new());
        let holding = Holding { queue, began, messages: Mutex::default(), changed };
        let (session, left, trouble) = Default::default();
        Self(Arc::new(Inner { base, holding: Arc::new(holding), session, left, trouble }))
    }

    /// What is not well: the queue cannot be found, or somebody else consumes.
    pub(crate) fn trouble(&self) -> Arc<Mutex<Option<Trouble>>> {
        self.0.trouble.clone()
    }

    /// Has the queue found, or made, also where another node is to pull from it.
    pub(crate) fn prepare(&self) -> AbortOnDropHandle<()> {
        let queue = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Err(why) = queue.line().await {
                *lock(&queue.0.trouble) = Some(why);
                sleep(LOOK_EVERY).await;
            }
            *lock(&queue.0.trouble) = None;
        }))
    }

    /// Makes sure that the consumer stands. Who waits for it may be dropped, and it is opened whole all the same: one that is
    /// given up in the middle could put back what it holds in another order.
    async fn open(&self) -> Result<(), Trouble> {
        let left = self.0.left.load(Ordering::SeqCst);
        let (number, line) = self.0.base.connection.get().await?;
        if self.0.session.lock().await.as_ref().is_some_and(|session| session.stands(number)) {
            return Ok(());
        }
        let this = self.clone();
        let opening = tokio::spawn(async move { this.open_anew(number, &line, left).await });
        opening.await.map_err(|why| format!("queue `{}` was not opened: {why}", self.0.base.wanted.queue))?
    }

    async fn open_anew(&self, number: u64, line: &Line, left: u64) -> Result<(), Trouble> {
        let Inner { base, holding, trouble, .. } = &*self.0;
        let mut session = self.0.session.lock().await;
        if self.0.left.load(Ordering::SeqCst) != left {
            return Err("the link pulls no more".into());
        }
        if session.as_ref().is_some_and(|session| session.stands(number)) {
            return Ok(());
        }
        if let Some(broken) = session.take() {
            broken.end().await;
        }
        holding.messages().lost();
        base.find(line).await?;
        let opened = self.consume(line).await;
        *lock(trouble) =
            opened.as_ref().err().filter(|why| matches!(why, Refused::NotAlone(_))).map(ToString::to_string);
        let (channel, consumers) = match opened {
            Ok(opened) => opened,
            Err(Refused::Unanswered(Unanswered::Away(why))) => return Err(base.connection.broke(number, &why)),
            Err(why) => return Err(why.to_string()),
        };
        let read = |consumer| AbortOnDropHandle::new(tokio::spawn(read(holding.clone(), channel.clone(), consumer)));
        let readers = consumers.into_iter().map(read).collect();
        holding.messages().opened(holding.now_ms());
        *session = Some(Session { number, channel, readers });
        Ok(())
    }

    /// Begins to consume the queue, and what is replayed.
    async fn consume(&self, line: &Line) -> Result<(Channel, Vec<Consumer>), Refused> {
        let (channel, mut consumers) = (line.channel().await?, Vec::new());
        match self.consume_on(&channel, line, &mut consumers).await {
            Ok(()) => Ok((channel, consumers)),
            Err(why) => {
                // Before the consumers are dropped.
                close(&channel).await;
                Err(why)
            }
        }
    }

    /// The same once nobody else does.
    async fn consume_on(&self, channel: &Channel, line: &Line, consumers: &mut Vec<Consumer>) -> Result<(), Refused> {
        let Wanted { queue, replays, .. } = &self.0.base.wanted;
        loop {
            if line.stands(channel, queue).await?.1 > 0 {
                return Err(Refused::NotAlone(not_alone(queue)));
            }
            if line.age() >= ALONE_FOR {
                break;
            }
            sleep(ALONE_LOOK).await;
        }
        within(channel.basic_qos(HELD_MAX, BasicQosOptions::default())).await?;
        for (of, exclusive) in replays.iter().map(|replays| (replays, false)).chain([(queue, true)]) {
            let options = BasicConsumeOptions { exclusive, ..BasicConsumeOptions::default() };
            let consuming = channel.basic_consume(of.as_str().into(), "".into(), options, FieldTable::default());
            match within(consuming).await {
                Err(Unanswered::Refused(ACCESS_REFUSED, why)) if why.contains("exclusive") => {
                    return Err(Refused::NotAlone(not_alone(queue)));
                }
                consumer => consumers.push(consumer?),
            }
        }
        match line.stands(channel, queue).await?.1 {
            0 | 1 => Ok(()),
            _ => Err(Refused::NotAlone(not_alone(queue))),
        }
    }

    /// The connection, on which the queue was found.
    async fn line(&self) -> Result<Arc<Line>, Trouble> {
        let Base { connection, found, .. } = &self.0.base;
        let (_, line) = connection.get().await?;
        if !found.load(Ordering::Relaxed) {
            self.0.base.find(&line).await?;
        }
        Ok(line)
    }

    /// Reads what is known of messages that were given out before this node had them.
    async fn recall(&self, max: usize) -> Result<usize, Trouble> {
        let Inner { base, holding, .. } = &*self.0;
        let (mut unread, mut count) = (Vec::new(), 0);
        for (position, message) in holding.messages().look(max, holding.now_ms()) {
            count += 1;
            if message.is_unread {
                unread.push((position, message.noted_key()));
            }
        }
        let reads = unread.into_iter().map(|(position, key)| async move {
            let read = base.kept.read(&key).await?;
            Ok::<_, Trouble>((position, read))
        });
        let read: Vec<_> = futures::stream::iter(reads).buffered(READING_MAX).try_collect().await?;
        let mut messages = holding.messages();
        for (position, read) in read {
            if let Some(message) = messages.at(position) {
                message.recall(read.as_deref());
            }
        }
        Ok(count)
    }

    /// Acknowledges a message, and returns when the server's channel has it: the next of its key may follow only then.
    async fn take_off(&self, number: u64) -> Result<(), Trouble> {
        let Inner { base, holding, .. } = &*self.0;
        let claimed = |(message, here): (&mut Message, bool)| (message.delivery.clone(), message.channel.clone(), here);
        let found = holding.messages().claimed(number).map(claimed);
        let Some((delivery, channel, is_here)) = found else { return Ok(()) };
        if !is_here {
            self.open().await?;
            return Err("its channel broke, and it is not here again yet".into());
        }
        let acknowledged = async {
            within(delivery.acker.ack(BasicAckOptions::default())).await?;
            // Answered after all that came before on the channel; it changes nothing for a consumer that is there.
            within(channel.basic_qos(HELD_MAX, BasicQosOptions::default())).await
        };
        acknowledged.await?;
        let Some(message) = holding.messages().off(number) else { return Ok(()) };
        if message.known.is_named {
            base.queue.settled.remember(message.mark);
        }
        if message.is_noted
            && let Err(why) = base.kept.put(&message.noted_key(), None, NOTED_KEPT).await
        {
            tracing::debug!(why, "what was noted of a message goes by itself");
        }
        Ok(())
    }

    /// Makes a dead letter of a message, once.
    async fn bury(&self, number: u64, fault: Option<&str>, why: (&Reason, &Ran)) -> Result<(), Trouble> {
        let Inner { base, holding, .. } = &*self.0;
        let (_, line) = base.connection.get().await?;
        let (delivery, body, mut known) = match holding.messages().claimed(number) {
            Some((message, _)) if !message.is_buried => {
                (message.delivery.clone(), message.body.clone(), message.known.tried(fault))
            }
            _ => return Ok(()),
        };
        if let Reason::KilledItsNode { kills } = why.0 {
            // The ledger knows, and the message does not.
            known.kills = known.kills.max(*kills);
        }
        base.bury(&line, (&delivery.properties, &body), &known, why).await?;
        if let Some((message, _)) = holding.messages().claimed(number) {
            message.is_buried = true;
        }
        Ok(())
    }

    /// Counts an attempt, in the ledger too where the message can be known again.
    async fn tried(&self, number: u64, fault: Option<&str>) -> Result<(), Trouble> {
        let Inner { base, holding, .. } = &*self.0;
        let (known, key) = match holding.messages().claimed(number) {
            None => return Ok(()),
            Some((message, _)) => (message.known.tried(fault), message.noted_key()),
        };
        if known.is_named {
            let noted = Noted { attempts: known.attempts, faults: known.faults, texts: known.texts.clone() };
            base.kept.put(&key, Some(&noted.write()), NOTED_KEPT).await?;
        }
        if let Some((message, _)) = holding.messages().claimed(number) {
            (message.is_noted, message.known) = (known.is_named, known);
        }
        Ok(())
    }

    fn give_back(&self, number: u64, after: Duration) {
        let holding = &self.0.holding;
        holding.messages().give_back(number, holding.now_ms().saturating_add(ms(after)));
        holding.changed.notify_one();
    }
}

#[async_trait]
impl Queue for Ordered {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        let Holding { changed, .. } = &*self.0.holding;
        loop {
            let news = changed.notified();
            self.open().await?;
            let (ready, next) = self.0.look();
            if ready > 0 {
                return Ok(ready);
            }
            // Either way it looks again.
            let _ = timeout(next, news).await;
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        self.open().await?;
        let count = self.recall(max).await?;
        let (mut claimed, holding) = (Vec::new(), &self.0.holding);
        holding.messages().give(count, holding.now_ms(), |given| claimed.push(given.into()));
        Ok(claimed)
    }

    async fn settle(&self, Claim(number): &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => self.take_off(*number).await?,
            Settlement::DeadLetter { reason, fault, ran } => {
                self.bury(*number, fault.as_deref(), (reason, ran)).await?;
                self.take_off(*number).await?;
            }
            Settlement::GiveBack { after } => self.give_back(*number, *after),
            Settlement::Retry { after, fault } => {
                self.tried(*number, fault.as_deref()).await?;
                self.give_back(*number, *after);
            }
        }
        Ok(())
    }

    fn buries_in_two_steps(&self) -> bool {
        true
    }

    async fn extend(&self, Claim(number): &Claim) -> Result<(), Trouble> {
        let holding = &self.0.holding;
        holding.messages().extend(*number, holding.now_ms());
        Ok(())
    }

    async fn note(&self, Claim(number): &Claim, fault: Option<&str>) -> Result<(), Trouble> {
        self.tried(*number, fault).await
    }

    async fn leave(&self) {
        self.0.left.fetch_add(1, Ordering::SeqCst);
        let session = self.0.session.lock().await.take();
        if let Some(session) = session {
            session.end().await;
        }
        self.0.holding.messages().clear();
        *lock(&self.0.trouble) = None;
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let (line, base) = (self.line().await?, &self.0.base);
        let channel = line.channel().await?;
        let mut there = 0;
        for queue in [&base.wanted.queue].into_iter().chain(&base.wanted.replays) {
            there += line.waiting(&channel, queue).await?;
        }
        close(&channel).await;
        let dead = base.dead(&line).await?;
        let (waiting, claimed) = self.0.holding.messages().counts();
        Ok(Standing { waiting: there + waiting, claimed, oldest_age: None, dead: Some(dead) })
    }

    /// What this node holds. What another one held comes first and in order by itself.
    async fn out(&self) -> Result<Out, Trouble> {
        let holding = &self.0.holding;
        let (all, later) = holding.messages().out(holding.now_ms());
        Ok(Out { all, later })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        self.0.base.letters(&self.line().await?, after, max).await
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        self.0.base.decide(&self.line().await?, id, fate).await
    }

    fn ledger(&self) -> Option<&dyn Ledger> {
        self.0.base.kept.ledger()
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

impl Inner {
    /// How many messages there are to give, and when to look again.
    fn look(&self) -> (usize, Duration) {
        let (now_ms, mut messages) = (self.holding.now_ms(), self.holding.messages());
        let gone = messages.forget_gone(now_ms);
        if gone > 0 {
            let queue = &self.base.wanted.queue;
            tracing::warn!(queue, gone, "messages that were held are gone from the queue");
        }
        let next = messages.next_ms(now_ms).map(|at_ms| Duration::from_millis(at_ms.saturating_sub(now_ms)));
        (messages.ready(now_ms), next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY))
    }
}

/// Takes in what the consumer brings, until its channel breaks.
async fn read(holding: Arc<Holding>, channel: Channel, mut consumer: Consumer) {
    while let Some(Ok(delivery)) = consumer.next().await {
        if let Some(settled) = holding.arrived(delivery, &channel) {
            acknowledge(&settled).await;
        }
        holding.changed.notify_one();
    }
    holding.messages().lost();
    holding.changed.notify_one();
}

impl Session {
    fn stands(&self, number: u64) -> bool {
        let reads = !self.readers.iter().any(AbortOnDropHandle::is_finished);
        self.number == number && self.channel.status().connected() && reads
    }

    /// The channel is closed before the consumer is dropped, which would be cancelled first: the server would mix up the
    /// order of what it has back.
    async fn end(self) {
        if self.channel.status().connected() {
            close(&self.channel).await;
        }
        for reader in self.readers {
            reader.abort();
            // It was: nothing is to be known of it.
            let _ = reader.await;
        }
    }
}

impl Holding {
    /// Holds a message. Returns one that is not to be held: it was settled, and its acknowledgement lost.
    fn arrived(&self, mut delivery: Delivery, channel: &Channel) -> Option<Delivery> {
        let (mark, redelivered) = (mark(&delivery), delivery.redelivered);
        let body = Bytes::from(std::mem::take(&mut delivery.data));
        let (at_ms, mut messages) = (self.now_ms(), self.messages());
        if let Some(message) = messages.back(mark, at_ms) {
            (message.delivery, message.channel, message.again) = (Arc::new(delivery), channel.clone(), true);
            return None;
        }
        let mut known = Known::read(&delivery, now_ms(), || Uuid::now_v7().to_string());
        if redelivered && known.is_named && self.queue.settled.has(mark) {
            return Some(delivery);
        }
        let due_ms = at_ms.saturating_add(std::mem::take(&mut known.left_ms));
        let message = Message {
            // A classic queue says that it gave it out before, not how often. Where a node died the engine counts by itself,
            // and takes this for the most that it may have been.
            returned: if redelivered { returns(&delivery).unwrap_or(KILLS_MAX) } else { 0 },
            again: redelivered || known.attempts > 0 || !is_first(&delivery),
            is_unread: redelivered && known.is_named,
            is_noted: false,
            channel: channel.clone(),
            is_buried: false,
            key: key(&known, &body),
            delivery: Arc::new(delivery),
            body,
            known,
            mark,
        };
        messages.hold(mark, message, due_ms);
        None
    }

    fn now_ms(&self) -> u64 {
        ms(self.began.elapsed())
    }

    fn messages(&self) -> MutexGuard<'_, Outstanding<Message>> {
        lock(&self.messages)
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holding({:?})", self.messages().counts())
    }
}

impl Message {
    /// Where the ledger has what is known of it.
    fn noted_key(&self) -> String {
        format!("noted/{}", self.key)
    }

    /// What the ledger has of it counts.
    fn recall(&mut self, stored: Option<&[u8]>) {
        if let Some(noted) = stored.and_then(Noted::read) {
            self.known.attempts = self.known.attempts.max(noted.attempts);
            self.known.faults = self.known.faults.max(noted.faults);
            self.known.texts = noted.texts;
        }
        (self.is_unread, self.is_noted) = (false, stored.is_some());
    }
}

impl Noted {
    fn write(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data can be written")
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl From<Given<'_, Message>> for Claimed<Claim> {
    fn from(Given { number, position, ended, message }: Given<'_, Message>) -> Self {
        if ended {
            message.known.killed(1);
        }
        let Message { delivery, body, key, known, returned, .. } = &*message;
        let attempt = known.attempts.saturating_add(1);
        let age = Duration::from_millis(now_ms().saturating_sub(known.since_ms));
        let kills = known.kills.saturating_add(*returned);
        let sent = known.message(delivery, body.clone(), attempt);
        let record = Record { attempt, faults: known.faults, kills, age };
        let place = Place {
            key: key.clone(),
            has_twins: known.is_named,
            position: Some(position),
            again: message.again,
            name: known.is_named.then(|| known.id.clone()),
            replay_of: known.letter(),
            once: known.letter(),
        };
        message.again = true;
        Self { claim: Claim(number), message: sent, record, place }
    }
}

/// Why it cannot consume.
#[derive(Debug)]
enum Refused {
    NotAlone(String),
    Unanswered(Unanswered),
}

impl From<Unanswered> for Refused {
    fn from(why: Unanswered) -> Self {
        Self::Unanswered(why)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAlone(why) => f.write_str(why),
            Self::Unanswered(why) => why.fmt(f),
        }
    }
}

fn not_alone(queue: &str) -> String {
    format!(
        "queue `{queue}` has another consumer, beside which no order can be kept: that of a node which pulled before ends \
         with its connection, within 10 s; any other must be stopped"
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
