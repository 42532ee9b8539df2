//! A link that pauses by itself pauses on every node, and on those that begin later: the ledger says so, and whose turn the
//! next probe is. So do the attempts that it pauses for: from when one failed on, each node adds its own to the ledger, so that
//! many that have little to do see together what none would see alone. Where nothing fails, nothing is written. A pause has a
//! number, so that who ends one that is over by then does not end the next. Without a ledger each node pauses for itself.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{Change, PROBE_EVERY_MS};
use super::engine::Engine;
use super::ledger::{self, KEPT, Pause};
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
                let (pause, now_ms) = (Pause::read(&kept), self.progress.wall_ms());
                let left_ms = pause.probe_ms.saturating_sub(now_ms).min(PROBE_EVERY_MS);
                lock(&self.progress.breaker).reopen(now_ms, left_ms);
                *lock(&self.kept_pause) = Some(pause.number);
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
        let pause = Pause { probe_ms: next_probe(self.progress.wall_ms()), number: rand::random() };
        match ledger.swap(&ledger::paused_key(&self.link), None, Some(&pause.write()), KEPT).await {
            Ok(true) => *lock(&self.kept_pause) = Some(pause.number),
            // Another paused first.
            Ok(false) => self.join_pause().await,
            Err(why) => {
                tracing::warn!(link = %self.link, why, "that the trigger pauses by itself is known to this node alone")
            }
        }
    }

    /// The link does not pause any more: a probe went well, or a person said so. Whether the ledger was known to keep the
    /// pause. Another one that began since is joined.
    pub(super) async fn forget_pause(&self) -> bool {
        let (Some(number), Some(ledger)) = (*lock(&self.kept_pause), self.queue.ledger()) else { return false };
        match self.forget(ledger, number).await {
            Ok(true) => {
                self.is_over(number);
                self.join_pause().await;
            }
            // It is looked at again before the next message.
            Ok(false) => {}
            Err(why) => tracing::debug!(link = %self.link, why, "other nodes do not know yet that the trigger goes on"),
        }
        true
    }

    /// Has the ledger keep this pause no more. Whether it does not.
    async fn forget(&self, ledger: &dyn Ledger, number: u64) -> Result<bool, Trouble> {
        let key = ledger::paused_key(&self.link);
        let Some(kept) = ledger.read(&key).await? else { return Ok(true) };
        if Pause::read(&kept).number != number {
            return Ok(true);
        }
        // The attempts that it paused for first: it must not pause for them again.
        let attempts = ledger.remove(&ledger::window_key(&self.link)).await?;
        Ok(attempts && ledger.swap(&key, Some(&kept), None, KEPT).await?)
    }

    /// The ledger does not keep this pause any more.
    fn is_over(&self, number: u64) {
        lock(&self.kept_pause).take_if(|known| *known == number);
    }

    /// Whether this node makes the probe that is due. Where the pause is over elsewhere, it is over here too.
    pub(super) async fn may_probe(&self) -> bool {
        let (Some(number), Some(ledger)) = (*lock(&self.kept_pause), self.queue.ledger()) else { return true };
        match take_probe(ledger, &ledger::paused_key(&self.link), number, self.progress.wall_ms()).await {
            Ok(Some(is_ours)) => is_ours,
            Ok(None) => {
                self.is_over(number);
                lock(&self.progress.breaker).close();
                self.join_pause().await;
                false
            }
            Err(why) => {
                tracing::debug!(link = %self.link, why, "whose turn the next probe is cannot be looked up");
                false
            }
        }
    }
}

/// Takes the probe of this pause if it is due. `None`: it is over, and another may have begun.
async fn take_probe(ledger: &dyn Ledger, key: &str, number: u64, now_ms: u64) -> Result<Option<bool>, Trouble> {
    let Some(kept) = ledger.read(key).await? else { return Ok(None) };
    let pause = Pause::read(&kept);
    if pause.number != number {
        return Ok(None);
    }
    // What is further off was written by a node whose clock is wrong, or this one's is.
    if (1..=PROBE_EVERY_MS).contains(&pause.probe_ms.saturating_sub(now_ms)) {
        return Ok(Some(false));
    }
    let next = Pause { probe_ms: next_probe(now_ms), number };
    ledger.swap(key, Some(&kept), Some(&next.write()), KEPT).await.map(Some)
}

const fn next_probe(now_ms: u64) -> u64 {
    now_ms.saturating_add(PROBE_EVERY_MS)
}
