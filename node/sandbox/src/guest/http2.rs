//! An HTTP request for a guest of WASI 0.2: `wasi:http/incoming-handler`. It answers by setting a parameter, and may
//! stream the body after that.

use http::uri::Scheme;
use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use trellis_wire::Body;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{self, ErrorCode};

use super::reply::Answer;
use crate::host::http::body_error;
use crate::state::State;

/// What a guest is told that its host is, where the request names none that can be told.
const NO_HOST: HeaderValue = HeaderValue::from_static("localhost");

/// Calls the guest, up to its return.
pub(super) async fn call(
    guest: &ProxyPre<State>,
    mut request: Request<Body>,
    answered: oneshot::Sender<Answer>,
    store: &mut Store<State>,
) -> wasmtime::Result<()> {
    let named = request.headers().get(header::HOST).is_some_and(|host| host.to_str().is_ok());
    if request.uri().authority().is_none() && !named {
        request.headers_mut().insert(header::HOST, NO_HOST);
    }
    let scheme = match request.uri().scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => types::Scheme::Https,
        _ => types::Scheme::Http,
    };
    let request = request.map(|body| body.map_err(body_error));
    let request = store.data_mut().http().new_incoming_request(scheme, request)?;
    let answered = move |answer: Result<_, ErrorCode>| {
        // Nobody listens any more after the deadline.
        drop(answered.send(answer.map_err(|code| format!("{code:?}"))));
    };
    let answer = store.data_mut().http().new_response_outparam_from_callback(answered)?;
    let guest = guest.instantiate_async(&mut *store).await?;
    store.data().outside.instantiated();
    guest.wasi_http_incoming_handler().call_handle(store, request, answer).await
}
