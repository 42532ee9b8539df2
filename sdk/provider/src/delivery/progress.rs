//! What others may see of an engine: whether it is well, and what it did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Breaker;
use super::policy::Settlement;
use super::queue::Trouble;
use crate::Histogram;

/// How [`Progress::health`] begins where a trigger paused by itself.
pub const PAUSED: &str = "it paused by itself";
/// What [`Progress::health`] says of an ordered link that has parked keys.
pub(super) const KEYS_PARKED: &str = "keys are parked behind a dead letter";
/// How it begins where that is of one message, which can neither be handled nor be given up.
const ONE_IS_STUCK: &str = "one message is stuck";

/// Whether what [`Progress::health`] says is of messages that do not go well, while the link does its part.
pub fn is_of_messages(why: &str) -> bool {
    why.starts_with(PAUSED) || why.starts_with(ONE_IS_STUCK) || why.contains(KEYS_PARKED)
}

/// How an engine is, and what it did since it began.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// The same, in milliseconds since 1970.
    began_ms: u64,
    trouble: Mutex<Option<Trouble>>,
    paused_until: Mutex<Option<Instant>>,
    /// What is not well with one message, until then.
    of_one: Mutex<Option<(Trouble, Instant)>>,
    /// By [`Progress::wall_ms`].
    pub(super) breaker: Mutex<Breaker>,
    counts: Counts,
}

/// What an engine did, in plain atomics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Deliveries that ended in each of [`OUTCOMES`].
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// Deliveries that were begun: attempts.
    pub attempts: AtomicU64,
    /// Messages in handlers now.
    pub in_flight: AtomicU64,
    /// How long messages that were there waited for a permit.
    pub permit_wait: Histogram,
    /// From a message's publication to its first attempt, where the broker knows.
    pub in_queue: Histogram,
    /// From the permit to the outcome.
    pub run: Histogram,
}

/// How a delivery may end.
pub const OUTCOMES: [&str; 5] = ["ack", "retry", "dead-letter", "drop", "give-back"];

impl Counts {
    /// How many ended in each of [`OUTCOMES`].
    pub fn outcomes(&self) -> [u64; OUTCOMES.len()] {
        self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    pub(super) fn settled(&self, settlement: &Settlement) {
        let outcome = match settlement {
            Settlement::Ack => 0,
            Settlement::Retry { .. } => 1,
            Settlement::DeadLetter { .. } => 2,
            Settlement::Drop { .. } => 3,
            Settlement::GiveBack { .. } => 4,
        };
        self.outcomes[outcome].fetch_add(1, Ordering::Relaxed);
    }
}

impl Default for Progress {
    fn default() -> Self {
        let (trouble, paused_until, of_one) = Default::default();
        let (began, began_ms) = (Instant::now(), crate::now_ms());
        Self { began, began_ms, trouble, paused_until, of_one, breaker: Mutex::default(), counts: Counts::default() }
    }
}

impl Progress {
    /// Milliseconds since the engine was made: no clock that someone sets moves it.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970, as the clock stood when the engine was made.
    pub(super) fn wall_ms(&self) -> u64 {
        self.began_ms.saturating_add(self.now_ms())
    }

    /// What is not well.
    ///
    /// # Errors
    /// For people.
    pub fn health(&self) -> Result<(), String> {
        if lock(&self.breaker).open_since_ms().is_some() {
            return Err(format!(
                "{PAUSED}: most messages failed on their first attempt; one is tried each minute, and `trellis resume` \
                 begins anew"
            ));
        }
        let of_one = lock(&self.of_one).clone().filter(|(_, until)| *until > Instant::now());
        let of_one = || of_one.map(|(why, _)| format!("{ONE_IS_STUCK}: {why}"));
        lock(&self.trouble).clone().or_else(of_one).map_or(Ok(()), Err)
    }

    /// What it did.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Since when it pauses by itself, in milliseconds since 1970.
    pub fn paused_since_ms(&self) -> Option<u64> {
        let since_ms = lock(&self.breaker).open_since_ms()?;
        Some(crate::now_ms().saturating_sub(self.wall_ms().saturating_sub(since_ms)))
    }

    /// Goes on, because a person says so. Whether it had paused by itself.
    pub fn resume(&self) -> bool {
        lock(&self.breaker).close()
    }

    pub(super) fn set(&self, trouble: Option<Trouble>) {
        *lock(&self.trouble) = trouble;
    }

    pub(super) fn is_troubled(&self) -> bool {
        lock(&self.trouble).is_some()
    }

    pub(super) fn pause(&self, why: Trouble, for_: Duration) {
        self.set(Some(why));
        *lock(&self.paused_until) = Some(Instant::now() + for_);
    }

    /// Says for so long what is not well with one message. Others go on.
    pub(super) fn say_of_one(&self, why: Trouble, for_: Duration) {
        *lock(&self.of_one) = Some((why, Instant::now() + for_));
    }

    pub(super) fn paused_until(&self) -> Option<Instant> {
        *lock(&self.paused_until)
    }
}

/// Nothing panics while it holds one of these but what leaves it as it was.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
