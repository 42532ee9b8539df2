//! The engine: compiles and loads components, and keeps the budgets that all runs of the node share. How wasmtime is set up
//! is in `flavor.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_wire::{Digest, Error};

use crate::cache;
use crate::clock::Clock;
use crate::component::{Component, ComponentError};
use crate::flavor::Flavor;
use crate::inspect::{self, Inspection};
use crate::limits::{Budget, Memory};

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
    /// In the order in which a component tries them.
    flavors: Vec<Flavor>,
    sandboxes: Arc<Semaphore>,
    sandboxes_max: u32,
    memory: Arc<Budget>,
    wasi_p3: bool,
    /// Behind the flavors, whose end it waits for.
    clock: Clock,
}

impl Engine {
    /// Makes the engine and starts its clock.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn new(options: Options) -> Result<Arc<Self>, EngineError> {
        let Options { cache_dir, sandboxes_max, memory_bytes_max, wasi_p3 } = options;
        let concurrent = [false, true].into_iter().filter(|concurrent| wasi_p3 || !concurrent);
        let flavors: Vec<Flavor> = concurrent
            .map(|concurrent| Flavor::new(&cache_dir, sandboxes_max, concurrent))
            .collect::<Result<_, _>>()?;
        cache::tidy(&cache_dir, &flavors.iter().map(Flavor::cache).collect::<Vec<_>>())
            .map_err(|why| EngineError::CacheDir { path: cache_dir, why })?;
        let sandboxes = Arc::new(Semaphore::new(sandboxes_max as usize));
        let clock = Clock::start(flavors.iter().map(|flavor| flavor.wasmtime().weak()).collect(), sandboxes.clone())
            .map_err(|why| EngineError::Unsupported(format!("no thread for the clock: {why}")))?;
        let memory = Budget::new(memory_bytes_max);
        Ok(Arc::new(Self { flavors, sandboxes, sandboxes_max, memory, wasi_p3, clock }))
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
        let mut refused = ComponentError::NotCompiled(digest);
        for flavor in &self.flavors {
            match self.compile_as(flavor, digest, wasm) {
                Err(why) if why.is_of_the_artifact() => refused = why,
                done => return done,
            }
        }
        Err(refused)
    }

    fn compile_as(self: &Arc<Self>, flavor: &Flavor, digest: Digest, wasm: &[u8]) -> Result<(), ComponentError> {
        let code = flavor.compile(wasm)?;
        // Code that does not link can never run and is not kept.
        Component::new(self.clone(), digest, &code, flavor.linker())?;
        let invalid = |why: wasmtime::Error| ComponentError::Invalid(format!("{why:#}"));
        flavor.cache().put(digest, &code.serialize().map_err(invalid)?)
    }

    /// Whether [`Engine::load`] will find code of this artifact.
    pub fn is_compiled(&self, digest: Digest) -> bool {
        self.flavors.iter().any(|flavor| flavor.cache().contains(digest))
    }

    /// Loads compiled code. Blocks, for less than a millisecond.
    ///
    /// # Errors
    /// [`ComponentError::NotCompiled`] asks for [`Engine::compile`]; the code may have been there and not be usable.
    pub fn load(self: &Arc<Self>, digest: Digest) -> Result<Arc<Component>, ComponentError> {
        for flavor in &self.flavors {
            match flavor.load(digest) {
                Err(ComponentError::NotCompiled(_)) => {}
                code => return Component::new(self.clone(), digest, &code?, flavor.linker()).map(Arc::new),
            }
        }
        Err(ComponentError::NotCompiled(digest))
    }

    /// Removes compiled code of an artifact that no plan holds any more.
    ///
    /// # Errors
    /// [`ComponentError::Cache`].
    pub fn forget(&self, digest: Digest) -> Result<(), ComponentError> {
        self.flavors.iter().try_for_each(|flavor| flavor.cache().remove(digest))
    }

    /// How many sandboxes are there now.
    pub fn sandboxes(&self) -> u32 {
        self.sandboxes_max.saturating_sub(u32::try_from(self.sandboxes.available_permits()).unwrap_or(u32::MAX))
    }

    /// How much memory, linear and in tables, they have now, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.used_bytes()
    }

    /// The right to one of the node's sandboxes. The pool says no with an error when it is full; this says it first.
    pub(crate) fn sandbox(&self) -> Result<OwnedSemaphorePermit, Error> {
        let max = self.sandboxes_max;
        let full = |_| Error::Busy(format!("all {max} sandboxes of this node are in use (--max-sandboxes)"));
        let place = self.sandboxes.clone().try_acquire_owned().map_err(full)?;
        self.clock.go_on();
        Ok(place)
    }

    /// Whether the clock that interrupts guests stands still, as it does soon when there is no sandbox.
    pub fn is_idle(&self) -> bool {
        self.clock.stands()
    }

    /// The memory of one run.
    pub(crate) fn memory(&self, limit_bytes: u64) -> Memory {
        Memory::new(self.memory.clone(), limit_bytes)
    }
}
