//! Bodies that stream: [`Body`] is read, [`BodyWriter`] is written.

use std::io::{self, Read, Write};

use crate::bindings::http::streams::{InputStream, OutputStream, StreamError};
use crate::bindings::http::types::{IncomingBody, IncomingRequest, IncomingResponse, OutgoingBody};

/// Most bytes asked of the host at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// A body that is read as it comes, through [`Read`] or whole.
#[derive(Debug)]
pub struct Body {
    // Dropped in this order: each is a part of the next.
    stream: InputStream,
    _body: IncomingBody,
    _head: Head,
}

/// What the body belongs to.
#[derive(Debug)]
#[expect(dead_code, reason = "held, so that the host keeps it as long as its body")]
pub(super) enum Head {
    Request(IncomingRequest),
    Response(IncomingResponse),
}

impl Body {
    pub(super) fn new(body: IncomingBody, head: Head) -> Self {
        let stream = body.stream().expect("the stream of a fresh body is taken once, here");
        Self { stream, _body: body, _head: head }
    }

    /// Reads all of it, if it has at most this many bytes.
    ///
    /// # Errors
    /// It is longer, or it broke off.
    pub fn bytes(self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
        self.take(limit).read_to_end(&mut all)?;
        if all.len() > bytes_max {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("the body has more than {bytes_max} bytes"),
            ));
        }
        Ok(all)
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(PIECE_BYTES);
        if want == 0 {
            return Ok(0);
        }
        loop {
            match self.stream.blocking_read(want as u64) {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => {
                    buffer[..piece.len()].copy_from_slice(&piece);
                    return Ok(piece.len());
                }
                Err(StreamError::Closed) => return Ok(0),
                Err(StreamError::LastOperationFailed(why)) => return Err(io::Error::other(why.to_debug_string())),
            }
        }
    }
}

/// A body that is written piece by piece, through [`Write`]. A write waits while the receiver is slower.
#[derive(Debug)]
pub struct BodyWriter {
    // Dropped in this order: the stream is a part of the body.
    stream: OutputStream,
    body: OutgoingBody,
}

impl BodyWriter {
    pub(super) fn new(body: OutgoingBody) -> Self {
        let stream = body.write().expect("the stream of a fresh body is taken once, here");
        Self { stream, body }
    }

    /// Ends the body well. A body that is dropped without this breaks off at the receiver.
    pub(super) fn finish(self) -> Result<(), String> {
        let Self { stream, body } = self;
        drop(stream);
        OutgoingBody::finish(body, None).map_err(|why| format!("{why:?}"))
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            let room = usize::try_from(self.stream.check_write().map_err(broken)?).unwrap_or(usize::MAX);
            if room > 0 {
                let piece = &bytes[..bytes.len().min(room)];
                self.stream.write(piece).map_err(broken)?;
                return Ok(piece.len());
            }
            self.stream.subscribe().block();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.blocking_flush().map_err(broken)
    }
}

fn broken(why: StreamError) -> io::Error {
    match why {
        StreamError::Closed => io::Error::new(io::ErrorKind::BrokenPipe, "the receiver has closed the body"),
        StreamError::LastOperationFailed(why) => io::Error::other(why.to_debug_string()),
    }
}
