//! Durable queues: a message is on disk when its publisher is answered, and stays there until it is handled, dropped or a
//! dead letter. At least once: what was worked on when the process died is given out again.
//!
//! The file a newcomer copies for another broker is this one: [`Pulled`] implements
//! [`Queue`](trellis_provider::delivery::Queue), the rest makes and finds queues.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::ReadTransaction;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::delivery::{
    CLAIM, Claimed, DeadLetter, Engine, Fate, Ledger, Out, Place, Queue, Record, Settlement, Standing, Trigger, Trouble,
};
use trellis_provider::{LinkError, Permits, now_ms};
use trellis_wire::{CallError, ComponentKey, Config, DEAD_BYTES_MAX, Link, LinkId, Message};

use crate::entries::Entries;
use crate::head::Head;
use crate::queue::{self, Change, Changed, Given, Token};
use crate::store::Store;
use crate::subject::{self, Filter};

/// The longest time after which a queue is looked at anyway: where something is due later, and where nothing is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(60);
/// Queues of one node.
pub const QUEUES_MAX: usize = 16_384;
/// Messages that are counted of those that are ready: what one pull brings.
const READY_MAX: usize = 64;
/// Longest name of a queue, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Every durable queue of this node, and the links that are woken by them.
pub(crate) struct Durable {
    store: Arc<Store>,
    queues: Mutex<BTreeMap<Arc<str>, Arc<Named>>>,
    links: Mutex<BTreeMap<LinkId, Running>>,
}

/// A link that pulls from a queue.
struct Running {
    queue: Arc<Named>,
    stop: CancellationToken,
    tasks: TaskTracker,
    trigger: Arc<dyn Trigger>,
}

/// A queue by its name.
struct Named {
    name: Arc<str>,
    filters: Mutex<Vec<Filter>>,
    /// Sent to whenever there may be more to give out.
    changed: watch::Sender<()>,
    head: Arc<Head>,
    /// What is given out.
    claims: Mutex<Claims>,
}

/// What is given out of a queue, by sequence, and until when.
#[derive(Default)]
struct Claims {
    all: HashMap<u64, (Token, Instant)>,
    /// None of them ends before; `None`: there are none.
    ends: Option<Instant>,
}

impl Durable {
    /// Finds the queues that the store knows.
    pub(crate) fn open(store: Arc<Store>) -> Result<Self, String> {
        let mut queues = BTreeMap::new();
        for (name, meta) in store.look(queue::queues).map_err(|why| why.to_string())? {
            let filters = meta.filters.iter().map(|text| Filter::parse(text)).collect::<Result<_, _>>()?;
            let named = Named::new(head(&store, &name)?, filters);
            queues.insert(named.name.clone(), Arc::new(named));
        }
        Ok(Self { store, queues: Mutex::new(queues), links: Mutex::default() })
    }

    /// Whether a link names a queue.
    pub(crate) fn is_meant(config: &Config) -> bool {
        config.get("queue").is_some()
    }

    /// Makes the queue that the link names if need be, and begins to wake its component.
    pub(crate) async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        let (name, filters) = named(&link.config)?;
        self.begin(&name, filters, link, permits).await
    }

    /// The same for a queue by its name.
    pub(crate) async fn begin(
        &self,
        name: &str,
        filters: Vec<Filter>,
        link: Link,
        permits: Permits,
    ) -> Result<(), LinkError> {
        check_letters(&link)?;
        self.remove(&link.id).await;
        let queue = self.create(&link.id, name, filters).await?;
        let pulled = self.pulled(&queue, &link.component, link.delivery.dead_bytes_max);
        let engine = Engine::new(link.id.clone(), pulled, permits, link.delivery)?;
        let running =
            Running { queue, stop: CancellationToken::new(), tasks: TaskTracker::new(), trigger: engine.clone() };
        running.tasks.spawn(engine.run(running.stop.clone()));
        running.tasks.close();
        self.links().insert(link.id, running);
        Ok(())
    }

    fn pulled(&self, queue: &Arc<Named>, component: &ComponentKey, dead_bytes_max: u64) -> Pulled {
        let (store, queue, entries) = (self.store.clone(), queue.clone(), Entries::new(&self.store, &queue.name));
        Pulled { store, queue, component: component.to_string().into(), dead_bytes_max, entries }
    }

    /// Whether a queue was made.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.queues().contains_key(name)
    }

    /// A queue that was made, as the engine of a link to this component sees it.
    pub(crate) fn find(&self, name: &str, component: &ComponentKey) -> Option<Pulled> {
        let queue = self.queues().get(name).cloned()?;
        Some(self.pulled(&queue, component, DEAD_BYTES_MAX))
    }

    /// Has the queue on disk before it is used, so that what is published from now on is kept whatever happens.
    async fn create(&self, link: &LinkId, name: &str, filters: Vec<Filter>) -> Result<Arc<Named>, LinkError> {
        let before = self.queues().get(name).cloned();
        if let Some(before) = &before {
            if *before.filters() == filters {
                return Ok(before.clone());
            }
            let links = self.links();
            let other = links.iter().find(|(id, running)| *id != link && running.queue.name == before.name);
            if let Some((other, _)) = other {
                let problem = format!("queue `{name}` takes other subjects by the link {other}; write the same there");
                return Err(LinkError::config("subject", problem));
            }
        } else if self.queues().len() >= QUEUES_MAX {
            return Err(LinkError::config("queue", format!("this node has {QUEUES_MAX} queues, which is the most")));
        }
        let queue: Arc<str> = name.into();
        let texts = filters.iter().map(ToString::to_string).collect();
        let created = self.store.change(Change::Create { queue: queue.clone(), filters: texts }).await;
        created.map_err(|why| LinkError::Failed(format!("queue `{name}` cannot be made: {why}")))?;
        let head = head(&self.store, name).map_err(LinkError::Failed)?;
        let named = self.queues().entry(queue).or_insert_with(|| Arc::new(Named::new(head, vec![]))).clone();
        *named.filters() = filters;
        Ok(named)
    }

    /// Ends a link: what runs is settled, what waits stays for later.
    pub(crate) async fn remove(&self, link: &LinkId) {
        let removed = self.links().remove(link);
        if let Some(running) = removed {
            running.stop.cancel();
            running.tasks.wait().await;
        }
    }

    /// Pulls nothing more, and returns when what was pulled is settled.
    pub(crate) async fn drain(&self) {
        let tasks: Vec<_> =
            self.links().values().map(|running| (running.stop.clone(), running.tasks.clone())).collect();
        tasks.iter().for_each(|(stop, _)| stop.cancel());
        for (_, tasks) in tasks {
            tasks.wait().await;
        }
    }

    /// How a link is; `None`: it is none of these.
    pub(crate) fn health(&self, link: &LinkId) -> Option<Result<(), String>> {
        let links = self.links();
        links.get(link).map(|running| self.store.health().and_then(|()| running.trigger.progress().health()))
    }

    /// The engine of a link.
    pub(crate) fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.links().get(link).map(|running| running.trigger.clone())
    }

    /// Puts a message into every queue that takes its subject, and says into how many. It is on disk then.
    pub(crate) async fn publish(&self, message: &Message) -> Result<usize, CallError> {
        let takers: Vec<_> = self.queues().values().filter(|queue| queue.takes(&message.subject)).cloned().collect();
        if takers.is_empty() {
            return Ok(0);
        }
        let message = Message { published_ms: Some(now_ms()), attempt: 0, ..message.clone() };
        let queues = takers.iter().map(|queue| queue.name.clone()).collect();
        self.store.change(Change::Publish { queues, message, now_ms: self.store.now_ms() }).await?;
        takers.iter().for_each(|queue| queue.notify());
        Ok(takers.len())
    }

    /// Puts messages into the queue of this name, in this order and whatever their subjects, and a note beside them. All of it
    /// is on disk then, or nothing.
    pub(crate) async fn keep(&self, name: &str, mut messages: Vec<Message>, note: Bytes) -> Result<(), CallError> {
        let queue = self.queues().get(name).cloned();
        let queue = queue.ok_or_else(|| CallError::NoSuch(format!("queue `{name}`")))?;
        for message in &mut messages {
            (message.published_ms, message.attempt) = (Some(now_ms()), 0);
        }
        let now_ms = self.store.now_ms();
        self.store.change(Change::Keep { queue: queue.name.clone(), messages, note, now_ms }).await?;
        queue.notify();
        Ok(())
    }

    /// What was noted with the last messages of the queue of this name.
    pub(crate) fn note(&self, name: &str) -> Result<Bytes, CallError> {
        self.store.look(|snapshot| queue::note(snapshot, name))
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Named>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<LinkId, Running>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.links().values().for_each(|running| running.stop.cancel());
    }
}

/// Whether the queue that a link means takes a subject.
pub(crate) fn takes(config: &Config, subject: &str) -> bool {
    named(config).is_ok_and(|(name, filters)| is_taken(&name, &filters, subject))
}

/// Whether a link says rightly which queue it means, and how its messages are to be delivered.
pub(crate) fn check(link: &Link) -> Result<(), LinkError> {
    check_letters(link)?;
    named(&link.config).map(drop)
}

fn check_letters(link: &Link) -> Result<(), LinkError> {
    if link.delivery.dead_letter.is_none() {
        return Ok(());
    }
    let problem =
        "dead letters stay beside their queue on a node's disk, for `trellis dead-letters`; take it out of the link";
    Err(LinkError::config("delivery.dead_letter", problem))
}

/// Reads which queue a link means, and what else that queue takes.
fn named(config: &Config) -> Result<(String, Vec<Filter>), LinkError> {
    let name = config.get("queue").unwrap_or_default();
    subject::check_publish(name).map_err(|why| LinkError::config("queue", why.to_string()))?;
    if name.len() > NAME_BYTES_MAX {
        let problem = format!("a name of {} bytes is too long; at most {NAME_BYTES_MAX} are taken", name.len());
        return Err(LinkError::config("queue", problem));
    }
    if config.get("subscriptions").is_some() {
        let problem = "stands beside `queue`; write `subject` for what the queue takes besides its own name";
        return Err(LinkError::config("subscriptions", problem));
    }
    Ok((name.to_owned(), subject::filters(config, "subject")?))
}

/// Where a queue stands that is on disk.
fn head(store: &Store, name: &str) -> Result<Arc<Head>, String> {
    store.head(name).ok_or_else(|| format!("queue `{name}` is not on disk"))
}

fn is_taken(name: &str, filters: &[Filter], subject: &str) -> bool {
    name == subject || filters.iter().any(|filter| filter.matches(subject))
}

impl Named {
    fn new(head: Arc<Head>, filters: Vec<Filter>) -> Self {
        let (name, changed) = (head.queue.clone(), watch::Sender::new(()));
        Self { name, filters: Mutex::new(filters), changed, head, claims: Mutex::default() }
    }

    fn takes(&self, subject: &str) -> bool {
        is_taken(&self.name, &self.filters(), subject)
    }

    fn notify(&self) {
        self.changed.send_replace(());
    }

    fn filters(&self) -> MutexGuard<'_, Vec<Filter>> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    fn keep(&mut self, tokens: impl IntoIterator<Item = Token>, ends: Instant) {
        self.all.extend(tokens.into_iter().map(|token| (token.sequence, (token, ends))));
        self.ends = Some(self.ends.map_or(ends, |before| before.min(ends)));
    }

    /// When the first of them ends, or sooner.
    fn next_end(&self) -> Option<Instant> {
        self.ends.filter(|_| !self.all.is_empty())
    }

    /// Takes those that have ended.
    fn take_ended(&mut self, now: Instant) -> Vec<Token> {
        if self.next_end().is_none_or(|ends| ends > now) {
            return Vec::new();
        }
        let ended = self.all.extract_if(|_, (_, ends)| *ends <= now).map(|(_, (token, _))| token).collect();
        self.ends = self.all.values().map(|(_, ends)| *ends).min();
        ended
    }

    fn of(&mut self, token: &Token) -> Option<&mut Instant> {
        self.all.get_mut(&token.sequence).filter(|(known, _)| known == token).map(|(_, ends)| ends)
    }
}

/// A queue as the engine of one link sees it.
pub struct Pulled {
    store: Arc<Store>,
    queue: Arc<Named>,
    component: Arc<str>,
    dead_bytes_max: u64,
    entries: Entries,
}

#[async_trait]
impl Queue for Pulled {
    type Claim = Token;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            // Subscribed before it looks, so that nothing comes in between unseen.
            let mut changed = self.queue.changed.subscribe();
            let (now_ms, now, back_ms) = (self.store.now_ms(), Instant::now(), self.queue.head.back_ms());
            let back = match back_ms <= now_ms {
                true => self.look(|snapshot| queue::due(snapshot, &self.queue.name, now_ms, READY_MAX))?,
                false => 0,
            };
            let ends = self.queue.claims().next_end();
            let ready = back + self.queue.head.new_ones();
            if ready > 0 || ends.is_some_and(|ends| ends <= now) {
                return Ok(ready.max(1));
            }
            let due = (back_ms < u64::MAX).then(|| Duration::from_millis(back_ms.saturating_sub(now_ms)));
            let ends = ends.map(|ends| ends.saturating_duration_since(now));
            let wait = [due, ends].into_iter().flatten().min().map_or(LOOK_EVERY_IDLE, |wait| wait.min(LOOK_EVERY));
            // Either way it looks again.
            let _ = tokio::time::timeout(wait, changed.changed()).await;
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Token>>, Trouble> {
        let head = &self.queue.head;
        let ended = self.queue.claims().take_ended(Instant::now());
        let mut given = match ended.is_empty() && head.back_ms() > self.store.now_ms() {
            true => Vec::new(),
            false => self.claim(max, ended).await?,
        };
        match self.store.give_new(head, max - given.len()) {
            Ok(new) => given.extend(new),
            // What came back is claimed; what is wrong shows at the next pull.
            Err(_) if !given.is_empty() => {}
            Err(why) => return Err(why.to_string()),
        }
        self.queue.claims().keep(given.iter().map(|given| given.token.clone()), Instant::now() + CLAIM);
        // Who else waits for this queue learns when these claims end.
        self.queue.notify();
        Ok(given.into_iter().map(|given| claimed(given, self.store.name())).collect())
    }

    async fn settle(&self, claim: &Token, settlement: &Settlement) -> Result<(), Trouble> {
        let change = Change::Settle {
            token: claim.clone(),
            settlement: settlement.clone(),
            component: self.component.clone(),
            dead_bytes_max: self.dead_bytes_max,
            now_ms: self.store.now_ms(),
        };
        self.store.change(change).await.map_err(|why| why.to_string())?;
        {
            let mut claims = self.queue.claims();
            if claims.of(claim).is_some() {
                claims.all.remove(&claim.sequence);
            }
        }
        if matches!(settlement, Settlement::Retry { .. } | Settlement::GiveBack { .. }) {
            self.queue.notify();
        }
        Ok(())
    }

    async fn extend(&self, claim: &Token) -> Result<(), Trouble> {
        if let Some(ends) = self.queue.claims().of(claim) {
            *ends = Instant::now() + CLAIM;
        }
        Ok(())
    }

    async fn note(&self, claim: &Token, fault: Option<&str>) -> Result<(), Trouble> {
        let noted = self.store.change(Change::Note { token: claim.clone(), fault: fault.map(str::to_owned) }).await;
        noted.map(drop).map_err(|why| why.to_string())
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let claimed = self.queue.claims().all.len() as u64;
        let (standing, oldest_ms) = self.look(|snapshot| queue::standing(snapshot, &self.queue.name, claimed))?;
        let oldest_age = oldest_ms.map(|at| Duration::from_millis(now_ms().saturating_sub(at)));
        Ok(Standing { oldest_age, ..standing })
    }

    async fn out(&self) -> Result<Out, Trouble> {
        let (now, now_ms) = (Instant::now(), self.store.now_ms());
        let (claimed, later) = {
            let claims = self.queue.claims();
            let later = claims.all.values().filter(|(_, ends)| *ends > now).count() as u64;
            (claims.all.keys().copied().collect::<HashSet<_>>(), later)
        };
        let (back, waits) = self.look(|snapshot| queue::out(snapshot, &self.queue.name, &claimed, now_ms))?;
        Ok(Out { all: claimed.len() as u64 + back, later: later + waits })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let after = after.and_then(queue::of_letter).map(|(_, sequence)| sequence);
        let of = (&*self.queue.name, &*self.component);
        self.look(|snapshot| queue::letters_after(snapshot, of, after, max))
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let own = |(queue, _): &(String, u64)| **queue == *self.queue.name;
        let Some((_, sequence)) = queue::of_letter(id).filter(own) else { return Ok(None) };
        let of = (&*self.queue.name, &*self.component);
        let found = self.look(|snapshot| queue::letters_after(snapshot, of, sequence.checked_sub(1), 1))?;
        let Some(letter) = found.into_iter().find(|letter| letter.id == id) else { return Ok(None) };
        let change = match fate {
            Fate::Replay => {
                let queue = self.queue.name.clone();
                let id = queue::known_by(letter.message.id.clone(), &queue, self.store.name(), sequence);
                Change::Replay { queue, sequence, id, now_ms: self.store.now_ms() }
            }
            Fate::Drop => Change::Forget { queue: self.queue.name.clone(), sequence },
        };
        match self.store.change(change).await {
            Ok(_) => {
                self.queue.notify();
                Ok(Some(letter))
            }
            // Someone else was faster.
            Err(CallError::NoSuch(_)) => Ok(None),
            Err(why) => Err(why.to_string()),
        }
    }

    fn ledger(&self) -> Option<&dyn Ledger> {
        Some(&self.entries)
    }

    fn is_of_one_node(&self) -> bool {
        true
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

impl Pulled {
    /// Ends these claims, and claims what came back.
    async fn claim(&self, max: usize, expired: Vec<Token>) -> Result<Vec<Given>, Trouble> {
        let queue = self.queue.name.clone();
        let change = Change::Claim { queue, max, expired: expired.clone(), now_ms: self.store.now_ms() };
        match self.store.change(change).await {
            Ok(Changed::Claimed(given)) => Ok(given),
            Ok(Changed::Done | Changed::Swapped(_)) => Ok(Vec::new()),
            Err(why) => {
                self.queue.claims().keep(expired, Instant::now());
                Err(why.to_string())
            }
        }
    }

    fn look<T>(&self, look: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, Trouble> {
        self.store.look(look).map_err(|why| why.to_string())
    }
}

fn claimed(given: Given, store: u64) -> Claimed<Token> {
    let Given { token, mut message, kept, again } = given;
    let age_ms = message.published_ms.map_or(0, |published| now_ms().saturating_sub(published));
    let record =
        Record { attempt: token.attempt, faults: kept.faults, kills: kept.kills, age: Duration::from_millis(age_ms) };
    message.attempt = token.attempt;
    let place = Place {
        key: token.sequence.to_string(),
        has_twins: false,
        position: Some(u128::from(token.sequence)),
        again,
        name: Some(message.id.clone()).filter(|id| !id.is_empty()),
        replay_of: kept.replay_of,
        once: None,
    };
    message.id = queue::known_by(message.id, &token.queue, store, token.sequence);
    Claimed { claim: token, message, record, place }
}

#[cfg(test)]
mod tests {
    use trellis_provider::delivery::Reason;
    use trellis_provider::testing::{Broker, contract};

    use super::*;

    /// A node with a data directory of its own.
    struct Alone(Durable);

    #[async_trait]
    impl Broker for Alone {
        type Queue = Pulled;

        async fn queue(&self, name: &str) -> Pulled {
            let link = LinkId::new(
                &"shop/queues".parse().unwrap(),
                &"shop/worker".parse().unwrap(),
                &"default".parse().unwrap(),
                "trellis",
                "messaging",
                &["handler".into()],
            );
            let queue = self.0.create(&link, name, vec![]).await.unwrap();
            self.0.pulled(&queue, &"shop/worker".parse().unwrap(), DEAD_BYTES_MAX)
        }

        async fn publish(&self, name: &str, message: Message) {
            assert_eq!(self.0.publish(&Message { subject: name.into(), ..message }).await, Ok(1));
        }
    }

    fn alone(dir: &tempfile::TempDir) -> Alone {
        let store = Store::open(dir.path().join("embedded.redb")).unwrap();
        Alone(Durable::open(Arc::new(store)).unwrap())
    }

    async fn pull(queue: &Pulled) -> Claimed<Token> {
        queue.ready().await.unwrap();
        queue.pull(1).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn it_keeps_the_contract_of_brokers() {
        contract(&alone(&tempfile::tempdir().unwrap())).await;
    }

    #[tokio::test]
    async fn a_dead_letter_is_kept_for_two_weeks() {
        const TWO_WEEKS_MS: u64 = 14 * 24 * 60 * 60 * 1_000;
        let dir = tempfile::tempdir().unwrap();
        let broker = alone(&dir);
        let (queue, began_ms) = (broker.queue("mail").await, broker.0.store.now_ms());
        for (body, after_ms, left) in [
            ("first", 0, &["first"][..]),
            ("second", TWO_WEEKS_MS - 1, &["first", "second"]),
            ("third", TWO_WEEKS_MS, &["second", "third"]),
            ("fourth", 3 * TWO_WEEKS_MS, &["fourth"]),
        ] {
            broker.publish("mail", trellis_provider::testing::message(body)).await;
            let reason = Reason::Refused("no".into());
            let bury = Change::Settle {
                token: pull(&queue).await.claim,
                settlement: Settlement::DeadLetter { reason, fault: None, ran: Default::default() },
                component: "shop/worker".into(),
                dead_bytes_max: DEAD_BYTES_MAX,
                now_ms: began_ms + after_ms,
            };
            broker.0.store.change(bury).await.unwrap();
            let letters = queue.letters(None, 10).await.unwrap();
            let bodies: Vec<_> = letters.iter().map(|letter| letter.message.body.to_vec()).collect();
            assert_eq!(bodies, left.iter().map(|body| body.as_bytes()).collect::<Vec<_>>());
            assert_eq!(queue.standing().await.unwrap().dead, Some(left.len() as u64));
        }
    }

    #[tokio::test]
    async fn no_two_messages_have_one_id_whichever_node_has_them_and_a_replay_keeps_its_own() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut ids = Vec::new();
        for dir in [&here, &there, &here] {
            let broker = alone(dir);
            let queue = broker.queue("mail").await;
            broker.publish("mail", Message::default()).await;
            let claimed = pull(&queue).await;
            ids.push(claimed.message.id.clone());
            let dead =
                Settlement::DeadLetter { reason: Reason::Refused("no".into()), fault: None, ran: Default::default() };
            queue.settle(&claimed.claim, &dead).await.unwrap();
            let letter = queue.letters(None, 10).await.unwrap().pop().unwrap();
            queue.decide(&letter.id, Fate::Replay).await.unwrap();
            let again = pull(&queue).await;
            assert_eq!(Some(&again.message.id), ids.last(), "it is the same message");
            queue.settle(&again.claim, &Settlement::Ack).await.unwrap();
        }
        let of_store = |id: &String| id.rsplit_once('-').unwrap().0.to_owned();
        assert_eq!(of_store(&ids[0]), of_store(&ids[2]), "a store keeps its name: {ids:?}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3, "{ids:?}");
    }
}
