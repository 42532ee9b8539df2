//! What a connection is doing, and whether it takes too long over it.
//!
//! A reply's pace cannot be watched from inside its body: a client that stops reading stops hyper from polling it. So
//! each connection keeps the replies it has under way in its [`Pulse`], and looks at them when they fall due
//! ([`Pulse::check`]). A reply that is too slow loses its body, which ends the sandbox behind it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::task::AtomicWaker;
use http::Version;
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use trellis_wire::{Body, BodyError};

use crate::limits::{Limits, Pace};

/// The largest piece that hyper gets at once: what it has got counts as out, so it must not get much at a time.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// What a connection should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on, and check again then.
    Fine(Instant),
    /// Nothing has been asked of it for too long: close it in good order.
    Idle,
    /// It is stuck or too slow: drop it.
    Stuck,
}

/// One connection's requests under way, and since when it has none.
#[derive(Debug)]
pub(crate) struct Pulse {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    under_way: Vec<Arc<Flow>>,
    quiet_since: Instant,
    /// When the first byte came of a head that is not complete. Set from the start: a new connection must say
    /// something.
    head_since: Option<Instant>,
    /// HTTP/2 sends bytes that belong to no request, so there a head in part is not told from them.
    multiplexed: bool,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Self> {
        let now = Instant::now();
        let state = State { under_way: Vec::new(), quiet_since: now, head_since: Some(now), multiplexed: false };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A request's head is here. It is under way until what this returns is dropped, with the body it was given.
    pub(crate) fn begin(self: &Arc<Self>, version: Version, pace: Option<Pace>, token: TaskTrackerToken) -> UnderWay {
        let flow = Arc::new(Flow { pace, reply: Mutex::new(ReplyBody::default()), wake: AtomicWaker::new() });
        let mut state = self.lock();
        state.head_since = None;
        state.multiplexed = version == Version::HTTP_2;
        state.under_way.push(flow.clone());
        UnderWay { pulse: self.clone(), flow, _token: token }
    }

    /// Judges the connection, and takes the bodies of replies that are too slow.
    pub(crate) fn check(&self, limits: &Limits) -> Verdict {
        let now = Instant::now();
        let state = self.lock();
        if state.under_way.is_empty() {
            return state.check_quiet(now, limits);
        }
        let mut next = now + limits.pace.grace;
        let mut stuck = true;
        for flow in &state.under_way {
            match flow.check(now) {
                Standing::Cut => {}
                // Over HTTP/2 a reply that was just cut may end by itself, and spare its connection.
                Standing::CutNow => stuck &= !state.multiplexed,
                Standing::Flows { due } => {
                    stuck = false;
                    next = due.map_or(next, |due| next.min(due));
                }
            }
        }
        if stuck { Verdict::Stuck } else { Verdict::Fine(next) }
    }

    fn heard(&self) {
        let mut state = self.lock();
        if state.under_way.is_empty() && !state.multiplexed && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    fn end(&self, flow: &Arc<Flow>) {
        let mut state = self.lock();
        state.under_way.retain(|other| !Arc::ptr_eq(other, flow));
        if state.under_way.is_empty() {
            state.quiet_since = Instant::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn check_quiet(&self, now: Instant, limits: &Limits) -> Verdict {
        let idle_at = self.quiet_since + limits.idle_timeout;
        match self.head_since.map(|since| since + limits.head_timeout) {
            Some(stuck_at) if stuck_at <= now => Verdict::Stuck,
            Some(stuck_at) => Verdict::Fine(stuck_at),
            None if idle_at <= now => Verdict::Idle,
            // A head may begin at any time, and then has its own bound, so this never looks further ahead than that.
            None => Verdict::Fine(idle_at.min(now + limits.head_timeout)),
        }
    }
}

/// One reply on its way out, seen by its connection and by hyper.
#[derive(Debug)]
struct Flow {
    pace: Option<Pace>,
    reply: Mutex<ReplyBody>,
    wake: AtomicWaker,
}

#[derive(Debug, Default)]
struct ReplyBody {
    body: Option<Body>,
    /// What is left of a large piece.
    rest: Bytes,
    /// When its head went out.
    since: Option<Instant>,
    bytes: u64,
    cut: bool,
}

/// How a reply is doing.
enum Standing {
    /// Well; it falls due then, if ever.
    Flows { due: Option<Instant> },
    /// Too slow, and cut off by this look at it.
    CutNow,
    /// Cut off before, and still not gone.
    Cut,
}

impl ReplyBody {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.rest.is_empty() {
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            let next = std::task::ready!(Pin::new(body).poll_frame(cx));
            let Some(Ok(frame)) = next else {
                self.body = None;
                return Poll::Ready(next);
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE_BYTES_MAX));
        self.bytes += piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// The rest of the body, its large piece included.
    fn take(&mut self) -> (Option<Body>, Bytes) {
        (self.body.take(), std::mem::take(&mut self.rest))
    }
}

impl Flow {
    /// Takes the body if it is late, which ends the sandbox behind it.
    fn check(&self, now: Instant) -> Standing {
        let mut reply = lock(&self.reply);
        if reply.cut {
            return Standing::Cut;
        }
        let due = match (self.pace, reply.since) {
            (Some(pace), Some(since)) => since + pace.allowance(reply.bytes),
            _ => return Standing::Flows { due: None },
        };
        if now < due {
            return Standing::Flows { due: Some(due) };
        }
        reply.cut = true;
        let body = reply.take();
        drop(reply);
        drop(body);
        self.wake.wake();
        Standing::CutNow
    }
}

/// A request from its head to the end of its reply.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pulse: Arc<Pulse>,
    flow: Arc<Flow>,
    /// The link counts it as well.
    _token: TaskTrackerToken,
}

impl UnderWay {
    /// Begins to send a reply's body.
    pub(crate) fn send(self, body: Body) -> Outflow {
        *lock(&self.flow.reply) = ReplyBody { body: Some(body), since: Some(Instant::now()), ..ReplyBody::default() };
        Outflow(self)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pulse.end(&self.flow);
        // The sandbox ends with its body, and the body with the request, whoever still looks at the flow.
        let body = lock(&self.flow.reply).take();
        drop(body);
    }
}

/// The body of a reply as hyper sends it.
#[derive(Debug)]
pub(crate) struct Outflow(UnderWay);

impl http_body::Body for Outflow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let flow = &self.0.flow;
        flow.wake.register(cx.waker());
        let mut reply = lock(&flow.reply);
        if reply.cut {
            return Poll::Ready(Some(Err(BodyError::TooSlow("less than the minimum rate"))));
        }
        reply.next(cx)
    }

    fn is_end_stream(&self) -> bool {
        let reply = lock(&self.0.flow.reply);
        !reply.cut && reply.rest.is_empty() && reply.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let reply = lock(&self.0.flow.reply);
        let mut hint = reply.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint);
        let rest = reply.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

/// A socket that tells its pulse when something is read.
pub(crate) struct Heard<S> {
    socket: S,
    pulse: Arc<Pulse>,
}

impl<S> Heard<S> {
    pub(crate) const fn new(socket: S, pulse: Arc<Pulse>) -> Self {
        Self { socket, pulse }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.pulse.heard();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// A panic elsewhere leaves these states whole: every change to them is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
