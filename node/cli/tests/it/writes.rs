//! Every write of the admin API, asked of a node of each kind: the leader, another voter, a learner, and one outside the log.
//! It is seen at once where it was asked for, and then everywhere. A route that writes and is not written here fails the test.

use std::collections::BTreeSet;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, examples, hello, image, link, link_from, provider, waking};
use crate::client::{Response, send};
use crate::lattice::{follows, id, known, lattice, leads, learns, node, of};
use crate::node::{DataDir, Node};

/// A way to ask for nothing: the write's own answer tells all.
const NOTHING: &str = "";

type Kind = (&'static str, fn(&Value) -> bool);

const KINDS: [Kind; 4] = [
    ("the leader", leads),
    ("another voter", follows),
    ("a learner", learns),
    ("the edge", |one| one["role"] == "edge"),
];

fn ask(node: &Node, method: &str, path: &str, body: &[u8]) -> Response {
    let at = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    send(at, method, path, &[("content-type", "application/json")], body).unwrap()
}

/// What a node says there, be it that there is nothing.
fn read(node: &Node, path: &str) -> Value {
    serde_json::from_slice(&ask(node, "GET", path, b"").body).unwrap()
}

/// The writes through one node.
struct Writer<'a> {
    kind: &'static str,
    node: &'a Node,
    others: Vec<&'a Node>,
    /// The routes that were asked.
    asked: BTreeSet<String>,
}

impl Writer<'_> {
    /// Asks a route with what stands for each `{..}` of it. Then `path` shows what was asked for: here now, elsewhere soon.
    fn write(&mut self, route: &str, names: &[&str], body: Value, path: &str, shows: impl Fn(&Value) -> bool) {
        self.send(route, names, body.to_string().as_bytes(), path, shows);
    }

    fn send(&mut self, route: &str, names: &[&str], body: &[u8], path: &str, shows: impl Fn(&Value) -> bool) {
        self.asked.insert(route.into());
        let (method, mut to) =
            route.split_once(' ').map(|(method, to)| (method.to_uppercase(), to.to_owned())).unwrap();
        for name in names {
            let (from, upto) = (to.find('{').unwrap(), to.find('}').unwrap());
            to.replace_range(from..=upto, name);
        }
        let answer = ask(self.node, &method, &to, body);
        assert_eq!(answer.status, 200, "{}: {route}: {}", self.kind, answer.text());
        if path == NOTHING {
            return;
        }
        let here = read(self.node, path);
        assert!(shows(&here), "{} does not show at once what it took: {route}: {here:#}", self.kind);
        for other in &self.others {
            let what = format!("another node shows what {} took: {route}", self.kind);
            eventually(&what, || shows(&read(other, path)).then_some(()));
        }
    }

    /// The ids of the dead letters of app `post`, once there are so many.
    fn letters(&self, count: usize) -> Vec<String> {
        eventually(&format!("{} sees {count} dead letters", self.kind), || {
            let letters = read(self.node, "/v1/apps/post/dead-letters")["dead_letters"].take();
            let ids = letters.as_array()?.iter().map(|letter| letter["id"].as_str().unwrap().to_owned());
            Some(ids.collect::<Vec<_>>()).filter(|ids| ids.len() == count)
        })
    }
}

/// A tool that is run by hand, and a queue whose messages can become dead letters.
fn apps() -> [String; 2] {
    let config = "{queue: post, subject: post, delivery.max_faults: '1'}";
    let uses = [link("store", "wasi:keyvalue/store, atomics, batch"), link("bus", "trellis:messaging/producer")];
    let post = [
        component("worker", "test_messages", "limits: {timeout: 5s}", &uses),
        provider("store", "embedded"),
        waking("bus", "embedded", &[link_from("worker", "trellis:messaging/handler", "post", config)]),
    ];
    [app("tool", &[component("run", "test_run", "limits: {timeout: 5s}", &[])]), app("post", &post)]
}

/// Every write, in an order that ends where it began. `n` tells one round from others, `member` is a node to change and
/// `gone` one to forget, with its key.
#[rustfmt::skip]
fn everything(writer: &mut Writer<'_>, backup: &[u8], n: u64, member: &str, (gone, key): &(String, String)) {
    let nothing = || json!(null);
    let is_gone = |it: &Value| it["code"] == "not_found";
    let one = |it: &Value, what: &str| {
        let found = it.as_array().unwrap().iter().find(|one| one["id"] == member).unwrap();
        found.pointer(what).cloned().unwrap_or_default()
    };
    let (any, late, nodes, lattice) = (|_: &Value| true, "/v1/apps/late", "/v1/nodes", "/v1/lattice");

    writer.send("post /v1/restore", &[], backup, "/v1/apps", |it| it.as_array().unwrap().len() == 2);

    let code = std::fs::read(examples().join("build/hello.wasm")).unwrap();
    let digest = format!("sha256:{:x}", Sha256::digest(&code));
    let deploy = |version| json!({"manifest": hello("late", version, "127.0.0.1:0", &image("hello")), "artifacts": {"hello": digest}});
    writer.send("put /v1/artifacts/{digest}", &[&digest], &code, NOTHING, any);
    writer.write("post /v1/deploy", &[], deploy("v1"), late, |it| it["version"] == "v1");
    writer.write("post /v1/deploy", &[], deploy("v2"), late, |it| it["versions"][0] == "v2");
    writer.write("post /v1/apps/{app}/rollback", &["late"], json!({}), late, |it| it["history"][0]["state"] == "rolled-back");
    writer.write("post /v1/apps/{app}/undeploy", &["late"], nothing(), late, |it| it["state"] == "undeployed");
    writer.write("delete /v1/apps/{app}", &["late"], nothing(), late, is_gone);

    let sky = format!("blue {n}");
    writer.write("put /v1/config/{name}", &["colours"], json!({"values": {"sky": sky}}), "/v1/config/colours", |it| it["values"]["sky"] == *sky);
    writer.write("delete /v1/config/{name}", &["colours"], nothing(), "/v1/config/colours", is_gone);

    let zone = format!("z{n}");
    writer.write("put /v1/nodes/{node}/labels", &[member], json!({"labels": {"zone": zone}}), nodes, |it| one(it, "/labels/zone") == *zone);
    writer.write("put /v1/nodes/{node}/labels", &[member], json!({"labels": {"zone": null}}), nodes, |it| one(it, "/labels/zone").is_null());
    writer.write("post /v1/nodes/{node}/drain", &[member], nothing(), nodes, |it| one(it, "/state") == "drained");
    writer.write("post /v1/nodes/{node}/undrain", &[member], nothing(), nodes, |it| one(it, "/state") == "ready");
    writer.write("delete /v1/nodes/{node}", &[gone], nothing(), nodes, |it| it.as_array().unwrap().iter().all(|one| one["id"] != *gone));
    writer.write("post /v1/nodes/thaw", &[], nothing(), NOTHING, any);

    let trust = |it: &Value, says: &str| it["trust"].as_str().unwrap().contains(says);
    let heartbeat = 900 + n;
    writer.write("put /v1/trust/token", &[], json!({"token": format!("the join token of round {n}")}), lattice, |it| trust(it, "with the join token"));
    writer.write("put /v1/trust/nodes/{key}", &[key], nothing(), lattice, |it| trust(it, "a key on its list of 1"));
    writer.write("delete /v1/trust/nodes/{key}", &[key], nothing(), lattice, |it| !trust(it, "a key on its list"));
    let timed = |it: &Value, what: &str| it["timings"][what].as_u64().unwrap();
    writer.write("put /v1/timings", &[], json!({"heartbeat_ms": heartbeat}), lattice, |it| timed(it, "heartbeat_ms") == heartbeat);
    writer.write("put /v1/timings", &[], json!({"suspect_after_ms": 3_000 + heartbeat}), lattice, |it| {
        (timed(it, "heartbeat_ms"), timed(it, "suspect_after_ms")) == (heartbeat, 3_000 + heartbeat)
    });

    let ready = |name: &str| (read(writer.node, &format!("/v1/apps/{name}"))["state"] == "ready").then_some(());
    eventually("what was restored runs", || ready("tool").and(ready("post")));
    writer.write("post /v1/apps/{app}/components/{component}/invoke", &["tool", "run"], json!({"args": ["a"]}), NOTHING, any);
    let is = |state: &'static str| move |it: &Value| it["triggers"][0]["state"] == state;
    writer.write("post /v1/apps/{app}/components/{component}/pause", &["post", "worker"], nothing(), "/v1/triggers", is("paused"));
    writer.write("post /v1/apps/{app}/components/{component}/resume", &["post", "worker"], nothing(), "/v1/triggers", is("running"));

    let letters = "/v1/apps/post/dead-letters";
    let lacks = |it: &Value, id: &str| it["dead_letters"].as_array().unwrap().iter().all(|letter| letter["id"] != id);
    let message = json!({"subject": "post", "body_base64": STANDARD.encode("dead-letter")});
    writer.write("post /v1/publish", &[], message, NOTHING, any);
    let first = writer.letters(1).remove(0);
    writer.write("post /v1/apps/{app}/dead-letters/{id}/replay", &["post", &first], nothing(), letters, |it| lacks(it, &first));
    let again = writer.letters(1).remove(0);
    writer.write("delete /v1/apps/{app}/dead-letters/{id}", &["post", &again], nothing(), letters, |it| lacks(it, &again));

    for app in ["tool", "post"] {
        writer.write("delete /v1/apps/{app}", &[app], nothing(), &format!("/v1/apps/{app}"), is_gone);
    }
}

#[test]
fn every_write_is_taken_by_every_kind_of_node_and_seen_on_it_at_once_and_then_on_all() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 4);
    let outside = |n| node(&nats, &DataDir::new(), n, &["--edge"]);
    nodes.push(outside(5));
    // Nodes that leave for good, one to forget for each kind of node.
    let gone: [String; KINDS.len()] = thread::scope(|scope| {
        let leaving = [6, 7, 8, 9].map(|n| scope.spawn(move || outside(n)));
        leaving.map(|node| node.join().unwrap()).map(|node| (id(&node), node.stop()).0)
    });
    let gone = gone.map(|node| {
        eventually("it is lost", || (of(&nodes[0], &node, "state") == "lost").then_some(()));
        let key = of(&nodes[0], &node, "key").as_str().unwrap().to_owned();
        (node, key)
    });
    let member = known(&nodes[0]).into_iter().find(learns).unwrap()["id"].as_str().unwrap().to_owned();
    apps().iter().for_each(|manifest| nodes[0].deploy(manifest));
    let backup = ask(&nodes[0], "GET", "/v1/backup", b"").body;
    ["tool", "post"].into_iter().for_each(|app| drop(nodes[0].trellis(&["delete", app]).ok()));

    let document = read(&nodes[0], "/openapi.json");
    let paths = document["paths"].as_object().unwrap().iter();
    let routes = paths
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}")));
    let writes: BTreeSet<String> =
        routes.filter(|route| !route.starts_with("get ") && !route.starts_with("head ")).collect();

    for ((n, (kind, is)), gone) in (0..).zip(KINDS).zip(&gone) {
        let asked = known(&nodes[0]).into_iter().find(is).unwrap()["id"].clone();
        let (here, others): (Vec<&Node>, Vec<&Node>) = nodes.iter().partition(|node| asked == id(node).as_str());
        let mut writer = Writer { kind, node: here[0], others, asked: BTreeSet::new() };
        everything(&mut writer, &backup, n, &member, gone);
        assert_eq!(writer.asked, writes, "each route that writes is asked here");
        assert!(known(&nodes[0]).iter().any(|one| one["id"] == asked && is(one)), "{kind} is none any more");
    }
}
