//! Ticks that were given up: the dead letters of one timer, as one entry of the ledger. Pure.

use serde::{Deserialize, Serialize};
use trellis_provider::delivery::DeadLetter;

/// Dead letters of one timer; at the bound the oldest goes.
pub(crate) const LETTERS_MAX: usize = 50;
/// What they may hold together, in bytes.
const LETTERS_BYTES_MAX: usize = 512 * 1_024;

/// The dead letters of one timer, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Letters(Vec<DeadLetter>);

impl Letters {
    /// Keeps a letter; one of the same id is replaced, so that the same again changes nothing. How many were forgotten.
    pub(crate) fn keep(&mut self, letter: DeadLetter) -> usize {
        self.0.retain(|other| other.id != letter.id);
        self.0.push(letter);
        let before = self.0.len();
        while self.0.len() > 1 && (self.0.len() > LETTERS_MAX || self.bytes() > LETTERS_BYTES_MAX) {
            self.0.remove(0);
        }
        before - self.0.len()
    }

    /// Takes a letter out.
    pub(crate) fn take(&mut self, id: &str) -> Option<DeadLetter> {
        let index = self.0.iter().position(|letter| letter.id == id)?;
        Some(self.0.remove(index))
    }

    /// A letter.
    pub(crate) fn get(&self, id: &str) -> Option<&DeadLetter> {
        self.0.iter().find(|letter| letter.id == id)
    }

    /// Up to `max` letters after the one of this id, or from the oldest on. They are given up in the order of their ids.
    pub(crate) fn after(&self, id: Option<&str>, max: usize) -> Vec<DeadLetter> {
        let from = id.and_then(|id| self.0.iter().position(|letter| letter.id == id)).map_or(0, |index| index + 1);
        self.0.iter().skip(from).take(max).cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        let of = |letter: &DeadLetter| letter.faults.iter().map(String::len).sum::<usize>() + letter.message.body.len();
        self.0.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(n: usize, fault_bytes: usize) -> DeadLetter {
        DeadLetter {
            id: n.to_string(),
            queue: "timer".into(),
            component: "shop/worker".into(),
            message: Default::default(),
            attempts: 1,
            faults: vec!["x".repeat(fault_bytes)],
            kills: 0,
            reason: "max-faults".into(),
            detail: String::new(),
            at_ms: 0,
            ran: Default::default(),
        }
    }

    #[test]
    fn letters_are_kept_once_listed_in_order_and_bounded() {
        let mut letters = Letters::default();
        for n in [1, 2, 2, 3] {
            assert_eq!(letters.keep(letter(n, 1)), 0);
        }
        let ids = |letters: &[DeadLetter]| letters.iter().map(|letter| letter.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&letters.after(None, 2)), ["1", "2"]);
        assert_eq!(ids(&letters.after(Some("2"), 9)), ["3"]);
        assert_eq!((letters.take("2").is_some(), letters.take("2")), (true, None));
        for n in 4..LETTERS_MAX + 2 {
            letters.keep(letter(n, 1));
        }
        assert_eq!((letters.len(), letters.keep(letter(100, 1))), (LETTERS_MAX, 1));
        assert!(letters.get("1").is_none());
        letters.keep(letter(101, LETTERS_BYTES_MAX));
        assert_eq!(letters.len(), 1, "the newest stays, whatever it holds");
    }
}
