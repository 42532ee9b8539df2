//! Durations counted by buckets, in plain atomics: the hot path counts, `/metrics` and views read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds. From 5 ms on they are those that the semantic conventions advise; the
/// ones below are for sandboxes, which are made in less.
const BOUNDS_US: [u64; 20] = [
    25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Durations, counted by buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len()],
    /// Beyond the last bound.
    beyond: AtomicU64,
    sum_ns: AtomicU64,
}

/// A histogram as it was at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Upper bound in seconds, and how many were not above it.
    pub buckets: Vec<(f64, u64)>,
    /// How many in all.
    pub count: u64,
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1_000 < ns);
        self.buckets.get(bucket).unwrap_or(&self.beyond).fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Reads it. The count is that of the buckets, so that they always agree.
    pub fn read(&self) -> Snapshot {
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
