//! Queues on real brokers, end to end: one manifest that moves between them, and messages that must all be accounted for
//! while nodes and brokers are killed.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Commands as _;
use trellis_bus::testing::NatsServer;
use trellis_mqtt::testing::Mosquitto;
use trellis_rabbitmq::testing::RabbitServer;
use trellis_redis::testing::RedisServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking};
use crate::client::get;
use crate::node::{DataDir, Node};
use crate::queues::letters;

/// A provider of this image with a server of its own, and links to what it wakes.
fn at(name: &str, tech: &str, server: &str, links: &[String]) -> String {
    let image = format!("{{image: 'trellis://{tech}'}}");
    let config = format!("{{image: 'trellis://{tech}', config: [{{name: {name}-server, properties: {{{server}}}}}]}}");
    waking(name, tech, links).replace(&image, if server.is_empty() { &image } else { &config })
}

/// A handler behind a queue, and a window on the store that it writes to. Only image, server and the queue's name differ.
fn shop(tech: &str, server: &str, source: &str) -> String {
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let config = format!("{{{source}, create: 'true', delivery.max_faults: '2', delivery.backoff.initial: 100ms}}");
    app(
        "shop",
        &[
            component("window", "test_kv", "", &[store()]),
            component(
                "worker",
                "test_messages",
                "limits: {timeout: 5s}",
                &[store(), link("bus", "trellis:messaging/producer")],
            ),
            http("window", ""),
            provider("store", "embedded"),
            at("bus", tech, server, &[link_from("worker", "trellis:messaging/handler", "queue", &config)]),
        ],
    )
}

#[track_caller]
fn moves_to(node: &Node, tech: &str, server: &str, source: &str, publish: impl Fn(&str)) {
    node.deploy(&shop(tech, server, source));
    for body in ["fine", "retry-twice"] {
        publish(body);
    }
    handles(node, tech, &[("fine", 1), ("retry-twice", 3)]);
}

/// Each of these is handled well in the end, at this attempt.
#[track_caller]
fn handles(node: &Node, tech: &str, bodies: &[(&str, u32)]) {
    let at = node.at("shop");
    for (body, attempt) in bodies {
        eventually(&format!("{body} is handled at attempt {attempt} on {tech}"), || {
            let response = get(at, &format!("/last/{body}")).ok().filter(|response| response.status == 200)?;
            response.text().contains(&format!("attempt={attempt}")).then_some(())
        });
    }
}

#[test]
fn one_manifest_moves_between_brokers() {
    let node = Node::start(&[]);
    moves_to(&node, "embedded", "", "queue: ORDERS", |body| drop(node.trellis(&["publish", "ORDERS", body]).ok()));
    drop(node);

    let nats = NatsServer::start(true);
    let node = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    moves_to(&node, "nats", "", "stream: ORDERS", |body| drop(node.trellis(&["publish", "ORDERS", body]).ok()));
    drop(node);

    let redis = RedisServer::start();
    let mut client = redis::Client::open(redis.url.as_str()).unwrap().get_connection().unwrap();
    let node = Node::start(&[]);
    let server = format!("url: '{}'", redis.url);
    let client = std::cell::RefCell::new(&mut client);
    moves_to(&node, "redis", &server, "stream: ORDERS", |body| {
        let _: String = client.borrow_mut().xadd("ORDERS", "*", &[("body", body)]).unwrap();
    });
    drop(node);

    let rabbit = RabbitServer::start();
    let node = Node::start(&[]);
    let server = format!("url: '{}'", rabbit.url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let channel = runtime.block_on(async {
        let connection = lapin::Connection::connect(&rabbit.url, Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        channel
    });
    moves_to(&node, "rabbitmq", &server, "queue: ORDERS", |body| {
        // The link makes the queue soon after it is there; the server gives back what it has no queue for.
        eventually("there is a queue", || {
            let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent = channel.basic_publish("".into(), "ORDERS".into(), options, body.as_bytes(), Default::default());
            let confirmed = runtime.block_on(async { sent.await.unwrap().await.unwrap() });
            confirmed.take_message().is_none().then_some(())
        });
    });
}

#[test]
fn a_topic_outlives_its_node_with_its_dead_letters() {
    for protocol in ["5", "3.1.1"] {
        let (server, data_dir) = (Mosquitto::start(true), DataDir::new());
        let node = Node::start_in(&data_dir, &[]);
        let config = format!("url: '{}', protocol: '{protocol}'", server.url);
        let publish = |body: &str| server.publish("eu/orders", body.as_bytes());
        moves_to(&node, "mqtt", &config, "topic: '+/orders'", publish);
        publish("dead-letter");
        let dead = letters(&node, "shop", 1);
        assert_eq!((&dead[0]["component"], &dead[0]["body_text"]), (&"shop/worker".into(), &"dead-letter".into()));
        assert!(node.trellis(&["triggers"]).ok().contains("mqtt"));
        drop(node.kill());

        publish("trap");
        publish("later");
        let node = Node::start_in(&data_dir, &[]);
        handles(&node, "mqtt", &[("later", 1)]);
        let dead = letters(&node, "shop", 2);
        let trap = dead.iter().find(|letter| letter["body_text"] == "trap").unwrap();
        assert_eq!((&trap["reason"], &trap["attempts"]), (&"max-faults".into(), &2.into()));
        let ids: Vec<_> = dead.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
        assert_eq!(node.trellis(&["dead-letters", "replay", "shop", ids[0]]).ok(), "1 replayed\n");
        let again = letters(&node, "shop", 2);
        assert!(again.iter().all(|letter| letter["id"] != ids[0]), "{again:?}");
    }
}

/// What becomes of a message by its first word: how often it is tried at least, and whether it ends as a dead letter.
/// Fewer than half fail on their first attempt: else the trigger would pause by itself.
const WORDS: [(&str, u32, bool); 8] = [
    ("ok", 1, false),
    ("retry-twice", 3, false),
    ("fine", 1, false),
    ("dead-letter", 1, true),
    ("good", 1, false),
    ("drop", 1, false),
    ("well", 1, false),
    ("trap", 2, true),
];
/// Every so manyeth message loops until its deadline.
const LOOPS_EVERY: usize = 100;
/// Permits in the lattice: no more messages are in flight at a kill.
const PERMITS: usize = 16;

fn word(n: usize) -> (&'static str, u32, bool) {
    if n % LOOPS_EVERY == 7 { ("loop", 2, true) } else { WORDS[n % WORDS.len()] }
}

fn body(n: usize) -> String {
    format!("{} {n}", word(n).0)
}

/// 500 messages, or as many as `TRELLIS_TORTURE` says: `make torture`.
fn messages() -> usize {
    std::env::var("TRELLIS_TORTURE").ok().map_or(500, |count| count.parse().unwrap())
}

/// A handler on two nodes, whose queue and store are in Redis.
fn tortured(url: &str) -> String {
    let store = at("store", "redis", &format!("url: '{url}', prefix: 't:'"), &[]).replace("      traits:\n", "");
    let config = "{stream: orders, create: 'true', delivery.max_faults: '2', delivery.backoff.initial: 50ms, \
                  delivery.backoff.max: 200ms}";
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let publishes = link("queue", "trellis:messaging/producer");
    let scale = format!("{{type: spreadscaler, properties: {{instances: {PERMITS}}}}}");
    let worker = component("worker", "test_messages", "limits: {timeout: 2s}", &[uses, publishes, scale]);
    let wakes = link_from("worker", "trellis:messaging/handler", "queue", config);
    let queue = at("queue", "redis", &format!("url: '{url}'"), &[wakes]);
    app("torture", &[worker, store, queue])
}

#[test]
fn torture_redis() {
    let (nats, mut redis) = (NatsServer::start(true), RedisServer::start());
    let first = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    let data_dir = DataDir::new();
    let mut second = Node::start_in(&data_dir, &["--nats", &nats.url]);
    first.deploy(&tortured(&redis.url));
    let count = messages();
    let connect = |url: &str| redis::Client::open(url).unwrap().get_connection();
    let publish = |url: &str, from: usize, to: usize| {
        std::thread::scope(|scope| {
            for publisher in 0..3 {
                scope.spawn(move || {
                    let mut client = redis::Client::open(url).unwrap().get_connection().unwrap();
                    for n in (from..to).filter(|n| n % 3 == publisher) {
                        let _: String = client.xadd("orders", "*", &[("body", body(n))]).unwrap();
                    }
                });
            }
        });
    };
    publish(&redis.url, 0, count / 3);
    drop(second.kill());
    publish(&redis.url, count / 3, count * 2 / 3);
    second = Node::start_in(&data_dir, &["--nats", &nats.url]);
    redis.restart();
    publish(&redis.url, count * 2 / 3, count);

    let dead = (0..count).filter(|n| word(*n).2).count();
    let deadline = std::time::Instant::now() + Duration::from_secs(120 + count as u64 / 50);
    let mut client = connect(&redis.url).unwrap();
    let left = |client: &mut redis::Connection| {
        let (claims, due): (u64, u64) = (
            client.zcard("trellis:orders:torture/worker:claims").unwrap(),
            client.zcard("trellis:orders:torture/worker:due").unwrap(),
        );
        let letters: usize = client.xlen("orders:dead").unwrap();
        (claims + due, letters)
    };
    while !matches!(left(&mut client), (0, letters) if letters >= dead) {
        assert!(std::time::Instant::now() < deadline, "(unsettled, dead letters): {:?} of {dead}", left(&mut client));
        std::thread::sleep(Duration::from_millis(100));
    }
    account(&mut client, count, dead);
    drop((first, second));
}

/// Every message is accounted for exactly: handled, dead letter or dropped.
fn account(client: &mut redis::Connection, count: usize, dead: usize) {
    let letters: redis::streams::StreamRangeReply = client.xrange_all("orders:dead").unwrap();
    let mut by_body = BTreeMap::<String, usize>::new();
    for letter in &letters.ids {
        *by_body.entry(letter.get("body").unwrap()).or_default() += 1;
    }
    assert_eq!(by_body.len(), dead, "each of those that fail is a dead letter");
    assert!(by_body.values().all(|letters| *letters == 1), "and once: {by_body:?}");
    let mut again = 0;
    for n in 0..count {
        let (word, tries, is_dead) = word(n);
        assert_eq!(by_body.contains_key(&body(n)), is_dead, "{}", body(n));
        let seen: Option<u32> = client.get(format!("t:seen/{word}-{n}")).unwrap();
        let seen = seen.unwrap_or_else(|| panic!("{} was lost", body(n)));
        // An attempt that a kill cut off may not have come as far as to count itself.
        assert!(seen >= tries.saturating_sub(1).max(1), "{} was tried {seen} times", body(n));
        again += seen.saturating_sub(tries) as usize;
    }
    let pending: redis::streams::StreamPendingReply = client.xpending("orders", "torture/worker").unwrap();
    assert_eq!(pending.count(), 0, "Redis itself has nothing left that is not acknowledged");
    println!("{count} messages: 0 lost, {dead} dead letters, {again} attempts more than without kills");
    assert!(again <= 3 * PERMITS, "only what was in flight at a kill is tried again: {again}");
}
