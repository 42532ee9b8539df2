//! What one commit is to write, and whether more is about to come that it had better wait for.
//!
//! A handler that takes less time than a commit settles its message while the next commit would already be under way, and
//! what runs beside it a moment later; its place goes to another message, whose claim is a write too. Without a wait each of
//! those would need a commit of its own.

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
    settles: usize,
    claims: usize,
}

impl Gathered {
    pub(crate) fn write(&mut self, waiting: Waiting) {
        self.writes.push(waiting);
    }

    pub(crate) fn change(&mut self, asked: Asked) {
        match asked.change {
            Change::Settle { .. } => self.settles += 1,
            Change::Claim { .. } => self.claims += 1,
            _ => {}
        }
        self.changes.push(asked);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.changes.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.writes.len() + self.changes.len() >= COMMIT_WRITES_MAX
    }

    /// Whether more is likely to come at once, where so many messages are given out: the settlements of the others, and
    /// claims for the places of those that are settled.
    pub(crate) fn expects_more(&self, out: usize) -> bool {
        self.settles > 0 && (self.settles < out || self.claims == 0)
    }

    /// How many messages are given out once it is committed, of so many before; `given` is how many it gives out.
    pub(crate) fn out_after(&self, out: usize, given: usize) -> usize {
        (out + given).saturating_sub(self.settles)
    }
}

#[cfg(test)]
mod tests {
    use trellis_provider::delivery::Settlement;

    use super::*;
    use crate::queue::Token;

    fn gathered(changes: impl IntoIterator<Item = Change>) -> Gathered {
        let mut gathered = Gathered::default();
        let room = Arc::new(tokio::sync::Semaphore::new(16));
        for change in changes {
            let _room = room.clone().try_acquire_owned().unwrap();
            gathered.change(Asked { change, answer: oneshot::channel().0, _room });
        }
        gathered
    }

    fn settle() -> Change {
        let token = Token { queue: "q".into(), sequence: 1, attempt: 1 };
        Change::Settle {
            token,
            settlement: Settlement::Ack,
            component: "shop/worker".into(),
            dead_bytes_max: 1,
            now_ms: 0,
        }
    }

    fn claim() -> Change {
        Change::Claim { queue: "q".into(), max: 1, expired: Vec::new(), now_ms: 0 }
    }

    #[test]
    fn it_waits_for_what_runs_beside_a_message_that_is_settled_and_for_what_takes_its_place() {
        assert!(gathered([settle()]).expects_more(2), "another is out");
        assert!(gathered([settle(), claim()]).expects_more(2), "another is out still");
        assert!(gathered([settle(), settle()]).expects_more(2), "two places are free");
        assert!(!gathered([settle(), settle(), claim()]).expects_more(2), "nothing is missing");
        assert!(!gathered([claim()]).expects_more(2), "whoever only claims waits for its messages");
        assert!(!gathered([]).expects_more(2), "a write of a store waits for nothing");
    }

    #[test]
    fn it_counts_what_is_out() {
        let out = gathered([claim()]).out_after(0, 3);
        assert_eq!(out, 3);
        let out = gathered([settle(), settle(), claim()]).out_after(out, 1);
        assert_eq!(out, 2);
        assert_eq!(
            gathered([settle(), settle(), settle()]).out_after(out, 0),
            0,
            "one was out before the process began"
        );
    }
}
