//! A lattice of an older binary that is rolled over to this one, node by node, while clients ask and messages come.
//!
//! `TRELLIS_TEST_PREVIOUS` names the older binary; `make torture` builds the previous commit's. Without it there is
//! nothing to mix, and the test says so.

use std::process::Command;
use std::time::Duration;

use trellis_bus::testing::NatsServer;

use crate::apps::{eventually, hello, image};
use crate::client::get;
use crate::home;
use crate::large_apps;
use crate::lattice::{held_by, id, known, of, under_load};
use crate::mail::Mail;
use crate::node::{DataDir, Node};
use crate::trellis::command;

#[test]
fn a_lattice_of_the_previous_version_rolls_over() {
    let Some(previous) = std::env::var_os("TRELLIS_TEST_PREVIOUS") else {
        println!("skipped: TRELLIS_TEST_PREVIOUS names no older binary");
        return;
    };
    let nats = NatsServer::start(true);
    let start = |by: Command, dir: &DataDir, n: usize| {
        let label = format!("n={n}");
        let bootstrap: &[&str] = if n == 1 { &["--bootstrap"] } else { &[] };
        Node::start_by(by, dir, &[&["--nats", &nats.url, "--label", &label], bootstrap].concat(), &[])
    };
    let mut nodes: Vec<Node> = (1..=4).map(|n| start(Command::new(&previous), &DataDir::new(), n)).collect();
    let all_ready = |asked: &Node| {
        eventually("everyone is there", || {
            let known = known(asked);
            (known.len() == 4 && known.iter().all(|one| one["state"] == "ready")).then_some(())
        });
    };
    all_ready(&nodes[3]);
    nodes[0].deploy(&held_by("far", "test_misbehave", "1|2|3", &[]));
    let mut mail = Mail::deploy(&nats, &nodes[0], "1|2|3");
    nodes[1].trellis(&["config", "put", "colours", "sky=blue"]).ok();
    // Embedded data on a node that is not the oldest.
    nodes[0].deploy(&home::keys("kept", "3"));
    assert_eq!(home::ask(&nodes[0], "kept", "POST", "/sum?by=5").ok(), "5");
    // Builds before level 4 know of no home, and the data is where the component is.
    let level = of(&nodes[0], &id(&nodes[0]), "labels")["trellis.level"].as_str().and_then(|level| level.parse().ok());
    let knows_homes = level.is_some_and(|level: u16| level >= 4);
    let keeps = match knows_homes {
        true => eventually("there is a home", || home::homes(&nodes[0]).pop()),
        false => id(&nodes[2]),
    };
    for n in 1..=3 {
        let old = nodes.remove(0);
        let data_dir = old.data_dir().clone();
        let (mut old, mut new) = (Some(old), None);
        let asked = nodes.iter().find(|node| of(node, &id(node), "labels")["n"] == "4").unwrap();
        let in_flight_max = mail.permits(asked, &id(old.as_ref().unwrap()));
        let at = asked.at("far");
        let seen = mail.during(|| {
            under_load(at, Duration::from_secs(5), || {
                old.take().unwrap().stop();
                new = Some(start(command(), &data_dir, n));
            })
        });
        let account = mail.account(asked, seen.began);
        println!("rolled node {n} over: {seen}; {account}");
        account.check(in_flight_max);
        // Who is told to stop hands over first.
        assert!(seen.ok > 50 && seen.failed.len() * 100 <= seen.ok, "{seen:?}");
        nodes.push(new.unwrap());
        all_ready(&nodes[0]);
        all_ready(nodes.last().unwrap());
        nodes[0].until_ready("far");
        ["kept", "mail"].into_iter().for_each(|app| nodes[0].until_ready(app));
        assert_eq!(home::ask(&nodes[0], "kept", "GET", "/sum").ok(), "5");
    }
    assert!(knows_homes || home::homes(nodes.last().unwrap()).is_empty(), "one of the members knows of no home");
    // What the oldest does not know yet is refused, and says who that is; else it is done.
    let early = nodes.last().unwrap().try_deploy(&large_apps::manifest());
    assert!(
        early.code == 0 || early.stderr.contains("takes level") && early.stderr.contains("upgrade it"),
        "{early:?}"
    );
    let last = nodes.remove(0);
    let data_dir = last.data_dir().clone();
    assert_eq!(last.stop().code(), Some(0));
    nodes.push(start(command(), &data_dir, 4));
    for node in &nodes {
        all_ready(node);
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
        assert_eq!(node.trellis(&["config", "get", "colours"]).ok(), "sky=blue\n");
        eventually("the home is where the data is", || (home::homes(node) == [keeps.clone()]).then_some(()));
        assert_eq!(home::ask(node, "kept", "GET", "/sum").ok(), "5");
    }
    nodes[2].deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello")));
    nodes[1].deploy(&large_apps::manifest());
}
