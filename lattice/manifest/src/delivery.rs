//! `delivery:`: how a message link treats what the guest says of a message.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
        }
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
