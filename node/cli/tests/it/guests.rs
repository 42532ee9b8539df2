//! Real guests on a real node: what they do wrong, what they are given, and what they are denied.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;

use crate::apps::{app, component, eventually, http, image, link, provider};
use crate::client::{self, connect, get, read_body, read_head, send};
use crate::node::Node;
use crate::scripted::Scripted;
use crate::trellis::command;

/// `misbehave` behind HTTP, with further lines of its entry and its traits.
fn misbehave(name: &str, more: &str, traits: &[String]) -> String {
    app(name, &[http(name, ""), component(name, "test_misbehave", more, traits), provider("out", "http")])
}

#[test]
fn what_a_guest_does_wrong_is_told_counted_and_logged() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("bad", "limits: {memory: 32MiB, timeout: 5s}", &[]));
    let at = node.at("bad");
    let cases = [
        ("/loop", 504, "deadline", "not done within 5000 ms"),
        ("/never", 504, "deadline", "not done within 5000 ms"),
        ("/alloc", 500, "memory", "its limit is 33554432 bytes"),
        ("/trap", 500, "trap", "the component trapped\n"),
        ("/panic", 500, "trap", "the component trapped\n"),
        ("/noreply", 500, "no-reply", "returned without an answer"),
    ];
    // All at once: one guest's fault is no other's.
    thread::scope(|scope| {
        for (path, status, fault, text) in cases {
            scope.spawn(move || {
                let response = get(at, path).unwrap();
                assert_eq!((response.status, response.header("x-trellis-fault")), (status, Some(fault)), "{path}");
                assert!(response.text().contains(text), "{path}: {}", response.text());
                assert!(!response.text().contains("as asked"), "what a guest prints stays inside");
            });
        }
    });
    assert_eq!(get(at, "/").unwrap().ok(), "ok");
    assert_eq!((node.count("bad", "faults"), node.count("bad", "events")), (6, 7));
    let faults: Vec<Value> = node.logs("bad").into_iter().filter(|line| line["context"] == "fault").collect();
    let told = |text: &str| faults.iter().filter(|line| line["message"].as_str().unwrap().contains(text)).count();
    let texts = ["not done within", "out of memory", "trapped", "wasm backtrace", "as asked", "without an answer"];
    assert_eq!(texts.map(told), [2, 1, 2, 2, 1, 1], "{faults:#?}");
    let events: BTreeMap<&str, &Value> = faults.iter().map(|line| (line["event"].as_str().unwrap(), line)).collect();
    assert_eq!(events.len(), 6, "each was an event of its own");
    node.until_running("bad", 0);
}

#[test]
fn the_deadline_of_a_link_is_the_guests_fault_as_well() {
    let node = Node::start(&[]);
    let entries = [http("late", "timeout_ms: '300'"), component("late", "test_misbehave", "", &[])];
    node.deploy(&app("late", &entries));
    let response = get(node.at("late"), "/loop").unwrap();
    assert_eq!((response.status, response.header("x-trellis-fault")), (504, Some("deadline")));
    assert_eq!(response.text(), "no answer within 300 ms (`timeout_ms`)\n");
    assert_eq!(node.count("late", "faults"), 1);
    assert!(node.logs("late").iter().any(|line| line["context"] == "fault"), "{:#?}", node.logs("late"));
}

#[test]
fn guests_that_compute_for_ever_starve_nobody_and_end_with_their_clients() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("busy", "limits: {timeout: 10m}", &[]));
    let at = node.at("busy");
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = connect(at);
            stream.write_all(client::head("GET", "/loop", &[], 0).as_bytes()).unwrap();
            stream
        })
        .collect();
    node.until_running("busy", 8);
    for _ in 0..20 {
        assert_eq!(get(at, "/").unwrap().ok(), "ok");
    }
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    assert_eq!(get(admin, "/healthz").unwrap().ok(), "ok\n");
    assert_eq!(node.count("busy", "running"), 8, "they loop on");
    drop(clients);
    node.until_running("busy", 0);
}

#[test]
fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("half", "", &[]));
    let at = node.at("half");
    let broken = get(at, "/break");
    assert!(broken.is_err(), "{broken:#?}");

    // An answer that is whole stands, whatever its guest does after it.
    assert_eq!(get(at, "/twice").unwrap().ok(), "ok");
    let logs = node.logs("half");
    let told = |line: &Value| line["message"].as_str().unwrap().contains("failed after its response had begun");
    assert!(logs.iter().any(told), "{logs:#?}");
    assert_eq!(node.count("half", "faults"), 1, "its trap is a fault all the same");
}

#[test]
fn a_huge_answer_is_streamed_and_its_sandbox_ends_with_it() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("huge", "", &[]));
    let at = node.at("huge");
    get(at, "/huge?bytes=1000000").unwrap().ok();
    let before = node.forget_peak();
    let bytes = 300 << 20;
    let mut stream = connect(at);
    stream.write_all(client::head("GET", &format!("/huge?bytes={bytes}"), &[], 0).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let head = read_head(&mut stream).unwrap();
    assert_eq!(read_body(&mut stream, &head, &mut std::io::sink()).unwrap(), bytes);
    let grown = node.peak_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "the node grew by {grown} bytes for a body of {bytes}");

    // A client that leaves in the middle of it takes the sandbox along.
    let mut stream = connect(at);
    stream.write_all(client::head("GET", "/huge", &[], 0).as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    read_head(&mut stream).unwrap();
    node.until_running("huge", 1);
    drop(stream);
    node.until_running("huge", 0);
}

#[test]
fn every_request_has_a_fresh_sandbox() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("fresh", "", &[]));
    let at = node.at("fresh");
    for _ in 0..50 {
        assert_eq!(get(at, "/count").unwrap().ok(), "1");
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10).for_each(|_| assert_eq!(get(at, "/count").unwrap().ok(), "1")));
        }
    });
    assert_eq!((node.count("fresh", "events"), node.count("fresh", "faults")), (130, 0));
}

#[test]
fn config_reaches_the_guest_and_a_new_version_changes_it() {
    let node = Node::start(&[]);
    let configured = |values: &str| {
        misbehave("set", "", &[]).replace(
            &format!("properties: {{image: '{}'}}", image("test_misbehave")),
            &format!(
                "properties: {{image: '{}', config: [{{name: own, properties: {values}}}]}}",
                image("test_misbehave")
            ),
        )
    };
    node.deploy(&configured("{greeting: hello, other: two words}"));
    let at = node.at("set");
    assert_eq!(get(at, "/config").unwrap().ok(), "greeting=hello\nother=two words\n");
    node.deploy(&configured("{greeting: good day}"));
    assert_eq!(get(node.at("set"), "/config").unwrap().ok(), "greeting=good day\n");
}

#[test]
fn a_guest_reaches_only_the_hosts_that_a_link_names() {
    let node = Node::start(&[]);
    let outside = Scripted::start(|_, _| (200, "from outside".into()));
    let host = outside.url.strip_prefix("http://").unwrap();
    let ask = |name: &str| get(node.at(name), &format!("/out?url={}/x", outside.url)).unwrap();

    // No link: denied at the call; the log names the trait to add.
    node.deploy(&misbehave("none", "", &[]));
    let denied = ask("none");
    assert_eq!(denied.status, 502);
    assert!(denied.text().contains("no link grants this host"), "{}", denied.text());
    let named = |line: &Value| line["message"].as_str().unwrap().contains("interfaces: [outgoing-handler]");
    assert!(node.logs("none").iter().any(named), "{:#?}", node.logs("none"));

    // A link that names no host, a wildcard (which never reaches into private networks) and another port.
    let to = |hosts: &str| format!("{{name: out, config: [{{name: hosts, properties: {{{hosts}}}}}]}}");
    for (name, hosts) in [("empty", ""), ("wild", "allowed_hosts: '*'"), ("other", "allowed_hosts: '127.0.0.1:1'")] {
        node.deploy(&misbehave(name, "", &[link(&to(hosts), "wasi:http/outgoing-handler")]));
        let denied = ask(name);
        assert!(denied.status == 502 && !denied.text().contains("from outside"), "{name}: {}", denied.text());
    }
    assert_eq!(outside.asked().len(), 0);

    let hosts = format!("allowed_hosts: 'example.com, {host}'");
    node.deploy(&misbehave("granted", "", &[link(&to(&hosts), "wasi:http/outgoing-handler")]));
    assert_eq!(ask("granted").ok(), "200 from outside");
    assert_eq!(outside.lines(), ["GET /x"]);
}

#[test]
fn key_value_needs_a_link_and_survives_the_node() {
    let node = Node::start(&[]);
    let without = [http("kv", ""), component("kv", "test_kv", "", &[])];
    let refused = node.try_deploy(&app("kv", &without)).failed(1);
    assert!(refused.contains("kv imports wasi:keyvalue/") && refused.contains("which no link grants"), "{refused}");
    assert!(refused.contains("add to its traits: {type: link"), "{refused}");

    let store = link("store", "wasi:keyvalue/store, atomics, batch");
    node.deploy(&app("kv", &[http("kv", ""), component("kv", "test_kv", "", &[store]), provider("store", "embedded")]));
    let at = node.at("kv");
    assert_eq!(get(at, "/a").unwrap().status, 404);
    assert_eq!(send(at, "PUT", "/a", &[], b"one").unwrap().status, 204);
    assert_eq!(get(at, "/a").unwrap().ok(), "one");
    let numbers = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let number: u64 = send(at, "POST", "/n", &[], b"").unwrap().ok().parse().unwrap();
                numbers.lock().unwrap().push(number);
            });
        }
    });
    let mut numbers = numbers.into_inner().unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8], "each got a number of its own");
    assert_eq!(send(at, "POST", "/?batch", &[], b"").unwrap().ok(), "3 - 1 / - - -");

    let node = Node::start_in(&node.kill(), &[]);
    let at = eventually("kv is ready again", || (node.status("kv")["state"] == "ready").then(|| node.at("kv")));
    assert_eq!(get(at, "/a").unwrap().ok(), "one");
    assert_eq!(get(at, "/?keys").unwrap().ok(), "a\nn\n");
    assert_eq!(send(at, "DELETE", "/a", &[], b"").unwrap().status, 204);
    assert_eq!(send(at, "HEAD", "/a", &[], b"").map(|response| response.status).ok(), Some(404));
}

#[test]
fn a_command_runs_once_with_its_arguments() {
    let node = Node::start(&[]);
    node.deploy(&app("tool", &[component("run", "test_run", "limits: {timeout: 3s}", &[])]));
    let run = |args: &[&str]| node.trellis(&[&["invoke", "tool/run"], args].concat());
    assert_eq!(run(&["one", "two words", "-x"]).ok(), "one\ntwo words\n-x\n");
    assert_eq!(run(&["--env"]).ok(), "", "the node's environment is its own");
    assert!(run(&["--error", "oops"]).failed(1).contains("oops"));
    run(&["--exit", "3"]).failed(1);
    run(&["--exit", "0"]).ok();
    let panicked = run(&["--panic"]).failed(1);
    assert!(panicked.contains("the component trapped") && panicked.contains("as asked"), "{panicked}");
    assert!(run(&["--loop"]).failed(1).contains("not done within 3000 ms"));
    let unknown = node.trellis(&["invoke", "tool/nothing"]).failed(1);
    assert!(unknown.contains("no node holds tool/nothing"), "{unknown}");
    assert_eq!(node.count("tool", "faults"), 2, "a command that fails is no fault");
}

#[test]
fn logs_name_component_and_event_and_can_be_followed() {
    let node = Node::start(&[]);
    node.deploy(&misbehave("said", "", &[]));
    let mut following = command();
    following.args(["logs", "-f", "--admin", &node.admin, "said/said"]);
    let mut following = following.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines().map(Result::unwrap);

    get(node.at("said"), "/panic").unwrap();
    let logs = node.logs("said");
    let fault = logs.iter().find(|line| line["context"] == "fault").unwrap();
    let message = fault["message"].as_str().unwrap();
    assert!(message.contains("as asked") && message.contains("wasm backtrace"), "{message}");
    assert_eq!(
        (&fault["app"], &fault["component"], &fault["level"]),
        (&"said".into(), &"said".into(), &"error".into())
    );
    let event = fault["event"].as_str().unwrap();
    assert_eq!(event.len(), 36, "{event} is a UUID");

    // What is printed and what is followed is the same line.
    let start = format!("ERROR    said/said {event} [fault] the component trapped");
    let shown = node.trellis(&["logs", "said/said"]).ok();
    assert!(shown.lines().any(|line| line.contains(&start)), "{start} is missing in:\n{shown}");
    assert!(lines.any(|line| line.contains(&start)), "{start} never came");
    following.kill().unwrap();
    following.wait().unwrap();
    assert_eq!(node.trellis(&["logs", "said/other"]).ok(), "");
}

/// Exports a function on plain values.
const ADDS: &str = r#"(component
    (core module $m (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
    (core instance $i (instantiate $m))
    (func $add (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $i "add")))
    (instance $export (export "add" (func $add)))
    (export "shop:math/add@1.0.0" (instance $export)))"#;

/// A command that ends in ok if that function, imported, gives 5 for 2 and 3.
const CHECKS: &str = r#"(component
    (import "shop:math/add@1.0.0" (instance $math
        (export "add" (func (param "a" u32) (param "b" u32) (result u32)))))
    (core module $m
        (import "math" "add" (func $add (param i32 i32) (result i32)))
        (func (export "run") (result i32) (i32.ne (call $add (i32.const 2) (i32.const 3)) (i32.const 5))))
    (core func $add (canon lower (func $math "add")))
    (core instance $i (instantiate $m (with "math" (instance (export "add" (func $add))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $export (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $export)))"#;

#[test]
fn a_component_calls_another_through_a_link() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let component = |name: &str, text: &str, traits: &str| {
        let path = dir.path().join(format!("{name}.wasm"));
        std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
        let image = format!("file://{}", path.display());
        format!("    - {{name: {name}, type: component, properties: {{image: '{image}'}}, traits: [{traits}]}}\n")
    };
    let refused = node.try_deploy(&app("sum", &[component("checks", CHECKS, ""), component("adds", ADDS, "")]));
    let refused = refused.failed(1);
    assert!(refused.contains("checks imports shop:math/{add}, which no link grants"), "{refused}");

    let linked = link("adds", "shop:math/add");
    node.deploy(&app("sum", &[component("checks", CHECKS, &linked), component("adds", ADDS, "")]));
    node.trellis(&["invoke", "sum/checks"]).ok();
    let status = node.status("sum");
    let components = status["components"].as_array().unwrap();
    let events =
        |name: &str| components.iter().find(|one| one["name"] == name).unwrap()["holders"][0]["events"].clone();
    assert_eq!((events("checks"), events("adds")), (1.into(), 1.into()), "both ran, each in a sandbox of its own");
}
