//! Messages wake components: each once, no more at a time than there are permits, none lost by us.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use trellis_bus::testing::NatsServer;
use trellis_provider::testing::lab::{Node, until};
use trellis_provider::{LinkError, Provider as _};
use trellis_wire::{Error, Failure, Message, Reply, Settle};

use crate::{link, message, provider, publish, publisher};

#[tokio::test]
async fn of_two_nodes_one_gets_each_message() {
    let server = NatsServer::start(false);
    let (nats, other) = (provider(&server.url), provider(&server.url));
    let (here, there) = (Node::new(4), Node::new(4));
    let orders = link("worker", "messaging", &[("subscriptions", "orders.*")]);
    let id = publisher(&nats).await;
    nats.wake(orders.clone(), here.permits(&orders)).await.unwrap();
    other.wake(orders.clone(), there.permits(&orders)).await.unwrap();
    until("both are connected", || nats.health(&orders.id).is_ok() && other.health(&orders.id).is_ok()).await;
    // `wake` could not wait for a subscription on a connection that was still to come.
    publisher(&other).await;
    tokio::time::sleep(Duration::from_millis(100)).await;

    for n in 0..300 {
        let headers = vec![("n".into(), n.to_string())];
        publish(&nats, &id, Message { headers, ..message("orders.new", &n.to_string()) }).await.unwrap();
    }
    until("all are handled", || here.done() + there.done() >= 300).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (one, two) = (here.bodies(), there.bodies());
    let all: BTreeSet<_> = one.iter().chain(&two).collect();
    assert_eq!((one.len() + two.len(), all.len()), (300, 300), "each once");
    assert!(one.len() > 30 && two.len() > 30, "both take part: {} and {}", one.len(), two.len());
    let woken = here.woken()[0].clone();
    assert_eq!((woken.subject.as_str(), woken.attempt, woken.headers[0].0.as_str()), ("orders.new", 1, "n"));
}

#[tokio::test]
async fn a_permit_comes_before_the_message_and_is_not_held_while_idle() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::shut(3);
    let orders = link("worker", "messaging", &[("subscriptions", "orders, bills|clerks")]);
    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    assert_eq!(node.free(), 3, "an idle subscription holds none");
    for n in 0..10 {
        publish(&nats, &id, message(["orders", "bills"][n % 2], &n.to_string())).await.unwrap();
    }
    until("three run", || node.bodies().len() == 3).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((node.bodies().len(), node.done()), (3, 0), "as many as there are permits");
    node.open();
    until("all ran", || node.done() == 10).await;
    until("all permits are back", || node.free() == 3).await;
}

#[tokio::test]
async fn a_server_that_was_away_is_said_and_found_again() {
    let mut server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::new(1);
    let orders = link("worker", "messaging", &[("subscriptions", "orders")]);
    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    assert_eq!(nats.health(&orders.id), Ok(()));

    server.kill();
    let expected = format!("not connected to {}: Connection refused", server.url);
    until("health says so", || nats.health(&orders.id).is_err_and(|why| why.starts_with(&expected))).await;
    let refused = publish(&nats, &id, message("orders", "lost")).await.unwrap_err().to_string();
    assert!(refused.starts_with(&format!("unavailable: {expected}")), "{refused}");

    server.restart();
    until("it is back", || nats.health(&orders.id).is_ok()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    publish(&nats, &id, message("orders", "kept")).await.unwrap();
    until("the subscription stands again", || node.bodies() == ["kept"]).await;
}

#[tokio::test]
async fn an_ended_link_settles_all_that_came_and_takes_no_more() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::shut(1);
    let orders = link("worker", "messaging", &[("subscriptions", "orders")]);
    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    for n in 0..3 {
        publish(&nats, &id, message("orders", &n.to_string())).await.unwrap();
    }
    until("the first runs", || node.bodies() == ["0"]).await;
    let removing = async {
        nats.remove(&orders.id).await;
        assert_eq!(node.done(), 3, "what had come was handled first");
    };
    let opening = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        publish(&nats, &id, message("orders", "too late")).await.unwrap();
        assert_eq!(node.done(), 0);
        node.open();
    };
    tokio::join!(removing, opening);
    assert_eq!(node.bodies(), ["0", "1", "2"]);
    assert!(nats.health(&orders.id).is_err());

    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    publish(&nats, &id, message("orders", "again")).await.unwrap();
    until("a link that was removed can be applied again", || node.done() == 4).await;
    nats.drain().await;
    publish(&nats, &id, message("orders", "after the drain")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.done(), 4);
}

#[tokio::test]
async fn what_waits_is_bounded_in_bytes() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::shut(1);
    let orders = link("worker", "messaging", &[("subscriptions", "orders")]);
    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    let large = "x".repeat(1000 * 1024);
    for _ in 0..100 {
        publish(&nats, &id, message("orders", &large)).await.unwrap();
    }
    let removing = async { nats.remove(&orders.id).await };
    let opening = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        node.open();
    };
    tokio::join!(removing, opening);
    // 64 MiB, and the one that runs.
    assert!((60..=67).contains(&node.done()), "{} of 100 were kept", node.done());
}

#[tokio::test]
async fn a_shortage_of_ours_runs_the_message_again_and_a_refusal_does_not() {
    static BUSY: AtomicUsize = AtomicUsize::new(2);
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::saying(1, |message| {
        let short = BUSY.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        match message.body.as_ref() {
            b"refused" => Ok(Reply::Settle(Settle::Retry { after: None, reason: "not now".into() })),
            _ if short => Err(Failure::Error(Error::Busy("no sandbox is free".into()))),
            _ => Ok(Reply::Settle(Settle::Ack)),
        }
    });
    let orders = link("worker", "messaging", &[("subscriptions", "orders")]);
    nats.wake(orders.clone(), node.permits(&orders)).await.unwrap();
    publish(&nats, &id, message("orders", "busy")).await.unwrap();
    until("it ran three times", || node.bodies() == ["busy"; 3]).await;
    publish(&nats, &id, message("orders", "refused")).await.unwrap();
    publish(&nats, &id, message("orders", "next")).await.unwrap();
    until("the next ran", || node.bodies().last().is_some_and(|body| body == "next")).await;
    assert_eq!(node.bodies()[3..], ["refused", "next"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_link_names_the_key() {
    let nats = provider("nats://127.0.0.1:1");
    let node = Node::new(1);
    let wrong = link("worker", "messaging", &[("subscriptions", "trellis.v1.home.>")]);
    let refused = nats.wake(wrong.clone(), node.permits(&wrong)).await.unwrap_err();
    assert!(matches!(&refused, LinkError::Config { key, .. } if key == "subscriptions"), "{refused}");
    let blobs = link("worker", "blobstore", &[]);
    let refused = nats.grant(blobs).await.unwrap_err();
    assert_eq!(refused.to_string(), "trellis://nats can grant `messaging` and `keyvalue`, not `wasmcloud:blobstore`");
    let down = link("worker", "messaging", &[("subscriptions", "orders")]);
    nats.wake(down.clone(), node.permits(&down)).await.unwrap();
    assert!(nats.health(&down.id).unwrap_err().starts_with("not connected to nats://127.0.0.1:1: "));
    nats.remove(&down.id).await;
}
