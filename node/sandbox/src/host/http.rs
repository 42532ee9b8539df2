//! Outgoing HTTP, of WASI 0.2 and 0.3 alike: both end in one hook, which hands the request outside. No connection is ever
//! made from here.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use trellis_wire::{Answer, Body, BodyError, Call, CallError, HttpCall};
use wasmtime::component::Linker;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpHooks, p2, p3};

use crate::outside::{Level, Outside};
use crate::state::State;

/// What a guest waits for each stage of a request, unless it says otherwise. Its own deadline may come first.
const STAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// The most that the headers of one message may take, in bytes, as wasmtime counts them.
const HEADERS_BYTES_MAX: usize = 32 * 1024;

/// How far a guest may write ahead of whoever reads its body: so many chunks, of so many bytes each. A guest whose reply
/// fits is done, and its sandbox gone, before anyone reads. A guest may have a body to every other of its handles.
pub(crate) const CHUNKS_AHEAD_MAX: usize = 16;
const CHUNK_BYTES_MAX: usize = 8 * 1024;

/// How much of a body of WASI 0.3, which has one chunk ahead, is read from the guest at once.
const P3_CHUNK_BYTES_MAX: usize = 64 * 1024;

pub(super) fn link(linker: &mut Linker<State>, wasi_p3: bool) -> wasmtime::Result<()> {
    p2::add_only_http_to_linker_async(linker)?;
    if wasi_p3 {
        p3::add_to_linker(linker)?;
    }
    Ok(())
}

/// The bounds on what a guest makes of headers.
pub(crate) fn limits() -> WasiHttpCtx {
    let mut limits = WasiHttpCtx::new();
    limits.set_field_size_limit(HEADERS_BYTES_MAX);
    limits
}

/// The way out for requests.
pub(crate) struct Outgoing {
    outside: Arc<dyn Outside>,
    /// The link that the guest chose, or `""`.
    link: String,
}

impl Outgoing {
    pub(crate) fn new(outside: Arc<dyn Outside>) -> Self {
        Self { outside, link: String::new() }
    }

    /// Chooses the link that requests are sent by.
    pub(super) fn choose(&mut self, link: &str) {
        self.link = link.into();
    }
}

type Sent = wasmtime_wasi_http::Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>)>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let (outside, link) = (self.outside.clone(), self.link.clone());
        let options = options.unwrap_or_default();
        let call = HttpCall {
            request: request.map(|body| Body::new(body.map_err(|why| BodyError::BrokenOff(Box::new(why))))),
            connect_timeout: options.connect_timeout.unwrap_or(STAGE_TIMEOUT),
            first_byte_timeout: options.first_byte_timeout.unwrap_or(STAGE_TIMEOUT),
            between_bytes_timeout: options.between_bytes_timeout.unwrap_or(STAGE_TIMEOUT),
        };
        Box::new(async move {
            let response = match outside.call(&link, Call::Http(call)).await {
                Ok(Answer::Http(response)) => response,
                Ok(other) => return Err(Error::InternalError(Some(super::wrong_answer(&other).to_string()))),
                Err(why) => return Err(refused(&*outside, why)),
            };
            let response = response.map(|body| body.map_err(body_error).boxed_unsync());
            Ok((response, Box::new(async { Ok(()) }) as Box<dyn Future<Output = _> + Send>))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        CHUNKS_AHEAD_MAX
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        P3_CHUNK_BYTES_MAX
    }
}

/// The error code that a guest sees. The code for a denial has no room for a text, so the text, which names the link to
/// add, goes to the guest's log.
fn refused(outside: &dyn Outside, why: CallError) -> Error {
    match why {
        CallError::Denied(_) => {
            outside.log(Level::Warn, "wasi:http", &why.to_string());
            Error::HttpRequestDenied
        }
        CallError::NoSuch(_) => Error::DestinationNotFound,
        CallError::TimedOut(_) => Error::HttpResponseTimeout,
        CallError::Unavailable(text) => {
            outside.log(Level::Warn, "wasi:http", &text);
            Error::DestinationUnavailable
        }
        CallError::Invalid(text) | CallError::Other(text) => Error::InternalError(Some(text)),
    }
}

/// The error code of a body that a guest reads.
pub(crate) fn body_error(why: BodyError) -> Error {
    match why {
        BodyError::TooLarge { limit_bytes } => Error::HttpRequestBodySize(Some(limit_bytes)),
        BodyError::TooSlow(_) => Error::ConnectionReadTimeout,
        BodyError::BrokenOff(_) => Error::ConnectionTerminated,
    }
}
