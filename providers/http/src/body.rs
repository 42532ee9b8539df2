//! The body of a request on its way in: counted, paced, and awaited before a permit is.
//!
//! Only the time spent waiting for the client counts against the client: a guest that reads late is not its fault.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use trellis_wire::{Body, BodyError};

use crate::limits::Pace;
use crate::refusal::Refusal;

/// What holding one frame costs beside its bytes, so that many small ones are not held for nothing.
const FRAME_BYTES: usize = 128;

/// What a client may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// In bytes.
    pub(crate) bytes_max: u64,
    /// `None`: as slowly as it likes.
    pub(crate) pace: Option<Pace>,
    /// How much of it must be here, or its end, before it has arrived.
    pub(crate) arrival_bytes: u64,
}

/// A body of which enough is here to begin.
pub(crate) struct Arrived {
    /// All of it, as the guest will read it.
    pub(crate) body: Body,
    /// What became of the part that was not here yet.
    pub(crate) rest: Rest,
}

/// Waits until a body has arrived: all of it or its first [`Bounds::arrival_bytes`]. What is here takes its part of
/// `room`, in bytes, until the guest has read it.
///
/// # Errors
/// It is too large or too slow, the client went away, or the room is full.
pub(crate) async fn arrive(incoming: Incoming, bounds: Bounds, room: &Arc<Semaphore>) -> Result<Arrived, Refusal> {
    let rest = Rest::default();
    if incoming.is_end_stream() {
        return Ok(Arrived { body: Body::empty(), rest });
    }
    if incoming.size_hint().lower() > bounds.bytes_max {
        return Err(BodyError::TooLarge { limit_bytes: bounds.bytes_max }.into());
    }
    let mut inbound = Inbound::new(incoming, bounds, rest.clone());
    let mut resumed = Resumed { here: VecDeque::new(), rest: None };
    while inbound.bytes < bounds.arrival_bytes {
        let Some(frame) = inbound.frame().await else { return Ok(Arrived { body: Body::new(resumed), rest }) };
        let frame = frame?;
        let bytes = frame.data_ref().map_or(0, Bytes::len) + FRAME_BYTES;
        let place = room.clone().try_acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX));
        resumed.here.push_back((frame, place.map_err(|_| Refusal::ArrivalsFull)?));
    }
    resumed.rest = Some(inbound);
    Ok(Arrived { body: Body::new(resumed), rest })
}

/// Remembers how the rest of a body broke off, for whoever answers the client: the guest only saw its stream end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rest(Arc<AtomicU8>);

impl Rest {
    const TOO_LARGE: u8 = 1;
    const TOO_SLOW: u8 = 2;

    /// Whether it was longer than allowed.
    pub(crate) fn was_too_large(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::TOO_LARGE
    }

    /// Whether it came too slowly.
    pub(crate) fn was_too_slow(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::TOO_SLOW
    }

    fn note(&self, error: &BodyError) {
        match error {
            BodyError::TooLarge { .. } => self.0.store(Self::TOO_LARGE, Ordering::Relaxed),
            BodyError::TooSlow(_) => self.0.store(Self::TOO_SLOW, Ordering::Relaxed),
            BodyError::BrokenOff(_) => {}
        }
    }
}

/// What is here, then what is still to come.
struct Resumed {
    here: VecDeque<(Frame<Bytes>, OwnedSemaphorePermit)>,
    rest: Option<Inbound>,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match (this.here.pop_front(), &mut this.rest) {
            (Some((frame, _place)), _) => Poll::Ready(Some(Ok(frame))),
            (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.here.is_empty() && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let here: usize = self.here.iter().filter_map(|(frame, _)| frame.data_ref()).map(Bytes::len).sum();
        let here = u64::try_from(here).unwrap_or(u64::MAX);
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), http_body::Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(here.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper() {
            hint.set_upper(here.saturating_add(upper));
        }
        hint
    }
}

/// A body that breaks off when it passes its bounds.
struct Inbound {
    incoming: Incoming,
    bytes: u64,
    bytes_max: u64,
    patience: Option<Patience>,
    broken: bool,
    noted: Rest,
}

impl Inbound {
    fn new(incoming: Incoming, bounds: Bounds, noted: Rest) -> Self {
        let patience = bounds.pace.map(Patience::new);
        Self { incoming, bytes: 0, bytes_max: bounds.bytes_max, patience, broken: false, noted }
    }

    fn poll_within_bounds(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(next) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            let late = self.patience.as_mut().is_some_and(|patience| patience.poll_lost(self.bytes, cx).is_ready());
            return if late {
                Poll::Ready(Some(Err(BodyError::TooSlow("less than the minimum rate"))))
            } else {
                Poll::Pending
            };
        };
        if let Some(patience) = &mut self.patience {
            patience.rest();
        }
        let Some(frame) = next else { return Poll::Ready(None) };
        let frame = frame.map_err(|error| BodyError::BrokenOff(error.into()))?;
        self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        if self.bytes > self.bytes_max {
            return Poll::Ready(Some(Err(BodyError::TooLarge { limit_bytes: self.bytes_max })));
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.broken {
            return Poll::Ready(None);
        }
        let next = this.poll_within_bounds(cx);
        if let Poll::Ready(Some(Err(error))) = &next {
            this.broken = true;
            this.noted.note(error);
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.broken || self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Measures how long a body has been waited for, and loses itself when that is too long.
struct Patience {
    pace: Pace,
    waited: Duration,
    waiting_since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    const fn new(pace: Pace) -> Self {
        Self { pace, waited: Duration::ZERO, waiting_since: None, alarm: None }
    }

    /// Ready when the body, of which `bytes` have come, is too slow. Polled whenever there is nothing to read.
    fn poll_lost(&mut self, bytes: u64, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let until = since + self.pace.allowance(bytes).saturating_sub(self.waited);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if alarm.deadline() != until {
            alarm.as_mut().reset(until);
        }
        alarm.as_mut().poll(cx)
    }

    /// Something came.
    fn rest(&mut self) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += since.elapsed();
        }
    }
}
