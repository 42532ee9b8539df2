//! Standard output and error of a guest: log lines for one that answers events, kept bytes for one that is run.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::outside::{Level, Outside};

/// The longest line that is logged; the rest of a longer one is cut.
pub(super) const LINE_BYTES_MAX: usize = 8 * 1024;

/// The most that is kept of each stream of a run; the rest is cut.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// How many lines of one write are logged, and how many lines and bytes of one stream of a run; the rest is cut, and
/// counted. A write is not interrupted, and the log is the whole node's.
const WRITE_LINES_MAX: u64 = 1_000;
const LINES_MAX: u64 = 10_000;
const LOGGED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What is remembered of the end of a stream, to be shown with a trap.
const TAIL_BYTES: usize = 2 * 1024;

/// How much a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Bounds a text of the guest's that the host keeps, at a character's boundary.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
        text.push_str(" [cut]");
    }
    text
}

/// Where one of the two streams goes. Every clone is the same stream.
#[derive(Clone)]
pub(crate) struct Sink(Arc<Mutex<Stream>>);

struct Stream {
    to: To,
    tail: Vec<u8>,
}

enum To {
    Log(Lines),
    Kept(Vec<u8>),
}

/// Standard output and error that go to the log.
pub(crate) fn logged(outside: &Arc<dyn Outside>) -> (Sink, Sink) {
    let lines = |level, context| Lines::new(outside.clone(), level, context);
    (Sink::new(To::Log(lines(Level::Info, "stdout"))), Sink::new(To::Log(lines(Level::Warn, "stderr"))))
}

/// Standard output and error that are kept.
pub(crate) fn kept() -> (Sink, Sink) {
    (Sink::new(To::Kept(Vec::new())), Sink::new(To::Kept(Vec::new())))
}

impl Sink {
    fn new(to: To) -> Self {
        Self(Arc::new(Mutex::new(Stream { to, tail: Vec::new() })))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Stream) -> R) -> R {
        // A panic of whoever logs leaves at worst half a line behind.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, bytes: &[u8]) {
        self.with(|stream| {
            stream.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
            let old = stream.tail.len().saturating_sub(TAIL_BYTES);
            stream.tail.drain(..old);
            match &mut stream.to {
                To::Log(lines) => lines.take(bytes),
                To::Kept(kept) => {
                    let room = KEPT_BYTES_MAX - kept.len();
                    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
            }
        });
    }

    /// What was kept; empty for a stream that goes to the log.
    pub(crate) fn kept(&self) -> Bytes {
        self.with(|stream| match &stream.to {
            To::Kept(kept) => Bytes::copy_from_slice(kept),
            To::Log(_) => Bytes::new(),
        })
    }

    /// The end of what was written.
    pub(crate) fn tail(&self) -> String {
        self.with(|stream| String::from_utf8_lossy(&stream.tail).trim_end().to_owned())
    }
}

/// Cuts a stream into lines for the log.
struct Lines {
    outside: Arc<dyn Outside>,
    level: Level,
    context: &'static str,
    line: Vec<u8>,
    cut: bool,
    logged_lines: u64,
    logged_bytes: usize,
    left_out: u64,
}

impl Lines {
    const fn new(outside: Arc<dyn Outside>, level: Level, context: &'static str) -> Self {
        Self { outside, level, context, line: Vec::new(), cut: false, logged_lines: 0, logged_bytes: 0, left_out: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        let lines_max = LINES_MAX.min(self.logged_lines + WRITE_LINES_MAX);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            let room = LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            self.cut |= text.len() > room;
            if ends {
                self.log(lines_max);
            }
        }
    }

    /// Logs the line, unless it is empty or one too many.
    fn log(&mut self, lines_max: u64) {
        let line = String::from_utf8_lossy(&self.line);
        let line = line.trim_end_matches('\r');
        if self.logged_lines >= lines_max || self.logged_bytes + line.len() > LOGGED_BYTES_MAX {
            self.left_out += u64::from(!line.is_empty());
        } else if !line.is_empty() {
            let cut = if self.cut { " [cut]" } else { "" };
            self.outside.log(self.level, self.context, &format!("{line}{cut}"));
            self.logged_lines += 1;
            self.logged_bytes += line.len();
        }
        self.line.clear();
        self.cut = false;
    }
}

impl Drop for Lines {
    /// A last line need not end in a newline.
    fn drop(&mut self) {
        self.log(LINES_MAX);
        if self.left_out > 0 {
            let text = format!(
                "{} more lines of {} were left out: a run logs at most {LINES_MAX} lines of it, {LOGGED_BYTES_MAX} bytes \
                 in all, and {WRITE_LINES_MAX} lines of one write",
                self.left_out, self.context
            );
            self.outside.log(Level::Warn, "sandbox", &text);
        }
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::{Answer, Call, CallError};

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    #[async_trait::async_trait]
    impl Outside for Log {
        async fn call(&self, _: &str, _: Call) -> Result<Answer, CallError> {
            unreachable!("nothing is called here")
        }

        fn log(&self, level: Level, context: &str, message: &str) {
            self.0.lock().unwrap().push(format!("{level:?} {context} {message}"));
        }
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        let log = Arc::new(Log::default());
        let (stdout, stderr) = logged(&(log.clone() as Arc<dyn Outside>));
        stdout.take(b"one\r\ntw");
        stderr.take(b"oh\n");
        stdout.take(b"o\n\nlast");
        stderr.take(&[b'x'; LINE_BYTES_MAX + 1]);
        stderr.take(b"\n");
        assert_eq!(stdout.tail(), "one\r\ntwo\n\nlast");
        drop((stdout, stderr));
        let long = format!("Warn stderr {} [cut]", "x".repeat(LINE_BYTES_MAX));
        let lines = ["Info stdout one", "Warn stderr oh", "Info stdout two", &long, "Info stdout last"];
        assert_eq!(*log.0.lock().unwrap(), lines, "an empty line is none");
    }

    #[test]
    fn what_is_logged_is_bounded_and_the_rest_counted() {
        let written = |write: &[u8], times: usize| {
            let log = Arc::new(Log::default());
            let (stdout, stderr) = logged(&(log.clone() as Arc<dyn Outside>));
            (0..times).for_each(|_| stdout.take(write));
            drop((stdout, stderr));
            let lines = log.0.lock().unwrap();
            (lines.len() as u64, lines.last().cloned().unwrap_or_default())
        };
        assert_eq!(written(&[b'\n'; WRITE_BYTES_MAX], 3), (0, String::new()));
        let (lines, last) = written(&b"x\n".repeat(1_500), 2);
        assert_eq!(lines, 2 * WRITE_LINES_MAX + 1);
        assert!(last.starts_with("Warn sandbox 1000 more lines of stdout"), "{last}");
        let (lines, last) = written(b"x\n", 10_007);
        assert_eq!(lines, LINES_MAX + 1);
        assert!(last.starts_with("Warn sandbox 7 more lines"), "{last}");
        let (lines, last) = written(&[&[b'x'; LINE_BYTES_MAX][..], b"\n"].concat(), 1_025);
        assert_eq!(lines, 1_024 + 1, "bytes count as well");
        assert!(last.starts_with("Warn sandbox 1 more lines"), "{last}");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (stdout, _) = kept();
        stdout.take(&vec![1; KEPT_BYTES_MAX - 1]);
        stdout.take(&[2, 3]);
        assert_eq!(stdout.kept().len(), KEPT_BYTES_MAX);
        assert_eq!(stdout.kept().last(), Some(&2));
        assert_eq!(stdout.0.lock().unwrap().tail.len(), TAIL_BYTES);
    }
}
