//! Timers, end to end: real guests woken by the clock on one node and on three, and nodes that die in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, examples, http, link, link_from, orders_at, provider, waking};
use crate::client::get;
use crate::lattice::{id, lattice, node};
use crate::node::{DataDir, Node};
use crate::trellis::{fed, trellis};

/// A component that notes its ticks, and a window on its notes. `tech` is whose store it notes in, `wakes` are timers.
fn clock(tech: &str, wakes: &[String]) -> String {
    let uses = || link("store", "wasi:keyvalue/store, atomics, batch");
    let bucket = "', config: [{name: bucket, properties: {bucket: clock, create: 'true'}}]}";
    let spread = || "{type: spreadscaler, properties: {instances: 9}}".to_owned();
    let publishes = link("bus", "trellis:messaging/producer");
    let parts = [
        component("window", "test_kv", "", &[uses(), spread()]),
        component("worker", "test_messages", "", &[uses(), publishes, spread()]),
        component("job", "test_run", "", &[]),
        http("window", ""),
        provider("bus", "embedded"),
        provider("store", tech).replace("nats'}", &format!("nats{bucket}")),
    ];
    app("clock", &[&parts[..], wakes].concat())
}

/// A timer for the component.
fn timer(name: &str, config: &str) -> String {
    waking(name, "timer", &[link_from("worker", "trellis:messaging/handler", name, config)])
}

/// A timer for each second.
fn each_second() -> String {
    timer("each", "{every: 1s, missed: all, body: note}")
}

/// What was noted under keys that begin so, each with its count.
fn notes(node: &Node, beginning: &str) -> BTreeMap<String, u64> {
    let at = node.at("clock");
    let keys = get(at, "/?keys").unwrap().ok();
    let keys = keys.lines().filter(|key| key.starts_with(beginning));
    keys.map(|key| (key.to_owned(), get(at, &format!("/{key}")).unwrap().ok().parse().unwrap())).collect()
}

/// The ticks that were noted, as seconds of the day, each with how often it started.
fn noted(node: &Node) -> Vec<(u64, u64)> {
    let seconds = |key: &str| {
        let time = key.split_once('T').unwrap().1.trim_end_matches('Z');
        time.split('-').fold(0, |sum, part| sum * 60 + part.parse::<u64>().unwrap())
    };
    let mut ticks: Vec<_> = notes(node, "tick/").iter().map(|(key, starts)| (seconds(key), *starts)).collect();
    ticks.sort_unstable();
    ticks
}

/// That no second is left out. How many started more than once.
#[track_caller]
fn repeats(ticks: &[(u64, u64)]) -> usize {
    let gaps: Vec<_> = ticks.windows(2).filter(|pair| pair[1].0 != pair[0].0 + 1).collect();
    // At midnight the seconds of the day begin anew.
    assert!(gaps.is_empty() || ticks[0].0 == 0, "ticks are lost: {gaps:?} of {ticks:?}");
    assert!(ticks.iter().all(|(_, starts)| *starts <= 2), "{ticks:?}");
    ticks.iter().filter(|(_, starts)| *starts > 1).count()
}

#[track_caller]
fn until_noted(node: &Node, count: usize) -> Vec<(u64, u64)> {
    eventually(&format!("{count} ticks are noted"), || Some(noted(node)).filter(|ticks| ticks.len() >= count))
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn each_second_starts_once_and_what_a_dead_node_missed_is_made_up_for() {
    let data_dir = DataDir::new();
    let node = Node::start_in(&data_dir, &[]);
    let often = link_from("job", "wasi:cli/run", "often", "{every: 1s, args: 'tick {time} attempt={attempt}'}");
    node.deploy(&clock("embedded", &[each_second(), waking("often", "timer", &[often])]));
    assert_eq!(repeats(&until_noted(&node, 4)), 0);
    eventually("what a run prints is in the log", || {
        node.trellis(&["logs", "clock/job"]).ok().contains("attempt=1").then_some(())
    });

    node.kill();
    sleep(Duration::from_secs(3));
    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("clock");
    // What ran when the node died starts again when its claim has ended.
    let repeats = repeats(&until_noted(&node, 20));
    assert!(repeats <= 1, "{repeats} ticks started twice");
}

/// A node whose timers tick three times, one for each policy of missed ticks, and when the last of these ticks is. The node
/// is killed before the first.
fn killed_before_its_ticks() -> (DataDir, u64) {
    for lead in [30, 60, 120] {
        let data_dir = DataDir::new();
        let node = Node::start_in(&data_dir, &[]);
        // Three seconds of one minute.
        let first = Some(seconds_since_1970() + lead).map(|at| if at % 60 > 57 { at + 3 } else { at }).unwrap();
        let (hour, minute, second) = (first / 3_600 % 24, first / 60 % 60, first % 60);
        let cron = format!("{second}-{} {minute} {hour} * * *", second + 2);
        let policies = ["skip", "once", "all"];
        let timers =
            policies.map(|policy| timer(policy, &format!("{{cron: '{cron}', missed: {policy}, body: {policy}}}")));
        node.deploy(&clock("embedded", &timers));
        node.kill();
        if seconds_since_1970() < first {
            return (data_dir, first + 2);
        }
    }
    panic!("no deploy was done in two minutes");
}

#[test]
fn of_ticks_that_came_while_no_node_was_there_none_one_or_all_start() {
    let (data_dir, last) = killed_before_its_ticks();
    // A tick that is no more than 15 s late is not a missed one.
    while seconds_since_1970() <= last + 16 {
        sleep(Duration::from_secs(1));
    }
    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("clock");
    let made_up = BTreeMap::from([("seen/all".to_owned(), 3), ("seen/once".to_owned(), 1)]);
    eventually("missed ticks are made up for", || (notes(&node, "seen/") == made_up).then_some(()));
    sleep(Duration::from_secs(2));
    assert_eq!(notes(&node, "seen/"), made_up, "and nothing else starts");
}

#[test]
fn the_report_of_the_shop_is_printed_by_the_clock() {
    let file = examples().join("orders/nightly.yaml");
    assert!(trellis(&["validate", file.to_str().unwrap()]).ok().ends_with("nightly.yaml: valid\n"));
    let node = Node::start(&[]);
    let nightly = orders_at("nightly.yaml", "");
    assert!(nightly.contains("0 7 * * *"));
    node.deploy(&nightly.replace("0 7 * * *", "* * * * * *"));
    eventually("the report is in the log", || {
        node.trellis(&["logs", "nightly/report"]).ok().contains("0 invoices, 0.00 in all").then_some(())
    });
}

/// The one trigger of a node.
fn trigger(node: &Node) -> Value {
    let all: Value = serde_json::from_str(&node.trellis(&["triggers", "-o", "json"]).ok()).unwrap();
    all["triggers"][0].clone()
}

#[test]
fn a_timer_is_seen_paused_and_resumed_as_a_queue_is() {
    let node = Node::start(&[]);
    node.deploy(&clock("embedded", &[each_second()]));
    let trigger = || trigger(&node);
    let running =
        eventually("ticks are done", || Some(trigger()).filter(|it| it["outcomes"]["ack"].as_u64() > Some(1)));
    let of = |what: &str| running[what].as_str().unwrap();
    assert_eq!((of("component"), of("system"), of("state")), ("clock/worker", "timer", "running"));

    node.trellis(&["pause", "clock/worker"]).ok();
    eventually("nothing runs", || Some(trigger()).filter(|it| it["state"] == "paused" && it["held"] == 0));
    let paused = noted(&node).len();
    sleep(Duration::from_secs(3));
    assert_eq!(noted(&node).len(), paused, "a timer that is paused wakes nobody");
    node.trellis(&["resume", "clock/worker"]).ok();
    // Ticks that came meanwhile were missed, and this timer makes up for all.
    assert_eq!(repeats(&until_noted(&node, paused + 6)), 0);
}

/// Where the starts of a tick are noted, by the id of its dead letter.
fn tick_key(id: &str) -> String {
    format!("tick/{}", id.rsplit_once('-').unwrap().0.replace(':', "-"))
}

#[test]
fn ticks_that_are_given_up_are_dead_letters_of_their_own_timers() {
    let node = Node::start(&[]);
    let timers = ["one", "two"].map(|name| timer(name, "{every: 2s, body: dead-letter}"));
    node.deploy(&clock("embedded", &timers));
    let letters = || node.dead_letters("clock", &[]);
    let id = eventually("both timers gave up the same tick", || {
        let ids: Vec<_> = letters().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect();
        let time = |id: &str| id.rsplit_once('-').unwrap().0.to_owned();
        ids.iter().find(|id| ids.iter().any(|other| *other != **id && time(other) == time(id))).cloned()
    });
    let letter = letters().into_iter().find(|letter| letter["id"] == id.as_str()).unwrap();
    assert!(letter["digest"].as_str().unwrap().starts_with("sha256:") && letter["generation"] != 0, "{letter}");
    let shown = node.trellis(&["dead-letters", "show", "clock/worker", &id]).ok();
    assert!(shown.contains("as asked") && shown.contains(&format!("trellis-tick-id: {id}")), "{shown}");

    let key = tick_key(&id);
    assert_eq!(notes(&node, &key), BTreeMap::from([(key.clone(), 2)]), "a start by each timer");
    assert_eq!(node.trellis(&["dead-letters", "replay", "clock", &id]).ok(), "1 replayed\n");
    eventually("the tick starts again", || (notes(&node, &key)[&key] == 3).then_some(()));
}

/// A timer whose every tick is given up at its first fault, until it pauses.
fn trapping() -> String {
    timer("trapping", "{every: 1s, missed: all, overlap: allow, delivery.max_faults: '1', body: trap}")
}

#[test]
fn a_timer_that_pauses_by_itself_does_so_after_a_restart_too() {
    let nats = NatsServer::start(true);
    for (tech, nats) in [("embedded", None), ("nats", Some(&nats))] {
        let more = nats.map_or_else(Vec::new, |nats| vec!["--nats", nats.url.as_str(), "--bootstrap"]);
        let node = Node::start(&more);
        node.deploy(&clock(tech, &[trapping()]));
        let pauses = |node: &Node| {
            eventually("it pauses by itself", || (trigger(node)["state"] == "auto-paused").then_some(()));
            let starts: u64 = noted(node).iter().map(|(_, starts)| starts).sum();
            (starts, node.dead_letters("clock", &[]).len())
        };
        let (starts, letters) = pauses(&node);
        let node = Node::start_in(&node.kill(), &more);
        // A link that pauses is not ready.
        eventually("its window is open again", || {
            let status = node.status("clock");
            status["links"].as_array()?.iter().any(|link| link["at"].is_string()).then_some(())
        });
        pauses(&node);
        sleep(Duration::from_secs(4));
        let after = pauses(&node);
        println!("{tech}: {starts} starts and {letters} letters, {after:?} after the restart");
        // What ran at the kill starts once more, and a probe may be due.
        assert!(after.0 <= starts + 3, "it goes on: {starts} starts and {letters} letters became {after:?}");
        assert!(after.1 <= letters + 1, "it gives up: {starts} starts and {letters} letters became {after:?}");
    }
}

#[test]
fn a_tick_that_is_replayed_starts_at_once_whichever_node_is_told() {
    let nats = NatsServer::start(true);
    let nodes = lattice(&nats, 2);
    // Its next tick, which would bring along what is replayed, is far off then.
    nodes[0].deploy(&clock("nats", &[timer("one", "{every: 45s, body: dead-letter}")]));
    let letters = |node: &Node| -> Vec<String> {
        let letters = node.dead_letters("clock", &[]);
        letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
    };
    let id = eventually("a tick is given up", || letters(&nodes[0]).pop());
    let key = tick_key(&id);
    for (node, starts) in nodes.iter().chain(&nodes).zip(2..) {
        eventually("the tick is given up", || letters(node).contains(&id).then_some(()));
        let replayed = Instant::now();
        node.trellis(&["dead-letters", "replay", "clock", &id]).ok();
        eventually("the tick starts again", || (notes(&nodes[0], &key)[&key] == starts).then_some(()));
        println!("start {starts} came {:?} after the replay", replayed.elapsed());
        assert!(replayed.elapsed() < Duration::from_secs(20), "less than it takes until a timer looks anyway");
    }
}

/// A node whose wall clock says what the file says: `+5h`. What a machine knows of the time since its start stays right.
fn node_with_a_clock(clock: &Path) -> Node {
    let mut faked = Command::new("faketime");
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    // `faketime` itself sets a time that would be before the file; and it waits for the node, which is to end with it.
    faked.args(["-f", "+0", "env", "-u", "FAKETIME", &file, "setpriv", "--pdeathsig", "KILL"]);
    faked.arg(env!("CARGO_BIN_EXE_trellis"));
    let environment = [("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME_NO_CACHE", "1")];
    Node::start_by(faked, &DataDir::new(), &[], &environment)
}

#[test]
fn a_clock_that_is_set_by_hours_neither_stops_a_timer_nor_makes_it_run_wild() {
    let dir = tempfile::tempdir().unwrap();
    let hands = dir.path().join("clock");
    std::fs::write(&hands, "+0").unwrap();
    let node = node_with_a_clock(&hands);
    node.deploy(&clock("embedded", &[timer("each", "{every: 1s, body: note}")]));
    until_noted(&node, 3);
    for offset in ["+5h", "-5h", "+0"] {
        let (before, began) = (noted(&node).len(), Instant::now());
        std::fs::write(&hands, offset).unwrap();
        let ticks = until_noted(&node, before + 4);
        let most = began.elapsed().as_secs() as usize + 3;
        println!("{} ticks more in {:?} after the clock was set to {offset}", ticks.len() - before, began.elapsed());
        assert!(ticks.len() - before <= most, "{} ticks in {most} s", ticks.len() - before);
    }
    assert_eq!(noted(&node).iter().filter(|(_, starts)| *starts > 1).count(), 0);
}

/// Who has the lease of the timer.
fn holder(asked: &Node) -> Option<String> {
    let status: Value = serde_json::from_str(&asked.trellis(&["status", "clock", "-o", "json"]).stdout).ok()?;
    let lease = status["links"].as_array()?.iter().find_map(|link| link.get("lease"))?;
    Some(lease["node"].as_str()?.into())
}

#[test]
fn three_nodes_start_each_tick_once_also_when_the_one_that_has_the_lease_dies() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&clock("nats", &[each_second()]));
    assert_eq!(repeats(&until_noted(&nodes[0], 6)), 0, "three nodes tick as one");

    for round in 1..=2 {
        let had = eventually("a node has the lease", || holder(&nodes[0]));
        let position = nodes.iter().position(|node| id(node) == had).unwrap();
        let before = noted(&nodes[0]).len();
        let data_dir = nodes.remove(position).kill();
        until_noted(&nodes[0], before + 15);
        let has = eventually("another has the lease", || holder(&nodes[0]).filter(|has| *has != had));
        println!("{had} had the lease and died; {has} has it");
        nodes.push(node(&nats, &data_dir, 3 + round, &[]));
        nodes[2].until_ready("clock");
    }
    let ticks = noted(&nodes[0]);
    let repeats = repeats(&ticks);
    println!("{} ticks, {repeats} of them started twice, none lost", ticks.len());
    assert!(repeats <= 2, "only what ran on a node when it died starts twice: {ticks:?}");
}

#[test]
fn a_nats_without_jetstream_is_named_by_the_timers_that_need_it() {
    let nats = NatsServer::start(false);
    let node = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
    let said = node.deploy_with(&clock("embedded", &[each_second()]), &["--wait", "5s"]).failed(1);
    assert!(said.contains("the ledger of timers") && said.contains("JetStream"), "{said}");
}

#[test]
fn a_timer_stands_still_while_its_ledger_is_away_and_goes_on_with_it() {
    let mut nats = NatsServer::start(true);
    let node = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
    node.deploy(&clock("embedded", &[each_second()]));
    until_noted(&node, 3);
    nats.kill();
    eventually("it says so", || (node.status("clock")["state"] != "ready").then_some(()));
    sleep(Duration::from_secs(3));
    let away = noted(&node).len();
    nats.restart();
    let repeats = repeats(&until_noted(&node, away + 6));
    assert!(repeats <= 1, "{repeats} ticks started twice");
    node.until_ready("clock");
}

#[test]
fn a_timer_that_cannot_tick_is_refused_where_it_stands() {
    let node = Node::start(&[]);
    for (config, said) in [
        ("cron: '61 * * * *'", "config `cron`: `61 * * * *`: field 1, the minute, has `61`, which is out of bounds"),
        ("every: 1s, delivery.dead_letter: letters", "config `delivery.dead_letter`: the newest 50 dead letters"),
        ("cron: '0 9 * * *', timezone: Europe/Nowhere", "config `timezone`: `Europe/Nowhere` is no time zone"),
        ("missed: once", "config `cron`: is missing; write `cron: \"0 9 * * *\"` or `every: 10s`"),
        ("every: 10ms", "config `every`: `10ms` is not from 1 s"),
    ] {
        let manifest = clock("embedded", &[timer("each", &format!("{{{config}}}"))]);
        let line = manifest.lines().position(|line| line.contains(config)).unwrap() + 1;
        let validated = fed(&["validate", "-"], manifest.as_bytes());
        let place = format!("--> <stdin>:{line}:");
        assert!(validated.code == 1 && validated.stdout.contains(said), "{validated:#?}");
        assert!(validated.stdout.contains(&place), "{place} is not in {validated:#?}");
        let refused = node.try_deploy(&manifest).failed(1);
        assert!(refused.contains(said) && refused.contains(&format!(":{line}:")), "{refused}");
    }
    assert_eq!(node.trellis(&["apps", "-o", "json"]).ok().trim(), "[]");
}
