//! Starts: one node's process may begin often, and what an earlier one said must not be taken for what this one says.

use serde::{Deserialize, Serialize};

/// One start of a node's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Higher at each start of one data directory.
    pub number: u64,
    /// Drawn at each start, so that copies of a data directory differ.
    pub salt: u64,
}

impl Start {
    /// The start after one with the number `last`. The wall clock in milliseconds helps where the number was lost, as
    /// with a data directory that was put back from a backup; a clock that is wrong does no harm.
    pub fn after(last: u64, now_ms: u64, salt: u64) -> Self {
        Self { number: last.saturating_add(1).max(now_ms), salt }
    }

    /// Whether this start came later. Of two with one number, in copies of one data directory, one counts as the later.
    pub(crate) fn is_after(&self, other: &Self) -> bool {
        (self.number, self.salt) > (other.number, other.salt)
    }

    /// As it goes into the making of keys.
    pub(crate) fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.number.to_le_bytes());
        bytes[8..].copy_from_slice(&self.salt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_has_a_higher_number_whatever_the_clock_says() {
        assert_eq!(Start::after(0, 1_000, 1).number, 1_000);
        assert_eq!(Start::after(1_000, 5, 1).number, 1_001, "a clock that went back");
        assert_eq!(Start::after(u64::MAX, 5, 1).number, u64::MAX);
    }
}
