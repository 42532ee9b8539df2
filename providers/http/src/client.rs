//! Outgoing HTTP: checked against the link's `allowed_hosts`, pooled, HTTP/1.1 and HTTP/2. Redirects are the guest's to
//! follow, for each hop must be allowed.
//!
//! Two pools, one for hosts that lead to public addresses only and one for those that may lead further. Each checks what
//! a name resolves to at the moment it connects, so a name cannot be pointed elsewhere between check and use.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response, Version, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use trellis_provider::LinkError;
use trellis_wire::{Body, BodyError, CallError, HttpCall};

use crate::allow::{AllowList, Reach, literal};
use crate::tls;

/// How long an unused connection is kept, and how many to one host.
const POOL_IDLE_MAX: Duration = Duration::from_secs(60);
const POOL_IDLE_PER_HOST_MAX: usize = 64;
/// How long connecting may take, whatever the guest says.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// How long one piece of a response may take, whatever the guest says.
const BETWEEN_BYTES_MAX: Duration = Duration::from_secs(3_600);

/// What belongs to the connection and not to the request. `Host` is made from the URI, which is what was allowed.
const OURS: [HeaderName; 7] = [
    header::HOST,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

type Pool = legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Body>;

/// The outgoing half of the provider; one for all links.
pub(crate) struct Client {
    public: Pool,
    private: Pool,
}

impl Client {
    /// `ca_file` holds roots that are trusted beside the system's.
    pub(crate) async fn new(ca_file: Option<&Path>) -> Result<Self, LinkError> {
        let tls = tls::outgoing(ca_file).await?;
        Ok(Self { public: pool(tls.clone(), Reach::Public), private: pool(tls, Reach::Private) })
    }

    /// Sends a request and awaits the head of its response; the body follows as the guest reads it.
    pub(crate) async fn call(&self, allowed: &AllowList, call: HttpCall) -> Result<Response<Body>, CallError> {
        let HttpCall { mut request, connect_timeout, first_byte_timeout, between_bytes_timeout } = call;
        let pool = match admit(allowed, &request)? {
            Reach::Public => &self.public,
            // An address is not resolved, so nothing more is checked of it.
            Reach::Private | Reach::Literal => &self.private,
        };
        for name in &OURS {
            request.headers_mut().remove(name);
        }
        // The version is agreed with the server; this leaves it open.
        *request.version_mut() = Version::HTTP_11;
        let host = request.uri().authority().map_or_else(String::new, ToString::to_string);
        let response = send(pool, request, &host, connect_timeout.min(CONNECT_MAX), first_byte_timeout).await?;
        Ok(response.map(|incoming| Body::new(BetweenBytes::new(incoming, between_bytes_timeout))))
    }
}

/// Whether the link allows the request, and how far it reaches.
fn admit(allowed: &AllowList, request: &Request<Body>) -> Result<Reach, CallError> {
    let uri = request.uri();
    let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(CallError::Invalid(format!("`{uri}` is no absolute http or https URI")));
    };
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    if allowed.is_empty() {
        let problem = format!("the link allows no host; write in its target config `allowed_hosts: {host}`");
        return Err(CallError::Denied(problem));
    }
    let Some(reach) = allowed.reach(scheme, host, port) else {
        let problem = format!("{host}:{port} is not among the link's `allowed_hosts` ({allowed}); add `{host}`");
        return Err(CallError::Denied(problem));
    };
    match literal(host) {
        Some(address) if !reach.leads_to(address) => Err(CallError::Denied(too_far(host, address, reach))),
        _ => Ok(reach),
    }
}

fn too_far(host: &str, address: IpAddr, reach: Reach) -> String {
    let (what, write) = match reach {
        Reach::Public if literal(host).is_some() => ("not public", format!("`{host}`")),
        Reach::Public => ("not public", format!("`{host}:PORT` with its port")),
        Reach::Private | Reach::Literal => ("link-local", format!("the address itself, `{address}`")),
    };
    format!("{host} leads to {address}, which is {what}; to reach it write {write} in `allowed_hosts`")
}

/// The two waits of a call are told apart by when its connection is there.
async fn send(
    pool: &Pool,
    mut request: Request<Body>,
    host: &str,
    connect: Duration,
    first_byte: Duration,
) -> Result<Response<Incoming>, CallError> {
    let mut connection = capture_connection(&mut request);
    let mut response = pin!(pool.request(request));
    let connected = tokio::select! {
        response = response.as_mut() => return response.map_err(|error| failed(host, &error)),
        connected = timeout(connect, connection.wait_for_connection_metadata()) => connected.is_ok(),
    };
    if !connected {
        return Err(CallError::TimedOut(format!("{host}: not connected within {} ms", connect.as_millis())));
    }
    match timeout(first_byte, response).await {
        Ok(response) => response.map_err(|error| failed(host, &error)),
        Err(_) => Err(CallError::TimedOut(format!("{host}: no response within {} ms", first_byte.as_millis()))),
    }
}

/// Sorts a failure by what the guest may do about it; the words are those of its deepest cause.
fn failed(host: &str, error: &legacy::Error) -> CallError {
    let mut cause: &(dyn StdError + 'static) = error;
    loop {
        if let Some(refused) = cause.downcast_ref::<TooFar>() {
            return CallError::Denied(refused.to_string());
        }
        if let Some(broken) = cause.downcast_ref::<BodyError>() {
            return CallError::Invalid(format!("{host}: {broken}"));
        }
        match cause.source() {
            Some(deeper) => cause = deeper,
            None => return CallError::Unavailable(format!("{host}: {cause}")),
        }
    }
}

fn pool(tls: rustls::ClientConfig, reach: Reach) -> Pool {
    let mut tcp = HttpConnector::new_with_resolver(Resolver { reach });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(tcp);
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_MAX)
        .pool_max_idle_per_host(POOL_IDLE_PER_HOST_MAX)
        .build(connector)
}

/// The system's resolver, less the addresses that are too far.
#[derive(Debug, Clone)]
struct Resolver {
    reach: Reach,
}

/// Every address of a name was further than the name reaches.
#[derive(Debug, thiserror::Error)]
#[error("{}", too_far(host, *address, *reach))]
struct TooFar {
    host: String,
    address: IpAddr,
    reach: Reach,
}

impl Resolver {
    async fn resolve(self, host: String) -> Result<std::vec::IntoIter<SocketAddr>, Box<dyn StdError + Send + Sync>> {
        // The port is the connector's to set.
        let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
        let Some(first) = found.first().map(SocketAddr::ip) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")).into());
        };
        let reached: Vec<_> = found.into_iter().filter(|address| self.reach.leads_to(address.ip())).collect();
        if reached.is_empty() {
            return Err(TooFar { host, address: first, reach: self.reach }.into());
        }
        Ok(reached.into_iter())
    }
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name.as_str().into()))
    }
}

/// A response body whose next piece must come within a bound; only the time that the guest waits for it counts.
struct BetweenBytes {
    incoming: Incoming,
    at_most: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl BetweenBytes {
    fn new(incoming: Incoming, at_most: Duration) -> Self {
        Self { incoming, at_most: at_most.min(BETWEEN_BYTES_MAX), alarm: None, waiting: false }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = Instant::now() + self.at_most;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if !std::mem::replace(&mut self.waiting, true) {
            alarm.as_mut().reset(until);
        }
        alarm.as_mut().poll(cx)
    }
}

impl http_body::Body for BetweenBytes {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(next) = Pin::new(&mut this.incoming).poll_frame(cx) {
            this.waiting = false;
            return Poll::Ready(next.map(|frame| frame.map_err(|error| BodyError::BrokenOff(error.into()))));
        }
        this.poll_late(cx).map(|()| Some(Err(BodyError::TooSlow("nothing came between two pieces of the response"))))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
