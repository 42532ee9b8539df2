//! The home: what `trellis://embedded` keeps is on one node of the lattice, and every other node reaches it there.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking};
use crate::client::{Response, get, send};
use crate::lattice::{held_by, id, known, lattice, node, of};
use crate::node::{DataDir, Node};

/// How long a call may take to say that the home is away: it is asked for half a second, unless it is known to be silent.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Keys over HTTP, held by the nodes with these labels and reached on every node.
pub(crate) fn keys(name: &str, nodes: &str) -> String {
    held_by(name, "test_kv", nodes, &[link("store", "wasi:keyvalue/store, atomics, batch")])
        + &provider("store", "embedded")
}

pub(crate) fn ask(node: &Node, app: &str, method: &str, path: &str) -> Response {
    send(node.at(app), method, path, &[], b"").unwrap()
}

/// The nodes that are marked as the home.
pub(crate) fn homes(asked: &Node) -> Vec<String> {
    known(asked).iter().filter(|one| one["home"] == true).map(|one| one["id"].as_str().unwrap().into()).collect()
}

/// Adds 1 to a key so often through each node at once.
fn count(nodes: &[Node], app: &str, times: usize) {
    let places: Vec<_> = nodes.iter().map(|node| node.at(app)).collect();
    thread::scope(|scope| {
        for at in places {
            scope.spawn(move || {
                for _ in 0..times {
                    let added = send(at, "POST", "/sum", &[], b"").unwrap();
                    assert_eq!(added.status, 200, "{}", added.text());
                }
            });
        }
    });
}

#[test]
fn all_holders_see_one_store_which_is_back_with_its_home() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    assert!(homes(&nodes[0]).is_empty(), "nothing needs one");
    nodes[1].deploy(&keys("keys", "2|3"));
    nodes[1].deploy(&held_by("plain", "test_misbehave", "2", &[]));
    // The oldest node, though it holds none of it.
    let home = id(&nodes[0]);
    assert_eq!(homes(&nodes[2]), [home.as_str()]);
    count(&nodes, "keys", 40);
    nodes.iter().for_each(|node| assert_eq!(ask(node, "keys", "GET", "/sum").ok(), "120"));
    // A value that is larger than any message on the bus.
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 11)).to_le_bytes()[0]).collect();
    assert_eq!(send(nodes[1].at("keys"), "PUT", "/large", &[], &large).unwrap().status, 204);
    assert!(get(nodes[2].at("keys"), "/large").unwrap().body == large);
    let explained = nodes[2].trellis(&["explain", "keys"]).ok();
    let kept = format!("({home}), the home; other nodes reach it over the bus");
    assert!(explained.contains(&kept) && explained.contains("runs it: it is the home"), "{explained}");
    assert!(nodes[1].trellis(&["nodes"]).ok().contains("home)"));

    // It is drained, and stays.
    let drained = nodes[1].trellis(&["drain", &home]).ok();
    assert!(drained.contains("it stays the home"), "{drained}");
    eventually("it is drained", || (of(&nodes[2], &home, "state") == "drained").then_some(()));
    count(&nodes[1..], "keys", 10);
    nodes[1].trellis(&["undrain", &home]).ok();

    let at = nodes[2].at("plain");
    let data_dir = nodes.remove(0).kill();
    for _ in 0..3 {
        for node in &nodes {
            let asked = Instant::now();
            let refused = ask(node, "keys", "GET", "/sum");
            let (took, said) = (asked.elapsed(), refused.text());
            println!("{took:?}: {said}");
            assert_eq!(refused.status, 500, "{said}");
            assert!(said.contains(&format!("({home}), the home of what trellis://embedded keeps, does not answer")));
            assert!(said.contains(&format!("trellis nodes forget {home}")), "{said}");
            assert!(took < AT_ONCE, "{took:?}");
            assert_eq!(get(at, "/").unwrap().ok(), "ok", "others serve");
        }
        thread::sleep(Duration::from_secs(3));
    }
    eventually("it is lost", || (of(&nodes[0], &home, "state") == "lost").then_some(()));
    assert_eq!(homes(&nodes[1]), [home.as_str()], "and stays the home");
    let status = nodes[1].status("keys");
    let problems = status["problems"].to_string();
    assert!(problems.contains("the home of what trellis://embedded keeps, does not answer"), "{status:#}");
    assert!(nodes[0].trellis(&["explain", "keys"]).ok().contains("does not answer: it was last heard"));
    assert!(nodes[0].trellis(&["nodes"]).stderr.contains("not well: node "));
    nodes[0].until_ready("plain");

    nodes.push(node(&nats, &data_dir, 1, &[]));
    eventually("it is back", || (of(&nodes[0], &home, "state") == "ready").then_some(()));
    nodes[0].until_ready("keys");
    nodes.iter().for_each(|node| assert_eq!(ask(node, "keys", "GET", "/sum").ok(), "140"));
}

/// Messages of an embedded queue, counted in an embedded store by every node with these labels. A reading component beside.
fn worker(nodes: &str) -> String {
    let uses = || link("store", "wasi:keyvalue/store, atomics, batch");
    let spread = format!(
        "{{type: spreadscaler, properties: {{instances: 8, spread: [{{name: there, requirements: {{n: '{nodes}'}}}}]}}}}"
    );
    let here = "{type: spreadscaler, properties: {instances: 5, spread: [{name: here, requirements: {n: '2'}}]}}";
    let queue = "{queue: work, subject: 'work.>', delivery.backoff.initial: 50ms, delivery.max_faults: '2'}";
    app(
        "worker",
        &[
            component("worker", "test_account", "limits: {timeout: 20s}", &[uses(), spread]),
            component("window", "test_kv", "", &[uses(), here.into()]),
            http("window", ""),
            provider("store", "embedded"),
            waking("mail", "embedded", &[link_from("worker", "trellis:messaging/handler", "mail", queue)]),
        ],
    )
}

/// The first trigger.
pub(crate) fn trigger(asked: &Node) -> Value {
    let status: Value = serde_json::from_str(&asked.trellis(&["triggers", "-o", "json"]).ok()).unwrap();
    status["triggers"][0].clone()
}

/// How many messages each holder of a component was woken by.
pub(crate) fn events(asked: &Node, app: &str, component: &str) -> Vec<u64> {
    let status = asked.status(app);
    let components = status["components"].as_array().unwrap().clone();
    let found = components.into_iter().find(|one| one["name"] == component).unwrap();
    found["holders"].as_array().unwrap().iter().map(|holder| holder["events"].as_u64().unwrap()).collect()
}

#[test]
fn a_queue_at_home_wakes_holders_on_other_nodes_and_is_handled_from_any() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    nodes[2].deploy(&worker("2|3"));
    assert_eq!(homes(&nodes[2]), [id(&nodes[0])]);
    let began = Instant::now();
    for n in 0..60 {
        let said = nodes[n % 3].trellis(&["publish", "work.all", &format!("ok {n}")]).ok();
        assert_eq!(said, "published to work.all via nats and embedded, to 1 subscription\n");
    }
    assert!(nodes[1].trellis(&["publish", "nobody.at.home", "x"]).ok().ends_with("via nats\n"));
    let done = |n: usize| get(nodes[1].at("worker"), &format!("/done/{n}")).unwrap().text();
    eventually("all are handled, once each", || (0..60).all(|n| done(n) == "1").then_some(()));
    println!("60 messages from three nodes in {:?}", began.elapsed());
    eventually("both holders had some", || {
        let events = events(&nodes[0], "worker", "worker");
        (events.len() == 2 && events.iter().all(|count| *count > 0) && events.iter().sum::<u64>() == 60).then_some(())
    });
    let all = trigger(&nodes[2]);
    assert_eq!((&all["nodes"], &all["waiting"]), (&1.into(), &0.into()), "{all:#}");

    // Paused by one node, published and resumed by others.
    nodes[1].trellis(&["pause", "worker/worker"]).ok();
    eventually("it is paused", || (trigger(&nodes[0])["state"] == "paused").then_some(()));
    nodes[2].trellis(&["publish", "work.all", "dead-letter 100"]).ok();
    nodes[2].trellis(&["publish", "work.all", "ok 101"]).ok();
    eventually("they wait", || (trigger(&nodes[1])["waiting"] == 2).then_some(()));
    nodes[2].trellis(&["resume", "worker/worker"]).ok();
    eventually("it goes on", || (done(101) == "1").then_some(()));
    let letters = |asked: &Node| asked.dead_letters("worker", &[]);
    let dead = eventually("one is a dead letter", || letters(&nodes[1]).pop());
    nodes[2].trellis(&["dead-letters", "drop", "worker", dead["id"].as_str().unwrap()]).ok();
    assert!(letters(&nodes[0]).is_empty());
}

#[test]
fn the_edge_uses_the_home_over_the_bus() {
    let nats = NatsServer::start(false);
    let hub = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
    let laptop = node(&nats, &DataDir::new(), 2, &["--edge"]);
    let spread =
        "{type: spreadscaler, properties: {instances: 5, spread: [{name: edge, requirements: {edge: 'true'}}]}}";
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let parts =
        [component("far", "test_kv", "", &[spread.into(), uses]), http("far", ""), provider("store", "embedded")];
    hub.deploy(&app("far", &parts));
    assert_eq!(homes(&laptop), [id(&hub)]);
    let at = eventually("the laptop serves", || {
        let status: Value = serde_json::from_str(&laptop.trellis(&["status", "far", "-o", "json"]).stdout).ok()?;
        let links = status["links"].as_array()?;
        let at = links.iter().find_map(|link| link["at"].as_str())?.strip_prefix("http://")?.parse().ok()?;
        (send(at, "POST", "/sum", &[], b"").ok()?.status == 200).then_some(at)
    });
    assert_eq!(send(at, "POST", "/sum?by=9", &[], b"").unwrap().ok(), "10");
    // What it counted is not on the laptop: an app at the hub that shares the store sees it.
    let shared = keys("near", "1")
        .replace("target: store,", "target: {name: store, config: [{name: of-far, properties: {store: far}}]},");
    hub.deploy(&shared);
    assert_eq!(ask(&hub, "near", "GET", "/sum").ok(), "10");
}

#[test]
fn a_home_that_is_forgotten_takes_what_it_keeps_with_it() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 4);
    nodes[3].deploy(&keys("keys", "2|3|4"));
    count(&nodes, "keys", 5);
    let home = id(&nodes[0]);
    drop(nodes.remove(0).kill());
    eventually("it is lost", || (of(&nodes[0], &home, "state") == "lost").then_some(()));
    let said = nodes[1].trellis(&["nodes", "forget", &home]).ok();
    assert!(said.contains("it was the home: what trellis://embedded kept went with it"), "{said}");
    eventually("another is the home", || (homes(&nodes[2]) == [id(&nodes[0])]).then_some(()));
    nodes[2].until_ready("keys");
    assert_eq!(ask(&nodes[2], "keys", "GET", "/sum").status, 404);
    count(&nodes, "keys", 5);
    nodes.iter().for_each(|node| assert_eq!(ask(node, "keys", "GET", "/sum").ok(), "15"));
}

#[test]
fn a_node_alone_is_its_own_home_and_stays_it_with_others() {
    let alone = Node::start_in(&DataDir::new(), &["--label", "n=1"]);
    alone.deploy(&keys("keys", "1|2"));
    assert_eq!(ask(&alone, "keys", "POST", "/sum?by=7").ok(), "7");
    assert_eq!(homes(&alone), [id(&alone)]);
    let data_dir = alone.data_dir().clone();
    alone.stop();
    let nats = NatsServer::start(false);
    let nodes = [node(&nats, &data_dir, 1, &[]), node(&nats, &DataDir::new(), 2, &[])];
    eventually("both hold it", || {
        let holders = nodes[0].status("keys")["components"][0]["holders"].as_array().unwrap().len();
        (holders == 2).then_some(())
    });
    nodes[1].until_ready("keys");
    count(&nodes, "keys", 10);
    nodes.iter().for_each(|node| assert_eq!(ask(node, "keys", "GET", "/sum").ok(), "27"));
}
