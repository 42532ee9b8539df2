//! An HTTP request for a guest, of either WASI. What they differ in is in `http2.rs` and `http3.rs`; how the reply goes on
//! while the guest writes it, in `reply.rs`.

use http::Request;
use tokio::sync::oneshot;
use trellis_wire::{Body, Failure, Outcome};

use super::reply::{Answer, BrokenOff, reply};
use super::{Http, http2, http3};
use crate::fault;
use crate::run::Sandbox;

/// Hands a request to the guest.
pub(crate) async fn handle(guest: Http, request: Request<Body>, sandbox: Sandbox) -> Outcome {
    let (answered, answer) = oneshot::channel();
    let (limits, outside) = (sandbox.limits, sandbox.store.data().outside.clone());
    let broken_off = BrokenOff::default();
    let running = Box::pin(run(guest, request, answered, sandbox, broken_off.clone()));
    reply(running, answer, broken_off, limits, outside).await
}

/// The guest, from its start until none of it is left to run. It owns its sandbox, which goes when this returns or is
/// dropped.
async fn run(
    guest: Http,
    request: Request<Body>,
    answered: oneshot::Sender<Answer>,
    mut sandbox: Sandbox,
    broken_off: BrokenOff,
) -> Result<(), Failure> {
    let ended = match &guest {
        Http::P2(guest) => http2::call(guest, request, answered, &mut sandbox.store).await,
        Http::P3(guest) => http3::call(guest, request, answered, &mut sandbox.store).await,
    };
    ended.map_err(|error| {
        let failure = fault::failure(&error, sandbox.store.data());
        broken_off.because(failure.to_string());
        failure
    })
}
