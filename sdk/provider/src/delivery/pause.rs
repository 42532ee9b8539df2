//! A link that pauses by itself pauses on every node, and on those that begin later: the ledger says so, and whose turn the
//! next probe is. So do the attempts that it pauses for: from when one failed on, each node adds its own to the ledger, so that
//! many that have little to do see together what none would see alone. Where nothing fails, nothing is written. Without a
//! ledger each node pauses for itself.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Change, PROBE_EVERY_MS};
use super::engine::Engine;
use super::ledger::{self, KEPT};
use super::progress::lock;
use super::queue::{Ledger, Queue, Trouble};
use super::window::Window;

/// How often other nodes are told of what failed, unless something is to be given up, and of what went well after that.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(200);
pub(super) const TELL_WELL_EVERY: Duration = Duration::from_secs(5);
/// How often that is tried where others do the same at the same time.
const TELL_TRIES: u32 = 5;
/// How long the last attempts count, after the last of them.
const WINDOW_KEPT: Duration = Duration::from_secs(60 * 60);

impl<Q: Queue> Engine<Q> {
    /// Pauses if the link does elsewhere, or did before this began.
    pub(super) async fn join_pause(&self) {
        let Some(ledger) = self.queue.ledger() else { return };
        match ledger.read(&ledger::paused_key(&self.link)).await {
            Ok(Some(kept)) => {
                let left_ms = ledger::ms(&kept).saturating_sub(self.progress.wall_ms()).min(PROBE_EVERY_MS);
                lock(&self.progress.breaker).reopen(self.progress.wall_ms(), left_ms);
                self.pause_is_kept.store(true, Ordering::Relaxed);
            }
            Ok(None) => {}
            Err(why) => tracing::debug!(link = %self.link, why, "whether the trigger pauses elsewhere is not known"),
        }
    }

    /// Tells other nodes how first attempts ended here, and learns how they did there, unless it did that `every` so long.
    pub(super) async fn compare(&self, every: Duration) {
        let Some(ledger) = self.queue.ledger().filter(|_| !self.queue.is_of_one_node()) else { return };
        let change = {
            // Who has nothing to give up does not wait for another who is at it.
            let told_at = match every.is_zero() {
                true => Some(self.told_at.lock().await),
                false => self.told_at.try_lock().ok(),
            };
            let Some(mut told_at) = told_at.filter(|told_at| told_at.elapsed() >= every) else { return };
            if !lock(&self.progress.breaker).has_news() {
                return;
            }
            let untold = lock(&self.progress.breaker).take_untold();
            let told = self.tell(ledger, &untold).await;
            *told_at = Instant::now();
            let (mut breaker, now_ms) = (lock(&self.progress.breaker), self.progress.wall_ms());
            match told {
                Ok(all) => breaker.told(all, now_ms),
                Err(why) => {
                    tracing::debug!(link = %self.link, why, "how first attempts ended is known to this node alone");
                    breaker.untell(&untold, now_ms);
                    None
                }
            }
        };
        if let Some(change) = change {
            self.changed(change).await;
        }
    }

    /// Adds to what is kept, and returns all of it.
    async fn tell(&self, ledger: &dyn Ledger, untold: &Window) -> Result<Window, Trouble> {
        let key = ledger::window_key(&self.link);
        for _ in 0..TELL_TRIES {
            let kept = ledger.read(&key).await?;
            let all = untold.with(&Window::read(kept.as_deref().unwrap_or_default()), self.progress.wall_ms());
            if ledger.swap(&key, kept.as_deref(), Some(&all.write()), WINDOW_KEPT).await? {
                return Ok(all);
            }
        }
        Err("others are at it".into())
    }

    /// Carries out what a run did to the breaker.
    pub(super) async fn changed(&self, change: Change) {
        match change {
            Change::Opened(failures) => {
                tracing::warn!(
                    link = %self.link, failures,
                    "the trigger pauses by itself: most of the last messages failed on their first attempt; none is given \
                     up, and one is tried each minute"
                );
                self.keep_pause().await;
            }
            Change::Closed => {
                tracing::info!(link = %self.link, "the trigger goes on: a message was handled well");
                self.forget_pause().await;
            }
        }
    }

    /// The link pauses from now on.
    async fn keep_pause(&self) {
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
        // The attempts that it paused for first: it must not pause for them again.
        let forgotten = async {
            let attempts = ledger.remove(&ledger::window_key(&self.link)).await?;
            Ok::<_, Trouble>(ledger.remove(&ledger::paused_key(&self.link)).await? && attempts)
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
    if (1..=PROBE_EVERY_MS).contains(&ledger::ms(&kept).saturating_sub(now_ms)) {
        return Ok(Some(false));
    }
    ledger.swap(key, Some(&kept), Some(&next_probe(now_ms)), KEPT).await.map(Some)
}

fn next_probe(now_ms: u64) -> [u8; 8] {
    now_ms.saturating_add(PROBE_EVERY_MS).to_be_bytes()
}
