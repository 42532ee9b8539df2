//! What one commit is to write.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use trellis_wire::{CallError, KeyValueAnswer};

use crate::keyvalue::Write;
use crate::queue::{Change, Changed};

/// Writes in one commit.
const COMMIT_WRITES_MAX: usize = 256;

/// A write of a key-value store.
pub(crate) struct Waiting {
    pub(crate) store: Arc<str>,
    pub(crate) write: Write,
    pub(crate) answer: oneshot::Sender<Result<KeyValueAnswer, CallError>>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// A change of a queue.
pub(crate) struct Asked {
    pub(crate) change: Change,
    pub(crate) answer: oneshot::Sender<Result<Changed, CallError>>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// What one commit is to write.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) writes: Vec<Waiting>,
    pub(crate) changes: Vec<Asked>,
}

impl Gathered {
    pub(crate) fn write(&mut self, waiting: Waiting) {
        self.writes.push(waiting);
    }

    pub(crate) fn change(&mut self, asked: Asked) {
        self.changes.push(asked);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.changes.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.writes.len() + self.changes.len() >= COMMIT_WRITES_MAX
    }
}
