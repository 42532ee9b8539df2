//! A link that pauses by itself pauses on every node, and on those that begin later: the ledger says so, and whose turn the
//! next probe is. Without a ledger each node pauses for itself.

use std::sync::atomic::Ordering;

use super::breaker::PROBE_EVERY_MS;
use super::engine::Engine;
use super::ledger::{self, KEPT};
use super::progress::lock;
use super::queue::{Ledger, Queue, Trouble};

impl<Q: Queue> Engine<Q> {
    /// Pauses if the link does elsewhere, or did before this began.
    pub(super) async fn join_pause(&self) {
        let Some(ledger) = self.queue.ledger() else { return };
        match ledger.read(&ledger::paused_key(&self.link)).await {
            Ok(Some(kept)) => {
                let left_ms = ledger::probe_ms(&kept).saturating_sub(self.progress.wall_ms()).min(PROBE_EVERY_MS);
                lock(&self.progress.breaker).reopen(self.progress.now_ms(), left_ms);
                self.pause_is_kept.store(true, Ordering::Relaxed);
            }
            Ok(None) => {}
            Err(why) => tracing::debug!(link = %self.link, why, "whether the trigger pauses elsewhere is not known"),
        }
    }

    /// The link pauses from now on.
    pub(super) async fn keep_pause(&self) {
        let Some(ledger) = self.queue.ledger() else { return };
        let next = next_probe(self.progress.wall_ms());
        match ledger.swap(&ledger::paused_key(&self.link), None, Some(&next), KEPT).await {
            // Where it was there already, another paused first.
            Ok(_) => self.pause_is_kept.store(true, Ordering::Relaxed),
            Err(why) => {
                tracing::warn!(link = %self.link, why, "that the trigger pauses by itself is known to this node alone")
            }
        }
    }

    /// The link does not pause any more: a probe went well, or a person said so.
    pub(super) async fn forget_pause(&self) {
        let (true, Some(ledger)) = (self.pause_is_kept.load(Ordering::Relaxed), self.queue.ledger()) else { return };
        let key = ledger::paused_key(&self.link);
        let forgotten = async {
            match ledger.read(&key).await? {
                Some(kept) => ledger.swap(&key, Some(&kept), None, KEPT).await,
                None => Ok(true),
            }
        };
        // Else it is looked at again before the next message.
        self.pause_is_kept.store(!matches!(forgotten.await, Ok(true)), Ordering::Relaxed);
    }

    /// Whether this node makes the probe that is due. Where the pause is over elsewhere, it is over here too.
    pub(super) async fn may_probe(&self) -> bool {
        let Some(ledger) = self.queue.ledger().filter(|_| self.pause_is_kept.load(Ordering::Relaxed)) else {
            return true;
        };
        match take_probe(ledger, &ledger::paused_key(&self.link), self.progress.wall_ms()).await {
            Ok(Some(is_ours)) => is_ours,
            Ok(None) => {
                self.pause_is_kept.store(false, Ordering::Relaxed);
                lock(&self.progress.breaker).close();
                true
            }
            Err(why) => {
                tracing::debug!(link = %self.link, why, "whose turn the next probe is cannot be looked up");
                false
            }
        }
    }
}

/// Takes the probe if it is due. `None`: the link does not pause any more.
async fn take_probe(ledger: &dyn Ledger, key: &str, now_ms: u64) -> Result<Option<bool>, Trouble> {
    let Some(kept) = ledger.read(key).await? else { return Ok(None) };
    // What is further off was written by a node whose clock is wrong, or this one's is.
    if (1..=PROBE_EVERY_MS).contains(&ledger::probe_ms(&kept).saturating_sub(now_ms)) {
        return Ok(Some(false));
    }
    ledger.swap(key, Some(&kept), Some(&next_probe(now_ms)), KEPT).await.map(Some)
}

fn next_probe(now_ms: u64) -> [u8; 8] {
    now_ms.saturating_add(PROBE_EVERY_MS).to_be_bytes()
}
