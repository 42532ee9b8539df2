//! Queues on real brokers, end to end: one manifest that moves between them.

use redis::Commands as _;
use trellis_bus::testing::NatsServer;
use trellis_mqtt::testing::Mosquitto;
use trellis_rabbitmq::testing::RabbitServer;
use trellis_redis::testing::RedisServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking_at};
use crate::client::get;
use crate::node::{DataDir, Node};
use crate::queues::letters;

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
            waking_at("bus", tech, server, &[link_from("worker", "trellis:messaging/handler", "queue", &config)]),
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
