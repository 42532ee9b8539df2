//! Topics at least once: what the server has given is on the node's disk before it is acknowledged.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use trellis_mqtt::testing::Mosquitto;
use trellis_mqtt::{MESSAGE_BYTES_MAX, Mqtt, Options, PACKET_BYTES_MAX, RECEIVE_MAX};
use trellis_provider::delivery::{Fate, Trigger};
use trellis_provider::testing::contract;
use trellis_provider::testing::lab::{self, Node, in_a_process, text, until, until_waiting};
use trellis_provider::{Depot, LinkError, Permits, Provider as _};
use trellis_wire::{Link, LinkId, Message};

use crate::lab::{Home, Lab, Publisher};

pub(crate) const PROTOCOLS: [&str; 2] = ["5", "3.1.1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_5() {
    contract(&Lab::start("5").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue_over_mqtt_3_1_1() {
    contract(&Lab::start("3.1.1").await).await;
}

#[tokio::test]
async fn each_word_of_a_handler_has_its_consequence() {
    for (protocol, qos) in [("5", "1"), ("5", "0"), ("3.1.1", "1"), ("3.1.1", "0")] {
        let (lab, node) = (Lab::start(protocol).await, Node::new(8));
        let link = lab.link(&[("topic", "orders/+"), ("qos", qos)]);
        lab.process.wake(&link, &node).await;
        for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap"] {
            lab.publisher.publish("orders/eu", body).await;
        }
        let letters = lab.process.until_letters(&link, 3).await;
        until("the third attempt came", || node.attempts("retry-twice") == [1, 2, 3]).await;
        until("the others came", || node.attempts("ok") == [1] && node.attempts("drop") == [1]).await;
        assert_eq!(node.attempts("retry"), [1, 2, 3, 4], "max_attempts");
        assert_eq!(node.attempts("trap"), [1, 2, 3], "max_faults");
        let letter = |body: &str| letters.iter().find(|letter| text(&letter.message) == body).unwrap();
        let reason = |body: &str| letter(body).reason.as_str();
        assert_eq!([reason("retry"), reason("dead"), reason("trap")], ["max-attempts", "refused", "max-faults"]);
        assert_eq!(letter("dead").message.subject, "orders/eu");
        lab.process.until_settled(&link).await;

        let trigger = lab.process.mqtt.trigger(&link.id).unwrap();
        assert!(trigger.decide(&letter("dead").id, Fate::Replay).await.unwrap().is_some());
        until("it came again", || node.attempts("dead") == [1, 1]).await;
    }
}

/// A process is dropped in the middle of what it does, as `kill -9` would end it.
#[test]
fn what_came_and_what_comes_while_no_process_is_there_is_handled_by_the_next() {
    for protocol in PROTOCOLS {
        let (server, home) = (Mosquitto::start(true), Home::new());
        let config = [("url", server.url.as_str()), ("topic", "orders"), ("protocol", protocol)];
        let link = lab::link("messaging", &config);
        let publish = async |bodies: &[&str]| {
            let publisher = Publisher::start(&server.url, protocol).await;
            for body in bodies {
                publisher.publish("orders", body).await;
            }
        };
        in_a_process(async {
            let (process, node) = (home.open(), Node::shut(1));
            process.wake(&link, &node).await;
            publish(&["runs", "waits", "waits too"]).await;
            until("one is worked on", || node.bodies() == ["runs"]).await;
            until_waiting(&process.queue(&link), 2).await;
        });
        in_a_process(publish(&["later", "later too"]));
        in_a_process(async {
            let (process, node) = (home.open(), Node::new(4));
            process.wake(&link, &node).await;
            until("all are handled", || node.done() == 5).await;
            process.until_settled(&link).await;
            assert_eq!(node.attempts("runs"), [2], "it was worked on when the process died");
            let mut bodies = node.bodies();
            bodies.sort();
            assert_eq!(bodies, ["later", "later too", "runs", "waits", "waits too"]);
            process.mqtt.drain().await;
        });
        in_a_process(publish(&["after a drain"]));
        in_a_process(async {
            let (process, node) = (home.open(), Node::new(1));
            process.wake(&link, &node).await;
            until("it is handled", || node.bodies() == ["after a drain"]).await;
        });
    }
}

#[tokio::test]
async fn it_outlives_its_server() {
    for protocol in PROTOCOLS {
        let (mut lab, node) = (Lab::start(protocol).await, Node::new(1));
        let link = lab.link(&[("topic", "orders")]);
        lab.process.wake(&link, &node).await;
        lab.publisher.publish("orders", "1").await;
        until("it is handled", || node.bodies() == ["1"]).await;
        lab.server.kill();
        let away = || lab.process.mqtt.health(&link.id).is_err_and(|why| why.contains("not connected to mqtt://"));
        until("that it is away is said", away).await;
        let lost = Message { subject: "orders".into(), body: "lost".into(), ..Message::default() };
        assert!(lab.publisher.send(lost).await.is_err());
        // Longer than the longest pause between two attempts.
        tokio::time::sleep(std::time::Duration::from_secs(6)).await;
        lab.server.restart();
        until("all is well", || lab.process.mqtt.health(&link.id).is_ok()).await;
        lab.publisher.publish("orders", "2").await;
        until("it is handled as well", || node.bodies() == ["1", "2"]).await;
    }
}

#[tokio::test]
async fn a_link_that_is_applied_anew_misses_nothing_and_one_that_left_asks_for_nothing() {
    for protocol in PROTOCOLS {
        let (lab, node) = (Lab::start(protocol).await, Node::new(1));
        let link = lab.link(&[("topic", "orders")]);
        lab.process.wake(&link, &node).await;
        lab.process.mqtt.remove(&link.id).await;
        lab.publisher.publish("orders", "between").await;
        lab.process.wake(&link, &node).await;
        until("it is handled", || node.bodies() == ["between"]).await;

        // Elsewhere, there is another node.
        let (home, other_node) = (Home::new(), Node::new(1));
        let other = home.open();
        other.wake(&link, &other_node).await;
        lab.process.mqtt.remove(&link.id).await;
        lab.process.mqtt.forget(&link.id).await;
        lab.process.mqtt.drain().await;
        for n in 0..10 {
            lab.publisher.publish("orders", &n.to_string()).await;
        }
        until("all come to who is left", || other_node.bodies().len() == 10).await;
        lab.process.wake(&link, &node).await;
        lab.process.until_settled(&link).await;
        assert_eq!(node.bodies(), ["between"]);
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_acknowledged() {
    for protocol in PROTOCOLS {
        let (lab, node, home) = (Lab::start(protocol).await, Node::new(4), Home::new());
        let full = Arc::new(Full { is_full: AtomicBool::new(true), depot: home.open().embedded });
        let options = |depot| Options { node: "full".into(), lattice: "lattice".into(), depot };
        let mqtt = Mqtt::new(options(full.clone()));
        let link = lab.link(&[("topic", "orders")]);
        mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
        until("the subscription stands", || mqtt.health(&link.id).is_ok()).await;
        let count = usize::from(RECEIVE_MAX) * 3;
        for n in 0..count {
            lab.publisher.publish("orders", &n.to_string()).await;
        }
        let says = || {
            mqtt.health(&link.id).is_err_and(|why| why.contains("messages cannot be stored") && why.contains("no room"))
        };
        until("that there is no room is said", says).await;
        full.is_full.store(false, Ordering::SeqCst);
        let all = (0..count).map(|n| n.to_string()).collect::<BTreeSet<_>>();
        until("all are handled", || node.bodies().into_iter().collect::<BTreeSet<_>>() == all).await;
        until("all is well", || mqtt.health(&link.id).is_ok()).await;
        let twice = node.bodies().len() - count;
        println!("{twice} of {count} messages were given out twice over {protocol}");
        mqtt.drain().await;
    }
}

/// A depot that may be full.
struct Full {
    is_full: AtomicBool,
    depot: Arc<dyn Depot>,
}

#[async_trait]
impl Depot for Full {
    async fn begin(&self, queue: &str, link: Link, permits: Permits) -> Result<(), LinkError> {
        self.depot.begin(queue, link, permits).await
    }

    fn has(&self, queue: &str) -> bool {
        self.depot.has(queue)
    }

    async fn keep(&self, queue: &str, messages: Vec<Message>, note: Bytes) -> Result<(), String> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err("no room".into());
        }
        self.depot.keep(queue, messages, note).await
    }

    fn note(&self, queue: &str) -> Result<Bytes, String> {
        self.depot.note(queue)
    }

    async fn end(&self, link: &LinkId) {
        self.depot.end(link).await;
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.depot.trigger(link)
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        self.depot.health(link)
    }
}

#[tokio::test]
async fn a_server_that_gives_less_is_not_taken_for_one_that_keeps_messages() {
    let server = Mosquitto::start_with("max_qos 0\nallow_anonymous true");
    for protocol in PROTOCOLS {
        let (home, node) = (Home::new(), Node::new(1));
        let mqtt = home.open().mqtt;
        let config = [("url", server.url.as_str()), ("topic", "orders"), ("protocol", protocol)];
        let link = lab::link("messaging", &config);
        mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
        let says = || mqtt.health(&link.id).is_err_and(|why| why.contains("it delivers at most once"));
        until("that is said", says).await;
    }
}

#[tokio::test]
async fn what_no_link_takes_stops_no_link() {
    for protocol in PROTOCOLS {
        let (lab, node) = (Lab::start(protocol).await, Node::new(1));
        let link = lab.link(&[("topic", "orders")]);
        lab.process.wake(&link, &node).await;
        let mut raw = TcpStream::connect(("127.0.0.1", lab.server.port)).unwrap();
        // CONNECT of MQTT 5, then PUBLISH with QoS 1 and the user property `\xff` = `\xfe`.
        raw.write_all(b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01r").unwrap();
        raw.write_all(b"\x32\x13\0\x06orders\0\x01\x07\x26\0\x01\xff\0\x01\xfex").unwrap();
        // And one that is larger than any link takes, but not than its server.
        let bytes = PACKET_BYTES_MAX as usize + 1;
        lab.server.publish("orders", &vec![7; bytes]);
        lab.publisher.publish("orders", "next").await;
        until("the next is handled", || node.bodies().contains(&"next".to_owned())).await;
        assert_eq!(lab.process.mqtt.health(&link.id), Ok(()));
        let body = vec![b'a'; MESSAGE_BYTES_MAX - 100];
        lab.publisher
            .send(Message { subject: "orders".into(), body: body.into(), ..Message::default() })
            .await
            .unwrap();
        until("a large one is handled", || node.woken().iter().any(|woken| woken.body.len() > 1_000_000)).await;
        lab.process.until_settled(&link).await;
        assert_eq!(node.done(), 2, "{:?}", node.woken().iter().map(|woken| woken.body.len()).collect::<Vec<_>>());
    }
}

/// 500 messages; the server is killed and started again in the middle, and so is the node's process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_accounted_for_across_deaths_of_the_server_over_mqtt_5() {
    torture("5").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_accounted_for_across_deaths_of_the_server_over_mqtt_3_1_1() {
    torture("3.1.1").await;
}

/// A server that is killed loses what it had not stored yet, whatever it said to the publisher: so before that, and only
/// then, what it has is waited for. When it ends by itself it stores all.
async fn torture(protocol: &'static str) {
    const MESSAGES: usize = 500;
    // Fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 8] = ["ok", "retry-twice", "ok", "dead", "ok", "drop", "ok", "trap"];
    let mut lab = Lab::start(protocol).await;
    let node = Node::new(16);
    let link = lab.link(&[("topic", "orders")]);
    lab.process.wake(&link, &node).await;
    let body = |i: usize| format!("{} {i}", WORDS[i % WORDS.len()]);
    for i in 0..MESSAGES {
        lab.publisher.publish("orders", &body(i)).await;
        match i {
            150 | 350 => {
                until("all have come", || (0..=i).all(|i| !node.attempts(&body(i)).is_empty())).await;
                lab.server.kill();
                until("that it is away is said", || lab.process.mqtt.health(&link.id).is_err()).await;
                lab.server.restart();
                // One that lost the session too knows of no subscription until then.
                until("all is well", || lab.process.mqtt.health(&link.id).is_ok()).await;
            }
            _ if i % 100 == 50 => {
                lab.server.stop();
                lab.server.restart();
            }
            _ => {}
        }
    }
    let of = |words: &[&str]| (0..MESSAGES).filter(|i| words.contains(&WORDS[i % WORDS.len()])).count();
    until("all have come", || (0..MESSAGES).all(|i| !node.attempts(&body(i)).is_empty())).await;
    lab.process.until_settled(&link).await;
    let letters = lab.process.until_letters(&link, of(&["dead", "trap"])).await;
    let mut bodies: Vec<_> = letters.iter().map(|letter| text(&letter.message)).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), of(&["dead", "trap"]), "each of those that fail is a dead letter");
    assert!(bodies.iter().all(|body| body.starts_with("dead") || body.starts_with("trap")), "{bodies:?}");
    let more = (0..MESSAGES)
        .filter(|i| node.woken().iter().filter(|woken| woken.attempt == 1 && text(woken) == body(*i)).count() > 1);
    println!("{MESSAGES} messages, {} of them given out twice by the server", more.count());
    for i in (0..MESSAGES).filter(|i| body(*i).starts_with("retry-twice")) {
        assert!(node.attempts(&body(i)).contains(&3), "{}: {:?}", body(i), node.attempts(&body(i)));
    }
    assert_eq!(lab.process.mqtt.health(&link.id), Ok(()));
}
