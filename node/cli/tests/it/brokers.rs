//! Queues on real brokers, end to end: one manifest that moves between them.

use std::time::Duration;

use futures::StreamExt as _;
use redis::Commands as _;
use serde_json::Value;
use trellis_bus::testing::NatsServer;
use trellis_mqtt::testing::Mosquitto;
use trellis_rabbitmq::testing::RabbitServer;
use trellis_redis::testing::RedisServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, provider_at, waking_at};
use crate::client::get;
use crate::home::trigger;
use crate::lattice::lattice;
use crate::node::{DataDir, Node};
use crate::queues::{faked_by, letters};

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
                "limits: {timeout: 3s, memory: 32MiB}",
                &[store(), link("bus", "trellis:messaging/producer")],
            ),
            http("window", ""),
            provider("store", "embedded"),
            waking_at("bus", tech, server, &[link_from("worker", "trellis:messaging/handler", "queue", &config)]),
        ],
    )
}

/// What every broker calls a queue, so that only image and server differ. `QUEUE` stands for its name.
const QUEUE: &str = "queue: QUEUE";

/// The source of one queue.
fn named(source: &str, queue: &str) -> String {
    source.replace("QUEUE", queue)
}

/// The shop with two more queues: of one whose messages get old, and of a handler as wasmCloud has them.
fn shops(tech: &str, server: &str, source: &str) -> String {
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let config = |queue: &str, more: &str| format!("{{{}, create: 'true', {more}}}", named(source, queue));
    let (soon, aged) = ("delivery.backoff.initial: 100ms, delivery.max_faults: '2'", "delivery.max_age: 10s");
    let aged = config("AGED", &format!("{soon}, {aged}"));
    let theirs = config("THEIRS", &format!("{soon}, delivery.max_attempts: '3'"));
    let wakes = [
        link_from("aged", "trellis:messaging/handler", "aged", &aged),
        link_from("theirs", "wasmcloud:messaging/handler", "theirs", &theirs),
    ];
    [
        shop(tech, server, &named(source, "ORDERS")),
        component("aged", "test_messages", "", &[store(), link("bus", "trellis:messaging/producer")]),
        component("theirs", "test_wasmcloud_messages", "", &[store(), link("bus", "wasmcloud:messaging/consumer")]),
        waking_at("more", tech, server, &wakes),
    ]
    .concat()
}

/// The manifest works there, and every row of the settle table has its consequence. It publishes to a queue.
#[track_caller]
fn moves_to(node: &Node, tech: &str, server: &str, source: &str, publish: impl Fn(&str, &str)) {
    let began_ms = trellis_provider::now_ms();
    node.deploy(&shops(tech, server, source));
    for body in ["fine", "retry-twice", "dead-letter", "drop", "trap", "memory", "loop", "after all"] {
        publish("ORDERS", body);
    }
    publish("AGED", "retry");
    for body in ["good", "retry", "trap"] {
        publish("THEIRS", body);
    }
    handles(node, tech, &[("fine", 1), ("retry-twice", 3), ("drop", 1), ("after-all", 1)]);
    let known = tells(node, "about/fine");
    let published = known.strip_prefix("source=default published_ms=").and_then(|rest| rest.strip_suffix(" had=0"));
    let published_ms: u64 = published.and_then(|ms| ms.parse().ok()).unwrap_or_else(|| panic!("on {tech}: {known}"));
    assert!((began_ms..=trellis_provider::now_ms()).contains(&published_ms), "on {tech}, after {began_ms}: {known}");
    assert!(tells(node, "last/good").ends_with("THEIRS"), "on {tech}");
    let dead = letters(node, "shop", 7);
    are_given_up(&dead, tech);
    end_as(node, "shop/worker", &[("ack", 3), ("retry", 5), ("dead-letter", 4), ("drop", 1)]);
    end_as(node, "shop/theirs", &[("ack", 1), ("retry", 3), ("dead-letter", 2), ("drop", 0)]);
    let ids: Vec<_> = dead.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert_eq!(node.trellis(&[&["dead-letters", "drop", "shop"], ids.as_slice()].concat()).ok(), "7 dropped\n");
    letters(node, "shop", 0);
}

/// Each with its reason, at the attempt that its policy says.
#[track_caller]
fn are_given_up(letters: &[Value], tech: &str) {
    let mut dead: Vec<_> = letters.iter().map(row).collect();
    dead.sort();
    let (component, body, reason, attempts, said) = dead.remove(0);
    assert_eq!((component.as_str(), body.as_str(), reason.as_str()), ("shop/aged", "retry", "max-age"), "on {tech}");
    assert!((2..20).contains(&attempts) && said.contains("older than 10s"), "on {tech}: {attempts} attempts, {said}");
    let expected = [
        ("shop/theirs", "retry", "max-attempts", 3, "as asked"),
        ("shop/theirs", "trap", "max-faults", 2, "trapped"),
        ("shop/worker", "dead-letter", "refused", 1, "as asked"),
        ("shop/worker", "loop", "max-faults", 2, "not done within 3000 ms"),
        ("shop/worker", "memory", "max-faults", 2, "its limit is 33554432 bytes"),
        ("shop/worker", "trap", "max-faults", 2, "trapped"),
    ];
    for ((component, body, reason, attempts, said), why) in dead.iter().zip(expected) {
        let is = (component.as_str(), body.as_str(), reason.as_str(), *attempts);
        assert_eq!(is, (why.0, why.1, why.2, why.3), "on {tech}");
        assert!(said.contains(why.4), "on {tech}, {body}: {said}");
    }
}

/// How often runs of a component ended in each way.
#[track_caller]
fn end_as(node: &Node, component: &str, expected: &[(&str, u64)]) {
    eventually(&format!("{component} ends as {expected:?}"), || {
        let told: Value = serde_json::from_str(&node.trellis(&["triggers", "-o", "json"]).ok()).ok()?;
        let trigger = told["triggers"].as_array()?.iter().find(|trigger| trigger["component"] == component)?;
        expected.iter().all(|(outcome, count)| trigger["outcomes"][outcome] == *count).then_some(())
    });
}

/// What the shop's store has under a key, once there is something.
#[track_caller]
fn tells(node: &Node, key: &str) -> String {
    let at = node.at("shop");
    eventually(&format!("{key} is stored"), || {
        get(at, &format!("/{key}")).ok().filter(|response| response.status == 200).map(|response| response.text())
    })
}

/// What a dead letter says: whose it is, body, reason, attempts, and why.
fn row(letter: &Value) -> (String, String, String, u64, String) {
    let text = |key: &str| letter[key].as_str().unwrap().to_owned();
    let said = format!("{} {}", letter["faults"], text("detail"));
    (text("component"), text("body_text"), text("reason"), letter["attempts"].as_u64().unwrap(), said)
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
    moves_to(&node, "embedded", "", QUEUE, |queue, body| drop(node.trellis(&["publish", queue, body]).ok()));
    drop(node);

    let nats = NatsServer::start(true);
    let node = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    moves_to(&node, "nats", "", QUEUE, |queue, body| drop(node.trellis(&["publish", queue, body]).ok()));
    drop(node);

    let redis = RedisServer::start();
    let node = Node::start(&[]);
    moves_to(&node, "redis", &format!("url: '{}'", redis.url), QUEUE, by_redis(&redis));
    drop(node);

    let rabbit = RabbitServer::start();
    let node = Node::start(&[]);
    moves_to(&node, "rabbitmq", &format!("url: '{}'", rabbit.url), QUEUE, by_rabbitmq(&rabbit));
    drop(node);

    let mosquitto = Mosquitto::start(true);
    let node = Node::start(&[]);
    moves_to(&node, "mqtt", &format!("url: '{}'", mosquitto.url), QUEUE, |queue, body| {
        mosquitto.publish(queue, body.as_bytes());
    });
}

fn by_redis(server: &RedisServer) -> impl Fn(&str, &str) {
    let client = redis::Client::open(server.url.as_str()).unwrap().get_connection().unwrap();
    let client = std::cell::RefCell::new(client);
    move |queue, body| {
        let _: String = client.borrow_mut().xadd(queue, "*", &[("body", body)]).unwrap();
    }
}

fn by_rabbitmq(server: &RabbitServer) -> impl Fn(&str, &str) {
    let publish = named_by_rabbitmq(server);
    move |queue, body| publish(queue, body, "")
}

/// Publishes a body with this id.
fn with_id_by_rabbitmq(server: &RabbitServer) -> impl Fn(&str, &str) {
    let publish = named_by_rabbitmq(server);
    move |body, id| publish("ORDERS", body, id)
}

/// Publishes to a queue, with an id or none.
fn named_by_rabbitmq(server: &RabbitServer) -> impl Fn(&str, &str, &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let channel = runtime.block_on(async {
        let connection = lapin::Connection::connect(&server.url, Default::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(Default::default()).await.unwrap();
        channel
    });
    move |queue, body, id| {
        let properties = lapin::BasicProperties::default();
        let properties = if id.is_empty() { properties } else { properties.with_message_id(id.into()) };
        // The link makes the queue soon after it is there; the server gives back what it has no queue for.
        eventually("there is a queue", || {
            let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
            let sent = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties.clone());
            let confirmed = runtime.block_on(async { sent.await.unwrap().await.unwrap() });
            confirmed.take_message().is_none().then_some(())
        });
    }
}

/// How often the handler began with this, as any node of the app says.
fn seen(node: &Node, what: &str) -> Option<String> {
    get(node.at("shop"), &format!("/seen/{what}")).ok().filter(|seen| seen.status == 200).map(|seen| seen.text())
}

const ONCE: &str = "queue: ORDERS, delivery.dedupe.key: id, delivery.dedupe.window: 1h";

#[test]
fn what_one_node_handled_from_rabbitmq_is_handled_once_though_the_node_is_killed() {
    let (rabbit, data_dir) = (RabbitServer::start(), DataDir::new());
    let (node, publish) = (Node::start_in(&data_dir, &[]), with_id_by_rabbitmq(&rabbit));
    node.deploy(&shop("rabbitmq", &format!("url: '{}'", rabbit.url), ONCE));
    for (body, id) in [("first", "1"), ("first", "1"), ("twin", "1"), ("second", "2")] {
        publish(body, id);
    }
    handles(&node, "rabbitmq", &[("first", 1), ("second", 1)]);
    drop(node.kill());
    let node = Node::start_in(&data_dir, &[]);
    publish("first", "1");
    publish("third", "3");
    handles(&node, "rabbitmq", &[("third", 1)]);
    assert_eq!(
        (seen(&node, "first").as_deref(), seen(&node, "twin")),
        (Some("1"), None),
        "its mark stays for its hour"
    );
    assert!(letters(&node, "shop", 0).is_empty());
}

#[test]
fn what_three_nodes_handle_from_rabbitmq_is_handled_once_and_twins_wait() {
    let (rabbit, nats) = (RabbitServer::start(), NatsServer::start(true));
    let (nodes, publish) = (lattice(&nats, 3), with_id_by_rabbitmq(&rabbit));
    let everywhere = "limits: {timeout: 3s, memory: 32MiB}";
    let manifest =
        shop("rabbitmq", &format!("url: '{}'", rabbit.url), ONCE).replace(everywhere, "limits: {timeout: 9s}");
    nodes[0].deploy(&manifest);
    for body in ["sleep 4000", "sleep 4000", "sleep 4000", "sleep 4001", "fine"] {
        publish(body, body);
    }
    handles(&nodes[0], "rabbitmq", &[("sleep-4000", 1), ("sleep-4001", 1), ("fine", 1)]);
    let left = |trigger: &Value| ["waiting", "claimed", "held"].iter().any(|what| trigger[what] != 0);
    eventually("twins are taken off", || {
        let told: Value = serde_json::from_str(&nodes[0].trellis(&["triggers", "-o", "json"]).ok()).ok()?;
        (!told["triggers"].as_array()?.iter().any(left)).then_some(())
    });
    assert_eq!(seen(&nodes[0], "sleep-4000").as_deref(), Some("1"));
}

#[test]
fn what_a_handler_of_rabbitmq_published_goes_out_though_its_node_is_killed_before_it_can() {
    let (rabbit, data_dir) = (RabbitServer::start(), DataDir::new());
    let mut nats = NatsServer::start(false);
    let (inside, outside) = (link("bus", "trellis:messaging/producer"), link("out", "trellis:messaging/producer"));
    let manifest = shop("rabbitmq", &format!("url: '{}'", rabbit.url), "queue: ORDERS").replace(&inside, &outside);
    let manifest = manifest + &provider_at("out", "nats", &format!("url: '{}'", nats.url));
    let node = Node::start_in(&data_dir, &[]);
    node.deploy(&manifest);
    nats.kill();
    with_id_by_rabbitmq(&rabbit)("publish hello", "1");
    eventually("it is stored and cannot be sent", || {
        node.trellis(&["triggers", "-o", "json"]).ok().contains("could not be sent").then_some(())
    });
    drop(node.kill());
    nats.restart();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut heard = runtime.block_on(async {
        let client = async_nats::connect(&nats.url).await.unwrap();
        let heard = client.subscribe("hello").await.unwrap();
        client.flush().await.unwrap();
        heard
    });
    let node = Node::start_in(&data_dir, &[]);
    let sent = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), heard.next()).await });
    assert_eq!(sent.expect("it is sent").unwrap().payload, "from ORDERS");
    assert_eq!(seen(&node, "publish-hello").as_deref(), Some("1"), "its handler is not run again");
}

/// While a message waits for its next try, and while one is worked on, the clock of its node, and that alone, is set by
/// hours: nothing is held, given out once more or given up for it.
#[track_caller]
fn keeps_its_promise_under_a_clock_that_jumps(tech: &str, server: &str, source: &str, publish: impl Fn(&str)) {
    let (data_dir, offset) = (DataDir::new(), tempfile::NamedTempFile::new().unwrap());
    let jump = |to: &str| std::fs::write(offset.path(), to).unwrap();
    let start = || {
        let environment = faked_by(offset.path());
        Node::start_with(&data_dir, &[], &environment.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let seen = |node: &Node, what: &str| get(node.at("shop"), &format!("/seen/{what}")).ok().map(|seen| seen.text());
    let until_seen = |node: &Node, what: &str, times: &str| {
        eventually(&format!("{what} came {times} times on {tech}"), || {
            seen(node, what).filter(|seen| seen == times).map(drop)
        });
    };
    jump("+0h");
    let node = start();
    node.deploy(&shop(tech, server, source).replace("backoff.initial: 100ms", "backoff.initial: 2s"));
    publish("trap a");
    until_seen(&node, "trap-a", "1");
    jump("-5h");
    letters(&node, "shop", 1);
    // It is done before the second letter is there, and the node is killed after that.
    publish("sleep 1000");
    until_seen(&node, "sleep-1000", "1");
    jump("+5h");
    publish("trap b");
    until_seen(&node, "trap-b", "1");
    jump("+30h");
    letters(&node, "shop", 2);
    drop(node);
    jump("-30h");
    let node = start();
    publish("fine");
    handles(&node, tech, &[("fine", 1)]);
    let dead = letters(&node, "shop", 2);
    assert!(dead.iter().all(|letter| letter["reason"] == "max-faults" && letter["attempts"] == 2), "{tech}: {dead:?}");
    assert_eq!(seen(&node, "sleep-1000").as_deref(), Some("1"), "once on {tech}");
}

#[test]
fn a_nodes_clock_that_jumps_changes_nothing_on_redis() {
    let redis = RedisServer::start();
    let server = format!("url: '{}'", redis.url);
    let publish = by_redis(&redis);
    keeps_its_promise_under_a_clock_that_jumps("redis", &server, "stream: ORDERS", |body| publish("ORDERS", body));
}

#[test]
fn a_nodes_clock_that_jumps_changes_nothing_on_rabbitmq() {
    let rabbit = RabbitServer::start();
    let server = format!("url: '{}'", rabbit.url);
    let publish = by_rabbitmq(&rabbit);
    keeps_its_promise_under_a_clock_that_jumps("rabbitmq", &server, "queue: ORDERS", |body| publish("ORDERS", body));
}

#[test]
fn a_topic_outlives_its_node_with_its_dead_letters() {
    for protocol in ["5", "3.1.1"] {
        let (mut server, data_dir) = (Mosquitto::start(true), DataDir::new());
        let node = Node::start_in(&data_dir, &[]);
        let config = format!("url: '{}', protocol: '{protocol}'", server.url);
        let publish_to = |queue: &str, body: &str| server.publish(&format!("eu/{queue}"), body.as_bytes());
        moves_to(&node, "mqtt", &config, "topic: '+/QUEUE'", publish_to);
        server.kill();
        let is = |state: &str, why: &str| {
            eventually(&format!("its triggers are {state}"), || {
                let shown = trigger(&node);
                (shown["state"] == state && shown["problems"].to_string().contains(why)).then_some(())
            });
        };
        is("troubled", "not connected to mqtt://");
        server.restart();
        is("running", "[]");
        let publish = |body: &str| server.publish("eu/ORDERS", body.as_bytes());
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

#[test]
fn a_core_subject_with_a_policy_outlives_its_node_with_its_dead_letters() {
    let (nats, data_dir) = (NatsServer::start(false), DataDir::new());
    let node = Node::start_in(&data_dir, &["--nats", &nats.url, "--bootstrap"]);
    node.deploy(&shop("nats", "", "subscriptions: ORDERS").replace(", create: 'true'", ""));
    for body in ["fine", "retry-twice", "dead-letter", "drop"] {
        node.trellis(&["publish", "ORDERS", body]).ok();
    }
    handles(&node, "nats", &[("fine", 1), ("retry-twice", 3), ("drop", 1)]);
    letters(&node, "shop", 1);
    node.trellis(&["pause", "shop/worker"]).ok();
    node.trellis(&["publish", "ORDERS", "later"]).ok();
    eventually("it is stored", || (trigger(&node)["waiting"] == 1).then_some(()));
    drop(node.kill());

    let node = Node::start_in(&data_dir, &["--nats", &nats.url]);
    node.trellis(&["resume", "shop/worker"]).ok();
    handles(&node, "nats", &[("later", 1)]);
    let dead = letters(&node, "shop", 1);
    let letter = dead[0]["id"].as_str().unwrap();
    assert_eq!(node.trellis(&["dead-letters", "replay", "shop", letter]).ok(), "1 replayed\n");
    eventually("it is a dead letter again", || {
        node.dead_letters("shop", &[]).iter().any(|again| again["id"] != letter).then_some(())
    });
}

#[test]
fn each_node_has_its_part_of_a_core_subject_and_all_of_it_is_shown() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    let spread = "{type: spreadscaler, properties: {instances: 20, spread: [{name: there, requirements: {n: '1|2'}}]}}";
    let config = "{subscriptions: ORDERS, delivery.max_faults: '2', delivery.backoff.initial: 100ms}";
    let uses = [spread.to_owned(), link("store", "wasi:keyvalue/store"), link("bus", "trellis:messaging/producer")];
    nodes[0].deploy(&app(
        "shop",
        &[
            component("worker", "test_messages", "limits: {timeout: 3s}", &uses),
            provider("store", "embedded"),
            waking_at("bus", "nats", "", &[link_from("worker", "trellis:messaging/handler", "queue", config)]),
        ],
    ));
    nodes[0].trellis(&["pause", "shop/worker"]).ok();
    for n in 0..24 {
        nodes[n % 2].trellis(&["publish", "ORDERS", if n % 4 == 0 { "trap" } else { "fine" }]).ok();
    }
    eventually("both nodes have stored their parts", || {
        let all = trigger(&nodes[1]);
        (all["nodes"] == 2 && all["waiting"] == 24).then_some(())
    });
    nodes[1].trellis(&["resume", "shop/worker"]).ok();
    let dead = letters(&nodes[1], "shop", 6);
    assert!(dead.iter().all(|letter| letter["id"].as_str().unwrap().contains('@')), "each says where it is: {dead:?}");
    for letter in &dead {
        let id = letter["id"].as_str().unwrap();
        assert_eq!(nodes[0].trellis(&["dead-letters", "drop", "shop", id]).ok(), "1 dropped\n");
    }
    letters(&nodes[0], "shop", 0);
}
