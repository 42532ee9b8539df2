//! What this node holds of a queue. RabbitMQ lets a claim last as long as its connection; here it ends after `CLAIM` unless
//! it is extended, as on every other broker.
//!
//! What was settled is remembered for a while: a message whose acknowledgement was lost with the connection is given out
//! again, and is then taken off instead of run a second time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::BasicNackOptions;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::delivery::CLAIM;

use crate::connection::within;
use crate::known::Known;

/// How often is looked for claims that have ended.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Settled messages that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// The claims of this node on one queue.
#[derive(Debug)]
pub(crate) struct Claims {
    inner: Mutex<Inner>,
    _ending: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    held: HashMap<u64, (Instant, Held)>,
}

/// The messages that were settled last, by their marks.
#[derive(Debug, Default)]
pub(crate) struct Settled(Mutex<(HashSet<u64>, VecDeque<u64>)>);

impl Settled {
    pub(crate) fn remember(&self, mark: u64) {
        let (marks, order) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.insert(mark) {
            order.push_back(mark);
        }
        if order.len() > REMEMBERED_MAX
            && let Some(oldest) = order.pop_front()
        {
            marks.remove(&oldest);
        }
    }

    /// Whether this very giving out was settled before.
    pub(crate) fn has(&self, mark: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&mark)
    }
}

/// A message that was given out.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    pub(crate) known: Known,
    /// Tells this giving out from others, also after it is given out again.
    pub(crate) mark: u64,
}

impl Held {
    /// A message with what it brought. Two messages that a publisher gave one id are told apart by their bodies.
    pub(crate) fn new(delivery: Delivery, known: Known) -> Self {
        let mut hasher = DefaultHasher::new();
        (&known.id, known.attempts, &known.replay_of, &delivery.data).hash(&mut hasher);
        Self { mark: hasher.finish(), delivery, known }
    }
}

impl Claims {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            inner: Mutex::default(),
            _ending: AbortOnDropHandle::new(tokio::spawn(end_what_is_over(this.clone()))),
        })
    }

    /// Holds a message for `CLAIM`. Returns what names the claim.
    pub(crate) fn hold(&self, held: Held) -> u64 {
        let mut inner = self.inner();
        inner.next += 1;
        let number = inner.next;
        inner.held.insert(number, (Instant::now() + CLAIM, held));
        number
    }

    pub(crate) fn extend(&self, number: u64) {
        if let Some((ends, _)) = self.inner().held.get_mut(&number) {
            *ends = Instant::now() + CLAIM;
        }
    }

    /// Takes a message to settle it; `None`: its claim has ended.
    pub(crate) fn take(&self, number: u64) -> Option<Held> {
        self.inner().held.remove(&number).map(|(_, held)| held)
    }

    /// Puts it back, since it could not be settled.
    pub(crate) fn put_back(&self, number: u64, held: Held) {
        self.inner().held.insert(number, (Instant::now() + CLAIM, held));
    }

    pub(crate) fn count(&self) -> u64 {
        self.inner().held.len() as u64
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back what nobody has settled or extended.
async fn end_what_is_over(claims: Weak<Claims>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(claims) = claims.upgrade() else { return };
        let now = Instant::now();
        let over: Vec<_> = claims.inner().held.extract_if(|_, (ends, _)| *ends <= now).collect();
        for (_, (_, held)) in over {
            give_back(&held).await;
        }
    }
}

/// Has the server give it out again.
pub(crate) async fn give_back(held: &Held) {
    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    if let Err(why) = within(held.delivery.acker.nack(requeue)).await {
        tracing::debug!(%why, "a claim had ended with its connection");
    }
}
