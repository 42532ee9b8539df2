//! What a component did since the node started, in plain atomics: the hot path counts, `/metrics` and `status` read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use trellis_provider::Histogram;
use trellis_wire::{Failure, Fault, Outcome};

use crate::clock;

/// The counts of one component. They survive a new version.
#[derive(Default)]
pub(crate) struct Counts {
    /// Events that woke a sandbox, however they ended.
    pub(crate) events: AtomicU64,
    /// Those that ended in a reply.
    pub(crate) successes: AtomicU64,
    /// Those that ended in the guest's fault.
    pub(crate) faults: AtomicU64,
    /// The faults of guests that were not done in time.
    pub(crate) timeouts: AtomicU64,
    /// Those that ended in an error of ours.
    pub(crate) errors: AtomicU64,
    /// Those whose code had to be loaded first.
    pub(crate) cold_starts: AtomicU64,
    /// Requests that got no permit: they were turned away, or did not wait for it.
    pub(crate) refused: AtomicU64,
    /// How long requests waited for a permit.
    pub(crate) permit_wait: Histogram,
    /// From the permit to a guest whose handler can be called; loads the code if need be.
    pub(crate) init: Histogram,
    /// From the permit to the outcome; for HTTP, to the head of the response.
    pub(crate) invoke: Histogram,
    /// When the last event began, in milliseconds since 1970.
    pub(crate) last_event_ms: AtomicU64,
}

impl Counts {
    /// Someone asks for a permit and waits.
    pub(crate) fn ask(self: &Arc<Self>) -> Asking {
        Asking { counts: self.clone(), since: Instant::now(), granted: false }
    }

    /// An event begins.
    pub(crate) fn began(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.last_event_ms.store(clock::now_ms(), Ordering::Relaxed);
    }

    /// It ended like this, after so long.
    pub(crate) fn ended(&self, outcome: &Outcome, took: Duration) {
        let ended = match outcome {
            Ok(_) => &self.successes,
            Err(Failure::Fault(_)) => &self.faults,
            Err(Failure::Error(_)) => &self.errors,
        };
        ended.fetch_add(1, Ordering::Relaxed);
        if let Err(Failure::Fault(Fault::Deadline { .. })) = outcome {
            self.timeouts.fetch_add(1, Ordering::Relaxed);
        }
        self.invoke.record(took);
    }
}

/// What one version of a component did since it is held: its roll-out is watched by it.
#[derive(Default)]
pub(crate) struct Tally {
    /// Events that ended.
    pub(crate) events: AtomicU64,
    /// Those that ended in the guest's fault.
    pub(crate) faults: AtomicU64,
}

impl Tally {
    /// An event ended like this.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if matches!(outcome, Err(Failure::Fault(_))) {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One that had ended well faulted after all.
    pub(crate) fn failed_late(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }
}

/// Someone who waits for a permit. Dropped without one, it was refused.
pub(crate) struct Asking {
    counts: Arc<Counts>,
    since: Instant,
    granted: bool,
}

impl Asking {
    /// Since when.
    pub(crate) const fn since(&self) -> Instant {
        self.since
    }

    /// Here it is, of whichever node.
    pub(crate) fn granted(mut self) {
        self.granted = true;
        self.counts.permit_wait.record(self.since.elapsed());
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.granted {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}
