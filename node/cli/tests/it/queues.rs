//! Durable queues of `trellis://embedded`, end to end: real guests, retries, dead letters, and a node that is started anew.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking};
use crate::client::get;
use crate::node::{DataDir, Node};

/// A handler behind a queue, and a window on the store that it writes to.
fn mail() -> String {
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let config = "{queue: mail, subject: 'mail.*', delivery.max_faults: '2', delivery.backoff.initial: 100ms}";
    let publishes = link("bus", "trellis:messaging/producer");
    app(
        "post",
        &[
            component("window", "test_kv", "", &[store()]),
            component("worker", "test_messages", "limits: {timeout: 5s}", &[store(), publishes]),
            http("window", ""),
            provider("store", "embedded"),
            waking("bus", "embedded", &[link_from("worker", "trellis:messaging/handler", "mail", config)]),
        ],
    )
}

#[track_caller]
fn until_stored(node: &Node, key: &str, expected: &str) {
    let at = node.at("post");
    eventually(&format!("{key} is {expected}"), || {
        get(at, &format!("/{key}")).ok().filter(|response| response.status == 200 && response.text() == expected)
    });
}

#[track_caller]
pub(crate) fn letters(node: &Node, app: &str, count: usize) -> Vec<Value> {
    eventually(&format!("{app} has {count} dead letters"), || {
        Some(node.dead_letters(app, &[])).filter(|letters| letters.len() == count)
    })
}

#[test]
fn a_queue_keeps_tries_again_gives_up_and_replays() {
    let data_dir = DataDir::new();
    let node = Node::start_in(&data_dir, &[]);
    node.deploy(&mail());
    node.trellis(&["publish", "mail", "retry-twice"]).ok();
    node.trellis(&["publish", "mail.eu", "fine"]).ok();
    until_stored(&node, "last/retry-twice", "mail attempt=3");
    until_stored(&node, "last/fine", "mail.eu attempt=1");

    node.trellis(&["publish", "mail", "trap", "--header", "by=hand"]).ok();
    node.trellis(&["publish", "mail", "dead-letter"]).ok();
    let dead = letters(&node, "post", 2);
    let trap = dead.iter().find(|letter| letter["body_text"] == "trap").unwrap();
    assert_eq!((&trap["reason"], &trap["attempts"]), (&"max-faults".into(), &2.into()));
    assert_eq!(trap["component"], "post/worker");
    assert!(trap["faults"][1].as_str().unwrap().contains("as asked"), "{trap}");
    drop(node);

    let node = Node::start_in(&data_dir, &[]);
    until_stored(&node, "last/fine", "mail.eu attempt=1");
    assert_eq!(letters(&node, "post", 2), dead, "dead letters outlive the node");
    let id = trap["id"].as_str().unwrap();
    let shown = node.trellis(&["dead-letters", "show", "post/worker", id]).ok();
    assert!(shown.contains("fault 2: ") && shown.contains("header by: hand"), "{shown}");
    assert_eq!(node.trellis(&["dead-letters", "replay", "post", id]).ok(), "1 replayed\n");
    until_stored(&node, "seen/trap", "4");
    let again = letters(&node, "post", 2);
    let ids: Vec<_> = again.iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    assert!(!ids.contains(&id), "{ids:?}");
    node.trellis(&["dead-letters", "replay", "post", id]).failed(2);
    assert_eq!(node.trellis(&["dead-letters", "drop", "post", ids[0]]).ok(), "1 dropped\n");
    for wrong in ["post/wroker", "pots/worker"] {
        node.trellis(&["pause", wrong]).failed(1);
        node.trellis(&["resume", wrong]).failed(1);
    }
    assert!(node.trellis(&["resume", "post/worker"]).ok().contains("wake post/worker"), "it was not paused");
    for wrong in [&["list", "post", "--reason", "refusd"][..], &["drop", "post"], &["drop", "post", "--all", ids[1]]] {
        node.trellis(&[&["dead-letters"], wrong].concat()).failed(2);
    }
    for nobodys in ["post/wrker", "pots"] {
        node.trellis(&["dead-letters", "list", nobodys]).failed(1);
    }
    let of = again[1]["reason"].as_str().unwrap();
    assert_eq!(node.trellis(&["dead-letters", "drop", "post", "--older-than", "1h"]).ok(), "0 dropped\n");
    assert_eq!(node.trellis(&["dead-letters", "drop", "post/worker", "--reason", of]).ok(), "1 dropped\n");
    assert_eq!(node.trellis(&["dead-letters", "list", "post"]).ok(), "no dead letters\n");
}

#[test]
fn dead_letters_are_chosen_by_their_age_and_replayed_at_a_rate() {
    let node = Node::start(&[]);
    node.deploy(&mail());
    for body in ["dead-letter 1", "dead-letter 2", "dead-letter 3"] {
        node.trellis(&["publish", "mail", body]).ok();
    }
    letters(&node, "post", 3);
    let older_than = |age: &str| node.dead_letters("post", &["--older-than", age]).len();
    eventually("they are old enough", || (older_than("1s") == 3).then_some(()));
    assert_eq!(older_than("1h"), 0);
    assert_eq!(node.trellis(&["dead-letters", "replay", "post", "--older-than", "1h"]).ok(), "0 replayed\n");
    let began = Instant::now();
    let replay = ["dead-letters", "replay", "post", "--older-than", "1s", "--rate", "1"];
    assert_eq!(node.trellis(&replay).ok(), "3 replayed\n");
    assert!(began.elapsed() >= Duration::from_secs(2), "each but the first waits for a second: {:?}", began.elapsed());
    for body in 1..=3 {
        until_stored(&node, &format!("seen/dead-letter-{body}"), "2");
    }
    letters(&node, "post", 3);
}

#[test]
fn a_handler_that_is_run_again_knows_that_it_acted_before() {
    let node = Node::start(&[]);
    node.deploy(&mail());
    node.trellis(&["publish", "mail", "charge-once"]).ok();
    until_stored(&node, "charged/charge-once", "attempt 2");
    until_stored(&node, "seen/charge-once", "2");
    let keys = get(node.at("post"), "/?keys").unwrap().ok();
    assert_eq!(keys.matches("begun/").count(), 1, "each attempt has the same id: {keys}");
    eventually("it came to its end", || get(node.at("post"), "/?keys").ok()?.text().contains("done/").then_some(()));
}

/// It takes longer than a node drains, and than a component has that nothing is said of: its link says it.
#[test]
fn a_message_that_a_node_which_ends_breaks_off_is_given_back_and_counts_for_nothing() {
    let data_dir = DataDir::new();
    let node = Node::start_in(&data_dir, &[]);
    node.deploy(
        &mail().replace("limits: {timeout: 5s}", "").replace("{queue: mail,", "{queue: mail, delivery.timeout: 90s,"),
    );
    node.trellis(&["publish", "mail", "sleep 35000"]).ok();
    until_stored(&node, "seen/sleep-35000", "1");
    assert!(node.stop().success());

    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("post");
    until_stored(&node, "seen/sleep-35000", "2");
    until_stored(&node, "last/sleep-35000", "mail attempt=1");
    eventually("it is handled", || {
        let triggers: Value = serde_json::from_str(&node.trellis(&["triggers", "-o", "json"]).ok()).ok()?;
        let outcomes = &triggers["triggers"][0]["outcomes"];
        (outcomes["ack"] == 1 && outcomes["retry"] == 0).then_some(())
    });
}

/// The same with a broker that the handler publishes to, wherever the config `broker` says it is.
fn mail_to_broker() -> String {
    let (inside, outside) = (link("bus", "trellis:messaging/producer"), "{name: out, config: [{name: broker}]}");
    let manifest = mail().replace(&inside, &link(outside, "trellis:messaging/producer"));
    manifest + &provider("out", "nats")
}

#[test]
fn what_was_published_goes_by_the_config_that_its_link_has_when_it_can_be_sent() {
    let (gone, stays) = (NatsServer::start(false), NatsServer::start(false));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async_nats::connect(&stays.url)).unwrap();
    let mut heard = runtime.block_on(client.subscribe("hello")).unwrap();
    runtime.block_on(client.flush()).unwrap();

    let node = Node::start(&[]);
    node.trellis(&["config", "put", "broker", &format!("url={}", gone.url)]).ok();
    node.deploy(&mail_to_broker());
    drop(gone);
    node.trellis(&["publish", "mail", "publish hello"]).ok();
    eventually("it is stored and cannot be sent", || {
        node.trellis(&["triggers", "-o", "json"]).ok().contains("could not be sent").then_some(())
    });
    node.trellis(&["config", "put", "broker", &format!("url={}", stays.url)]).ok();
    let sent = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), heard.next()).await });
    assert_eq!(sent.expect("it is sent").unwrap().payload, "from mail");
    until_stored(&node, "seen/publish-hello", "1");
}

/// The environment of a node whose wall clock, and that alone, is off by what this file says: it may be said anew.
pub(crate) fn faked_by(file: &std::path::Path) -> [(&'static str, String); 4] {
    let shown = Command::new("faketime").args(["-f", "+0d", "sh", "-c", "printf %s \"$LD_PRELOAD\""]).output();
    let library = shown.expect("faketime can be run: deploy/setup/setup.sh").stdout;
    [
        ("LD_PRELOAD", String::from_utf8(library).unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ]
}

#[test]
fn a_clock_that_jumps_holds_nothing_and_forgets_nothing() {
    let (data_dir, offset) = (DataDir::new(), tempfile::NamedTempFile::new().unwrap());
    let jump = |to: &str| std::fs::write(offset.path(), to).unwrap();
    let start = || {
        let environment = faked_by(offset.path());
        Node::start_with(&data_dir, &[], &environment.each_ref().map(|(name, value)| (*name, value.as_str())))
    };
    let paused = |node: &Node, body: &str| {
        node.trellis(&["pause", "post/worker"]).ok();
        node.trellis(&["publish", "mail", body]).ok();
    };
    jump("+40d");
    let node = start();
    node.deploy(&mail());
    node.trellis(&["publish", "mail", "dead-letter"]).ok();
    letters(&node, "post", 1);
    paused(&node, "fine 1");
    jump("-40d");
    node.trellis(&["resume", "post/worker"]).ok();
    until_stored(&node, "seen/fine-1", "1");
    // The next start has the earlier clock from the beginning.
    jump("+40d");
    paused(&node, "fine 2");
    drop(node);
    jump("-40d");
    let node = start();
    node.trellis(&["resume", "post/worker"]).ok();
    until_stored(&node, "seen/fine-2", "1");
    // Forward beyond the 14 days for which a dead letter is kept; the next one looks for old ones.
    jump("+80d");
    node.trellis(&["publish", "mail", "dead-letter"]).ok();
    letters(&node, "post", 2);
}

/// What mends a poisoned queue is a new version: it does not wait for what it is to mend.
#[test]
fn a_version_is_deployed_though_a_key_is_parked_or_the_trigger_paused_by_itself() {
    for (messages, told) in [(1, "keys are parked"), (40, "it paused by itself")] {
        let node = Node::start(&[]);
        let ordered = mail().replace("queue: mail,", "queue: mail, delivery.order_by: subject,");
        node.deploy(&ordered);
        for i in 0..messages {
            node.trellis(&["publish", &format!("mail.{i}"), "trap"]).ok();
        }
        let status =
            eventually(told, || Some(node.status("post")).filter(|now| now["problems"].to_string().contains(told)));
        assert_eq!(status["state"], "ready", "{status}");
        assert!(node.trellis(&["apps"]).ok().contains("troubled"));
        node.deploy(&ordered.replace("timeout: 5s", "timeout: 6s"));
        let status = node.status("post");
        assert!(status["problems"].to_string().contains(told), "{status}");
        assert_ne!(status["version"], status["history"][1]["version"]);
    }
    let node = Node::start(&[]);
    node.deploy(&mail());
    node.trellis(&["pause", "post/worker"]).ok();
    eventually("it is said that a person paused it", || {
        node.trellis(&["status", "post"]).ok().contains("paused by hand").then_some(())
    });
}
