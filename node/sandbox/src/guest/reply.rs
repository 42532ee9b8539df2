//! An HTTP reply whose sandbox lives on while its body streams. WASI 0.2 and 0.3 share it.
//!
//! The guest is one future that owns its sandbox. It is polled in place until the head is there: most guests are done
//! by then, and nothing is spawned for them. One that still streams becomes a task; the body holds the other end of it.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Response, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyStream, StreamBody};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use trellis_wire::{Body, BodyError, Failure, Fault, Outcome, Reply};
use wasmtime_wasi_http::WasiBody;

use crate::host::http::CHUNKS_AHEAD_MAX;
use crate::outside::{Limits, Outside};
use crate::run::late;

/// How many turns a guest that answered gets to end before a task is made for it. A guest of WASI 0.3 takes one to write its
/// body and one to see that it was read.
const TURNS_MAX: u32 = 4;

/// How long all but the last of those turns may take.
const TURNS_TIME_MAX: Duration = Duration::from_millis(1);

/// A guest at work, with its sandbox.
pub(super) type Guest = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// What a guest answers: the head with a body to come, or the text of its error code.
pub(super) type Answer = Result<Response<WasiBody>, String>;

/// Why a body breaks off. It is set before the sandbox is dropped, so that a body which ends because its sandbox is gone
/// can be told from one that the guest finished.
#[derive(Clone, Default)]
pub(super) struct BrokenOff(Arc<OnceLock<String>>);

impl BrokenOff {
    pub(super) fn because(&self, why: String) {
        // The first reason is the true one; what follows from it is no news.
        drop(self.0.set(why));
    }

    fn why(&self) -> Option<BodyError> {
        self.0.get().map(|why| BodyError::BrokenOff(why.as_str().into()))
    }
}

/// Waits for the head, within the deadline, and lets the guest go on behind the body.
pub(super) async fn reply(
    mut guest: Guest,
    mut answer: oneshot::Receiver<Answer>,
    broken_off: BrokenOff,
    limits: Limits,
    outside: Arc<dyn Outside>,
) -> Outcome {
    let mut deadline = pin!(sleep(limits.timeout));
    let answered = tokio::select! {
        biased;
        ended = &mut guest => return reply_of_the_ended(ended, answer.try_recv().ok(), broken_off, &*outside),
        answered = &mut answer => answered,
        () = &mut deadline => return Err(late(limits.timeout)),
    };
    let mut answered = answered.map(|answer| answer.map(|head| streaming(head, broken_off.clone())));
    let body = answered.as_mut().ok().and_then(|answer| answer.as_mut().ok()).map(|(head, _)| head.body_mut());
    if let Some(ended) = a_few_turns(&mut guest, body).await {
        let answered = answered.ok().map(|answer| answer.map(|(head, _)| head));
        return reply_of_the_answered(ended, answered, &*outside);
    }
    match answered {
        Ok(Ok((head, reader))) => {
            tokio::spawn(go_on(guest, reader, broken_off, limits, outside));
            Ok(Reply::Http(head.map(Ahead::into_body)))
        }
        Ok(Err(code)) => Err(Fault::Refused(code).into()),
        // It let go of the answer without giving one. It may still trap, which says more.
        Err(_) => tokio::select! {
            biased;
            ended = guest => Err(ended.err().unwrap_or(Fault::NoReply.into())),
            () = deadline => Err(late(limits.timeout)),
        },
    }
}

/// Lets a guest that answered end, if it is all but done: that costs less than a task for it. The answer waits meanwhile,
/// so a guest that goes on computing gets no more than one turn. What it writes is read between the turns.
async fn a_few_turns(guest: &mut Guest, mut body: Option<&mut Ahead>) -> Option<Result<(), Failure>> {
    let begun = Instant::now();
    for _ in 0..TURNS_MAX {
        if begun.elapsed() > TURNS_TIME_MAX {
            break;
        }
        // Asked for before, so that the guest finds who takes what it writes, and after.
        let turn = poll_fn(|cx| {
            let mut read = |cx: &mut Context<'_>| body.as_mut().is_some_and(|body| body.read(cx));
            let before = read(cx);
            let turn = guest.as_mut().poll(cx);
            Poll::Ready((turn, read(cx) || before))
        });
        match turn.await {
            (Poll::Ready(ended), _) => return Some(ended),
            (Poll::Pending, true) => {}
            (Poll::Pending, false) => yield_now().await,
        }
    }
    None
}

/// The reply of a guest that is done. What it wrote is all here.
fn reply_of_the_ended(
    ended: Result<(), Failure>,
    answered: Option<Answer>,
    broken_off: BrokenOff,
    outside: &dyn Outside,
) -> Outcome {
    let answered = answered.map(|answer| answer.map(|head| streaming(head, broken_off).0));
    reply_of_the_answered(ended, answered, outside)
}

/// The same, where its answer was heard before.
fn reply_of_the_answered(
    ended: Result<(), Failure>,
    answered: Option<Result<Response<Ahead>, String>>,
    outside: &dyn Outside,
) -> Outcome {
    match (ended, answered) {
        (Err(failure), None) => Err(failure),
        (Ok(()), None) => Err(Fault::NoReply.into()),
        (_, Some(Err(code))) => Err(Fault::Refused(code).into()),
        (ended, Some(Ok(head))) => {
            if let Err(failure) = ended {
                report(outside, &failure.to_string());
            }
            Ok(Reply::Http(head.map(Ahead::into_body)))
        }
    }
}

/// Joins data frames. One alone is not copied.
fn joined(frames: Vec<Result<Frame<Bytes>, BodyError>>) -> Body {
    let mut chunks: Vec<Bytes> = frames.into_iter().flatten().filter_map(|frame| frame.into_data().ok()).collect();
    match chunks.len() {
        0 => Body::empty(),
        1 => Body::from(chunks.remove(0)),
        _ => Body::from(chunks.concat()),
    }
}

/// Lets the guest go on until it is done, its reader is gone, or it took too long. Then its sandbox is gone.
async fn go_on(
    mut guest: Guest,
    reader: oneshot::Receiver<()>,
    broken_off: BrokenOff,
    limits: Limits,
    outside: Arc<dyn Outside>,
) {
    let ended = tokio::select! {
        biased;
        ended = &mut guest => Some(ended),
        read_whole = reader => match read_whole {
            Ok(()) => timeout(limits.timeout, &mut guest).await.ok(),
            Err(_) => return,
        },
        () = over(limits.reply) => None,
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(failure)) => report(&*outside, &failure.to_string()),
        None => {
            let why = "it was not done in time";
            broken_off.because(why.into());
            report(&*outside, why);
        }
    }
}

/// Waits until a reply that may take so long has taken too long.
async fn over(reply_max: Option<Duration>) {
    match reply_max {
        Some(reply_max) => sleep(reply_max).await,
        None => pending().await,
    }
}

/// The outcome of this event was told already, as a reply; what came after is told as a log line.
fn report(outside: &dyn Outside, why: &str) {
    outside.failed_late(&format!("failed after its response had begun: {why}"));
}

fn streaming(head: Response<WasiBody>, broken_off: BrokenOff) -> (Response<Ahead>, oneshot::Receiver<()>) {
    let (read_whole, reader) = oneshot::channel();
    let length = head.headers().get(header::CONTENT_LENGTH);
    let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let mut head = head.map(|inner| GuestBody { inner, broken_off, left, read_whole: Some(read_whole) });
    if left == Some(0) {
        // Nobody reads a body that is announced as empty.
        head.body_mut().end();
    }
    (head.map(|body| Ahead { body, frames: Vec::new(), is_over: false }), reader)
}

/// A body that a guest writes, with what was read of it before anybody asked.
struct Ahead {
    body: GuestBody,
    frames: Vec<Result<Frame<Bytes>, BodyError>>,
    /// Nothing follows them.
    is_over: bool,
}

impl Ahead {
    /// Reads what is here, as far as there is room. Whether something was.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let before = self.frames.len();
        while !self.is_over && self.frames.len() < CHUNKS_AHEAD_MAX {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    self.is_over = frame.is_err();
                    self.frames.push(frame);
                }
                Poll::Ready(None) => self.is_over = true,
                Poll::Pending => break,
            }
        }
        self.frames.len() > before
    }

    /// A body that is all here becomes one piece, whose length is known. One that is not is left as it is.
    fn into_body(mut self) -> Body {
        self.read(&mut Context::from_waker(Waker::noop()));
        match self.is_over && self.frames.iter().all(|frame| frame.as_ref().is_ok_and(Frame::is_data)) {
            true => joined(self.frames),
            false if self.frames.is_empty() => Body::new(self.body),
            false => Body::new(StreamBody::new(stream::iter(self.frames).chain(BodyStream::new(self.body)))),
        }
    }
}

/// A body that a guest writes. Dropping it before its end aborts the guest.
struct GuestBody {
    inner: WasiBody,
    broken_off: BrokenOff,
    /// How much of the announced length is still to come. A reader that knows the length does not read up to the end.
    left: Option<u64>,
    /// Told when the body was read whole; closed when it was dropped before.
    read_whole: Option<oneshot::Sender<()>>,
}

impl GuestBody {
    fn note(&mut self, frame: &Frame<Bytes>) {
        if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
            if *left == 0 {
                self.end();
            }
        }
    }

    fn end(&mut self) {
        if let Some(read_whole) = self.read_whole.take() {
            // A guest that is done does not listen any more.
            _ = read_whole.send(());
        }
    }
}

impl http_body::Body for GuestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        let frame = match ready!(Pin::new(&mut body.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                body.note(&frame);
                Some(Ok(frame))
            }
            Some(Err(why)) => Some(Err(body.broken_off.why().unwrap_or(BodyError::BrokenOff(Box::new(why))))),
            None => match body.broken_off.why() {
                Some(why) => Some(Err(why)),
                None => {
                    body.end();
                    None
                }
            },
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.broken_off.why().is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
