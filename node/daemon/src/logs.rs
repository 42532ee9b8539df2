//! What guests say: the last lines in memory, and the new ones to whoever follows.

use tokio::sync::broadcast;

use crate::api::types::LogLine;
use crate::tail::Tail;

/// Lines kept in memory.
const KEPT_LINES_MAX: usize = 10_000;
/// The longest line kept, in bytes; the rest is cut.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// The guest logs of this node.
pub(crate) struct Logs(Tail<LogLine>);

impl Logs {
    pub(crate) fn new() -> Self {
        Self(Tail::new(KEPT_LINES_MAX))
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
        self.0.push(line);
    }

    /// The last `lines` lines that `wanted` takes, and a receiver of all that come after them.
    pub(crate) fn follow(
        &self,
        lines: usize,
        wanted: impl Fn(&LogLine) -> bool,
    ) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        self.0.follow(lines, wanted)
    }
}
