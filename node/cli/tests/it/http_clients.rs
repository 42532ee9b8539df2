//! HTTP clients as they are out there, in front of real guests: slow, huge, broken, too many.

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::apps::{app, component, eventually, http};
use crate::client::{self, Response, connect, get, read, read_body, read_head, send};
use crate::node::Node;

/// An app that does as the path says, with config for its listener and further lines for its entry.
fn misbehave(name: &str, listen: &str, more: &str) -> String {
    app(name, &[http(name, listen), component(name, "test_misbehave", more, &[])])
}

/// The same, with one permit.
fn with_one_permit(name: &str, listen: &str) -> String {
    let one = ["{type: spreadscaler, properties: {instances: 1}}".to_owned()];
    app(name, &[http(name, listen), component(name, "test_misbehave", "", &one)])
}

#[test]
fn slow_clients_hold_no_permit() {
    let node = Node::start(&[]);
    node.deploy(&with_one_permit("slow", ""));
    let at = node.at("slow");
    let mut stalled = connect(at);
    stalled.write_all(b"POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-le").unwrap();
    let mut dripping: Vec<_> = (0..10).map(|_| connect(at)).collect();
    for stream in &mut dripping {
        stream.write_all(client::head("POST", "/echo", &[], 100).as_bytes()).unwrap();
    }
    for _ in 0..3 {
        for stream in &mut dripping {
            stream.write_all(b"a").unwrap();
        }
        assert_eq!(get(at, "/").unwrap().ok(), "ok");
    }
    assert_eq!(node.count("slow", "events"), 3, "nobody else was run so far");

    for stream in &mut dripping {
        stream.write_all(&[b'b'; 97]).unwrap();
    }
    for stream in dripping {
        assert_eq!(read(&mut BufReader::new(stream)).unwrap().ok(), "aaa".to_owned() + &"b".repeat(97));
    }
    // What never becomes a request is hung up on, without an answer.
    let mut answer = Vec::new();
    assert_eq!(stalled.read_to_end(&mut answer).unwrap_or(0), 0, "{answer:?}");
}

#[test]
fn large_bodies_flow_both_ways_and_are_not_held() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("large", "", ""));
    let at = node.at("large");
    send(at, "POST", "/echo", &[], &[1; 1 << 20]).unwrap();
    let before = node.forget_peak();
    let bytes = 100_000_000_usize;
    let mut stream = connect(at);
    let mut sending = stream.try_clone().unwrap();
    let piece: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let mut compared = Compared { expected: piece.clone(), at: 0 };
    stream.write_all(client::head("POST", "/echo", &[], bytes).as_bytes()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| (0..bytes / piece.len()).for_each(|_| sending.write_all(&piece).unwrap()));
        let mut stream = BufReader::new(&mut stream);
        let head = read_head(&mut stream).unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(read_body(&mut stream, &head, &mut compared).unwrap(), bytes as u64);
    });
    let grown = node.peak_bytes().saturating_sub(before);
    assert!(grown < 60 << 20, "the node grew by {grown} bytes for {bytes} in each direction");
}

/// Takes what is this sequence over and over.
struct Compared {
    expected: Vec<u8>,
    at: usize,
}

impl std::io::Write for Compared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            if *byte != self.expected[self.at] {
                return Err(ErrorKind::InvalidData.into());
            }
            self.at = (self.at + 1) % self.expected.len();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_body_beyond_the_links_bound_is_refused() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("bound", "max_body_bytes: '1000'", ""));
    let at = node.at("bound");
    assert_eq!(send(at, "POST", "/echo", &[], &[b'x'; 1000]).unwrap().ok().len(), 1000);
    let mut stream = connect(at);
    stream.write_all(client::head("POST", "/echo", &[], 1001).as_bytes()).unwrap();
    let refused = read(&mut BufReader::new(stream)).unwrap();
    assert_eq!(refused.status, 413);
    assert!(refused.text().contains("`max_body_bytes`"), "{}", refused.text());
    assert_eq!(node.count("bound", "events"), 1);
}

#[test]
fn what_is_no_http_gets_a_400_or_is_hung_up_on() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("strict", "", ""));
    let at = node.at("strict");
    let answered = |bytes: &[u8]| -> Option<Response> {
        let mut stream = connect(at);
        // It may hang up before it has read everything.
        let _ = stream.write_all(bytes);
        read(&mut BufReader::new(stream)).ok()
    };
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let cases: [(&[u8], u16); 8] = [
        (&[0, 0xff, 1, b'\r', b'\n', b'\r', b'\n'], 400),
        (b"GET / HTTP/9.9\r\nhost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 501),
        (long.as_bytes(), 431),
    ];
    for (bytes, status) in cases {
        if let Some(response) = answered(bytes) {
            assert_eq!(response.status, status, "{}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        }
        assert_eq!(get(at, "/").unwrap().ok(), "ok");
    }
    assert_eq!(node.count("strict", "events"), 8, "no garbage woke a guest");
}

#[test]
fn without_a_free_permit_a_request_waits_and_is_told_when_to_come_again() {
    let node = Node::start(&[]);
    node.deploy(&with_one_permit("full", "timeout_ms: '1000'"));
    let at = node.at("full");
    // The permit is held until the body has been read.
    let mut holding = connect(at);
    holding.write_all(client::head("GET", "/huge", &[], 0).as_bytes()).unwrap();
    let mut holding = BufReader::new(holding);
    read_head(&mut holding).unwrap();
    let busy = get(at, "/").unwrap();
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")), "{}", busy.text());
    assert!(busy.text().starts_with("busy: "), "{}", busy.text());
    assert_eq!(busy.header("x-trellis-fault"), None, "it is no fault of the guest's");
    assert_eq!(node.count("full", "faults"), 0);

    drop(holding);
    eventually("the permit is free again", || get(at, "/").ok().filter(|response| response.status == 200));
    // One who waits and gets the permit in time is served.
    thread::scope(|scope| {
        let slow = scope.spawn(|| get(at, "/slow?ms=300").unwrap().ok());
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| get(at, "/").unwrap().status)).collect();
        slow.join().unwrap();
        assert!(waiting.into_iter().all(|one| matches!(one.join().unwrap(), 200 | 503)));
    });
}

#[test]
fn http_2_is_spoken_in_clear_text() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("h2", "", ""));
    let at = node.at("h2");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = TokioIo::new(tokio::net::TcpStream::connect(at).await.unwrap());
        let (requests, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        // Many at once over one connection, each in a sandbox of its own.
        let asked: Vec<_> = (0..20_u32)
            .map(|n| {
                let body = Full::new(Bytes::from(format!("{n} ").repeat(10_000)));
                let request = http::Request::post(format!("http://{at}/echo")).body(body).unwrap();
                let mut requests = requests.clone();
                (n, tokio::spawn(async move { requests.send_request(request).await.unwrap() }))
            })
            .collect();
        for (n, response) in asked {
            let response = response.await.unwrap();
            assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("{n} ").repeat(10_000).as_bytes());
        }
    });
    assert_eq!(node.count("h2", "events"), 20);
}

#[test]
fn apps_share_an_address_by_path_or_by_host() {
    let node = Node::start(&[]);
    // `of` is the address that an app before it was given.
    let hello = |name: &str, of: Option<SocketAddr>, listen: &str| {
        let entry = app(name, &[http(name, listen), component(name, "hello", "", &[])]);
        of.map_or(entry.clone(), |of| entry.replace("127.0.0.1:0", &of.to_string()))
    };
    node.deploy(&hello("one", None, "path: /one"));
    let at = node.at("one");
    let two = app("two", &[http("two", "path: /two"), component("two", "test_misbehave", "", &[])]);
    node.deploy(&two.replace("127.0.0.1:0", &at.to_string()));
    assert_eq!(get(at, "/one/?name=a").unwrap().ok(), "hello a\n");
    assert_eq!(get(at, "/two").unwrap().ok(), "ok");
    let nobody = get(at, "/three").unwrap();
    assert_eq!(nobody.status, 404);
    assert!(nobody.text().contains("no component is linked to this path"), "{}", nobody.text());
    let refused = node.try_deploy(&hello("three", Some(at), "path: /two")).failed(1);
    assert!(refused.contains("two") && refused.contains(&at.to_string()), "{refused}");
    node.trellis(&["undeploy", "two"]).ok();
    eventually("the path is free again", || (get(at, "/two").unwrap().status == 404).then_some(()));
    assert_eq!(get(at, "/one").unwrap().ok(), "hello world\n");

    node.deploy(&hello("here", None, "host: here.example"));
    let at = node.at("here");
    let there = app("there", &[http("there", "host: there.example"), component("there", "test_misbehave", "", &[])]);
    node.deploy(&there.replace("127.0.0.1:0", &at.to_string()));
    let ask = |host: &str| send(at, "GET", "/", &[("host", host)], b"").unwrap();
    assert_eq!(ask("here.example").ok(), "hello world\n");
    assert_eq!(ask("There.example:8080").ok(), "ok");
    assert_eq!(ask("elsewhere.example").status, 404);
}

#[test]
fn a_listener_speaks_tls_with_the_files_of_its_link() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    std::fs::write(&key, KEY).unwrap();
    let node = Node::start(&[]);
    let listen = format!("tls_cert_file: '{}', tls_priv_key_file: '{}'", certificate.display(), key.display());
    node.deploy(&misbehave("safe", &listen, ""));
    let at = node.at("safe");
    let link = &node.status("safe")["links"][0];
    assert!(link["at"].as_str().unwrap().starts_with("https://"), "{link:#}");

    let mut stream = tls(at);
    stream.write_all(client::head("GET", "/", &[], 0).as_bytes()).unwrap();
    assert_eq!(read(&mut BufReader::new(stream)).unwrap().ok(), "ok");
    // Clear text is no handshake.
    assert!(get(at, "/").is_err());
    assert_eq!(node.count("safe", "events"), 1);
}

fn tls(address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), connect(address))
}

/// A certificate for `localhost`, signed by itself and good until 2120. It was made for this test, with `openssl ca`.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBXzCCAQSgAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBQxEjAQBgNVBAMM
CWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABO/i519i9n/h4+I5
2KoyaCOeWN5OXmPyJ7TK3svDjS0JPlN2XQiQvvI8bAUbhO95UhuXSBtALe+DR6yI
lZCL8cejRTBDMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAMBgNVHRMBAf8EAjAAMB0G
A1UdDgQWBBQaUz/qzojQMOq7sclpYt0YVzCG3jAKBggqhkjOPQQDAgNJADBGAiEA
mC30y7168o2Q8JTChRqRcbRZAZTf2tsYunbpcOA6xicCIQDNFKWbDO7RLmCS+gGW
+30bZZFrIU4yQcMGOcnvcfulYw==
-----END CERTIFICATE-----
";

/// Its private key, which protects nothing.
const KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg9SnGNHniO2xD8w6T
TpK3skBwdbZMQCUc+c4L5vasdZ+hRANCAATv4udfYvZ/4ePiOdiqMmgjnljeTl5j
8ie0yt7Lw40tCT5Tdl0IkL7yPGwFG4TveVIbl0gbQC3vg0esiJWQi/HH
-----END PRIVATE KEY-----
";
