//! The time by which queues wait. It goes on evenly, whatever anybody sets the machine's clock to, also from one start to the
//! next: set back, the clock would hold what waits for as long; set forward, it would forget dead letters before their
//! time. When a message was published is told by the machine's clock all the same.

use std::time::Instant;

use trellis_provider::now_ms;

/// What the store may have seen of it beyond what it keeps, in milliseconds: it is not written at each change.
pub(crate) const KEPT_EVERY_MS: u64 = 1_000;

/// Milliseconds since 1970, about.
#[derive(Debug)]
pub(crate) struct Clock {
    base_ms: u64,
    since: Instant,
}

impl Clock {
    /// Goes on from what was kept, or from the machine's clock where that is later.
    pub(crate) fn after(kept_ms: u64) -> Self {
        Self { base_ms: now_ms().max(kept_ms.saturating_add(KEPT_EVERY_MS)), since: Instant::now() }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.base_ms.saturating_add(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_where_it_was() {
        let clock = Clock::after(0);
        assert!(clock.now_ms() >= now_ms() - 1);
        let ahead = clock.now_ms() + 3_600_000;
        let again = Clock::after(ahead);
        assert!(again.now_ms() > ahead, "the machine's clock was set back by an hour meanwhile");
        assert!(again.now_ms() < ahead + 60_000);
    }
}
