//! A trigger as the node and people see it: the engine of one link, whatever its broker.

use async_trait::async_trait;
use futures::FutureExt as _;

use super::engine::Engine;
use super::ledger;
use super::letter::{DeadLetter, Fate};
use super::ordered::OPENED;
use super::progress::Progress;
use super::queue::{Queue, Standing, Trouble};

/// The engine of one link.
#[async_trait]
pub trait Trigger: Send + Sync {
    /// How it goes.
    fn progress(&self) -> &Progress;

    /// Messages that this node holds.
    fn held(&self) -> usize;

    /// How the queue stands.
    ///
    /// # Errors
    /// The broker is not there.
    async fn standing(&self) -> Result<Standing, Trouble>;

    /// Up to `max` dead letters of the component after the one of this id, or from the oldest on.
    ///
    /// # Errors
    /// They cannot be read.
    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble>;

    /// Replays or drops a dead letter, and returns it; `None`: there is none of that id. A parked key is open again once the last
    /// of its dead letters is dropped, or replayed well.
    ///
    /// # Errors
    /// It is not done wholly; the same again makes it whole.
    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble>;
}

#[async_trait]
impl<Q: Queue> Trigger for Engine<Q> {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn held(&self) -> usize {
        self.held.len()
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        self.queue.standing().await
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        self.queue.letters(after, max).await
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let noted = if fate == Fate::Replay { self.note_replay(id).await? } else { None };
        let decided = self.queue.decide(id, fate).await?;
        // Another decided first, and what it replayed may have ended.
        if let (None, Some(noted)) = (&decided, noted) {
            self.forget_replay(&noted).await;
        }
        if let Some(letter) = &decided {
            let what = "that a dead letter was decided on cannot be kept";
            self.persist(what, || self.is_decided(letter).boxed()).await;
        }
        let Some((letter, order)) = decided.as_ref().zip(self.policy.order_by.as_ref()) else { return Ok(decided) };
        let key = ledger::order_key(order, &letter.message);
        match fate {
            Fate::Replay => self.is_parked(&key).await,
            Fate::Drop => {
                self.forget_replay(&ledger::replays_key(&key, id)).await;
                // The letter is gone: a second time would find none.
                let opened = self.persist(OPENED, || self.open_unless_held(&key).boxed()).await;
                opened.ok_or_else(|| format!("it is dropped, but its key `{key}` stays parked: {OPENED}"))?;
            }
        }
        Ok(decided)
    }
}
