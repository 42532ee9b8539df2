//! The engine: how wasmtime is set up for many short runs, and the budgets that all runs of the node share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_wire::{Digest, Error};
use wasmtime::component::Linker;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::cache::Cache;
use crate::component::{Component, ComponentError};
use crate::host;
use crate::inspect::{self, Inspection};
use crate::limits::{Budget, Memory, PARTS_MAX, TABLE_ELEMENTS_MAX};
use crate::state::State;

/// How often a guest that computes lets others go on. Also how late a deadline may strike such a guest.
const TICK: Duration = Duration::from_millis(10);

/// The stack of a guest, and the stack that holds it with the host functions it calls.
const WASM_STACK_BYTES: usize = 512 * 1024;
const ASYNC_STACK_BYTES: usize = 1024 * 1024;

/// What the pool keeps resident of a memory: with `PAGEMAP_SCAN` only dirtied pages are reset, without it all of this
/// is, so it must be small (1 MiB without the scan is slower than keeping nothing).
const KEPT_BYTES_WITH_SCAN: usize = 1024 * 1024;
const KEPT_BYTES_WITHOUT_SCAN: usize = 64 * 1024;

/// The most that the host's side of one component may take in the pool, in bytes.
const INSTANCE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a node gives its sandboxes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where compiled code is kept. Made private to this user.
    pub cache_dir: PathBuf,
    /// How many sandboxes may be there at once.
    pub sandboxes_max: u32,
    /// How much memory, linear and in tables, they may have together, in bytes. No run gets more than this either.
    pub memory_bytes_max: u64,
    /// Whether components of WASI 0.3 are run.
    pub wasi_p3: bool,
}

/// Where sandboxes get their memory from. Chosen once, when the engine is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocator {
    /// From slots that are reserved at the start: the fast way.
    Pooling,
    /// From the system each time, where the address space has no room for the slots.
    OnDemand,
}

/// Why there is no engine. Each ends the node's start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The directory for compiled code cannot be used.
    #[error("{}: {why}: the directory for compiled code must belong to the user that runs the node", path.display())]
    CacheDir {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
    /// wasmtime does not start on this machine.
    #[error("wasmtime does not start on this machine: {0}")]
    Unsupported(String),
}

/// Compiles and loads components, and keeps what all their runs share.
pub struct Engine {
    wasmtime: wasmtime::Engine,
    /// Every import that the host serves, built once.
    linker: Linker<State>,
    cache: Cache,
    sandboxes: Arc<Semaphore>,
    sandboxes_max: u32,
    memory: Arc<Budget>,
    wasi_p3: bool,
    allocator: Allocator,
}

impl Engine {
    /// Makes the engine and starts its clock.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn new(options: Options) -> Result<Arc<Self>, EngineError> {
        let (wasmtime, allocator) = start(options.sandboxes_max, options.wasi_p3)?;
        let unsupported = |why: wasmtime::Error| EngineError::Unsupported(format!("{why:#}"));
        let linker = host::linker(&wasmtime, options.wasi_p3).map_err(unsupported)?;
        let cache = Cache::open(options.cache_dir.clone(), &wasmtime)
            .map_err(|why| EngineError::CacheDir { path: options.cache_dir, why })?;
        tick(&wasmtime)?;
        Ok(Arc::new(Self {
            wasmtime,
            linker,
            cache,
            sandboxes: Arc::new(Semaphore::new(options.sandboxes_max as usize)),
            sandboxes_max: options.sandboxes_max,
            memory: Budget::new(options.memory_bytes_max),
            wasi_p3: options.wasi_p3,
            allocator,
        }))
    }

    /// Looks at an artifact without compiling it.
    ///
    /// # Errors
    /// It is no component, or it imports what is not served.
    pub fn inspect(&self, wasm: &[u8]) -> Result<Inspection, ComponentError> {
        inspect::inspect(wasm, self.wasi_p3)
    }

    /// Compiles an artifact and keeps the code; returns at once if it is kept already. Blocks for up to seconds: call it
    /// off the async threads.
    ///
    /// # Errors
    /// Whatever would keep the component from running is found here, at deploy time.
    pub fn compile(self: &Arc<Self>, digest: Digest, wasm: &[u8]) -> Result<(), ComponentError> {
        self.inspect(wasm)?;
        match self.load(digest) {
            Err(ComponentError::NotCompiled(_)) => {}
            loaded => return loaded.map(drop),
        }
        let invalid = |why: wasmtime::Error| ComponentError::Invalid(format!("{why:#}"));
        let code = wasmtime::component::Component::from_binary(&self.wasmtime, wasm).map_err(invalid)?;
        // Code that does not link can never run and is not kept.
        Component::new(self.clone(), digest, &code)?;
        self.cache.put(digest, &code.serialize().map_err(invalid)?)
    }

    /// Whether [`Engine::load`] will find code of this artifact.
    pub fn is_compiled(&self, digest: Digest) -> bool {
        self.cache.contains(digest)
    }

    /// Loads compiled code. Blocks, for less than a millisecond.
    ///
    /// # Errors
    /// [`ComponentError::NotCompiled`] asks for [`Engine::compile`]; the code may have been there and not be usable.
    pub fn load(self: &Arc<Self>, digest: Digest) -> Result<Arc<Component>, ComponentError> {
        let code = self.cache.load(&self.wasmtime, digest)?;
        Component::new(self.clone(), digest, &code).map(Arc::new)
    }

    /// Removes compiled code of an artifact that no plan holds any more.
    ///
    /// # Errors
    /// [`ComponentError::Cache`].
    pub fn forget(&self, digest: Digest) -> Result<(), ComponentError> {
        self.cache.remove(digest)
    }

    /// Where sandboxes get their memory from.
    pub const fn allocator(&self) -> Allocator {
        self.allocator
    }

    /// How many sandboxes are there now.
    pub fn sandboxes(&self) -> u32 {
        self.sandboxes_max.saturating_sub(u32::try_from(self.sandboxes.available_permits()).unwrap_or(u32::MAX))
    }

    /// How much memory, linear and in tables, they have now, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }

    pub(crate) const fn wasmtime(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }

    pub(crate) const fn linker(&self) -> &Linker<State> {
        &self.linker
    }

    /// The right to one of the node's sandboxes. The pool says no with an error when it is full; this says it first.
    pub(crate) fn sandbox(&self) -> Result<OwnedSemaphorePermit, Error> {
        let max = self.sandboxes_max;
        let full = |_| Error::Busy(format!("all {max} sandboxes of this node are in use (--max-sandboxes)"));
        self.sandboxes.clone().try_acquire_owned().map_err(full)
    }

    /// The memory of one run.
    pub(crate) fn memory(&self, limit_bytes: u64) -> Memory {
        Memory::new(self.memory.clone(), limit_bytes)
    }
}

/// Starts wasmtime with the pool, or without it where the address space has no room for it: the pool reserves all its
/// slots when the engine is made, so making it is the probe.
fn start(sandboxes_max: u32, wasi_p3: bool) -> Result<(wasmtime::Engine, Allocator), EngineError> {
    let mut config = config(wasi_p3);
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

/// Only WASI 0.3 has several calls at work in one guest.
fn config(wasi_p3: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_init_cow(true)
        .wasm_component_model_async(wasi_p3)
        .concurrency_support(wasi_p3)
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
        .table_keep_resident(16 * 1024)
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

/// Starts the clock that interrupts guests: a thread of its own, for busy guests may hold every async thread. It ends
/// when the engine is gone.
fn tick(engine: &wasmtime::Engine) -> Result<(), EngineError> {
    let engine = engine.weak();
    let ticking = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    };
    let thread = std::thread::Builder::new().name("trellis-epoch".into()).spawn(ticking);
    thread.map(drop).map_err(|why| EngineError::Unsupported(format!("no thread for the clock: {why}")))
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
