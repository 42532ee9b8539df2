//! The claims that an engine holds: one task extends them all, and only while their messages are held. It runs beside those of
//! the node's other links, on threads that guests cannot hold up and which have one timer wheel for all of them.
//!
//! A broker may give out what is still held here: it was away for longer than a claim lasts, or was killed and forgot what
//! it had given out. Such a message is not handled beside itself: what is held goes on under the new claim.

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
    claims: Mutex<Claims<C>>,
    next: AtomicU64,
    /// There is one. What holds nothing needs no timer: a node may have thousands of idle queues.
    some: Notify,
}

struct Claims<C> {
    /// By number.
    all: HashMap<u64, Arc<C>>,
    /// Which of them is for a message of this position, where the broker says one: no other message has it.
    at: HashMap<u128, u64>,
    /// Which of them are for a dead letter that is replayed, and its id.
    replays: HashMap<u64, String>,
}

/// A message that is held: while this lives, its claim is extended.
pub(super) struct Taken<C> {
    pub(super) message: Message,
    pub(super) record: Record,
    pub(super) place: Place,
    /// Whether its outbox may be in the ledger.
    outbox: AtomicBool,
    kept: Kept<C>,
}

/// Ends the extending of one claim when it is dropped.
struct Kept<C> {
    held: Arc<Held<C>>,
    number: u64,
    position: Option<u128>,
}

impl<C> Default for Held<C> {
    fn default() -> Self {
        let claims = Mutex::new(Claims { all: HashMap::new(), at: HashMap::new(), replays: HashMap::new() });
        Self { claims, next: AtomicU64::new(0), some: Notify::new() }
    }
}

impl<C> Held<C> {
    /// Holds what was claimed. `None`: it is held already, under this claim from now on.
    pub(super) fn take(self: &Arc<Self>, claimed: Claimed<C>) -> Option<Taken<C>> {
        let Claimed { claim, message, record, place } = claimed;
        let (position, mut claims) = (place.position, self.claims());
        if let Some(number) = position.and_then(|position| claims.at.get(&position).copied()) {
            claims.all.insert(number, Arc::new(claim));
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        claims.all.insert(number, Arc::new(claim));
        claims.at.extend(position.map(|position| (position, number)));
        claims.replays.extend(place.replay_of.clone().map(|letter| (number, letter)));
        drop(claims);
        self.some.notify_one();
        let outbox = AtomicBool::new(place.again);
        Some(Taken { message, record, place, outbox, kept: Kept { held: self.clone(), number, position } })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.claims().all.len()
    }

    /// Extends them again and again. Has no end.
    pub(super) async fn extend<Q: Queue<Claim = C>>(&self, queue: &Q, link: &trellis_wire::LinkId) {
        loop {
            if self.claims().all.is_empty() {
                self.some.notified().await;
            }
            sleep(EXTEND_EVERY).await;
            let claims: Vec<_> = self.claims().all.values().cloned().collect();
            for some in claims.chunks(EXTENDING_MAX) {
                let extended = some.iter().map(|claim| queue.extend(claim));
                for why in futures::future::join_all(extended).await.into_iter().filter_map(Result::err) {
                    tracing::debug!(%link, why, "a claim was not extended");
                }
            }
        }
    }

    fn claims(&self) -> MutexGuard<'_, Claims<C>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Taken<C> {
    /// The claim that it is held under.
    pub(super) fn claim(&self) -> Arc<C> {
        let claims = self.kept.held.claims();
        claims.all.get(&self.kept.number).expect("a claim is there for as long as its message is held").clone()
    }

    /// Whether the dead letter that it was is held as another message, too.
    pub(super) fn has_other_replay(&self) -> bool {
        let claims = self.kept.held.claims();
        let others = claims.replays.iter().filter(|(number, _)| **number != self.kept.number);
        others.map(|(_, letter)| letter).any(|letter| self.place.replay_of.as_ref() == Some(letter))
    }

    /// It is about to be given back: what comes of it from here on is another delivery.
    pub(super) fn release(&self) {
        self.kept.release();
    }

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

impl<C> Kept<C> {
    fn release(&self) {
        let (Some(position), mut claims) = (self.position, self.held.claims()) else { return };
        if claims.at.get(&position) == Some(&self.number) {
            claims.at.remove(&position);
        }
    }
}

impl<C> Drop for Kept<C> {
    fn drop(&mut self) {
        self.release();
        let mut claims = self.held.claims();
        claims.all.remove(&self.number);
        claims.replays.remove(&self.number);
    }
}
