//! Topics of MQTT whose order is kept, or that are capped: the home alone pulls them, and the messages run wherever there are
//! permits.

use std::ops::Range;
use std::thread;
use std::time::Duration;

use trellis_bus::testing::NatsServer;
use trellis_mqtt::testing::Mosquitto;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking_at};
use crate::client::get;
use crate::home::{events, homes, trigger};
use crate::lattice::{id, lattice, node};
use crate::node::{DataDir, Node};

const LANES: usize = 4;
const TOPIC: &str = "lane/+";
const PACE: Duration = Duration::from_millis(10);

const ORDERED: &str = ", delivery.order_by: subject";
const CAP: usize = 2;
const THREE: [&str; 3] = ["1", "2", "3"];

/// What keeps account of each message, on these nodes, and a window into its store.
fn keeper(server: &Mosquitto, nodes: &[&str], policy: &str) -> String {
    let uses = || link("store", "wasi:keyvalue/store, atomics, batch");
    // So few that the home needs the other nodes'.
    let spread = |nodes: &[&str]| {
        let (instances, n) = (nodes.len(), nodes.join("|"));
        format!(
            "{{type: spreadscaler, properties: {{instances: {instances}, spread: [{{name: there, requirements: {{n: '{n}'}}}}]}}}}"
        )
    };
    let config = format!("{{topic: '{TOPIC}', delivery.backoff.initial: 50ms{policy}}}");
    let wakes = link_from("keeper", "trellis:messaging/handler", "mail", &config);
    app(
        "topics",
        &[
            component("keeper", "test_account", "limits: {timeout: 20s}", &[uses(), spread(nodes)]),
            component("window", "test_kv", "", &[uses(), spread(&["1"])]),
            http("window", ""),
            provider("store", "embedded"),
            waking_at("mail", "mqtt", &format!("url: '{}'", server.url), &[wakes]),
        ],
    )
}

/// Publishes these messages to the lanes by turns, with a pause after each. Some are refused twice before they are taken.
fn publish(server: &Mosquitto, messages: Range<usize>, pause: Duration) {
    for n in messages {
        publish_one(server, if n % 7 == 0 { "retry-twice" } else { "ok" }, n);
        thread::sleep(pause);
    }
}

fn publish_one(server: &Mosquitto, word: &str, n: usize) {
    let lane = (n % LANES).to_string();
    let sent = server.try_publish(&format!("lane/{lane}"), &[("lane", &lane)], format!("{word} {n}").as_bytes());
    sent.unwrap();
}

/// What the store says, seen through the first node.
fn account(nodes: &[Node], keys: impl Iterator<Item = String>) -> Vec<String> {
    let at = nodes[0].at("topics");
    keys.map(|key| get(at, &format!("/{key}")).map(|found| found.text()).unwrap_or_default()).collect()
}

fn until_done(nodes: &[Node], messages: Range<usize>) {
    eventually("all are handled", || {
        let done = account(nodes, messages.clone().map(|n| format!("done/{n}")));
        done.iter().all(|times| times.parse().is_ok_and(|times: usize| times > 0)).then_some(())
    });
}

/// Messages of a lane that began or ended after a later one had begun.
fn late(nodes: &[Node]) -> Vec<String> {
    account(nodes, (0..LANES).map(|lane| format!("late/{lane}")))
        .into_iter()
        .filter(|times| times.parse::<usize>().is_ok())
        .collect()
}

#[test]
fn the_home_alone_pulls_in_order_and_both_nodes_run() {
    let (nats, server) = (NatsServer::start(false), Mosquitto::start(true));
    let mut nodes = lattice(&nats, 2);
    nodes[1].deploy(&keeper(&server, &["1", "2"], ORDERED));
    assert_eq!(homes(&nodes[1]), [id(&nodes[0])]);
    let explained = nodes[1].trellis(&["explain", "topics"]).ok();
    assert!(explained.contains("what it is to have of MQTT in order or under caps is pulled on node"), "{explained}");
    publish(&server, 0..100, Duration::ZERO);
    until_done(&nodes, 0..100);
    eventually("both nodes had some", || {
        let events = events(&nodes[0], "topics", "keeper");
        (events.len() == 2 && events.iter().all(|count| *count > 10)).then_some(())
    });

    // The node that does not pull dies in the midst of its share, and comes back.
    thread::scope(|scope| {
        scope.spawn(|| publish(&server, 100..300, PACE));
        thread::sleep(50 * PACE);
        let data_dir = nodes.remove(1).kill();
        thread::sleep(50 * PACE);
        nodes.push(node(&nats, &data_dir, 2, &[]));
    });
    until_done(&nodes, 100..300);

    // The one that pulls dies, and has what came meanwhile when it is back.
    let data_dir: DataDir = thread::scope(|scope| {
        scope.spawn(|| publish(&server, 300..400, PACE));
        thread::sleep(50 * PACE);
        nodes.remove(0).kill()
    });
    eventually("that the home is away is said", || {
        let status = nodes[0].status("topics")["links"].to_string();
        status.contains("no MQTT topic with an order or caps is pulled, until it does").then_some(())
    });
    nodes.insert(0, node(&nats, &data_dir, 1, &[]));
    nodes[0].until_ready("topics");
    publish(&server, 400..420, PACE);
    until_done(&nodes, 300..420);

    assert!(late(&nodes).is_empty(), "{:?}", late(&nodes));
    let subscribers = server.subscribers(TOPIC);
    assert_eq!(subscribers.len(), 1, "one session, of the home alone: {subscribers:?}");
    let all = trigger(&nodes[1]);
    assert_eq!((&all["nodes"], &all["waiting"]), (&1.into(), &0.into()), "{all:#}");
}

/// How many of these messages were napped with at one time, at the most: by when each began and ended.
fn most_at_once(nodes: &[Node], messages: Range<usize>) -> usize {
    let naps = account(nodes, messages.map(|n| format!("nap/{n}")));
    let times = |nap: &String| nap.split_once(' ').map(|(began, ended)| [began, ended].map(|at| at.parse().unwrap()));
    let naps: Vec<[u64; 2]> = naps.iter().filter_map(times).collect();
    let at_once = |at: u64| naps.iter().filter(|[began, ended]| (*began..*ended).contains(&at)).count();
    naps.iter().map(|[began, _]| at_once(*began)).max().unwrap_or_default()
}

#[test]
fn a_cap_is_the_lattices_and_is_reached() {
    let (nats, server) = (NatsServer::start(false), Mosquitto::start(true));
    let nodes = lattice(&nats, 3);
    nodes[1].deploy(&keeper(&server, &THREE, &format!(", delivery.max_in_flight: '{CAP}'")));
    (0..100).for_each(|n| publish_one(&server, "nap", n));
    until_done(&nodes, 0..100);
    assert_eq!(most_at_once(&nodes, 0..100), CAP, "at work in the lattice at one time");
    eventually("they ran on several nodes", || {
        let ran = events(&nodes[0], "topics", "keeper");
        (ran.iter().filter(|count| **count > 10).count() > 1).then_some(())
    });
    let subscribers = server.subscribers(TOPIC);
    assert_eq!(subscribers.len(), 1, "one session, of the home alone: {subscribers:?}");
}

#[test]
fn what_nodes_have_stored_is_handled_when_a_cap_comes() {
    let (nats, server) = (NatsServer::start(false), Mosquitto::start(true));
    let nodes = lattice(&nats, 3);
    nodes[1].deploy(&keeper(&server, &THREE, ""));
    nodes[1].trellis(&["pause", "topics/keeper"]).ok();
    publish(&server, 0..60, Duration::ZERO);
    eventually("the nodes have stored their parts", || {
        let all = trigger(&nodes[0]);
        (all["nodes"] == 3 && all["waiting"] == 60).then_some(())
    });
    let shared = format!("$share/topics.keeper/{TOPIC}");
    assert_eq!(server.subscribers(&shared).len(), 3);

    // The home takes all from now on; a rate is a cap, too.
    nodes[1].deploy(&keeper(&server, &THREE, ", delivery.rate_limit: 100/s"));
    publish(&server, 60..80, Duration::ZERO);
    nodes[1].trellis(&["resume", "topics/keeper"]).ok();
    until_done(&nodes, 0..80);
    eventually("nobody has a part of its own", || server.subscribers(&shared).is_empty().then_some(()));
    let subscribers = server.subscribers(TOPIC);
    assert_eq!(subscribers.len(), 1, "one session, of the home alone: {subscribers:?}");
    publish(&server, 80..100, Duration::ZERO);
    until_done(&nodes, 80..100);
}
