//! A message that is given up is a dead letter first and taken off then, where the broker cannot do both at once. A node that
//! dies in between leaves both, and the message comes again.
//!
//! So the ledger says of a message that it is about to be a dead letter, until it is off. One that comes again and is named there
//! is looked for among the dead letters: where its letter is, it is taken off unseen, and else it is run once more.

use futures::FutureExt as _;

use super::engine::Engine;
use super::held::Taken;
use super::ledger::{self, BURYING_KEPT, Buries};
use super::letter::DeadLetter;
use super::queue::{Ledger, Place, Queue, Trouble};
use crate::now_ms;

/// Dead letters that are looked at at one time.
const LETTERS_MAX: usize = 100;

/// Notes that a message of this id is about to be a dead letter.
pub(crate) async fn note(ledger: &dyn Ledger, id: &str, place: &Place) -> Result<(), Trouble> {
    let key = ledger::buries_key(id);
    let held = ledger.read(&key).await?;
    // That of a twin may be there already. Else any letter is its own, and the broker's clock, which may tell when it came, is not
    // compared with this one.
    let since_ms = if place.has_twins { now_ms() } else { 0 };
    let buries = Buries { since_ms, message: place.key.as_str().into() };
    match ledger.swap(&key, held.as_deref(), Some(&buries.write()), BURYING_KEPT).await? {
        true => Ok(()),
        false => Err("another delivery of the message is at it".into()),
    }
}

impl<Q: Queue> Engine<Q> {
    /// The ledger, where it has to say what is about to be a dead letter.
    fn buries_by(&self) -> Option<&dyn Ledger> {
        self.queue.ledger().filter(|_| self.queue.buries_in_two_steps())
    }

    pub(super) async fn note_burying(&self, taken: &Taken<Q::Claim>) -> Result<(), Trouble> {
        let Some(ledger) = self.buries_by() else { return Ok(()) };
        note(ledger, &taken.message.id, &taken.place).await
    }

    /// It is off, or another delivery's.
    pub(super) async fn forget_burying(&self, taken: &Taken<Q::Claim>) {
        let Some(ledger) = self.buries_by() else { return };
        if let Err(why) = ledger.remove(&ledger::buries_key(&taken.message.id)).await {
            tracing::debug!(link = %self.link, why, "it stays in the ledger that a message was to be a dead letter");
        }
    }

    /// Somebody decided on a dead letter, which is gone: its message may not be off yet.
    pub(super) async fn is_decided(&self, letter: &DeadLetter) -> Result<(), Trouble> {
        let Some(ledger) = self.buries_by() else { return Ok(()) };
        let key = ledger::buries_key(&letter.message.id);
        let Some(held) = ledger.read(&key).await? else { return Ok(()) };
        let buries = Buries::read(&held);
        if letter.at_ms < buries.since_ms {
            return Ok(());
        }
        let decided = Buries { since_ms: Buries::DECIDED, ..buries };
        // Where it is another's meanwhile, it is off.
        ledger.swap(&key, Some(&held), Some(&decided.write()), BURYING_KEPT).await.map(drop)
    }

    /// Whether a message that comes again is a dead letter. Where nobody can say, it is run: no message is lost by that.
    pub(super) async fn was_buried(&self, taken: &Taken<Q::Claim>) -> bool {
        if !taken.place.again {
            return false;
        }
        let is_letter = || self.is_letter(taken).boxed();
        self.persist("whether a message is a dead letter cannot be known", is_letter).await.unwrap_or_default()
    }

    async fn is_letter(&self, taken: &Taken<Q::Claim>) -> Result<bool, Trouble> {
        let (Some(ledger), place) = (self.buries_by(), &taken.place) else { return Ok(false) };
        let noted = ledger.read(&ledger::buries_key(&taken.message.id)).await?;
        let Some(buries) = noted.map(|noted| Buries::read(&noted)) else { return Ok(false) };
        if buries.message != place.key.as_bytes() || buries.since_ms == Buries::DECIDED {
            return Ok(buries.message == place.key.as_bytes());
        }
        let found = self.find_letter(|letter| {
            let is_its = letter.message.id == taken.message.id
                && letter.message.body == taken.message.body
                && letter.at_ms >= buries.since_ms;
            is_its.then_some(())
        });
        Ok(found.await?.is_some())
    }

    /// What is looked for of the first dead letter that has it.
    pub(super) async fn find_letter<T>(
        &self,
        look_for: impl Fn(&DeadLetter) -> Option<T> + Send + Sync,
    ) -> Result<Option<T>, Trouble> {
        let mut after = None;
        loop {
            let letters = self.queue.letters(after.as_deref(), LETTERS_MAX).await?;
            if let Some(found) = letters.iter().find_map(&look_for) {
                return Ok(Some(found));
            }
            after = letters.last().map(|letter| letter.id.clone());
            if letters.len() < LETTERS_MAX {
                return Ok(None);
            }
        }
    }
}
