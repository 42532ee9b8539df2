//! What each connection of a node to NATS carries, as the server tells: no body may ever stand before Raft or a heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, free_address, image};
use crate::client::get;
use crate::lattice::{echoed, held_by, lattice, on};

/// What all may say beside the bodies that pass: heartbeats, the log, questions.
const WORDS_BYTES_MAX: u64 = 1_000_000;
const BODY_BYTES: usize = 20_000_000;
const CODE_BYTES: usize = 6_000_000;

/// A server, and where it tells of its connections.
pub(crate) fn monitored() -> (NatsServer, SocketAddr) {
    let monitor = free_address();
    (NatsServer::start_with(false, &["--http_port", &monitor.port().to_string()]), monitor)
}

/// A connection of a node.
#[derive(Debug)]
struct Connection {
    is_data: bool,
    subjects: BTreeSet<String>,
    bytes: u64,
}

/// Those of all nodes, by the server's number.
fn connections(monitor: SocketAddr) -> BTreeMap<u64, Connection> {
    let told: Value = serde_json::from_str(&get(monitor, "/connz?subs=1").unwrap().ok()).unwrap();
    let of_node = |told: &Value| {
        let is_data = match told["name"].as_str()? {
            "trellis default" => false,
            "trellis default data" => true,
            _ => return None,
        };
        let subjects = told["subscriptions_list"].as_array().into_iter().flatten();
        let subjects = subjects.map(|subject| subject.as_str().unwrap().to_owned()).collect();
        let bytes = told["in_bytes"].as_u64()? + told["out_bytes"].as_u64()?;
        Some((told["cid"].as_u64()?, Connection { is_data, subjects, bytes }))
    };
    told["connections"].as_array().unwrap().iter().filter_map(of_node).collect()
}

/// Every subject that a node listens to.
pub(crate) fn listened_to(monitor: SocketAddr) -> BTreeSet<String> {
    connections(monitor).into_values().flat_map(|connection| connection.subjects).collect()
}

/// A subject without the lattice and the node's own token: `event`, `raft.append`; `_INBOX` for answers.
pub(crate) fn kind(subject: &str) -> String {
    if subject.starts_with("_INBOX.") {
        return "_INBOX".into();
    }
    let tokens = subject.split('.').skip(3).filter(|token| token.len() != 32 && *token != "*");
    tokens.collect::<Vec<_>>().join(".")
}

/// Code with so much more in it that says nothing, as a custom section.
fn padded(code: &str, more: usize) -> Vec<u8> {
    let mut code = std::fs::read(image(code).strip_prefix("file://").unwrap()).unwrap();
    // Its name is empty.
    let (mut length, section) = (1 + more, [&[0][..], &vec![0x5a; more]].concat());
    code.push(0);
    while length >= 0x80 {
        code.push((length % 0x80).to_le_bytes()[0] | 0x80);
        length /= 0x80;
    }
    code.push(length.to_le_bytes()[0]);
    code.extend(section);
    code
}

#[test]
fn neither_bodies_nor_code_pass_where_raft_and_heartbeats_do() {
    let (nats, monitor) = monitored();
    let nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let sides = || -> (Vec<_>, Vec<_>) { connections(monitor).into_values().partition(|one| one.is_data) };
    let bytes = || {
        let (data, control) = sides();
        let sum = |all: Vec<Connection>| all.iter().map(|one| one.bytes).sum::<u64>();
        (sum(data), sum(control))
    };
    let (data, control) = sides();
    assert_eq!((data.len(), control.len()), (3, 3));
    let kinds =
        |all: &[Connection]| all.iter().flat_map(|one| &one.subjects).map(|one| kind(one)).collect::<BTreeSet<_>>();
    let only_data: BTreeSet<_> = ["artifact", "call", "event", "stream"].map(str::to_owned).into();
    let (on_data, on_control) = (kinds(&data), kinds(&control));
    assert!(only_data.is_subset(&on_data) && only_data.is_disjoint(&on_control), "{on_data:?} {on_control:?}");
    assert!(!on_data.iter().any(|kind| kind.starts_with("raft") || kind == "hb"), "{on_data:?}");

    let before = bytes();
    let body: Vec<u8> = (0..BODY_BYTES).map(|n| (n ^ (n >> 11)).to_le_bytes()[0]).collect();
    let echoed = echoed(nodes[0].at("far"), &body);
    assert!(echoed.status == 200 && echoed.body == body, "{} {}", echoed.status, echoed.body.len());
    // Its holder fetches it from the node that it was deployed by.
    let code = tempfile::Builder::new().suffix(".wasm").tempfile().unwrap();
    std::fs::write(code.path(), padded("hello", CODE_BYTES)).unwrap();
    let large = app("large", &[component("large", "hello", "", &[on("2")])]);
    nodes[0].deploy(&large.replace(&image("hello"), &format!("file://{}", code.path().display())));
    let after = bytes();
    let (more_data, more_control) = (after.0 - before.0, after.1 - before.1);
    println!("{more_data} bytes on the connections for data, {more_control} on those for control");
    // Each byte is told of who sends it and of who gets it.
    let passed = 2 * (2 * BODY_BYTES + CODE_BYTES) as u64;
    assert!(more_data >= passed && more_control < WORDS_BYTES_MAX, "{more_data} {more_control}");
}
