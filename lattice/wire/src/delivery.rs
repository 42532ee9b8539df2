//! How a message link treats what the guest says of a message: plain data. `delivery:` is read by the manifest, and acted
//! on by the delivery engine of the provider contract.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Waits that are added one by one; a factor so near 1 that they still grow after these makes an estimate.
const WAITS_ADDED_MAX: u32 = 10_000;
/// The draw that moves no wait.
const NO_JITTER: f64 = 0.5;
/// Bytes that the dead letters of one app may hold: 1 GiB.
pub const DEAD_BYTES_MAX: u64 = 1 << 30;

/// The delivery policy of a message link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Attempts before a message that the guest refuses is dead-lettered. 20.
    pub max_attempts: u32,
    /// Attempts before a message on which the guest faults (trap, memory, deadline) is dead-lettered. 3.
    pub max_faults: u32,
    /// The wait between attempts.
    pub backoff: Backoff,
    /// How long the handler may take. 30 s.
    pub timeout: Duration,
    /// How old a message may get before it is dead-lettered instead of tried again.
    pub max_age: Option<Duration>,
    /// Messages in handlers at one time, in the lattice.
    pub max_in_flight: Option<u32>,
    /// Messages begun per time, in the lattice.
    pub rate_limit: Option<Rate>,
    /// What keeps its order.
    pub order_by: Option<OrderBy>,
    /// What an ordered link does when a message is dead-lettered. Park.
    pub on_dead_letter: OnDeadLetter,
    /// The subject or stream for dead letters; `None`: the ledger's own.
    pub dead_letter: Option<String>,
    /// What is handled only once.
    pub dedupe: Option<Dedupe>,
    /// Bytes that dead letters of its queue may hold: the link's part of [`DEAD_BYTES_MAX`]. Not said in a manifest: it
    /// follows from how many queues the app has.
    #[serde(skip, default = "dead_bytes_max")]
    pub dead_bytes_max: u64,
}

const fn dead_bytes_max() -> u64 {
    DEAD_BYTES_MAX
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            max_attempts: 20,
            max_faults: 3,
            backoff: Backoff::default(),
            timeout: Duration::from_secs(30),
            max_age: None,
            max_in_flight: None,
            rate_limit: None,
            order_by: None,
            on_dead_letter: OnDeadLetter::Park,
            dead_letter: None,
            dedupe: None,
            dead_bytes_max: DEAD_BYTES_MAX,
        }
    }
}

impl Delivery {
    /// Whether it asks for nothing but what holds without it. Its part of the room for dead letters was not asked for.
    pub fn is_default(&self) -> bool {
        *self == Self { dead_bytes_max: self.dead_bytes_max, ..Self::default() }
    }

    /// Whether it asks for what one node alone can keep for the whole lattice: an order, or a cap.
    pub const fn needs_one_puller(&self) -> bool {
        self.order_by.is_some() || self.max_in_flight.is_some() || self.rate_limit.is_some()
    }

    /// How long after its first attempt a message that the guest always refuses is dead-lettered: the waits between the
    /// attempts, or `max_age`. The time that the attempts themselves take is not in it.
    pub fn gives_up_after(&self) -> Duration {
        let mut sum = Duration::ZERO;
        for attempt in 1..self.max_attempts {
            let wait = self.backoff.wait(attempt, NO_JITTER);
            let waits_left = self.max_attempts - attempt;
            // From here on every wait is the same: a policy may have billions of attempts.
            if wait == self.backoff.max || self.backoff.factor == 1.0 || attempt == WAITS_ADDED_MAX {
                sum = sum.saturating_add(wait.saturating_mul(waits_left));
                break;
            }
            sum = sum.saturating_add(wait);
        }
        sum.min(self.max_age.unwrap_or(Duration::MAX))
    }
}

// The only field that is no integer is `Backoff`'s, whose parser takes no NaN.
impl Eq for Delivery {}

/// The wait before attempt `n + 1` is `initial * factor^(n-1)`, at most `max`, moved by up to `jitter` of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// 1 s.
    pub initial: Duration,
    /// 2.
    pub factor: f64,
    /// 5 min.
    pub max: Duration,
    /// 0.2.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_secs(1), factor: 2.0, max: Duration::from_secs(300), jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait after attempt `attempt`, counted from 1. `jitter01` is a draw from 0 to 1 that the caller makes, which
    /// moves the wait by up to `jitter` of itself: 0 to the shortest, 0.5 not at all, 1 to the longest.
    pub fn wait(&self, attempt: u32, jitter01: f64) -> Duration {
        let grown =
            self.initial.as_secs_f64() * self.factor.powi(i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX));
        let wait = Duration::try_from_secs_f64(grown).map_or(self.max, |wait| wait.min(self.max));
        if jitter01 == NO_JITTER {
            return wait;
        }
        let moved = wait.as_secs_f64() * (1.0 + self.jitter * (2.0 * jitter01.clamp(0.0, 1.0) - 1.0));
        Duration::try_from_secs_f64(moved).unwrap_or(wait)
    }
}

/// `100/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Duration,
}

/// `order_by`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderBy {
    /// By the message's subject.
    Subject,
    /// By a header's value.
    Header(String),
}

/// `on_dead_letter`, for ordered links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnDeadLetter {
    /// Hold the messages of this key until someone decides.
    Park,
    /// Go on with the next.
    Continue,
}

/// `dedupe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedupe {
    /// What makes two messages the same.
    pub key: DedupeKey,
    /// For how long.
    pub window: Duration,
}

/// `dedupe.key`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DedupeKey {
    /// The source's message id.
    Id,
    /// A header's value.
    Header(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_after_how_long_it_gives_up() {
        // 1 + 2 + 4 + ... + 256 s, then ten waits of 5 min: attempt 20 has no wait after it.
        assert_eq!(Delivery::default().gives_up_after(), Duration::from_secs(511 + 10 * 300));
        let soon = Delivery { max_age: Some(Duration::from_secs(60)), ..Delivery::default() };
        assert_eq!(soon.gives_up_after(), Duration::from_secs(60));
        let once = Delivery { max_attempts: 1, ..Delivery::default() };
        assert_eq!(once.gives_up_after(), Duration::ZERO);
        let never = Delivery { max_attempts: u32::MAX, ..Delivery::default() };
        assert!(never.gives_up_after() > Duration::from_secs(1 << 40), "and it is computed at once");
        let still = Delivery {
            max_attempts: u32::MAX,
            backoff: Backoff { factor: 1.0, ..Backoff::default() },
            ..Delivery::default()
        };
        assert_eq!(still.gives_up_after(), Duration::from_secs(u64::from(u32::MAX) - 1));
    }

    #[test]
    fn jitter_moves_a_wait_by_its_share() {
        let backoff = Backoff::default();
        let seconds = |attempt, draw| backoff.wait(attempt, draw).as_secs_f64();
        assert_eq!((seconds(1, 0.0), seconds(1, NO_JITTER), seconds(1, 1.0)), (0.8, 1.0, 1.2));
        assert_eq!((seconds(3, NO_JITTER), seconds(u32::MAX, NO_JITTER)), (4.0, 300.0));
    }
}
