//! New versions on three real nodes: they take over under load, are taken back when they fault or never get ready, and
//! can be gone back from by hand.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{component, eventually, http, link, provider_at};
use crate::client::get;
use crate::lattice::{id, lattice_with};
use crate::node::Node;

/// How long a new version has to get ready here, and is watched.
const QUICK: [&str; 4] = ["--ready-within", "8s", "--watch-for", "20s"];

/// A version of an app: a component on every node that holds it, behind an HTTP server on every node.
fn app(version: &str, more: &str, spread: &str, web: &str) -> String {
    let spread = format!("{{type: spreadscaler, properties: {{instances: 12, spread: {spread}}}}}");
    let everywhere = http("api", web).replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    let manifest = crate::apps::app("shop", &[component("api", "test_misbehave", more, &[spread]), everywhere]);
    manifest.replace("{name: shop}", &format!("{{name: shop, annotations: {{version: {version}}}}}"))
}

const ANYWHERE: &str = "[{name: any, requirements: {}}]";

fn history(node: &Node) -> Vec<(String, String, String)> {
    let shown: Vec<Value> = serde_json::from_str(&node.trellis(&["history", "shop", "-o", "json"]).ok()).unwrap();
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    shown.iter().map(|one| (text(one, "version"), text(one, "state"), text(one, "why"))).collect()
}

/// Clients of every node that ask for `path` all the time.
struct Load {
    answered: usize,
    failed: Vec<String>,
}

fn under_load(at: &[SocketAddr], path: &str, what: impl FnOnce()) -> Load {
    let (load, over) = (Mutex::new(Load { answered: 0, failed: Vec::new() }), AtomicBool::new(false));
    thread::scope(|scope| {
        for address in at {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let answer = get(*address, path);
                    let mut load = load.lock().unwrap();
                    match answer {
                        Ok(response) if response.status == 200 => load.answered += 1,
                        Ok(response) => load.failed.push(format!("{} {}", response.status, response.text().trim())),
                        Err(why) => load.failed.push(why.to_string()),
                    }
                }
            });
        }
        // The clients end whatever comes of it: else a failure would hang.
        let came_to = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        over.store(true, Ordering::Relaxed);
        came_to.unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
    load.into_inner().unwrap()
}

/// What the app's config says of the version that answers.
fn version_at(at: SocketAddr) -> String {
    get(at, "/config").unwrap().ok()
}

/// The component's own config, so that an answer says which version gave it.
fn says(version: &str) -> String {
    let manifest = app(version, "limits: {timeout: 20s}", ANYWHERE, "");
    let config = format!("config: [{{name: v{version}, properties: {{version: '{version}'}}}}]");
    manifest.replacen("test_misbehave.wasm'}", &format!("test_misbehave.wasm', {config}}}"), 1)
}

#[test]
fn a_new_version_takes_over_on_three_nodes_without_a_failed_request() {
    let nats = NatsServer::start(false);
    let nodes = lattice_with(&nats, 3, &QUICK);
    nodes[0].deploy(&says("1"));
    let at: Vec<SocketAddr> = nodes.iter().map(|node| node.at("shop")).collect();
    assert!(at.iter().all(|at| version_at(*at) == "version=1\n"));

    let load = under_load(&at, "/slow?ms=20", || {
        nodes[1].deploy(&says("2"));
        // Other nodes than those that held it: permits move with the steps.
        let elsewhere = "[{name: two, requirements: {n: '2'}}]";
        let third = says("3").replace(ANYWHERE, elsewhere);
        nodes[2].deploy(&third);
        nodes[0].deploy(&says("4"));
    });
    assert_eq!(load.failed, [""; 0], "{} answered", load.answered);
    assert!(load.answered > 20, "{}", load.answered);
    assert!(at.iter().all(|at| version_at(*at) == "version=4\n"));

    // Back by hand: what is watched still is left at once, what is further back is rolled out.
    let load = under_load(&at, "/slow?ms=20", || {
        assert!(nodes[0].trellis(&["rollback", "shop"]).ok().contains("shop goes back to 3"));
        assert!(nodes[1].trellis(&["rollback", "shop", "1"]).ok().contains("shop goes back to 1"));
    });
    assert_eq!(load.failed, [""; 0], "{} answered", load.answered);
    assert!(at.iter().all(|at| version_at(*at) == "version=1\n"));
    let past = history(&nodes[2]);
    let state = |version: &str| past.iter().find(|(one, ..)| one == version).map(|(_, state, why)| (&**state, &**why));
    assert_eq!(state("4"), Some(("rolled-back", "by hand")));
    assert_eq!(state("1"), Some(("deployed", "")));
    assert_eq!(state("2"), Some(("replaced", "by 3")));
    let refused = nodes[0].trellis(&["rollback", "shop", "9"]).failed(1);
    assert!(refused.contains("app shop has no version 9; `trellis history shop`"), "{refused}");
}

#[test]
fn a_long_request_ends_on_the_version_that_it_began_on() {
    let nats = NatsServer::start(false);
    let nodes = lattice_with(&nats, 3, &QUICK);
    let lasts = |version: &str| {
        let manifest = says(version).replace("timeout: 20s", "timeout: 120s");
        manifest.replace("'127.0.0.1:0', ", "'127.0.0.1:0', timeout_ms: '120000'")
    };
    nodes[0].deploy(&lasts("1"));
    let at: Vec<SocketAddr> = nodes.iter().map(|node| node.at("shop")).collect();
    thread::scope(|scope| {
        let asked: Vec<_> = at.iter().map(|at| scope.spawn(|| get(*at, "/slow?ms=40000").unwrap())).collect();
        eventually("they are under way", || {
            let status = nodes[0].status("shop");
            let holders = status["components"][0]["holders"].as_array()?.iter();
            (holders.filter_map(|one| one["running"].as_u64()).sum::<u64>() == 3).then_some(())
        });
        nodes[1].deploy(&lasts("2"));
        assert!(at.iter().all(|at| version_at(*at) == "version=2\n"));
        assert!(asked.iter().all(|one| !one.is_finished()), "the new version took over while they were under way");
        for one in asked {
            assert_eq!(one.join().unwrap().ok(), "slow");
        }
    });
}

#[test]
fn a_version_that_traps_is_rolled_back_by_itself() {
    let nats = NatsServer::start(false);
    let nodes = lattice_with(&nats, 3, &QUICK);
    // A guest that cannot have the memory it asks for traps at each event.
    let good = app("1", "limits: {memory: 64MiB}", ANYWHERE, "");
    let bad = app("2", "limits: {memory: 64KiB}", ANYWHERE, "");
    nodes[0].deploy(&good);
    let at: Vec<SocketAddr> = nodes.iter().map(|node| node.at("shop")).collect();
    let load = under_load(&at, "/", || {
        let stderr = nodes[1].try_deploy(&bad).failed(1);
        assert!(stderr.contains("shop 2 was rolled back to 1: ") && stderr.contains("events faulted"), "{stderr}");
        thread::sleep(Duration::from_secs(1));
    });
    assert!(
        !load.failed.is_empty() && load.answered > load.failed.len() / 4,
        "{} {}",
        load.answered,
        load.failed.len()
    );
    nodes[2].until_ready("shop");
    assert!(at.iter().all(|at| get(*at, "/").unwrap().status == 200));
    assert_eq!(history(&nodes[0])[0].1, "rolled-back");
    let status = nodes[0].trellis(&["status", "shop"]).ok();
    assert!(status.contains("shop 1 is ready"), "{status}");
}

#[test]
fn a_version_that_never_gets_ready_is_rolled_back_by_itself() {
    let nats = NatsServer::start(false);
    let nodes = lattice_with(&nats, 3, &QUICK);
    nodes[0].deploy(&app("1", "", ANYWHERE, ""));
    let at: Vec<SocketAddr> = nodes.iter().map(|node| node.at("shop")).collect();

    // No node fits; then: its listener's certificate is missing on every node, while the former one goes on.
    let nowhere = app("2", "", "[{name: moon, requirements: {zone: moon}}]", "");
    let tls = app("3", "", ANYWHERE, "tls_cert_file: /nowhere.pem, tls_priv_key_file: /nowhere.key");
    for (manifest, told) in [(nowhere, "no node fits"), (tls, "/nowhere.pem")] {
        let load = under_load(&at, "/", || {
            let began = Instant::now();
            let stderr = nodes[1].try_deploy(&manifest).failed(1);
            assert!(stderr.contains("it was not ready within 8s: ") && stderr.contains(told), "{stderr}");
            assert!(began.elapsed() > Duration::from_secs(7));
            nodes[0].until_ready("shop");
        });
        assert_eq!(load.failed, [""; 0], "{} answered", load.answered);
    }
    assert_eq!(nodes[0].status("shop")["version"], "1");
}

#[test]
fn a_node_at_the_edge_may_be_behind() {
    let nats = NatsServer::start(false);
    // However long the deploy takes, the node that stops answering is not lost meanwhile.
    let patient = ["--lost-after", "600s"];
    let mut nodes = lattice_with(&nats, 2, &[&QUICK[..], &patient[..]].concat());
    let edge = crate::lattice::node(&nats, &crate::node::DataDir::new(), 3, &["--edge", patient[0], patient[1]]);
    let everywhere =
        "[{name: core, weight: 50, requirements: {}}, {name: edge, weight: 50, requirements: {edge: '*'}}]";
    nodes[0].deploy(&app("1", "", everywhere, ""));
    let laptop = id(&edge);
    // It stops answering: the deploy does not wait for it.
    edge.signal("STOP");
    nodes[0].deploy(&app("2", "limits: {memory: 65MiB}", everywhere, ""));
    let holders = nodes[0].status("shop")["components"][0]["holders"].as_array().unwrap().clone();
    let behind = holders.iter().find(|holder| holder["node"] == laptop.as_str());
    assert_eq!(behind.map(|holder| &holder["state"]), Some(&Value::from("behind")), "{holders:#?}");
    edge.signal("CONT");
    eventually("it has caught up", || {
        let status = nodes[0].status("shop");
        let holders = status["components"][0]["holders"].as_array().unwrap().clone();
        holders.iter().any(|holder| holder["node"] == laptop.as_str() && holder["state"] == "ready").then_some(())
    });
    nodes.push(edge);
}

#[test]
fn a_drained_node_hands_over_before_it_stops() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice_with(&nats, 3, &[]);
    // One node holds it alone; clients ask another one.
    let alone = app("1", "limits: {timeout: 20s}", "[{name: there, requirements: {n: '1|2'}}]", "")
        .replace("instances: 12", "instances: 1");
    nodes[2].deploy(&alone);
    let holder =
        || nodes[2].status("shop")["components"][0]["holders"][0]["node"].as_str().unwrap_or_default().to_owned();
    let at = [nodes[2].at("shop"); 4];
    let first = holder();
    let load = under_load(&at, "/slow?ms=20", || {
        nodes[2].trellis(&["drain", &first]).ok();
        eventually("another node holds it", || (holder() != first && !holder().is_empty()).then_some(()));
        nodes[2].until_ready("shop");
        nodes[2].trellis(&["undrain", &first]).ok();
    });
    assert_eq!(load.failed, [""; 0], "drained by command; {} answered", load.answered);

    let second = holder();
    let position = nodes.iter().position(|node| id(node) == second).unwrap();
    let leaving = nodes.remove(position);
    let last = nodes.last().unwrap();
    let load = under_load(&at, "/slow?ms=20", || {
        assert_eq!(leaving.stop().code(), Some(0));
        last.until_ready("shop");
        thread::sleep(Duration::from_secs(1));
    });
    assert_eq!(load.failed, [""; 0], "drained by SIGTERM; {} answered", load.answered);
    assert!(load.answered > 0);
}

/// An app whose component runs on one of two nodes, behind HTTP servers everywhere and with a store on the first node; a
/// second component calls the first one.
fn calling(spread: &str) -> String {
    let alone = format!(
        "{{type: spreadscaler, properties: {{instances: 1, spread: [{{name: there, requirements: {spread}}}]}}}}"
    );
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let everywhere = http("api", "").replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    let parts = [component("api", "test_kv", "limits: {timeout: 20s}", &[alone, uses]), everywhere];
    crate::apps::app("shop", &[&parts[..], &[crate::apps::provider("store", "embedded")]].concat())
}

#[test]
fn a_drained_node_calls_until_it_has_handed_over() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice_with(&nats, 3, &[]);
    nodes[0].deploy(&calling("{n: '2|3'}"));
    let holder =
        || nodes[0].status("shop")["components"][0]["holders"][0]["node"].as_str().unwrap_or_default().to_owned();
    let at = [nodes[0].at("shop"); 4];
    assert_eq!(crate::client::send(at[0], "PUT", "/k", &[], b"kept").unwrap().status, 204);
    for round in 0..3 {
        let first = holder();
        let load = under_load(&at, "/k", || {
            nodes[0].trellis(&["drain", &first]).ok();
            eventually("another node holds it", || (holder() != first && !holder().is_empty()).then_some(()));
            nodes[0].until_ready("shop");
            nodes[0].trellis(&["undrain", &first]).ok();
        });
        assert_eq!(load.failed, [""; 0], "drained by command in round {round}; {} answered", load.answered);
    }

    let last = holder();
    let leaving = nodes.remove(nodes.iter().position(|node| id(node) == last).unwrap());
    let load = under_load(&at, "/k", || {
        assert_eq!(leaving.stop().code(), Some(0));
        nodes[0].until_ready("shop");
        thread::sleep(Duration::from_secs(1));
    });
    assert_eq!(load.failed, [""; 0], "drained by SIGTERM; {} answered", load.answered);
    assert!(load.answered > 0);
}

#[test]
fn what_cannot_begin_on_a_node_does_not_keep_what_leaves_it() {
    let nats = NatsServer::start(false);
    let nodes = lattice_with(&nats, 2, &[]);
    // Its port is taken on both nodes for as long as the test takes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("address: '{}'", taken.local_addr().unwrap());
    let stuck = crate::apps::app(
        "stuck",
        &[
            component("api", "test_misbehave", "", &["{type: daemonscaler, properties: {instances: 1}}".into()]),
            http("api", "").replace("address: '127.0.0.1:0', ", &address),
        ],
    );
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), stuck).unwrap();
    let refused = nodes[0].trellis(&["deploy", "--wait", "5s", file.path().to_str().unwrap()]).failed(1);
    assert!(refused.contains("in use"), "{refused}");

    let label = |at: usize, value: &str| {
        nodes[0].trellis(&["label", &id(&nodes[at]), &format!("shop={value}")]).ok();
    };
    label(0, "here");
    nodes[0].deploy(&app("1", "", "[{name: there, requirements: {shop: here}}]", ""));
    let at = nodes[1].at("shop");
    label(1, "here");
    label(0, "no");
    eventually("the other node has the permits", || {
        let status = nodes[0].status("shop");
        let holders = status["components"][0]["holders"].as_array().unwrap().clone();
        let is_other = |holder: &Value| holder["node"] == id(&nodes[1]).as_str() && holder["permits"] == 12;
        (holders.len() == 1 && is_other(&holders[0])).then_some(())
    });
    assert_eq!(get(at, "/").unwrap().status, 200);
    assert_ne!(nodes[0].status("stuck")["state"], "ready");
}

/// An app on nodes 1 and 3 with a store of NATS, reached through whichever node has the label `store`.
fn stored(nats: &NatsServer) -> String {
    let spread = |requires: &str, instances: usize| {
        format!(
            "{{type: spreadscaler, properties: {{instances: {instances}, spread: [{{name: s, requirements: {{{requires}}}}}]}}}}"
        )
    };
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let config = format!("url: '{}', bucket: kept, create: 'true'", nats.url);
    let store =
        format!("{}      traits:\n        - {}\n", provider_at("store", "nats", &config), spread("store: here", 1));
    let everywhere = http("api", "").replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    crate::apps::app("kept", &[component("api", "test_kv", "", &[spread("n: '1|3'", 20), uses]), everywhere, store])
}

#[test]
fn a_provider_with_a_scaler_moves_without_a_failed_call() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice_with(&nats, 3, &[]);
    let ids: Vec<String> = nodes.iter().map(id).collect();
    let label =
        |node: &Node, at: usize, value: &str| node.trellis(&["label", &ids[at], &format!("store={value}")]).ok();
    label(&nodes[0], 0, "here");
    nodes[0].deploy(&stored(&nats));
    let at = [nodes[0].at("kept"), nodes[2].at("kept")];
    assert_eq!(crate::client::send(at[0], "PUT", "/k", &[], b"kept").unwrap().status, 204);

    let runs = |asked: &Node, at: usize| {
        let told = asked.trellis(&["explain", "kept/store", "-o", "json"]).ok();
        let told: Value = serde_json::from_str(&told).unwrap();
        let store = told["components"].as_array().unwrap().iter().find(|one| one["name"] == "store").unwrap().clone();
        let nodes = store["nodes"].as_array().unwrap();
        nodes.iter().any(|one| one["node"] == ids[at].as_str() && one["holds"] == true)
    };
    // From beside the component to elsewhere, and back.
    for (from, to) in [(0, 1), (1, 0), (0, 1)] {
        let load = under_load(&at, "/k", || {
            label(&nodes[0], to, "here");
            label(&nodes[0], from, "no");
            eventually("it runs on the other node", || runs(&nodes[0], to).then_some(()));
            nodes[0].until_ready("kept");
            thread::sleep(Duration::from_secs(1));
        });
        assert_eq!(load.failed, [""; 0], "{from} to {to}; {} answered", load.answered);
        assert!(load.answered > 0);
    }
    // A node that ends hands it over too, though it holds no component.
    label(&nodes[0], 2, "here");
    let leaving = nodes.remove(1);
    let load = under_load(&at, "/k", || {
        assert_eq!(leaving.stop().code(), Some(0));
        eventually("it runs on the last node", || runs(&nodes[0], 2).then_some(()));
        thread::sleep(Duration::from_secs(1));
    });
    assert_eq!(load.failed, [""; 0], "ended by SIGTERM; {} answered", load.answered);
}
