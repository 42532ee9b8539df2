//! Why a word did not travel.

use std::time::Duration;

/// Why a publish, request or subscribe failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody listens there now.
    #[error("nobody listens to `{subject}`")]
    NoResponders {
        /// Where the request went.
        subject: String,
    },
    /// Somebody listens, but no answer came in time.
    #[error("no answer from `{subject}` within {after:?}")]
    TimedOut {
        /// Where the request went.
        subject: String,
        /// How long it was awaited.
        after: Duration,
    },
    /// The message is longer than the bus takes, and always will be.
    #[error("the message has {bytes} bytes; the bus takes at most {max}: send it in chunks")]
    TooLarge {
        /// Headers and payload.
        bytes: usize,
        /// What the bus takes.
        max: usize,
    },
    /// This end is not connected. The text says to what and why.
    #[error("not connected: {0}")]
    Disconnected(String),
    /// The subject, pattern or queue group is malformed.
    #[error("{0}")]
    Subject(String),
    /// A header's name or value cannot be written.
    #[error("{0}")]
    Header(String),
}

impl BusError {
    /// Whether the same message may go through a moment later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::NoResponders { .. } | Self::TimedOut { .. } | Self::Disconnected(_))
    }
}
