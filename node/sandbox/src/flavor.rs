//! wasmtime, set up for many short runs.
//!
//! A node that runs WASI 0.3 has it in two flavors. Only WASI 0.3 has several calls at work in one guest; the means for that
//! cost every run an eighth of its instructions, so a component that can do without is run without.

use std::path::Path;

use trellis_wire::Digest;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::cache::Cache;
use crate::component::ComponentError;
use crate::engine::EngineError;
use crate::host;
use crate::limits::{PARTS_MAX, TABLE_ELEMENTS_MAX};
use crate::state::State;

/// The stack of a guest, and the stack that holds it with the host functions it calls.
const WASM_STACK_BYTES: usize = 512 * 1024;
const ASYNC_STACK_BYTES: usize = 1024 * 1024;

/// What the pool keeps resident of a memory: with `PAGEMAP_SCAN` only dirtied pages are reset, without it all of this
/// is, so it must be small (1 MiB without the scan is slower than keeping nothing).
const KEPT_BYTES_WITH_SCAN: usize = 1024 * 1024;
const KEPT_BYTES_WITHOUT_SCAN: usize = 64 * 1024;

/// What it keeps resident of a table: those of an interpreter hold thousands of functions, of 8 bytes each.
const KEPT_TABLE_BYTES: usize = 64 * 1024;

/// The most that the host's side of one component may take in the pool, in bytes.
const INSTANCE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Where sandboxes get their memory from. Chosen once, when the engine is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Allocator {
    /// From slots that are reserved at the start: the fast way.
    Pooling,
    /// From the system each time, where the address space has no room for the slots.
    OnDemand,
}

/// One wasmtime, with all that its components share.
pub(crate) struct Flavor {
    wasmtime: wasmtime::Engine,
    /// Every import that the host serves, built once.
    linker: Linker<State>,
    cache: Cache,
}

impl Flavor {
    /// Starts wasmtime. `concurrent` says whether guests may have several calls at work, as WASI 0.3 asks for.
    pub(crate) fn new(cache_dir: &Path, sandboxes_max: u32, concurrent: bool) -> Result<Self, EngineError> {
        let (wasmtime, _) = start(sandboxes_max, concurrent)?;
        let linker = host::linker(&wasmtime, concurrent)
            .map_err(|why: wasmtime::Error| EngineError::Unsupported(format!("{why:#}")))?;
        let cache = Cache::open(cache_dir.to_owned(), &wasmtime)
            .map_err(|why| EngineError::CacheDir { path: cache_dir.to_owned(), why })?;
        Ok(Self { wasmtime, linker, cache })
    }

    /// Compiles an artifact.
    pub(crate) fn compile(&self, wasm: &[u8]) -> Result<Component, ComponentError> {
        Component::from_binary(&self.wasmtime, wasm).map_err(|why| ComponentError::Invalid(format!("{why:#}")))
    }

    /// Maps what was compiled before.
    pub(crate) fn load(&self, digest: Digest) -> Result<Component, ComponentError> {
        self.cache.load(&self.wasmtime, digest)
    }

    pub(crate) const fn wasmtime(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }

    pub(crate) const fn linker(&self) -> &Linker<State> {
        &self.linker
    }

    pub(crate) const fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// Starts wasmtime with the pool, or without it where the address space has no room for it: the pool reserves all its
/// slots when the engine is made, so making it is the probe.
fn start(sandboxes_max: u32, concurrent: bool) -> Result<(wasmtime::Engine, Allocator), EngineError> {
    let mut config = config(concurrent);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(sandboxes_max)));
    let no_room = match wasmtime::Engine::new(&config) {
        Ok(engine) => return Ok((engine, Allocator::Pooling)),
        Err(why) => why,
    };
    tracing::warn!(
        why = %format_args!("{no_room:#}"),
        sandboxes_max,
        "no address space for the pool of sandboxes; they get their memory from the system each time, which is slower"
    );
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    match wasmtime::Engine::new(&config) {
        Ok(engine) => Ok((engine, Allocator::OnDemand)),
        Err(why) => Err(EngineError::Unsupported(format!("{why:#}"))),
    }
}

fn config(concurrent: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_init_cow(true)
        .wasm_component_model_async(concurrent)
        .concurrency_support(concurrent)
        .max_wasm_stack(WASM_STACK_BYTES)
        .async_stack_size(ASYNC_STACK_BYTES);
    config
}

/// The pool. A component is rarely more than one memory, two tables and four core instances; one that is finds the pool
/// full a little earlier, which is busy and not wrong.
fn pool(sandboxes_max: u32) -> PoolingAllocationConfig {
    let scan = pagemap_scan();
    // A node of few sandboxes has room for the largest component all the same.
    let times = |n: u32| sandboxes_max.saturating_mul(n).max(PARTS_MAX as u32);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(times(1))
        .total_core_instances(times(4))
        .total_memories(times(2))
        .total_tables(times(4))
        .total_stacks(times(2))
        .total_gc_heaps(times(1))
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_core_instances_per_component(PARTS_MAX as u32)
        .max_memories_per_component(PARTS_MAX as u32)
        .max_tables_per_component(PARTS_MAX as u32)
        .max_memories_per_module(2)
        .max_tables_per_module(4)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .linear_memory_keep_resident(if scan { KEPT_BYTES_WITH_SCAN } else { KEPT_BYTES_WITHOUT_SCAN })
        .table_keep_resident(KEPT_TABLE_BYTES)
        .decommit_batch_size(16)
        .pagemap_scan(if scan { Enabled::Auto } else { Enabled::No });
    pool
}

/// Whether the kernel can say which pages a guest dirtied. It must be 6.7 or newer; with swap a page that was swapped
/// out looks clean, so then it is not asked.
fn pagemap_scan() -> bool {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    is_6_7(&kernel) && swaps.lines().count() <= 1 && PoolingAllocationConfig::is_pagemap_scan_available()
}

fn is_6_7(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(is_6_7("6.18.44-fc") && is_6_7("7.0.1") && is_6_7("6.7.0"));
        assert!(!is_6_7("6.6.99") && !is_6_7("5.15.0") && !is_6_7(""));
    }

    #[test]
    fn a_node_without_room_for_the_pool_starts_without_it() {
        // 30 million sandboxes would need more than the 128 TiB that a process can address.
        let (_, allocator) = start(30_000_000, true).expect("falls back");
        assert_eq!(allocator, Allocator::OnDemand);
    }
}
