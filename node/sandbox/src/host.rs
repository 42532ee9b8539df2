//! What a guest may import: one file for each interface. Each turns the guest's call into a [`Call`](trellis_wire::Call)
//! and hands it to [`Outside`](crate::Outside), which decides.

mod bus;
mod config;
pub(crate) mod custom;
pub(crate) mod http;
mod keyvalue;
mod logging;
mod messaging;
mod secrets;
pub(crate) mod stdio;
pub(crate) mod wasi;

use std::fmt;

use trellis_wire::CallError;
use wasmtime::Engine;
use wasmtime::component::Linker;

use crate::state::State;

/// Every import that the host serves. One linker serves all components.
pub(crate) fn linker(engine: &Engine, wasi_p3: bool) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker, wasi_p3)?;
    http::link(&mut linker, wasi_p3)?;
    keyvalue::link(&mut linker)?;
    config::link(&mut linker)?;
    secrets::link(&mut linker)?;
    logging::link(&mut linker)?;
    messaging::link(&mut linker)?;
    bus::link(&mut linker)?;
    Ok(linker)
}

/// The error of a provider that answers something else than it was asked.
fn wrong_answer(answer: &impl fmt::Debug) -> CallError {
    CallError::Other(format!("the provider gave an answer that does not fit the call: {answer:?}"))
}
