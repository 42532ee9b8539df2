//! A window over the numbers of words: each is taken once, in nearly any order.

/// How far back words may come late, in words.
const WORDS_MAX: u64 = 4096;

/// Which of the newest numbers were seen.
#[derive(Debug)]
pub(crate) struct Window {
    highest: u64,
    /// One bit for each of the newest numbers, by number modulo [`WORDS_MAX`].
    seen: Box<[u64; WORDS_MAX as usize / 64]>,
}

impl Default for Window {
    fn default() -> Self {
        Self { highest: 0, seen: Box::new([0; WORDS_MAX as usize / 64]) }
    }
}

impl Window {
    /// Whether this number comes for the first time, which it never does again. Numbers begin at 1.
    pub(crate) fn take(&mut self, number: u64) -> bool {
        if number == 0 || self.highest.saturating_sub(number) >= WORDS_MAX {
            return false;
        }
        if number > self.highest {
            // What the window moves over begins anew.
            for skipped in (self.highest + 1).max(number.saturating_sub(WORDS_MAX - 1))..=number {
                let (word, bit) = Self::place(skipped);
                self.seen[word] &= !bit;
            }
            self.highest = number;
        }
        let (word, bit) = Self::place(number);
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    fn place(number: u64) -> (usize, u64) {
        let at = number % WORDS_MAX;
        (usize::try_from(at / 64).unwrap_or(0), 1 << (at % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_is_taken_once_and_late_ones_within_bounds() {
        let mut window = Window::default();
        assert!(!window.take(0));
        for number in [1, 3, 2, 5000, 4999, 905] {
            assert!(window.take(number), "{number}");
            assert!(!window.take(number), "{number} again");
        }
        assert!(!window.take(4), "it is too late by now");
        assert!(window.take(u64::MAX) && !window.take(u64::MAX) && !window.take(5001));
    }

    proptest! {
        /// The window says what a list of everything that was ever taken would say, as far as it looks back.
        #[test]
        fn it_never_takes_a_number_twice(numbers in prop::collection::vec(1_u64..12_000, 1..400)) {
            let (mut window, mut taken, mut highest) = (Window::default(), BTreeSet::new(), 0_u64);
            for number in numbers {
                let fresh = highest.saturating_sub(number) < WORDS_MAX && !taken.contains(&number);
                prop_assert_eq!(window.take(number), fresh, "{}", number);
                taken.insert(number);
                highest = highest.max(number);
            }
        }
    }
}
