//! Timings that all nodes of a lattice have: what the first was given, or what was changed since.

use trellis_bus::testing::NatsServer;

use crate::apps::eventually;
use crate::lattice::{id, node};
use crate::node::{DataDir, Node};
use crate::trellis::command;

/// What a node says that the lattice has.
fn timings(node: &Node) -> String {
    node.trellis(&["nodes", "timings"]).ok().trim().to_owned()
}

/// What `up` says that does not start.
fn refused(data_dir: &DataDir, args: &[&str]) -> String {
    let mut up = command();
    up.args(["up", "--admin", "127.0.0.1:0", "--data-dir"]).arg(data_dir.path()).args(args);
    let ended = up.output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    said
}

#[test]
fn all_nodes_have_the_timings_that_the_lattice_was_founded_with_or_was_given_since() {
    let nats = NatsServer::start(false);
    let slow = ["--lease", "8s", "--lost-after", "12s"];
    let mut nodes = vec![node(&nats, &DataDir::new(), 1, &[&["--bootstrap"], &slow[..]].concat())];
    eventually("they are agreed on", || timings(&nodes[0]).ends_with("--lost-after 12s --lease 8s").then_some(()));
    // One that says nothing, and one that says the same.
    nodes.push(node(&nats, &DataDir::new(), 2, &[]));
    nodes.push(node(&nats, &DataDir::new(), 3, &slow));
    for node in &nodes {
        let all = "--heartbeat 1s --suspect-after 3s --lost-after 12s --lease 8s";
        eventually("it has them too", || (timings(node) == all).then_some(()));
    }
    let at = ["--nats", &nats.url];
    let told = refused(&DataDir::new(), &[&at[..], &["--lease", "5s"]].concat());
    assert!(
        told.contains("does not admit this node: it was given --lease 5s, and its lattice has --lease 8s"),
        "{told}"
    );
    assert!(told.contains("`trellis nodes timings --lease 5s`"), "{told}");
    assert!(nodes[0].trellis(&["nodes", "-o", "json"]).ok().matches("\"id\"").count() == 3, "it is not recorded");

    let unfit = nodes[1].trellis(&["nodes", "timings", "--lease", "20s"]).failed(1);
    assert!(unfit.contains("--lease 20s, --lost-after 12s"), "{unfit}");
    let told = nodes[1].trellis(&["nodes", "timings", "--lease", "5s", "--heartbeat", "500ms"]).ok();
    assert_eq!(told, "every node has --heartbeat 500ms --lease 5s from now on\n");
    for node in &nodes {
        let all = "--heartbeat 500ms --suspect-after 3s --lost-after 12s --lease 5s";
        eventually("it has the new ones", || (timings(node) == all).then_some(()));
    }
    eventually("who was given others says so", || {
        nodes[2].log().contains("will not start again with its own").then_some(())
    });
    // That the lattice agreed is on a node's disk when the next entry is.
    nodes[0].trellis(&["config", "put", "next", "n=1"]).ok();
    eventually("it has the next", || nodes[2].trellis(&["config", "list"]).ok().contains("next").then_some(()));

    let last = nodes.pop().unwrap();
    let (name, data_dir) = (id(&last), last.kill());
    let told = refused(&data_dir, &[&at[..], &slow[..]].concat());
    assert!(told.contains("it was given --lease 8s, and its lattice has --lease 5s"), "{told}");
    assert_eq!(id(&node(&nats, &data_dir, 3, &["--lost-after", "12s"])), name);
}

#[test]
fn timings_that_make_no_sense_found_nothing() {
    let data_dir = DataDir::new();
    let told = refused(&data_dir, &["--lease", "10s"]);
    assert!(told.contains("--lease 10s, --lost-after 6s") && told.contains("which must be later"), "{told}");
    drop(Node::start_in(&data_dir, &[]));
}
