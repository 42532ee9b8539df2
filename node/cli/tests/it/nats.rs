//! A lattice on a real nats-server: the shop of `examples/orders/app-nats.yaml`, and what happens when NATS goes.

use std::net::SocketAddr;

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{eventually, free_address, orders_at};
use crate::client;
use crate::node::{DataDir, Node};
use crate::trellis::command;

const ORDER: &[u8] = br#"{"customer":"Ada","lines":[{"article":"tea","quantity":2,"price_cents":450}]}"#;

fn start(nats: &NatsServer) -> Node {
    Node::start(&["--nats", &nats.url, "--bootstrap"])
}

/// Places an order and waits for its invoice. Its number.
#[track_caller]
fn order(address: SocketAddr) -> u64 {
    let placed = client::send(address, "POST", "/orders", &[], ORDER).unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text());
    let placed: Value = serde_json::from_slice(&placed.body).unwrap();
    let number = placed["number"].as_u64().unwrap();
    let invoice = eventually("the order has an invoice", || {
        let shown = client::get(address, &format!("/orders/{number}")).unwrap().ok();
        let invoice = serde_json::from_str::<Value>(&shown).unwrap()["invoice"].clone();
        (!invoice.is_null()).then_some(invoice)
    });
    assert_eq!(invoice["total_cents"], 900);
    number
}

/// What `/readyz` says: its status and text.
fn readyz(node: &Node) -> (u16, String) {
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let ready = client::get(admin, "/readyz").unwrap();
    (ready.status, ready.text())
}

#[track_caller]
fn until_connected(node: &Node) {
    eventually("the node is ready", || (readyz(node).0 == 200).then_some(()));
    node.until_ready("orders");
}

/// A value of the app's bucket, read by a client that has nothing to do with Trellis.
async fn stored(nats: &NatsServer, key: &str) -> Option<Vec<u8>> {
    let client = async_nats::connect(&nats.url).await.unwrap();
    let bucket = async_nats::jetstream::new(client).get_key_value("orders").await.unwrap();
    bucket.get(key).await.unwrap().map(|value| value.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_becomes_a_message_an_invoice_and_keys_of_a_bucket() {
    let nats = NatsServer::start(true);
    let node = start(&nats);
    let address = free_address();
    node.deploy(&orders_at("app-nats.yaml", address));

    let other = async_nats::connect(&nats.url).await.unwrap();
    let mut heard = other.subscribe("orders.placed").await.unwrap();
    other.flush().await.unwrap();
    let number = order(address);
    let message = tokio::time::timeout(std::time::Duration::from_secs(60), futures::StreamExt::next(&mut heard));
    let message: Value = serde_json::from_slice(&message.await.unwrap().unwrap().payload).unwrap();
    assert_eq!((message["number"].as_u64(), message["customer"].as_str()), (Some(number), Some("Ada")));
    let invoice: Value = serde_json::from_slice(&stored(&nats, &format!("invoice/{number}")).await.unwrap()).unwrap();
    assert_eq!(invoice["total_cents"], 900);
    assert!(stored(&nats, &format!("order/{number}")).await.is_some());

    let by_hand = r#"{"number":1001,"lines":[{"quantity":1,"price_cents":5}]}"#;
    assert!(node.trellis(&["publish", "orders.placed", by_hand]).ok().contains("via nats"));
    let by_other = r#"{"number":1002,"lines":[{"quantity":1,"price_cents":7}]}"#;
    other.publish("orders.placed", by_other.into()).await.unwrap();
    other.flush().await.unwrap();
    for number in [1001, 1002] {
        let reported = || node.trellis(&["invoke", "orders/report", "--top", "9"]).ok();
        eventually("the invoice is reported", || reported().contains(&format!("order {number}: ")).then_some(()));
    }
}

#[test]
fn a_node_starts_without_nats_and_everything_comes_by_itself() {
    let mut nats = NatsServer::start(true);
    nats.kill();
    let node = start(&nats);
    let (status, told) = readyz(&node);
    assert_eq!(status, 503);
    assert!(told.contains(&format!("not connected to {}", nats.url)), "{told}");
    let address = free_address();
    let stderr = node.deploy_with(&orders_at("app-nats.yaml", address), &["--wait", "1s"]).failed(1);
    assert!(stderr.contains(&format!("not connected to {}", nats.url)), "{stderr}");

    nats.restart();
    until_connected(&node);
    order(address);
}

#[test]
fn a_node_outlives_the_loss_of_nats() {
    let mut nats = NatsServer::start(true);
    let node = start(&nats);
    let address = free_address();
    node.deploy(&orders_at("app-nats.yaml", address));
    let first = order(address);

    nats.kill();
    eventually("the node says that NATS is gone", || (readyz(&node).0 == 503).then_some(()));
    let text = node.trellis(&["status", "orders"]).ok();
    assert!(text.contains(&format!("not connected to {}", nats.url)), "{text}");
    let refused = client::send(address, "POST", "/orders", &[], ORDER).unwrap();
    assert!(refused.status >= 500, "{refused:?}");
    node.trellis(&["config", "put", "made-meanwhile", "a=b"]).ok();

    nats.restart();
    until_connected(&node);
    assert!(order(address) > first);
    assert_eq!(client::get(address, &format!("/orders/{first}")).unwrap().status, 200);
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn a_lattice_is_started_once() {
    let nats = NatsServer::start(true);
    let node = start(&nats);
    eventually("the lattice answers", || (readyz(&node).0 == 200).then_some(()));
    let second = |args: &[&str]| {
        let data_dir = DataDir::new();
        let mut command = command();
        command.args(["up", "--admin", "127.0.0.1:0", "--nats", &nats.url, "--data-dir"]).arg(data_dir.path());
        let output = command.args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let stderr = second(&["--bootstrap"]);
    assert!(stderr.contains("error: a lattice named default answers already"), "{stderr}");
    assert!(stderr.contains("choose another --lattice"), "{stderr}");
    let other = Node::start(&["--nats", &nats.url, "--bootstrap", "--lattice", "other"]);
    eventually("the other lattice answers", || (readyz(&other).0 == 200).then_some(()));

    node.trellis(&["config", "put", "kept", "a=b"]).ok();
    let data_dir = node.kill();
    let node = Node::start_in(&data_dir, &["--nats", &nats.url, "--bootstrap"]);
    assert_eq!(node.trellis(&["config", "get", "kept"]).ok(), "a=b\n", "--bootstrap may stay");
}
