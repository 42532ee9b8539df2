//! Clients that stall, dribble or flood: none holds a permit, and each is closed within its bound.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use trellis_http::Limits;
use trellis_provider::Provider;
use trellis_wire::{Body, Fault};

use crate::support::*;

#[tokio::test]
async fn half_a_head_is_closed_in_time_whatever_it_is() {
    let node = Node::says("hello");
    let (_http, address) = serve(&[], &node).await;
    // Nothing; half a request; half of what HTTP/2 begins with.
    for beginning in ["", "GET / HTTP/1.1\r\nhost: a\r\n", "PRI * HTTP/2.0\r\n"] {
        let began = Instant::now();
        let mut stream = connect(address, beginning).await;
        until_closed(&mut stream, Duration::from_secs(1)).await;
        assert!(began.elapsed() >= Duration::from_millis(250), "`{beginning}` after {:?}", began.elapsed());
    }
    assert_eq!(node.permits(), 0);
}

#[tokio::test]
async fn half_a_head_after_a_request_is_closed_in_time() {
    let (_http, address) = serve(&[], &Node::says("hello")).await;
    let mut stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut buf = [0; 1024];
    assert!(stream.read(&mut buf).await.unwrap() > 0);
    tokio::time::sleep(Duration::from_millis(400)).await;
    stream.write_all(b"GET / HT").await.unwrap();
    until_closed(&mut stream, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let limits = Limits { idle_timeout: Duration::from_millis(500), ..quick() };
    let http = provider_with(limits);
    let address = wake(&http, "web", &[], &Node::says("hello")).await;
    let mut stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let text = until_closed(&mut stream, Duration::from_secs(1)).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn a_body_that_stops_or_dribbles_gets_no_permit() {
    let node = Node::says("hello");
    let (_http, address) = serve(&[], &node).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n";
    let mut stopped = connect(address, head).await;
    let text = until_closed(&mut stopped, Duration::from_secs(1)).await;
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    let (mut read, mut write) = connect(address, head).await.into_split();
    let dribble = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(1), read.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    dribble.abort();
    assert_eq!(node.permits(), 0);
}

#[tokio::test]
async fn bodies_that_arrive_share_one_bound() {
    let http = provider_with(Limits { arrived_bytes_max: 8 << 10, ..quick() });
    let address = wake(&http, "web", &[], &Node::echoes()).await;
    let half = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n{}", "x".repeat(6_000));
    let stalled = connect(address, &half).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let full = ask(Request::post(format!("http://{address}/")), "x".repeat(6_000)).await;
    assert_eq!(
        (full.status(), &full.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    assert_eq!(get(address, "/").await.status(), StatusCode::OK, "who brings no body needs no room");
    drop(stalled);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..3 {
        let there = ask(Request::post(format!("http://{address}/")), "x".repeat(6_000)).await;
        assert_eq!(there.status(), StatusCode::OK, "the room is free again");
    }
}

#[tokio::test]
async fn a_streaming_link_is_as_patient_as_its_clients() {
    let node = Node::echoes();
    let (_http, address) = serve(&[("streaming", "true")], &node).await;
    let mut stream = connect(address, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na").await;
    let mut buf = vec![0; 1024];
    // The answer begins before the request has ended.
    let read = stream.read(&mut buf).await.unwrap();
    assert!(buf[..read].starts_with(b"HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_millis(900)).await;
    stream.write_all(b"b").await.unwrap();
    let rest = stream.read(&mut buf).await.unwrap();
    assert!(String::from_utf8_lossy(&buf[..rest]).contains('b'));
}

#[tokio::test]
async fn a_body_that_is_too_large_is_a_413() {
    let node = Node::new(|request| async move {
        match http_body_util::BodyExt::collect(request.into_body()).await {
            Ok(_) => ok(Response::new(Body::from("read"))),
            Err(_) => Err(Fault::Trap("cannot read".into()).into()),
        }
    });
    let (_http, address) = serve(&[("max_body_bytes", "100000")], &node).await;
    let declared = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 100001\r\n\r\n";
    let mut stream = connect(address, declared).await;
    let text = until_closed(&mut stream, Duration::from_secs(2)).await;
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("`max_body_bytes`"), "{text}");
    assert_eq!(node.permits(), 0);
    // Not declared, and found out only while the guest reads: still the client's to hear.
    let mut stream = connect(address, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..11 {
        let chunk = format!("2710\r\n{}\r\n", "x".repeat(10_000));
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    let mut buf = [0; 1024];
    let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut buf)).await.unwrap().unwrap();
    assert!(buf[..read].starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&buf[..read]));
    assert_eq!(ask(Request::post(format!("http://{address}/")), "x".repeat(100_000)).await.body(), "read");
}

#[tokio::test]
async fn expect_continue_is_answered_only_when_the_body_is_wanted() {
    let (_http, address) = serve(&[("max_body_bytes", "10")], &Node::echoes()).await;
    let head = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut refused = connect(address, &head(11)).await;
    assert!(until_closed(&mut refused, Duration::from_secs(2)).await.starts_with("HTTP/1.1 413"));
    let mut wanted = connect(address, &head(4)).await;
    let mut buf = [0; 1024];
    let read = wanted.read(&mut buf).await.unwrap();
    assert!(buf[..read].starts_with(b"HTTP/1.1 100"));
    wanted.write_all(b"four").await.unwrap();
    assert!(until_closed(&mut wanted, Duration::from_secs(2)).await.ends_with("four"));
}

/// A body that never ends, and counts in `dropped` when it does.
fn endless(dropped: Arc<Semaphore>, piece: usize, pause: Duration) -> Body {
    struct Signal(Arc<Semaphore>);
    impl Drop for Signal {
        fn drop(&mut self) {
            self.0.add_permits(1);
        }
    }
    let signal = Signal(dropped);
    let pieces = futures::stream::unfold(signal, move |signal| async move {
        tokio::time::sleep(pause).await;
        let frame = http_body::Frame::data(bytes::Bytes::from(vec![b'x'; piece]));
        Some((Ok::<_, std::convert::Infallible>(frame), signal))
    });
    Body::new(http_body_util::StreamBody::new(pieces))
}

#[tokio::test]
async fn a_client_that_stops_reading_loses_its_sandbox_and_its_connection() {
    let dropped = Arc::new(Semaphore::new(0));
    let signal = dropped.clone();
    let node = Node::new(move |_| {
        let body = endless(signal.clone(), 64 << 10, Duration::ZERO);
        async move { ok(Response::new(body)) }
    });
    let limits = Limits { pace: trellis_http::Pace { bytes_per_second_min: 1 << 30, ..quick().pace }, ..quick() };
    let http = provider_with(limits);
    let address = wake(&http, "web", &[], &node).await;
    let mut stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let _gone = tokio::time::timeout(Duration::from_secs(2), dropped.acquire()).await.expect("the body is dropped");
    until_closed(&mut stream, Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_reply_in_one_piece_is_not_out_before_it_is_read() {
    let dropped = Arc::new(Semaphore::new(0));
    let signal = dropped.clone();
    let node = Node::new(move |_| {
        let body = endless(signal.clone(), 256 << 20, Duration::ZERO);
        async move { ok(Response::new(body)) }
    });
    let limits = Limits { pace: trellis_http::Pace { bytes_per_second_min: 32 << 20, ..quick().pace }, ..quick() };
    let http = provider_with(limits);
    let address = wake(&http, "web", &[], &node).await;
    let began = Instant::now();
    let _stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // As a whole it would have earned 8 s, of which the pace leaves 5.
    let _gone = tokio::time::timeout(Duration::from_secs(3), dropped.acquire()).await.expect("the body is dropped");
    assert!(began.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn a_reply_that_dribbles_is_cut_off_over_http_2_too() {
    let dropped = Arc::new(Semaphore::new(0));
    let signal = dropped.clone();
    let node = Node::new(move |request| {
        let body = match request.uri().path() {
            "/slow" => endless(signal.clone(), 1, Duration::from_millis(20)),
            _ => Body::from("fast"),
        };
        async move { ok(Response::new(body)) }
    });
    let (_http, address) = serve(&[], &node).await;
    let client: HyperClient =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).http2_only(true).build_http();
    let of = |path: &str| {
        client.request(Request::get(format!("http://{address}{path}")).body(http_body_util::Full::default()).unwrap())
    };
    let slow = of("/slow").await.unwrap();
    assert_eq!(of("/fast").await.unwrap().status(), StatusCode::OK);
    let began = Instant::now();
    http_body_util::BodyExt::collect(slow.into_body()).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(dropped.available_permits(), 1);
    // The stream ended, its connection did not.
    assert_eq!(of("/fast").await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn only_so_many_may_wait_for_a_permit() {
    /// A node whose permits never come.
    struct Never;
    #[async_trait::async_trait]
    impl trellis_provider::PermitSource for Never {
        async fn acquire(
            &self,
            _: &trellis_wire::ComponentKey,
            _: trellis_provider::Want,
        ) -> Result<trellis_provider::Permit, trellis_wire::Error> {
            std::future::pending().await
        }
    }
    let http = provider();
    let config = [("address", "127.0.0.1:0"), ("max_waiting", "2"), ("timeout_ms", "400")];
    let permits = trellis_provider::Permits::new(component("web"), Arc::new(Never));
    http.wake(link("web", &config), permits).await.unwrap();
    let address = http.bound(&id("web")).unwrap();
    let asked: Vec<_> = (0..3).map(|_| tokio::spawn(async move { get(address, "/").await })).collect();
    let mut texts = Vec::new();
    for asking in asked {
        let response = asking.await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        texts.push(response.into_body());
    }
    texts.sort();
    assert!(texts[0].contains("`max_waiting`"), "{texts:?}");
    assert!(texts[1].contains("`timeout_ms`") && texts[2].contains("`timeout_ms`"), "{texts:?}");
}

#[tokio::test]
async fn a_free_permit_needs_no_place_among_those_who_wait() {
    let (_http, address) = serve(&[("max_waiting", "0")], &Node::says("hello")).await;
    assert_eq!(get(address, "/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn connections_over_the_bound_wait_for_a_place() {
    let limits = Limits { connections_max: 1, ..quick() };
    let http = provider_with(limits);
    let address = wake(&http, "web", &[], &Node::says("hello")).await;
    let first = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = connect(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let mut buf = [0; 16];
    let early = tokio::time::timeout(Duration::from_millis(100), second.read(&mut buf)).await;
    assert!(early.is_err(), "the second waits");
    drop(first);
    assert!(until_closed(&mut second, Duration::from_secs(2)).await.contains("200 OK"));
}

/// Runs the test below in a process that may open few files.
#[test]
fn a_lack_of_file_descriptors_is_waited_out() {
    let me = std::env::current_exe().unwrap();
    let script = r#"ulimit -n 48 && exec "$0" --exact limits::with_few_file_descriptors --ignored"#;
    let ran = std::process::Command::new("sh").arg("-c").arg(script).arg(me).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
#[ignore = "only in a process with few file descriptors, which the test above starts"]
async fn with_few_file_descriptors() {
    let (http, address) = serve(&[], &Node::says("hello")).await;
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
        assert!(files.len() < 1_000, "the limit is in force");
    }
    // One descriptor for the client, none for the server.
    files.pop();
    let mut stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    eventually("the trouble is shown", || http.health(&id("web")).is_err()).await;
    let trouble = http.health(&id("web")).unwrap_err();
    assert!(trouble.contains("too many open files") || trouble.contains("Too many open files"), "{trouble}");
    drop(files);
    assert!(until_closed(&mut stream, Duration::from_secs(3)).await.ends_with("hello"));
    assert_eq!(http.health(&id("web")), Ok(()));
}
