//! Ordered links: what is replayed to a parked key, and what the next holder waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context, stream};
use trellis_bus::testing::NatsServer;
use trellis_provider::delivery::{BACK_MAX, CLAIM, Fate};
use trellis_provider::testing::lab::{Node, held, text, until};
use trellis_provider::{LeaseHolder, Provider as _, Token};
use trellis_wire::{Delivery, Link, OrderBy, Reply, Settle};

use crate::{link, provider};

/// A link to the stream `ORDERS` that keeps the order of each subject.
fn ordered() -> Link {
    let delivery = Delivery { order_by: Some(OrderBy::Subject), ..Delivery::default() };
    Link { delivery, ..link("worker", "messaging", &[("stream", "ORDERS")]) }
}

async fn filled(server: &NatsServer, count: usize, message: impl Fn(usize) -> (String, String)) {
    let context: Context = jetstream::new(async_nats::connect(&server.url).await.unwrap());
    let config = stream::Config { name: "ORDERS".into(), subjects: vec!["orders.>".into()], ..Default::default() };
    context.create_stream(config).await.unwrap();
    // One after the other, and all answers at the end.
    let mut sent = Vec::new();
    for i in 0..count {
        let (subject, body) = message(i);
        sent.push(context.publish(subject, body.into()).await.unwrap());
    }
    for stored in sent {
        stored.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_parked_before_a_long_backlog_is_opened_by_its_replay() {
    static IS_FIXED: AtomicBool = AtomicBool::new(false);
    let server = NatsServer::start(true);
    let count = BACK_MAX + 100;
    filled(&server, count, |i| ("orders.7".into(), i.to_string())).await;
    let node = Node::saying(4, |message| match text(message).as_str() {
        "0" if !IS_FIXED.load(Ordering::SeqCst) => Ok(Reply::Settle(Settle::DeadLetter("as asked".into()))),
        _ => Ok(Reply::Settle(Settle::Ack)),
    });
    let (nats, link, (_holder, lease)) = (provider(&server.url), ordered(), held());
    nats.wake(link.clone(), node.permits(&link).leased(lease)).await.unwrap();
    let is_full = || nats.health(&link.id).is_err_and(|why| why.contains("nothing more can be held"));
    until("nothing more can be held", is_full).await;
    assert_eq!(node.bodies(), ["0"]);
    IS_FIXED.store(true, Ordering::SeqCst);
    let trigger = nats.trigger(&link.id).unwrap();
    let letter = trigger.letters(None, 10).await.unwrap().remove(0);
    assert!(trigger.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    until("the replay is handled", || node.done() > 1).await;
    let replayed = node.woken()[1].clone();
    assert_eq!((text(&replayed).as_str(), replayed.subject.as_str(), replayed.headers.len()), ("0", "orders.7", 0));
    until("so is what waited", || node.done() > 200).await;
    let expected: Vec<_> = [0].into_iter().chain(0..200).map(|i| i.to_string()).collect();
    assert_eq!(node.bodies()[..expected.len()], expected, "in its order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_holder_does_not_wait_for_one_that_left_in_good_order() {
    const MESSAGES: usize = 120;
    let server = NatsServer::start(true);
    filled(&server, MESSAGES, |i| (format!("orders.{}", i % 3), i.to_string())).await;
    let (one, other, link) = (provider(&server.url), provider(&server.url), ordered());
    let (before, after) = (Node::shut(8), Node::new(8));
    let ((_first, lease), (second, awaited)) = (held(), LeaseHolder::new());
    one.wake(link.clone(), before.permits(&link).leased(lease)).await.unwrap();
    other.wake(link.clone(), after.permits(&link).leased(awaited)).await.unwrap();
    until("one of each key is begun", || before.bodies().len() == 3).await;
    before.open();
    one.remove(&link.id).await;
    let (done, began) = (before.done(), Instant::now());
    second.set(Some(Token(2)));
    until("the next one begins", || after.done() > 0).await;
    let waited = began.elapsed();
    assert!(waited < CLAIM, "it waited for {waited:?}");
    until("all are handled", || done + after.done() == MESSAGES).await;
    for key in 0..3 {
        let all = before.bodies().into_iter().chain(after.bodies());
        let of_key: Vec<usize> = all.map(|body| body.parse().unwrap()).filter(|i| i % 3 == key).collect();
        assert_eq!(of_key, (0..MESSAGES).filter(|i| i % 3 == key).collect::<Vec<_>>());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(done + after.done(), MESSAGES, "nothing comes twice");
}
