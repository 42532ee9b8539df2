//! A timer as a queue of ticks, for the engine of delivery: what [`Marks`] decides, carried out on the ledger.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::sleep;
use trellis_provider::delivery::{
    Claimed, DeadLetter, Fate, Ledger as Entries, Place, Queue, Settlement, Standing, Trouble,
};
use trellis_provider::{Lease, Token, now_ms};
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
/// How often a timer looks at the clock and into the ledger anyway: the one may have been set, and by the other a person
/// may have had a tick start again, from whatever node.
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
    /// Both clocks when they were last compared: one of them cannot be set.
    clocks: Mutex<(Instant, u64)>,
    health: Health,
}

/// Whether a timer can look into its ledger, or why not, for people.
pub(crate) type Health = Arc<Mutex<Result<(), Trouble>>>;

impl Ticks {
    pub(crate) fn new(ledger: Ledger, link: &Link, wanted: Wanted, lease: Option<Lease>) -> Self {
        let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, link.id.to_string().as_bytes()).simple().to_string();
        let component = link.component.to_string();
        let (known, clocks) = (Mutex::default(), Mutex::new((Instant::now(), now_ms())));
        let health = Arc::new(Mutex::new(Err("the ledger of timers has not answered yet".into())));
        Self { ledger, key, component, wanted, turn: Default::default(), lease, known, clocks, health }
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
            match next.map(|next| Duration::from_millis(next - now)).filter(|wait| *wait < LOOK_EVERY) {
                Some(wait) => sleep(wait).await,
                None => {
                    sleep(LOOK_EVERY).await;
                    self.known().1 = None;
                }
            }
        }
        Ok(due)
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

    /// Keeps a tick that is given up. It is still pending then.
    async fn bury(&self, claim: &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        let Settlement::DeadLetter { reason, fault, ran } = settlement else { return Ok(()) };
        let marks = self.ledger.read::<Marks>(&self.key).await?.unwrap_or_default();
        let held = marks.held(claim).map(|tick| tick.fault_texts.clone());
        let letter = DeadLetter {
            id: self.tick(claim.at_ms),
            queue: "timer".into(),
            component: self.component.clone(),
            message: self.message(claim.at_ms, 0),
            attempts: claim.attempt,
            faults: held.into_iter().flatten().chain(fault.clone()).collect(),
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
            place: Place { key: claim.at_ms.to_string(), again: claim.attempt > 1, ..Place::default() },
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
        self.bury(claim, settlement).await?;
        if !self.change(|marks, now| marks.settle(claim, settlement, now)).await? {
            let tick = self.tick(claim.at_ms);
            tracing::warn!(
                component = self.component,
                tick,
                "a claim ended before its tick was settled: it starts once more"
            );
        }
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
        }
        self.change_letters(|letters| letters.take(id)).await
    }

    fn ledger(&self) -> Option<&dyn Entries> {
        None
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
