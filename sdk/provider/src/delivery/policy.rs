//! What becomes of a message, decided from the policy of its link, its record and how its run ended. Everything comes in
//! as a value, so that each row of the table below is a line of a test.
//!
//! | the component | what happens |
//! | --- | --- |
//! | ok | acknowledged |
//! | retry(after?) | again after `after`, else after the back-off; at `max_attempts` or `max_age`: dead letter |
//! | dead-letter(reason) | dead letter |
//! | drop(reason) | taken off |
//! | trap, out of memory, deadline, no answer | again after the back-off; at `max_faults` or `max_age`: dead letter |
//! | never ran: busy, not held, unusable, shutting down | given back, as if it had not been pulled |
//! | lost with the node that ran it | not settled: its claim ends, as if this node had died |
//! | could not be run because of an error of ours | again after the back-off, as if it had been refused |
//!
//! The last row keeps a message that our side cannot even hand over from stopping all others for ever.

use std::fmt;
use std::time::Duration;

use trellis_wire::{Delivery, Error, Failure, Outcome, Reply, Settle};

use super::letter::Ran;

/// Claims on one message that may end without a settlement, because the node died, before it is given up.
pub const KILLS_MAX: u32 = 3;
/// The longest wait that a component may ask for: 7 days.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is known of one message at one delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// Which delivery this is, from 1. What was given back was none.
    pub attempt: u32,
    /// Deliveries before this one on which the component faulted.
    pub faults: u32,
    /// Claims before this one that ended without a settlement.
    pub kills: u32,
    /// Time since it was published; zero where the source does not know.
    pub age: Duration,
}

/// What a broker is told to do with a message that it gave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// It is done: take it off.
    Ack,
    /// Give it out again, not before `after` is over.
    Retry {
        /// How long to wait.
        after: Duration,
        /// What the component failed with, if it did: one fault more, whose text is kept for a dead letter.
        fault: Option<String>,
    },
    /// Write it to the dead letters, then take it off.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// What the component failed with on this delivery, if it did.
        fault: Option<String>,
        /// What ran.
        ran: Ran,
    },
    /// Take it off.
    Drop {
        /// What the component said.
        reason: String,
    },
    /// Give it out again, before all that was never given out but not before `after` is over; this was no delivery.
    GiveBack {
        /// How long to wait.
        after: Duration,
    },
}

impl Settlement {
    /// Whether it is a dead letter for how often it was tried.
    pub(super) const fn is_for_attempts(&self) -> bool {
        matches!(self, Self::DeadLetter { reason: Reason::MaxAttempts { .. } | Reason::MaxFaults { .. }, .. })
    }

    /// A dead letter of which it is not said yet what ran.
    fn dead(reason: Reason, fault: Option<String>) -> Self {
        Self::DeadLetter { reason, fault, ran: Ran::default() }
    }
}

/// Why a message was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The component said so.
    Refused(String),
    /// The component said ok, and what it published can never be sent: why.
    Unsent(String),
    /// The component asked for another try too often.
    MaxAttempts {
        /// How often it was tried.
        attempts: u32,
        /// What the component said the last time.
        said: String,
    },
    /// The component faulted on it too often.
    MaxFaults {
        /// How often it did.
        faults: u32,
    },
    /// It would be too old at the next try.
    MaxAge {
        /// The limit.
        limit: Duration,
    },
    /// It was being worked on whenever a node died.
    KilledItsNode {
        /// How often that was.
        kills: u32,
    },
}

impl Reason {
    /// A word to filter by.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::Unsent(_) => "refused",
            Self::MaxAttempts { .. } => "max-attempts",
            Self::MaxFaults { .. } => "max-faults",
            Self::MaxAge { .. } => "max-age",
            Self::KilledItsNode { .. } => "killed-its-node",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "the component gave up on it: {reason}"),
            Self::Unsent(why) => write!(f, "the component said ok, but {why}"),
            Self::MaxAttempts { attempts, said } => write!(f, "refused {attempts} times, the last time with: {said}"),
            Self::MaxFaults { faults } => write!(f, "the component faulted on it {faults} times"),
            Self::MaxAge { limit } => write!(f, "it would be older than {limit:?} at the next attempt"),
            Self::KilledItsNode { kills } => write!(f, "a node died {kills} times while it worked on it"),
        }
    }
}

/// What is to be done with a message instead of running it; `None`: run it. A message that has waited long is tried
/// once whatever its age.
pub fn begin(policy: &Delivery, record: &Record) -> Option<Settlement> {
    let given_up = |reason| Some(Settlement::dead(reason, None));
    if record.kills >= KILLS_MAX {
        return given_up(Reason::KilledItsNode { kills: record.kills });
    }
    match policy.max_age {
        Some(limit) if record.attempt > 1 && record.age >= limit => given_up(Reason::MaxAge { limit }),
        _ => None,
    }
}

/// What follows from how a run ended. `jitter01` is a draw from 0 to 1.
pub fn settle(policy: &Delivery, record: &Record, outcome: &Outcome, jitter01: f64) -> Settlement {
    let backoff = || policy.backoff.wait(record.attempt, jitter01);
    match outcome {
        Ok(Reply::Settle(Settle::Ack)) => Settlement::Ack,
        Ok(Reply::Settle(Settle::Drop(reason))) => Settlement::Drop { reason: reason.clone() },
        Ok(Reply::Settle(Settle::DeadLetter(reason))) => Settlement::dead(Reason::Refused(reason.clone()), None),
        Ok(Reply::Settle(Settle::Retry { after, reason })) => {
            let after = after.unwrap_or_else(backoff).min(RETRY_AFTER_MAX);
            refused(policy, record, after, reason.clone())
        }
        Ok(_) => refused(policy, record, backoff(), "it gave an answer that settles no message".into()),
        Err(Failure::Fault(fault)) => faulted(policy, record, backoff(), fault.to_string()),
        Err(Failure::Error(Error::Internal(why))) => refused(policy, record, backoff(), why.clone()),
        Err(Failure::Error(Error::Busy(_) | Error::NotHeld(_) | Error::Unusable(_) | Error::ShuttingDown)) => {
            Settlement::GiveBack { after: Duration::ZERO }
        }
    }
}

/// What follows where a version ran that is on trial: it may be taken back, and what it failed on is then for another. Until
/// that is decided the message is tried again.
pub(super) fn on_trial(policy: &Delivery, record: &Record, settlement: Settlement, jitter01: f64) -> Settlement {
    match settlement {
        given_up @ Settlement::DeadLetter { .. } if !given_up.is_for_attempts() => given_up,
        Settlement::DeadLetter { fault, .. } => {
            Settlement::Retry { after: policy.backoff.wait(record.attempt, jitter01), fault }
        }
        settlement => settlement,
    }
}

fn refused(policy: &Delivery, record: &Record, after: Duration, said: String) -> Settlement {
    if record.attempt >= policy.max_attempts {
        let reason = Reason::MaxAttempts { attempts: record.attempt, said };
        return Settlement::dead(reason, None);
    }
    again(policy, record, after, None)
}

fn faulted(policy: &Delivery, record: &Record, after: Duration, fault: String) -> Settlement {
    let faults = record.faults.saturating_add(1);
    if faults >= policy.max_faults {
        return Settlement::dead(Reason::MaxFaults { faults }, Some(fault));
    }
    again(policy, record, after, Some(fault))
}

/// Another try, unless the message would be too old by then: to wait for what will not be tried helps nobody.
fn again(policy: &Delivery, record: &Record, after: Duration, fault: Option<String>) -> Settlement {
    match policy.max_age {
        Some(limit) if record.age.saturating_add(after) >= limit => Settlement::dead(Reason::MaxAge { limit }, fault),
        _ => Settlement::Retry { after, fault },
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::Fault;

    use super::*;

    /// The story of one message: each line is an outcome, beside what follows from it and when.
    fn story(policy: &Delivery, outcomes: &[(&str, Outcome)]) -> String {
        let mut record = Record { attempt: 1, ..Record::default() };
        let mut told = String::new();
        for (name, outcome) in outcomes {
            let settlement = match (*name, begin(policy, &record)) {
                (_, Some(instead)) => instead,
                ("node dies", None) => {
                    told.push_str(&format!("{:>6}  #{} node dies\n", at(&record), record.attempt));
                    record.kills += 1;
                    record.attempt += 1;
                    record.age += Duration::from_secs(10);
                    continue;
                }
                (_, None) => settle(policy, &record, outcome, 0.5),
            };
            told.push_str(&format!("{:>6}  #{} {name} -> {}\n", at(&record), record.attempt, shown(&settlement)));
            match settlement {
                Settlement::Retry { after, fault } => {
                    record.attempt += 1;
                    record.faults += u32::from(fault.is_some());
                    record.age += after;
                }
                Settlement::GiveBack { .. } => {}
                Settlement::Ack | Settlement::DeadLetter { .. } | Settlement::Drop { .. } => return told,
            }
        }
        told
    }

    fn at(record: &Record) -> String {
        format!("{}s", record.age.as_secs())
    }

    fn shown(settlement: &Settlement) -> String {
        match settlement {
            Settlement::Ack => "off".into(),
            Settlement::Retry { after, fault: None } => format!("again in {after:?}"),
            Settlement::Retry { after, fault: Some(_) } => format!("again in {after:?}, one fault more"),
            Settlement::DeadLetter { reason, .. } => format!("dead letter {}: {reason}", reason.word()),
            Settlement::Drop { reason } => format!("off, dropped: {reason}"),
            Settlement::GiveBack { .. } => "given back".into(),
        }
    }

    fn says(settle: Settle) -> Outcome {
        Ok(Reply::Settle(settle))
    }

    fn retry(after_secs: Option<u64>) -> (&'static str, Outcome) {
        let after = after_secs.map(Duration::from_secs);
        ("retry", says(Settle::Retry { after, reason: "not yet".into() }))
    }

    fn ok() -> (&'static str, Outcome) {
        ("ok", says(Settle::Ack))
    }

    fn trap() -> (&'static str, Outcome) {
        ("trap", Err(Fault::Trap("unreachable".into()).into()))
    }

    fn error(error: Error) -> (&'static str, Outcome) {
        ("ours", Err(error.into()))
    }

    fn dies() -> (&'static str, Outcome) {
        ("node dies", says(Settle::Ack))
    }

    fn all(policy: &Delivery, stories: Vec<(&str, Vec<(&'static str, Outcome)>)>) -> String {
        let told = stories.into_iter().map(|(title, outcomes)| format!("# {title}\n{}", story(policy, &outcomes)));
        told.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn every_row_of_the_table() {
        let policy = Delivery { max_attempts: 4, ..Delivery::default() };
        let told = all(
            &policy,
            vec![
                ("ok", vec![ok()]),
                (
                    "refused with the back-off, then with a wish of its own, then ok",
                    vec![retry(None), retry(Some(9)), ok()],
                ),
                ("a wish is bounded", vec![retry(Some(u64::MAX))]),
                ("refused until max_attempts", vec![retry(None), retry(None), retry(None), retry(None)]),
                ("the component gives up", vec![("dead-letter", says(Settle::DeadLetter("no such order".into())))]),
                ("the component drops it", vec![("drop", says(Settle::Drop("a test".into())))]),
                ("faults until max_faults", vec![trap(), trap(), trap()]),
                (
                    "every kind of fault counts",
                    vec![
                        ("memory", Err(Fault::OutOfMemory { limit_bytes: 1 }.into())),
                        ("deadline", Err(Fault::Deadline { limit_ms: 1 }.into())),
                        ("no reply", Err(Fault::NoReply.into())),
                    ],
                ),
                ("faults and refusals are counted apart", vec![trap(), retry(None), trap(), retry(None)]),
                (
                    "what never ran is given back, however often, and counts for nothing",
                    vec![
                        error(Error::Busy("no permit".into())),
                        error(Error::NotHeld("a/b".into())),
                        error(Error::Unusable("cannot be loaded".into())),
                        error(Error::ShuttingDown),
                        ok(),
                    ],
                ),
                ("an error of ours about this one message", vec![error(Error::Internal("header".into())), ok()]),
                ("an answer to something else", vec![("values", Ok(Reply::Values(Default::default()))), ok()]),
                ("it kills its node", vec![dies(), dies(), dies(), ok()]),
                ("a node died for another reason", vec![dies(), ok()]),
            ],
        );
        insta::assert_snapshot!(told);
    }

    #[test]
    fn age_ends_what_would_be_tried_for_ever() {
        let policy = Delivery { max_age: Some(Duration::from_secs(10)), ..Delivery::default() };
        let told = all(
            &policy,
            vec![
                ("refused until it would be too old", vec![retry(None), retry(None), retry(None), retry(None)]),
                ("a wish beyond its age", vec![retry(Some(60))]),
                ("faults until then", vec![trap(), retry(Some(8)), trap()]),
                ("too old when it comes back", vec![dies(), ok()]),
            ],
        );
        insta::assert_snapshot!(told);
        let late = Record { attempt: 1, age: Duration::from_secs(3_600), ..Record::default() };
        assert_eq!(begin(&policy, &late), None, "what has waited long is tried once");
    }
}
