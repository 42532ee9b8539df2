//! Strangers: who has the whole NATS account and is no member. They listen to everything, join, ask, announce and repeat,
//! and nothing comes of it while the lattice works on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use serde_json::Value;
use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, BusError, Connection, Nats, Options, Sealed, SealedError};
use trellis_trust::{Book, Distrust, NodeSecret, Refused, Seal, Start};
use trellis_wire::subject::{self, RaftRpc};
use trellis_wire::{LatticeId, LatticeName, LatticeSecret, NodeId, NodeKey, frame};

use crate::apps::{app, component, eventually, http, link, provider};
use crate::client::{get, send};
use crate::node::{DataDir, Node};
use crate::trellis::command;

const TOKEN: &str = "4f1c7a50f2be9d66b1f3";
/// Stands in values, bodies and keys: whoever reads it on the bus reads what it should not.
const MARKER: &str = "the-eagle-has-landed";
/// How long an answer is waited for that must not come.
const IN_VAIN: Duration = Duration::from_millis(700);

fn node(nats: &NatsServer, n: usize, token: Option<&str>, more: &[&str]) -> Node {
    let (data_dir, label) = (DataDir::new(), format!("n={n}"));
    let token: Vec<_> = token.map(|token| ("TRELLIS_JOIN_TOKEN", token)).into_iter().collect();
    Node::start_with(&data_dir, &[&["--nats", &nats.url, "--label", &label], more].concat(), &token)
}

/// What a node says that cannot join.
fn refused(nats: &NatsServer, data_dir: &DataDir, token: Option<&str>) -> String {
    let mut up = command();
    up.args(["up", "--nats", &nats.url, "--admin", "127.0.0.1:0", "--data-dir"]).arg(data_dir.path());
    let ended = up.envs(token.map(|token| ("TRELLIS_JOIN_TOKEN", token))).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    String::from_utf8(ended.stderr).unwrap()
}

fn known(asked: &Node) -> Vec<Value> {
    serde_json::from_str(&asked.trellis(&["nodes", "-o", "json"]).ok()).unwrap()
}

fn field<T: std::str::FromStr<Err: std::fmt::Debug>>(node: &Node, what: &str) -> T {
    node.banner.iter().find_map(|line| line.strip_prefix(what)).unwrap().trim().parse().unwrap()
}

fn state(asked: &Node, id: NodeId) -> String {
    let of = |one: &Value| (one["id"] == id.to_string().as_str()).then(|| one["state"].as_str().unwrap().to_owned());
    known(asked).iter().find_map(of).unwrap_or_default()
}

fn lattice_name() -> LatticeName {
    "default".parse().unwrap()
}

/// Everything that is public of a lattice.
struct Public(LatticeId, BTreeMap<NodeId, NodeKey>);

impl Public {
    fn of(asked: &Node) -> Self {
        let admin = asked.admin.strip_prefix("http://").unwrap().parse().unwrap();
        let lattice: Value = serde_json::from_str(&get(admin, "/v1/lattice").unwrap().ok()).unwrap();
        let nodes = known(asked)
            .into_iter()
            .map(|one| (one["id"].as_str().unwrap().parse().unwrap(), one["key"].as_str().unwrap().parse().unwrap()));
        Self(lattice["id"].as_str().unwrap().parse().unwrap(), nodes.collect())
    }
}

impl Book for Public {
    fn lattice(&self) -> Option<LatticeId> {
        Some(self.0)
    }

    fn key(&self, node: NodeId) -> Option<NodeKey> {
        self.1.get(&node).copied()
    }

    fn secret(&self) -> Option<LatticeSecret> {
        Some(LatticeSecret::new([0; 32]))
    }

    fn incarnation(&self) -> u32 {
        0
    }
}

/// A client of the whole NATS account that takes an id, has a key of its own, and knows what is public.
async fn stranger(nats: &NatsServer, id: NodeId, public: Public) -> Sealed {
    let bus = Bus::Nats(Nats::connect(&Options::urls([&nats.url])).await.unwrap());
    // It connects beside what follows.
    bus.connection().wait_for(Connection::is_connected).await.unwrap();
    let start = Start { number: u64::MAX / 2, salt: 1 };
    let seal = Seal::new(id, NodeSecret::new([0xee; 32]), start);
    seal.read(Arc::new(public));
    Sealed::new(bus, lattice_name(), Arc::new(seal))
}

/// Everything that travels on the account while `what` is done.
async fn captured(nats: &NatsServer, what: impl FnOnce() + Send + 'static) -> Vec<async_nats::Message> {
    let client = async_nats::connect(&nats.url).await.unwrap();
    let mut all = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    let mut doing = tokio::task::spawn_blocking(what);
    let mut heard = Vec::new();
    loop {
        tokio::select! {
            message = all.next() => heard.push(message.unwrap()),
            done = &mut doing => break done.unwrap(),
        }
    }
    heard
}

/// The second part of a subject of the lattice: what kind of word travels there.
fn kind(message: &async_nats::Message) -> Option<String> {
    let mut parts = message.subject.strip_prefix("trellis.v1.default.")?.split('.');
    Some(match (parts.next()?, parts.nth(1)) {
        ("raft", Some(rpc)) => format!("raft.{rpc}"),
        (kind, _) => kind.to_owned(),
    })
}

/// A component on node 1 that node 2 reaches, with a store at node 3; and what makes each kind of word travel.
fn manifest() -> String {
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let here = "{type: spreadscaler, properties: {instances: 5, spread: [{name: here, requirements: {n: '1'}}]}}";
    let home = "{type: spreadscaler, properties: {instances: 1, spread: [{name: home, requirements: {n: '3'}}]}}";
    let everywhere = http("kv", "max_body_bytes: '50000000'").replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    let store = format!("{}      traits:\n        - {home}\n", provider("store", "embedded"));
    app("kv", &[component("kv", "test_kv", "", &[here.into(), uses]), everywhere]) + &store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_the_whole_bus_gets_nowhere() {
    let nats = NatsServer::start(false);
    let first = node(&nats, 1, Some(TOKEN), &["--bootstrap"]);
    assert!(
        first.banner.iter().any(|line| line == "trust    closed: a node joins with the join token"),
        "{:?}",
        first.banner
    );
    let nodes = Arc::new(std::sync::Mutex::new(vec![first]));

    // Two join, an app is deployed and asked, config is put: each kind of word travels while somebody listens.
    let (url, all) = (nats.url.clone(), nodes.clone());
    let heard = captured(&nats, move || {
        let mut nodes = all.lock().unwrap();
        for n in [2, 3] {
            let label = format!("n={n}");
            let args = ["--nats", &url, "--label", &label];
            nodes.push(Node::start_with(&DataDir::new(), &args, &[("TRELLIS_JOIN_TOKEN", TOKEN)]));
        }
        eventually("all vote", || {
            (known(&nodes[0]).iter().filter(|one| one["role"] == "voter").count() == 3).then_some(())
        });
        nodes[1].deploy(&manifest());
        nodes[2].trellis(&["config", "put", "secret", &format!("word={MARKER}")]).ok();
        let body = MARKER.repeat(30_000);
        let put = send(nodes[1].at("kv"), "PUT", "/k", &[], body.as_bytes()).unwrap();
        assert_eq!(put.status, 204, "{}", put.text());
        assert!(get(nodes[1].at("kv"), "/k").unwrap().ok() == body);
    })
    .await;
    let nodes = std::mem::take(&mut *nodes.lock().unwrap());
    let kinds: BTreeSet<String> = heard.iter().filter_map(kind).collect();
    for wanted in ["join", "greet", "hb", "raft.append", "raft.forward", "event", "call", "stream", "artifact"] {
        assert!(kinds.contains(wanted), "{wanted} did not travel: {kinds:?}");
    }
    let read = |what: &str| {
        heard.iter().filter(|message| contains(&message.payload, what.as_bytes())).filter_map(kind).collect::<Vec<_>>()
    };
    for what in [MARKER, TOKEN, "\0asm", "max_body_bytes", "test_kv"] {
        assert_eq!(read(what), [""; 0], "{what:?} was read on the way");
    }

    joins_without_the_token(&nats, &nodes[0]);
    asks_and_announces(&nats, &nodes).await;
    repeats(&nats, &nodes, &heard).await;

    // The lattice works on, and a dead node stays dead whatever is repeated.
    nodes[1].trellis(&["config", "put", "after", "all=well"]).ok();
    assert_eq!(nodes[0].trellis(&["config", "list"]).ok(), "after\nkv-listen\nsecret\n");
    for node in &nodes[..2] {
        assert_eq!(get(node.at("kv"), "/k").unwrap().status, 200);
    }
    let mut nodes = nodes;
    let dead: NodeId = field(&nodes[2], "node ");
    nodes.remove(2).kill();
    let again = tokio::spawn({
        let (client, signs) = (async_nats::connect(&nats.url).await.unwrap(), signs(&heard, dead));
        async move {
            loop {
                for (subject, payload) in &signs {
                    client.publish(subject.clone(), payload.clone()).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    tokio::task::spawn_blocking(move || {
        eventually("the dead node is lost", || (state(&nodes[0], dead) == "lost").then_some(()));
        assert_eq!(nodes[1].trellis(&["config", "put", "last", "all=well"]).ok(), "last written\n");
    })
    .await
    .unwrap();
    again.abort();
}

fn contains(payload: &[u8], what: &[u8]) -> bool {
    payload.windows(what.len()).any(|part| part == what)
}

fn joins_without_the_token(nats: &NatsServer, first: &Node) {
    let data_dir = DataDir::new();
    let said = refused(nats, &data_dir, None);
    assert!(
        said.contains("does not admit this node: joining needs its join token: start the node with --join-token"),
        "{said}"
    );
    let said = refused(nats, &data_dir, Some("another token altogether"));
    assert!(said.contains("does not prove that it knows this node's --join-token"), "{said}");
    assert_eq!(known(first).len(), 3);
    // The same node with the token is let in.
    let late = Node::start_with(&data_dir, &["--nats", &nats.url], &[("TRELLIS_JOIN_TOKEN", TOKEN)]);
    let id: NodeId = field(&late, "node ");
    late.stop();
    eventually("it said goodbye and is lost", || (state(first, id) == "lost").then_some(()));
    first.trellis(&["nodes", "forget", &id.to_string()]).ok();
}

/// Votes, entries, snapshots, commands, events, calls, artifacts: under an id of its own, under a member's, and in clear.
/// Then signs of life in a member's name.
async fn asks_and_announces(nats: &NatsServer, nodes: &[Node]) {
    let (own, member): (NodeId, NodeId) = (NodeId::new(uuid::Uuid::from_u128(7)), field(&nodes[1], "node "));
    let to: NodeId = field(&nodes[0], "node ");
    let name = lattice_name();
    let mut subjects: Vec<String> = [RaftRpc::Append, RaftRpc::Vote, RaftRpc::Snapshot, RaftRpc::Forward]
        .map(|rpc| subject::raft(&name, to, rpc))
        .into();
    subjects.extend([subject::event(&name, to), subject::call(&name, to), subject::artifact(&name, to)]);
    // What a member would send to commit nothing and learn where the log is; the shortest word there is.
    let barrier = [frame::VERSION, 4];
    for (id, expected) in [(own, true), (member, false)] {
        let stranger = stranger(nats, id, Public::of(&nodes[0])).await;
        for subject in &subjects {
            let answer = stranger.ask(to, subject, &barrier, IN_VAIN).await.unwrap_err();
            let unknown = SealedError::Distrust(Distrust::Refused { by: to, why: Refused::Unknown });
            match answer {
                answer if expected => assert_eq!(answer, unknown, "{subject}"),
                SealedError::Bus(BusError::TimedOut { .. }) => {}
                answer => panic!("{subject}: {answer}"),
            }
            let clear = stranger.bus().request(subject, &[], barrier.to_vec().into(), IN_VAIN).await;
            assert!(matches!(clear, Err(BusError::TimedOut { .. })), "{subject}: {clear:?}");
        }
        let stream = subject::stream(&name, to);
        stranger.tell(to, &stream, &barrier).await.unwrap();
        // The sign of a node that ends: the second kind.
        for _ in 0..20 {
            stranger.announce(&subject::heartbeat(&name, member), &[frame::VERSION, 1]).await.unwrap();
        }
    }
    assert_eq!(state(&nodes[0], member), "ready");
    assert_eq!(known(&nodes[0]).len(), 3);
}

/// Everything that was heard once more, to where it went, with an inbox of its own for the answers.
async fn repeats(nats: &NatsServer, nodes: &[Node], heard: &[async_nats::Message]) {
    let events = || nodes[0].count("kv", "events");
    let (before, client) = (events(), async_nats::connect(&nats.url).await.unwrap());
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    for message in heard.iter().filter(|message| kind(message).is_some()) {
        client.publish_with_reply(message.subject.clone(), inbox.clone(), message.payload.clone()).await.unwrap();
    }
    client.flush().await.unwrap();
    let deadline = Instant::now() + 3 * IN_VAIN;
    while let Ok(Some(answer)) =
        tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), answers.next()).await
    {
        // The server says that nobody listens; a node says again which start it is in, or that a start is over. Nothing
        // else is ever said: kinds 2 and 5 of heads.
        let head = answer.payload.get(1);
        assert!(answer.payload.is_empty() || matches!(head, Some(2 | 5)), "{:?}", answer.payload);
    }
    assert_eq!(events(), before, "no component was woken");
    assert_eq!(known(&nodes[0]).len(), 3, "nobody joined");
}

/// The signs of life of a node that were heard.
fn signs(heard: &[async_nats::Message], of: NodeId) -> Vec<(String, bytes::Bytes)> {
    let subject = subject::heartbeat(&lattice_name(), of);
    let of_it = heard.iter().filter(|message| message.subject.as_str() == subject);
    of_it.map(|message| (message.subject.to_string(), message.payload.clone())).collect()
}

#[test]
fn a_node_is_its_id_together_with_its_key() {
    let nats = NatsServer::start(false);
    let first = node(&nats, 1, None, &["--bootstrap"]);
    assert!(first.banner.contains(&"trust    open to every node that its NATS account lets in".to_owned()));
    eventually("it warns", || first.log().contains("warning: lattice default has no join token").then_some(()));
    let other = node(&nats, 2, None, &[]);
    let id: NodeId = field(&other, "node ");
    let theirs = first.data_dir().path().join("node-key");
    let data_dir = other.kill();
    std::fs::copy(theirs, data_dir.path().join("node-key")).unwrap();
    let said = refused(&nats, &data_dir, None);
    assert!(said.contains(&format!("node {id} is known with key N")) && said.contains("put back the file"), "{said}");
    // Without what it knew of the lattice it asks to join, and is known there.
    for entry in std::fs::read_dir(data_dir.path()).unwrap().map(Result::unwrap) {
        if !entry.file_name().to_string_lossy().starts_with("node-") && entry.path().is_file() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let said = refused(&nats, &data_dir, None);
    assert!(said.contains("does not admit this node") && said.contains("is known with key N"), "{said}");
    std::fs::remove_file(data_dir.path().join("node-key")).unwrap();
    assert!(refused(&nats, &data_dir, None).contains("node-key is missing"));
}

#[test]
fn a_list_of_keys_lets_nodes_in_and_a_token_joins_no_lattice_that_does_not_know_it() {
    let nats = NatsServer::start(false);
    let open = node(&nats, 1, None, &["--bootstrap"]);
    let said = refused(&nats, &DataDir::new(), Some(TOKEN));
    assert!(said.contains("the lattice has none"), "{said}");
    let data_dir = DataDir::new();
    let late = Node::start_in(&data_dir, &["--nats", &nats.url]);
    let key: NodeKey = field(&late, "key ");
    late.stop();
    drop(open);

    let nats = NatsServer::start(false);
    let listed = node(&nats, 1, None, &["--bootstrap", "--allow-node", &key.to_string()]);
    let stranger = DataDir::new();
    let said = refused(&nats, &stranger, None);
    let theirs = said.split("trellis nodes allow ").nth(1).unwrap().split('`').next().unwrap();
    listed.trellis(&["nodes", "allow", theirs]).ok();
    drop(Node::start_in(&stranger, &["--nats", &nats.url]));
    assert!(listed.trellis(&["nodes"]).stderr.contains("closed: a node joins with a key on its list of 2"));
    listed.trellis(&["nodes", "disallow", theirs]).ok();
    assert!(refused(&nats, &DataDir::new(), None).contains("only nodes on its list are let in"));
    let file = stranger.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    listed.trellis(&["nodes", "token", file.to_str().unwrap()]).ok();
    drop(Node::start_with(&DataDir::new(), &["--nats", &nats.url], &[("TRELLIS_JOIN_TOKEN", TOKEN)]));
}
