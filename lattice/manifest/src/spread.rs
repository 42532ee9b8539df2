//! How many instances each spread gets.

use crate::Spread;

/// Divides `instances` by weight: each spread gets the whole part of its share, and what is left goes one each to the
/// heaviest, the earlier first where weights are the same (wadm 0.21, spreadscaler). All add up to `instances` again.
/// Weights that are all 0 count as equal. Without spreads there is nothing to give to.
pub fn spread(instances: u32, spreads: &[Spread]) -> Vec<u32> {
    let equal = spreads.iter().all(|spread| spread.weight == 0);
    let weights: Vec<u64> = spreads.iter().map(|spread| if equal { 1 } else { spread.weight.into() }).collect();
    let total: u64 = weights.iter().sum();
    let share =
        |weight: &u64| u32::try_from(u64::from(instances) * weight / total).expect("no share exceeds the whole");
    let mut shares: Vec<u32> = weights.iter().map(share).collect();
    let left = instances - shares.iter().sum::<u32>();
    let mut heaviest: Vec<usize> = (0..shares.len()).collect();
    heaviest.sort_by_key(|&index| std::cmp::Reverse(weights[index]));
    for index in heaviest.into_iter().take(left as usize) {
        shares[index] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(instances: u32, weights: &[u32]) -> Vec<u32> {
        let of_weight = |&weight: &u32| Spread { name: "s".into(), requirements: Default::default(), weight };
        spread(instances, &weights.iter().map(of_weight).collect::<Vec<_>>())
    }

    #[test]
    fn the_remainder_goes_to_the_heaviest() {
        assert_eq!(shares(7, &[30, 40]), [3, 4]);
        assert_eq!(shares(103, &[42, 3, 37, 384]), [10, 0, 8, 85]);
        assert_eq!(shares(5, &[100, 100]), [3, 2]);
        assert_eq!(shares(0, &[1, 2]), [0, 0]);
        assert!(shares(3, &[]).is_empty());
    }

    #[test]
    fn weights_that_are_all_nothing_are_equal_and_a_single_zero_gets_nothing() {
        assert_eq!(shares(7, &[0, 0, 0]), [3, 2, 2]);
        assert_eq!(shares(7, &[0, 5]), [0, 7]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nobody_gets_more_than_one_above_his_share(
            instances: u32, weights in prop::collection::vec(any::<u32>(), 1..20)
        ) {
            let shares = shares(instances, &weights);
            prop_assert_eq!(shares.iter().map(|&n| u64::from(n)).sum::<u64>(), u64::from(instances));
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let exact = if total == 0 { 1.0 / weights.len() as f64 } else { f64::from(*weight) / total as f64 };
                prop_assert!((f64::from(*share) - f64::from(instances) * exact).abs() <= 1.0001);
            }
        }
    }
}
