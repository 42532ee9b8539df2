//! What guests say: the last lines in memory, and the new ones to whoever follows.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::broadcast;

use crate::api::types::LogLine;

/// Lines kept in memory.
const KEPT_LINES_MAX: usize = 10_000;
/// The longest line kept, in bytes; the rest is cut.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines that a follower may be behind before it is told that some were left out.
const BEHIND_LINES_MAX: usize = 4_096;

/// The guest logs of this node.
pub(crate) struct Logs {
    kept: Mutex<VecDeque<LogLine>>,
    followers: broadcast::Sender<LogLine>,
}

impl Logs {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), followers: broadcast::channel(BEHIND_LINES_MAX).0 }
    }

    /// Takes one line.
    pub(crate) fn push(&self, mut line: LogLine) {
        if line.message.len() > LINE_BYTES_MAX {
            let end = line.message.floor_char_boundary(LINE_BYTES_MAX);
            line.message.truncate(end);
            line.message.push_str(" [cut]");
        }
        tracing::debug!(target: "trellis::guest", component = %format_args!("{}/{}", line.app, line.component),
            event = %line.event, level = %line.level, "{}", line.message);
        let mut kept = self.lock();
        if kept.len() == KEPT_LINES_MAX {
            kept.pop_front();
        }
        kept.push_back(line.clone());
        // Sent under the lock, so that `follow` sees each line either among the kept ones or as a new one. No
        // follower at all is the usual case and no error.
        let _ = self.followers.send(line);
    }

    /// The last `lines` lines that `wanted` takes, and a receiver of all that come after them.
    pub(crate) fn follow(
        &self,
        lines: usize,
        wanted: impl Fn(&LogLine) -> bool,
    ) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        let kept = self.lock();
        let mut last: Vec<_> = kept.iter().rev().filter(|line| wanted(line)).take(lines).cloned().collect();
        last.reverse();
        (last, self.followers.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<LogLine>> {
        self.kept.lock().expect("no code panics while it holds this lock")
    }
}
