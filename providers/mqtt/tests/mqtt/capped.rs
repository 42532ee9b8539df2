//! Topics with caps, which one node pulls for the lattice, and what became of those that others pulled before.

use std::collections::BTreeSet;
use std::time::Duration;

use trellis_mqtt::testing::Mosquitto;
use trellis_provider::Provider as _;
use trellis_provider::delivery::Queue as _;
use trellis_provider::testing::contract;
use trellis_provider::testing::lab::{self, Node, PATIENCE, until};
use trellis_wire::{Link, Part};

use crate::kept::PROTOCOLS;
use crate::lab::{Home, Lab, Process, Publisher};

const CAP: u32 = 2;
const TOPIC: &str = "orders";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_5() {
    contract(&Lab::capped("5").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_3_1_1() {
    contract(&Lab::capped("3.1.1").await).await;
}

/// A capped link as one of the nodes applies it.
fn capped(server: &Mosquitto, protocol: &str, part: Part) -> Link {
    let mut link = lab::link("messaging", &[("url", &server.url), ("protocol", protocol), ("topic", TOPIC)]);
    link.delivery.max_in_flight = Some(CAP);
    Link { part, ..link }
}

async fn publish(publisher: &Publisher, bodies: &[String]) {
    for body in bodies {
        publisher.publish(TOPIC, body).await;
    }
}

fn bodies(word: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{word} {n}")).collect()
}

async fn until_stored(processes: [&Process; 2], link: &Link, count: u64) -> [u64; 2] {
    let began = std::time::Instant::now();
    loop {
        let [one, other] = processes.map(|process| process.queue(link));
        let waiting = [one.standing().await.unwrap().waiting, other.standing().await.unwrap().waiting];
        if waiting.iter().sum::<u64>() >= count {
            return waiting;
        }
        assert!(began.elapsed() < PATIENCE, "{waiting:?} of {count} are stored");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Two nodes have stored their parts, and one of them is away, which gets more of it from the server, when the other one
/// becomes who pulls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_have_stored_is_handled_when_the_home_pulls() {
    for protocol in PROTOCOLS {
        let (server, disks) = (Mosquitto::start(true), [Home::new(), Home::new()]);
        let publisher = Publisher::start(&server.url, protocol).await;
        let of = |part| capped(&server, protocol, part);
        let [home, other] = disks.each_ref().map(Home::open);
        for process in [&home, &other] {
            process.wake(&of(Part::Own), &Node::new(0)).await;
        }
        let shared = format!("$share/shop.worker/{TOPIC}");
        assert_eq!(server.subscribers(&shared).len(), 2);
        let stored = bodies("stored", 40);
        publish(&publisher, &stored).await;
        let waiting = until_stored([&home, &other], &of(Part::Own), 40).await;
        assert!(waiting.iter().all(|count| *count > 0), "each has its part: {waiting:?}");
        other.mqtt.drain().await;
        drop(other);
        let away = bodies("away", 40);
        publish(&publisher, &away).await;

        // What is published while they change may come to both.
        let (at_home, elsewhere) = (Node::new(8), Node::new(8));
        home.wake(&of(Part::All), &at_home).await;
        let other = disks[1].open_again().await;
        other.wake(&of(Part::Stored), &elsewhere).await;
        let came = || [at_home.bodies(), elsewhere.bodies()].concat().into_iter().collect::<BTreeSet<_>>();
        let moving = bodies("moving", 20);
        publish(&publisher, &moving).await;
        let all: BTreeSet<_> = [stored, away, moving].concat().into_iter().collect();
        until("all are handled", || came() == all).await;
        let of_others = elsewhere.bodies();
        assert!(of_others.iter().any(|body| body.starts_with("stored")), "{of_others:?}");
        assert!(of_others.iter().any(|body| body.starts_with("away")), "{of_others:?}");

        // The sessions of both end, and do not begin again.
        until("nobody has a part of its own", || server.subscribers(&shared).is_empty()).await;
        other.mqtt.drain().await;
        drop(other);
        let (again, later) = (disks[1].open_again().await, Node::new(8));
        again.wake(&of(Part::Stored), &later).await;
        publish(&publisher, &bodies("moved", 20)).await;
        let moved = || at_home.bodies().iter().filter(|body| body.starts_with("moved")).count();
        until("who pulls has all", || moved() == 20).await;
        assert_eq!(later.bodies(), Vec::<String>::new(), "over {protocol}");
        again.mqtt.drain().await;
        home.mqtt.drain().await;
    }
}

#[tokio::test]
async fn a_node_that_stored_nothing_does_nothing_where_another_one_pulls() {
    let (server, disk, node) = (Mosquitto::start(true), Home::new(), Node::new(1));
    let (process, link) = (disk.open(), capped(&server, "5", Part::Stored));
    process.mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
    assert_eq!(process.mqtt.health(&link.id), Ok(()));
    assert!(process.mqtt.trigger(&link.id).is_none());
    process.mqtt.drain().await;
    assert!(server.subscribers(&format!("$share/shop.worker/{TOPIC}")).is_empty());
}

#[tokio::test]
async fn no_more_are_at_work_than_the_cap() {
    let (lab, node) = (Lab::capped("5").await, Node::shut(8));
    let link = lab.link(&[("topic", TOPIC)]);
    lab.process.wake(&link, &node).await;
    for body in bodies("ok", 20) {
        lab.publisher.publish(TOPIC, &body).await;
    }
    until("as many are at work as may be", || node.woken().len() == CAP as usize).await;
    let standing = lab.process.queue(&link).standing().await.unwrap();
    assert_eq!((node.woken().len(), standing.claimed), (CAP as usize, CAP.into()), "{standing:?}");
    node.open();
    until("all are handled", || node.done() == 20).await;
}
