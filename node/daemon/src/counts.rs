//! What a component did since the node started, in plain atomics: the hot path counts, `/metrics` and `status` read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
    /// Here it is. Returns how long that took.
    pub(crate) fn granted(mut self) -> Duration {
        self.granted = true;
        let waited = self.since.elapsed();
        self.counts.permit_wait.record(waited);
        waited
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.granted {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Upper bounds of the buckets, in microseconds. From 5 ms on they are those that the semantic conventions advise; the
/// ones below are for sandboxes, which are made in less.
const BOUNDS_US: [u64; 20] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Durations, counted by buckets.
#[derive(Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len()],
    /// Beyond the last bound.
    beyond: AtomicU64,
    sum_ns: AtomicU64,
}

/// A histogram as it was at one moment.
pub(crate) struct Snapshot {
    /// Upper bound in seconds, and how many were not above it.
    pub(crate) buckets: Vec<(f64, u64)>,
    pub(crate) count: u64,
    pub(crate) sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1_000 < ns);
        self.buckets.get(bucket).unwrap_or(&self.beyond).fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Reads it. The count is that of the buckets, so that they always agree.
    pub(crate) fn read(&self) -> Snapshot {
        let mut count = 0;
        let buckets = BOUNDS_US.iter().zip(&self.buckets).map(|(bound, bucket)| {
            count += bucket.load(Ordering::Relaxed);
            (Duration::from_micros(*bound).as_secs_f64(), count)
        });
        let buckets = buckets.collect();
        count += self.beyond.load(Ordering::Relaxed);
        Snapshot { buckets, count, sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lies_in_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::default();
        for us in [0, 25, 26, 1_000, 11_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let read = histogram.read();
        let at = |seconds: f64| read.buckets.iter().find(|(bound, _)| *bound == seconds).unwrap().1;
        assert_eq!((at(0.000025), at(0.00005), at(0.0005), at(0.001), at(10.0)), (2, 3, 3, 4, 4));
        assert_eq!((read.count, read.sum), (5, Duration::from_micros(11_001_051)));
    }
}
