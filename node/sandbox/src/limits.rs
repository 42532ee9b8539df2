//! Memory: what one run may have, and what all runs of the node may have together.
//!
//! The two end differently. A guest that reaches its own limit is told so by `memory.grow`, and if it cannot live with
//! that the run is its fault. When the node's budget is spent the run ends as busy, which counts against nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

/// The most elements that one table may have.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

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
    refused: bool,
}

impl Memory {
    pub(crate) fn new(budget: Arc<Budget>, limit_bytes: u64) -> Self {
        Self { budget, limit_bytes, taken_bytes: 0, refused: false }
    }

    /// The limit, if the guest was ever refused memory because of it.
    pub(crate) fn exceeded(&self) -> Option<u64> {
        self.refused.then_some(self.limit_bytes)
    }
}

impl ResourceLimiter for Memory {
    /// What is taken here stays taken until the run ends, even if the system then has no page: a failure is not told
    /// apart from one of a growth that was never asked for here, and a guest must not get memory back by failing.
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current) as u64;
        if self.taken_bytes.saturating_add(more) > self.limit_bytes {
            self.refused = true;
            return Ok(false);
        }
        self.budget.take(more)?;
        self.taken_bytes += more;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
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
}
