//! Memory: what one run may have, and what all runs of the node may have together. Tables count as memory.
//!
//! The two end differently. A guest that reaches its own limit is told so by `memory.grow`, and if it cannot live with
//! that the run is its fault. When the node's budget is spent the run ends as busy, which counts against nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// The most elements that one table may have.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// What one element of a table takes, in bytes.
const TABLE_ELEMENT_BYTES: usize = size_of::<usize>();

/// The most core instances, tables and memories that one component may have.
pub(crate) const PARTS_MAX: usize = 64;

/// The memory of all sandboxes of a node together.
#[derive(Debug)]
pub(crate) struct Budget {
    used_bytes: AtomicU64,
    max_bytes: u64,
}

impl Budget {
    pub(crate) fn new(max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { used_bytes: AtomicU64::new(0), max_bytes })
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes` out of the budget, all or nothing.
    fn take(&self, bytes: u64) -> Result<(), Exhausted> {
        let grown = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.max_bytes);
        match self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
            Ok(_) => Ok(()),
            Err(_) => Err(Exhausted { max_bytes: self.max_bytes }),
        }
    }

    fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The node's budget is spent. It travels through the guest as a trap and comes out as busy.
#[derive(Debug, thiserror::Error)]
#[error("the sandboxes of this node use all of their {max_bytes} bytes of memory (--sandbox-memory)")]
pub(crate) struct Exhausted {
    max_bytes: u64,
}

/// The memory of one run. What it took from the budget goes back when it is dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    budget: Arc<Budget>,
    limit_bytes: u64,
    taken_bytes: u64,
    /// Whether the guest was refused memory when it last asked for some.
    refused: bool,
}

impl Memory {
    /// A limit above the whole budget of the node is that budget: waiting would not help a guest that needs more.
    pub(crate) fn new(budget: Arc<Budget>, limit_bytes: u64) -> Self {
        let limit_bytes = limit_bytes.min(budget.max_bytes);
        Self { budget, limit_bytes, taken_bytes: 0, refused: false }
    }

    /// The limit, if the guest was refused memory because of it and got none since. A guest that got some afterwards
    /// could live with the refusal, and what ends it later is something else.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        self.refused.then_some(self.limit_bytes)
    }

    /// Takes `more` for the guest; false if that is over its own limit.
    fn take(&mut self, more: u64) -> Result<bool, Exhausted> {
        self.refused = self.taken_bytes.saturating_add(more) > self.limit_bytes;
        if !self.refused {
            self.budget.take(more)?;
            self.taken_bytes += more;
        }
        Ok(!self.refused)
    }
}

impl ResourceLimiter for Memory {
    /// What is taken here stays taken until the run ends, even if the system then has no page: a failure is not told
    /// apart from one of a growth that was never asked for here, and a guest must not get memory back by failing.
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.take(desired.saturating_sub(current) as u64)?)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if desired > maximum.unwrap_or(usize::MAX).min(TABLE_ELEMENTS_MAX) {
            return Ok(false);
        }
        Ok(self.take((desired.saturating_sub(current) * TABLE_ELEMENT_BYTES) as u64)?)
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.budget.give_back(self.taken_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_shared_and_given_back() {
        let budget = Budget::new(100);
        let mut one = Memory::new(budget.clone(), 80);
        let mut other = Memory::new(budget.clone(), 80);
        assert!(one.memory_growing(0, 60, None).unwrap());
        assert!(!one.memory_growing(60, 90, None).unwrap(), "over its own limit: the guest is told");
        assert_eq!((one.exceeded(), other.exceeded()), (Some(80), None));
        assert!(other.memory_growing(0, 41, None).unwrap_err().is::<Exhausted>(), "over the node's: the run ends");
        assert!(other.memory_growing(0, 40, None).unwrap());
        assert!(!other.memory_growing(40, 50, Some(45)).unwrap(), "over what its memory declares");
        assert_eq!((other.exceeded(), budget.used_bytes()), (None, 100));
        drop(one);
        assert_eq!(budget.used_bytes(), 40);
        drop(other);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_limit_above_the_budget_is_the_budget() {
        let mut only = Memory::new(Budget::new(100), 1000);
        assert!(!only.memory_growing(0, 101, None).unwrap(), "no other run is in its way");
        assert_eq!(only.exceeded(), Some(100));
    }

    #[test]
    fn a_guest_that_lived_with_a_refusal_is_not_out_of_memory() {
        let mut memory = Memory::new(Budget::new(100), 80);
        assert!(!memory.memory_growing(0, 81, None).unwrap());
        assert_eq!(memory.exceeded(), Some(80));
        assert!(memory.memory_growing(0, 10, None).unwrap());
        assert_eq!(memory.exceeded(), None);
    }

    #[test]
    fn tables_are_memory() {
        let budget = Budget::new(1000);
        let mut memory = Memory::new(budget.clone(), 800);
        assert!(memory.table_growing(10, 110, None).unwrap());
        assert_eq!(budget.used_bytes(), 800);
        assert!(!memory.table_growing(110, 111, None).unwrap());
        assert_eq!(memory.exceeded(), Some(800));
        let mut other = Memory::new(budget.clone(), 800);
        assert!(other.table_growing(0, 26, None).unwrap_err().is::<Exhausted>());
        assert!(!other.table_growing(0, 20, Some(19)).unwrap(), "over what the table declares");
        assert!(!other.table_growing(0, TABLE_ELEMENTS_MAX + 1, None).unwrap());
        assert_eq!(other.exceeded(), None);
    }
}
