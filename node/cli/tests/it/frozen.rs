//! A node that freezes and goes on: it is not dead, nobody can tell, and it wakes up with an old view of the world. What
//! clients of another node notice is counted. And nodes that vanish together: nothing of theirs is placed anew by itself.

use std::thread;
use std::time::Duration;

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::eventually;
use crate::lattice::{follows, held_by, id, known, lattice, leads, node, of, position, under_load};
use crate::mail::Mail;
use crate::node::{DataDir, Node};

/// Long enough that the others go on without it.
const FROZEN: Duration = Duration::from_secs(10);
/// When the last request fails that it had, with another holder there: 4 s are promised, and a busy machine may add one.
pub(crate) const LAST_FAILURE_MAX: Duration = Duration::from_secs(5);
/// How long clients go on after it woke up.
const AFTER: Duration = Duration::from_secs(5);

/// Freezes the node that is so while clients ask the last one and messages come, and lets it go on.
pub(crate) fn freeze_under_load(nodes: &[Node], mail: &mut Mail, name: &str, is: impl Fn(&Value) -> bool) {
    let (asked, frozen) = (nodes.last().unwrap(), &nodes[position(nodes, is)]);
    let in_flight_max = mail.permits(asked, &id(frozen));
    let freeze = || {
        frozen.signal("STOP");
        thread::sleep(FROZEN);
        assert_eq!(of(asked, &id(frozen), "state"), "lost", "after {FROZEN:?}");
        frozen.signal("CONT");
    };
    let seen = mail.during(|| under_load(asked.at("far"), AFTER, freeze));
    let account = mail.account(asked, seen.began);
    println!("froze the {name}: {seen}; {account}");
    account.check(in_flight_max);
    assert!(seen.ok > 100, "{seen:?}");
    // Nor does it harm anybody when it wakes up.
    seen.check(LAST_FAILURE_MAX);
    assert!(seen.failed.len() < 60, "what was under way there is lost, and no more: {:?}", seen.failed);
    for node in nodes {
        eventually("everyone is there for everyone", || {
            let known = known(node);
            known.iter().all(|one| one["state"] == "ready").then_some(())
        });
    }
    ["far", "mail"].into_iter().for_each(|app| asked.until_ready(app));
}

#[test]
fn whoever_freezes_the_others_go_on_and_it_finds_its_way_back() {
    let nats = NatsServer::start(true);
    let nodes = lattice(&nats, 5);
    // The last node holds nothing and stays: clients ask it.
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3|4", &[]));
    let mut mail = Mail::deploy(&nats, &nodes[0], "2|3|4");
    freeze_under_load(&nodes, &mut mail, "leader", leads);
    freeze_under_load(&nodes, &mut mail, "follower", follows);
    freeze_under_load(&nodes, &mut mail, "holder", |one| one["labels"]["n"] == "3");
}

#[test]
fn a_short_freeze_moves_nothing() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let generation = || nodes[0].status("far")["generation"].as_u64().unwrap();
    let before = generation();
    nodes[1].signal("STOP");
    thread::sleep(Duration::from_secs(2));
    nodes[1].signal("CONT");
    eventually("it is heard again", || (of(&nodes[0], &id(&nodes[1]), "state") == "ready").then_some(()));
    assert_eq!(generation(), before);
}

/// Which nodes hold the component of app `far`.
fn holders(asked: &Node) -> Vec<String> {
    let holders = asked.status("far")["components"][0]["holders"].as_array().unwrap().clone();
    holders.into_iter().map(|one| one["node"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn when_too_many_vanish_nothing_moves_until_a_person_says_so() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 5);
    eventually("all vote, so that three are enough", || {
        known(&nodes[0]).iter().all(|one| one["role"] == "voter").then_some(())
    });
    nodes[0].deploy(&held_by("far", "test_misbehave", "3|4|5", &[]));
    let gone: Vec<String> = nodes.drain(3..).map(|node| (id(&node), node.kill()).0).collect();
    // The first of the two may have been declared lost before the other was missed.
    let frozen = eventually("status says that they are not replaced, and what to do", || {
        let status = nodes[0].trellis(&["status", "far"]).ok();
        status.contains("`trellis nodes thaw` places it anew now").then_some(status)
    });
    assert!(frozen.contains("is placed nowhere else until they are back"), "{frozen}");
    thread::sleep(FROZEN);
    assert!(holders(&nodes[0]).iter().any(|holder| gone.contains(holder)), "nothing moved");
    nodes[1].trellis(&["nodes", "thaw"]).ok();
    eventually("the one that is left holds all of it", || (holders(&nodes[0]) == [id(&nodes[2])]).then_some(()));
    nodes[0].until_ready("far");
}

#[test]
fn nodes_at_the_edge_freeze_nobody_nor_do_those_lost_before_a_restart() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    let edges = [4, 5].map(|n| node(&nats, &DataDir::new(), n, &["--edge"]));
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3", &[]));
    let lost = edges.map(|edge| (id(&edge), edge.kill()).0);
    for edge in &lost {
        eventually("it is lost", || (of(&nodes[0], edge, "state") == "lost").then_some(()));
    }
    for n in 1..=3 {
        let ended = nodes.remove(0);
        let data_dir = ended.data_dir().clone();
        assert!(ended.stop().success());
        nodes.push(node(&nats, &data_dir, n, &[]));
        eventually("it is back", || (of(&nodes[0], &id(&nodes[2]), "state") == "ready").then_some(()));
    }
    let left = id(&nodes[2]);
    nodes.remove(1).kill();
    eventually("what it held is on the other", || (holders(&nodes[0]) == [&*left]).then_some(()));
    nodes[0].until_ready("far");
}
