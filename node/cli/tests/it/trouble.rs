//! What happens around nodes: their NATS server dies, a cable is pulled, a clock is wrong, a disk fills up, a data
//! directory is another lattice's.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use trellis_bus::testing::NatsServer;

use crate::apps::{eventually, hello, image};
use crate::client::get;
use crate::durability::SmallDisk;
use crate::lattice::{held_by, id, known, lattice, node, of};
use crate::node::{DataDir, Node};
use crate::trellis::command;

fn admin(node: &Node) -> SocketAddr {
    node.admin.strip_prefix("http://").unwrap().parse().unwrap()
}

fn all_ready(asked: &Node, count: usize) {
    eventually("every node is ready", || {
        let known = known(asked);
        (known.len() == count && known.iter().all(|one| one["state"] == "ready")).then_some(())
    });
}

#[test]
fn nats_is_killed_and_comes_back_and_no_node_needs_a_restart() {
    let mut nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let (holder, elsewhere) = (nodes[1].at("far"), nodes[0].at("far"));
    // Far less than the 30 s that an event waits for nodes that are busy: its client learns that nobody can be asked.
    let refused_within = |at_most: Duration| {
        let asked = Instant::now();
        let refused = get(elsewhere, "/").unwrap();
        assert!(asked.elapsed() < at_most, "{:?}", asked.elapsed());
        let told = "busy: this node is not connected to its bus, and only other nodes hold far/far\n";
        assert_eq!((refused.status, refused.header("retry-after"), &*refused.text()), (503, Some("1"), told));
    };
    nats.kill();
    refused_within(Duration::from_secs(8));
    thread::sleep(Duration::from_secs(8));
    refused_within(Duration::from_secs(2));
    // Longer than anyone waits for a node: what is held goes on, and nobody is taken for dead.
    assert_eq!(get(holder, "/").unwrap().ok(), "ok");
    for node in &nodes {
        let lost = known(node).iter().filter(|one| one["state"] == "lost").count();
        assert_eq!(lost, 0, "its own NATS is gone, and it says that others are lost");
        assert_eq!(get(admin(node), "/healthz").unwrap().status, 200);
    }
    nats.restart();
    for node in &nodes {
        all_ready(node, 3);
    }
    for node in &nodes {
        eventually("every node reaches the holder again", || {
            get(node.at("far"), "/").ok()?.ok().eq("ok").then_some(())
        });
    }
    nodes[2].deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello")));
}

/// A network namespace with a cable to this machine.
struct Namespace {
    name: String,
    /// This machine's end.
    here: String,
}

impl Namespace {
    /// `None` where whoever runs the tests said that there are none.
    fn new() -> Option<Self> {
        if std::env::var_os("TRELLIS_TEST_NO_NETNS").is_some() {
            println!("skipped: TRELLIS_TEST_NO_NETNS is set");
            return None;
        }
        let n = std::process::id() % 250;
        let (name, here, cable) = (format!("trellis-{n}"), format!("10.213.{n}.1"), format!("trellis{n}"));
        let one = Self { name: name.clone(), here: here.clone() };
        let peer = format!("{cable}p");
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", &peer, "netns", &name]);
        ip(&["addr", "add", &format!("{here}/24"), "dev", &cable]);
        ip(&["link", "set", &cable, "up"]);
        ip(&["-n", &name, "addr", "add", &format!("10.213.{n}.2/24"), "dev", &peer]);
        ip(&["-n", &name, "link", "set", &peer, "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Some(one)
    }

    fn cable(&self, up: bool) {
        let peer = format!("{}p", self.name.replace('-', ""));
        ip(&["-n", &self.name, "link", "set", &peer, if up { "up" } else { "down" }]);
    }

    /// A command that runs in there.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Asks something that listens in there.
    fn get(&self, url: &str) -> Output {
        self.command("curl").args(["--silent", "--max-time", "5", "--write-out", "%{http_code}", url]).output().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its end of the cable goes with it, and this machine's end with that.
        let gone = Command::new("ip").args(["netns", "delete", &self.name]).status();
        assert!(gone.is_ok_and(|status| status.success()) || thread::panicking());
    }
}

fn ip(args: &[&str]) {
    match Command::new("ip").args(args).output() {
        Ok(output) if output.status.success() => {}
        other => panic!("no network namespace: run as root with iproute2, or set TRELLIS_TEST_NO_NETNS=1: {other:?}"),
    }
}

#[test]
fn a_node_whose_cable_is_pulled_goes_on_and_comes_back() {
    let Some(namespace) = Namespace::new() else { return };
    // Only this machine and the namespace reach that address.
    let nats = NatsServer::start_at(&namespace.here, false, &[]);
    let nodes = lattice(&nats, 2);
    let mut inside = namespace.command("env");
    inside.args(["--unset=TRELLIS_ADMIN_TOKEN", env!("CARGO_BIN_EXE_trellis")]);
    let cut_off = Node::start_by(inside, &DataDir::new(), &["--nats", &nats.url, "--label", "n=3"], &[]);
    let cut_off_id = id(&cut_off);
    all_ready(&nodes[0], 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3", &[]));
    // Each time anew: it listens elsewhere after it was lost.
    let asked = || {
        let mut status = namespace.command(env!("CARGO_BIN_EXE_trellis"));
        let output = status.args(["status", "far", "-o", "json", "--admin", &cut_off.admin]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let at = status["links"].as_array()?.iter().find_map(|link| link["at"].as_str())?;
        (String::from_utf8(namespace.get(&format!("{at}/")).stdout).unwrap() == "ok200").then_some(())
    };
    eventually("it serves", asked);

    namespace.cable(false);
    eventually("the others notice", || (of(&nodes[0], &cut_off_id, "state") == "lost").then_some(()));
    eventually("what it held is on the other", || {
        let status = nodes[0].status("far");
        let holders = status["components"][0]["holders"].as_array().unwrap().clone();
        (status["state"] == "ready" && holders.len() == 1).then_some(())
    });
    asked().expect("it goes on with what it holds");
    let readyz = || String::from_utf8(namespace.get(&format!("{}/readyz", cut_off.admin)).stdout).unwrap();
    let says_so = |told: &str| told.contains("this node serves what it holds, has no leases, and takes no changes");
    let told = readyz();
    assert!(told.ends_with("503") && says_so(&told), "{told}");
    for args in [&["status"][..], &["status", "far"], &["explain", "far"]] {
        let mut status = namespace.command(env!("CARGO_BIN_EXE_trellis"));
        let told = status.args(args).args(["--admin", &cut_off.admin]).output().unwrap();
        assert!(says_so(&String::from_utf8_lossy(&told.stdout)), "{told:?}");
    }

    namespace.cable(true);
    all_ready(&nodes[0], 3);
    eventually("it serves through the others again", asked);
    eventually("it is ready", || readyz().ends_with("200").then_some(()));
}

/// How many days a node's clock is ahead, as the first line of its log tells.
fn days_ahead(node: &Node) -> i64 {
    let log = node.log();
    let seconds = |time: &str| {
        let told = Command::new("date").args(["--date", time, "+%s"]).output().unwrap();
        String::from_utf8(told.stdout).unwrap().trim().parse::<i64>().unwrap_or_else(|_| panic!("`{time}`: {log}"))
    };
    (seconds(log.split_whitespace().next().unwrap()) - seconds("now")) / (24 * 60 * 60)
}

#[test]
fn a_node_with_a_wrong_clock_is_a_node_like_any_other() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 2);
    for (n, offset) in [(3, "+40d"), (4, "-40d")] {
        let mut faked = Command::new("faketime");
        // Only what a wall clock says is wrong: no machine's time since its start is.
        // It waits for what it runs, which is to end with it.
        faked.args(["-f", offset, "setpriv", "--pdeathsig", "KILL"]).arg(env!("CARGO_BIN_EXE_trellis"));
        let args = ["--nats", &nats.url, "--label", &format!("n={n}")];
        nodes.push(Node::start_by(faked, &DataDir::new(), &args, &[("FAKETIME_DONT_FAKE_MONOTONIC", "1")]));
    }
    all_ready(&nodes[0], 4);
    assert!(days_ahead(&nodes[2]) > 35 && days_ahead(&nodes[3]) < -35, "their clocks are wrong");
    nodes[2].deploy(&held_by("far", "test_misbehave", "3|4", &[]));
    for node in &nodes {
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
    }
    // A node that was lost a moment ago was not lost weeks ago, whatever clock the leader has.
    let killed = nodes.remove(1);
    let gone = id(&killed);
    let data_dir = killed.kill();
    eventually("it is lost", || (of(&nodes[0], &gone, "state") == "lost").then_some(()));
    thread::sleep(Duration::from_secs(3));
    assert_eq!(of(&nodes[2], &gone, "state"), "lost");
    let back = node(&nats, &data_dir, 2, &[]);
    assert_eq!(id(&back), gone);
    all_ready(&nodes[0], 4);
}

#[test]
fn a_voter_whose_disk_is_full_stops_and_the_others_go_on() {
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let nats = NatsServer::start(false);
    let mut nodes = vec![node(&nats, &DataDir::new(), 1, &["--bootstrap"])];
    let small = node(&nats, &disk.0, 2, &[]);
    nodes.push(node(&nats, &DataDir::new(), 3, &[]));
    eventually("three vote", || {
        (known(&nodes[0]).iter().filter(|one| one["role"] == "voter").count() == 3).then_some(())
    });
    let value = format!("value={}", "x".repeat(40_000));
    for n in 0..100 {
        nodes[0].trellis(&["config", "put", &format!("config{n}"), &value]).ok();
    }
    assert_eq!(small.ended().code(), Some(1));
    let log = std::fs::read_to_string(disk.0.path().parent().unwrap().join("node.log")).unwrap();
    assert!(log.contains("the disk is full; free some space") && !log.contains("panicked"), "{log}");

    disk.grow("64m");
    let back = node(&nats, &disk.0, 2, &[]);
    all_ready(&back, 3);
    // It reads its own copy, which the others bring up to date.
    eventually("it has all that was written", || {
        let kept = back.trellis(&["config", "list"]).ok();
        (0..100).all(|n| kept.lines().any(|name| name == format!("config{n}"))).then_some(())
    });
}

#[test]
fn a_data_directory_of_another_lattice_is_refused_by_name() {
    let nats = NatsServer::start(false);
    let home = node(&nats, &DataDir::new(), 1, &["--bootstrap", "--lattice", "home"]).kill();
    let _away = node(&nats, &DataDir::new(), 1, &["--bootstrap", "--lattice", "away"]);
    let up = command()
        .args(["up", "--nats", &nats.url, "--lattice", "away", "--admin", "127.0.0.1:0", "--data-dir"])
        .arg(home.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(up.stderr).unwrap();
    assert!(up.status.code() == Some(1) && stderr.contains("--lattice home"), "{stderr}");
    // It is as it was.
    node(&nats, &home, 1, &["--lattice", "home"]);
}
