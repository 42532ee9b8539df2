//! What nodes tell of themselves and of what happens, while it happens.

use std::cell::Cell;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::apps::{app, component, eventually};
use crate::node::Node;
use crate::trellis::command;

#[test]
fn events_are_followed_as_they_come() {
    let node = Node::start(&[]);
    node.trellis(&["config", "put", "before", "a=b"]).ok();
    let mut following = command();
    following.args(["events", "-f", "-o", "json", "--lines", "0", "--admin", &node.admin]).stdout(Stdio::piped());
    let mut following = following.spawn().unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));

    // It may not listen yet when the first one comes; it goes on listening after each.
    let (this, n) = (crate::lattice::id(&node), Cell::new(0));
    for zone in ["eu", "us"] {
        eventually("it is told at once", || {
            n.set(n.get() + 1);
            node.trellis(&["label", &this, &format!("zone={zone}"), &format!("n={}", n.get())]).ok();
            let line = told.recv_timeout(Duration::from_secs(1)).ok()?;
            let event: Value = serde_json::from_str(&line).unwrap();
            (event["type"] == "trellis.node.labelled" && event["data"]["labels"]["zone"] == zone).then_some(())
        });
    }
    assert_eq!(following.try_wait().unwrap(), None, "it goes on until it is ended");
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn a_node_labels_itself_with_what_its_machine_is_and_components_are_placed_by_it() {
    let node = Node::start(&[]);
    let labels = crate::lattice::of(&node, &crate::lattice::id(&node), "labels");
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let cores = std::thread::available_parallelism().unwrap().to_string();
    for (label, value) in [
        ("os", "linux"),
        ("hostcore.os", "linux"),
        ("hostcore.osfamily", "unix"),
        ("arch", std::env::consts::ARCH),
        ("hostcore.arch", std::env::consts::ARCH),
        ("hostname", name.trim()),
        ("cpu", &cores),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    assert!(labels["memory"].as_str().unwrap().strip_suffix("MiB").unwrap().parse::<u64>().unwrap() > 0, "{labels}");

    let placed = |os: &str| {
        let here = format!("{{os: {os}, arch: {}, hostname: {}, cpu: '{cores}'}}", std::env::consts::ARCH, name.trim());
        let spread = format!(
            "{{type: spreadscaler, properties: {{instances: 1, spread: [{{name: s, requirements: {here}}}]}}}}"
        );
        app("labelled", &[component("api", "test_run", "", &[spread])])
    };
    node.deploy(&placed("linux"));
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), placed("plan9").replace("name: labelled", "name: elsewhere")).unwrap();
    let refused = node.trellis(&["deploy", "--wait", "3s", file.path().to_str().unwrap()]).failed(1);
    assert!(refused.contains("no node fits"), "{refused}");
}
