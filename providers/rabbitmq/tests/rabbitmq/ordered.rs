//! Links that keep an order, and what could break it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use trellis_provider::delivery::{Fate, Queue as _};
use trellis_provider::testing::lab::{Node, by_content, held, text, until};
use trellis_provider::testing::{Broker, contract};
use trellis_provider::{LeaseHolder, Provider as _, Token};
use trellis_rabbitmq::{HELD_MAX, Ordered, Rabbitmq};
use trellis_wire::{Link, Message, OrderBy, Outcome, Reply, Settle};

use crate::Lab;

/// One node pulls an ordered queue: whoever looks at it looks at what that one has.
struct InOrder {
    lab: Lab,
    pulled: Mutex<HashMap<String, Ordered>>,
}

#[async_trait]
impl Broker for InOrder {
    type Queue = Ordered;

    async fn queue(&self, name: &str) -> Ordered {
        let pulled = || self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = pulled().get(name) {
            return queue.clone();
        }
        let queue = self.lab.rabbit.ordered(&in_lanes(&self.lab, name)).unwrap();
        queue.standing().await.unwrap();
        pulled().insert(name.into(), queue.clone());
        queue
    }

    async fn publish(&self, name: &str, message: Message) {
        self.lab.publish_to(name, message).await;
    }

    fn tells_ages(&self) -> bool {
        false
    }

    /// They come by a queue of their own, and all that waits is held at once.
    fn replays_first(&self) -> bool {
        false
    }
}

/// A link to this queue that keeps the order of each lane.
fn in_lanes(lab: &Lab, queue: &str) -> Link {
    let mut link = lab.link(&[("queue", queue), ("create", "true")]);
    link.delivery.order_by = Some(OrderBy::Header("lane".into()));
    link
}

fn in_lane(lane: &str, body: &str) -> Message {
    let headers = vec![("lane".into(), lane.into())];
    Message { body: body.to_owned().into(), id: format!("{lane} {body}"), headers, ..Message::default() }
}

/// What a node was woken with, by lane.
fn lanes(node: &Node) -> BTreeMap<String, Vec<String>> {
    let mut lanes = BTreeMap::<_, Vec<_>>::new();
    for message in node.woken().iter() {
        let lane = message.headers.iter().find(|(name, _)| name == "lane").map(|(_, lane)| lane.clone());
        lanes.entry(lane.unwrap_or_default()).or_default().push(text(message));
    }
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_queue_is_a_queue() {
    contract(&InOrder { lab: Lab::start().await, pulled: Mutex::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_pulls_and_the_next_goes_on_where_it_stood() {
    let lab = Lab::start().await;
    the_next_holder_waits_for_the_one_before(&lab).await;
    another_consumer_is_named(&lab, "quorum").await;
    another_consumer_is_named(&lab, "classic").await;
    a_parked_lane_waits_for_its_replay(&lab).await;
}

async fn the_next_holder_waits_for_the_one_before(lab: &Lab) {
    const MESSAGES: usize = 60;
    let (next, link) = (Rabbitmq::new(lab.ledgers.clone()), in_lanes(lab, "handed"));
    let (before, after) = (Node::shut(8), Node::new(8));
    let ((first, lease), (second, awaited)) = (held(), LeaseHolder::new());
    lab.rabbit.wake(link.clone(), before.permits(&link).leased(lease)).await.unwrap();
    next.wake(link.clone(), after.permits(&link).leased(awaited)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    for n in 0..MESSAGES {
        lab.publish_to("handed", in_lane(&(n % 3).to_string(), &n.to_string())).await;
    }
    until("one of each lane is begun", || before.bodies().len() == 3).await;
    second.set(Some(Token(2)));
    until("the next one waits", || next.health(&link.id).is_err_and(|why| why.contains("another consumer"))).await;
    assert!(after.bodies().is_empty(), "beside the one before: {:?}", after.bodies());
    first.set(None);
    until("all are handled", || after.done() == MESSAGES).await;
    for (lane, bodies) in lanes(&after) {
        let of_lane = (0..MESSAGES).map(|n| (n % 3, n)).filter(|(of, _)| of.to_string() == lane);
        assert_eq!(bodies, of_lane.map(|(_, n)| n.to_string()).collect::<Vec<_>>(), "lane {lane}, from its first on");
    }
    assert_eq!(lanes(&before).values().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1], "no more began there");
    until("all is well", || next.health(&link.id).is_ok()).await;
    next.remove(&link.id).await;
    lab.rabbit.remove(&link.id).await;
}

async fn another_consumer_is_named(lab: &Lab, kind: &str) {
    let channel = lab.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString(kind.into()));
    channel.queue_declare(kind.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(kind.into(), "".into(), options, none).await.unwrap();
    let (node, link, (_holder, lease)) = (Node::new(1), in_lanes(lab, kind), held());
    lab.rabbit.wake(link.clone(), node.permits(&link).leased(lease)).await.unwrap();
    let says = |what: &str| lab.rabbit.health(&link.id).is_err_and(|why| why.contains(what));
    until("it is named", || says(&format!("queue `{kind}` has another consumer"))).await;
    channel.close(200, "done".into()).await.unwrap();
    drop(consumer);
    until("all is well", || lab.rabbit.health(&link.id).is_ok()).await;
    lab.publish_to(kind, in_lane("a", "1")).await;
    until("it is handled", || node.bodies() == ["1"]).await;
    lab.rabbit.remove(&link.id).await;
}

/// `dead-once` is refused for good the first time that it comes.
fn once(message: &Message) -> Outcome {
    static CAME: AtomicBool = AtomicBool::new(false);
    match text(message).as_str() {
        "dead-once" if !CAME.swap(true, Ordering::SeqCst) => Ok(Reply::Settle(Settle::DeadLetter("as asked".into()))),
        _ => by_content(message),
    }
}

async fn a_parked_lane_waits_for_its_replay(lab: &Lab) {
    let (node, link, (_holder, lease)) = (Node::saying(4, once), in_lanes(lab, "parked"), held());
    lab.rabbit.wake(link.clone(), node.permits(&link).leased(lease)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    for (lane, body) in [("a", "0"), ("a", "dead-once"), ("a", "2"), ("b", "1"), ("a", "3"), ("b", "retry-twice")] {
        lab.publish_to("parked", in_lane(lane, body)).await;
    }
    // More than is held at a time: its replay is found all the same.
    for n in 0..2 * usize::from(HELD_MAX) {
        lab.publish_to("parked", in_lane("a", &format!("ok {n}"))).await;
    }
    let letter = lab.until_letters(&link, 1).await.remove(0);
    until("the other lane goes on", || node.attempts("retry-twice") == [1, 2, 3]).await;
    until("it is said", || lab.rabbit.health(&link.id).is_err_and(|why| why.contains("1 keys are parked"))).await;
    assert_eq!(lanes(&node)["a"], ["0", "dead-once"]);
    let queue = lab.rabbit.ordered(&link).unwrap();
    assert!(queue.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    until("the lane goes on", || lanes(&node)["a"].len() > 100).await;
    let begins = ["0", "dead-once", "dead-once", "2", "3"].map(str::to_owned).into_iter();
    let bodies: Vec<_> = begins.chain((0..).map(|n| format!("ok {n}"))).take(100).collect();
    assert_eq!(lanes(&node)["a"][..100], bodies);
    lab.rabbit.remove(&link.id).await;
}

/// The server closes a channel on which a message is held for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_takes_back_is_gone_on_with() {
    let lab = Lab::start_with("-rabbit consumer_timeout 2000 -rabbit channel_tick_interval 500").await;
    let (node, mut link, (_holder, lease)) = (Node::new(4), in_lanes(&lab, "held"), held());
    link.delivery.backoff.initial = Duration::from_secs(5);
    link.delivery.backoff.max = Duration::from_secs(5);
    lab.rabbit.wake(link.clone(), node.permits(&link).leased(lease)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    for (lane, body) in [("a", "retry"), ("a", "2"), ("b", "1"), ("a", "3")] {
        lab.publish_to("held", in_lane(lane, body)).await;
    }
    until("all are tried", || node.attempts("retry") == [1, 2, 3, 4]).await;
    assert_eq!(lanes(&node)["b"], ["1"]);
    let letter = lab.until_letters(&link, 1).await.remove(0);
    assert_eq!((letter.attempts, letter.kills), (4, 0), "{letter:?}");
    let queue = lab.rabbit.ordered(&link).unwrap();
    assert!(queue.decide(&letter.id, Fate::Drop).await.unwrap().is_some());
    lab.rabbit.remove(&link.id).await;
}

/// The server is killed twice while messages are handled, tried again and given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_is_kept_across_deaths_of_the_server() {
    const MESSAGES: usize = 600;
    const LANES: usize = 6;
    const WORDS: [&str; 7] = ["ok", "ok", "retry-twice", "ok", "dead", "ok", "drop"];
    let mut lab = Lab::start().await;
    let (node, mut link, (_holder, lease)) = (Node::new(8), in_lanes(&lab, "orders"), held());
    link.delivery.on_dead_letter = trellis_wire::OnDeadLetter::Continue;
    lab.rabbit.wake(link.clone(), node.permits(&link).leased(lease)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    for n in 0..MESSAGES {
        let body = format!("{} {n}", WORDS[n % WORDS.len()]);
        lab.publish_to("orders", in_lane(&(n % LANES).to_string(), &body)).await;
        if n == 200 || n == 400 {
            lab.server.kill();
            until("that it is away is said", || lab.rabbit.health(&link.id).is_err()).await;
            tokio::task::block_in_place(|| lab.server.restart());
        }
    }
    let dead = (0..MESSAGES).filter(|n| WORDS[n % WORDS.len()] == "dead").count();
    lab.until_letters(&link, dead).await;
    until("every message has come", || node.bodies().into_iter().collect::<HashSet<_>>().len() == MESSAGES).await;
    let number = |body: &String| body.split_once(' ').unwrap().1.parse::<usize>().unwrap();
    for (lane, bodies) in lanes(&node) {
        let order: Vec<_> = bodies.iter().map(number).collect();
        assert!(order.is_sorted(), "lane {lane}: {order:?}");
    }
    lab.rabbit.remove(&link.id).await;
}
