//! How long queues are let alone that this node has just made.
//!
//! A quorum queue is entered in a file of names, and RabbitMQ 3.10 (Ra 2.2, `ra_directory`) writes that file some time later.
//! Killed before, the server comes back with a queue that never has a leader, and what it confirmed there is lost. So nothing
//! is pulled, and nobody told that the link is ready, before the queues that it made are older than that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The age from which on a queue outlives a `kill -9` of its server. RabbitMQ 3.10.8 lost the newest one at kills after up to
/// 0.8 s, and none from 1.2 s on; a busy machine may take longer.
const OLD_ENOUGH: Duration = Duration::from_secs(5);

/// When the newest of the queues was made that this node made.
#[derive(Debug, Default)]
pub(crate) struct Young(Mutex<Option<Instant>>);

impl Young {
    /// One is made now.
    pub(crate) fn made(&self) {
        *self.newest() = Some(Instant::now());
    }

    /// Waits until all are old enough.
    pub(crate) async fn outgrown(&self) {
        loop {
            let newest = *self.newest();
            match newest.map(|at| at + OLD_ENOUGH) {
                Some(until) if Instant::now() < until => sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn newest(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
