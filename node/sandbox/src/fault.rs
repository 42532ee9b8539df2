//! Whose failure it was: turns what wasmtime says into a fault of the guest's or an error of ours.

use trellis_wire::{CallError, Error, Failure, Fault};
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
    if let Some(why) = error.downcast_ref::<CallError>() {
        return of_a_call(why)
            .map_or_else(|| Fault::Trap(trap_text(error, &state.world.stderr.tail())).into(), Failure::from);
    }
    if let Some(limit_bytes) = state.memory.exceeded() {
        return Fault::OutOfMemory { limit_bytes }.into();
    }
    Fault::Trap(trap_text(error, &state.world.stderr.tail())).into()
}

/// Our error, if a call that its interface has no error for failed through no doing of the guest's. A call that ran out
/// of time may have been done, so it is not for us to try again.
fn of_a_call(why: &CallError) -> Option<Error> {
    match why {
        CallError::Unavailable(_) => Some(Error::Busy(why.to_string())),
        CallError::TimedOut(_) | CallError::Other(_) => Some(Error::Internal(why.to_string())),
        CallError::Denied(_) | CallError::NoSuch(_) | CallError::Invalid(_) => None,
    }
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
