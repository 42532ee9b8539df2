//! WASI itself: clocks, randomness, standard streams. wasmtime's own, with everything that reaches outside denied: no
//! socket, no name lookup, no file, no environment variable, no standard input.

use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, p2, p3};

use super::stdio::Sink;
use crate::run::HANDLES_MAX;
use crate::state::State;

/// The most random bytes that a guest may ask for at once.
const RANDOM_BYTES_MAX: u64 = 1024 * 1024;

pub(super) fn link(linker: &mut Linker<State>, wasi_p3: bool) -> wasmtime::Result<()> {
    p2::add_to_linker_async(linker)?;
    if wasi_p3 {
        p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// The table of things that a guest holds: behind each there is a handle.
pub(crate) fn table() -> ResourceTable {
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    table
}

/// A guest's world. Sockets and name lookup are denied by wasmtime unless they are allowed; nothing is.
pub(crate) fn denied(program: &str, arguments: &[String], stdout: &Sink, stderr: &Sink) -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.max_random_size(RANDOM_BYTES_MAX).stdout(stdout.clone()).stderr(stderr.clone());
    if !arguments.is_empty() {
        wasi.arg(program).args(arguments);
    }
    wasi.build()
}
