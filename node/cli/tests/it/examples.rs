//! Each example under `examples/` by its own manifest, deployed and used as its README says. `examples/orders` is told
//! on its own in `messages` and `nats`.

use std::net::SocketAddr;
use std::time::Duration;

use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, examples, http, image, link, link_from, provider, waking};
use crate::client::get;
use crate::node::Node;

/// How long an upload may take. What an interpreter is part of takes a debug build about a minute to compile.
const DEPLOY_MAX: &str = "8m";
/// How long a client of NATS waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The manifest of an example, with its guest where it was built and its HTTP server on a port of the system's choice.
#[track_caller]
fn manifest(example: &str, file: &str, guest: &str) -> String {
    let text = std::fs::read_to_string(examples().join(example).join(file)).unwrap();
    let image_line = format!("file://../build/{guest}.wasm");
    assert!(text.contains(&image_line), "{example}/{file} does not name {image_line}");
    let lines = text.lines().map(|line| match line.split_once("address: 127.0.0.1:") {
        Some((indent, _)) => format!("{indent}address: 127.0.0.1:0\n"),
        None => format!("{line}\n"),
    });
    lines.collect::<String>().replace(&image_line, &image(guest))
}

/// Deploys the example's `app.yaml`. Where it is reached.
#[track_caller]
fn deployed(node: &Node, example: &str, guest: &str) -> SocketAddr {
    node.deploy_with(&manifest(example, "app.yaml", guest), &["--wait", DEPLOY_MAX]).ok();
    node.at(example)
}

/// Two requests, so that a second sandbox is seen to start as fresh as the first; then what the log must not hold.
#[track_caller]
fn greets(node: &Node, example: &str, guest: &str, from: &str) {
    let at = deployed(node, example, guest);
    let greeted = get(at, "/?name=you").unwrap();
    assert!(greeted.header("content-type").unwrap().starts_with("text/plain"), "{greeted:#?}");
    assert_eq!(greeted.ok(), format!("hello you{from}\n"));
    assert_eq!(get(at, "/").unwrap().ok(), format!("hello world{from}\n"));
    assert_eq!((node.count(example, "events"), node.count(example, "faults")), (2, 0), "{:#?}", node.logs(example));
}

#[test]
fn hello_greets() {
    greets(&Node::start(&[]), "hello", "hello", "");
}

#[test]
fn javascript_greets() {
    greets(&Node::start(&[]), "js-hello", "js_hello", ", from JavaScript");
}

#[test]
fn python_greets() {
    greets(&Node::start(&[]), "py-hello", "py_hello", ", from Python");
}

/// Orders from a queue: one that waits for its second attempt, one that is none, and one that is dropped.
#[track_caller]
fn handles_mail(example: &str, guest: &str) {
    let node = Node::start(&[]);
    node.deploy_with(&manifest(example, "app.yaml", guest), &["--wait", DEPLOY_MAX]).ok();
    for body in [r#"{"number": 7, "waitsFor": 2}"#, "no order", r#"{"test": true}"#] {
        node.trellis(&["publish", "mail", body]).ok();
    }
    eventually("the order is handled at its second attempt", || {
        let logged = node.trellis(&["logs", example]).ok();
        logged.contains("order 7 from mail, attempt 2").then_some(())
    });
    let letters = eventually("the other is a dead letter", || {
        Some(node.dead_letters(example, &[])).filter(|letters| letters.len() == 1)
    });
    assert!(letters[0]["detail"].as_str().unwrap().contains("the body is no JSON"), "{letters:?}");
    assert_eq!(node.count(example, "faults"), 0);
}

#[test]
fn javascript_handles_messages() {
    handles_mail("js-mail", "js_mail");
}

#[test]
fn python_handles_messages() {
    handles_mail("py-mail", "py_mail");
}

#[test]
fn counter_counts_each_path() {
    let node = Node::start(&[]);
    let at = deployed(&node, "counter", "counter");
    for expected in ["/tea: 1\n", "/tea: 2\n", "/tea: 3\n"] {
        assert_eq!(get(at, "/tea").unwrap().ok(), expected);
    }
    assert_eq!(get(at, "/").unwrap().ok(), "/: 1\n");

    // The counts outlive the node.
    let data_dir = node.kill();
    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("counter");
    assert_eq!(get(node.at("counter"), "/tea").unwrap().ok(), "/tea: 4\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn counter_counts_in_nats_with_the_lines_of_its_comment() {
    let nats = NatsServer::start(true);
    let node = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    let (before, after) = ("        image: trellis://embedded\n", "        # image: trellis://nats\n");
    let text = manifest("counter", "app.yaml", "counter");
    let (head, tail) = text.split_once(before).unwrap();
    let (_, tail) = tail.split_once(after).unwrap();
    let (config, tail) = tail.split_once("\n\n").unwrap();
    let config = config.replace("        # ", "        ");
    node.deploy(&format!("{head}        image: trellis://nats\n{config}\n\n{tail}"));
    let at = node.at("counter");
    assert_eq!(get(at, "/tea").unwrap().ok(), "/tea: 1\n");
    assert_eq!(get(at, "/tea").unwrap().ok(), "/tea: 2\n");

    let client = async_nats::connect(&nats.url).await.unwrap();
    let bucket = async_nats::jetstream::new(client).get_key_value("counter").await.unwrap();
    assert_eq!(bucket.get("visits/tea").await.unwrap().as_deref(), Some(b"2".as_slice()));
}

#[test]
fn echo_answers_another_app() {
    let node = Node::start(&[]);
    node.deploy(&manifest("echo", "app.yaml", "echo"));
    node.trellis(&["publish", "wasmcloud.echo", "hello"]).ok();
    let told = || {
        node.logs("echo").iter().any(|line| line["message"] == "wasmcloud.echo: 5 bytes, and nobody awaits an answer")
    };
    eventually("the message that nobody awaits an answer to is told", || told().then_some(()));

    // An app that asks, and stores what it was answered.
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let asks = link("bus", "trellis:messaging/producer");
    let woken = link_from("asker", "trellis:messaging/handler", "ask", "{subject: ask}");
    let entries = [
        component("asker", "test_messages", "", &[store(), asks]),
        component("window", "test_kv", "", &[store()]),
        http("window", ""),
        provider("store", "embedded"),
        waking("bus", "embedded", &[woken]),
    ];
    node.deploy(&app("asking", &entries));
    node.trellis(&["publish", "ask", "request wasmcloud.echo"]).ok();
    let window = node.at("asking");
    let answer = eventually("an answer is stored", || {
        Some(get(window, "/answer/wasmcloud-echo").unwrap()).filter(|response| response.status == 200)
    });
    assert_eq!(answer.ok(), "answer", "the body of the question");
}

#[tokio::test(flavor = "multi_thread")]
async fn echo_answers_over_nats_with_its_manifest_for_wadm() {
    let nats = NatsServer::start(true);
    let node = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    node.deploy(&manifest("echo", "wadm.yaml", "echo"));
    let client = async_nats::connect(&nats.url).await.unwrap();
    for body in ["hello", "", "hello again"] {
        let answer = tokio::time::timeout(ANSWER_MAX, client.request("wasmcloud.echo", body.into()));
        assert_eq!(answer.await.unwrap().unwrap().payload, body);
    }
}
