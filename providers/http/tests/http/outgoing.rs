//! Calls out: what `allowed_hosts` lets through, the pool, and the guest's own bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use trellis_http::{Http, Options};
use trellis_provider::Provider;
use trellis_wire::{Answer, Body, Call, CallError, HttpCall, KeyValue};

use crate::serving::self_signed;
use crate::support::*;

async fn granted(config: &[(&str, &str)]) -> Http {
    let http = provider();
    http.grant(link("caller", config)).await.unwrap();
    http
}

async fn call(http: &Http, url: &str) -> Result<Response<Body>, CallError> {
    call_within(http, url, Duration::from_secs(5)).await
}

async fn call_within(http: &Http, url: &str, each: Duration) -> Result<Response<Body>, CallError> {
    let call = HttpCall {
        request: Request::get(url).header("host", "spoofed.example").body(Body::empty()).unwrap(),
        connect_timeout: each,
        first_byte_timeout: each,
        between_bytes_timeout: each,
    };
    match http.call(&id("caller"), Call::Http(call)).await? {
        Answer::Http(response) => Ok(response),
        other => panic!("an HTTP call is answered by a response, not {other:?}"),
    }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_named_host_is_called_and_the_host_header_is_its_own() {
    let node = Node::new(|request| async move { ok(Response::new(Body::from(request.uri().to_string()))) });
    let (_server, address) = serve(&[], &node).await;
    let http = granted(&[("allowed_hosts", &format!("localhost:{0}, 127.0.0.1:{0}", address.port()))]).await;
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{}/x?y", address.port());
        assert_eq!(text(call(&http, &url).await.unwrap()).await, url);
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_denied_with_the_line_to_add() {
    let denied = |error: CallError| match error {
        CallError::Denied(text) => text,
        other => panic!("{other:?}"),
    };
    let nothing = granted(&[]).await;
    let error = denied(call(&nothing, "http://api.example.com/").await.unwrap_err());
    assert_eq!(error, "the link allows no host; write in its target config `allowed_hosts: api.example.com`");
    let one = granted(&[("allowed_hosts", "https://api.example.com")]).await;
    let error = denied(call(&one, "http://api.example.com/").await.unwrap_err());
    assert!(
        error.contains("api.example.com:80 is not among the link's `allowed_hosts` (https://api.example.com)"),
        "{error}"
    );
    let refused = nothing.grant(link("other", &[("allowed_hosts", "a*b")])).await.unwrap_err().to_string();
    assert!(refused.starts_with("config `allowed_hosts`: `a*b`"), "{refused}");
    nothing.remove(&id("caller")).await;
    assert!(denied(call(&nothing, "http://x/").await.unwrap_err()).contains("not applied"));
}

#[tokio::test]
async fn a_wildcard_does_not_reach_into_the_private_network() {
    let node = Node::says("secret");
    let (_server, address) = serve(&[], &node).await;
    let http = granted(&[("allowed_hosts", "*")]).await;
    // By address, by a name that resolves there, and by spellings that only the resolver understands.
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0"] {
        let error = call(&http, &format!("http://{host}:{}/", address.port())).await.unwrap_err();
        assert!(matches!(&error, CallError::Denied(text) if text.contains("not public")), "{host}: {error:?}");
    }
    assert_eq!(node.permits(), 0);
}

#[tokio::test]
async fn a_name_alone_does_not_reach_into_the_private_network_either() {
    let (_server, address) = serve(&[], &Node::says("secret")).await;
    // Spellings of 127.0.0.1 that only the resolver understands stand in for a name that its owner points there.
    let url = format!("http://2130706433:{}/", address.port());
    let alone = granted(&[("allowed_hosts", "2130706433")]).await;
    let error = call(&alone, &url).await.unwrap_err();
    assert!(matches!(&error, CallError::Denied(text) if text.contains("`2130706433:PORT`")), "{error:?}");
    let meant = granted(&[("allowed_hosts", &format!("2130706433:{}", address.port()))]).await;
    assert_eq!(text(call(&meant, &url).await.unwrap()).await, "secret");
    // 169.254.169.254, which no name reaches, port or not.
    let metadata = granted(&[("allowed_hosts", "2852039166:80")]).await;
    let error = call(&metadata, "http://2852039166:80/").await.unwrap_err();
    assert!(matches!(&error, CallError::Denied(text) if text.contains("link-local")), "{error:?}");
}

#[tokio::test]
async fn connections_are_pooled() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = accepted.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let service = hyper::service::service_fn(|_| async {
                Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(bytes::Bytes::from("hello"))))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let http = granted(&[("allowed_hosts", "127.0.0.1")]).await;
    for _ in 0..20 {
        assert_eq!(text(call(&http, &format!("http://{address}/")).await.unwrap()).await, "hello");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn redirects_are_the_guests_to_follow() {
    let node = Node::new(|_| async {
        let response = Response::builder().status(StatusCode::FOUND).header("location", "http://elsewhere.example/");
        ok(response.body(Body::empty()).unwrap())
    });
    let (_server, address) = serve(&[], &node).await;
    let http = granted(&[("allowed_hosts", "127.0.0.1")]).await;
    let response = call(&http, &format!("http://{address}/")).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["location"]),
        (StatusCode::FOUND, &"http://elsewhere.example/".parse().unwrap())
    );
}

#[tokio::test]
async fn each_wait_has_the_guests_bound() {
    let http = granted(&[("allowed_hosts", "127.0.0.1")]).await;
    let at_most = Duration::from_millis(200);
    // Accepted, never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = call_within(&http, &format!("http://{}/", silent.local_addr().unwrap()), at_most).await.unwrap_err();
    assert!(matches!(&error, CallError::TimedOut(text) if text.contains("no response within 200 ms")), "{error:?}");
    // Nobody there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = call_within(&http, &format!("http://{gone}/"), at_most).await.unwrap_err();
    assert!(matches!(&error, CallError::Unavailable(text) if text.contains("refused")), "{error:?}");
    // The head comes, the body stops.
    let node = Node::new(|_| async {
        let first =
            futures::stream::iter([Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::from("a")))]);
        let never = futures::stream::pending();
        let body = http_body_util::StreamBody::new(futures::StreamExt::chain(first, never));
        ok(Response::new(Body::new(body)))
    });
    let (_server, address) = serve(&[("streaming", "true")], &node).await;
    let response = call_within(&http, &format!("http://{address}/"), at_most).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert!(error.to_string().contains("between two pieces"), "{error}");
}

#[tokio::test]
async fn https_is_verified_against_the_roots() {
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(files.path());
    let server = provider();
    let address =
        wake(&server, "web", &[("tls_cert_file", &certificate), ("tls_priv_key_file", &key)], &Node::says("secure"))
            .await;
    let url = format!("https://localhost:{}/", address.port());
    let config = [("allowed_hosts", "localhost")];
    let trusting = Http::new(Options { outgoing_ca_file: Some(certificate.into()), ..Options::default() });
    trusting.grant(link("caller", &config)).await.unwrap();
    let response = call(&trusting, &url).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(text(response).await, "secure");
    let wary = granted(&config).await;
    let error = call(&wary, &url).await.unwrap_err();
    assert!(matches!(&error, CallError::Unavailable(text) if text.contains("certificate")), "{error:?}");
    let missing = Http::new(Options { outgoing_ca_file: Some("/no/such.pem".into()), ..Options::default() });
    let error = missing.grant(link("caller", &config)).await.unwrap_err().to_string();
    assert!(error.contains("/no/such.pem"), "{error}");
}

#[tokio::test]
async fn other_calls_are_not_for_this_provider() {
    let http = granted(&[]).await;
    let error = http.call(&id("caller"), Call::KeyValue(KeyValue::Open)).await.unwrap_err();
    assert!(matches!(error, CallError::Invalid(_)), "{error:?}");
}
