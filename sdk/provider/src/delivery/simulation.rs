//! Delivery with crashes, in virtual time: several nodes pull from one queue in memory, die in the middle of whatever they
//! do, and come back. At the end every message is accounted for, and each key's were handled in order.
//!
//! A seed that fails is printed, and `TRELLIS_SIMULATE_SEED=N` runs it alone: what the engine itself draws, such as jitter, is
//! not the seed's, so it may go well. `TRELLIS_SIMULATE_SEEDS=N` runs so many.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trellis_wire::{
    Backoff, CallError, ComponentKey, Dedupe, DedupeKey, Delivery, Error, Event, Fault, LinkId, Message, OnDeadLetter,
    OrderBy, Outcome, Rate, Reply, Settle,
};

use super::policy::{Reason, Record, Settlement};
use super::queue::{CLAIM, Claimed, Ledger, Out, Place, Queue, Standing, Trouble};
use super::{DeadLetter, Engine, Fate, KILLS_MAX, Ran, Trigger as _, is_of_messages};
use crate::{Delivered, LeaseHolder, Outgoing, Permit, PermitSource, Permits, Run, Token, Want};

/// A queue and its ledger in memory.
#[derive(Default)]
struct Broker {
    messages: BTreeMap<u64, Stored>,
    letters: BTreeMap<u64, DeadLetter>,
    ledger: BTreeMap<String, (Instant, Bytes)>,
    next: u64,
    /// It does not answer; and how often it does not say how it stands when it does again.
    away: bool,
    silent: u32,
    /// How often it was asked for anything while it was away.
    asked_in_vain: u32,
    /// It does not know which of what is out is due.
    blind: bool,
    /// There is no room for dead letters, or for those of this body; its ledger does not answer.
    full: bool,
    too_large: Option<&'static str>,
    forgetful: bool,
    /// Who has a claim extended, or pulls, waits for ever.
    hangs: bool,
    pulls_hang: bool,
}

struct Stored {
    message: Message,
    attempts: u32,
    faults: Vec<String>,
    kills: u32,
    given: bool,
    replay_of: Option<String>,
    /// What comes back comes before what is new, and what is replayed before that.
    due: Option<Instant>,
    claim: Option<(u64, Instant)>,
}

impl Broker {
    fn put(&mut self, message: Message, replay_of: Option<String>) {
        self.next += 1;
        let (attempts, faults, kills, given, claim) = (0, Vec::new(), 0, false, None);
        let due = replay_of.as_ref().map(|_| Instant::now());
        let stored = Stored { message, attempts, faults, kills, given, replay_of, due, claim };
        self.messages.insert(self.next, stored);
    }

    fn end_claims(&mut self) {
        for stored in self.messages.values_mut() {
            if stored.claim.is_some_and(|(_, ends)| ends <= Instant::now()) {
                stored.kills += 1;
                (stored.claim, stored.due) = (None, Some(Instant::now()));
            }
        }
    }

    /// It is killed and comes back: it knows of no claim, or that there were claims, which begin anew.
    fn restart(&mut self, forgets: bool) {
        for stored in self.messages.values_mut() {
            stored.given &= !forgets;
            stored.claim = stored.claim.filter(|_| !forgets).map(|(token, _)| (token, Instant::now() + CLAIM));
        }
    }

    fn next(&self) -> Option<u64> {
        let waits = |(_, stored): &(&u64, &Stored)| {
            stored.claim.is_none() && stored.due.is_none_or(|due| due <= Instant::now())
        };
        let waiting: Vec<_> = self.messages.iter().filter(waits).collect();
        let back = waiting.iter().filter(|(_, stored)| stored.due.is_some());
        let back = back.min_by_key(|(_, stored)| (stored.replay_of.is_none(), stored.due));
        back.or_else(|| waiting.first()).map(|(sequence, _)| **sequence)
    }

    fn settle(&mut self, claim: &Claim, settlement: &Settlement) {
        let Some(stored) = is_its(self, claim) else { return };
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } | Settlement::DeadLetter { .. } => {
                drop(self.messages.remove(&claim.0));
            }
            Settlement::Retry { after, fault } => {
                stored.faults.extend(fault.clone());
                (stored.claim, stored.due) = (None, Some(Instant::now() + *after));
            }
            Settlement::GiveBack { after } => {
                stored.attempts -= 1;
                (stored.claim, stored.due) = (None, Some(Instant::now() + *after));
            }
        }
    }

    /// Stores a dead letter; its message is still there then.
    fn bury(&mut self, claim: &Claim, reason: &Reason, ran: &Ran) -> Result<(), Trouble> {
        let (is_full, too_large) = (self.full, self.too_large);
        let is_too_large = |stored: &Stored| too_large.is_some_and(|body| text(&stored.message) == body);
        let Some(stored) = is_its(self, claim) else { return Ok(()) };
        if is_full {
            return Err("the dead letters are full".into());
        }
        if is_too_large(stored) {
            return Err(TOO_LARGE.into());
        }
        let mut letter = DeadLetter {
            id: String::new(),
            queue: "q".into(),
            component: "shop/worker".into(),
            message: Message { id: claim.0.to_string(), ..stored.message.clone() },
            attempts: stored.attempts,
            faults: stored.faults.clone(),
            kills: stored.kills,
            reason: reason.word().into(),
            detail: reason.to_string(),
            at_ms: crate::now_ms(),
            ran: ran.clone(),
        };
        self.next += 1;
        letter.id = self.next.to_string();
        self.letters.insert(self.next, letter);
        Ok(())
    }

    fn swap(&mut self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> bool {
        let found = self.ledger.get(key).filter(|(ends, _)| *ends > Instant::now());
        if found.map(|(_, value)| &value[..]) != old {
            return false;
        }
        match new {
            Some(new) => drop(self.ledger.insert(key.into(), (Instant::now() + keep, Bytes::copy_from_slice(new)))),
            None => drop(self.ledger.remove(key)),
        }
        true
    }
}

/// A node's sight of the queue, until it dies: then nothing it does has an end.
#[derive(Clone)]
struct Sight {
    broker: Arc<Mutex<Broker>>,
    dead: Arc<AtomicBool>,
    /// Every so many calls one fails.
    fails: Arc<Mutex<(StdRng, u32)>>,
    /// After what it dies at once: `stored` when an outbox is about to be sent, `letter` when a dead letter is written, `put back`
    /// when one is that is replayed, or the beginning of a key of the ledger when that is.
    dies_at: Arc<Mutex<Option<&'static str>>>,
}

impl Sight {
    async fn broker(&self) -> Result<MutexGuard<'_, Broker>, Trouble> {
        sleep(Duration::from_millis(1)).await;
        self.alive().await;
        {
            let mut fails = self.fails.lock().unwrap();
            let one_in = fails.1;
            if one_in > 0 && fails.0.random_range(0..one_in) == 0 {
                return Err("the broker stumbles".into());
            }
        }
        let mut broker = self.broker.lock().unwrap();
        if broker.away {
            broker.asked_in_vain += 1;
            return Err("the broker is away".into());
        }
        Ok(broker)
    }

    async fn ledger_of(&self) -> Result<MutexGuard<'_, Broker>, Trouble> {
        let broker = self.broker().await?;
        if broker.forgetful { Err("the ledger is away".into()) } else { Ok(broker) }
    }

    fn dies(&self, at: &str) -> bool {
        let now = self.dies_at.lock().unwrap().is_some_and(|dies_at| at.starts_with(dies_at));
        if now {
            self.dead.store(true, Ordering::SeqCst);
        }
        now
    }

    async fn alive(&self) {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

type Claim = (u64, u64);

const TOO_LARGE: &str = "it is too large";

fn is_its<'a>(broker: &'a mut Broker, claim: &Claim) -> Option<&'a mut Stored> {
    broker.messages.get_mut(&claim.0).filter(|stored| stored.claim.is_some_and(|(token, _)| token == claim.1))
}

#[async_trait]
impl Queue for Sight {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            {
                let mut broker = self.broker().await?;
                broker.end_claims();
                if broker.next().is_some() {
                    return Ok(8);
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn mends(&self) -> Option<BoxFuture<'_, ()>> {
        let mends = async {
            for is_away in [true, false] {
                while self.broker.lock().unwrap().away != is_away {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        };
        Some(mends.boxed())
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        let pulls_hang = self.broker().await?.pulls_hang;
        if pulls_hang {
            return std::future::pending().await;
        }
        let mut broker = self.broker.lock().unwrap();
        broker.end_claims();
        let mut pulled = Vec::new();
        while pulled.len() < max
            && let Some(sequence) = broker.next()
        {
            broker.next += 1;
            let token = broker.next;
            let stored = broker.messages.get_mut(&sequence).unwrap();
            let again = std::mem::replace(&mut stored.given, true);
            stored.attempts += 1;
            stored.claim = Some((token, Instant::now() + CLAIM));
            let faults = u32::try_from(stored.faults.len()).unwrap();
            let record = Record { attempt: stored.attempts, faults, kills: stored.kills, age: Duration::ZERO };
            let message = Message { attempt: stored.attempts, id: sequence.to_string(), ..stored.message.clone() };
            let place = Place {
                key: sequence.to_string(),
                has_twins: false,
                position: Some(sequence.into()),
                again,
                name: None,
                replay_of: stored.replay_of.clone(),
                once: stored.replay_of.clone(),
            };
            pulled.push(Claimed { claim: (sequence, token), message, record, place });
        }
        Ok(pulled)
    }

    async fn settle(&self, claim: &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        let Settlement::DeadLetter { reason, ran, .. } = settlement else {
            self.broker().await?.settle(claim, settlement);
            return Ok(());
        };
        self.broker().await?.bury(claim, reason, ran)?;
        self.dies("letter");
        sleep(Duration::from_millis(1)).await;
        self.alive().await;
        self.broker.lock().unwrap().settle(claim, settlement);
        Ok(())
    }

    fn buries_in_two_steps(&self) -> bool {
        true
    }

    fn is_of_one(&self, why: &Trouble) -> bool {
        why == TOO_LARGE
    }

    async fn extend(&self, claim: &Claim) -> Result<(), Trouble> {
        let hangs = self.broker().await?.hangs;
        if hangs {
            return std::future::pending().await;
        }
        let mut broker = self.broker().await?;
        if let Some(stored) = is_its(&mut broker, claim) {
            stored.claim = Some((claim.1, Instant::now() + CLAIM));
        }
        Ok(())
    }

    async fn note(&self, claim: &Claim, fault: Option<&str>) -> Result<(), Trouble> {
        let mut broker = self.broker().await?;
        if let Some(stored) = is_its(&mut broker, claim) {
            stored.attempts += 1;
            stored.faults.extend(fault.map(str::to_owned));
        }
        Ok(())
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let mut broker = self.broker().await?;
        if broker.silent > 0 {
            broker.silent -= 1;
            return Err("the broker does not say how it stands".into());
        }
        let claimed = broker.messages.values().filter(|stored| stored.claim.is_some()).count();
        let waiting = broker.messages.len() - claimed;
        Ok(Standing { waiting: waiting as u64, claimed: claimed as u64, oldest_age: None, dead: None })
    }

    async fn out(&self) -> Result<Out, Trouble> {
        let (broker, now) = (self.broker().await?, Instant::now());
        let out = || broker.messages.values().filter(|stored| stored.claim.is_some() || stored.due.is_some());
        let later = |stored: &&Stored| {
            broker.blind || stored.claim.is_some_and(|(_, ends)| ends > now) || stored.due > Some(now)
        };
        Ok(Out { all: out().count() as u64, later: out().filter(later).count() as u64 })
    }

    async fn letters(&self, _: Option<&str>, _: usize) -> Result<Vec<DeadLetter>, Trouble> {
        Ok(self.broker().await?.letters.values().cloned().collect())
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let sequence = id.parse().unwrap();
        if fate == Fate::Replay {
            let mut broker = self.broker().await?;
            let Some(letter) = broker.letters.get(&sequence).cloned() else { return Ok(None) };
            broker.put(letter.message, Some(id.into()));
            drop(broker);
            self.dies("put back");
        }
        Ok(self.broker().await?.letters.remove(&sequence))
    }

    fn ledger(&self) -> Option<&dyn Ledger> {
        Some(self)
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

#[async_trait]
impl Ledger for Sight {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        let broker = self.ledger_of().await?;
        Ok(broker.ledger.get(key).filter(|(ends, _)| *ends > Instant::now()).map(|(_, value)| value.clone()))
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        let is_swapped = self.ledger_of().await?.swap(key, old, new, keep);
        if is_swapped && new.is_some() && self.dies(key) {
            self.alive().await;
        }
        Ok(is_swapped)
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let broker = self.broker().await?;
        Ok(broker.ledger.keys().filter(|key| key.starts_with(prefix)).cloned().collect())
    }
}

/// Everything that handlers did and that left the lattice, on whatever node.
#[derive(Default)]
struct World {
    /// Runs that said ok, by body.
    handled: Vec<(u64, Message)>,
    begun: BTreeMap<String, u32>,
    sent: Vec<String>,
    /// Runs that are under way, by number: the key of each, and whether its node is dead.
    running: BTreeMap<u64, (String, Arc<AtomicBool>)>,
    next_run: u64,
    /// Two of one key were at work at one time.
    overlapped: bool,
    /// Nobody takes what handlers publish.
    full: bool,
    /// What was dead before goes well.
    mended: bool,
    /// What handlers publish is refused for good.
    refused: bool,
    /// The trial of the version that runs first, and whether the one before it runs meanwhile.
    trial: Option<Trial>,
    older: bool,
    /// When runs began.
    began: Vec<Instant>,
}

impl World {
    /// Keys of the runs on nodes that live.
    fn at_work(&self) -> impl Iterator<Item = &str> {
        self.running.values().filter(|(_, dead)| !dead.load(Ordering::SeqCst)).map(|(key, _)| key.as_str())
    }
}

/// A run that is under way, until this is dropped: also where it is broken off.
struct UnderWay {
    world: Arc<Mutex<World>>,
    number: u64,
}

impl UnderWay {
    fn begin(node: &Node, key: &str) -> Self {
        let mut world = node.world.lock().unwrap();
        let overlaps = world.at_work().any(|other| other == key);
        world.overlapped |= overlaps;
        let number = world.next_run;
        world.next_run += 1;
        world.running.insert(number, (key.to_owned(), node.sight.dead.clone()));
        Self { world: node.world.clone(), number }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.world.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&self.number);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trial {
    Goes,
    Stays,
    TakenBack,
}

/// A node: permits, handlers by the first word of the body, and an outside that takes what they publish.
#[derive(Clone)]
struct Node {
    sight: Sight,
    world: Arc<Mutex<World>>,
    permits: Arc<Semaphore>,
}

impl Node {
    async fn act(&self, message: &Message) -> Outcome {
        let body = text(message);
        self.sight.alive().await;
        let under_way = UnderWay::begin(self, &message.subject);
        {
            let mut world = self.world.lock().unwrap();
            *world.begun.entry(body.clone()).or_default() += 1;
            world.began.push(Instant::now());
        }
        sleep(Duration::from_millis(100 + u64::from(message.attempt) * 7 + slow_ms(&body))).await;
        self.sight.alive().await;
        if body == "spin" {
            spin(&self.sight.broker);
        }
        drop(under_way);
        let mut world = self.world.lock().unwrap();
        let retry = || Ok(Reply::Settle(Settle::Retry { after: None, reason: "not yet".into() }));
        match body.split(' ').next().unwrap_or_default() {
            "retry-once" if message.attempt == 1 => return retry(),
            "retry" => return retry(),
            "trap" if !world.mended => return Err(Fault::NoReply.into()),
            "trap-once" if message.attempt == 1 => return Err(Fault::NoReply.into()),
            "busy" if world.begun[&body] == 1 => return Err(Error::Busy("no sandbox".into()).into()),
            "dead" if !world.mended => return Ok(Reply::Settle(Settle::DeadLetter("as asked".into()))),
            "lost" => return Err(Error::Internal("it was killed".into()).into()),
            "drop" => return Ok(Reply::Settle(Settle::Drop("as asked".into()))),
            _ => {}
        }
        let place = message.id.parse().unwrap();
        world.handled.push((place, message.clone()));
        Ok(Reply::Settle(Settle::Ack))
    }
}

/// When the claim of the only message ends.
fn claim_ends(broker: &Mutex<Broker>) -> Option<Instant> {
    broker.lock().unwrap().messages.values().next().and_then(|stored| stored.claim.map(|(_, ends)| ends))
}

/// Holds its thread until the claim of the only message is extended.
fn spin(broker: &Mutex<Broker>) {
    spin_until_extended(broker, claim_ends(broker));
}

/// Holds its thread until the claim of the only message is another than before.
fn spin_until_extended(broker: &Mutex<Broker>, before: Option<Instant>) {
    let began = std::time::Instant::now();
    while claim_ends(broker) == before {
        assert!(began.elapsed() < Duration::from_secs(60), "its claim is not extended");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How long `slow <ms> ...` takes before it goes well.
fn slow_ms(body: &str) -> u64 {
    let ms = body.strip_prefix("slow ").and_then(|rest| rest.split(' ').next());
    ms.map_or(0, |ms| ms.parse().unwrap())
}

fn text(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

#[async_trait]
impl PermitSource for Node {
    async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
        let permit = self.permits.clone().acquire_owned().await.unwrap();
        Ok(Permit::new(Turn { node: self.clone(), _permit: permit }))
    }

    fn on_trial(&self, _: &ComponentKey, code: &str) -> Option<String> {
        let goes_on = self.world.lock().unwrap().trial == Some(Trial::Goes);
        (goes_on && ["first", ""].contains(&code)).then(|| "2".into())
    }

    fn is_taken_back(&self, _: &ComponentKey, version: &str) -> bool {
        version == "2" && self.world.lock().unwrap().trial == Some(Trial::TakenBack)
    }

    async fn send(&self, _: &ComponentKey, outgoing: Outgoing) -> Result<(), CallError> {
        if self.sight.dies("stored") {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(1)).await;
        self.sight.alive().await;
        let mut world = self.world.lock().unwrap();
        if world.full {
            return Err(CallError::Unavailable("the stream is full".into()));
        }
        if world.refused {
            return Err(CallError::Invalid("it is too large".into()));
        }
        world.sent.push(outgoing.message.id);
        Ok(())
    }
}

struct Turn {
    node: Node,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Run for Turn {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        panic!("it is woken by messages that may be tried again: {event:?}")
    }

    async fn deliver(self: Box<Self>, event: Event, _: Duration) -> Delivered {
        let Event::Message(message) = event else { panic!("{event:?}") };
        let digest = {
            let world = self.node.world.lock().unwrap();
            if world.trial == Some(Trial::Goes) && !world.older { "first" } else { "second" }
        };
        let outcome = self.node.act(&message).await;
        let sends = match text(&message).strip_prefix("publish ") {
            Some(count) if outcome.is_ok() => {
                let count: u32 = count.split(' ').next().unwrap().parse().unwrap();
                (0..count).map(|i| outgoing(&format!("{}-{i}", message.id))).collect()
            }
            _ => Vec::new(),
        };
        let lost = text(&message).starts_with("lost");
        Delivered { outcome, sends, ran: Ran { digest: digest.into(), ..Ran::default() }, lost }
    }
}

fn outgoing(id: &str) -> Outgoing {
    Outgoing { link: link(), message: Message { id: id.into(), ..Message::default() } }
}

fn component() -> ComponentKey {
    "shop/worker".parse().unwrap()
}

fn link() -> LinkId {
    LinkId::new(&component(), &component(), &"default".parse().unwrap(), "trellis", "messaging", &[])
}

/// Nodes that pull from one queue.
struct Lattice {
    broker: Arc<Mutex<Broker>>,
    world: Arc<Mutex<World>>,
    policy: Delivery,
    stumbles: u32,
    seed: u64,
    /// Of each node.
    permits: usize,
    /// Threads of each node that its guests cannot hold up, if it has such.
    threads: Option<tokio::runtime::Handle>,
}

/// A node that runs.
struct Running {
    node: Node,
    engine: Arc<Engine<Sight>>,
    lease: LeaseHolder,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn soon() -> Delivery {
    let backoff = Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(1), ..Backoff::default() };
    Delivery { backoff, max_attempts: 3, ..Delivery::default() }
}

impl Lattice {
    fn new(policy: Delivery, seed: u64) -> Self {
        Self { broker: Arc::default(), world: Arc::default(), policy, stumbles: 0, seed, permits: 4, threads: None }
    }

    fn publish(&self, subject: &str, body: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let message = Message { subject: subject.into(), body, headers, ..Message::default() };
        self.broker.lock().unwrap().put(message, None);
    }

    fn node(&mut self) -> Running {
        self.seed += 1;
        let fails = Arc::new(Mutex::new((StdRng::seed_from_u64(self.seed), self.stumbles)));
        let sight = Sight { broker: self.broker.clone(), dead: Arc::default(), fails, dies_at: Arc::default() };
        let node =
            Node { sight: sight.clone(), world: self.world.clone(), permits: Arc::new(Semaphore::new(self.permits)) };
        let (lease, view) = LeaseHolder::new();
        let permits = Permits::new(component(), Arc::new(node.clone()));
        let permits = if self.policy.order_by.is_some() { permits.leased(view) } else { permits };
        let permits = self.threads.iter().cloned().fold(permits, Permits::extended_on);
        let engine = Engine::new(link(), sight, permits, self.policy.clone()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(engine.clone().run(stop.clone()));
        Running { node, engine, lease, stop, task }
    }

    fn left(&self) -> usize {
        self.broker.lock().unwrap().messages.len()
    }

    /// The subject and body of each message that is not off yet.
    fn waiting(&self) -> Vec<String> {
        let broker = self.broker.lock().unwrap();
        broker.messages.values().map(|held| format!("{} {}", held.message.subject, text(&held.message))).collect()
    }

    async fn until_empty(&self) {
        let began = Instant::now();
        while self.left() > 0 {
            assert!(began.elapsed() < Duration::from_secs(1_800), "these are left: {:?}", self.waiting());
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn handled(&self) -> Vec<String> {
        self.world.lock().unwrap().handled.iter().map(|(_, message)| text(message)).collect()
    }

    fn begun(&self, body: &str) -> u32 {
        self.world.lock().unwrap().begun.get(body).copied().unwrap_or_default()
    }

    fn letters(&self) -> Vec<String> {
        self.broker.lock().unwrap().letters.values().map(|letter| text(&letter.message)).collect()
    }
}

impl Running {
    /// After what it dies at once.
    fn dies_at(&self, at: Option<&'static str>) {
        *self.node.sight.dies_at.lock().unwrap() = at;
    }

    fn dies(&self) {
        self.node.sight.dead.store(true, Ordering::SeqCst);
        self.lease.set(None);
    }

    async fn ends(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The seeds that a test runs.
fn seeds() -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("TRELLIS_SIMULATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TRELLIS_SIMULATE_SEEDS").unwrap_or(20),
    }
}

/// Says which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed} failed; run it alone: TRELLIS_SIMULATE_SEED={seed} cargo test -p trellis-provider simulation"
            );
        }
    }
}

/// Simulates each seed, in a runtime of its own: what it leaves running ends with it.
fn each_seed(simulate: impl AsyncFn(u64)) {
    for seed in seeds() {
        let _named = Named(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(simulate(seed));
    }
}

fn unique(all: &[String]) -> BTreeSet<&str> {
    all.iter().map(String::as_str).collect()
}

#[test]
fn with_crashes_and_a_broker_that_stumbles_every_message_is_accounted_for() {
    // Far fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 12] =
        ["ok", "retry-once", "ok", "retry", "ok", "trap-once", "busy", "dead", "drop", "ok", "publish 2", "ok"];
    each_seed(async |seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut lattice = Lattice { stumbles: 30, ..Lattice::new(soon(), seed * 1_000) };
        let bodies: Vec<_> = (0..120).map(|i| format!("{} {i}", WORDS[i % WORDS.len()])).collect();
        bodies.iter().for_each(|body| lattice.publish("q", body, &[]));
        let mut nodes = vec![lattice.node(), lattice.node()];
        for _ in 0..2 {
            sleep(Duration::from_millis(random.random_range(50..1_500))).await;
            nodes.remove(0).dies();
            nodes.push(lattice.node());
        }
        lattice.until_empty().await;
        nodes.iter().for_each(|node| node.stop.cancel());
        let of = |words: &[&str]| -> BTreeSet<&str> {
            bodies.iter().map(String::as_str).filter(|body| words.contains(&body.rsplit_once(' ').unwrap().0)).collect()
        };
        let (handled, letters) = (lattice.handled(), lattice.letters());
        // The two that died may have left messages that were worked on twice, never three times.
        assert_eq!(unique(&handled), of(&["ok", "retry-once", "trap-once", "busy", "publish 2"]), "seed {seed}");
        assert_eq!(unique(&letters), of(&["retry", "dead"]), "seed {seed}");
        assert_eq!(letters.len(), unique(&letters).len(), "seed {seed}: each is a dead letter once");
        assert!(handled.len() - unique(&handled).len() <= 8, "seed {seed}: only what was in flight comes twice");
        assert!(of(&["drop"]).iter().all(|body| lattice.begun(body) >= 1), "seed {seed}");
        let world = lattice.world.lock().unwrap();
        assert_eq!(unique(&world.sent).len(), 20, "seed {seed}: each of what was published left, by its id");
    });
}

#[test]
fn in_order_per_key_across_crashes_retries_and_changes_of_the_holder() {
    // All that waits can be held at once, or lanes are full and more waits than may be out.
    each_seed(async |seed| {
        let (keys, count) = if seed % 2 == 0 { (6, 120) } else { (2, 400) };
        let mut random = StdRng::seed_from_u64(seed);
        let policy = Delivery { order_by: Some(OrderBy::Subject), on_dead_letter: OnDeadLetter::Continue, ..soon() };
        let mut lattice = Lattice { stumbles: 40, ..Lattice::new(policy, seed * 1_000) };
        for i in 0..count {
            // Far fewer than half fail on their first attempt: else the trigger would pause by itself.
            let word = match random.random_range(0..12) {
                0 => "retry-once",
                1 => "trap-once",
                2 => "dead",
                3 => "busy",
                _ => "ok",
            };
            lattice.publish(&format!("key{}", random.random_range(0..keys)), &format!("{word} {i}"), &[]);
        }
        let mut nodes: Vec<_> = (0..3).map(|_| lattice.node()).collect();
        for token in 1..5 {
            nodes[0].lease.set(Some(Token(token)));
            sleep(Duration::from_millis(random.random_range(1_000..20_000))).await;
            if random.random_range(0..3) == 0 {
                // Handed on in good order.
                nodes.remove(0).ends().await;
            } else {
                nodes.remove(0).dies();
            }
            nodes.push(lattice.node());
        }
        nodes[0].lease.set(Some(Token(9)));
        lattice.until_empty().await;
        nodes.iter().for_each(|node| node.stop.cancel());
        let world = lattice.world.lock().unwrap();
        assert!(!world.overlapped, "seed {seed}: two of one key ran at one time");
        let mut first = BTreeMap::<&str, Vec<u64>>::new();
        for (place, message) in &world.handled {
            let of_key = first.entry(&message.subject).or_default();
            // A repeat of what was in flight at a death is no message out of order.
            if !of_key.contains(place) {
                of_key.push(*place);
            }
        }
        assert!(first.values().all(|places| places.is_sorted()), "seed {seed}: {first:?}");
    });
}

/// Someone decides on each dead letter a while after it is there, until nothing is left: it is replayed, or dropped. Returns
/// which were dropped, each with how many messages had been handled by then.
async fn all_is_decided(lattice: &Lattice, node: &Running, random: &mut StdRng) -> Vec<(usize, Message)> {
    let (mut dropped, began) = (Vec::new(), Instant::now());
    loop {
        let first = lattice.broker.lock().unwrap().letters.keys().next().copied();
        if first.is_none() && lattice.left() == 0 {
            return dropped;
        }
        assert!(began.elapsed() < Duration::from_secs(3_600), "{} messages are left", lattice.left());
        sleep(Duration::from_millis(random.random_range(500..20_000))).await;
        let Some(id) = first else { continue };
        let (fate, handled) =
            (if random.random_bool(0.5) { Fate::Drop } else { Fate::Replay }, lattice.handled().len());
        // The same again makes whole what was not done wholly.
        let decided = loop {
            if let Ok(decided) = node.engine.decide(&id.to_string(), fate).await {
                break decided;
            }
        };
        dropped.extend(decided.filter(|_| fate == Fate::Drop).map(|letter| (handled, letter.message)));
    }
}

#[test]
fn a_key_is_parked_while_its_dead_letter_is_there_and_no_longer_across_crashes_and_changes_of_the_holder() {
    const DIES_AT: [Option<&str>; 6] =
        [None, Some("parks/"), Some("parked/"), Some("parked/"), Some("letter"), Some("opens/")];
    each_seed(async |seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let policy = Delivery { order_by: Some(OrderBy::Subject), ..soon() };
        let mut lattice = Lattice { stumbles: 40, ..Lattice::new(policy, seed * 1_000) };
        for i in 0..60 {
            // Far fewer than half fail on their first attempt: else the trigger would pause by itself.
            let word = match random.random_range(0..12) {
                0 => "retry-once",
                1 => "trap-once",
                2 => "dead",
                _ => "ok",
            };
            lattice.publish(&format!("key{}", random.random_range(0..6)), &format!("{word} {i}"), &[]);
        }
        let mut node = lattice.node();
        for token in 1..8 {
            node.dies_at(DIES_AT[random.random_range(0..DIES_AT.len())]);
            node.lease.set(Some(Token(token)));
            sleep(Duration::from_millis(random.random_range(1_000..20_000))).await;
            let next = lattice.node();
            match std::mem::replace(&mut node, next) {
                // It lives on without the lease.
                before if random.random_bool(0.3) => before.lease.set(None),
                before => before.dies(),
            }
        }
        node.lease.set(Some(Token(9)));
        lattice.world.lock().unwrap().mended = seed % 2 == 0;
        let dropped = all_is_decided(&lattice, &node, &mut random).await;
        assert_eq!(
            lattice
                .broker
                .lock()
                .unwrap()
                .ledger
                .keys()
                .find(|key| key.starts_with("park") || key.starts_with("replays")),
            None,
            "seed {seed}"
        );

        let world = lattice.world.lock().unwrap();
        assert!(!world.overlapped, "seed {seed}: two of one key ran at one time");
        // What became of the messages of each key, in that order; of one that was handled twice, at first.
        let mut ends = BTreeMap::<&str, Vec<u32>>::new();
        for handled in 0..=world.handled.len() {
            let dropped = dropped.iter().filter(|(by_then, _)| *by_then == handled).map(|(_, message)| message);
            for message in dropped.chain(world.handled.get(handled).map(|(_, message)| message)) {
                let of_key = ends.entry(&message.subject).or_default();
                let number = text(message).rsplit_once(' ').unwrap().1.parse().unwrap();
                if !of_key.contains(&number) {
                    of_key.push(number);
                }
            }
        }
        assert!(ends.values().all(|numbers| numbers.is_sorted()), "seed {seed}: {ends:?}");
        assert_eq!(ends.values().map(Vec::len).sum::<usize>(), 60, "seed {seed}: {ends:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_dead_letter_could_not_be_written_is_open() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    for body in ["dead 1", "ok 2"] {
        lattice.publish("key", body, &[]);
    }
    lattice.broker.lock().unwrap().full = true;
    let first = lattice.node();
    first.lease.set(Some(Token(1)));
    // As often as it is tried, and once more.
    sleep(Duration::from_secs(120)).await;
    assert!(first.engine.progress().health().is_err_and(|why| why.contains("full")));
    lattice.world.lock().unwrap().mended = true;
    lattice.until_empty().await;
    assert_eq!((lattice.handled(), lattice.letters()), (vec!["dead 1".into(), "ok 2".into()], Vec::<String>::new()));
    lattice.publish("key", "ok 3", &[]);
    first.ends().await;
    let second = lattice.node();
    second.lease.set(Some(Token(2)));
    lattice.until_empty().await;
    assert_eq!(second.engine.progress().health(), Ok(()), "the next holder finds it open as well");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_open_though_the_claim_ended_before_its_message_was_to_be_a_dead_letter() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    for body in ["dead 1", "ok 2"] {
        lattice.publish("key", body, &[]);
    }
    let node = lattice.node();
    node.lease.set(Some(Token(1)));
    while lattice.begun("dead 1") == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    // It is away for longer than the claim lasts, and gives the message out again only after it was told.
    for stored in lattice.broker.lock().unwrap().messages.values_mut() {
        (stored.claim, stored.due) = (None, Some(Instant::now() + Duration::from_secs(5)));
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(lattice.letters(), Vec::<String>::new(), "it said nothing, as brokers do");
    lattice.world.lock().unwrap().mended = true;
    lattice.until_empty().await;
    assert_eq!(lattice.handled(), ["dead 1", "ok 2"]);
    assert_eq!(lattice.broker.lock().unwrap().ledger.keys().find(|key| key.starts_with("park")), None);
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_forgot_that_it_gave_out_is_not_run_beside_itself() {
    // Fewer than there are permits; and in order, as many again that wait for those.
    for (order_by, count) in [(None, 3), (Some(OrderBy::Subject), 6)] {
        let mut lattice = Lattice::new(Delivery { order_by, ..soon() }, 1);
        let bodies: Vec<_> = (0..count).map(|i| format!("ok {i}")).collect();
        bodies.iter().enumerate().for_each(|(i, body)| lattice.publish(&format!("key{}", i % 3), body, &[]));
        let node = lattice.node();
        node.lease.set(Some(Token(1)));
        while lattice.world.lock().unwrap().at_work().count() < 3 {
            sleep(Duration::from_millis(1)).await;
        }
        lattice.broker.lock().unwrap().restart(true);
        lattice.until_empty().await;
        assert!(!lattice.world.lock().unwrap().overlapped, "of {count}");
        let begun: Vec<_> = bodies.iter().map(|body| lattice.begun(body)).collect();
        assert_eq!(begun, vec![1; count], "each is run once, under the claim that it has by then");
    }
}

#[tokio::test]
async fn a_claim_is_extended_though_guests_hold_all_threads_of_their_own() {
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut lattice = Lattice { threads: Some(threads.handle().clone()), ..Lattice::new(soon(), 1) };
    lattice.publish("q", "spin", &[]);
    let node = lattice.node();
    lattice.until_empty().await;
    assert_eq!(lattice.handled(), ["spin"]);
    node.ends().await;
    threads.shutdown_background();
}

#[tokio::test]
async fn the_claims_of_all_links_are_extended_beside_guests_though_a_broker_does_not_answer() {
    const LINKS: u64 = 200;
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let on_them = |seed| Lattice { threads: Some(threads.handle().clone()), ..Lattice::new(soon(), seed) };
    let mut links: Vec<_> = (0..LINKS).map(on_them).collect();
    links[0].broker.lock().unwrap().hangs = true;
    let mut nodes = Vec::new();
    for link in &mut links {
        link.publish("q", "slow 1000", &[]);
        nodes.push(link.node());
    }
    while !links.iter().all(|link| link.begun("slow 1000") == 1) {
        sleep(Duration::from_millis(1)).await;
    }
    let before: Vec<_> = links.iter().map(|link| claim_ends(&link.broker)).collect();
    // This holds the only thread of the guests.
    for (link, before) in links.iter().zip(&before).skip(1) {
        spin_until_extended(&link.broker, *before);
    }
    assert_eq!(claim_ends(&links[0].broker), before[0]);
    for (link, node) in links.iter().zip(nodes) {
        link.until_empty().await;
        node.ends().await;
    }
    threads.shutdown_background();
}

#[tokio::test(start_paused = true)]
async fn a_new_holder_waits_for_claims_that_began_anew_when_the_broker_came_back() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    (0..4).for_each(|i| lattice.publish("key", &format!("ok {i}"), &[]));
    let first = lattice.node();
    first.lease.set(Some(Token(1)));
    while lattice.begun("ok 0") == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    first.dies();
    let second = lattice.node();
    second.lease.set(Some(Token(2)));
    sleep(CLAIM * 8 / 10).await;
    lattice.broker.lock().unwrap().restart(false);
    (4..8).for_each(|i| lattice.publish("key", &format!("ok {i}"), &[]));
    lattice.until_empty().await;
    assert_eq!(lattice.handled(), (0..8).map(|i| format!("ok {i}")).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_left_in_good_order_is_not_waited_for() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    lattice.broker.lock().unwrap().blind = true;
    (0..400).for_each(|i| lattice.publish(&format!("key{}", i % 3), &format!("ok {i}"), &[]));
    let mut node = lattice.node();
    for (token, leaves) in [(1, true), (2, false), (3, true)] {
        node.lease.set(Some(Token(token)));
        let (before, began) = (lattice.handled().len(), Instant::now());
        while lattice.handled().len() < before + 20 {
            sleep(Duration::from_millis(5)).await;
        }
        let waited = began.elapsed();
        match token {
            3 => assert!(waited > CLAIM, "the one before died: {waited:?}"),
            // Some of what was given back as there was no room for it is due only later.
            _ => assert!(waited < CLAIM, "the one before left: {waited:?}"),
        }
        let next = lattice.node();
        match leaves {
            true => std::mem::replace(&mut node, next).ends().await,
            false => {
                std::mem::replace(&mut node, next).dies();
            }
        }
    }
    node.lease.set(Some(Token(9)));
    lattice.until_empty().await;
    let handled = lattice.handled();
    let of_key = |key| -> Vec<u32> {
        let all = handled.iter().map(|body| body.trim_start_matches("ok ").parse::<u32>().unwrap());
        let mut of_key: Vec<_> = all.filter(|i| i % 3 == key).collect();
        of_key.dedup();
        of_key
    };
    assert!((0..3).all(|key| of_key(key).is_sorted()), "{handled:?}");
}

/// A node that has pulled for a second, whose broker is away from now on.
async fn without_broker(order_by: Option<OrderBy>) -> (Lattice, Running) {
    let mut lattice = Lattice::new(Delivery { order_by, ..soon() }, 1);
    let node = lattice.node();
    node.lease.set(Some(Token(1)));
    sleep(Duration::from_secs(1)).await;
    lattice.broker.lock().unwrap().away = true;
    (lattice, node)
}

#[tokio::test(start_paused = true)]
async fn a_link_that_fails_asks_less_and_less_and_goes_on_at_once_when_its_broker_is_back() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let (lattice, node) = without_broker(order_by).await;
        sleep(Duration::from_secs(600)).await;
        let asked = lattice.broker.lock().unwrap().asked_in_vain;
        assert!((20..60).contains(&asked), "{asked} times in ten minutes");
        lattice.publish("key", "ok", &[]);
        lattice.broker.lock().unwrap().away = false;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(lattice.handled(), ["ok"], "it does not wait for its next try");
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_only_held_when_its_node_died_is_not_given_up() {
    let policy = Delivery { order_by: Some(OrderBy::Subject), ..soon() };
    let mut lattice = Lattice::new(policy, 1);
    (0..20).for_each(|i| lattice.publish(&format!("key{i}"), &format!("ok {i}"), &[]));
    for token in 1..=5 {
        let node = lattice.node();
        node.lease.set(Some(Token(token)));
        while lattice.world.lock().unwrap().at_work().next().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        node.dies();
    }
    let node = lattice.node();
    node.lease.set(Some(Token(9)));
    lattice.until_empty().await;
    let (handled, letters) = (lattice.handled(), lattice.letters());
    assert_eq!(unique(&handled).len() + letters.len(), 20, "{handled:?}, {letters:?}");
    // Four permits: those that were worked on whenever a node died.
    assert!((1..=8).contains(&letters.len()), "{letters:?}");
    // One of the three may have ended on its way to the handler.
    assert!(letters.iter().all(|body| (2..=3).contains(&lattice.begun(body))), "after three times at work");
}

#[tokio::test(start_paused = true)]
async fn what_was_only_held_when_its_node_died_is_tried_as_often_as_any_other() {
    let policy = Delivery { order_by: Some(OrderBy::Subject), max_attempts: 8, ..soon() };
    let mut lattice = Lattice::new(policy, 1);
    (0..20).for_each(|i| lattice.publish(&format!("key{i}"), &format!("retry {i}"), &[]));
    for token in 1..=4 {
        let node = lattice.node();
        node.lease.set(Some(Token(token)));
        while token < 4 && lattice.world.lock().unwrap().at_work().next().is_none() {
            sleep(Duration::from_millis(5)).await;
        }
        if token == 4 {
            lattice.until_empty().await;
        }
        node.dies();
    }
    let broker = lattice.broker.lock().unwrap();
    let killed = broker.letters.values().filter(|letter| letter.reason == "killed-its-node").count();
    // Four permits: only those may have been at work whenever a node died.
    assert!(killed <= 4 && broker.letters.len() == 20, "{killed} of {}", broker.letters.len());
}

#[tokio::test(start_paused = true)]
async fn a_parked_key_waits_until_its_letter_is_replayed_well_or_dropped() {
    let policy = Delivery { order_by: Some(OrderBy::Header("Order".into())), ..soon() };
    let mut lattice = Lattice::new(policy, 1);
    for (body, key) in [("dead 1", "a"), ("ok 2", "a"), ("ok 3", "b"), ("ok 4", "a")] {
        lattice.publish("orders", body, &[("order", key)]);
    }
    let node = lattice.node();
    node.lease.set(Some(Token(1)));
    sleep(Duration::from_secs(60)).await;
    assert_eq!((lattice.handled(), lattice.letters()), (vec!["ok 3".into()], vec!["dead 1".into()]));
    let health = node.engine.progress().health().unwrap_err();
    assert!(health.contains("1 keys are parked") && is_of_messages(&health), "{health}");

    // The next holder knows it as well.
    node.ends().await;
    let node = lattice.node();
    node.lease.set(Some(Token(2)));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lattice.handled(), ["ok 3"]);
    // The replay goes first, though it was published last; it dies again, and is dropped then.
    let id = |lattice: &Lattice| lattice.broker.lock().unwrap().letters.keys().next().unwrap().to_string();
    assert!(node.engine.decide(&id(&lattice), Fate::Replay).await.unwrap().is_some());
    sleep(Duration::from_secs(60)).await;
    assert_eq!((lattice.handled(), lattice.begun("dead 1")), (vec!["ok 3".into()], 2));
    assert!(node.engine.decide(&id(&lattice), Fate::Drop).await.unwrap().is_some());
    lattice.until_empty().await;
    assert_eq!(lattice.handled(), ["ok 3", "ok 2", "ok 4"]);
    assert!(node.engine.progress().health().is_ok());
}

/// A lattice in which a key has two dead letters, is parked by the second, and has a message behind them; and its node.
async fn two_letters_of_a_key() -> (Lattice, Running) {
    let goes_on = Delivery { order_by: Some(OrderBy::Subject), on_dead_letter: OnDeadLetter::Continue, ..soon() };
    let mut lattice = Lattice::new(goes_on, 1);
    lattice.publish("key", "dead 1", &[]);
    let before = lattice.node();
    before.lease.set(Some(Token(1)));
    lattice.until_empty().await;
    before.ends().await;
    // From now on a dead letter parks its key.
    lattice.policy.on_dead_letter = OnDeadLetter::Park;
    ["dead 2", "ok 3"].iter().for_each(|body| lattice.publish("key", body, &[]));
    let node = lattice.node();
    node.lease.set(Some(Token(2)));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lattice.letters(), ["dead 1", "dead 2"]);
    (lattice, node)
}

#[tokio::test(start_paused = true)]
async fn a_parked_key_waits_for_the_last_of_its_letters() {
    for fate in [Fate::Drop, Fate::Replay] {
        let (mut lattice, node) = two_letters_of_a_key().await;
        lattice.world.lock().unwrap().mended = true;
        let ids: Vec<_> = lattice.broker.lock().unwrap().letters.keys().map(u64::to_string).collect();
        assert!(node.engine.decide(&ids[0], fate).await.unwrap().is_some());
        sleep(Duration::from_secs(60)).await;
        assert_eq!((lattice.waiting(), lattice.letters()), (vec!["key ok 3".into()], vec!["dead 2".into()]));
        // The next holder knows it as well.
        node.ends().await;
        let node = lattice.node();
        node.lease.set(Some(Token(3)));
        sleep(Duration::from_secs(60)).await;
        assert_eq!(lattice.waiting(), ["key ok 3"]);
        assert!(node.engine.decide(&ids[1], fate).await.unwrap().is_some());
        lattice.until_empty().await;
        let handled = if fate == Fate::Drop { vec!["ok 3"] } else { vec!["dead 1", "dead 2", "ok 3"] };
        assert_eq!(
            (lattice.handled(), lattice.letters()),
            (handled.iter().map(|body| (*body).to_owned()).collect(), vec![])
        );
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_parked_key_waits_for_what_is_replayed_and_not_pulled_yet() {
    for (others, dies_at) in [(Fate::Drop, None), (Fate::Replay, None), (Fate::Drop, Some("put back"))] {
        let (mut lattice, node) = two_letters_of_a_key().await;
        node.ends().await;
        // Nobody pulls while someone decides.
        lattice.world.lock().unwrap().mended = true;
        let (node, ids) =
            (lattice.node(), lattice.broker.lock().unwrap().letters.keys().map(u64::to_string).collect::<Vec<_>>());
        node.dies_at(dies_at);
        let replayed = tokio::time::timeout(Duration::from_secs(60), node.engine.decide(&ids[0], Fate::Replay));
        assert_eq!(replayed.await.is_ok(), dies_at.is_none());
        let node = lattice.node();
        if dies_at.is_some() {
            assert!(node.engine.decide(&ids[0], Fate::Replay).await.unwrap().is_some(), "once more");
        }
        assert!(node.engine.decide(&ids[1], others).await.unwrap().is_some());
        node.lease.set(Some(Token(3)));
        lattice.until_empty().await;
        let handled = if others == Fate::Drop { vec!["dead 1", "ok 3"] } else { vec!["dead 1", "dead 2", "ok 3"] };
        assert_eq!(
            (lattice.handled(), lattice.letters()),
            (handled.iter().map(|body| (*body).to_owned()).collect(), vec![])
        );
        assert_eq!(node.engine.progress().health(), Ok(()));
        let is_noted = |key: &String| key.starts_with("replays/") || key.starts_with("park");
        assert!(!lattice.broker.lock().unwrap().ledger.keys().any(is_noted));
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_what_was_to_park_a_key_where_its_message_goes_well_after_all() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    lattice.publish("key", "dead 1", &[]);
    let first = lattice.node();
    first.dies_at(Some("parks/"));
    first.lease.set(Some(Token(1)));
    while !first.node.sight.dead.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(1)).await;
    }
    first.dies();
    lattice.world.lock().unwrap().mended = true;
    let second = lattice.node();
    second.lease.set(Some(Token(2)));
    lattice.until_empty().await;
    assert_eq!((lattice.handled(), lattice.letters()), (vec!["dead 1".into()], Vec::<String>::new()));
    assert_eq!(lattice.broker.lock().unwrap().ledger.keys().find(|key| key.starts_with("park")), None);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_open_though_its_node_died_between_its_replay_and_saying_so() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    for body in ["dead 1", "ok 2"] {
        lattice.publish("key", body, &[]);
    }
    let first = lattice.node();
    first.lease.set(Some(Token(1)));
    while lattice.letters().is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    lattice.broker.lock().unwrap().letters.first_entry().unwrap().get_mut().message.body = "ok 1".into();
    let letter = lattice.broker.lock().unwrap().letters.keys().next().unwrap().to_string();
    first.engine.decide(&letter, Fate::Replay).await.unwrap();
    // It dies as soon as the replay is off the queue.
    while lattice.left() > 1 {
        sleep(Duration::from_micros(100)).await;
    }
    let parked = lattice.broker.lock().unwrap().ledger.keys().filter(|key| key.starts_with("parked/")).count();
    assert_eq!(parked, 1, "it did not say that the key is open");
    first.dies();
    let second = lattice.node();
    second.lease.set(Some(Token(2)));
    lattice.until_empty().await;
    assert_eq!(lattice.handled(), ["ok 1", "ok 2"]);
    assert_eq!(second.engine.progress().health(), Ok(()));
}

/// Replays the first dead letter. Whether it could: a node that dies of it never says so.
async fn replays(node: &Running, lattice: &Lattice) -> bool {
    let letter = lattice.broker.lock().unwrap().letters.keys().next().unwrap().to_string();
    let decided = tokio::time::timeout(Duration::from_secs(60), node.engine.decide(&letter, Fate::Replay));
    decided.await.is_ok_and(|decided| decided.unwrap().is_some())
}

#[tokio::test(start_paused = true)]
async fn what_is_replayed_is_handled_once_though_its_node_died_before_the_letter_was_off() {
    for (order_by, mended) in [(None, true), (Some(OrderBy::Subject), true), (Some(OrderBy::Subject), false)] {
        let mut lattice = Lattice::new(Delivery { order_by, ..soon() }, 1);
        for body in ["dead 1", "ok 2"] {
            lattice.publish("key", body, &[]);
        }
        let first = lattice.node();
        first.lease.set(Some(Token(1)));
        while lattice.letters().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
        lattice.world.lock().unwrap().mended = mended;
        first.dies_at(Some("put back"));
        assert!(!replays(&first, &lattice).await && !lattice.letters().is_empty());
        first.dies();
        let second = lattice.node();
        second.lease.set(Some(Token(2)));
        while lattice.begun("dead 1") < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        // The letter that was left, once more: it is off now, and what comes of it is not handled.
        assert!(replays(&second, &lattice).await);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(lattice.begun("dead 1"), 2, "{mended}");
        match mended {
            true => assert_eq!((lattice.left(), lattice.letters()), (0, Vec::new())),
            // Its key is parked still.
            false => {
                assert_eq!((lattice.waiting(), lattice.letters()), (vec!["key ok 2".into()], vec!["dead 1".into()]))
            }
        }
        second.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_a_dead_letter_is_not_run_again_though_its_node_died_before_it_was_off() {
    let (parks, goes_on) = (OnDeadLetter::Park, OnDeadLetter::Continue);
    let by_subject = || Some(OrderBy::Subject);
    for (order_by, on_dead_letter) in [(None, parks), (by_subject(), parks), (by_subject(), goes_on)] {
        for (dies_at, runs) in [("letter", 1), ("buries/", 2)] {
            let case = format!("{order_by:?} {on_dead_letter:?} {dies_at}");
            let mut lattice = Lattice::new(Delivery { order_by: order_by.clone(), on_dead_letter, ..soon() }, 1);
            for body in ["dead 1", "ok 2"] {
                lattice.publish("key", body, &[]);
            }
            let first = lattice.node();
            first.lease.set(Some(Token(1)));
            first.dies_at(Some(dies_at));
            while !first.node.sight.dead.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(1)).await;
            }
            first.dies();
            let second = lattice.node();
            second.lease.set(Some(Token(2)));
            sleep(Duration::from_secs(60)).await;
            assert_eq!((lattice.begun("dead 1"), lattice.letters()), (runs, vec!["dead 1".into()]), "{case}");
            let is_parked = order_by.is_some() && on_dead_letter == parks;
            let waits = if is_parked { vec!["key ok 2".to_owned()] } else { Vec::new() };
            assert_eq!(lattice.waiting(), waits, "{case}");
            // What is replayed is another message.
            lattice.world.lock().unwrap().mended = true;
            assert!(replays(&second, &lattice).await, "{case}");
            sleep(Duration::from_secs(60)).await;
            assert_eq!((lattice.begun("dead 1"), lattice.left()), (runs + 1, 0), "{case}");
            assert_eq!(lattice.letters(), Vec::<String>::new(), "{case}");
            let is_noted = |key: &String| key.starts_with("buries/");
            assert!(!lattice.broker.lock().unwrap().ledger.keys().any(is_noted), "{case}");
            second.ends().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_while_a_version_is_on_trial_and_its_attempts_do_not_count_if_it_is_taken_back() {
    for (ends, more) in [(Trial::Stays, 1), (Trial::TakenBack, 3)] {
        for body in ["retry x", "trap x"] {
            let mut lattice = Lattice::new(soon(), 1);
            lattice.world.lock().unwrap().trial = Some(Trial::Goes);
            lattice.publish("q", body, &[]);
            let node = lattice.node();
            while lattice.begun(body) < 5 {
                sleep(Duration::from_millis(10)).await;
            }
            // Long enough for the fifth attempt to end, not for the next to begin.
            sleep(Duration::from_millis(250)).await;
            assert_eq!(lattice.letters(), Vec::<String>::new(), "three attempts are all it has, but for a trial");
            lattice.world.lock().unwrap().trial = Some(ends);
            lattice.until_empty().await;
            node.ends().await;
            assert_eq!((lattice.begun(body), lattice.letters()), (5 + more, vec![body.to_owned()]), "{ends:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_began_under_a_trial_is_its_attempt_though_it_ends_after_the_version_was_taken_back() {
    // Whose code runs, how the trial ends while the third attempt runs, and how many there are in all.
    for (older, ends, all) in [(false, Trial::TakenBack, 6), (false, Trial::Stays, 3), (true, Trial::TakenBack, 3)] {
        for body in ["retry x", "trap x"] {
            let mut lattice = Lattice::new(soon(), 1);
            let world = World { trial: Some(Trial::Goes), older, ..World::default() };
            *lattice.world.lock().unwrap() = world;
            lattice.publish("q", body, &[]);
            let node = lattice.node();
            while lattice.begun(body) < 3 {
                sleep(Duration::from_millis(10)).await;
            }
            lattice.world.lock().unwrap().trial = Some(ends);
            lattice.until_empty().await;
            node.ends().await;
            assert_eq!((lattice.begun(body), lattice.letters()), (all, vec![body.to_owned()]), "{older} {ends:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_given_up_for_attempts_that_may_not_count_while_the_ledger_is_away() {
    for trial in [Trial::TakenBack, Trial::Goes] {
        let mut lattice = Lattice::new(soon(), 1);
        lattice.world.lock().unwrap().trial = Some(Trial::Goes);
        lattice.publish("q", "trap x", &[]);
        let node = lattice.node();
        for attempt in 1..=3 {
            while lattice.begun("trap x") < attempt {
                sleep(Duration::from_millis(10)).await;
            }
            if attempt == 2 {
                // Long enough for it to end, not for the next to begin.
                sleep(Duration::from_millis(150)).await;
                lattice.world.lock().unwrap().trial = Some(trial);
            }
        }
        lattice.broker.lock().unwrap().forgetful = true;
        sleep(Duration::from_secs(60)).await;
        assert_eq!((lattice.begun("trap x"), lattice.letters()), (3, Vec::<String>::new()), "{trial:?}");
        lattice.broker.lock().unwrap().forgetful = false;
        lattice.world.lock().unwrap().trial = Some(Trial::TakenBack);
        lattice.until_empty().await;
        node.ends().await;
        assert_eq!(lattice.begun("trap x"), 6, "{trial:?}: two do not count, and the third was none");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_published_that_said_ok_is_sent_however_often_nodes_die_of_it() {
    let mut lattice = Lattice::new(soon(), 1);
    lattice.publish("q", "publish 2 x", &[]);
    for _ in 0..4 {
        let node = lattice.node();
        node.dies_at(Some("stored"));
        sleep(CLAIM + Duration::from_secs(5)).await;
        assert!(node.node.sight.dead.load(Ordering::SeqCst), "it died when that was to be sent");
    }
    let _node = lattice.node();
    lattice.until_empty().await;
    assert_eq!((lattice.begun("publish 2 x"), lattice.letters()), (1, Vec::new()));
    assert_eq!(lattice.world.lock().unwrap().sent, ["1-0", "1-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_for_what_could_not_be_sent_says_so_and_what_ran_and_counts_as_a_failure() {
    let mut lattice = Lattice::new(soon(), 1);
    lattice.world.lock().unwrap().refused = true;
    (0..60).for_each(|i| lattice.publish("q", &format!("publish 1 {i}"), &[]));
    let node = lattice.node();
    sleep(Duration::from_secs(30)).await;
    assert!(node.engine.progress().paused_since_ms().is_some());
    let broker = lattice.broker.lock().unwrap();
    let letter = broker.letters.values().next().unwrap();
    assert_eq!((letter.reason.as_str(), letter.ran.digest.as_str()), ("refused", "second"));
    assert!(letter.detail.starts_with("the component said ok, but what it published on"), "{}", letter.detail);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_with_the_node_that_ran_it_is_given_up_after_three_and_is_no_attempt_that_was_refused() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let mut lattice = Lattice::new(Delivery { order_by, max_attempts: 1, ..soon() }, 1);
        (0..40).for_each(|i| lattice.publish(&format!("key{i}"), &format!("lost {i}"), &[]));
        let node = lattice.node();
        node.lease.set(Some(Token(1)));
        lattice.until_empty().await;
        assert_eq!(node.engine.progress().paused_since_ms(), None, "it says nothing of the component");
        assert!((0..40).all(|i| lattice.begun(&format!("lost {i}")) == KILLS_MAX));
        let broker = lattice.broker.lock().unwrap();
        let killed = |letter: &DeadLetter| (letter.reason.as_str(), letter.kills) == ("killed-its-node", KILLS_MAX);
        assert!(broker.letters.len() == 40 && broker.letters.values().all(killed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_can_be_no_dead_letter_keeps_no_others_from_being_handled() {
    let mut lattice = Lattice::new(soon(), 1);
    lattice.broker.lock().unwrap().too_large = Some("dead x");
    lattice.publish("q", "dead x", &[]);
    let node = lattice.node();
    sleep(Duration::from_secs(30)).await;
    let health = node.engine.progress().health().unwrap_err();
    assert!(health.contains(TOO_LARGE) && is_of_messages(&health), "{health}");
    (0..100).for_each(|i| lattice.publish("q", &format!("ok {i}"), &[]));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(lattice.handled().len(), 100);
    assert!(node.engine.progress().health().is_err_and(|why| why.contains(TOO_LARGE)), "it is named all the time");
    lattice.broker.lock().unwrap().too_large = None;
    lattice.until_empty().await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(node.engine.progress().health(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_reached_and_never_exceeded_however_long_permits_are_waited_for() {
    let second = Duration::from_secs(1);
    for (permits, order_by) in [(1, None), (4, None), (50, None), (50, Some(OrderBy::Subject))] {
        // One permit is enough for nine in a second.
        let count = if permits == 1 { 5 } else { 20 };
        let policy = Delivery { order_by, rate_limit: Some(Rate { count, per: second }), ..soon() };
        let mut lattice = Lattice { permits, ..Lattice::new(policy, 1) };
        (0..2_000).for_each(|i| lattice.publish(&format!("key{i}"), &format!("ok {i}"), &[]));
        let node = lattice.node();
        node.lease.set(Some(Token(1)));
        for _ in 0..2 {
            sleep(30 * second).await;
            // Nothing may begin for a while, and then all that waits.
            let taken = node.node.permits.acquire_many(u32::try_from(permits).unwrap()).await.unwrap();
            sleep(10 * second).await;
            drop(taken);
        }
        let began = std::mem::take(&mut lattice.world.lock().unwrap().began);
        let most =
            began.iter().enumerate().map(|(i, at)| began[i..].partition_point(|other| *other < *at + second)).max();
        assert!(most <= Some(count as usize), "{permits} permits: {most:?} in a second");
        assert!(began.len() * 10 >= 60 * 9 * count as usize, "{permits} permits: {} in 60 s", began.len());
        node.lease.set(None);
        node.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_broken_off_is_not_in_flight() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    lattice.publish("q", "slow 5000 x", &[]);
    let node = lattice.node();
    node.lease.set(Some(Token(1)));
    let in_flight = || node.engine.progress().counts().in_flight.load(Ordering::Relaxed);
    while in_flight() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    node.lease.set(None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_is_broken_off_at_once_when_the_lease_is_lost_though_the_broker_does_not_answer() {
    let mut lattice = Lattice::new(Delivery { order_by: Some(OrderBy::Subject), ..soon() }, 1);
    lattice.publish("key", "slow 20000", &[]);
    let node = lattice.node();
    node.lease.set(Some(Token(1)));
    while lattice.world.lock().unwrap().at_work().next().is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    lattice.broker.lock().unwrap().pulls_hang = true;
    lattice.publish("other", "ok", &[]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(lattice.world.lock().unwrap().at_work().collect::<Vec<_>>(), ["key"], "it waits for what it pulls");
    node.lease.set(None);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(lattice.world.lock().unwrap().at_work().next(), None);
}

#[tokio::test(start_paused = true)]
async fn a_stored_outbox_is_sent_and_its_handler_not_run_again() {
    let mut lattice = Lattice::new(soon(), 1);
    lattice.publish("q", "publish 3 x", &[]);
    let first = lattice.node();
    *first.node.sight.dies_at.lock().unwrap() = Some("stored");
    sleep(Duration::from_secs(5)).await;
    assert!(first.node.sight.dead.load(Ordering::SeqCst), "it died when the first was to be sent");
    let _second = lattice.node();
    lattice.until_empty().await;
    assert_eq!(lattice.begun("publish 3 x"), 1);
    assert_eq!(lattice.world.lock().unwrap().sent, ["1-0", "1-1", "1-2"]);
}

#[tokio::test(start_paused = true)]
async fn twins_are_handled_once_and_a_concurrent_one_waits() {
    let window = Duration::from_secs(600);
    let policy = Delivery { dedupe: Some(Dedupe { key: DedupeKey::Header("Order".into()), window }), ..soon() };
    let mut lattice = Lattice::new(policy, 1);
    for (body, order) in [("ok 1", "7"), ("ok 2", "7"), ("retry-once 3", "8"), ("ok 4", "8"), ("ok 5", "9")] {
        lattice.publish("q", body, &[("order", order)]);
    }
    let _nodes = [lattice.node(), lattice.node()];
    lattice.until_empty().await;
    let handled = lattice.handled();
    let of = |bodies: &[&str]| handled.iter().filter(|body| bodies.contains(&body.as_str())).count();
    assert_eq!((of(&["ok 1", "ok 2"]), of(&["retry-once 3", "ok 4"]), of(&["ok 5"])), (1, 1, 1), "{handled:?}");
    lattice.publish("q", "ok 6", &[("order", "7")]);
    lattice.until_empty().await;
    assert!(!lattice.handled().contains(&"ok 6".into()), "it is known for the window");
    sleep(window).await;
    lattice.publish("q", "ok 6", &[("order", "7")]);
    lattice.until_empty().await;
    assert!(lattice.handled().contains(&"ok 6".into()));
}

#[tokio::test(start_paused = true)]
async fn twins_wait_until_what_the_first_published_is_sent() {
    let window = Duration::from_secs(600);
    let policy = Delivery { dedupe: Some(Dedupe { key: DedupeKey::Header("Order".into()), window }), ..soon() };
    let mut lattice = Lattice::new(policy, 1);
    lattice.world.lock().unwrap().full = true;
    lattice.publish("q", "publish 1 first", &[("order", "7")]);
    let _nodes = [lattice.node(), lattice.node()];
    sleep(Duration::from_secs(2)).await;
    lattice.publish("q", "publish 1 second", &[("order", "7")]);
    sleep(Duration::from_secs(300)).await;
    assert_eq!((lattice.begun("publish 1 first"), lattice.begun("publish 1 second")), (1, 0));
    lattice.world.lock().unwrap().full = false;
    lattice.until_empty().await;
    lattice.publish("q", "publish 1 third", &[("order", "7")]);
    lattice.until_empty().await;
    assert_eq!(lattice.world.lock().unwrap().sent, ["1-0"]);
    assert_eq!((lattice.begun("publish 1 second"), lattice.begun("publish 1 third")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_is_well_again_when_its_broker_is() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let (lattice, node) = without_broker(order_by).await;
        sleep(Duration::from_secs(30)).await;
        assert!(node.engine.progress().health().is_err());
        {
            let mut broker = lattice.broker.lock().unwrap();
            // What was asked while it was away fails when it is back.
            (broker.away, broker.silent) = (false, 2);
        }
        sleep(Duration::from_secs(30)).await;
        assert_eq!(node.engine.progress().health(), Ok(()));
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_found_yet_is_not_well_until_it_is_also_where_another_node_has_the_lease() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let mut lattice = Lattice::new(Delivery { order_by, ..soon() }, 1);
        let node = lattice.node();
        lattice.broker.lock().unwrap().silent = 2;
        node.engine.looks_for("its queue is being looked for");
        sleep(Duration::from_millis(50)).await;
        assert_eq!(node.engine.progress().health(), Err("its queue is being looked for".into()));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(node.engine.progress().health(), Ok(()));
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_trigger_pauses_by_itself_and_gives_nothing_up_until_a_probe_goes_well() {
    let mut lattice = Lattice::new(soon(), 1);
    for i in 0..60 {
        lattice.publish("q", &format!("retry {i}"), &[]);
    }
    let node = lattice.node();
    while node.engine.progress().paused_since_ms().is_none() {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(lattice.letters().len() < 26, "{} were given up before", lattice.letters().len());
    let (dead, begun) = (lattice.letters().len(), lattice.world.lock().unwrap().begun.values().sum::<u32>());
    sleep(Duration::from_secs(600)).await;
    let probes = lattice.world.lock().unwrap().begun.values().sum::<u32>() - begun;
    assert_eq!(lattice.letters().len(), dead, "while it pauses nothing is given up");
    assert!((5..=16).contains(&probes), "one a minute, and what was under way: {probes}");
    assert!(node.engine.progress().health().is_err_and(|why| why.contains("`trellis resume`")));
    assert!(node.engine.progress().resume());
    sleep(Duration::from_secs(5)).await;
    assert!(lattice.world.lock().unwrap().begun.values().sum::<u32>() > begun + probes, "it goes on");
}

/// An order is kept, and what faults once is given up.
fn strict() -> Delivery {
    Delivery { order_by: Some(OrderBy::Subject), on_dead_letter: OnDeadLetter::Continue, max_faults: 1, ..soon() }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_a_handler_asks_for_is_no_failure() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let mut lattice = Lattice::new(Delivery { order_by, ..strict() }, 1);
        // One more failure, and it would pause.
        (0..25).for_each(|i| lattice.publish("key", &format!("trap {i}"), &[]));
        (0..100).for_each(|i| lattice.publish("key", &format!("dead {i}"), &[]));
        lattice.publish("key", "ok", &[]);
        let node = lattice.node();
        node.lease.set(Some(Token(1)));
        lattice.until_empty().await;
        assert_eq!(node.engine.progress().paused_since_ms(), None);
        assert_eq!((lattice.handled(), lattice.letters().len()), (vec!["ok".into()], 125));
        node.ends().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_an_ordered_link_ends_by_what_is_behind_another_key_also_where_that_is_to_be_a_dead_letter() {
    for (body, letters) in [("ok", 27), ("dead", 28)] {
        let mut lattice = Lattice::new(strict(), 1);
        (0..26).for_each(|i| lattice.publish("key", &format!("trap {i}"), &[]));
        let node = lattice.node();
        node.lease.set(Some(Token(1)));
        while node.engine.progress().paused_since_ms().is_none() {
            sleep(Duration::from_millis(100)).await;
        }
        lattice.publish("another", "trap", &[]);
        sleep(Duration::from_secs(600)).await;
        assert_eq!((lattice.letters().len(), lattice.left()), (25, 2), "nothing is given up");
        lattice.publish("other", body, &[]);
        lattice.until_empty().await;
        assert_eq!((lattice.letters().len(), node.engine.progress().paused_since_ms()), (letters, None), "{body}");
        node.ends().await;
    }
}

/// Three of four fault, and one goes well after so long.
fn mixed(lattice: &Lattice, count: u32, slow_ms: u64) {
    for i in 0..count {
        let body = if i % 4 == 3 { format!("slow {slow_ms} {i}") } else { format!("trap {i}") };
        lattice.publish(&format!("key{i}"), &body, &[]);
    }
}

/// Looks at nodes for so long. None that pauses goes on by itself, and in the end all pause.
async fn pauses_hold(nodes: &[Running], for_: Duration) {
    let (began, mut paused) = (Instant::now(), vec![false; nodes.len()]);
    while began.elapsed() < for_ {
        for (node, paused) in nodes.iter().zip(&mut paused) {
            let now = node.engine.progress().paused_since_ms().is_some();
            assert!(now || !*paused, "it went on after {:?}", began.elapsed());
            *paused = now;
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!paused.contains(&false), "{paused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_though_what_began_before_it_goes_well() {
    let in_order = || Some(OrderBy::Subject);
    // Some that go well end soon after it began, some much later; with several nodes it is the lattice's.
    let cases = [
        (60, 1, None),
        (900, 1, None),
        (50_000, 1, None),
        (900, 3, None),
        (60, 1, in_order()),
        (50_000, 1, in_order()),
    ];
    for (slow_ms, count, order_by) in cases {
        let policy = Delivery { order_by, timeout: Duration::from_secs(100), ..strict() };
        let mut lattice = Lattice { permits: 10, ..Lattice::new(policy, 1) };
        mixed(&lattice, 600, slow_ms);
        let nodes: Vec<_> = (0..count).map(|_| lattice.node()).collect();
        nodes[0].lease.set(Some(Token(1)));
        pauses_hold(&nodes, Duration::from_secs(59)).await;
        let (letters, begun) = (lattice.letters().len(), lattice.world.lock().unwrap().begun.values().sum::<u32>());
        // More than half of fifty, and what was under way.
        assert!((20..=25 + 10 * count).contains(&letters), "{letters} were given up, {slow_ms} ms, {count} nodes");
        assert!(begun as usize <= 50 + 20 * count, "{begun} were begun, {slow_ms} ms, {count} nodes");

        // A probe goes well, sooner or later.
        lattice.world.lock().unwrap().mended = true;
        lattice.until_empty().await;
        assert_eq!((lattice.letters().len(), lattice.handled().len()), (letters, 600 - letters));
        let first = lattice.world.lock().unwrap().handled.iter().all(|(_, message)| message.attempt == 1);
        assert!(first, "what was under way and not given up was no attempt");
        for node in nodes {
            node.ends().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hears_late_that_a_pause_is_over_does_not_end_the_next_one() {
    let mut lattice = Lattice::new(strict(), 1);
    (0..600).for_each(|i| lattice.publish(&format!("key{i}"), &format!("trap {i}"), &[]));
    let first = lattice.node();
    first.lease.set(Some(Token(1)));
    let is_paused = |node: &Running| node.engine.progress().paused_since_ms().is_some();
    while !is_paused(&first) {
        sleep(Duration::from_millis(10)).await;
    }
    // It knows of that pause, and pulls nothing: it has no lease.
    let second = lattice.node();
    sleep(Duration::from_secs(1)).await;
    assert!(is_paused(&second) && first.engine.progress().resume() && second.engine.progress().resume());
    sleep(Duration::from_secs(30)).await;
    assert!(is_paused(&first), "it fails again");
    let letters = lattice.letters().len();
    first.ends().await;
    second.lease.set(Some(Token(2)));
    sleep(Duration::from_secs(600)).await;
    assert!(is_paused(&second));
    assert_eq!(lattice.letters().len(), letters, "nothing is given up");
    second.ends().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_every_nodes_and_outlives_those_that_began_it() {
    for order_by in [None, Some(OrderBy::Subject)] {
        let is_ordered = order_by.is_some();
        let mut lattice = Lattice::new(Delivery { order_by, ..soon() }, 1);
        (0..60).for_each(|i| lattice.publish(&format!("key{i}"), &format!("retry {i}"), &[]));
        let first = lattice.node();
        first.lease.set(Some(Token(1)));
        while first.engine.progress().paused_since_ms().is_none() {
            sleep(Duration::from_millis(100)).await;
        }
        first.ends().await;
        let (dead, begun) = (lattice.letters().len(), lattice.world.lock().unwrap().begun.values().sum::<u32>());
        let nodes =
            if is_ordered { vec![lattice.node()] } else { vec![lattice.node(), lattice.node(), lattice.node()] };
        nodes[0].lease.set(Some(Token(2)));
        sleep(Duration::from_secs(600)).await;
        assert!(nodes.iter().all(|node| node.engine.progress().paused_since_ms().is_some()), "each knows of it");
        assert_eq!(lattice.letters().len(), dead, "nothing is given up");
        let probes = lattice.world.lock().unwrap().begun.values().sum::<u32>() - begun;
        assert!((5..=16).contains(&probes), "one a minute of all nodes: {probes}");
        assert!(nodes[0].engine.progress().resume());
        sleep(Duration::from_secs(130)).await;
        let goes_on = lattice.world.lock().unwrap().begun.values().sum::<u32>() - begun - probes;
        assert!(goes_on > 16, "a person ended it: {goes_on}");
        for node in nodes {
            node.ends().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_that_have_little_to_do_see_together_that_most_of_it_fails() {
    for failing in [true, false] {
        let mut lattice = Lattice::new(Delivery { order_by: None, ..strict() }, 1);
        for node in 0..20 {
            for i in 0..4 {
                let word = if failing || i == 0 { "trap" } else { "ok" };
                lattice.publish("q", &format!("{word} {node}-{i}"), &[]);
            }
            let node = lattice.node();
            sleep(Duration::from_secs(5)).await;
            node.ends().await;
        }
        let letters = lattice.letters().len();
        match failing {
            // Those that were under way beside the one that made it pause are kept.
            true => assert!((22..=26).contains(&letters), "{letters} of 80 were given up"),
            false => assert_eq!((letters, lattice.handled().len()), (20, 60), "a quarter is no reason to pause"),
        }
    }
}
