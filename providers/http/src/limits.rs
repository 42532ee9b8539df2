//! The named bounds of the HTTP server, all in one place. What one link may choose for itself is in its configuration.

use std::time::Duration;

/// Bounds of every listener of a node.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a TLS handshake, and how long the head of a request, may take.
    pub head_timeout: Duration,
    /// How long a connection may be kept open without a request. Longer than the 60 s after which load balancers
    /// close theirs, so that it is never us who closes one that they are about to use.
    pub idle_timeout: Duration,
    /// How fast a body must flow, on a link that does not stream.
    pub pace: Pace,
    /// How much of a body must have come, if it does not end before, until a permit is asked for.
    pub arrival_bytes: u64,
    /// How much of bodies that no guest has read yet one listener holds; who would exceed it is asked to come again.
    pub arrived_bytes_max: u32,
    /// The largest head of a request over HTTP/1; the buffer of a connection is no larger.
    pub head_bytes_max: usize,
    /// How many connections one listener holds; the next ones wait in the kernel's queue.
    pub connections_max: usize,
    /// How many requests at once one HTTP/2 connection may send.
    pub streams_max: u32,
    /// How long requests under way may still take when their listener or link goes.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            pace: Pace::default(),
            arrival_bytes: 64 << 10,
            arrived_bytes_max: 64 << 20,
            head_bytes_max: 64 << 10,
            connections_max: 10_000,
            streams_max: 128,
            drain_max: Duration::from_secs(30),
        }
    }
}

/// How fast a body must flow, so that nobody holds a sandbox by sending or reading one byte a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How long it may take whatever its size.
    pub grace: Duration,
    /// How many bytes must come in each second after that.
    pub bytes_per_second_min: u64,
    /// How long it may take in all.
    pub total_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10), bytes_per_second_min: 1 << 10, total_max: Duration::from_secs(300) }
    }
}

impl Pace {
    /// How long a body of which `bytes` have come may take until the next byte.
    pub(crate) fn allowance(&self, bytes: u64) -> Duration {
        let earned = Duration::from_millis(bytes.saturating_mul(1_000) / self.bytes_per_second_min.max(1));
        self.grace.saturating_add(earned).min(self.total_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_earn_time_up_to_the_total() {
        let pace = Pace::default();
        assert_eq!(pace.allowance(0), Duration::from_secs(10));
        assert_eq!(pace.allowance(5 << 10), Duration::from_secs(15));
        assert_eq!(pace.allowance(u64::MAX), Duration::from_secs(300));
    }
}
