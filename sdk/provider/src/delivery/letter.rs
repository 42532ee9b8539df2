//! What is kept of a message that was given up.

use serde::{Deserialize, Serialize};
use trellis_wire::Message;

/// A dead letter: everything that a person needs to find out why, and to have the message handled after all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Names it among the dead letters of its queue.
    pub id: String,
    /// The queue or stream that it was taken off.
    pub queue: String,
    /// The component that could not handle it, as `app/component`.
    pub component: String,
    /// The message as it was published.
    pub message: Message,
    /// How often it was tried.
    pub attempts: u32,
    /// What the component failed with, each with its backtrace, oldest first.
    pub faults: Vec<String>,
    /// How often a node died while it worked on it.
    pub kills: u32,
    /// A word to filter by: `refused`, `max-attempts`, `max-faults`, `max-age`, `killed-its-node`.
    pub reason: String,
    /// The same for people, with what the component said.
    pub detail: String,
    /// When it was given up, in milliseconds since 1970.
    pub at_ms: u64,
    /// What ran at the last attempt.
    pub ran: Ran,
}

/// What ran at an attempt. Empty where nothing did, such as for a message that killed its node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The component's code, as `sha256:...`.
    pub digest: String,
    /// The plan by which it was held.
    pub generation: u64,
    /// The trace of the attempt, in hex; empty where none was kept.
    pub trace: String,
}

/// What becomes of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It goes through its queue once more, as if it were new.
    Replay,
    /// It is forgotten.
    Drop,
}
