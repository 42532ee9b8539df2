//! The way to the collector. Spans are gathered and sent by a thread of the SDK, which knows no async runtime; the
//! request itself is made on the node's. A collector that is not there costs spans, never an event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;

/// How much of a collector's answer is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Sends to the collector, and says when it goes away and when it is back.
#[derive(Debug)]
pub(super) struct Collector {
    runtime: Handle,
    client: reqwest::Client,
    /// Whether the last request failed, so that each change is logged once.
    failing: AtomicBool,
}

impl Collector {
    /// For requests that may take `timeout` each. Must be called on the runtime.
    ///
    /// # Errors
    /// There is no TLS on this machine.
    pub(super) fn new(timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(timeout).redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Self { runtime: Handle::current(), client, failing: AtomicBool::new(false) })
    }

    fn note(&self, to: &str, sent: &Result<Response<Bytes>, HttpError>) {
        let why = match sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answers {}", response.status())),
            Err(why) => Some(with_causes(&**why)),
        };
        match (why, self.failing.load(Ordering::Relaxed)) {
            (Some(why), false) => {
                self.failing.store(true, Ordering::Relaxed);
                tracing::warn!("traces do not reach {to}, and are dropped until they do: {why}");
            }
            (None, true) => {
                self.failing.store(false, Ordering::Relaxed);
                tracing::info!("traces reach {to} again");
            }
            (Some(_), true) | (None, false) => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let to = request.uri().to_string();
        let sent = match self.runtime.spawn(send(self.client.clone(), request)).await {
            Ok(sent) => sent,
            Err(why) => Err(why.into()),
        };
        self.note(&to, &sent);
        sent
    }
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if bytes.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(format!("it answers with more than {ANSWER_BYTES_MAX} bytes").into());
        }
        bytes.extend_from_slice(&piece);
    }
    let mut response = Response::new(Bytes::from(bytes));
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

/// An error with what led to it: the outermost words of an HTTP client seldom say what happened.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
