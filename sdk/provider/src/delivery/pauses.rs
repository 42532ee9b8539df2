//! The pauses between two tries at what fails.

use std::time::Duration;

/// The first pause, and the longest: where the broker says when a connection stands again, and where it has to be tried.
const FIRST: Duration = Duration::from_millis(100);
const LAST_TOLD: Duration = Duration::from_secs(30);
const LAST_TRIED: Duration = Duration::from_secs(5);

/// Pauses that grow, each shortened by up to a quarter: what failed at one time is not tried at one time again.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    last: Duration,
}

impl Pauses {
    /// The first is next. `is_told`: the broker says when to try again.
    pub(super) const fn new(is_told: bool) -> Self {
        Self { next: FIRST, last: if is_told { LAST_TOLD } else { LAST_TRIED } }
    }

    /// How long the next one is. `jitter01` is a draw from 0 to 1.
    pub(super) fn next(&mut self, jitter01: f64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.last);
        pause.mul_f64(1.0 - jitter01 / 4.0)
    }

    /// The next is no longer than where it has to be tried.
    pub(super) fn shorten(&mut self) {
        self.next = self.next.min(LAST_TRIED);
    }

    /// It went well, or may: the next is the first again.
    pub(super) const fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_to_what_the_broker_allows_and_begin_anew() {
        for (is_told, last) in [(true, LAST_TOLD), (false, LAST_TRIED)] {
            let mut pauses = Pauses::new(is_told);
            assert_eq!([pauses.next(0.0), pauses.next(0.0), pauses.next(1.0)], [FIRST, FIRST * 2, FIRST * 3]);
            (0..10).for_each(|_| _ = pauses.next(0.5));
            assert_eq!(pauses.next(0.0), last);
            pauses.shorten();
            assert_eq!(pauses.next(0.0), LAST_TRIED);
            pauses.reset();
            assert_eq!(pauses.next(0.0), FIRST);
        }
    }
}
