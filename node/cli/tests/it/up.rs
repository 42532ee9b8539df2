//! A real node: how it starts, what it says, how it ends, and what it keeps.

use serde_json::Value;

use crate::node::{DataDir, Node};
use crate::trellis::command;

/// What systemd waits for before it kills is longer than a node takes to end.
#[test]
fn the_systemd_unit_lets_a_node_drain() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/systemd/trellis.service");
    let unit = std::fs::read_to_string(path).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap();
    let waits = std::time::Duration::from_secs(value("TimeoutStopSec").parse().unwrap());
    assert!(waits > trellis_daemon::STOP_MAX, "{waits:?} is no longer than {:?}", trellis_daemon::STOP_MAX);
    // Only the node itself is asked, and by the signal that drains it.
    assert_eq!(value("KillMode"), "mixed");
    assert!(!unit.contains("KillSignal="));
}

#[test]
fn a_node_alone_says_who_it_is_and_answers() {
    let node = Node::start(&["--lattice", "home", "--label", "zone=cellar"]);
    assert!(node.banner.iter().any(|line| line == "lattice  home"), "{:?}", node.banner);
    assert!(node.banner.iter().any(|line| line.starts_with("bus      embedded")), "{:?}", node.banner);
    assert!(!node.log().contains("join token"), "nobody can join a node without a bus:\n{}", node.log());
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
    let nodes: Value = serde_json::from_str(&node.trellis(&["nodes", "-o", "json"]).ok()).unwrap();
    assert_eq!(nodes[0]["labels"]["zone"], "cellar");
    assert_eq!(node.trellis(&["config", "list"]).ok(), "");
    assert!(node.trellis(&["status", "orders"]).failed(1).contains("orders"));
    assert_eq!(node.stop().code(), Some(0));
}

#[test]
fn a_node_that_was_killed_goes_on_with_what_it_kept() {
    let node = Node::start(&[]);
    let id = |node: &Node| node.banner.iter().find(|line| line.starts_with("node ")).unwrap().clone();
    let first = id(&node);
    node.trellis(&["config", "put", "redis", "url=redis://x"]).ok();
    let data_dir = node.kill();

    let node = Node::start_in(&data_dir, &[]);
    assert_eq!(id(&node), first);
    assert_eq!(node.trellis(&["config", "get", "redis"]).ok(), "url=redis://x\n");
}

#[test]
fn two_nodes_do_not_share_a_data_directory_or_an_address() {
    let node = Node::start(&[]);
    let second = DataDir::new();
    let run = |args: &[&str]| {
        let output = command().arg("up").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let address = node.admin.strip_prefix("http://").unwrap();
    let stderr = run(&["--admin", address, "--data-dir", second.path().to_str().unwrap()]);
    assert!(stderr.contains(address) && stderr.contains("--admin"), "{stderr}");
    let data_dir = node.data_dir().path();
    let stderr = run(&["--admin", "127.0.0.1:0", "--data-dir", data_dir.to_str().unwrap()]);
    assert!(stderr.contains(data_dir.to_str().unwrap()), "{stderr}");
}
