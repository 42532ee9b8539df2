//! The pauses between two tries at what fails.

use std::time::Duration;

/// The first pause, and the longest: where it has to be tried, and where the broker says when a connection stands again.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(5);
const PAUSE_TOLD_MAX: Duration = Duration::from_secs(30);

/// Pauses that grow, each shortened by up to a quarter: what failed at one time is not tried at one time again.
#[derive(Debug)]
pub(super) struct Pauses {
    next: Duration,
    last: Duration,
}

impl Pauses {
    /// The first is next. `is_told`: the broker says when to try again.
    pub(super) const fn new(is_told: bool) -> Self {
        Self { next: PAUSE_MIN, last: if is_told { PAUSE_TOLD_MAX } else { PAUSE_MAX } }
    }

    /// How long the next one is. `jitter01` is a draw from 0 to 1.
    pub(super) fn next(&mut self, jitter01: f64) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.last);
        pause.mul_f64(1.0 - jitter01 / 4.0)
    }

    /// The next is no longer than where it has to be tried.
    pub(super) fn shorten(&mut self) {
        self.next = self.next.min(PAUSE_MAX);
    }

    /// It went well, or may: the next is the first again.
    pub(super) const fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_grow_to_what_the_broker_allows_and_begin_anew() {
        for (is_told, last) in [(true, PAUSE_TOLD_MAX), (false, PAUSE_MAX)] {
            let mut pauses = Pauses::new(is_told);
            assert_eq!(
                [pauses.next(0.0), pauses.next(0.0), pauses.next(1.0)],
                [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 3]
            );
            (0..10).for_each(|_| _ = pauses.next(0.5));
            assert_eq!(pauses.next(0.0), last);
            pauses.shorten();
            assert_eq!(pauses.next(0.0), PAUSE_MAX);
            pauses.reset();
            assert_eq!(pauses.next(0.0), PAUSE_MIN);
        }
    }
}
