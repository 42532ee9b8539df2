//! An HTTP request for a guest of WASI 0.3: `wasi:http/handler`, an async function from request to response.
//!
//! The host's side of WASI 0.3 is young in wasmtime 48. This file, `command.rs` and `host/http.rs` are all that knows it.

use std::future::poll_fn;

use http::Request;
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use trellis_wire::Body;
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};

use super::reply::Answer;
use crate::host::http::body_error;
use crate::state::State;

/// Calls the guest, until none of its tasks is left.
pub(super) async fn call(
    guest: &ServicePre<State>,
    request: Request<Body>,
    answered: oneshot::Sender<Answer>,
    store: &mut Store<State>,
) -> wasmtime::Result<()> {
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    // Deadlines are all outside: in here, a guest that is busy would keep them from being looked at.
    store.run_concurrent(async |store: &Accessor<State>| serve(&guest, request, answered, store).await).await?
}

async fn serve(
    guest: &Service,
    request: Request<Body>,
    answered: oneshot::Sender<Answer>,
    store: &Accessor<State>,
) -> wasmtime::Result<()> {
    let request = request.map(|body| body.map_err(body_error));
    // The second half tells how the guest took the request's body; whoever sent it has no use for that.
    let request = store.with(|mut store| p3::Request::from_http(store.data_mut().http().hooks, request).0);
    let answer = match guest.handle(store, request).await? {
        Ok(response) => Ok(store.with(|store| response.into_http(store, async { Ok(()) }))?),
        Err(code) => Err(format!("{code:?}")),
    };
    // Nobody listens any more after the deadline.
    drop(answered.send(answer));
    // Tasks of the guest may still write the body.
    poll_fn(|cx| store.poll_no_interesting_tasks(cx)).await;
    Ok(())
}
