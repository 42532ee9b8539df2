//! The claims that an engine holds: one timer extends them all, and only while their messages are held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::sleep;
use trellis_wire::Message;

use super::policy::Record;
use super::queue::{Claimed, EXTEND_EVERY, Place, Queue};

/// Extensions that are under way at one time.
const EXTENDING_MAX: usize = 32;

/// Every claim that is held.
pub(super) struct Held<C> {
    claims: Mutex<HashMap<u64, Arc<C>>>,
    next: AtomicU64,
    /// There is one. What holds nothing needs no timer: a node may have thousands of idle queues.
    some: Notify,
}

/// A message that is held: while this lives, its claim is extended.
pub(super) struct Taken<C> {
    pub(super) claim: Arc<C>,
    pub(super) message: Message,
    pub(super) record: Record,
    pub(super) place: Place,
    /// Whether its outbox may be in the ledger.
    outbox: AtomicBool,
    _kept: Kept<C>,
}

/// Ends the extending of one claim when it is dropped.
struct Kept<C> {
    held: Arc<Held<C>>,
    number: u64,
}

impl<C> Default for Held<C> {
    fn default() -> Self {
        Self { claims: Mutex::default(), next: AtomicU64::new(0), some: Notify::new() }
    }
}

impl<C> Held<C> {
    /// Holds what was claimed.
    pub(super) fn take(self: &Arc<Self>, claimed: Claimed<C>) -> Taken<C> {
        let Claimed { claim, message, record, place } = claimed;
        let (claim, number) = (Arc::new(claim), self.next.fetch_add(1, Ordering::Relaxed));
        self.claims().insert(number, claim.clone());
        self.some.notify_one();
        let outbox = AtomicBool::new(place.again);
        Taken { claim, message, record, place, outbox, _kept: Kept { held: self.clone(), number } }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.claims().len()
    }

    /// Extends them again and again. Has no end.
    pub(super) async fn extend<Q: Queue<Claim = C>>(&self, queue: &Q, link: &trellis_wire::LinkId) {
        loop {
            if self.claims().is_empty() {
                self.some.notified().await;
            }
            sleep(EXTEND_EVERY).await;
            let claims: Vec<_> = self.claims().values().cloned().collect();
            for some in claims.chunks(EXTENDING_MAX) {
                let extended = some.iter().map(|claim| queue.extend(claim));
                for why in futures::future::join_all(extended).await.into_iter().filter_map(Result::err) {
                    tracing::debug!(%link, why, "a claim was not extended");
                }
            }
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<u64, Arc<C>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Taken<C> {
    /// Its outbox is about to be stored.
    pub(super) fn expect_outbox(&self) {
        self.outbox.store(true, Ordering::Relaxed);
    }

    /// Whether its outbox may be stored.
    pub(super) fn has_outbox(&self) -> bool {
        self.outbox.load(Ordering::Relaxed)
    }

    /// An attempt is over and the next is made under the same claim, after this long.
    pub(super) fn tried(&mut self, faulted: bool, after: std::time::Duration) {
        self.record.attempt = self.record.attempt.saturating_add(1);
        self.record.faults = self.record.faults.saturating_add(u32::from(faulted));
        self.record.age = self.record.age.saturating_add(after);
        self.message.attempt = self.record.attempt;
    }
}

impl<C> Drop for Kept<C> {
    fn drop(&mut self) {
        self.held.claims().remove(&self.number);
    }
}
