//! Caps that the whole lattice shares: which part of one is whose.

use std::collections::BTreeSet;

use trellis_wire::NodeId;

/// How much of a cap `me` may use, of which it may use `own` now. The holders have equal parts, the first of them one more
/// each where it does not divide. A part shrinks at once, and grows once all others `have_shrunk`: they carry out the
/// plan that names these holders.
pub fn part(total: u32, holders: &BTreeSet<NodeId>, me: NodeId, own: u32, have_shrunk: bool) -> u32 {
    let Some(place) = holders.iter().position(|holder| *holder == me) else { return 0 };
    let count = u32::try_from(holders.len()).unwrap_or(u32::MAX);
    let first = u32::try_from(place).is_ok_and(|place| place < total % count);
    let wanted = total / count + u32::from(first);
    if have_shrunk { wanted } else { wanted.min(own) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: usize) -> NodeId {
        format!("01890a5d-ac96-774b-bcce-{number:012x}").parse().unwrap()
    }

    #[test]
    fn the_parts_come_to_the_cap() {
        let holders: BTreeSet<_> = (0..3).map(node).collect();
        let parts: Vec<_> = (0..4).map(|number| part(10, &holders, node(number), 0, true)).collect();
        assert_eq!(parts, [4, 3, 3, 0]);
        assert_eq!(part(2, &holders, node(2), 5, true), 0, "fewer than there are holders");
        assert_eq!(part(10, &holders, node(0), 1, false), 1, "it waits for the others");
        assert_eq!(part(10, &holders, node(0), 10, false), 4, "and not to shrink");
    }

    proptest! {
        /// Plans follow each other; each node learns of each when it likes, in order, and says so.
        #[test]
        fn never_more_than_the_cap_whoever_knows_what(
            total in 1u32..40,
            plans in proptest::collection::vec(proptest::collection::btree_set(0usize..5, 0..5), 1..8),
            steps in proptest::collection::vec((0usize..5, any::<bool>()), 0..120),
        ) {
            let plans: Vec<BTreeSet<NodeId>> =
                plans.into_iter().map(|plan| plan.into_iter().map(node).collect()).collect();
            let (mut known, mut own) = ([0usize; 5], [0u32; 5]);
            for (number, learns) in steps {
                if learns && known[number] + 1 < plans.len() {
                    known[number] += 1;
                    own[number] = part(total, &plans[known[number]], node(number), own[number], false);
                }
                // Every other node, since one that holds nothing by this plan may hold by an older one.
                let all = (0..5).all(|other| other == number || known[other] >= known[number]);
                own[number] = part(total, &plans[known[number]], node(number), own[number], all);
                prop_assert!(own.iter().sum::<u32>() <= total, "{own:?} of {total}, {known:?}");
            }
        }
    }
}
