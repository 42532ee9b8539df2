//! A timer as a queue of ticks, for the engine of delivery: what [`Marks`] decides, carried out on the ledger.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::sleep;
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, Ledger as Entries, Place, Queue, Ran, Reason, Settlement, Standing, Trouble,
};
use trellis_provider::{Lease, Ledgers, Token, now_ms};
use trellis_wire::{Link, Message};
use uuid::Uuid;

use crate::config::{Wakes, Wanted};
use crate::ledger::Ledger;
use crate::letters::Letters;
use crate::marks::{Claim, Marks, Rules};
use crate::schedule::shown;

/// The header with a tick's time, as RFC 3339: when it was to be, whenever it starts.
pub(crate) const TIME: &str = "trellis-tick-time";
/// The header with what names a tick in the lattice.
const ID: &str = "trellis-tick-id";
/// How often a timer looks at the clock and into the ledger anyway: the one may have been set, and another node may have had a
/// tick start again.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How soon it looks again where the ledger did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Characters of a timer's key that tell its ticks from those of others at the same time.
const TICK_KEY_CHARS: usize = 8;
/// A clock that has gained more than this was set, in milliseconds.
const AHEAD_MAX_MS: u64 = 2_000;

/// The ticks of one link.
pub(crate) struct Ticks {
    ledger: Ledger,
    /// What the engine keeps: pauses, attempts, what handlers published.
    entries: Arc<dyn Entries>,
    /// The entry with the marks; the one with the dead letters is beside it.
    key: String,
    component: String,
    wanted: Wanted,
    /// Whoever changes an entry: those of one node take turns, so that only another node's write can come before.
    turn: tokio::sync::Mutex<()>,
    lease: Option<Lease>,
    /// The marks as they were last read or written under one grant of the lease, so that no tick needs a look before its
    /// time.
    known: Mutex<(Option<Token>, Option<Marks>)>,
    /// Rung where what was known of when to look next is no longer so: a tick has ended, or is to start again.
    news: Notify,
    /// Both clocks when they were last compared: one of them cannot be set.
    clocks: Mutex<(Instant, u64)>,
    health: Health,
}

/// Whether a timer can look into its ledger, or why not, for people.
pub(crate) type Health = Arc<Mutex<Result<(), Trouble>>>;

impl Ticks {
    pub(crate) fn new(
        ledger: Ledger,
        ledgers: &dyn Ledgers,
        link: &Link,
        wanted: Wanted,
        lease: Option<Lease>,
    ) -> Self {
        let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, link.id.to_string().as_bytes()).simple().to_string();
        let entries = ledgers.ledger(&key);
        let component = link.component.to_string();
        let (known, clocks) = (Mutex::default(), Mutex::new((Instant::now(), now_ms())));
        let health = Arc::new(Mutex::new(Err("the ledger of timers has not answered yet".into())));
        let (turn, news) = (Default::default(), Notify::new());
        Self { ledger, entries, key, component, wanted, turn, lease, known, news, clocks, health }
    }

    /// How it goes.
    pub(crate) fn health(&self) -> Health {
        self.health.clone()
    }

    fn tell(&self, health: Result<(), Trouble>) {
        *self.health.lock().expect("nothing panics while it holds the health") = health;
    }

    fn is_well(&self) -> bool {
        self.health.lock().expect("nothing panics while it holds the health").is_ok()
    }

    /// Looks once: how many ticks are due, or none after a wait until there may be some.
    async fn look(&self) -> Result<usize, Trouble> {
        if !self.is_well() {
            self.ledger.read::<Marks>(&self.key).await?;
            self.tell(Ok(()));
        }
        self.at_work().await;
        self.compare_clocks().await?;
        let (marks, now) = (self.seen().await?, now_ms());
        let (due, next) = marks.outlook(self.rules(), now);
        if due == 0 {
            self.rest(next.map(|next| Duration::from_millis(next - now))).await;
        }
        Ok(due)
    }

    /// Waits until the next moment at which there is something to do, if there is one, or until a tick has ended before: the
    /// one behind it may be due. Where that is long, what is known is forgotten then.
    async fn rest(&self, next: Option<Duration>) {
        let wait = next.filter(|wait| *wait < LOOK_EVERY);
        tokio::select! {
            () = self.news.notified() => {}
            () = sleep(wait.unwrap_or(LOOK_EVERY)) => {
                if wait.is_none() {
                    self.known().1 = None;
                }
            }
        }
    }

    fn rules(&self) -> &Rules {
        &self.wanted.rules
    }

    /// Changes the marks in the ledger; a timer that has none begins now.
    async fn change<T>(&self, change: impl Fn(&mut Marks, u64) -> T) -> Result<T, Trouble> {
        let _turn = self.turn.lock().await;
        let begin = || Marks::begin(self.rules(), now_ms());
        let (marks, came_to) = self.ledger.change(&self.key, begin, |marks| change(marks, now_ms())).await?;
        self.known().1 = Some(marks);
        Ok(came_to)
    }

    /// The marks as this node last knew them, with what came since.
    async fn seen(&self) -> Result<Marks, Trouble> {
        let known = self.known().1.clone();
        match known {
            Some(marks) if !marks.has_news(self.rules(), now_ms()) => Ok(marks),
            // The first look also makes a timer begin.
            _ => {
                let seen = self.change(|marks, now| (marks.see(self.rules(), now), marks.clone()));
                let (left_out, marks) = seen.await?;
                if left_out > 0 {
                    let component = &self.component;
                    tracing::debug!(component, left_out, "ticks are left out: an earlier one is not done");
                }
                Ok(marks)
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, (Option<Token>, Option<Marks>)> {
        self.known.lock().expect("nothing panics while it holds the marks")
    }

    /// Waits until this node has the lease, and forgets what it knew before it had: another node was at work.
    async fn at_work(&self) {
        let Some(mut lease) = self.lease.clone() else { return };
        let token = Some(lease.held().await);
        let mut known = self.known();
        if known.0 != token {
            *known = (token, None);
        }
    }

    /// Keeps the claims on what runs where the clock was set forward since the last look.
    async fn compare_clocks(&self) -> Result<(), Trouble> {
        let (then, now) = (*self.clocks(), (Instant::now(), now_ms()));
        let ahead_ms = now.1.saturating_sub(then.1).saturating_sub(millis(now.0 - then.0));
        if ahead_ms > AHEAD_MAX_MS {
            let component = &self.component;
            tracing::warn!(component, ahead_ms, "the clock was set forward: ticks of a timer were missed");
            self.change(|marks, now_ms| marks.set_forward(ahead_ms, now_ms)).await?;
        }
        *self.clocks() = now;
        Ok(())
    }

    fn clocks(&self) -> MutexGuard<'_, (Instant, u64)> {
        self.clocks.lock().expect("nothing panics while it holds the clocks")
    }

    fn letters_key(&self) -> String {
        format!("{}.dead", self.key)
    }

    async fn change_letters<T>(&self, change: impl Fn(&mut Letters) -> T) -> Result<T, Trouble> {
        let _turn = self.turn.lock().await;
        self.ledger.change(&self.letters_key(), Letters::default, change).await.map(|(_, came_to)| came_to)
    }

    /// A tick that is done is no dead letter any more, also where who had it start again died before that was written. It is still
    /// pending then.
    async fn forget_letter(&self, claim: &Claim) -> Result<(), Trouble> {
        let (id, letters) = (self.tick(claim.at_ms), self.ledger.read::<Letters>(&self.letters_key()).await?);
        match letters.is_some_and(|letters| letters.get(&id).is_some()) {
            true => self.change_letters(|letters| letters.take(&id)).await.map(drop),
            false => Ok(()),
        }
    }

    /// Keeps a tick that is given up. It is still pending then.
    async fn bury(&self, claim: &Claim, (reason, ran): (&Reason, &Ran), fault: Option<String>) -> Result<(), Trouble> {
        let marks = self.ledger.read::<Marks>(&self.key).await?.unwrap_or_default();
        let held = marks.held(claim).map(|tick| tick.fault_texts.clone());
        let letter = DeadLetter {
            id: self.tick(claim.at_ms),
            queue: "timer".into(),
            component: self.component.clone(),
            message: self.message(claim.at_ms, 0),
            attempts: claim.attempt,
            faults: held.into_iter().flatten().chain(fault).collect(),
            kills: claim.kills,
            reason: reason.word().into(),
            detail: reason.to_string(),
            at_ms: now_ms(),
            ran: ran.clone(),
        };
        let forgotten = self.change_letters(|letters| letters.keep(letter.clone())).await?;
        if forgotten > 0 {
            tracing::warn!(
                component = self.component,
                forgotten,
                "the oldest dead letters of a timer make room for new ones"
            );
        }
        Ok(())
    }

    /// Names a tick: `2026-11-26T14:00:00Z-0f3a9c51`.
    fn tick(&self, at_ms: u64) -> String {
        format!("{}-{}", shown(at_ms), &self.key[..TICK_KEY_CHARS])
    }

    fn message(&self, at_ms: u64, attempt: u32) -> Message {
        let (time, id) = (shown(at_ms), self.tick(at_ms));
        let (subject, body) = match &self.wanted.wakes {
            Wakes::Message { subject, body } => (subject.clone(), body.clone()),
            Wakes::Run { .. } => ("timer".into(), String::new()),
        };
        Message {
            subject,
            body: body.into(),
            reply_to: None,
            headers: vec![(ID.into(), id.clone()), (TIME.into(), time)],
            id,
            attempt,
            published_ms: Some(at_ms),
        }
    }

    fn claimed(&self, claim: Claim, now_ms: u64) -> Claimed<Claim> {
        Claimed {
            message: self.message(claim.at_ms, claim.attempt),
            record: claim.record(now_ms),
            // What is given back counts no attempt, so that it is looked up of each tick whether it was begun before.
            place: Place { key: claim.at_ms.to_string(), again: true, ..Place::default() },
            claim,
        }
    }
}

#[async_trait]
impl Queue for Ticks {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            match self.look().await {
                Ok(0) => {}
                Ok(due) => return Ok(due),
                // The engine would tell of it until a tick was pulled, which may be in a year.
                Err(why) => {
                    self.tell(Err(why));
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        self.compare_clocks().await?;
        let claims = self.change(|marks, now| {
            marks.see(self.rules(), now);
            marks.claim(self.rules(), now, max, drawn)
        });
        let (claims, now) = (claims.await?, now_ms());
        Ok(claims.into_iter().map(|claim| self.claimed(claim, now)).collect())
    }

    async fn settle(&self, claim: &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => self.forget_letter(claim).await?,
            Settlement::DeadLetter { reason, fault, ran } => self.bury(claim, (reason, ran), fault.clone()).await?,
            Settlement::Retry { .. } | Settlement::GiveBack { .. } => {}
        }
        if !self.change(|marks, now| marks.settle(claim, settlement, now)).await? {
            let tick = self.tick(claim.at_ms);
            tracing::warn!(
                component = self.component,
                tick,
                "a claim ended before its tick was settled: it starts once more"
            );
        }
        self.news.notify_one();
        Ok(())
    }

    async fn extend(&self, claim: &Claim) -> Result<(), Trouble> {
        self.change(|marks, now| marks.extend(claim, now)).await.map(drop)
    }

    async fn note(&self, claim: &Claim, fault: Option<&str>) -> Result<(), Trouble> {
        self.change(|marks, _| marks.note(claim, fault)).await
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let marks = self.ledger.read::<Marks>(&self.key).await?;
        let (waiting, claimed, oldest_ms) = marks.map(|marks| marks.standing()).unwrap_or_default();
        let dead = self.ledger.read::<Letters>(&self.letters_key()).await?.map_or(0, |letters| letters.len());
        Ok(Standing {
            waiting: waiting as u64,
            claimed: claimed as u64,
            oldest_age: oldest_ms.map(|at| Duration::from_millis(now_ms().saturating_sub(at))),
            dead: Some(dead as u64),
        })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let letters = self.ledger.read::<Letters>(&self.letters_key()).await?;
        Ok(letters.map(|letters| letters.after(after, max)).unwrap_or_default())
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let letters = self.ledger.read::<Letters>(&self.letters_key()).await?.unwrap_or_default();
        let Some(letter) = letters.get(id) else { return Ok(None) };
        if let (Fate::Replay, Some(at_ms)) = (fate, letter.message.published_ms) {
            self.change(|marks, now| marks.again(at_ms, now)).await?;
            self.news.notify_one();
        }
        self.change_letters(|letters| letters.take(id)).await
    }

    fn ledger(&self) -> Option<&dyn Entries> {
        Some(&*self.entries)
    }

    fn keeps_order(&self) -> bool {
        false
    }
}

/// What tells one claim from another.
fn drawn() -> u64 {
    let (high, low) = Uuid::now_v7().as_u64_pair();
    high ^ low
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt as _;
    use trellis_embedded::Embedded;
    use trellis_provider::delivery::{Engine, Running};
    use trellis_provider::testing::lab::{Node, until, until_letters, until_settled};
    use trellis_provider::{Delivered, Outgoing, Permit, PermitSource, Permits, Run, Want};
    use trellis_wire::{Backoff, CallError, ComponentKey, Delivery, Error, Event, Outcome, Reply, RunOutput, Settle};

    use super::*;
    use crate::config;
    use crate::run::as_runs;

    /// Less than three claims, and than it takes until a timer looks anyway; long enough on a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    /// A node's disk.
    struct Disk {
        embedded: Arc<Embedded>,
        _dir: tempfile::TempDir,
    }

    impl Disk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = trellis_embedded::Options { data_dir: dir.path().into() };
            Self { embedded: Arc::new(Embedded::open(options).unwrap()), _dir: dir }
        }

        /// The ticks of the one timer.
        fn ticks(&self, config: &[(&str, &str)]) -> Ticks {
            let link = link(config);
            self.embedded.grant_own(link.id.clone(), "timers");
            let ledger = Ledger::new(self.embedded.clone(), link.id.clone(), || std::future::ready(Ok(())).boxed());
            Ticks::new(ledger, &*self.embedded, &link, Wanted::read(&link).unwrap(), None)
        }

        /// The same, of which so many were missed.
        async fn missed(&self, count: u64, period: Duration, config: &[(&str, &str)]) -> Ticks {
            let ticks = self.ticks(config);
            let begin = || Marks::begin(ticks.rules(), now_ms() - count * millis(period));
            ticks.ledger.change(&ticks.key, begin, |_| ()).await.unwrap();
            ticks
        }
    }

    fn link(config: &[(&str, &str)]) -> Link {
        config::tests::link("messaging", "handler", config)
    }

    fn run(ticks: Ticks, permits: Permits, policy: Delivery) -> (Arc<Engine<Ticks>>, Running) {
        let engine = Engine::new(link(&[]).id, ticks, permits, policy).unwrap();
        (engine.clone(), Running::begin(engine))
    }

    fn soon() -> Delivery {
        let backoff =
            Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(50), ..Backoff::default() };
        Delivery { max_attempts: 3, backoff, ..Delivery::default() }
    }

    #[tokio::test]
    async fn what_was_missed_starts_one_after_the_other_and_not_one_for_each_period() {
        let (disk, node) = (Disk::new(), Node::new(4));
        let every = [("every", "5s"), ("missed", "all")];
        let ticks = disk.missed(100, Duration::from_secs(5), &every).await;
        let (_, running) = run(ticks, node.permits(&link(&[])), soon());
        // One for each period would be twelve until the patience ends.
        until("all that were missed have started", || node.woken().len() >= 100).await;
        running.end().await;
        assert!(node.woken().is_sorted_by_key(|tick| tick.published_ms), "none overtakes another");
    }

    #[tokio::test]
    async fn what_is_to_start_again_does_not_wait_for_the_end_of_a_claim() {
        for (body, starts) in [("retry-twice", 3), ("dead", 4)] {
            let (disk, node) = (Disk::new(), Node::new(1));
            let ticks = disk.missed(1, Duration::from_secs(3_600), &[("every", "1h"), ("body", body)]).await;
            let (engine, running) = run(ticks, node.permits(&link(&[])), soon());
            let began = Instant::now();
            for start in 1..=starts {
                until("it starts", || node.woken().len() >= start).await;
                if body == "dead" && start < starts {
                    let letter = until_letters(engine.queue(), 1).await.remove(0);
                    until_settled(engine.queue()).await;
                    assert!(engine.queue().decide(&letter.id, Fate::Replay).await.unwrap().is_some());
                }
            }
            assert!(began.elapsed() < SOON, "{body}: {:?}", began.elapsed());
            running.end().await;
        }
    }

    #[tokio::test]
    async fn what_starts_again_does_so_once_though_its_node_died_before_the_letter_was_off() {
        let (disk, every) = (Disk::new(), [("every", "1h"), ("body", "dead")]);
        let ticks = disk.missed(1, Duration::from_secs(3_600), &every).await;
        let node = Node::new(1);
        let (engine, running) = run(ticks, node.permits(&link(&[])), soon());
        let letter = until_letters(engine.queue(), 1).await.remove(0);
        until_settled(engine.queue()).await;
        running.end().await;

        let (ticks, next) = (disk.ticks(&every), Node::saying(1, |_| Ok(Reply::Settle(Settle::Ack))));
        // It is to start again, and is a dead letter still.
        ticks.change(|marks, now| marks.again(letter.message.published_ms.unwrap(), now)).await.unwrap();
        let (engine, running) = run(ticks, next.permits(&link(&[])), soon());
        until("it starts again", || next.done() == 1).await;
        until_settled(engine.queue()).await;
        assert_eq!(engine.queue().decide(&letter.id, Fate::Replay).await, Ok(None), "it is no dead letter any more");
        running.end().await;
        assert_eq!(engine.queue().standing().await.unwrap().waiting, 0);
    }

    #[tokio::test]
    async fn a_pause_of_its_own_is_kept_for_whoever_has_the_timer_next() {
        let disk = Disk::new();
        let every = [("every", "1s"), ("missed", "all"), ("overlap", "allow"), ("body", "trap")];
        let ticks = disk.missed(60, Duration::from_secs(1), &every).await;
        let node = Node::new(4);
        let (engine, running) = run(ticks, node.permits(&link(&[])), Delivery::default());
        until("it pauses", || engine.progress().paused_since_ms().is_some()).await;
        running.end().await;

        let next = Node::saying(4, |_| Ok(Reply::Settle(Settle::Ack)));
        let (engine, running) = run(disk.ticks(&every), next.permits(&link(&[])), Delivery::default());
        until("it pauses", || engine.progress().paused_since_ms().is_some()).await;
        running.end().await;
        assert_eq!(next.done(), 0, "the next probe is due a minute after the last");
    }

    /// Permits for a version whose first two attempts are its trial, after which it is taken back.
    struct TakenBack(Node);

    #[async_trait]
    impl PermitSource for TakenBack {
        async fn acquire(&self, component: &ComponentKey, want: Want) -> Result<Permit, Error> {
            self.0.acquire(component, want).await
        }

        fn on_trial(&self, _: &ComponentKey, _: &str) -> Option<String> {
            (self.0.woken().len() <= 2).then(|| "2".into())
        }

        fn is_taken_back(&self, _: &ComponentKey, version: &str) -> bool {
            version == "2" && self.0.woken().len() > 2
        }
    }

    fn fifth_time_lucky(tick: &Message) -> Outcome {
        let again = Settle::Retry { after: None, reason: "not yet".into() };
        Ok(Reply::Settle(if tick.attempt < 5 { again } else { Settle::Ack }))
    }

    #[tokio::test]
    async fn attempts_of_a_version_that_was_taken_back_do_not_count() {
        let (disk, node) = (Disk::new(), Node::saying(1, fifth_time_lucky));
        let ticks = disk.missed(1, Duration::from_secs(3_600), &[("every", "1h")]).await;
        let permits = Permits::new("shop/worker".parse().unwrap(), Arc::new(TakenBack(node.clone())));
        let (engine, running) = run(ticks, permits, soon());
        until("three attempts are all it has, beside the first two", || node.done() >= 5).await;
        running.end().await;
        assert_eq!(engine.queue().letters(None, 1).await, Ok(Vec::new()));
    }

    /// A component that publishes, to a broker that does not take it when it is first told.
    #[derive(Clone)]
    struct Publishing {
        why: CallError,
        runs: Arc<AtomicUsize>,
        sends: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl PermitSource for Publishing {
        async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
            Ok(Permit::new(self.clone()))
        }

        async fn send(&self, _: &ComponentKey, _: Outgoing) -> Result<(), CallError> {
            match self.sends.fetch_add(1, Ordering::SeqCst) {
                0 => Err(self.why.clone()),
                _ => Ok(()),
            }
        }
    }

    #[async_trait]
    impl Run for Publishing {
        async fn run(self: Box<Self>, event: Event) -> Outcome {
            panic!("it is woken by messages: {event:?}")
        }

        async fn deliver(self: Box<Self>, event: Event, _: Duration) -> Delivered {
            let Event::Message(message) = event else { panic!("it is woken by messages: {event:?}") };
            self.runs.fetch_add(1, Ordering::SeqCst);
            let sends = vec![Outgoing { link: link(&[]).id, message }];
            Delivered { sends, ..Ok(Reply::Settle(Settle::Ack)).into() }
        }
    }

    /// A component whose runs fail.
    #[derive(Clone)]
    struct Failing;

    fn ran() -> Ran {
        Ran { digest: "sha256:1".into(), generation: 7, trace: "abc".into() }
    }

    #[async_trait]
    impl PermitSource for Failing {
        async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
            Ok(Permit::new(Self))
        }
    }

    #[async_trait]
    impl Run for Failing {
        async fn run(self: Box<Self>, event: Event) -> Outcome {
            panic!("it may be tried again: {event:?}")
        }

        async fn deliver(self: Box<Self>, event: Event, _: Duration) -> Delivered {
            assert!(matches!(&event, Event::Run(args) if args == &["report"]), "{event:?}");
            Delivered { ran: ran(), ..Ok(Reply::Run(RunOutput::default())).into() }
        }
    }

    #[tokio::test]
    async fn a_dead_letter_of_a_run_says_what_ran() {
        let disk = Disk::new();
        let ticks = disk.missed(1, Duration::from_secs(3_600), &[("every", "1h")]).await;
        let permits = Permits::new("shop/worker".parse().unwrap(), Arc::new(Failing));
        let (engine, running) = run(ticks, as_runs(permits, vec!["report".into()]), soon());
        let letter = until_letters(engine.queue(), 1).await.remove(0);
        assert_eq!((letter.reason.as_str(), letter.ran), ("max-attempts", ran()));
        running.end().await;
    }

    #[tokio::test]
    async fn what_could_not_be_sent_is_sent_later_and_what_was_refused_is_made_anew() {
        let (away, refused) = (CallError::Unavailable("it is away".into()), CallError::Invalid("too large".into()));
        for (why, runs) in [(away, 1), (refused, 2)] {
            let publishing = Publishing { why, runs: Arc::default(), sends: Arc::default() };
            let disk = Disk::new();
            let ticks = disk.missed(1, Duration::from_secs(3_600), &[("every", "1h")]).await;
            let permits = Permits::new("shop/worker".parse().unwrap(), Arc::new(publishing.clone()));
            let (engine, running) = run(ticks, permits, soon());
            if runs == 2 {
                let letter = until_letters(engine.queue(), 1).await.remove(0);
                until_settled(engine.queue()).await;
                assert!(engine.queue().decide(&letter.id, Fate::Replay).await.unwrap().is_some());
            }
            until("it is sent", || publishing.sends.load(Ordering::SeqCst) == 2).await;
            until_settled(engine.queue()).await;
            running.end().await;
            assert_eq!(publishing.runs.load(Ordering::SeqCst), runs, "{:?}", publishing.why);
        }
    }
}
