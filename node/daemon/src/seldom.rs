//! Log lines that strangers can cause: whoever reaches the bus may send whatever it likes, and must not fill the logs with it.

use std::time::{Duration, Instant};

/// At most one line of a kind is written in this time.
const EVERY: Duration = Duration::from_secs(10);

/// When lines of one kind are written.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    written: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Whether a line is to be written now, and how many were left out since the last one; `None`: it is left out.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.written.is_some_and(|written| now.saturating_duration_since(written) < EVERY) {
            self.left_out += 1;
            return None;
        }
        self.written = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_in_a_while_with_the_count_of_the_rest() {
        let (mut seldom, began) = (Seldom::default(), Instant::now());
        let written: Vec<(u64, u64)> = (0..25_000)
            .filter_map(|ms| seldom.due(began + Duration::from_millis(ms)).map(|left_out| (ms, left_out)))
            .collect();
        assert_eq!(written, [(0, 0), (10_000, 9_999), (20_000, 9_999)]);
        assert_eq!(seldom.due(began + Duration::from_secs(60)), Some(4_999));
        assert_eq!(seldom.due(began + Duration::from_secs(80)), Some(0));
    }
}
