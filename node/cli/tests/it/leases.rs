//! What runs once in the lattice, what happens in it, and nodes that follow it from outside the log.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use serde_json::Value;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, link, link_from, provider, provider_at, waking};
use crate::client::{Response, get};
use crate::lattice::{held_by, id, lattice, node, of};
use crate::node::{DataDir, Node};
use crate::trellis::command;

/// An app on the nodes with an edge label.
fn at_the_edge() -> String {
    let spread =
        "{type: spreadscaler, properties: {instances: 5, spread: [{name: edge, requirements: {edge: 'true'}}]}}";
    let http = crate::apps::http("edge", "");
    app("edge", &[component("edge", "hello", "", &[spread.into()]), http])
}

/// What the app answers where this node says that it is reached.
fn reached(node: &Node) -> Option<Response> {
    let status: Value = serde_json::from_str(&node.trellis(&["status", "edge", "-o", "json"]).stdout).ok()?;
    let at = status["links"][0]["at"].as_str()?.strip_prefix("http://")?.parse().ok()?;
    get(at, "/").ok()
}

fn readyz(node: &Node) -> (u16, String) {
    let answer = get(node.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/readyz").unwrap();
    (answer.status, answer.text())
}

#[test]
fn an_edge_node_follows_and_serves_after_a_power_cut_without_a_network() {
    let nats = NatsServer::start(false);
    let first = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
    let edge = node(&nats, &DataDir::new(), 2, &["--edge"]);
    first.deploy(&at_the_edge());
    assert_eq!(of(&first, &id(&edge), "role"), "edge");
    assert_eq!(of(&edge, &id(&first), "role"), "voter");
    eventually("it has caught up", || (of(&first, &id(&edge), "lag") == 0).then_some(()));
    // Whoever follows from outside takes changes too.
    edge.trellis(&["config", "put", "colours", "sky=blue"]).ok();
    assert_eq!(first.trellis(&["config", "get", "colours"]).ok(), "sky=blue\n");
    // A deploy does not wait for the edge.
    eventually("the edge serves", || reached(&edge).filter(|answer| answer.text() == "hello world\n"));

    let data_dir = edge.kill();
    let url = nats.url.clone();
    drop((nats, first));
    let started = Instant::now();
    let edge = Node::start_in(&data_dir, &["--nats", &url, "--label", "n=2", "--edge"]);
    let served = eventually("it serves what it held", || reached(&edge).filter(|answer| answer.status == 200));
    assert_eq!(served.ok(), "hello world\n");
    println!("served {:?} after the start without a network", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(8), "5 s, and 3 for a busy machine");
    let (status, told) = eventually("it says that it is cut off", || {
        Some(readyz(&edge)).filter(|(_, told)| told.contains("this node serves what it holds, has no leases"))
    });
    assert_eq!(status, 503, "{told}");
    let status = edge.trellis(&["status", "edge"]).ok();
    assert!(
        status.contains("not well:\n  this node is not connected to the lattice yet, and what it shows"),
        "{status}"
    );
    let nodes = edge.trellis(&["nodes"]);
    assert!(nodes.stderr.contains("not well: this node is not connected to the lattice yet"), "{nodes:?}");
    assert_eq!(nodes.stdout.matches("ready").count(), 1, "itself: {nodes:?}");
}

/// An app whose queue keeps its order, so that one node pulls.
fn ordered() -> String {
    let spread = "{type: daemonscaler, properties: {instances: 2}}";
    let config = "{stream: ORDERED, subject: 'ordered.>', create: 'true', delivery.order_by: subject}";
    let store = link("store", "wasi:keyvalue/store, atomics, batch");
    let publishes = link("bus", "trellis:messaging/producer");
    app(
        "ordered",
        &[
            component("worker", "test_messages", "", &[spread.into(), store, publishes]),
            provider("store", "embedded"),
            waking("bus", "nats", &[link_from("worker", "trellis:messaging/handler", "stream", config)]),
        ],
    )
}

/// Who has the lease, and its token.
fn lease(asked: &Node) -> Option<(String, u64)> {
    let status: Value = serde_json::from_str(&asked.trellis(&["status", "ordered", "-o", "json"]).stdout).ok()?;
    let lease = status["links"].as_array()?.iter().find_map(|link| link.get("lease"))?;
    Some((lease["node"].as_str()?.into(), lease["token"].as_u64()?))
}

#[test]
fn a_lease_has_one_holder_and_goes_on_when_it_dies() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice(&nats, 4);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), ordered()).unwrap();
    nodes[0].trellis(&["deploy", "--wait", "2m", file.path().to_str().unwrap()]).ok();
    let (holder, token) = eventually("somebody has the lease", || lease(&nodes[0]));
    for node in &nodes {
        eventually("all say the same", || (lease(node).as_ref() == Some(&(holder.clone(), token))).then_some(()));
    }
    let position = nodes.iter().position(|node| id(node) == holder).unwrap();
    let explained = nodes[position].trellis(&["explain", "ordered/worker"]).ok();
    assert!(explained.contains("has the lease of link `default`"), "{explained}");
    let has = |node: &Node| node.log().contains("has the lease");
    eventually("it knows that it has it", || has(&nodes[position]).then_some(()));

    let killed = Instant::now();
    drop(nodes.remove(position));
    let (next, later) = eventually("another has it", || lease(&nodes[0]).filter(|(next, _)| *next != holder));
    println!("another node has the lease {:?} after the kill", killed.elapsed());
    assert!(later > token);
    let position = nodes.iter().position(|node| id(node) == next).unwrap();
    eventually("it knows that it has it", || has(&nodes[position]).then_some(()));
    assert_eq!(nodes.iter().filter(|node| has(node)).count(), 1);
}

/// A queue of lanes whose order is kept, and what became of its messages.
struct Lanes {
    runtime: Runtime,
    context: Context,
}

impl Lanes {
    /// On every node.
    fn deploy(nats: &NatsServer, by: &Node) -> Self {
        let everywhere = "{type: daemonscaler, properties: {instances: 5}}";
        let uses = link("store", "wasi:keyvalue/store, atomics, batch");
        let config = "{stream: LANES, create: 'true', delivery.order_by: 'header:lane'}";
        by.deploy(&app(
            "ordered",
            &[
                component("worker", "test_account", "limits: {timeout: 600s}", &[everywhere.into(), uses]),
                provider_at("store", "nats", "bucket: ACCOUNTS, create: 'true'"),
                waking("bus", "nats", &[link_from("worker", "trellis:messaging/handler", "lanes", config)]),
            ],
        ));
        let runtime = Runtime::new().unwrap();
        let context = runtime.block_on(async { jetstream::new(async_nats::connect(&nats.url).await.unwrap()) });
        Self { runtime, context }
    }

    fn publish(&self, lane: &str, body: String) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("lane", lane);
        self.runtime.block_on(async {
            let sent = self.context.publish_with_headers("LANES", headers, body.into()).await.unwrap();
            sent.await.unwrap();
        });
    }

    /// A number of the account; 0 if nothing was written yet.
    fn number(&self, key: &str) -> usize {
        let bucket = self.runtime.block_on(self.context.get_key_value("ACCOUNTS")).unwrap();
        let value = self.runtime.block_on(bucket.get(key)).unwrap();
        value.map_or(0, |value| String::from_utf8(value.to_vec()).unwrap().parse().unwrap())
    }
}

/// How many sandboxes of the queue's component run on a node, as it says itself.
fn running(node: &Node) -> Option<u64> {
    let holders = node.status("ordered")["components"][0]["holders"].as_array().unwrap().clone();
    holders.iter().find(|one| one["node"] == id(node).as_str())?["running"].as_u64()
}

#[test]
fn who_held_a_lease_and_wakes_up_leaves_it_and_the_order_to_the_next() {
    const NAPS: usize = 100;
    let nats = NatsServer::start(true);
    let nodes = lattice(&nats, 4);
    let lanes = Lanes::deploy(&nats, &nodes[0]);
    let (holder, token) = eventually("somebody has the lease", || lease(&nodes[0]));
    let frozen = nodes.iter().find(|node| id(node) == holder).unwrap();
    let others: Vec<&Node> = nodes.iter().filter(|node| id(node) != holder).collect();
    // One that does not end by itself, and a lane that goes on beside it.
    lanes.publish("long", "sleep 0".into());
    (1..=NAPS).for_each(|n| lanes.publish("naps", format!("nap {n}")));
    eventually("it works on both", || (lanes.number("seen/0") == 1 && lanes.number("done/3") == 1).then_some(()));
    assert!(running(frozen) > Some(0));

    frozen.signal("STOP");
    let (next, later) = eventually("another has it", || lease(others[0]).filter(|(next, _)| *next != holder));
    assert!(later > token);
    eventually("and works", || (lanes.number("seen/0") == 2).then_some(()));
    frozen.signal("CONT");
    eventually("it is back", || (of(others[0], &holder, "state") == "ready").then_some(()));
    eventually("what it had running is broken off", || (running(frozen) == Some(0)).then_some(()));
    assert!(frozen.log().contains("lost the lease"), "{}", frozen.log());

    eventually("all are handled", || (1..=NAPS).all(|n| lanes.number(&format!("done/{n}")) > 0).then_some(()));
    assert_eq!(lanes.number("late/naps"), 0, "the order is kept");
    for node in &nodes {
        eventually("all say who has it", || (lease(node) == Some((next.clone(), later))).then_some(()));
    }
    assert_eq!(running(others.iter().find(|node| id(node) == next).unwrap()), Some(1), "the long one, and only there");
}

/// The events that a node tells.
pub(crate) fn events(node: &Node) -> Vec<Value> {
    let told = node.trellis(&["events", "-o", "json"]).ok();
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The first event of a kind that `trellis events -f` prints, which follows a node while something happens on another.
fn first_event(followed: &Node, kind: &str, what: impl FnOnce()) -> Value {
    let mut follows = command();
    follows.args(["events", "-f", "-o", "json", "--admin", &followed.admin]).stdout(Stdio::piped());
    let mut follows = follows.spawn().unwrap();
    let lines = BufReader::new(follows.stdout.take().unwrap()).lines();
    what();
    let events = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let found = events.into_iter().find(|event| event["type"] == format!("trellis.{kind}"));
    follows.kill().unwrap();
    follows.wait().unwrap();
    found.unwrap()
}

#[test]
fn events_tell_of_deploys_and_deaths_on_every_node() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    let admin = nodes[0].admin.strip_prefix("http://").unwrap().parse().unwrap();
    let writes = &nodes[0];
    let followed = first_event(&nodes[1], "app.deployed", || {
        writes.deploy(&held_by("far", "test_misbehave", "2", &[]));
    });
    assert_eq!(followed["subject"], "far");
    assert!(get(nodes[0].at("far"), "/trap").unwrap().status >= 500);
    eventually("the fault is told", || {
        events(&nodes[0]).iter().any(|event| event["type"] == "trellis.component.faulted").then_some(())
    });
    // By the first, which was there before.
    let told = events(&nodes[0]);
    for joined in nodes[1..].iter().map(id) {
        let is = |event: &Value| event["type"] == "trellis.node.joined" && event["data"]["node"] == joined.as_str();
        assert!(told.iter().any(is), "{joined}: {told:?}");
    }
    let dead = nodes.remove(2);
    let gone = id(&dead);
    drop(dead.kill());
    nodes[1].trellis(&["undeploy", "far"]).ok();
    for node in &nodes {
        let has = |kind: &str, subject: &str| {
            let is = |event: &Value| event["type"] == format!("trellis.{kind}") && event["subject"] == subject;
            eventually(&format!("{kind} of {subject}"), || events(node).into_iter().find(is))
        };
        let deployed = has("app.deployed", "far");
        assert_eq!(deployed["specversion"], "1.0");
        assert_eq!(deployed["data"]["app"], "far");
        for key in ["id", "source", "time", "datacontenttype"] {
            assert!(deployed[key].is_string(), "{deployed}");
        }
        has("component.started", "far/far");
        assert_eq!(has("component.faulted", "far/far")["data"]["faults"], 1);
        has("link.set", "far/http -> far/far wasi:http/incoming-handler default");
        assert_eq!(has("node.lost", &gone)["data"]["node"], gone.as_str());
        has("app.undeployed", "far");
        has("component.stopped", "far/far");
    }
    let answer = get(admin, "/v1/events?app=far").unwrap();
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    assert!(answer.text().lines().all(|line| line.contains("far")), "only what is about the app");
    let text = nodes[0].trellis(&["events", "far"]).ok();
    assert!(text.contains("app.deployed") && text.contains("version="), "{text}");
}
