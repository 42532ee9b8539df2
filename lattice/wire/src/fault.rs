//! The two kinds of failure: a fault is the guest's, an error is ours. They are never one type, because what follows
//! differs: a fault counts against the guest, an error never does.

use serde::{Deserialize, Serialize};

/// The guest's failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Fault {
    /// It trapped: unreachable, out of bounds, a panic. The text holds the message and the backtrace.
    #[error("the component trapped: {0}")]
    Trap(String),
    /// It asked for more memory than its limit.
    #[error("the component ran out of memory: its limit is {limit_bytes} bytes")]
    OutOfMemory {
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// It was not done in time.
    #[error("the component was not done within {limit_ms} ms")]
    Deadline {
        /// The limit, in milliseconds.
        limit_ms: u64,
    },
    /// It returned without having answered.
    #[error("the component returned without an answer")]
    NoReply,
    /// It answered with something that is no answer, such as an HTTP error code.
    #[error("the component answered with an error: {0}")]
    Refused(String),
}

/// Our failure. The event may be tried again elsewhere or later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// No permit, sandbox or memory is free.
    #[error("busy: {0}")]
    Busy(String),
    /// No node holds the component.
    #[error("no node holds {0}")]
    NotHeld(String),
    /// The component is held but cannot be woken by such an event, or its artifact cannot be loaded.
    #[error("{0}")]
    Unusable(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Anything else of ours, said plainly.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Whether the same event may go through a moment later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::NotHeld(_) | Self::ShuttingDown)
    }
}

/// Why an event got no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Failure {
    /// The guest's.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Ours.
    #[error(transparent)]
    Error(#[from] Error),
}

/// How one event ended.
pub type Outcome = Result<crate::Reply, Failure>;
