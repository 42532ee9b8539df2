//! What is left when much is lost: backups, one node of three, a node that is cut off.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, Memory, members};
use trellis_placement::{Command, Entry, LEVEL};
use trellis_raft::Timing;
use trellis_wire::{CommandId, NodeId};
use uuid::Uuid;

use crate::apps::{app, component, eventually, hello, http, image};
use crate::client::get;
use crate::home;
use crate::lattice::{follows, id, known, lattice, node, of, position};
use crate::node::{DataDir, Node};
use crate::trellis::{command, trellis};

/// How long a change is proposed before it is given up, where it is not known at once that nothing can come of it.
const PROPOSED_FOR: Duration = Duration::from_secs(10);

#[test]
fn a_backup_of_one_lattice_makes_another() {
    let node = Node::start(&[]);
    node.trellis(&["config", "put", "colours", "sky=blue"]).ok();
    node.deploy(&hello("greets", "v1", "127.0.0.1:0", &image("hello")));
    node.deploy(&hello("greets", "v2", "127.0.0.1:0", &image("hello")));
    // What was taken back is so in the other lattice, too.
    let third = node.deploy_with(&hello("greets", "v3", "127.0.0.1:0", &image("hello")), &["--no-wait"]);
    third.ok();
    node.trellis(&["rollback", "greets"]).ok();
    node.deploy(&hello("stopped", "v1", "127.0.0.1:0", &image("hello")));
    node.trellis(&["undeploy", "stopped"]).ok();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lattice.backup");
    let path = file.to_str().unwrap();
    let whole = node.trellis(&["backup", path]);
    assert_eq!(whole.stderr, "");
    whole.ok();
    // Nobody has the manifest of a past version any more.
    let kept = std::fs::read_dir(node.data_dir().path().join("artifacts")).unwrap();
    let is_past = |path: &std::path::PathBuf| {
        String::from_utf8_lossy(&std::fs::read(path).unwrap()).contains("name: greets\n  annotations: {version: v1}")
    };
    let past = kept.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).find(is_past).unwrap();
    std::fs::remove_file(&past).unwrap();
    let lacking = node.trellis(&["backup", folder.path().join("lacking.backup").to_str().unwrap()]);
    let named = format!("  greets v1: sha256:{}\n", past.file_name().unwrap().to_str().unwrap());
    assert!(
        lacking.stderr.starts_with("warning: past versions are not whole in it") && lacking.stderr.ends_with(&named)
    );
    lacking.ok();
    let refused = node.trellis(&["restore", path]).failed(1);
    assert!(refused.contains("this lattice has apps or config already"), "{refused}");
    drop(node);

    let fresh = Node::start(&[]);
    let whole = std::fs::read(&file).unwrap();
    let broken = folder.path().join("broken.backup");
    for damaged in [whole[..whole.len() - 100].to_vec(), {
        let mut flipped = whole.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        flipped
    }] {
        std::fs::write(&broken, damaged).unwrap();
        let refused = fresh.trellis(&["restore", broken.to_str().unwrap()]).failed(1);
        assert!(refused.contains("the backup is not usable"), "{refused}");
        assert!(fresh.trellis(&["apps"]).ok().starts_with("no apps yet"), "nothing of it is there");
    }
    let no_file = fresh.trellis(&["restore", folder.path().to_str().unwrap()]).failed(2);
    assert!(no_file.contains("is a directory"), "{no_file}");
    std::fs::write(&broken, "hello\n").unwrap();
    let other = fresh.trellis(&["restore", broken.to_str().unwrap()]).failed(1);
    assert!(other.contains("it does not begin as one"), "{other}");
    let nowhere = fresh.trellis(&["backup", "/nowhere/lattice.backup"]).failed(1);
    assert!(nowhere.contains("the backup cannot be written to /nowhere/lattice.backup: entity not found"), "{nowhere}");
    let told = fresh.trellis(&["restore", path]).ok();
    assert!(told.starts_with("restored 7 commands and "), "{told}");
    fresh.until_ready("greets");
    assert_eq!(get(fresh.at("greets"), "/").unwrap().ok(), "hello world\n");
    assert_eq!(fresh.status("greets")["version"], "v2");
    assert_eq!(fresh.status("greets")["versions"], serde_json::json!(["v3", "v2", "v1"]));
    let states: Vec<Value> =
        fresh.status("greets")["history"].as_array().unwrap().iter().map(|past| past["state"].clone()).collect();
    assert_eq!(states, ["rolled-back", "deployed", "replaced"]);
    assert_eq!(fresh.status("stopped")["state"], "undeployed");
    assert_eq!(fresh.trellis(&["config", "get", "colours"]).ok(), "sky=blue\n");
    let told = fresh.trellis(&["rollback", "greets"]).ok();
    assert!(told.contains("greets goes back to v1"), "{told}");
}

#[test]
fn one_of_three_goes_on_when_the_others_are_gone_for_good() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    let everywhere = "{type: daemonscaler, properties: {instances: 3}}".to_owned();
    nodes[0].deploy(&app("greets", &[component("greets", "hello", "", &[everywhere]), http("greets", "")]));
    nodes[0].deploy(&home::keys("keys", "3"));
    assert_eq!(home::homes(&nodes[2]), [id(&nodes[0])]);
    eventually("all know it", || {
        nodes.iter().all(|node| node.trellis(&["apps"]).stdout.contains("keys")).then_some(())
    });
    let last = nodes.pop().unwrap();
    let gone: Vec<String> = nodes.iter().map(id).collect();
    let survivor = id(&last);
    nodes.into_iter().for_each(|node| drop(node.kill()));
    eventually("without a quorum nothing is agreed on", || {
        let status = get(last.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/readyz").unwrap();
        (status.status == 503).then_some(())
    });
    let in_use = trellis(&["recover", "--new-quorum", "--data-dir", last.data_dir().path().to_str().unwrap()]);
    assert!(in_use.failed(1).contains("is in use by another node"));
    let data_dir = last.kill();
    let path = data_dir.path();
    let recover = ["recover", "--new-quorum", "--data-dir", path.to_str().unwrap()];
    let told = trellis(&recover);
    assert!(told.stderr.contains("nothing was changed: add --yes"), "{told:?}");
    for said in ["lost may be", "greets", &gone[0], &gone[1], "empty --data-dir", "was the home"] {
        assert!(told.stdout.contains(said), "{said}: {}", told.stdout);
    }
    trellis(&[&recover[..], &["--yes"]].concat()).ok();

    let back = node(&nats, &data_dir, 3, &[]);
    assert_eq!(id(&back), survivor);
    back.trellis(&["config", "put", "colours", "sky=blue"]).ok();
    back.until_ready("greets");
    assert_eq!(get(back.at("greets"), "/").unwrap().ok(), "hello world\n");
    eventually("what is left is the home", || (home::homes(&back) == [survivor.clone()]).then_some(()));
    back.until_ready("keys");
    assert_eq!(home::ask(&back, "keys", "POST", "/sum").ok(), "1");
    for lost in &gone {
        assert!(of(&back, lost, "state").is_null(), "it is forgotten");
    }
    // New nodes make it a lattice of three voters again.
    let new: Vec<Node> = (4..=5).map(|n| node(&nats, &DataDir::new(), n, &[])).collect();
    eventually("there are three voters", || {
        (known(&back).iter().filter(|one| one["role"] == "voter").count() == 3).then_some(())
    });
    assert_eq!(new[0].trellis(&["config", "get", "colours"]).ok(), "sky=blue\n");
}

/// Two voters go on elsewhere, where they are enough to agree. The third is told that they are gone for good.
#[test]
fn who_was_given_up_stops_when_it_is_back_and_nothing_of_it_is_taken() {
    let (nats, elsewhere) = (NatsServer::start(false), NatsServer::start(false));
    let mut nodes = lattice(&nats, 4);
    let edge = node(&nats, &DataDir::new(), 5, &["--edge"]);
    nodes[0].trellis(&["config", "put", "before", "sky=blue"]).ok();
    let has = |node: &Node, config: &str| node.trellis(&["config", "get", config]).code == 0;
    for node in nodes.iter().chain([&edge]) {
        eventually("all know it", || has(node, "before").then_some(()));
    }
    let votes = |node: &Node| of(&edge, &id(node), "role") == "voter";
    let learner = nodes.iter().position(|node| !votes(node)).unwrap();
    let (learner, last) = (nodes.remove(learner), nodes.pop().unwrap().kill());
    let gone: Vec<String> = nodes.iter().map(id).collect();
    let dirs: Vec<DataDir> = nodes.into_iter().map(Node::kill).collect();

    let away: Vec<Node> = dirs.iter().map(|dir| node(&elsewhere, dir, 1, &[])).collect();
    away[0].trellis(&["config", "put", "theirs", "sky=red"]).ok();
    let recover = || trellis(&["recover", "--new-quorum", "--yes", "--data-dir", last.path().to_str().unwrap()]).ok();
    let told = recover();
    let goes_on = told.split("nodes that did not vote:").nth(1).unwrap();
    assert!(goes_on.contains(&id(&learner)) && goes_on.contains(&id(&edge)), "{told}");
    let again = recover();
    assert!(again.contains("is the only voter of its lattice already"), "{again}");
    let last = node(&nats, &last, 3, &[]);
    last.trellis(&["config", "put", "after", "sky=grey"]).ok();
    for other in [&learner, &edge] {
        eventually("who did not vote goes on with it", || has(other, "after").then_some(()));
        eventually("and is there for it", || (of(&last, &id(other), "state") == "ready").then_some(()));
    }

    drop(away.into_iter().map(Node::kill).collect::<Vec<_>>());
    let back: Vec<Node> = dirs.iter().map(|dir| node(&nats, dir, 1, &[])).collect();
    for node in back {
        let log = node.data_dir().log();
        assert_eq!(node.ended().code(), Some(1));
        let said = std::fs::read_to_string(log).unwrap();
        assert!(said.contains("this lattice was recovered without this node"), "{said}");
        assert!(said.contains("start it with an empty --data-dir"), "{said}");
    }
    for node in [&last, &learner, &edge] {
        assert!(has(node, "after") && !has(node, "theirs"), "nothing of theirs is taken");
        assert!(known(node).iter().all(|one| !gone.contains(&one["id"].as_str().unwrap().to_owned())));
    }
    // Empty, it is a new node.
    let new = node(&nats, &DataDir::new(), 1, &[]);
    eventually("it is told of all", || has(&new, "after").then_some(()));
}

#[test]
fn a_voter_put_back_from_an_older_copy_is_told_and_stops_and_the_others_go_on() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    let position = position(&nodes, follows);
    let voter = nodes.remove(position);
    let (me, n) = (id(&voter), of(&voter, &id(&voter), "labels")["n"].as_str().unwrap().parse().unwrap());
    let dir = voter.data_dir().clone();
    assert_eq!(voter.stop().code(), Some(0));
    let old = dir.copied();
    let voter = node(&nats, &dir, n, &[]);
    eventually("it votes again", || (of(&nodes[0], &me, "state") == "ready").then_some(()));
    for count in 0..9 {
        voter.trellis(&["config", "put", "count", &format!("n={count}")]).ok();
    }
    let has = |node: &Node, what: &str| node.trellis(&["config", "get", "count"]).stdout == format!("n={what}\n");
    eventually("it has acknowledged all of it", || has(&voter, "8").then_some(()));
    drop(voter.kill());

    // As a service that is started again and again: each start ends the same way, and harms nobody.
    for _ in 0..2 {
        let mut up = command();
        up.args(["up", "--admin", "127.0.0.1:0", "--nats", &nats.url, "--data-dir"]).arg(old.path());
        let ended = up.output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("this data directory is older than what this node acknowledged"), "{said}");
        assert!(
            said.contains(&format!(
                "start with an empty --data-dir (it joins as a new node), then `trellis nodes forget {me}`"
            )),
            "{said}"
        );
    }
    for (count, node) in ["9", "10"].into_iter().zip(&nodes) {
        assert!(has(node, "8") || count == "10", "nothing is lost");
        node.trellis(&["config", "put", "count", &format!("n={count}")]).ok();
        assert!(has(node, count) && !node.log().contains("panicked"), "{}", node.log());
    }
    // What it was told to do.
    let new = node(&nats, &DataDir::new(), n, &[]);
    eventually("it is lost", || (of(&nodes[0], &me, "state") == "lost").then_some(()));
    nodes[0].trellis(&["nodes", "forget", &me]).ok();
    eventually("there are three voters again", || {
        (known(&new).iter().filter(|one| one["role"] == "voter").count() == 3).then_some(())
    });
}

#[test]
fn of_two_processes_with_one_identity_the_earlier_stops_and_says_why() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    let first = nodes.remove(position(&nodes, follows));
    let dir = first.data_dir().clone();
    let copy = dir.copied();
    let mut up = command();
    up.args(["up", "--admin", "127.0.0.1:0", "--nats", &nats.url, "--data-dir"]).arg(copy.path());
    let mut second = up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(first.ended().code(), Some(1));
    let said = std::fs::read_to_string(dir.log()).unwrap();
    assert!(said.contains("another process runs with this node's identity (a copy of its data directory?)"), "{said}");
    // It may have ended by itself: what was agreed on since the copy was made, it lacks. What it agreed to since lacks the first.
    drop(second.kill());
    second.wait().unwrap();
    nodes[0].trellis(&["config", "put", "colours", "sky=blue"]).ok();
}

#[test]
fn a_cut_off_node_serves_what_it_holds_but_not_what_is_strict_and_rejoins() {
    let mut nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let everywhere = "{type: daemonscaler, properties: {instances: 3}}".to_owned();
    let strict = component("strict", "hello", "limits: {strict: true}", std::slice::from_ref(&everywhere));
    nodes[0].deploy(&app("lenient", &[component("lenient", "hello", "", &[everywhere]), http("lenient", "")]));
    nodes[0].deploy(&app("strict", &[strict, http("strict", "")]));
    let (lenient, strict): (Vec<_>, Vec<_>) = nodes.iter().map(|node| (node.at("lenient"), node.at("strict"))).unzip();
    for at in lenient.iter().chain(&strict) {
        assert_eq!(get(*at, "/").unwrap().ok(), "hello world\n");
    }
    nats.kill();
    eventually("what is strict stops", || {
        let refused = |at| get(at, "/").is_ok_and(|answer| answer.status >= 500);
        strict.iter().all(|at| refused(*at)).then_some(())
    });
    for at in &lenient {
        assert_eq!(get(*at, "/").unwrap().ok(), "hello world\n");
    }
    for node in &nodes {
        eventually("it says so", || {
            let ready = get(node.admin.strip_prefix("http://").unwrap().parse().unwrap(), "/readyz").unwrap();
            (ready.status == 503 && ready.text().contains("this node serves what it holds")).then_some(())
        });
        let status: Value = node.status("lenient");
        assert!(!status["problems"].as_array().unwrap().is_empty(), "{status}");
        let asked = Instant::now();
        for change in [&["undeploy", "lenient"][..], &["config", "put", "colours", "sky=blue"]] {
            let refused = node.trellis(change).failed(1);
            assert!(refused.contains("takes no changes until that is over"), "{refused}");
        }
        assert!(asked.elapsed() < PROPOSED_FOR, "{:?}", asked.elapsed());
    }
    let again = nodes[0].try_deploy(&app("more", &[component("more", "hello", "", &[])])).failed(1);
    assert!(again.contains("takes no changes until that is over"), "{again}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let backup = nodes[0].trellis(&["backup", file.path().to_str().unwrap()]);
    assert!(backup.stderr.contains("warning: the node is cut off from its lattice"), "{backup:?}");
    backup.ok();
    nats.restart();
    eventually("all is well again without a new start", || {
        let well = |at| get(at, "/").is_ok_and(|answer| answer.status == 200);
        let ready = |node: &Node| node.status("strict")["state"] == "ready";
        (strict.iter().all(|at| well(*at)) && nodes.iter().all(ready)).then_some(())
    });
    let configs = nodes[0].trellis(&["config", "list"]).ok();
    assert!(!configs.contains("colours"), "what was refused has no effect later: {configs}");
}

/// The data directory knows its lattice.
#[test]
fn a_data_directory_is_recovered_without_the_name_of_its_lattice() {
    let node = Node::start(&["--lattice", "a3b"]);
    let data_dir = node.data_dir().clone();
    assert_eq!(node.stop().code(), Some(0));
    let recover = ["recover", "--new-quorum", "--data-dir", data_dir.path().to_str().unwrap()].map(str::to_owned);
    let recover: Vec<&str> = recover.iter().map(String::as_str).collect();
    let told = trellis(&recover).ok();
    assert!(told.contains("is the only voter of its lattice already"), "{told}");
    let other = trellis(&[&recover[..], &["--lattice", "b4c"]].concat()).failed(1);
    assert!(other.contains("belongs to lattice `a3b`, not to `b4c`"), "{other}");
}

/// Nobody can know what a newer build may have put into the log: an older one says so, and does not go on.
#[test]
fn a_build_older_than_its_lattice_is_refused() {
    let node = Node::start(&[]);
    let (data_dir, me): (DataDir, NodeId) = (node.data_dir().clone(), id(&node).parse().unwrap());
    assert_eq!(node.stop().code(), Some(0));
    tokio::runtime::Runtime::new().unwrap().block_on(as_left_by_a_newer_build(&data_dir, me));

    let mut up = command();
    up.args(["up", "--admin", "127.0.0.1:0", "--data-dir"]).arg(data_dir.path());
    let refused = up.output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("start this node with the newer Trellis again"), "{said}");
}

/// Puts into a node's log that it, the only one, runs a build of the next level.
async fn as_left_by_a_newer_build(data_dir: &DataDir, me: NodeId) {
    let sealed = members::start(me, "default".parse().unwrap(), Bus::Memory(Memory::alone()));
    let (data_dir, timing) = (data_dir.path(), Timing::default());
    let options = trellis_raft::Options { data_dir, host: "here".into(), lattice_id: None, sealed, timing };
    let raft = trellis_raft::open(options).await.unwrap();
    raft.read_barrier().await.unwrap();
    let mut facts = raft.state().borrow().node(me).unwrap().facts.clone();
    facts.labels.insert("trellis.level".into(), (LEVEL + 1).to_string());
    let id = CommandId::new(Uuid::from_u128(1));
    raft.propose(Entry { id, at_ms: 0, command: Command::Join(facts) }).await.unwrap();
    raft.shutdown().await;
}
