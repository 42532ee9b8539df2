//! A tail: the last of many lines in memory, and the new ones to whoever follows.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::broadcast;

/// How many new lines a follower may be behind before it is told that some were left out.
const BEHIND_MAX: usize = 4_096;

/// The last lines of something.
pub(crate) struct Tail<T> {
    kept_max: usize,
    kept: Mutex<VecDeque<T>>,
    followers: broadcast::Sender<T>,
}

impl<T: Clone> Tail<T> {
    /// Keeps at most so many.
    pub(crate) fn new(kept_max: usize) -> Self {
        Self { kept_max, kept: Mutex::default(), followers: broadcast::channel(BEHIND_MAX).0 }
    }

    /// Takes one line.
    pub(crate) fn push(&self, line: T) {
        let mut kept = self.lock();
        if kept.len() == self.kept_max {
            kept.pop_front();
        }
        kept.push_back(line.clone());
        // Sent under the lock, so that `follow` sees each line either among the kept ones or as a new one. No
        // follower at all is the usual case and no error.
        let _ = self.followers.send(line);
    }

    /// The last `lines` lines that `wanted` takes, and a receiver of all that come after them.
    pub(crate) fn follow(&self, lines: usize, wanted: impl Fn(&T) -> bool) -> (Vec<T>, broadcast::Receiver<T>) {
        let kept = self.lock();
        let mut last: Vec<_> = kept.iter().rev().filter(|line| wanted(line)).take(lines).cloned().collect();
        last.reverse();
        (last, self.followers.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.kept.lock().expect("no code panics while it holds this lock")
    }
}
