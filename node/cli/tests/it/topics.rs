//! Topics of MQTT whose order is kept: the home alone pulls them, and the messages run wherever there are permits.

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

/// What keeps account of each message, on both nodes, and a window into its store.
fn keeper(server: &Mosquitto) -> String {
    let uses = || link("store", "wasi:keyvalue/store, atomics, batch");
    // So few that the home needs the other node's.
    let spread = |n: &str| {
        format!(
            "{{type: spreadscaler, properties: {{instances: 2, spread: [{{name: there, requirements: {{n: '{n}'}}}}]}}}}"
        )
    };
    let order = format!("{{topic: '{TOPIC}', delivery.order_by: subject, delivery.backoff.initial: 50ms}}");
    let wakes = link_from("keeper", "trellis:messaging/handler", "mail", &order);
    app(
        "topics",
        &[
            component("keeper", "test_account", "limits: {timeout: 20s}", &[uses(), spread("1|2")]),
            component("window", "test_kv", "", &[uses(), spread("1")]),
            http("window", ""),
            provider("store", "embedded"),
            waking_at("mail", "mqtt", &format!("url: '{}'", server.url), &[wakes]),
        ],
    )
}

/// Publishes these messages to the lanes by turns, with a pause after each. Some are refused twice before they are taken.
fn publish(server: &Mosquitto, messages: Range<usize>, pause: Duration) {
    for n in messages {
        let (lane, word) = ((n % LANES).to_string(), if n % 7 == 0 { "retry-twice" } else { "ok" });
        let sent = server.try_publish(&format!("lane/{lane}"), &[("lane", &lane)], format!("{word} {n}").as_bytes());
        sent.unwrap();
        thread::sleep(pause);
    }
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
    nodes[1].deploy(&keeper(&server));
    assert_eq!(homes(&nodes[1]), [id(&nodes[0])]);
    let explained = nodes[1].trellis(&["explain", "topics"]).ok();
    assert!(explained.contains("what it is to have of MQTT in order is pulled on node"), "{explained}");
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
        status.contains("no MQTT topic is pulled in order, until it does").then_some(())
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
