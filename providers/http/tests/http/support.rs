//! A node that runs a function instead of a sandbox, and clients that talk to it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use trellis_http::{Http, Limits, Options, Pace};
use trellis_provider::{Permit, PermitSource, Permits, Provider, Run, Want};
use trellis_wire::{Body, ComponentKey, Config, Error, Event, Failure, Link, LinkId, LinkName, Outcome, Reply};

pub(crate) type Answering = Pin<Box<dyn Future<Output = Outcome> + Send>>;
type Guest = Arc<dyn Fn(Request<Body>) -> Answering + Send + Sync>;

/// A node that has permits for whoever asks, counts them, and runs `guest` for each event.
#[derive(Clone)]
pub(crate) struct Node {
    guest: Guest,
    refuses: Option<Error>,
    pub(crate) permits: Arc<AtomicUsize>,
    pub(crate) aborted: Arc<AtomicUsize>,
}

impl Node {
    pub(crate) fn new<F>(guest: impl Fn(Request<Body>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let guest: Guest = Arc::new(move |request| Box::pin(guest(request)));
        Self { guest, refuses: None, permits: Arc::default(), aborted: Arc::default() }
    }

    /// Answers every request with a text.
    pub(crate) fn says(text: &'static str) -> Self {
        Self::new(move |_| async move { ok(Response::new(Body::from(text))) })
    }

    /// Ends every event so.
    pub(crate) fn fails(failure: impl Into<Failure>) -> Self {
        let failure = failure.into();
        Self::new(move |_| std::future::ready(Err(failure.clone())))
    }

    /// Has no permit for anyone.
    pub(crate) fn refuses(error: Error) -> Self {
        Self { refuses: Some(error), ..Self::says("never") }
    }

    /// Sends back what comes, as it comes.
    pub(crate) fn echoes() -> Self {
        Self::new(|request| async move { ok(Response::new(request.into_body())) })
    }

    pub(crate) fn permits(&self) -> usize {
        self.permits.load(Ordering::SeqCst)
    }

    pub(crate) fn aborted(&self) -> usize {
        self.aborted.load(Ordering::SeqCst)
    }
}

pub(crate) fn ok(response: Response<Body>) -> Outcome {
    Ok(Reply::Http(response))
}

#[async_trait]
impl PermitSource for Node {
    async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        self.permits.fetch_add(1, Ordering::SeqCst);
        Ok(Permit::new(self.clone()))
    }
}

#[async_trait]
impl Run for Node {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let Event::Http(request) = event else { panic!("an HTTP source sends HTTP events, not {event:?}") };
        let mut ended = CountIfDropped { aborted: self.aborted.clone(), armed: true };
        let outcome = (self.guest)(request).await;
        ended.armed = false;
        outcome
    }
}

struct CountIfDropped {
    aborted: Arc<AtomicUsize>,
    armed: bool,
}

impl Drop for CountIfDropped {
    fn drop(&mut self) {
        if self.armed {
            self.aborted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Bounds that a test can wait for.
pub(crate) fn quick() -> Limits {
    Limits {
        head_timeout: Duration::from_millis(300),
        pace: Pace {
            grace: Duration::from_millis(300),
            bytes_per_second_min: 1 << 10,
            total_max: Duration::from_secs(5),
        },
        drain_max: Duration::from_secs(2),
        ..Limits::default()
    }
}

pub(crate) fn provider() -> Http {
    provider_with(quick())
}

pub(crate) fn provider_with(limits: Limits) -> Http {
    Http::new(Options { limits, ..Options::default() })
}

pub(crate) fn component(name: &str) -> ComponentKey {
    format!("app/{name}").parse().unwrap()
}

pub(crate) fn id(name: &str) -> LinkId {
    LinkId::new(&component("http"), &component(name), &LinkName::default(), "wasi", "http", &["handler".into()])
}

pub(crate) fn link(name: &str, config: &[(&str, &str)]) -> Link {
    Link {
        id: id(name),
        component: component(name),
        name: LinkName::default(),
        namespace: "wasi".into(),
        package: "http".into(),
        interfaces: vec!["handler".into()],
        config: Config::from_iter(config.iter().copied()),
        delivery: trellis_wire::Delivery::default(),
        secrets: Default::default(),
        part: Default::default(),
    }
}

/// Links `node` as component `name` at a free port, unless `config` has an address; says where it is.
pub(crate) async fn wake(http: &Http, name: &str, config: &[(&str, &str)], node: &Node) -> SocketAddr {
    let mut link = link(name, config);
    if link.config.get("address").is_none() {
        link.config.set("address", "127.0.0.1:0");
    }
    http.wake(link, Permits::new(component(name), Arc::new(node.clone()))).await.unwrap();
    http.bound(&id(name)).unwrap()
}

/// A provider with one link.
pub(crate) async fn serve(config: &[(&str, &str)], node: &Node) -> (Http, SocketAddr) {
    let http = provider();
    let address = wake(&http, "web", config, node).await;
    (http, address)
}

pub(crate) type HyperClient = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn client() -> HyperClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// One request over a connection of its own; the response with its body as text.
pub(crate) async fn ask(request: http::request::Builder, body: impl Into<Bytes>) -> Response<String> {
    let response = client().request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Response::from_parts(head, String::from_utf8(bytes.to_vec()).unwrap())
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Response<String> {
    ask(Request::get(format!("http://{address}{path}")), "").await
}

/// A bare socket, for what no client library would send.
pub(crate) async fn connect(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Everything until the server closes, which must be within `at_most`.
pub(crate) async fn until_closed(stream: &mut TcpStream, at_most: Duration) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(at_most, stream.read_to_end(&mut bytes)).await;
    // A reset is a close as well.
    let _ = read.expect("the server closes the connection in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until something holds, for at most 5 s.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}
