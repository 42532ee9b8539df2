//! Many real nodes on one real nats-server: they join, deploy through any, serve what others hold, die and come back.

use std::fmt;
use std::io::{BufReader, Write as _};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, http, link, provider};
use crate::client::{Response, connect, get, head, read, send};
use crate::frozen::{LAST_FAILURE_MAX, freeze_under_load};
use crate::mail::Mail;
use crate::node::{DataDir, Node};
use crate::trellis::command;

/// Starts a node that is known to the others by its label.
pub(crate) fn node(nats: &NatsServer, data_dir: &DataDir, n: usize, more: &[&str]) -> Node {
    let label = format!("n={n}");
    Node::start_in(data_dir, &[&["--nats", &nats.url, "--label", &label], more].concat())
}

/// Nodes 1, 2, ... of one lattice, the first of which started it.
pub(crate) fn lattice(nats: &NatsServer, count: usize) -> Vec<Node> {
    lattice_with(nats, count, &[])
}

/// The same with further arguments for each.
pub(crate) fn lattice_with(nats: &NatsServer, count: usize, more: &[&str]) -> Vec<Node> {
    let mut nodes = vec![node(nats, &DataDir::new(), 1, &[&["--bootstrap"], more].concat())];
    nodes.extend((2..=count).map(|n| node(nats, &DataDir::new(), n, more)));
    let voters = match count {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    };
    eventually("the nodes are voters and learners", || {
        let known = known(&nodes[0]);
        let is = |role: &str| known.iter().filter(|one| one["role"] == role).count();
        (is("voter") == voters && is("learner") == count - voters).then_some(())
    });
    nodes
}

/// What `trellis nodes` says.
pub(crate) fn known(asked: &Node) -> Vec<Value> {
    serde_json::from_str(&asked.trellis(&["nodes", "-o", "json"]).ok()).unwrap()
}

/// A node's id.
pub(crate) fn id(node: &Node) -> String {
    node.banner.iter().find_map(|line| line.strip_prefix("node ")).unwrap().trim().into()
}

/// What a node says of another.
pub(crate) fn of(asked: &Node, other: &str, what: &str) -> Value {
    known(asked).iter().find(|one| one["id"] == other).map(|one| one[what].clone()).unwrap_or_default()
}

/// Which events of app `far` that came to a node went to others, and why.
pub(crate) fn routed(asked: &Node) -> Vec<Value> {
    let explained = asked.trellis(&["explain", "far/far", "-o", "json"]).ok();
    serde_json::from_value(serde_json::from_str::<Value>(&explained).unwrap()["routed"].take()).unwrap()
}

/// The trait that places a component on the nodes with these labels, `1|2`.
pub(crate) fn on(nodes: &str) -> String {
    format!(
        "{{type: spreadscaler, properties: {{instances: 20, spread: [{{name: here, requirements: {{n: '{nodes}'}}}}]}}}}"
    )
}

/// A component on the nodes with these labels, behind an HTTP server on every node.
pub(crate) fn held_by(name: &str, guest: &str, nodes: &str, more: &[String]) -> String {
    let traits = [&[on(nodes)], more].concat();
    let everywhere = http(name, "max_body_bytes: '50000000'").replacen(
        "traits:\n",
        "traits:\n        - {type: daemonscaler, properties: {instances: 1}}\n",
        1,
    );
    app(name, &[component(name, guest, "limits: {timeout: 30s}", &traits), everywhere])
}

#[test]
fn three_nodes_are_one_lattice() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let refused = command()
        .args(["up", "--bootstrap", "--nats", &nats.url, "--admin", "127.0.0.1:0", "--data-dir"])
        .arg(DataDir::new().path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && stderr.contains("a lattice named default answers already"), "{stderr}");

    // Through a follower, from which the holder fetches the code.
    nodes[2].deploy(&held_by("far", "test_misbehave", "2", &[]));
    for node in &nodes {
        let at = node.at("far");
        assert_eq!(get(at, "/").unwrap().ok(), "ok");
        assert_eq!(get(at, "/config").unwrap().status, 200);
        let holder = &node.status("far")["components"][0]["holders"][0];
        assert_eq!((&holder["state"], &holder["node"]), (&"ready".into(), &id(&nodes[1]).into()));
    }
    // A fault stays a fault on its way.
    let trapped = get(nodes[0].at("far"), "/trap").unwrap();
    assert_eq!((trapped.status, trapped.header("x-trellis-fault")), (500, Some("trap")));

    // 20 MB through a node that does not hold it, up and down at once.
    let sent: Vec<u8> = (0..20_000_000_u32).map(|n| (n ^ (n >> 11)).to_le_bytes()[0]).collect();
    let echoed = echoed(nodes[0].at("far"), &sent);
    assert!(echoed.status == 200 && echoed.body == sent, "{} {}", echoed.status, echoed.body.len());
    let huge = get(nodes[2].at("far"), "/huge?bytes=20000000").unwrap();
    assert_eq!((huge.status, huge.body.len()), (200, 20_000_000));

    let explained = nodes[0].trellis(&["explain", "far/far"]).ok();
    assert!(
        explained.contains("holds it with 20 permits") && explained.contains("has label n=3, not n=2"),
        "{explained}"
    );
    let remedy = format!("`trellis label {} n=2`", id(&nodes[2]));
    assert!(explained.contains("WHAT WOULD CHANGE IT") && explained.contains(&remedy), "{remedy}: {explained}");
    // Where its events went, and why: from here to the holder, and from there nowhere.
    assert!(explained.contains("RAN ON") && explained.contains("this node does not hold it"), "{explained}");
    let went = routed(&nodes[2]);
    assert!(went.len() >= 3, "{went:?}");
    for one in went {
        let to = one["to"].as_str().unwrap();
        assert!(to.contains(&id(&nodes[1])[28..]) && one["why"] == "this node does not hold it", "{one}");
    }
    assert_eq!(routed(&nodes[1]), Vec::<Value>::new());
    let unfit = nodes[0].trellis(&["label", &id(&nodes[2]), "a b=c"]).failed(1);
    assert!(unfit.contains("`a b` is no label key"), "{unfit}");
    let own = nodes[0].trellis(&["label", &id(&nodes[2]), "trellis.level=99"]).failed(1);
    assert!(own.contains("label `trellis.level` is the node's own"), "{own}");
    let twice = nodes[0].trellis(&["label", &id(&nodes[2]), "zone=eu", "zone-"]).failed(2);
    assert!(twice.contains("label `zone` is given twice"), "{twice}");
    // All have this machine's name, so more is said of each.
    let short = format!("(..{})", &id(&nodes[1])[28..]);
    assert!(explained.contains(&short), "{short}: {explained}");
    assert!(nodes[0].trellis(&["status", "far"]).ok().contains(&short));
    let listed = nodes[0].trellis(&["nodes"]).ok();
    let header: Vec<&str> = listed.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NODE", "NAME", "ROLE", "STATE", "LAG", "RUNNING", "SEEN", "VERSION", "LABELS"]);
    for node in &nodes {
        let row = listed.lines().find(|line| line.starts_with(&id(node))).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert!(row.contains(" ready ") && row.contains(" s ago ") && row.contains(version), "{row}");
        assert_eq!(of(&nodes[0], &id(node), "version"), version);
        assert!(of(&nodes[0], &id(node), "last_seen_ms").as_u64().is_some_and(|ms| ms < 6_000));
    }
    // A node is named as it was shown.
    let name = of(&nodes[0], &id(&nodes[1]), "name").as_str().unwrap().to_owned();
    let several = nodes[1].trellis(&["drain", &name]).failed(1);
    assert!(several.contains(&format!("`{name}` may be ")) && several.contains(&id(&nodes[2])), "{several}");
    nodes[0].trellis(&["label", &id(&nodes[2])[28..], "n=2"]).ok();
    let drained = nodes[1].trellis(&["drain", &format!("{name} {short}")]).ok();
    assert!(
        drained.starts_with(&format!("{name} {short} is drained")) && drained.contains(&id(&nodes[1])),
        "{drained}"
    );
    eventually("what the drained node held is on the other", || {
        let status = nodes[0].status("far");
        let holders = status["components"][0]["holders"].as_array().unwrap().clone();
        (status["state"] == "ready" && holders.len() == 1 && holders[0]["node"] == id(&nodes[2]).as_str()).then_some(())
    });
    assert_eq!(get(nodes[0].at("far"), "/").unwrap().ok(), "ok");
}

/// What comes back of a body, which goes up while that comes down.
pub(crate) fn echoed(at: SocketAddr, sent: &[u8]) -> Response {
    let mut down = connect(at);
    let mut up = down.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            up.write_all(head("POST", "/echo", &[], sent.len()).as_bytes()).unwrap();
            up.write_all(sent).unwrap();
        });
        read(&mut BufReader::new(&mut down)).unwrap()
    })
}

/// Where a node keeps the code of an app's first component.
fn code(asked: &Node, app: &str, on: &Node) -> std::path::PathBuf {
    let digest = asked.status(app)["components"][0]["digest"].as_str().unwrap().to_owned();
    on.data_dir().path().join("artifacts").join(digest.strip_prefix("sha256:").unwrap())
}

#[test]
fn a_deploy_is_ready_once_a_spare_has_the_code() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    // Through the holder, so that nobody else has it from the upload.
    nodes[1].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let spares = [&nodes[0], &nodes[2]].into_iter().filter(|node| code(&nodes[0], "far", node).exists());
    assert_eq!(spares.count(), 1);
}

#[test]
fn code_that_was_damaged_on_the_disk_comes_from_another_node() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let file = code(&nodes[0], "far", &nodes[1]);
    let whole = std::fs::read(&file).unwrap();
    let data_dir = nodes.remove(1).kill();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    std::fs::remove_dir_all(data_dir.path().join("compiled")).unwrap();
    let back = node(&nats, &data_dir, 2, &[]);
    back.until_ready("far");
    assert_eq!(get(nodes[0].at("far"), "/").unwrap().ok(), "ok");
    assert!(std::fs::read(&file).unwrap() == whole);
}

#[test]
fn a_client_that_goes_ends_its_sandbox_on_the_other_node() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let mut stream = connect(nodes[0].at("far"));
    stream.write_all(head("GET", "/loop", &[], 0).as_bytes()).unwrap();
    nodes[1].until_running("far", 1);
    eventually("the other node says so", || (of(&nodes[0], &id(&nodes[1]), "running") == 1).then_some(()));
    drop(stream);
    nodes[1].until_running("far", 0);
    assert_eq!(nodes[1].count("far", "faults"), 0);
}

/// The other node's own limit is ten minutes. It ends the sandbox by itself, before anybody would tell it to.
#[test]
fn what_runs_on_another_node_ends_by_the_deadline_of_who_asked() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    let far = held_by("far", "test_misbehave", "2", &[]).replace("timeout: 30s", "timeout: 600s");
    nodes[0].deploy(&far.replace("max_body_bytes: '50000000'", "timeout_ms: '3000'"));
    for path in ["/loop", "/never"] {
        let late = get(nodes[0].at("far"), path).unwrap();
        assert_eq!((late.status, &*late.text()), (504, "no answer within 3000 ms (`timeout_ms`)\n"));
        nodes[1].until_running("far", 0);
    }
    assert_eq!(nodes[1].count("far", "faults"), 2);
}

#[test]
fn a_store_on_one_node_answers_components_on_others() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    let home = "{type: spreadscaler, properties: {instances: 1, spread: [{name: home, requirements: {n: '1'}}]}}";
    let store = format!("{}      traits:\n        - {home}\n", provider("store", "embedded"));
    nodes[1].deploy(&(held_by("far", "test_kv", "2|3", &[uses]) + &store));
    let value = vec![b'v'; 300_000];
    for (n, node) in nodes.iter().enumerate() {
        let put = send(node.at("far"), "PUT", &format!("/k{n}"), &[], &value).unwrap();
        assert_eq!(put.status, 204, "{}", put.text());
    }
    for node in &nodes {
        assert_eq!(get(node.at("far"), "/?keys").unwrap().ok(), "k0\nk1\nk2\n");
        assert!(get(node.at("far"), "/k0").unwrap().body == value);
    }
}

/// How long clients ask before something happens.
const LOAD_FIRST: Duration = Duration::from_millis(500);

/// What clients saw while something happened.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) ok: usize,
    pub(crate) failed: Vec<(Duration, String)>,
    /// When it began to happen.
    pub(crate) began: SystemTime,
    /// The longest time from then on in which no request was served.
    gap: Duration,
    /// The longest that one took which ended after that, whatever came of it.
    slowest: Duration,
}

impl Seen {
    /// When the last failure was.
    fn latest(&self) -> Duration {
        self.failed.iter().map(|(at, _)| *at).max().unwrap_or_default()
    }

    /// Whether within this time nothing fails any more, something is served again, and each client has its answer: one
    /// that hangs is not well, even if it is served in the end.
    #[track_caller]
    pub(crate) fn check(&self, at_most: Duration) {
        assert!(self.latest() < at_most, "{self}: {:?}", self.failed);
        assert!(self.gap < at_most && self.slowest < at_most, "{self}: {:?}", self.failed);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, failed, gap, slowest, .. } = self;
        write!(f, "{ok} ok, {} failed, the last after {:?}; ", failed.len(), self.latest())?;
        write!(f, "none served for {gap:?}, the slowest took {slowest:?}")
    }
}

/// A request of [`under_load`].
struct Asked {
    began: Instant,
    ended: Instant,
    /// Unless it was served.
    failure: Option<String>,
}

/// What these requests come to, of which those count that ended after something happened.
fn seen(asked: Vec<Asked>, (began, at): (Instant, SystemTime), over: Instant) -> Seen {
    let after = || asked.iter().filter(|one| one.ended > began);
    let mut served: Vec<Instant> = after().filter(|one| one.failure.is_none()).map(|one| one.ended).collect();
    served.extend([began, over]);
    served.sort();
    Seen {
        gap: served.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default(),
        slowest: after().map(|one| one.ended - one.began).max().unwrap_or_default(),
        ok: asked.iter().filter(|one| one.failure.is_none()).count(),
        began: at,
        failed: asked
            .into_iter()
            .filter_map(|one| Some((one.ended.saturating_duration_since(began), one.failure?)))
            .collect(),
    }
}

#[test]
#[should_panic(expected = "the slowest took 10s")]
fn a_request_that_hangs_and_is_served_in_the_end_is_not_well() {
    let began = Instant::now();
    let at = |second: u64| began + Duration::from_secs(second);
    let served = |from: u64, to: u64| Asked { began: at(from), ended: at(to), failure: None };
    let asked = (0..10).map(|second| served(second, second + 1)).chain([served(0, 10)]).collect();
    seen(asked, (began, SystemTime::now()), at(10)).check(LAST_FAILURE_MAX);
}

#[test]
#[should_panic(expected = "none served for 8s")]
fn a_time_in_which_nothing_is_asked_is_one_without_an_answer() {
    let began = Instant::now();
    let at = |second: u64| began + Duration::from_secs(second);
    let asked = [1, 9].map(|second| Asked { began: at(second - 1), ended: at(second), failure: None });
    seen(asked.into(), (began, SystemTime::now()), at(10)).check(LAST_FAILURE_MAX);
}

/// Asks in a loop while `what` runs, and for so long after. Times count from when `what` began.
pub(crate) fn under_load(at: SocketAddr, after: Duration, what: impl FnOnce()) -> Seen {
    let (asked, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let (began, ended) = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let failure = match get(at, "/slow?ms=50") {
                        Ok(response) if response.status == 200 => None,
                        Ok(response) => Some(format!("{} {}", response.status, response.text().trim())),
                        Err(why) => Some(why.to_string()),
                    };
                    asked.lock().unwrap().push(Asked { began, ended: Instant::now(), failure });
                }
            });
        }
        thread::sleep(LOAD_FIRST);
        let began = (Instant::now(), SystemTime::now());
        what();
        thread::sleep(after);
        over.store(true, Ordering::Relaxed);
        (began, Instant::now())
    });
    seen(asked.into_inner().unwrap(), began, ended)
}

pub(crate) fn leads(one: &Value) -> bool {
    one["leader"] == true
}

pub(crate) fn follows(one: &Value) -> bool {
    one["role"] == "voter" && one["leader"] == false
}

pub(crate) fn learns(one: &Value) -> bool {
    one["role"] == "learner"
}

/// Where the node stands that is so, as the last one of them sees it; never the last one itself.
pub(crate) fn position(nodes: &[Node], is: impl Fn(&Value) -> bool) -> usize {
    let last = nodes.last().unwrap();
    let stays = id(last);
    let found = known(last).into_iter().find(|one| one["id"] != stays.as_str() && is(one)).unwrap();
    nodes.iter().position(|node| found["id"] == id(node).as_str()).unwrap()
}

/// Kills the node that is so while clients ask the last one and messages come, and starts it again.
fn kill_under_load(nats: &NatsServer, nodes: &mut Vec<Node>, mail: &mut Mail, name: &str, is: impl Fn(&Value) -> bool) {
    let position = position(nodes, is);
    let killed = nodes.remove(position);
    let (victim, last) = (id(&killed), nodes.last().unwrap());
    let in_flight_max = mail.permits(last, &victim);
    let n = known(last).iter().find(|one| one["id"] == victim.as_str()).unwrap()["labels"]["n"].clone();
    let mut data_dir = None;
    let at = last.at("far");
    let seen = mail.during(|| under_load(at, Duration::from_secs(15), || data_dir = Some(killed.kill())));
    let account = mail.account(last, seen.began);
    println!("killed the {name}: {seen}; {account}");
    account.check(in_flight_max);
    account.check_again();
    assert!(seen.ok > 100, "{seen:?}");
    seen.check(LAST_FAILURE_MAX);
    assert!(seen.failed.len() < 40, "what was under way there is lost, and no more: {:?}", seen.failed);
    eventually("it is lost", || (of(last, &victim, "state") == "lost").then_some(()));
    let back = node(nats, &data_dir.unwrap(), n.as_str().unwrap().parse().unwrap(), &[]);
    assert_eq!(id(&back), victim);
    eventually("it is back", || (of(last, &victim, "state") == "ready").then_some(()));
    nodes.insert(position, back);
    ["far", "mail"].into_iter().for_each(|app| nodes.last().unwrap().until_ready(app));
}

#[test]
fn whoever_is_killed_the_others_go_on() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice(&nats, 5);
    // The last node holds nothing and stays: clients ask it.
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3|4", &[]));
    let mut mail = Mail::deploy(&nats, &nodes[0], "2|3|4");
    kill_under_load(&nats, &mut nodes, &mut mail, "leader", leads);
    kill_under_load(&nats, &mut nodes, &mut mail, "follower", follows);
    kill_under_load(&nats, &mut nodes, &mut mail, "holder", |one| one["labels"]["n"] == "3");
}

#[test]
fn a_learner_that_is_killed_or_freezes_is_missed_as_any_holder() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice(&nats, 4);
    // The first votes for sure.
    nodes.rotate_left(1);
    eventually("three vote and one learns", || {
        let known = known(&nodes[0]);
        let voters = known.iter().filter(|one| one["role"] == "voter").count();
        (voters == 3 && known.iter().filter(|one| learns(one)).count() == 1).then_some(())
    });
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3|4", &[]));
    let mut mail = Mail::deploy(&nats, &nodes[0], "2|3|4");
    kill_under_load(&nats, &mut nodes, &mut mail, "learner", learns);
    freeze_under_load(&nodes, &mut mail, "learner", learns);
}

#[test]
fn who_leaves_can_come_back_and_a_wiped_directory_is_a_new_node() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 4);
    let (last, left) = (nodes.pop().unwrap(), 4);
    let (gone, data_dir) = (id(&last), last.data_dir().clone());
    assert_eq!(last.stop().code(), Some(0));
    eventually("who says goodbye is lost at once", || (of(&nodes[0], &gone, "state") == "lost").then_some(()));
    let refused = nodes[1].trellis(&["nodes", "forget", &id(&nodes[2])]).failed(1);
    assert!(refused.contains("is not lost"), "{refused}");

    let back = node(&nats, &data_dir, left, &[]);
    assert_eq!(id(&back), gone);
    eventually("it is back", || (of(&nodes[0], &gone, "state") == "ready").then_some(()));
    drop(back);

    let new = node(&nats, &DataDir::new(), left, &[]);
    assert_ne!(id(&new), gone);
    eventually("the old one is lost", || (of(&nodes[0], &gone, "state") == "lost").then_some(()));
    nodes[1].trellis(&["nodes", "forget", &gone]).ok();
    eventually("it is gone", || of(&new, &gone, "state").is_null().then_some(()));
    assert_eq!(known(&new).len(), 4);
}

#[test]
fn a_forgotten_node_that_comes_back_with_its_data_stops_and_says_why() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 4);
    nodes.push(node(&nats, &DataDir::new(), 5, &["--edge"]));
    // One that votes or listens to the log, and one that follows from outside.
    for (at, n, more) in [(3, 4, &[][..]), (3, 5, &["--edge"])] {
        let gone = nodes.remove(at);
        let (name, data_dir) = (id(&gone), gone.kill());
        eventually("it is lost", || (of(&nodes[0], &name, "state") == "lost").then_some(()));
        nodes[0].trellis(&["nodes", "forget", &name]).ok();
        let back = node(&nats, &data_dir, n, more);
        assert_eq!(id(&back), name);
        let log = back.data_dir().log();
        assert_eq!(back.ended().code(), Some(1));
        let said = std::fs::read_to_string(log).unwrap();
        assert!(said.contains("its lattice has forgotten it") && said.contains("empty --data-dir"), "{said}");
    }
}

/// Of three voters one was forgotten, and nobody has its place. When one more is gone nothing can be agreed on.
#[test]
fn who_was_forgotten_is_no_voter_that_may_still_answer() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    eventually("three vote", || {
        (known(&nodes[0]).iter().filter(|one| one["role"] == "voter").count() == 3).then_some(())
    });
    let (gone, next) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (gone_id, next_id) = (id(&gone), id(&next));
    gone.kill();
    eventually("it is lost", || (of(&nodes[0], &gone_id, "state") == "lost").then_some(()));
    nodes[0].trellis(&["nodes", "forget", &gone_id]).ok();
    next.kill();
    eventually("the next is missed", || (of(&nodes[0], &next_id, "state") == "silent").then_some(()));
    let refused = nodes[0].trellis(&["config", "put", "colours", "sky=blue"]).failed(1);
    assert!(refused.contains("takes no changes until that is over"), "{refused}");

    let alone = Node::start_in(&nodes.remove(0).kill(), &[]);
    let ready = get(alone.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/readyz").unwrap();
    assert!(ready.status == 503 && ready.text().contains("was started without --nats"), "{}", ready.text());
}

#[test]
fn a_node_waits_for_its_lattice() {
    let nats = NatsServer::start(false);
    let early = DataDir::new();
    thread::scope(|scope| {
        let waits = scope.spawn(|| node(&nats, &early, 2, &[]));
        thread::sleep(Duration::from_secs(4));
        assert!(!waits.is_finished());
        let first = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
        let second = waits.join().unwrap();
        assert!(second.log().contains("waiting for lattice default: no member answers yet"), "{}", second.log());
        assert_eq!(known(&second).len(), 2);
        assert_eq!(known(&first).len(), 2);
    });
}

#[test]
fn two_lattices_of_one_name_refuse_each_other() {
    let (one, two) = (NatsServer::start(false), NatsServer::start(false));
    let here = node(&one, &DataDir::new(), 1, &["--bootstrap"]);
    let there = node(&two, &DataDir::new(), 1, &["--bootstrap"]).kill();
    // It comes back on the NATS of the other.
    let there = node(&one, &there, 1, &[]);
    for node in [&here, &there] {
        eventually("each says that there is another", || {
            let said = get(node.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/v1/lattice");
            said.unwrap().ok().contains("another lattice of this name").then_some(())
        });
        assert_eq!(known(node).len(), 1, "neither takes the other's nodes for its own");
    }
    let refused = command()
        .args(["up", "--nats", &one.url, "--admin", "127.0.0.1:0", "--data-dir"])
        .arg(DataDir::new().path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && stderr.contains("two lattices named default answer"), "{stderr}");
}

#[test]
fn what_an_app_shares_serves_other_apps_on_other_nodes() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    let platform = app("platform", &[component("ping", "test_ping", "", &[on("2")]), provider("keyvalue", "embedded")]);
    let shared = "{name: platform, annotations: {experimental.wasmcloud.dev/shared: 'true'}}";
    let of_platform = |name: &str, kind: &str| {
        format!(
            "\n    - name: {name}\n      type: {kind}\n      properties: {{application: {{name: platform, component: {name}}}}}\n"
        )
    };
    let calls = component("caller", "test_caller", "", &[on("1"), link("ping", "test:calls/pinging")]);
    let caller = app("caller", &[calls, of_platform("ping", "component"), http("caller", "")]);
    let keeps = component("keeper", "test_kv", "", &[on("1"), link("keyvalue", "wasi:keyvalue/store, atomics, batch")]);
    let keeper = app("keeper", &[keeps, of_platform("keyvalue", "capability"), http("keeper", "")]);

    nodes[0].deploy(&platform);
    let refused = nodes[1].try_deploy(&caller).failed(1);
    assert!(refused.contains("platform/ping is not shared"), "{refused}");
    nodes[0].deploy(&platform.replace("{name: platform}", shared));
    nodes[1].deploy(&caller);
    nodes[1].deploy(&keeper);
    assert_eq!(get(nodes[0].at("caller"), "/?n=3").unwrap().ok().lines().count(), 3);
    assert_eq!(send(nodes[0].at("keeper"), "POST", "/sum?by=2", &[], b"").unwrap().ok(), "2");
    let used = nodes[0].trellis(&["undeploy", "platform"]).failed(1);
    assert!(used.contains("undeploy caller first") || used.contains("undeploy keeper first"), "{used}");
}
