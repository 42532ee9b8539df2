//! Topics of which the server gives each message once, with a policy: what has come is on the node's disk before it is handled.

use trellis_mqtt::testing::Mosquitto;
use trellis_provider::Provider as _;
use trellis_provider::testing::contract;
use trellis_provider::testing::lab::{self, Node, in_a_process, until, until_waiting};
use trellis_wire::{Link, OrderBy, Part};

use crate::lab::{Home, Lab, Publisher};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue() {
    contract(&Lab::once("5").await).await;
}

/// A process is dropped in the middle of what it does, as `kill -9` would end it.
#[test]
fn what_was_stored_is_handled_by_the_next_process() {
    let (server, home) = (Mosquitto::start(true), Home::new());
    let link = lab::link("messaging", &[("url", server.url.as_str()), ("topic", "orders"), ("qos", "0")]);
    in_a_process(async {
        let (process, node) = (home.open(), Node::shut(1));
        process.wake(&link, &node).await;
        let publisher = Publisher::start(&server.url, "5").await;
        for body in ["runs", "waits", "waits too"] {
            publisher.publish("orders", body).await;
        }
        until("one is worked on", || node.bodies() == ["runs"]).await;
        until_waiting(&process.queue(&link), 2).await;
    });
    in_a_process(async {
        let (process, node) = (home.open_again().await, Node::new(4));
        process.wake(&link, &node).await;
        until("all are handled", || node.done() == 3).await;
        process.until_settled(&link).await;
        assert_eq!(node.attempts("runs"), [2], "it was worked on when the process died");
        process.mqtt.drain().await;
    });
}

#[tokio::test]
async fn what_came_is_stored_while_a_link_is_applied_anew_and_when_its_node_ends() {
    let (lab, home) = (Lab::once("5").await, Home::new());
    let (process, link) = (home.open(), lab.link(&[("topic", "orders")]));
    process.wake(&link, &Node::new(0)).await;
    process.mqtt.remove(&link.id).await;
    lab.publisher.publish("orders", "between").await;
    until_waiting(&process.queue(&link), 1).await;
    let more = Link { delivery: trellis_wire::Delivery { max_attempts: 5, ..link.delivery.clone() }, ..link.clone() };
    process.wake(&more, &Node::new(0)).await;
    for n in 0..200 {
        lab.publisher.publish("orders", &n.to_string()).await;
    }
    process.mqtt.drain().await;
    drop(process);
    let (next, node) = (home.open_again().await, Node::new(4));
    next.wake(&link, &node).await;
    until("all are handled", || node.done() == 201).await;
    until("the server keeps no session", || lab.server.subscribers("$share/shop.worker/orders").len() == 1).await;
}

/// One node has them all, and the topic to itself.
#[tokio::test]
async fn an_order_is_kept() {
    let (lab, node) = (Lab::once("5").await, Node::new(4));
    let mut link = lab.link(&[("topic", "lane/+")]);
    (link.delivery.order_by, link.part) = (Some(OrderBy::Subject), Part::All);
    lab.process.mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the subscription stands", || lab.process.mqtt.health(&link.id).is_ok()).await;
    for body in ["retry-twice 1", "ok 2", "ok 3"] {
        lab.publisher.publish("lane/a", body).await;
    }
    until("all are handled", || node.done() == 5).await;
    assert_eq!(node.bodies(), ["retry-twice 1", "retry-twice 1", "retry-twice 1", "ok 2", "ok 3"]);
}

#[tokio::test]
async fn a_topic_goes_from_one_service_to_the_other_and_nothing_that_came_is_lost() {
    let (lab, node) = (Lab::start("5").await, Node::new(0));
    let topic = "$share/shop.worker/orders";
    let link = lab.link(&[("topic", "orders")]);
    let mut once = link.clone();
    once.config.set("qos", "0");
    for (n, next) in [&link, &once, &link].into_iter().enumerate() {
        lab.process.wake(next, &node).await;
        until("the one before is over", || lab.server.subscribers(topic).len() == 1).await;
        lab.publisher.publish("orders", &n.to_string()).await;
        until_waiting(&lab.process.queue(&link), n as u64 + 1).await;
    }
}
