//! Whose failure it was: turns what wasmtime says into a fault of the guest's or an error of ours.

use trellis_wire::{Error, Failure, Fault};
use wasmtime::PoolConcurrencyLimitError;
use wasmtime_wasi::I32Exit;

use crate::host::stdio::cut;
use crate::limits::Exhausted;
use crate::state::State;

/// The most that is kept of a trap's message, backtrace and standard error, in bytes.
const TRAP_BYTES_MAX: usize = 8 * 1024;

/// Says whose failure an error out of the sandbox is.
pub(crate) fn failure(error: &wasmtime::Error, state: &State) -> Failure {
    if let Some(exhausted) = error.downcast_ref::<Exhausted>() {
        return Error::Busy(exhausted.to_string()).into();
    }
    if let Some(full) = error.downcast_ref::<PoolConcurrencyLimitError>() {
        return Error::Busy(format!("no place for a sandbox: {full}")).into();
    }
    if let Some(limit_bytes) = state.memory.exceeded() {
        return Fault::OutOfMemory { limit_bytes }.into();
    }
    Fault::Trap(trap_text(error, &state.stderr.tail())).into()
}

/// The message, what the guest wrote last (a panic's message is there and nowhere else), and the guest's backtrace, in
/// this order: the end may be cut.
fn trap_text(error: &wasmtime::Error, stderr: &str) -> String {
    if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        return format!("it called wasi:cli/exit with code {code}");
    }
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    let mut text = causes.pop().unwrap_or_default();
    if !stderr.is_empty() {
        text = format!("{text}\nits standard error ends:\n{stderr}");
    }
    for context in causes.iter().rev() {
        text.push('\n');
        text.push_str(context);
    }
    cut(text, TRAP_BYTES_MAX)
}
