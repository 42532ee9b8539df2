//! Dividing permits over nodes by free capacity.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What one node may take, and how it compares with the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// At least this many: what stays where it is.
    pub(crate) min: u32,
    /// At most this many.
    pub(crate) max: u32,
    /// The node's declared capacity, in permits.
    pub(crate) capacity: u32,
    /// What else it holds, in permits. May exceed the capacity: permits are rights, not reservations.
    pub(crate) load: u64,
}

impl Share {
    /// The weight by which permits are divided. A full node still counts: overloaded nodes share evenly.
    fn free(&self) -> u64 {
        u64::from(self.capacity).saturating_sub(self.load).max(1)
    }
}

/// Divides `wanted` so that each part is in proportion to its node's free capacity, within its bounds, and every node
/// has one before any has two. The parts sum to `wanted`, or come as near as the bounds allow.
pub(crate) fn divide(wanted: u64, shares: &[Share]) -> Vec<u32> {
    let mut parts: Vec<u32> = shares.iter().map(|share| share.min).collect();
    let mut left = wanted.saturating_sub(parts.iter().map(|&part| u64::from(part)).sum());
    if left > shares.len() as u64 {
        // Most of a large number is placed at once, so that what is left for one by one is at most a few per node.
        parts = level(wanted, shares);
        left = wanted.saturating_sub(parts.iter().map(|&part| u64::from(part)).sum());
    }
    let mut turns: BinaryHeap<Turn> =
        shares.iter().zip(&parts).enumerate().map(|(index, (&share, &part))| Turn { index, share, part }).collect();
    while left > 0 {
        let Some(mut turn) = turns.pop() else { break };
        if turn.part == turn.share.max {
            continue;
        }
        turn.part += 1;
        parts[turn.index] = turn.part;
        left -= 1;
        turns.push(turn);
    }
    parts
}

/// The highest level of permits per free capacity at which the parts, rounded down, sum to no more than `wanted`.
fn level(wanted: u64, shares: &[Share]) -> Vec<u32> {
    // There is more to place than there are nodes, so that every node can have one.
    let shares: Vec<Share> =
        shares.iter().map(|&share| Share { min: share.min.max(share.max.min(1)), ..share }).collect();
    // A level is a fixed-point number with 32 bits after the point.
    let part_at = |level: u64, share: &Share| {
        let part = (u128::from(share.free()) * u128::from(level)) >> 32;
        u32::try_from(part).unwrap_or(u32::MAX).clamp(share.min, share.max.max(share.min))
    };
    let sum_at = |level: u64| shares.iter().map(|share| u64::from(part_at(level, share))).sum::<u64>();
    let (mut low, mut high) = (0, u64::MAX);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if sum_at(middle) <= wanted { low = middle } else { high = middle - 1 }
    }
    shares.iter().map(|share| part_at(low, share)).collect()
}

/// Whose turn it is: the node with the most free capacity per permit it has; of equals the one that is less full, then
/// the first.
struct Turn {
    index: usize,
    share: Share,
    part: u32,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: u64, b: u32| u128::from(a) * u128::from(b);
        // Without a permit a node goes before every node that has one.
        (self.part == 0)
            .cmp(&(other.part == 0))
            .then_with(|| cross(self.share.free(), other.part).cmp(&cross(other.share.free(), self.part)))
            .then_with(|| self.share.free().cmp(&other.share.free()))
            .then_with(|| {
                cross(other.share.load, self.share.capacity).cmp(&cross(self.share.load, other.share.capacity))
            })
            .then_with(|| other.index.cmp(&self.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(wanted: u64, free: &[u32], parts: &[u32]) {
        let shares: Vec<_> = free.iter().map(|&capacity| Share { min: 0, max: u32::MAX, capacity, load: 0 }).collect();
        assert_eq!(divide(wanted, &shares), parts, "{wanted} over {free:?}");
    }

    #[test]
    fn parts_follow_free_capacity_and_everyone_has_one_first() {
        check(9, &[100, 100, 100], &[3, 3, 3]);
        check(10, &[100, 100, 100], &[4, 3, 3]);
        check(10, &[1000, 100], &[9, 1]);
        check(2, &[1000, 1, 10], &[1, 0, 1]);
        check(1_000_000, &[300, 100], &[750_000, 250_000]);
        check(4_000_000_000, &[1], &[4_000_000_000]);
    }

    proptest! {
        #[test]
        fn parts_keep_their_bounds_and_sum_to_what_is_wanted(
            wanted in 0_u64..5_000,
            nodes in proptest::collection::vec((0_u32..50, 0_u32..2_000, 0_u32..100, 0_u64..200), 1..20),
        ) {
            let shares: Vec<_> =
                nodes.iter().map(|&(min, more, capacity, load)| Share { min, max: min + more, capacity, load }).collect();
            let parts = divide(wanted, &shares);
            let (min, max) = shares.iter().fold((0, 0), |(min, max), share| (min + u64::from(share.min), max + u64::from(share.max)));
            prop_assert!(parts.iter().zip(&shares).all(|(&part, share)| (share.min..=share.max).contains(&part)));
            prop_assert_eq!(parts.iter().map(|&part| u64::from(part)).sum::<u64>(), wanted.clamp(min, max));
        }
    }
}
