//! What the server costs beside hyper alone: one text over kept-alive connections, the same client for both, in one
//! run.
//!
//! `cargo bench -p trellis-http`. The guest is a function, so the difference is routing, the permit's boxes, the body's
//! and the connection's clocks, and nothing of the sandbox.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use trellis_http::{Http, Options};
use trellis_provider::{Permit, PermitSource, Permits, Provider, Run, Want};
use trellis_wire::{Body, ComponentKey, Config, Error, Event, Link, LinkId, LinkName, Outcome, Reply};

const CONNECTIONS: u64 = 32;

struct Hello;

#[async_trait]
impl PermitSource for Hello {
    async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
        Ok(Permit::new(Self))
    }
}

#[async_trait]
impl Run for Hello {
    async fn run(self: Box<Self>, _: Event) -> Outcome {
        Ok(Reply::Http(Response::new(Body::from("hello"))))
    }
}

/// The provider must live as long as its listener is wanted.
async fn trellis() -> (Http, SocketAddr) {
    let component: ComponentKey = "bench/hello".parse().expect("a component key");
    let name = LinkName::default();
    let id = LinkId::new(&component, &component, &name, "wasi", "http", &[]);
    let config = Config::from_iter([("address", "127.0.0.1:0")]);
    let link = Link {
        id: id.clone(),
        component: component.clone(),
        name,
        namespace: "wasi".into(),
        package: "http".into(),
        interfaces: Vec::new(),
        config,
        delivery: trellis_wire::Delivery::default(),
        secrets: Default::default(),
        part: Default::default(),
    };
    let http = Http::new(Options::default());
    http.wake(link, Permits::new(component, Arc::new(Hello))).await.expect("a free port");
    let address = http.bound(&id).expect("it is bound");
    (http, address)
}

async fn bare() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a TCP socket");
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}

async fn connect(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("the server accepts");
    stream.set_nodelay(true).expect("a TCP socket");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1");
    tokio::spawn(connection);
    sender
}

/// `requests` of them over all connections at once.
async fn load(address: SocketAddr, requests: u64) -> Duration {
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(connect(address).await);
    }
    let began = Instant::now();
    let running: Vec<_> = senders
        .into_iter()
        .map(|mut sender| {
            tokio::spawn(async move {
                for _ in 0..requests.div_ceil(CONNECTIONS) {
                    sender.ready().await.expect("the connection is kept");
                    let request = Request::get("/").header("host", "bench").body(Empty::new()).expect("a request");
                    let response = sender.send_request(request).await.expect("a response");
                    assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "hello");
                }
            })
        })
        .collect();
    for one in running {
        one.await.expect("no request failed");
    }
    began.elapsed()
}

fn hello(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let bare = runtime.block_on(bare());
    let (_http, trellis) = runtime.block_on(trellis());
    let mut group = criterion.benchmark_group("hello");
    group.throughput(Throughput::Elements(1)).sample_size(20).measurement_time(Duration::from_secs(5));
    for (name, address) in [("hyper alone", bare), ("trellis-http", trellis)] {
        group.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter_custom(|requests| async move {
                let rounded = requests.div_ceil(CONNECTIONS) * CONNECTIONS;
                load(address, requests).await.mul_f64(requests as f64 / rounded as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hello);
criterion_main!(benches);
