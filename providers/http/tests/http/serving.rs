//! Routing, outcomes, protocols, and how links come and go.

use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use trellis_provider::{LinkError, Permits, Provider};
use trellis_wire::{Body, Error, Fault};

use crate::support::*;

#[tokio::test]
async fn a_guest_sees_scheme_authority_path_query_and_headers() {
    let node = Node::new(|request| async move {
        let text = format!("{} {} {:?}", request.method(), request.uri(), request.headers()["x-a"]);
        ok(Response::new(Body::from(text)))
    });
    let (_http, address) = serve(&[], &node).await;
    let response = ask(Request::put(format!("http://{address}/a%20b?c=d")).header("x-a", "1"), "body").await;
    assert_eq!(response.body(), &format!("PUT http://{address}/a%20b?c=d \"1\""));
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn http_1_0_without_a_host_is_served_and_1_1_is_not() {
    let (_http, address) = serve(&[], &Node::says("hello")).await;
    let mut old = connect(address, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(until_closed(&mut old, Duration::from_secs(2)).await.ends_with("hello"));
    for (head, problem) in [
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "the Host header is missing"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", "the Host header is there twice"),
        ("GET / HTTP/1.1\r\nhost: a b\r\nconnection: close\r\n\r\n", "the Host header is no host"),
    ] {
        let mut stream = connect(address, head).await;
        let text = until_closed(&mut stream, Duration::from_secs(2)).await;
        assert!(text.starts_with("HTTP/1.1 400") && text.contains(problem), "{text}");
    }
    let mut tunnel = connect(address, "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nconnection: close\r\n\r\n").await;
    assert!(until_closed(&mut tunnel, Duration::from_secs(2)).await.starts_with("HTTP/1.1 501"));
}

#[tokio::test]
async fn links_share_an_address_by_path() {
    let http = provider();
    let address = wake(&http, "shop", &[("path", "/shop")], &Node::says("shop")).await;
    let shared = address.to_string();
    wake(&http, "cart", &[("path", "/shop/cart"), ("address", &shared)], &Node::says("cart")).await;
    assert_eq!(get(address, "/shop/1").await.body(), "shop");
    assert_eq!(get(address, "/shop/cart/1").await.body(), "cart");
    let nobody = get(address, "/other").await;
    assert_eq!(nobody.status(), StatusCode::NOT_FOUND);
    assert_eq!(nobody.body(), &format!("no component is linked to this path on {address}\n"));
    http.remove(&id("cart")).await;
    assert_eq!(get(address, "/shop/cart/1").await.body(), "shop");
}

#[tokio::test]
async fn links_share_an_address_by_host() {
    let http = provider();
    let address = wake(&http, "a", &[("host", "a.example")], &Node::says("a")).await;
    wake(&http, "b", &[("host", "b.example"), ("address", &address.to_string())], &Node::says("b")).await;
    let of = |host: &'static str| ask(Request::get(format!("http://{address}/")).header("host", host), "");
    assert_eq!(of("a.example:8000").await.body(), "a");
    assert_eq!(of("B.example").await.body(), "b");
    assert_eq!(of("c.example").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_conflict_names_the_other_component() {
    let http = provider();
    let address = wake(&http, "first", &[], &Node::says("first")).await.to_string();
    let permits = || Permits::new(component("second"), std::sync::Arc::new(Node::says("second")));
    let refused = http.wake(link("second", &[("address", &address)]), permits()).await.unwrap_err();
    assert_eq!(refused, LinkError::Taken(format!("address {address}: the whole address belongs to app/first")));
    // The unspecified address is every address of the machine.
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    let refused = http.wake(link("second", &[("address", &everywhere)]), permits()).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("address {everywhere}: {address} is in use by app/first"));
    // Another process has the port.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let held = TcpListener::bind(other).await.unwrap();
    let refused = http.wake(link("second", &[("address", &other.to_string())]), permits()).await.unwrap_err();
    assert_eq!(refused, LinkError::Taken(format!("address {other}: in use by another process")));
    drop(held);
    let refused = http.wake(link("second", &[("address", "192.0.2.1:8000")]), permits()).await.unwrap_err();
    assert!(refused.to_string().contains("`0.0.0.0:8000`"), "{refused}");
}

#[tokio::test]
async fn every_outcome_has_its_status_and_no_backtrace() {
    let trap = Fault::Trap("unreachable\n  at secret.rs".into());
    let cases = [
        (Node::fails(trap), 500, Some("trap"), "the component trapped\n"),
        (Node::fails(Fault::OutOfMemory { limit_bytes: 9 }), 500, Some("memory"), "its limit is 9 bytes"),
        (Node::fails(Fault::NoReply), 500, Some("no-reply"), "without an answer"),
        (Node::fails(Fault::Refused("internal-error: x".into())), 500, Some("refused"), "answered with an error\n"),
        (Node::fails(Fault::Deadline { limit_ms: 7 }), 504, Some("deadline"), "within 7 ms"),
        (Node::fails(Error::Unusable("it is broken".into())), 500, None, "could not be reached\n"),
        (Node::fails(Error::Internal("node 3 lost".into())), 502, None, "could not be reached\n"),
        (Node::refuses(Error::Busy("no permit".into())), 503, None, "busy: no permit\n"),
        (Node::refuses(Error::ShuttingDown), 503, None, "shutting down\n"),
        (Node::refuses(Error::NotHeld("app/web".into())), 503, None, "no node holds app/web\n"),
    ];
    for (node, status, fault, text) in cases {
        let (_http, address) = serve(&[], &node).await;
        let response = get(address, "/").await;
        assert_eq!(response.status(), status, "{}", response.body());
        assert!(response.body().contains(text), "{}", response.body());
        assert_eq!(response.headers().get("x-trellis-fault").map(|fault| fault.to_str().unwrap()), fault);
        let retry_after = (status == 503).then_some("1");
        assert_eq!(response.headers().get("retry-after").map(|after| after.to_str().unwrap()), retry_after);
        assert!(!response.body().contains("secret"), "{}", response.body());
    }
}

#[tokio::test]
async fn a_late_answer_is_a_504_and_ends_the_sandbox() {
    let node = Node::new(|_| std::future::pending());
    let (_http, address) = serve(&[("timeout_ms", "100")], &node).await;
    let response = get(address, "/").await;
    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(response.body(), "no answer within 100 ms (`timeout_ms`)\n");
    assert_eq!(node.aborted(), 1);
}

#[tokio::test]
async fn a_client_that_goes_ends_the_sandbox() {
    let node = Node::new(|_| std::future::pending());
    let (_http, address) = serve(&[], &node).await;
    let stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("the event runs", || node.permits() == 1).await;
    drop(stream);
    eventually("the run is dropped", || node.aborted() == 1).await;
}

#[tokio::test]
async fn head_and_204_have_no_body() {
    let node = Node::new(|request| async move {
        let mut response = Response::new(Body::from("four"));
        if request.uri().path() == "/none" {
            *response.status_mut() = StatusCode::NO_CONTENT;
        }
        ok(response)
    });
    let (_http, address) = serve(&[], &node).await;
    let head = ask(Request::head(format!("http://{address}/")), "").await;
    assert_eq!((head.headers()["content-length"].to_str().unwrap(), head.body().as_str()), ("4", ""));
    let none = get(address, "/none").await;
    assert_eq!((none.status(), none.body().as_str()), (StatusCode::NO_CONTENT, ""));
}

#[tokio::test]
async fn read_only_links_refuse_other_methods_before_a_permit() {
    let node = Node::says("hello");
    let (_http, address) = serve(&[("readonly_mode", "true"), ("cache_control", "max-age=9")], &node).await;
    let refused = ask(Request::post(format!("http://{address}/")), "x").await;
    assert_eq!(
        (refused.status(), refused.headers()["allow"].to_str().unwrap()),
        (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD")
    );
    assert_eq!(node.permits(), 0);
    let taken = get(address, "/").await;
    assert_eq!((taken.status(), taken.headers()["cache-control"].to_str().unwrap()), (StatusCode::OK, "max-age=9"));
}

#[tokio::test]
async fn preflights_are_answered_without_waking_anyone() {
    let node = Node::says("hello");
    let config = [("cors_allowed_origins", r#"["https://a.example"]"#), ("cors_exposed_headers", "x-id")];
    let (_http, address) = serve(&config, &node).await;
    let preflight = |origin| {
        let request = Request::builder().method(Method::OPTIONS).uri(format!("http://{address}/"));
        ask(request.header("origin", origin).header("access-control-request-method", "PUT"), "")
    };
    let allowed = preflight("https://a.example").await;
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(allowed.headers()["access-control-allow-methods"], "GET,POST,PUT,DELETE,HEAD,OPTIONS");
    assert_eq!(allowed.headers()["access-control-max-age"], "300");
    assert!(!preflight("https://b.example").await.headers().contains_key("access-control-allow-origin"));
    assert_eq!(node.permits(), 0);
    let simple = ask(Request::get(format!("http://{address}/")).header("origin", "https://a.example"), "").await;
    assert_eq!(simple.headers()["access-control-allow-origin"], "https://a.example");
    assert_eq!(simple.headers()["access-control-expose-headers"], "x-id");
    assert_eq!(simple.body(), "hello");
}

#[tokio::test]
async fn http_2_with_prior_knowledge_runs_requests_at_once() {
    let node = Node::new(|request| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        ok(Response::new(Body::from(request.uri().to_string())))
    });
    let (_http, address) = serve(&[], &node).await;
    let client: HyperClient = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let of =
        |path: &str| client.request(Request::get(format!("http://{address}{path}")).body(Full::default()).unwrap());
    let began = Instant::now();
    let (slow, slower, fast) = tokio::join!(of("/slow"), of("/slow"), of("/fast"));
    assert!(began.elapsed() < Duration::from_millis(550), "{:?}", began.elapsed());
    let fast = fast.unwrap();
    assert_eq!(fast.version(), Version::HTTP_2);
    let text = fast.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, format!("http://{address}/fast"));
    assert!(slow.unwrap().status().is_success() && slower.unwrap().status().is_success());
}

#[tokio::test]
async fn garbage_is_a_400_and_a_closed_connection() {
    let (_http, address) = serve(&[], &Node::says("hello")).await;
    let mut stream = connect(address, "\x01\x02 what is this\r\n\r\n").await;
    assert!(until_closed(&mut stream, Duration::from_secs(2)).await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn heads_that_are_too_large_are_a_431() {
    let node = Node::says("hello");
    let (_http, address) = serve(&[], &node).await;
    let many = (0..200).map(|nth| format!("x-{nth}: 1\r\n")).collect::<String>();
    let large = format!("x-large: {}\r\n", "a".repeat(80 << 10));
    for headers in [many, large] {
        let mut stream = connect(address, &format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let text = until_closed(&mut stream, Duration::from_secs(2)).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }
    let mut many = TcpStream::connect(address).await.unwrap();
    let head = (0..200).map(|nth| format!("x-{nth}: 1\r\n")).collect::<String>();
    many.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{head}\r\n").as_bytes()).await.unwrap();
    assert!(until_closed(&mut many, Duration::from_secs(2)).await.starts_with("HTTP/1.1 431"));
    assert_eq!(node.permits(), 0);
}

#[tokio::test]
async fn drain_lets_requests_under_way_finish_and_takes_no_more() {
    let node = Node::new(|_| async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        ok(Response::new(Body::from("done")))
    });
    let (http, address) = serve(&[], &node).await;
    // A connection that is kept open without a request does not hold the drain up.
    let _idle = connect(address, "").await;
    let asking = tokio::spawn(async move { get(address, "/").await });
    eventually("the event runs", || node.permits() == 1).await;
    let began = Instant::now();
    http.drain().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(asking.await.unwrap().body(), "done");
    TcpStream::connect(address).await.unwrap_err();
    assert_eq!(http.health(&id("web")), Err("not listening".into()));
}

#[tokio::test]
async fn removing_the_last_link_waits_for_its_requests_and_frees_the_address() {
    let (release, released) = oneshot::channel::<()>();
    let released = std::sync::Arc::new(tokio::sync::Mutex::new(Some(released)));
    let node = Node::new(move |_| {
        let released = released.clone();
        async move {
            if let Some(released) = released.lock().await.take() {
                let _ = released.await;
            }
            ok(Response::new(Body::from("done")))
        }
    });
    let (http, address) = serve(&[], &node).await;
    let asking = tokio::spawn(async move { get(address, "/").await });
    eventually("the event runs", || node.permits() == 1).await;
    let removing = async {
        http.remove(&id("web")).await;
        Instant::now()
    };
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        release.send(()).unwrap();
        Instant::now()
    };
    let (removed, released) = tokio::join!(removing, releasing);
    assert!(removed >= released, "remove returns after the request under way");
    assert_eq!(asking.await.unwrap().body(), "done");
    assert_eq!(http.bound(&id("web")), None);
    http.remove(&id("web")).await;
    wake(&http, "web", &[("address", &address.to_string())], &Node::says("again")).await;
    assert_eq!(get(address, "/").await.body(), "again");
    assert_eq!(http.health(&id("web")), Ok(()));
}

#[tokio::test]
async fn listen_host_replaces_the_host_of_every_address() {
    let options = trellis_http::Options { listen_host: Some("127.0.0.3".parse().unwrap()), ..Default::default() };
    let http = trellis_http::Http::new(options);
    let address = wake(&http, "web", &[("address", "10.9.8.7:0")], &Node::says("hello")).await;
    assert_eq!(address.ip().to_string(), "127.0.0.3");
    assert_eq!(get(address, "/").await.body(), "hello");
}

#[tokio::test]
async fn tls_with_http_1_and_2() {
    let files = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(files.path());
    let http = provider();
    let missing = link("web", &[("tls_cert_file", "/no/such.pem"), ("tls_priv_key_file", &key)]);
    let permits = Permits::new(component("web"), std::sync::Arc::new(Node::says("x")));
    let refused = http.wake(missing, permits).await.unwrap_err().to_string();
    assert!(refused.starts_with("config `tls_cert_file`: /no/such.pem cannot be read"), "{refused}");

    let node = Node::new(|request| async move { ok(Response::new(Body::from(request.uri().to_string()))) });
    let address = wake(&http, "web", &[("tls_cert_file", &certificate), ("tls_priv_key_file", &key)], &node).await;
    for (protocol, version) in [(&b"h2"[..], Version::HTTP_2), (b"http/1.1", Version::HTTP_11)] {
        let stream = handshake(address, &certificate, protocol).await;
        let request = Request::get(format!("https://localhost:{}/x", address.port()));
        let request =
            request.header("host", format!("localhost:{}", address.port())).body(Full::<bytes::Bytes>::default());
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request.unwrap()).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request.unwrap()).await.unwrap()
        };
        assert_eq!(response.version(), version);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(text.starts_with(b"https://localhost:"), "{text:?}");
    }
    // Plain HTTP to a TLS port is closed.
    let mut plain = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(!until_closed(&mut plain, Duration::from_secs(2)).await.contains("200"));
}

async fn handshake(
    address: std::net::SocketAddr,
    certificate: &str,
    protocol: &[u8],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

/// A certificate for `localhost` and its key, by the openssl command.
pub(crate) fn self_signed(folder: &std::path::Path) -> (String, String) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("cert.pem"), path("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=CA:FALSE",
        ])
        .args(["-out", &certificate, "-keyout", &key])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

#[tokio::test]
async fn keep_alive_survives_a_pause_longer_than_the_time_for_a_head() {
    let (_http, address) = serve(&[], &Node::says("hello")).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut stream = connect(address, request).await;
    let mut buf = [0; 1024];
    assert!(stream.read(&mut buf).await.unwrap() > 0);
    tokio::time::sleep(quick().head_timeout * 3).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let read = stream.read(&mut buf).await.unwrap();
    assert!(buf[..read].starts_with(b"HTTP/1.1 200"));
}
