//! The way of an HTTP request to its component and back; the hot path begins here.
//!
//! [`Server::answer`] finds the link that the request is for; [`Route::wake`] lets it arrive, gets a permit, runs the
//! event in a fresh sandbox (`node/daemon/dispatch.rs` goes on from there) and turns its outcome into a response. No
//! permit is held for a request that is still arriving, and nothing here fails: what goes wrong is a [`Refusal`], and a
//! refusal is a response.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use trellis_provider::{Permit, Permits, Want};
use trellis_wire::{Body, BodyError, ComponentKey, Error, Event, Failure, Fault, Outcome, Reply};

use crate::body::{Bounds, Rest, arrive};
use crate::config::ServerConfig;
use crate::limits::{Limits, Pace};
use crate::pulse::{Outflow, Pulse};
use crate::refusal::Refusal;
use crate::routes::Routes;

/// How long after its deadline a sandbox may take to end by itself, and say so, until it is dropped.
const ABORT_MAX: Duration = Duration::from_millis(500);

/// Everything that answers at one address.
pub(crate) struct Server {
    bound: SocketAddr,
    scheme: Scheme,
    routes: ArcSwap<Routes<Arc<Route>>>,
    /// The bytes that bodies may have here before a guest reads them.
    room: Arc<Semaphore>,
}

impl Server {
    pub(crate) fn new(bound: SocketAddr, scheme: Scheme, limits: &Limits) -> Self {
        let room = Arc::new(Semaphore::new(limits.arrived_bytes_max as usize));
        Self { bound, scheme, routes: ArcSwap::default(), room }
    }

    /// Which link answers what. The listener changes it.
    pub(crate) const fn routes(&self) -> &ArcSwap<Routes<Arc<Route>>> {
        &self.routes
    }

    /// Answers one request. It is under way from here until the last byte of its reply.
    pub(crate) async fn answer(&self, request: Request<Incoming>, pulse: &Arc<Pulse>) -> Response<Outflow> {
        let (route, authority) = match self.find(&request) {
            Ok(found) => found,
            Err(refusal) => {
                let under_way = pulse.begin(request.version(), None, TaskTracker::new().token());
                return refusal.into_response().map(|body| under_way.send(body));
            }
        };
        let under_way = pulse.begin(request.version(), route.pace, route.under_way.token());
        let origin = request.headers().get(header::ORIGIN).cloned();
        let request = self.absolute(request, authority);
        let mut response = route.answer(request, &self.room).await.unwrap_or_else(Refusal::into_response);
        if let Some(cors) = &route.config.cors {
            cors.mark(origin.as_ref(), response.headers_mut());
        }
        response.map(|body| under_way.send(body))
    }

    /// Whose request this is, and whom the client asked.
    fn find(&self, request: &Request<Incoming>) -> Result<(Arc<Route>, Authority), Refusal> {
        let authority = authority(request, self.bound)?;
        let routes = self.routes.load();
        match routes.find(authority.as_str(), request.uri().path(), request.headers()) {
            Some(route) => Ok((route.clone(), authority)),
            None => Err(Refusal::NoRoute { by: routes.routed_by().into(), address: self.bound }),
        }
    }

    /// A guest is told scheme, authority and path, which HTTP/1 leaves to the connection and the `Host` header.
    fn absolute(&self, mut request: Request<Incoming>, authority: Authority) -> Request<Incoming> {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(self.scheme.clone());
        uri.authority = Some(authority);
        uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from_parts(uri).expect("a scheme, an authority and a path make a URI");
        request
    }
}

/// What answers for one link.
pub(crate) struct Route {
    config: ServerConfig,
    permits: Permits,
    bounds: Bounds,
    pace: Option<Pace>,
    /// The bounded queue of those who wait for a permit, of this node or of another one.
    waiting: Arc<Semaphore>,
    /// Counts its requests from their heads to the ends of their replies.
    under_way: TaskTracker,
}

impl Route {
    pub(crate) fn new(config: ServerConfig, permits: Permits, limits: &Limits) -> Self {
        let pace = (!config.streaming).then_some(limits.pace);
        // A guest that streams may want to answer before the client goes on, so nothing is waited for.
        let arrival_bytes = if config.streaming { 0 } else { limits.arrival_bytes };
        let bounds = Bounds { bytes_max: config.body_bytes_max, pace, arrival_bytes };
        let waiting = Arc::new(Semaphore::new(config.waiting_max));
        Self { config, permits, bounds, pace, waiting, under_way: TaskTracker::new() }
    }

    pub(crate) const fn component(&self) -> &ComponentKey {
        self.permits.component()
    }

    /// Returns when no request is under way. No more may be routed here.
    pub(crate) async fn ended(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    async fn answer(&self, request: Request<Incoming>, room: &Arc<Semaphore>) -> Result<Response<Body>, Refusal> {
        if let Some(preflight) = self.config.cors.as_ref().and_then(|cors| cors.preflight(&request)) {
            return Ok(preflight);
        }
        if self.config.read_only && !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::ReadOnly);
        }
        let mut response = self.wake(request, room).await?;
        if let Some(cache_control) = &self.config.cache_control {
            response.headers_mut().entry(header::CACHE_CONTROL).or_insert_with(|| cache_control.clone());
        }
        Ok(response)
    }

    /// A permit that is free, or one that is waited for in the bounded queue.
    async fn permit(&self, deadline: Instant) -> Result<Permit, Refusal> {
        let mut permit = pin!(self.permits.acquire(Want::Answer { at_most: self.config.timeout }));
        if let Poll::Ready(permit) = futures::poll!(&mut permit) {
            return Ok(permit?);
        }
        let _place = self.waiting.try_acquire().map_err(|_| Refusal::QueueFull)?;
        Ok(timeout_at(deadline, permit).await.map_err(|_| Refusal::QueueTooLong)??)
    }

    /// Request, permit, event, reply. Dropped when the client goes, and the sandbox with it.
    async fn wake(&self, request: Request<Incoming>, room: &Arc<Semaphore>) -> Result<Response<Body>, Refusal> {
        let (head, incoming) = request.into_parts();
        let arrived = arrive(incoming, self.bounds, room).await?;
        let deadline = Instant::now() + self.config.timeout;
        let mut permit = self.permit(deadline).await?;
        permit.waits_in(self.waiting.clone());
        let event = Event::Http(Request::from_parts(head, arrived.body));
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout_at(deadline + ABORT_MAX, permit.run_within(event, left)).await {
            Ok(Err(Failure::Fault(Fault::Deadline { .. }))) if Instant::now() >= deadline => {
                Err(Refusal::Deadline { after: self.config.timeout })
            }
            Ok(outcome) => reply(outcome, &arrived.rest, self.bounds.bytes_max),
            Err(_) => Err(Refusal::Deadline { after: self.config.timeout }),
        }
    }
}

/// What is said to the client. If its own body broke the bounds, that is the cause of whatever the guest did then.
fn reply(outcome: Outcome, rest: &Rest, limit_bytes: u64) -> Result<Response<Body>, Refusal> {
    match outcome {
        Ok(Reply::Http(response)) => Ok(response),
        Ok(_) => Err(Error::Internal("an HTTP request was answered with something else".into()).into()),
        Err(_) if rest.was_too_large() => Err(BodyError::TooLarge { limit_bytes }.into()),
        Err(_) if rest.was_too_slow() => Err(Refusal::TooSlow),
        Err(Failure::Fault(fault)) => Err(fault.into()),
        Err(Failure::Error(error)) => Err(error.into()),
    }
}

/// Whom the client asked: the URI's authority (HTTP/2, or a proxy's absolute form) or else the `Host` header.
fn authority<B>(request: &Request<B>, bound: SocketAddr) -> Result<Authority, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::NoTunnel);
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    match only_host(request.headers())? {
        Some(host) => Authority::try_from(host).map_err(|_| Refusal::BadHost("is no host")),
        // HTTP/1.0 has none.
        None if request.version() < Version::HTTP_11 => {
            Ok(Authority::try_from(bound.to_string()).expect("a socket address is an authority"))
        }
        None => Err(Refusal::BadHost("is missing")),
    }
}

/// RFC 9112, 3.2: more than one is refused, for two readers might take different ones.
fn only_host(headers: &HeaderMap) -> Result<Option<&[u8]>, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Err(Refusal::BadHost("is there twice")),
        (host, _) => Ok(host.map(|host| host.as_bytes())),
    }
}
