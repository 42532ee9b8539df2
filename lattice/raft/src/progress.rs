//! Waiting until openraft has come to some point.
//!
//! What openraft tells is watched by one task of a node, which wakes all others here, in the order in which they began
//! to wait. A `watch` of tokio's wakes those who share it in an order of chance, openraft's own waiting is one, and a
//! simulation would not go the same way twice.

use std::sync::Arc;

use openraft::RaftMetrics;
use openraft::error::Fatal;
use tokio::sync::{Notify, watch};

use crate::types::Member;

/// What openraft tells of itself.
pub(crate) type Metrics = RaftMetrics<u128, Member>;

/// How far openraft is. Clones share it.
#[derive(Clone)]
pub(crate) struct Progress {
    metrics: watch::Receiver<Metrics>,
    moved: Arc<Notify>,
}

impl Progress {
    pub(crate) fn new(metrics: watch::Receiver<Metrics>) -> Self {
        Self { metrics, moved: Arc::default() }
    }

    /// Waits until it is as asked.
    ///
    /// # Errors
    /// openraft has ended.
    pub(crate) async fn until(&self, is_there: impl Fn(&Metrics) -> bool) -> Result<(), Fatal<u128>> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // Before looking, so that nothing is missed in between.
            moved.as_mut().enable();
            {
                let now = self.metrics.borrow();
                if is_there(&now) {
                    return Ok(());
                }
                now.running_state.clone()?;
            }
            if self.metrics.has_changed().is_err() {
                return Err(Fatal::Panicked);
            }
            moved.await;
        }
    }

    /// Waits until the entry with this index is applied, and so all before it. None is.
    ///
    /// # Errors
    /// As for [`Progress::until`].
    pub(crate) async fn applied(&self, index: Option<u64>) -> Result<(), Fatal<u128>> {
        self.until(|now| now.last_applied.map(|last| last.index) >= index).await
    }

    /// Wakes who waits: what openraft tells has changed, or it has ended.
    pub(crate) fn moved(&self) {
        self.moved.notify_waiters();
    }
}
