//! Triggers as people see and steer them: the live table, pauses, dead letters from any node, and caps of the lattice.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, http, link, link_from, provider, waking};
use crate::client::get;
use crate::lattice::{held_by, id, lattice, of};
use crate::node::{DataDir, Node};
use crate::trellis::command;

/// A handler that keeps what it saw in a store of its node, woken by this source.
fn worker(instances: u32, tech: &str, config: &str) -> String {
    let store = link("store", "wasi:keyvalue/store, atomics, batch");
    let publishes = link("bus", "trellis:messaging/producer");
    let scaler = format!("{{type: spreadscaler, properties: {{instances: {instances}}}}}");
    app(
        "post",
        &[
            component("worker", "test_messages", "limits: {timeout: 10s}", &[store, publishes, scaler]),
            provider("store", "embedded"),
            waking("bus", tech, &[link_from("worker", "trellis:messaging/handler", "in", config)]),
        ],
    )
}

fn trigger(node: &Node) -> Value {
    let all: Value = serde_json::from_str(&node.trellis(&["triggers", "-o", "json"]).ok()).unwrap();
    all["triggers"].as_array().and_then(|all| all.first()).cloned().unwrap_or_default()
}

#[track_caller]
fn until(node: &Node, what: &str, so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || Some(trigger(node)).filter(|trigger| so(trigger)))
}

#[track_caller]
fn letters(node: &Node, more: &[&str], count: usize) -> Vec<Value> {
    eventually(&format!("there are {count} dead letters"), || {
        Some(node.dead_letters("post", more)).filter(|letters| letters.len() == count)
    })
}

fn two_nodes(nats: &NatsServer) -> [Node; 2] {
    let start = |more: &[&str]| Node::start_in(&DataDir::new(), &[&["--nats", nats.url.as_str()], more].concat());
    let nodes = [start(&["--bootstrap", "--label", "n=1"]), start(&["--label", "n=2"])];
    eventually("both are known", || {
        let known: Value = serde_json::from_str(&nodes[0].trellis(&["nodes", "-o", "json"]).ok()).ok()?;
        (known.as_array()?.iter().filter(|one| one["state"] == "ready").count() == 2).then_some(())
    });
    nodes
}

#[test]
fn a_person_pauses_a_component_and_resumes_it() {
    let node = Node::start(&[]);
    node.deploy(&worker(4, "embedded", "{queue: mail}"));
    node.trellis(&["publish", "mail", "fine 1"]).ok();
    until(&node, "one is handled", |trigger| trigger["outcomes"]["ack"] == 1);
    assert!(node.trellis(&["triggers", "post"]).ok().contains("post/worker"));
    assert!(node.trellis(&["triggers", "nobody"]).failed(1).contains("nobody"));
    assert_eq!(
        node.trellis(&["pause", "post/worker"]).ok(),
        "post/worker is paused: queues and timers do not wake it until `trellis resume post/worker`\n"
    );
    node.trellis(&["pause", "post/nobody"]).failed(1);
    for body in ["fine 2", "fine 3"] {
        node.trellis(&["publish", "mail", body]).ok();
    }
    let paused = until(&node, "two wait", |trigger| trigger["waiting"] == 2);
    assert_eq!(
        (&paused["state"], &paused["outcomes"]["ack"], &paused["system"]),
        (&"paused".into(), &1.into(), &"embedded".into())
    );
    assert!(paused["oldest_age_ms"].is_u64(), "{paused}");
    let page = metrics(&node);
    assert_eq!(figure(&page, "trellis_trigger_waiting", ""), Some(2), "{page}");
    assert!(figure(&page, "trellis_trigger_oldest_age_milliseconds", "") > Some(0), "{page}");

    // It outlives the node.
    let data_dir = node.kill();
    let node = Node::start_in(&data_dir, &[]);
    let paused = until(&node, "two still wait", |trigger| trigger["waiting"] == 2);
    assert_eq!(paused["state"], "paused");
    assert_eq!(node.trellis(&["resume", "post/worker"]).ok(), "queues and timers wake post/worker again\n");
    let done = until(&node, "both are handled", |trigger| trigger["outcomes"]["ack"] == 2);
    assert_eq!(done["state"], "running");
    let table = node.trellis(&["triggers"]).ok();
    assert!(table.contains("COMPONENT") && table.contains("post/worker"), "{table}");
    let metrics = metrics(&node);
    for (name, label, is) in [
        ("messaging_client_consumed_messages_total", "", 2),
        ("trellis_trigger_waiting", "", 0),
        ("trellis_trigger_claimed", "", 0),
        ("trellis_trigger_dead_letters", "", 0),
        ("trellis_trigger_in_flight", "", 0),
        ("trellis_trigger_paused", "", 0),
        ("trellis_trigger_outcomes_total", "outcome=\"ack\"", 2),
        ("trellis_trigger_outcomes_total", "outcome=\"retry\"", 0),
        ("trellis_trigger_outcomes_total", "outcome=\"dead-letter\"", 0),
        ("trellis_trigger_outcomes_total", "outcome=\"drop\"", 0),
        ("trellis_trigger_outcomes_total", "outcome=\"give-back\"", 0),
        ("messaging_process_duration_seconds_count", "", 2),
        ("trellis_trigger_in_queue_seconds_count", "", 2),
    ] {
        assert_eq!(figure(&metrics, name, label), Some(is), "{name} {label} in:\n{metrics}");
    }
    assert!(figure(&metrics, "trellis_trigger_permit_wait_seconds_count", "") >= Some(2), "{metrics}");
}

#[test]
fn the_table_is_followed_as_it_changes() {
    let node = Node::start(&[]);
    node.deploy(&worker(4, "embedded", "{queue: mail}"));
    let mut following = command();
    following.args(["triggers", "-f", "--admin", &node.admin]).stdout(Stdio::piped());
    let mut following = following.spawn().unwrap();
    let lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
    let rows = |acks: &str| {
        eventually(&format!("a table says {acks} acks"), || {
            let line = told.recv_timeout(Duration::from_secs(1)).ok()?;
            let cells: Vec<_> = line.split_whitespace().collect();
            let is = |cell: usize, text: &str| cells.get(cell) == Some(&text);
            (is(0, "post/worker") && is(2, "running") && is(6, acks)).then_some(())
        });
    };
    rows("0");
    node.trellis(&["publish", "mail", "fine 1"]).ok();
    rows("1");
    node.trellis(&["publish", "mail", "fine 2"]).ok();
    rows("2");
    assert_eq!(following.try_wait().unwrap(), None, "it goes on until it is ended");
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn a_version_that_is_rolled_back_leaves_no_dead_letter() {
    let node = Node::start(&[]);
    let soon = "{queue: mail, delivery.max_faults: '2', delivery.backoff.initial: 50ms, delivery.backoff.max: 200ms}";
    let good = worker(4, "embedded", soon);
    node.deploy(&good);
    // The same code, which cannot have the memory that it asks for and traps at each message.
    let bad = good.replace("{timeout: 10s}", "{memory: 64KiB}");
    let mut published = 0;
    std::thread::scope(|scope| {
        let deploy = scope.spawn(|| node.try_deploy(&bad).failed(1));
        while !deploy.is_finished() {
            node.trellis(&["publish", "mail", &format!("fine {published}")]).ok();
            published += 1;
        }
        let why = deploy.join().unwrap();
        assert!(why.contains("was rolled back") && why.contains("events faulted"), "{why}");
    });
    let done = until(&node, "all are handled", |trigger| trigger["outcomes"]["ack"] == published);
    assert!(done["outcomes"]["retry"].as_u64() >= Some(5), "{done}");
    assert_eq!((&done["dead_letters"], &done["outcomes"]["dead-letter"]), (&0.into(), &0.into()), "{done}");
}

fn metrics(node: &Node) -> String {
    get(node.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/metrics").unwrap().ok()
}

/// The value of the only line of a page of metrics with this name and label.
fn figure(page: &str, name: &str, label: &str) -> Option<u64> {
    let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && line.contains(label);
    page.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_trigger_that_pauses_by_itself_is_told_as_an_event_and_goes_on_when_a_person_says_so() {
    let node = Node::start(&[]);
    node.deploy(&worker(4, "embedded", "{queue: mail, delivery.max_attempts: '1'}"));
    // What goes well takes longer, so that some of it is under way when it pauses.
    for n in 0..60 {
        let body = if n % 4 == 3 { format!("sleep {}", 1_000 + n) } else { format!("retry {n}") };
        node.trellis(&["publish", "mail", &body]).ok();
    }
    let told = |kind: &str| {
        let lines = node.trellis(&["events", "post", "-o", "json"]).ok();
        let events = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["type"] == kind).collect::<Vec<_>>()
    };
    let paused = eventually("it pauses", || told("trellis.trigger.paused").pop());
    let data = &paused["data"];
    assert_eq!((&data["component"], &data["by"]), (&"post/worker".into(), &"itself".into()), "{paused}");
    assert!(data["link"].as_str().unwrap().contains("post/bus -> post/worker"), "{paused}");
    let still = until(&node, "what was under way has ended", |trigger| trigger["in_flight"] == 0);
    assert_eq!(still["state"], "auto-paused", "{still}");
    assert!(still["dead_letters"].as_u64().unwrap() <= 26 + 4, "nothing more was given up: {still}");
    assert!(told("trellis.trigger.resumed").is_empty());
    node.trellis(&["resume", "post/worker"]).ok();
    eventually("it goes on", || told("trellis.trigger.resumed").pop());
}

#[test]
fn any_node_lists_replays_and_drops_the_dead_letters_of_a_stream() {
    let nats = NatsServer::start(true);
    let nodes = two_nodes(&nats);
    let config = "{stream: ORDERS, subject: 'orders.>', create: 'true', delivery.max_faults: '2', \
                  delivery.backoff.initial: 100ms}";
    // One holder: the other node has neither the component nor the link.
    nodes[0].deploy(&worker(1, "nats", config));
    for (subject, body) in [("orders.a", "trap"), ("orders.b", "dead-letter")] {
        nodes[1].trellis(&["publish", subject, body, "--header", "by=hand"]).ok();
    }
    for node in &nodes {
        let all = letters(node, &[], 2);
        let trap = all.iter().find(|letter| letter["reason"] == "max-faults").unwrap();
        assert_eq!(
            (&trap["subject"], &trap["body_text"], &trap["attempts"]),
            (&"orders.a".into(), &"trap".into(), &2.into())
        );
        assert_eq!(trap["faults"].as_array().unwrap().len(), 2, "{trap}");
        assert!(
            trap["digest"].as_str().unwrap().starts_with("sha256:") && trap["generation"].as_u64() > Some(0),
            "{trap}"
        );
        letters(node, &["--reason", "refused"], 1);
        letters(node, &["--older-than", "1h"], 0);
    }
    let first = letters(&nodes[1], &["--reason", "max-faults"], 1)[0]["id"].as_str().unwrap().to_owned();
    let shown = nodes[1].trellis(&["dead-letters", "show", "post", &first]).ok();
    assert!(shown.contains("fault 2: ") && shown.contains("header by: hand"), "{shown}");
    assert_eq!(
        nodes[1].trellis(&["dead-letters", "replay", "post", "--reason", "max-faults", "--rate", "5"]).ok(),
        "1 replayed\n"
    );
    let again = eventually("it went through once more", || {
        let now = letters(&nodes[0], &["--reason", "max-faults"], 1)[0]["id"].as_str()?.to_owned();
        (now != first).then_some(now)
    });
    nodes[1].trellis(&["dead-letters", "replay", "post", &first]).failed(2);
    assert_eq!(nodes[0].trellis(&["dead-letters", "drop", "post", &again]).ok(), "1 dropped\n");
    letters(&nodes[1], &[], 1);
}

#[test]
fn what_waits_for_another_attempt_is_shown_as_waiting() {
    let nats = NatsServer::start(true);
    let nodes = two_nodes(&nats);
    let config = "{stream: ORDERS, subject: 'orders.>', create: 'true', delivery.backoff.initial: 5m}";
    nodes[0].deploy(&worker(8, "nats", config));
    for body in ["retry 1", "retry 2", "retry 3", "sleep 8000"] {
        nodes[0].trellis(&["publish", "orders.x", body]).ok();
    }
    let stands = |waiting: u64, claimed: u64| {
        until(&nodes[1], &format!("{waiting} wait and {claimed} are at work"), |trigger| {
            trigger["waiting"] == waiting && trigger["claimed"] == claimed
        })
    };
    stands(3, 1);
    let done = stands(3, 0);
    assert_eq!((&done["outcomes"]["retry"], &done["outcomes"]["ack"]), (&3.into(), &1.into()), "{done}");
    let metrics = get(nodes[0].admin.strip_prefix("http://").unwrap().parse().unwrap(), "/metrics").unwrap().ok();
    let waiting = metrics.lines().find(|line| line.starts_with("trellis_trigger_waiting{")).unwrap();
    assert!(waiting.ends_with(" 3"), "{waiting}");
}

#[test]
fn dead_letters_of_what_is_not_deployed_are_not_said_to_be_none() {
    let node = Node::start(&[]);
    node.deploy(&worker(4, "embedded", "{queue: mail}"));
    node.trellis(&["publish", "mail", "dead-letter"]).ok();
    letters(&node, &[], 1);
    let why = node.trellis(&["dead-letters", "drop", "post"]).failed(2);
    assert!(why.contains("--all") && why.contains("--reason"), "{why}");
    let not_found = node.trellis(&["dead-letters", "list", "nobody"]).failed(1);
    assert!(not_found.contains("there is no app `nobody`"), "{not_found}");

    node.trellis(&["undeploy", "post"]).ok();
    for action in [&["list"][..], &["replay"], &["drop", "--all"]] {
        let ran = node.trellis(&[&["dead-letters", action[0], "post"], &action[1..]].concat());
        assert!(ran.stdout.is_empty(), "{}", ran.stdout);
        let why = ran.failed(1);
        assert!(
            why.contains("`post` is not deployed: its dead letters are with its broker; deploy it to see them"),
            "{why}"
        );
    }

    // What runs has no queue any more.
    let store = || link("store", "wasi:keyvalue/store, atomics");
    let without = app(
        "post",
        &[component("worker", "test_kv", "", &[store()]), provider("store", "embedded"), http("worker", "")],
    );
    node.deploy(&without);
    let why = node.trellis(&["dead-letters", "list", "post/worker"]).failed(1);
    assert!(why.contains("no queue wakes it in version "), "{why}");

    node.deploy(&worker(4, "embedded", "{queue: mail}"));
    letters(&node, &[], 1);
    assert_eq!(node.trellis(&["dead-letters", "drop", "post", "--all"]).ok(), "1 dropped\n");
    assert_eq!(node.trellis(&["dead-letters", "list", "post"]).ok(), "no dead letters\n");
}

#[test]
fn dead_letters_that_only_lost_nodes_could_read_are_not_said_to_be_none() {
    let nats = NatsServer::start(true);
    let nodes = lattice(&nats, 3);
    let there = "instances: 1, spread: [{name: there, requirements: {n: '3'}}]";
    let config = "{stream: ORDERS, subject: 'orders.>', create: 'true'}";
    nodes[0].deploy(&worker(1, "nats", config).replace("instances: 1", there));
    nodes[0].trellis(&["publish", "orders.x", "dead-letter"]).ok();
    letters(&nodes[0], &[], 1);
    let lost = id(&nodes[2]);
    nodes[2].signal("STOP");
    let list = || nodes[0].trellis(&["dead-letters", "list", "post"]);
    let why = eventually("it is lost", || {
        let listed = list();
        assert!(!listed.stdout.contains("no dead letters"), "{listed:?}");
        Some(listed.stderr).filter(|why| why.contains("; lost: "))
    });
    assert!(why.contains("are not known: no node has the link; lost: ") && why.contains(&lost), "{why}");
    list().failed(1);
    nodes[0].trellis(&["dead-letters", "replay", "post"]).failed(1);
    nodes[2].signal("CONT");
    eventually("the node is back", || (list().code == 0).then_some(()));
    letters(&nodes[0], &[], 1);
}

/// Queues of each node's own on all of three, and a stream that the second and the third pull from.
fn own_queues_and_a_stream() -> String {
    let traits = |nodes: &str| {
        let there = format!("{{instances: 9, spread: [{{name: there, requirements: {{n: '{nodes}'}}}}]}}");
        let store = link("store", "wasi:keyvalue/store, atomics, batch");
        [store, link("bus", "trellis:messaging/producer"), format!("{{type: spreadscaler, properties: {there}}}")]
    };
    let wakes = |component: &str, config: &str| [link_from(component, "trellis:messaging/handler", component, config)];
    let everywhere = "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n";
    app(
        "post",
        &[
            component("mailer", "test_messages", "", &traits("1")),
            component("sorter", "test_messages", "", &traits("2|3")),
            provider("store", "embedded"),
            waking("bus", "embedded", &wakes("mailer", "{queue: mail}")).replacen("traits:\n", everywhere, 1),
            waking("stream", "nats", &wakes("sorter", "{stream: ORDERS, subject: 'orders.>', create: 'true'}")),
        ],
    )
}

#[test]
fn a_node_that_is_silent_hides_no_dead_letters_of_others() {
    let nats = NatsServer::start(true);
    let nodes = lattice(&nats, 3);
    nodes[0].deploy(&own_queues_and_a_stream());
    eventually("all pull", || {
        let all: Value = serde_json::from_str(&nodes[0].trellis(&["triggers", "-o", "json"]).ok()).ok()?;
        let pulling: u64 = all["triggers"].as_array()?.iter().filter_map(|trigger| trigger["nodes"].as_u64()).sum();
        (pulling == 3 + 2).then_some(())
    });
    for (subject, via) in [("mail", "nats and embedded, to 1 subscription"), ("orders.a", "nats")] {
        let said = nodes[2].trellis(&["publish", subject, "dead-letter"]).ok();
        assert_eq!(said, format!("published to {subject} via {via}\n"), "a queue of the asked node's own");
    }
    let all = letters(&nodes[0], &[], 2);
    let silent = id(&nodes[1]);
    let list = |more: &[&str]| nodes[0].trellis(&[&["dead-letters", "list", "post"], more].concat());
    let lists_what_there_is = || {
        let listed = list(&["-o", "json"]);
        let said: Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(said["dead_letters"], Value::from(all.clone()));
        let problems = said["problems"].as_array().unwrap();
        assert!(
            problems.len() == 1 && problems[0].as_str().unwrap().contains(&silent),
            "the stream is whole: {said:#}"
        );
        let why = listed.failed(1);
        assert!(why.contains("there may be more:\ndead letters of ") && why.contains(&silent), "{why}");
    };
    nodes[1].signal("STOP");
    lists_what_there_is();
    eventually("it is lost", || (of(&nodes[0], &silent, "state") == "lost").then_some(()));
    lists_what_there_is();
    assert!(list(&["--reason", "max-age"]).stdout.is_empty(), "it does not say that there are none");
    let there = format!("mail-1@{silent}");
    for action in ["show", "replay", "drop"] {
        let why = nodes[0].trellis(&["dead-letters", action, "post", &there]).failed(1);
        assert!(why.contains(&format!("no dead letter {there} of post was found:\n")), "{why}");
    }
    let dropped = nodes[0].trellis(&["dead-letters", "drop", "post", "--all"]);
    assert_eq!(dropped.stdout, "2 dropped\n");
    assert!(dropped.failed(1).contains("not all may have been found:\n"));
    nodes[1].signal("CONT");
    eventually("the list is whole again", || (list(&[]).code == 0).then_some(()));
    assert_eq!(list(&[]).ok(), "no dead letters\n");
}

#[test]
fn a_cap_is_the_lattices_and_is_reached() {
    const CAP: u64 = 3;
    let nats = NatsServer::start(true);
    let nodes = two_nodes(&nats);
    let config = format!("{{stream: ORDERS, subject: 'orders.>', create: 'true', delivery.max_in_flight: '{CAP}'}}");
    nodes[0].deploy(&worker(20, "nats", &config));
    for i in 0..60 {
        nodes[0].trellis(&["publish", "orders.x", &format!("sleep {}", 300 + i)]).ok();
    }
    let began = Instant::now();
    let mut most = 0;
    while trigger(&nodes[1])["outcomes"]["ack"] != 60 {
        let in_flight = trigger(&nodes[0])["in_flight"].as_u64().unwrap_or(0);
        assert!(in_flight <= CAP, "{in_flight} are in handlers");
        most = most.max(in_flight);
        assert!(began.elapsed() < Duration::from_secs(120), "{}", trigger(&nodes[0]));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(most, CAP, "all of it is used, whichever node pulls");
}

/// A service that takes its time, and counts how many it has at once.
struct Slow {
    at: SocketAddr,
    most: Arc<AtomicUsize>,
}

impl Slow {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, now, most) =
            (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counted = most.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (now, most) = (now.clone(), counted.clone());
                std::thread::spawn(move || {
                    let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                    lines.take_while(|line| !line.is_empty()).for_each(drop);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(300));
                    // Before the answer: whoever hears it may send the next at once.
                    now.fetch_sub(1, Ordering::SeqCst);
                    (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                });
            }
        });
        Self { at, most }
    }

    /// The most that it had at once since this was asked before.
    fn most(&self) -> usize {
        self.most.swap(0, Ordering::SeqCst)
    }
}

#[test]
fn a_cap_of_calls_is_the_lattices_and_one_node_uses_what_the_others_lend() {
    const CAP: usize = 5;
    let (service, nats) = (Slow::start(), NatsServer::start(true));
    let nodes = lattice(&nats, 3);
    let few = format!("{{allowed_hosts: '{}', max_in_flight: '{CAP}'}}", service.at);
    let web = link(&format!("{{name: web, config: [{{name: few, properties: {few}}}]}}"), "wasi:http/outgoing-handler");
    nodes[0].deploy(&(held_by("calls", "test_misbehave", "1|2|3", &[web]) + &provider("web", "http")));
    let call = format!("/out?url=http://{}/", service.at);
    let (call, service) = (call.as_str(), &service);
    // Four times what may be under way, through these nodes.
    let load = |nodes: &[Node]| {
        std::thread::scope(|scope| {
            for at in nodes.iter().map(|node| node.at("calls")).cycle().take(4 * CAP) {
                scope.spawn(move || get(at, call));
            }
        });
        let most = service.most();
        assert!((1..=CAP).contains(&most), "{most} were under way");
        most
    };
    eventually("the nodes use all of it", || (load(&nodes) == CAP).then_some(()));
    eventually("one node uses what the others lend", || (load(&nodes[..1]) >= CAP - 1).then_some(()));
}

/// A handler that both nodes hold, which counts in a bucket of the server, and a window on that at the first node.
fn counting(config: &str) -> String {
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let here = "{type: spreadscaler, properties: {instances: 5, spread: [{name: here, requirements: {n: '1'}}]}}";
    let both = "{type: spreadscaler, properties: {instances: 20}}";
    let publishes = link("bus", "trellis:messaging/producer");
    let buckets = provider("store", "nats").replace(
        "{image: 'trellis://nats'}",
        "{image: 'trellis://nats', config: [{name: kv, properties: {bucket: SEEN, create: 'true'}}]}",
    );
    app(
        "post",
        &[
            component("window", "test_kv", "", &[store(), here.into()]),
            component("worker", "test_messages", "limits: {timeout: 10s}", &[store(), publishes, both.into()]),
            http("window", ""),
            buckets,
            waking("bus", "nats", &[link_from("worker", "trellis:messaging/handler", "in", config)]),
        ],
    )
}

#[test]
fn nothing_is_lost_when_a_node_is_killed_at_work() {
    const MESSAGES: usize = 80;
    let nats = NatsServer::start(true);
    let [first, second] = two_nodes(&nats);
    first.deploy(&counting("{stream: ORDERS, subject: 'orders.>', create: 'true'}"));
    for i in 0..MESSAGES {
        first.trellis(&["publish", "orders.x", &format!("sleep {}", 400 + i)]).ok();
        if i == MESSAGES / 2 {
            until(&first, "both are at work", |trigger| trigger["nodes"] == 2 && trigger["outcomes"]["ack"] != 0);
        }
    }
    let killed = second.kill();
    until(&first, "nothing is left", |trigger| trigger["waiting"] == 0 && trigger["claimed"] == 0);
    let at = first.at("post");
    let counts: Vec<u64> =
        (0..MESSAGES).map(|i| get(at, &format!("/seen/sleep-{}", 400 + i)).unwrap().ok().parse().unwrap()).collect();
    let again = counts.iter().filter(|count| **count > 1).count();
    assert!(counts.iter().all(|count| *count <= 2) && again <= 10, "only what was at work at the kill: {counts:?}");
    assert_eq!(first.trellis(&["dead-letters", "list", "post"]).ok(), "no dead letters\n");
    drop(killed);
}

#[test]
fn a_drain_and_a_new_version_break_nothing_off_and_change_no_order() {
    const MESSAGES: usize = 80;
    let nats = NatsServer::start(true);
    let [first, second] = two_nodes(&nats);
    let store = link("store", "wasi:keyvalue/store, atomics, batch");
    let both = "{type: spreadscaler, properties: {instances: 4}}".to_owned();
    let kept = "{stream: KEPT, subject: 'kept.>', create: 'true', delivery.order_by: subject}";
    let manifest = counting("{stream: ORDERS, subject: 'orders.>', create: 'true'}")
        + &component(
            "keeper",
            "test_messages",
            "limits: {timeout: 10s}",
            &[store, link("bus", "trellis:messaging/producer"), both],
        )
        + &waking("order", "nats", &[link_from("keeper", "trellis:messaging/handler", "kept", kept)]);
    first.deploy(&manifest);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let context = async_nats::jetstream::new(async_nats::connect(&nats.url).await.unwrap());
        for i in 0..MESSAGES {
            for (subject, body) in
                [("orders.x", format!("sleep {}", 1_000 + i)), ("kept.a", format!("turn {}", 100 + i))]
            {
                context.publish(subject, body.into()).await.unwrap().await.unwrap();
            }
        }
    });
    let at = first.at("post");
    let told = |key: String| get(at, &format!("/{key}")).ok().filter(|told| told.status == 200).map(|told| told.text());
    let in_turn = |i: usize| told(format!("turn/turn-{}", 100 + i));
    eventually("some are handled", || in_turn(2));
    first.trellis(&["drain", &id(&second)]).ok();
    first.trellis(&["undrain", &id(&second)]).ok();
    assert_eq!(in_turn(MESSAGES - 1), None, "most are still to come");
    first.deploy(&manifest.replace("{timeout: 10s}", "{timeout: 11s}"));
    for i in 0..MESSAGES {
        assert_eq!(eventually(&format!("turn {i} comes"), || in_turn(i)), (i + 1).to_string(), "in their order");
    }
    for body in (0..MESSAGES).flat_map(|i| [format!("sleep-{}", 1_000 + i), format!("turn-{}", 100 + i)]) {
        let last = eventually(&format!("{body} is handled"), || told(format!("last/{body}")));
        assert!(last.ends_with("attempt=1"), "{body}: {last}");
        assert_eq!(told(format!("seen/{body}")).as_deref(), Some("1"), "{body}");
    }
    assert!(letters(&first, &[], 0).is_empty());
}
