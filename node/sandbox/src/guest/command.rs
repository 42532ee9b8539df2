//! A run with arguments: `wasi:cli/run` of WASI 0.2 or 0.3.

use tokio::time::timeout;
use trellis_wire::{Outcome, Reply, RunOutput};
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi::{I32Exit, p2, p3};

use crate::run::Sandbox;
use crate::state::State;

/// Runs a guest of WASI 0.2.
pub(crate) async fn run(guest: &p2::bindings::CommandPre<State>, mut sandbox: Sandbox) -> Outcome {
    let ended = timeout(sandbox.limits.timeout, call(guest, &mut sandbox.store)).await;
    output(&sandbox, ended)
}

/// Runs a guest of WASI 0.3.
pub(crate) async fn run_p3(guest: &p3::bindings::CommandPre<State>, mut sandbox: Sandbox) -> Outcome {
    let ended = timeout(sandbox.limits.timeout, call_p3(guest, &mut sandbox.store)).await;
    output(&sandbox, ended)
}

async fn call(guest: &p2::bindings::CommandPre<State>, store: &mut Store<State>) -> wasmtime::Result<bool> {
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    let ended = guest.wasi_cli_run().call_run(store).await;
    ended.map(|result| result.is_ok()).or_else(exited)
}

async fn call_p3(guest: &p3::bindings::CommandPre<State>, store: &mut Store<State>) -> wasmtime::Result<bool> {
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    let running = async |store: &Accessor<State>| guest.wasi_cli_run().call_run(store).await;
    let ended = store.run_concurrent(running).await.flatten();
    ended.map(|result| result.is_ok()).or_else(exited)
}

/// Leaving through `wasi:cli/exit` is an end like any other, and looks like a trap.
fn exited(error: wasmtime::Error) -> wasmtime::Result<bool> {
    match error.downcast_ref::<I32Exit>() {
        Some(I32Exit(code)) => Ok(*code == 0),
        None => Err(error),
    }
}

fn output(sandbox: &Sandbox, ended: Result<wasmtime::Result<bool>, tokio::time::error::Elapsed>) -> Outcome {
    let ok = sandbox.verdict(ended)?;
    let state = sandbox.store.data();
    Ok(Reply::Run(RunOutput { ok, stdout: state.world.stdout.kept(), stderr: state.world.stderr.kept() }))
}
