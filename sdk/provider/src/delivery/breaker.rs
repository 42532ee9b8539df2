//! The breaker: a trigger pauses by itself when most of what it handles fails. Pure: times are given.
//!
//! It goes by how the last first attempts of the lattice ended, as far as this node knows of them. When more than half of
//! [`WINDOW`](super::window::WINDOW) failed, it opens: nothing is dead-lettered any more, and one message a minute is tried.
//! The first of those that goes well closes it, or a person.

use super::window::Window;

/// The time between two probes, in milliseconds.
pub const PROBE_EVERY_MS: u64 = 60_000;

/// The breaker of one trigger. Times are in one kind of milliseconds, whichever that is.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The last first attempts, and those among them that other nodes were not told of.
    last: Window,
    untold: Window,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since_ms: u64,
    /// When the next message may be tried.
    probe_ms: u64,
}

/// What a run did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It opened: so many of the last first attempts failed.
    Opened(usize),
    /// It closed.
    Closed,
}

impl Breaker {
    /// An attempt ended so. What was never run does not come here.
    pub(super) fn ran(&mut self, attempt: u32, failed: bool, now_ms: u64) -> Option<Change> {
        if self.open.is_some() {
            // What was under way when it opened says nothing new; what goes well does.
            if failed {
                return None;
            }
            *self = Self::default();
            return Some(Change::Closed);
        }
        if attempt > 1 {
            return None;
        }
        self.last.push(now_ms, failed);
        self.untold.push(now_ms, failed);
        self.judged(now_ms)
    }

    /// Whether other nodes are to be told of what was not told them: something failed.
    pub(super) fn has_news(&self) -> bool {
        self.open.is_none() && !self.untold.is_empty() && self.last.failures() > 0
    }

    /// Takes what other nodes are to be told.
    pub(super) fn take_untold(&mut self) -> Window {
        std::mem::take(&mut self.untold)
    }

    /// They were not told of it.
    pub(super) fn untell(&mut self, untold: &Window, now_ms: u64) {
        self.untold = self.untold.with(untold, now_ms);
    }

    /// These are the last first attempts of the lattice.
    pub(super) fn told(&mut self, all: Window, now_ms: u64) -> Option<Change> {
        if self.open.is_some() {
            return None;
        }
        self.last = self.untold.with(&all, now_ms);
        self.judged(now_ms)
    }

    fn judged(&mut self, now_ms: u64) -> Option<Change> {
        if !self.last.is_bad() {
            return None;
        }
        self.open = Some(Open { since_ms: now_ms, probe_ms: now_ms + PROBE_EVERY_MS });
        Some(Change::Opened(self.last.failures()))
    }

    /// It is open on another node, or was before this one began. The next probe is due in so long.
    pub(super) fn reopen(&mut self, now_ms: u64, probe_in_ms: u64) {
        self.open.get_or_insert(Open { since_ms: now_ms, probe_ms: now_ms.saturating_add(probe_in_ms) });
    }

    /// Whether it is open: since when.
    pub(super) fn open_since_ms(&self) -> Option<u64> {
        self.open.map(|open| open.since_ms)
    }

    /// How long to wait before the next message may be tried; `None`: as many as one likes. A wait that is over is the
    /// probe's, and the next one begins.
    pub(super) fn wait_ms(&mut self, now_ms: u64) -> Option<u64> {
        let open = self.open.as_mut()?;
        match open.probe_ms.saturating_sub(now_ms) {
            0 => {
                open.probe_ms = now_ms + PROBE_EVERY_MS;
                Some(0)
            }
            left => Some(left),
        }
    }

    /// Closes it because a person says so. Whether it was open.
    pub(super) fn close(&mut self) -> bool {
        std::mem::take(self).open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_when_more_than_half_of_the_last_fifty_failed() {
        let mut breaker = Breaker::default();
        for i in 0..200 {
            assert_eq!(breaker.ran(1, i % 2 == 0, 0), None, "half is not more than half");
        }
        assert_eq!(breaker.ran(2, true, 0), None, "later attempts do not count");
        assert_eq!(breaker.ran(1, true, 7), None, "the oldest of the last fifty was a failure too");
        assert_eq!(breaker.ran(1, true, 7), Some(Change::Opened(26)));
        assert_eq!((breaker.open_since_ms(), breaker.ran(1, true, 8)), (Some(7), None));
    }

    #[test]
    fn what_others_told_counts_like_its_own() {
        let (mut one, mut other) = (Breaker::default(), Breaker::default());
        for breaker in [&mut one, &mut other] {
            assert!(!breaker.has_news());
            (0..20).for_each(|_| assert_eq!(breaker.ran(1, true, 5), None));
            assert!(breaker.has_news());
        }
        let all = one.take_untold().with(&Window::default(), 6);
        assert_eq!((one.told(all.clone(), 6), one.has_news()), (None, false));
        let untold = other.take_untold();
        other.untell(&untold, 7);
        assert!(other.has_news(), "the ledger was away");
        let all = other.take_untold().with(&all, 8);
        assert_eq!(other.told(all.clone(), 8), Some(Change::Opened(40)));
        assert_eq!((other.told(all, 9), other.ran(1, true, 9), other.has_news()), (None, None, false));
        assert_eq!(other.ran(1, false, 10), Some(Change::Closed));
        assert_eq!(other.ran(1, true, 11), None, "it counts anew");
    }

    #[test]
    fn a_new_trigger_needs_twenty_six_failures() {
        let mut breaker = Breaker::default();
        let opened = (0..40).position(|_| breaker.ran(1, true, 0).is_some());
        assert_eq!(opened, Some(25));
    }

    #[test]
    fn one_probe_a_minute_until_one_goes_well() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.wait_ms(0), None);
        (0..26).for_each(|_| _ = breaker.ran(1, true, 1_000));
        assert_eq!(breaker.wait_ms(1_000), Some(60_000));
        assert_eq!(breaker.wait_ms(61_000), Some(0), "the probe");
        assert_eq!(breaker.wait_ms(61_001), Some(59_999), "one");
        assert_eq!(breaker.ran(4, true, 61_500), None);
        assert_eq!(breaker.ran(5, false, 121_000), Some(Change::Closed));
        assert_eq!(breaker.wait_ms(121_000), None);
        assert_eq!(breaker.ran(1, true, 121_000), None, "it counts anew");
        assert!(!breaker.close(), "it was closed");
    }
}
