//! Large bodies flow: neither side is ever held whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use trellis_wire::{Body, BodyError};

use crate::support::*;

const PIECE: usize = 64 << 10;
const PIECES: u64 = 1_600;
const TOTAL: u64 = PIECES * PIECE as u64; // 100 MiB
/// What may lie in sockets and buffers between the two ends.
const IN_FLIGHT_MAX: u64 = 24 << 20;

/// 100 MiB that counts how much of it has been taken.
fn flood(taken: Arc<AtomicU64>) -> Body {
    let pieces = futures::stream::unfold(0, move |nth| {
        let taken = taken.clone();
        async move {
            taken.fetch_add(PIECE as u64, Ordering::SeqCst);
            (nth < PIECES).then(|| (Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'x'; PIECE]))), nth + 1))
        }
    });
    Body::new(StreamBody::new(pieces))
}

fn client(http2: bool) -> Client<hyper_util::client::legacy::connect::HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build_http()
}

#[tokio::test]
async fn a_hundred_mebibytes_flow_each_way_and_never_pile_up() {
    for http2 in [false, true] {
        let (_http, address) = serve(&[], &Node::echoes()).await;
        let sent = Arc::new(AtomicU64::new(0));
        let request = Request::post(format!("http://{address}/")).body(flood(sent.clone())).unwrap();
        let mut body = client(http2).request(request).await.unwrap().into_body();
        let (mut received, mut furthest) = (0, 0);
        while let Some(frame) = body.frame().await {
            received += frame.unwrap().into_data().unwrap().len() as u64;
            furthest = furthest.max(sent.load(Ordering::SeqCst).saturating_sub(received));
        }
        assert_eq!(received, TOTAL);
        assert!(furthest < IN_FLIGHT_MAX, "{furthest} bytes were in flight");
    }
}

#[tokio::test]
async fn a_guest_that_does_not_read_holds_the_client_back() {
    let node = Node::new(|request| async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let bytes = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        ok(Response::new(Body::from(bytes.to_string())))
    });
    let (_http, address) = serve(&[], &node).await;
    let sent = Arc::new(AtomicU64::new(0));
    let request = Request::post(format!("http://{address}/")).body(flood(sent.clone())).unwrap();
    let asking = tokio::spawn(client(false).request(request));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let early = sent.load(Ordering::SeqCst);
    assert!(early < IN_FLIGHT_MAX, "{early} bytes were taken before the guest read any");
    // The wait was the guest's and is not held against the client.
    let text = asking.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, TOTAL.to_string());
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (_http, address) = serve(&[], &Node::echoes()).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    let frames = [Ok::<_, BodyError>(Frame::data(Bytes::from("data"))), Ok(Frame::trailers(trailers.clone()))];
    let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
    let request = Request::post(format!("http://{address}/")).header("te", "trailers").body(body).unwrap();
    let response = client(true).request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(response.trailers(), Some(&trailers));
    assert_eq!(response.to_bytes(), "data");
}
