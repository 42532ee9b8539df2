//! An app whose manifest is larger than any entry of the log: through a follower, past a restart of all nodes, and to a
//! node that begins from a snapshot.

use std::net::SocketAddr;
use std::thread;

use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, http};
use crate::client::{get, send};
use crate::lattice::{id, known, lattice, node};
use crate::node::{DataDir, Node};

/// Components of the app, all of one image, each with a config of its own.
const COMPONENTS: usize = 60;
/// How long each config is, in bytes.
const CONFIG_BYTES: usize = 5_000;
/// So long, the manifest is just below the most that is taken, 1 MiB.
const LARGEST_CONFIG_BYTES: usize = 17_100;
/// How many entries make the log long enough for a snapshot that takes the place of its beginning.
const ENTRIES: usize = 2_200;
/// How many are put at once.
const AT_ONCE: usize = 20;

/// The app, on nodes 2 and 4.
pub(crate) fn manifest() -> String {
    sized(CONFIG_BYTES)
}

/// The app, with configs of so many bytes.
fn sized(config_bytes: usize) -> String {
    let spread = "{type: spreadscaler, properties: {instances: 2, spread: [{name: here, requirements: {n: '2|4'}}]}}";
    let large = |n: usize| {
        let text = format!("{n} {}", "x".repeat(config_bytes));
        let plain = component(&format!("c{n}"), "test_misbehave", "", &[spread.into()]);
        plain.replacen("wasm'}", &format!("wasm', config: [{{name: own{n}, properties: {{text: '{text}'}}}}]}}"), 1)
    };
    let everywhere = http("c7", "").replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    let entries: Vec<String> = (0..COMPONENTS).map(large).chain([everywhere]).collect();
    app("large", &entries)
}

/// All of it is there and runs, as any node sees it.
fn check(node: &Node, manifest: &str) {
    node.until_ready("large");
    let status = node.status("large");
    assert_eq!(status["components"].as_array().unwrap().len(), COMPONENTS);
    let config = get(node.at("large"), "/config").unwrap().ok();
    assert!(config.starts_with("text=7 xxx") && config.len() > CONFIG_BYTES, "{config}");
    let kept = get(admin(node), "/v1/apps/large/manifest").unwrap().ok();
    assert!(kept == manifest, "the manifest is the one that was deployed");
}

fn admin(node: &Node) -> SocketAddr {
    node.admin.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Puts so much config that the log's beginning is given up for a snapshot.
fn lengthen_the_log(at: SocketAddr) {
    thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || {
                for n in (first..ENTRIES).step_by(AT_ONCE) {
                    let body = format!("{{\"values\": {{\"n\": \"{n}\"}}}}");
                    let headers = [("content-type", "application/json")];
                    let path = format!("/v1/config/many-{}", n % 100);
                    send(at, "PUT", &path, &headers, body.as_bytes()).unwrap().ok();
                }
            });
        }
    });
}

#[test]
fn an_app_larger_than_any_entry_of_the_log_is_deployed_kept_and_handed_on() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let manifest = manifest();
    assert!(manifest.len() > 300_000, "{}", manifest.len());
    let follower = nodes.iter().find(|node| !leads(node)).unwrap();
    follower.deploy(&manifest);
    nodes.iter().for_each(|node| check(node, &manifest));
    // The same again is nothing new.
    let again = follower.try_deploy(&manifest).ok();
    assert!(again.contains("nothing changed"), "{again}");

    let data_dirs: Vec<DataDir> = nodes.into_iter().map(Node::kill).collect();
    let mut nodes: Vec<Node> = (1..).zip(&data_dirs).map(|(n, dir)| node(&nats, dir, n, &[])).collect();
    nodes.iter().for_each(|node| check(node, &manifest));

    lengthen_the_log(admin(&nodes[0]));
    nodes.push(node(&nats, &DataDir::new(), 4, &[]));
    let begun = |node: &Node| node.log().contains("began from a snapshot");
    eventually("the new node begins from a snapshot", || begun(&nodes[3]).then_some(()));
    nodes[0].trellis(&["drain", &id(&nodes[1])]).ok();
    eventually("the new node holds what the drained one did", || {
        let status = nodes[3].status("large");
        let holder = &status["components"][7]["holders"][0];
        (holder["node"] == id(&nodes[3]).as_str() && status["state"] == "ready").then_some(())
    });
    check(&nodes[3], &manifest);
}

#[test]
fn the_largest_manifest_is_backed_up_and_restored() {
    let version = |n| format!("metadata: {{name: large, annotations: {{version: v{n}}}}}");
    let manifest = sized(LARGEST_CONFIG_BYTES).replacen("metadata: {name: large}", &version(1), 1);
    assert!((1_000_000..=1 << 20).contains(&manifest.len()), "{}", manifest.len());
    let start = || Node::start(&["--label", "n=2"]);
    let node = start();
    node.deploy(&manifest);
    // Another version, so that the backup has two of them.
    let again = manifest.replacen("xxx", "yyy", 1).replacen(&version(1), &version(2), 1);
    node.deploy(&again);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lattice.backup");
    let path = file.to_str().unwrap();
    node.trellis(&["backup", path]).ok();
    drop(node);

    let fresh = start();
    let told = fresh.trellis(&["restore", path]).ok();
    assert!(told.starts_with("restored "), "{told}");
    check(&fresh, &again);
    assert_eq!(fresh.status("large")["versions"], serde_json::json!(["v2", "v1"]));
}

/// Whether a node leads.
fn leads(node: &Node) -> bool {
    known(node).iter().any(|one| one["id"] == id(node).as_str() && one["leader"] == true)
}
