//! Links on JetStream, end to end: the node that runs a message is killed, clocks jump, and a stream takes nothing more.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context, stream};
use serde_json::Value;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, link, link_from, provider_at, waking};
use crate::lattice::{id, lattice, node};
use crate::node::{DataDir, Node};
use crate::queues::{faked_by, letters};

/// A handler behind the stream `ORDERS` that writes what came to the bucket `seen`.
fn shop(delivery: &str) -> String {
    let config = format!("{{stream: ORDERS, create: 'true', {delivery}}}");
    let traits = [link("store", "wasi:keyvalue/store, atomics, batch"), link("queue", "trellis:messaging/producer")];
    app(
        "shop",
        &[
            component("worker", "test_messages", "limits: {timeout: 60s}", &traits),
            provider_at("store", "nats", "bucket: seen, create: 'true'"),
            waking("queue", "nats", &[link_from("worker", "trellis:messaging/handler", "orders", &config)]),
        ],
    )
}

/// A client that has nothing to do with Trellis.
struct Client {
    runtime: Runtime,
    context: Context,
}

impl Client {
    fn new(nats: &NatsServer) -> Self {
        let runtime = Runtime::new().unwrap();
        let context = runtime.block_on(async { jetstream::new(async_nats::connect(&nats.url).await.unwrap()) });
        Self { runtime, context }
    }

    fn publish(&self, body: &str, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let headers = headers.collect::<HeaderMap>();
        self.runtime.block_on(async {
            let sent = self.context.publish_with_headers("ORDERS", headers, body.to_owned().into()).await;
            sent.unwrap().await.unwrap();
        });
    }

    /// What the handler has written.
    fn seen(&self, key: &str) -> Option<String> {
        self.runtime.block_on(async {
            let bucket = self.context.get_key_value("seen").await.ok()?;
            Some(String::from_utf8(bucket.get(key).await.ok()??.to_vec()).unwrap())
        })
    }

    #[track_caller]
    fn until_seen(&self, key: &str, expected: &str) {
        eventually(&format!("{key} is {expected}"), || (self.seen(key).as_deref() == Some(expected)).then_some(()));
    }
}

fn json(node: &Node, args: &[&str]) -> Option<Value> {
    serde_json::from_str(&node.trellis(args).stdout).ok()
}

/// Which of the nodes runs the message now.
#[track_caller]
fn at_work(nodes: &[Node]) -> usize {
    eventually("one node runs it", || {
        let status = nodes.iter().find_map(|node| json(node, &["status", "shop", "-o", "json"]))?;
        let holders = status["components"][0]["holders"].as_array()?.clone();
        let busy = holders.iter().find(|holder| holder["running"].as_u64() == Some(1))?;
        nodes.iter().position(|node| busy["node"] == id(node).as_str())
    })
}

#[track_caller]
fn until_settled(node: &Node) {
    eventually("nothing is left", || {
        let status = json(node, &["triggers", "-o", "json"])?;
        let trigger = status["triggers"].as_array()?.first()?.clone();
        ["waiting", "claimed", "held"].iter().all(|what| trigger[what] == 0).then_some(())
    });
}

#[test]
fn a_message_whose_node_is_killed_goes_to_another_and_one_that_kills_three_is_given_up() {
    let nats = NatsServer::start(true);
    let (mut nodes, client) = (lattice(&nats, 3), Client::new(&nats));
    nodes[0].deploy(&shop("delivery.timeout: 60s"));
    let mut kill_who_runs = || {
        let victim = at_work(&nodes);
        let data_dir = nodes.remove(victim).kill();
        nodes.insert(victim, node(&nats, &data_dir, victim + 1, &[]));
    };
    client.publish("sleep 6000", &[]);
    kill_who_runs();
    client.until_seen("last/sleep-6000", "ORDERS attempt=2");
    client.publish("sleep 40000", &[]);
    client.until_seen("last/sleep-40000", "ORDERS attempt=1");
    for attempt in 2..=3 {
        kill_who_runs();
        client.until_seen("last/sleep-40000", &format!("ORDERS attempt={attempt}"));
    }
    kill_who_runs();
    let dead = letters(&nodes[0], "shop", 1).remove(0);
    assert_eq!((&dead["body_text"], &dead["reason"]), (&"sleep 40000".into(), &"killed-its-node".into()));
    assert_eq!((&dead["kills"], client.seen("seen/sleep-40000").as_deref()), (&3.into(), Some("3")), "{dead}");
    until_settled(&nodes[0]);
    assert_eq!(client.seen("seen/sleep-6000").as_deref(), Some("2"), "once more, on another node");
}

#[test]
fn a_message_that_kills_the_nodes_which_run_it_for_another_is_given_up_after_three_and_was_refused_by_none() {
    let nats = NatsServer::start(true);
    let (mut nodes, client) = (lattice(&nats, 3), Client::new(&nats));
    // The home pulls it, and holds no worker.
    let spread = "{type: spreadscaler, properties: {instances: 2, spread: [{name: there, requirements: {n: '2|3'}}]}}";
    let store = link("store", "wasi:keyvalue/store, atomics, batch");
    let traits = [store, link("queue", "trellis:messaging/producer"), spread.into()];
    let config = "{queue: orders, subject: orders, delivery.timeout: 60s, delivery.max_attempts: '1'}";
    nodes[0].deploy(&app(
        "shop",
        &[
            component("worker", "test_messages", "limits: {timeout: 60s}", &traits),
            provider_at("store", "nats", "bucket: seen, create: 'true'"),
            waking("queue", "embedded", &[link_from("worker", "trellis:messaging/handler", "orders", config)]),
        ],
    ));
    nodes[0].trellis(&["publish", "orders", "sleep 40000"]).ok();
    for times in 1..=3 {
        client.until_seen("seen/sleep-40000", &times.to_string());
        let victim = at_work(&nodes);
        let data_dir = nodes.remove(victim).kill();
        nodes.insert(victim, node(&nats, &data_dir, victim + 1, &[]));
    }
    let dead = letters(&nodes[0], "shop", 1).remove(0);
    assert_eq!((&dead["reason"], &dead["kills"]), (&"killed-its-node".into(), &3.into()), "{dead}");
    assert_eq!(client.seen("seen/sleep-40000").as_deref(), Some("3"), "{dead}");
}

#[test]
fn a_clock_that_jumps_ends_no_mark_and_makes_no_message_old() {
    let (nats, offset) = (NatsServer::start(true), tempfile::NamedTempFile::new().unwrap());
    let client = Client::new(&nats);
    let jump = |to: &str| std::fs::write(offset.path(), to).unwrap();
    jump("+0d");
    let environment = faked_by(offset.path());
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let node = Node::start_with(&DataDir::new(), &["--nats", &nats.url, "--bootstrap"], &environment);
    node.deploy(&shop("delivery.dedupe.key: 'header:order', delivery.dedupe.window: 1h, delivery.max_age: 30m"));
    for (n, to) in ["+5h", "-5h", "+40d", "-40d"].into_iter().enumerate() {
        let order = n.to_string();
        let headers = [("order", order.as_str())];
        client.publish(&format!("first {n}"), &headers);
        client.until_seen(&format!("seen/first-{n}"), "1");
        until_settled(&node);
        jump(to);
        // Its attempts are less than a second apart, whatever the node's clock says of its age.
        client.publish(&format!("retry-twice {n}"), &[]);
        client.publish(&format!("twin {n}"), &headers);
        client.publish(&format!("last {n}"), &[]);
        client.until_seen(&format!("last/retry-twice-{n}"), "ORDERS attempt=3");
        client.until_seen(&format!("seen/last-{n}"), "1");
        until_settled(&node);
        assert_eq!(client.seen(&format!("seen/twin-{n}")), None, "the mark of its twin stays for its hour at {to}");
    }
    assert!(letters(&node, "shop", 0).is_empty());
}

#[test]
fn what_was_published_to_a_stream_that_is_full_waits_until_there_is_room() {
    let nats = NatsServer::start(true);
    let client = Client::new(&nats);
    let full = stream::Config {
        name: "INVOICES".into(),
        subjects: vec!["invoices.*".into()],
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    let mut invoices = client.runtime.block_on(client.context.create_stream(full)).unwrap();
    let node = Node::start(&["--nats", &nats.url, "--bootstrap"]);
    node.deploy(&shop("delivery.max_attempts: '2'"));
    client.publish("publish invoices.1", &[]);
    client.publish("publish invoices.2", &[]);
    eventually("one of two cannot be sent", || {
        let told = node.trellis(&["triggers", "-o", "json"]).ok();
        (told.contains("could not be sent") && told.contains("maximum messages")).then_some(())
    });
    client.runtime.block_on(async { invoices.purge().await.unwrap() });
    until_settled(&node);
    let last = client.runtime.block_on(async { invoices.info().await.unwrap().state.last_sequence });
    assert_eq!(last, 2, "each is there once");
    for n in 1..=2 {
        let seen = client.seen(&format!("seen/publish-invoices-{n}"));
        assert_eq!(seen.as_deref(), Some("1"), "its handler is not run again");
    }
    assert!(letters(&node, "shop", 0).is_empty());
}
