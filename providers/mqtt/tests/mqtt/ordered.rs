//! Topics whose order is kept, and what could break it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use trellis_mqtt::testing::Mosquitto;
use trellis_provider::Provider as _;
use trellis_provider::testing::contract;
use trellis_provider::testing::lab::{self, Node, PATIENCE, text, until};
use trellis_wire::{Link, OrderBy, Part};

use crate::kept::PROTOCOLS;
use crate::lab::{Home, Lab, Publisher};

/// Fewer than a server has out before the first of them is acknowledged.
const OUT: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_5() {
    contract(&Lab::in_order("5").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_3_1_1() {
    contract(&Lab::in_order("3.1.1").await).await;
}

/// Stands between nodes and their server.
struct Line {
    url: String,
    /// The server hears nothing more.
    is_deaf: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(server: &Mosquitto) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("mqtt://{}", listener.local_addr().unwrap());
        let line = Self { url, is_deaf: Arc::default(), open: Arc::default() };
        let (port, is_deaf, open) = (server.port, line.is_deaf.clone(), line.open.clone());
        thread::spawn(move || {
            for node in listener.incoming().map(Result::unwrap) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let again = |stream: &TcpStream| stream.try_clone().unwrap();
                open.lock().unwrap().extend([again(&node), again(&server)]);
                let (mut from, mut to, is_deaf) = (again(&node), again(&server), is_deaf.clone());
                thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut bytes) {
                        if !is_deaf.load(Ordering::SeqCst) && to.write_all(&bytes[..read]).is_err() {
                            return;
                        }
                    }
                });
                let (mut from, mut to) = (server, node);
                thread::spawn(move || io::copy(&mut from, &mut to));
            }
        });
        line
    }

    /// From now on the server hears nothing of those who are connected.
    fn deafen(&self) {
        self.is_deaf.store(true, Ordering::SeqCst);
    }

    /// Breaks off the connections; the server hears those that come.
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // Its other side may have closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.is_deaf.store(false, Ordering::SeqCst);
    }
}

fn numbers(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|n| n.to_string()).collect()
}

/// Its acknowledgements never arrive, and the server gives all of it again.
#[tokio::test]
async fn what_is_stored_is_not_handled_again_when_a_connection_breaks() {
    for protocol in PROTOCOLS {
        let (lab, node) = (Lab::in_order(protocol).await, Node::new(4));
        let line = Line::to(&lab.server);
        let link = lab.link(&[("topic", "orders"), ("url", &line.url)]);
        lab.process.wake(&link, &node).await;
        for round in 0..3 {
            line.deafen();
            for body in numbers(round * OUT, OUT) {
                lab.publisher.publish("orders", &body).await;
            }
            until("all are handled", || node.done() >= (round + 1) * OUT).await;
            line.cut();
            until("that it is away is said", || lab.process.mqtt.health(&link.id).is_err()).await;
            until("all is well", || lab.process.mqtt.health(&link.id).is_ok()).await;
        }
        lab.publisher.publish("orders", &(3 * OUT).to_string()).await;
        until("the next is handled", || node.done() > 3 * OUT).await;
        assert_eq!(node.bodies(), numbers(0, 3 * OUT + 1), "each once and in order over {protocol}");
    }
}

/// A process is dropped after it stored messages, and before the server knows of it.
#[test]
fn what_is_stored_is_not_handled_again_when_a_process_dies() {
    for protocol in PROTOCOLS {
        let (server, home) = (Mosquitto::start(true), Home::new());
        let line = Line::to(&server);
        let link = in_order(&[("url", &line.url), ("topic", "orders"), ("protocol", protocol)]);
        let mut handled = Vec::new();
        for round in 0..3 {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let (process, node) = (home.open(), Node::new(4));
                process.wake(&link, &node).await;
                let publisher = Publisher::start(&server.url, protocol).await;
                line.deafen();
                for body in numbers(round * OUT, OUT) {
                    publisher.publish("orders", &body).await;
                }
                until("all are handled", || node.done() >= OUT).await;
                handled.extend(node.bodies());
            });
            // Its file must be closed before the next one opens it.
            runtime.shutdown_timeout(PATIENCE);
            line.cut();
        }
        assert_eq!(handled, numbers(0, 3 * OUT), "each once and in order over {protocol}");
    }
}

fn in_order(config: &[(&str, &str)]) -> Link {
    let mut link = lab::link("messaging", config);
    link.delivery.order_by = Some(OrderBy::Subject);
    link.part = Part::All;
    link
}

/// Another node is the home: the server's session is the lattice's.
#[tokio::test]
async fn another_node_goes_on_with_what_came_while_there_was_none() {
    for protocol in PROTOCOLS {
        let (lab, before, after) = (Lab::in_order(protocol).await, Node::new(1), Node::new(1));
        let (home, link) = (Home::new(), lab.link(&[("topic", "orders/#")]));
        lab.server.leave("orders/left", b"left before anybody came");
        lab.process.wake(&link, &before).await;
        lab.publisher.publish("orders/eu", "1").await;
        until("it is handled", || before.bodies() == ["1"]).await;
        lab.process.mqtt.drain().await;
        for body in ["2", "3"] {
            lab.publisher.publish("orders/eu", body).await;
        }
        let next = home.open();
        next.wake(&link, &after).await;
        lab.publisher.publish("orders/eu", "4").await;
        until("all are handled", || after.done() == 3).await;
        assert_eq!(after.bodies(), ["2", "3", "4"]);
        assert_eq!(before.bodies(), ["1"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_each_topic_is_kept_over_deaths_of_the_server_over_mqtt_5() {
    deaths("5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_each_topic_is_kept_over_deaths_of_the_server_over_mqtt_3_1_1() {
    deaths("3.1.1").await;
}

/// 400 messages on four topics, some of which are refused twice; the server is killed in the midst of them, and has stored what
/// it had not just taken. What waits there until others are acknowledged it could give again as new: so few are out.
async fn deaths(protocol: &'static str) {
    const MESSAGES: usize = 400;
    const LANES: usize = 4;
    const KILL_EVERY: usize = 80;
    // The server answers first, and writes when it comes to it.
    const LOST_AT_ONCE_MAX: usize = 2;
    let (mut lab, node) = (Lab::in_order(protocol).await, Node::new(8));
    let link = lab.link(&[("topic", "lane/+")]);
    lab.process.wake(&link, &node).await;
    for n in 0..MESSAGES {
        // By another turn than lanes go by, so that each has some.
        let word = if n % 7 == 0 { "retry-twice" } else { "ok" };
        lab.publisher.publish(&format!("lane/{}", n % LANES), &format!("{word} {n}")).await;
        if n % KILL_EVERY == KILL_EVERY / 2 {
            lab.server.restart();
        }
        until("few are out", || node.bodies().into_iter().collect::<BTreeSet<_>>().len() + OUT > n).await;
    }
    until("the last has come", || node.bodies().iter().any(|body| body.ends_with(&format!(" {}", MESSAGES - 1)))).await;
    lab.process.until_settled(&link).await;
    let (lanes, mut came) = (lanes(&node), 0);
    for (lane, numbers) in lanes {
        assert!(numbers.is_sorted_by(|one, next| one < next), "{lane}: {numbers:?}");
        came += numbers.len();
    }
    for n in (0..MESSAGES).step_by(7) {
        let attempts = node.attempts(&format!("retry-twice {n}"));
        assert!(attempts.is_empty() || attempts.contains(&3), "{n}: {attempts:?}");
    }
    println!("{came} of {MESSAGES} messages over {protocol}");
    let lost_max = MESSAGES / KILL_EVERY * LOST_AT_ONCE_MAX;
    assert!(came >= MESSAGES - lost_max, "only what the server had just taken at a death may be lost: {came} came");
}

/// The messages of each topic as they were begun; one that was tried again at once counts once.
fn lanes(node: &Node) -> BTreeMap<String, Vec<usize>> {
    let mut lanes = BTreeMap::<_, Vec<_>>::new();
    for message in node.woken().iter() {
        let body = text(message);
        let (_, n) = body.split_once(' ').unwrap();
        lanes.entry(message.subject.clone()).or_default().push(n.parse().unwrap());
    }
    lanes.values_mut().for_each(Vec::dedup);
    lanes
}
