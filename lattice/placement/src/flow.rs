//! Which permits count for which spread, where spreads overlap: a maximum flow from classes of nodes to spreads.
//!
//! The plan stores permits per node, not per spread. As much as can count for some spread is kept where it is; because
//! the flow is maximal, a placement that fulfils every spread is found to do so and nothing moves.

use std::collections::VecDeque;

/// Permits of classes of nodes that are counted for spreads.
pub(crate) struct Flow<'a> {
    /// For each class the spreads its nodes are eligible for.
    spreads: Vec<&'a [usize]>,
    /// For each class what it has that is not counted yet.
    spare: Vec<u64>,
    /// For each spread what it still wants.
    missing: Vec<u64>,
    /// `counted[class][spread]`.
    counted: Vec<Vec<u64>>,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(spreads: Vec<&'a [usize]>, wanted: &[u64]) -> Self {
        let counted = vec![vec![0; wanted.len()]; spreads.len()];
        Self { spare: vec![0; spreads.len()], spreads, missing: wanted.to_vec(), counted }
    }

    /// Gives a class more, to be counted by the next [`Flow::run`].
    pub(crate) fn supply(&mut self, class: usize, more: u64) {
        self.spare[class] += more;
    }

    /// Takes away what is not counted.
    pub(crate) fn drop_spare(&mut self) {
        self.spare.fill(0);
    }

    /// Counts as much as can be counted. What a class has counted never falls, only which spread it is for changes.
    pub(crate) fn run(&mut self) {
        (0..self.missing.len()).for_each(|spread| self.run_for(spread));
    }

    /// Counts as much as can be counted for one spread.
    pub(crate) fn run_for(&mut self, spread: usize) {
        while self.missing[spread] > 0 && self.augment(spread) {}
    }

    /// How much of a class is counted.
    pub(crate) fn counted_of(&self, class: usize) -> u64 {
        self.counted[class].iter().sum()
    }

    /// What each spread still wants.
    pub(crate) fn missing(&self) -> &[u64] {
        &self.missing
    }

    /// Finds the shortest way to count more for `spread`: a class with something to spare, or one that counts for
    /// another spread which can take from a class instead, and so on.
    fn augment(&mut self, spread: usize) -> bool {
        let mut class_by: Vec<Option<usize>> = vec![None; self.spreads.len()];
        let mut spread_by: Vec<Option<usize>> = vec![None; self.missing.len()];
        let mut queue = VecDeque::from([spread]);
        while let Some(to) = queue.pop_front() {
            for class in 0..self.spreads.len() {
                if class_by[class].is_some() || !self.spreads[class].contains(&to) {
                    continue;
                }
                class_by[class] = Some(to);
                if self.spare[class] > 0 {
                    self.shift(spread, class, &class_by, &spread_by);
                    return true;
                }
                for (from, by) in spread_by.iter_mut().enumerate() {
                    if from != spread && by.is_none() && self.counted[class][from] > 0 {
                        *by = Some(class);
                        queue.push_back(from);
                    }
                }
            }
        }
        false
    }

    /// Carries out the way that [`Flow::augment`] found, from the class with something to spare back to `spread`.
    fn shift(&mut self, spread: usize, last: usize, class_by: &[Option<usize>], spread_by: &[Option<usize>]) {
        let mut way = Vec::new();
        let mut amount = self.spare[last].min(self.missing[spread]);
        let mut class = last;
        loop {
            let to = class_by[class].expect("every class on the way was reached from a spread");
            way.push((class, to));
            if to == spread {
                break;
            }
            class = spread_by[to].expect("every spread on the way but the first was reached from a class");
            amount = amount.min(self.counted[class][to]);
        }
        self.spare[last] -= amount;
        self.missing[spread] -= amount;
        for (i, &(class, to)) in way.iter().enumerate() {
            self.counted[class][to] += amount;
            if let Some(&(next, _)) = way.get(i + 1) {
                self.counted[next][to] -= amount;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_counted_where_it_is_needed() {
        // Class 0 is eligible for both spreads, class 1 for spread 0 only.
        let mut flow = Flow::new(vec![&[0, 1], &[0]], &[2, 2]);
        flow.supply(0, 2);
        flow.run();
        assert_eq!(flow.missing(), [0, 2], "the first spread takes what there is");
        flow.supply(1, 3);
        flow.run();
        assert_eq!(flow.missing(), [0, 0], "and gives it up for the second when it can be had elsewhere");
        assert_eq!((flow.counted_of(0), flow.counted_of(1)), (2, 2));
    }
}
