//! The last first attempts at messages of a link: how each ended, and when. Pure: times are given.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// First attempts that are looked at.
pub(super) const WINDOW: usize = 50;

/// Up to [`WINDOW`] first attempts, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window(VecDeque<First>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct First {
    at_ms: u64,
    failed: bool,
}

impl Window {
    /// What was written; nothing, where that cannot be read.
    pub(super) fn read(written: &[u8]) -> Self {
        postcard::from_bytes(written).unwrap_or_default()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data can be written")
    }

    pub(super) fn push(&mut self, at_ms: u64, failed: bool) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(First { at_ms, failed });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn failures(&self) -> usize {
        self.0.iter().filter(|first| first.failed).count()
    }

    /// Whether more than half of as many as it holds failed: fewer than that are too few to judge by.
    pub(super) fn is_bad(&self) -> bool {
        self.failures() > WINDOW / 2
    }

    /// The last of both. What another's clock says is still to come is now.
    pub(super) fn with(&self, others: &Self, now_ms: u64) -> Self {
        let all = self.0.iter().chain(&others.0);
        let mut all: Vec<_> = all.map(|first| First { at_ms: first.at_ms.min(now_ms), ..*first }).collect();
        all.sort();
        Self(all.split_off(all.len().saturating_sub(WINDOW)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(firsts: impl IntoIterator<Item = (u64, bool)>) -> Window {
        let mut window = Window::default();
        firsts.into_iter().for_each(|(at_ms, failed)| window.push(at_ms, failed));
        window
    }

    #[test]
    fn the_last_of_several_nodes_are_those_of_the_lattice() {
        let well = window((0..50).map(|at_ms| (at_ms, false)));
        let (one, other) = (window((60..80).map(|at_ms| (at_ms, true))), window((60..80).map(|at_ms| (at_ms, true))));
        assert!(!one.is_bad() && !well.with(&one, 100).is_bad(), "twenty of fifty");
        let all = well.with(&one, 100).with(&other, 100);
        assert!(all.is_bad() && all.failures() == 40, "forty of fifty");
        assert_eq!(all.with(&window((0..40).map(|at_ms| (at_ms, false))), 100), all, "what is older changes nothing");
        assert_eq!(Window::read(&all.write()), all);
        assert_eq!(Window::read(b"\xff"), Window::default());
    }

    #[test]
    fn a_clock_that_is_ahead_keeps_no_others_from_being_the_last() {
        let ahead = window((0..50).map(|_| (u64::MAX, false)));
        let seen = Window::default().with(&ahead, 100);
        assert!(seen.with(&window((101..131).map(|at_ms| (at_ms, true))), 200).is_bad());
    }
}
