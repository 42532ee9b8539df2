//! WASI itself: clocks, randomness, standard streams. wasmtime's own, with everything that reaches outside denied: no
//! socket, no name lookup, no file, no environment variable, no standard input.

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::p2::bindings::io::{error, poll, streams};
use wasmtime_wasi::{WasiCtx, p2, p3};

use super::stdio::Sink;
use crate::run::HANDLES_MAX;
use crate::state::State;

/// The most random bytes that a guest may ask for at once.
const RANDOM_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn link(linker: &mut Linker<State>, wasi_p3: bool) -> wasmtime::Result<()> {
    p2::add_to_linker_async(linker)?;
    // Streams need the table and nothing else of a guest's world, which wasmtime's own link would have made for them.
    linker.allow_shadowing(true);
    error::add_to_linker::<State, Table>(linker, |state| &mut state.table)?;
    poll::add_to_linker::<State, Table>(linker, |state| &mut state.table)?;
    streams::add_to_linker::<State, Table>(linker, |state| &mut state.table)?;
    linker.allow_shadowing(false);
    if wasi_p3 {
        p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// What streams need of the host.
struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

/// The table of things that a guest holds: behind each there is a handle.
pub(crate) fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    table
}

/// A guest's world. Most guests that answer an event ask for nothing of it, so it is made when one does.
pub(crate) struct World {
    wasi: Option<WasiCtx>,
    /// The name of the program that it is run as, and what follows that.
    arguments: Vec<String>,
    pub(crate) stdout: Sink,
    pub(crate) stderr: Sink,
}

impl World {
    pub(crate) fn new(arguments: Vec<String>, (stdout, stderr): (Sink, Sink)) -> Self {
        Self { wasi: None, arguments, stdout, stderr }
    }

    /// Sockets and name lookup are denied by wasmtime unless they are allowed; nothing is.
    pub(crate) fn wasi(&mut self) -> &mut WasiCtx {
        let Self { wasi, arguments, stdout, stderr } = self;
        wasi.get_or_insert_with(|| {
            let mut wasi = WasiCtx::builder();
            wasi.max_random_size(RANDOM_BYTES_MAX).args(arguments).stdout(stdout.clone()).stderr(stderr.clone());
            wasi.build()
        })
    }
}
