//! A node that holds a component is lost: what clients of another node notice, and for how long.

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use trellis_bus::testing::NatsServer;

use crate::apps::eventually;
use crate::client::{connect, get, head, read, read_head};
use crate::frozen::LAST_FAILURE_MAX;
use crate::lattice::{held_by, id, known, lattice, leads, of, routed, under_load};
use crate::leases::events;
use crate::mail::Mail;
use crate::node::Node;

/// What takes milliseconds where nothing is waited for, on a machine that is busy with other tests.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Whether a request of a node that does not hold the component fails at once, naming the component.
fn fails_at_once(asked: &Node) {
    let began = Instant::now();
    let refused = get(asked.at("far"), "/").unwrap();
    let took = began.elapsed();
    assert_eq!((refused.status, refused.text().trim()), (503, "no node holds far/far"));
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn once_the_only_holder_is_lost_an_event_fails_at_once() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let holder = nodes.remove(1);
    let name = id(&holder);
    let is_lost = || eventually("it is lost", || (of(&nodes[0], &name, "state") == "lost").then_some(()));
    // Frozen, it listens still and does not answer; killed, it is not there.
    holder.signal("STOP");
    is_lost();
    eventually("nothing is placed there any more", || {
        nodes[0].status("far")["components"][0]["holders"].as_array().unwrap().is_empty().then_some(())
    });
    fails_at_once(&nodes[0]);
    for node in &nodes {
        eventually("it is told that it runs there no more", || {
            events(node).into_iter().find(|event| {
                let is_of_it = event["subject"] == "far/far" && event["data"]["node"] == name.as_str();
                event["type"] == "trellis.component.stopped" && is_of_it && event["data"]["why"] == "the node is lost"
            })
        });
    }
    drop(holder.kill());
    fails_at_once(&nodes[1]);
}

#[test]
fn the_only_holder_that_dies_is_replaced_within_nine_seconds() {
    let nats = NatsServer::start(true);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3", &[]).replace("instances: 20", "instances: 1"));
    let holder = nodes[0].status("far")["components"][0]["holders"][0]["node"].clone();
    let holder = nodes.iter().position(|node| holder == id(node).as_str()).unwrap();
    let holder = nodes.remove(holder);
    let mut mail = Mail::deploy(&nats, &nodes[0], "2|3");
    let in_flight_max = mail.permits(&nodes[0], &id(&holder));
    let at = nodes[0].at("far");
    let seen = mail.during(|| under_load(at, Duration::from_secs(20), || drop(holder.kill())));
    let account = mail.account(&nodes[0], seen.began);
    println!("{seen}; {account}");
    account.check(in_flight_max);
    account.check_again();
    // 9 s, and 3 for a busy machine.
    seen.check(Duration::from_secs(12));
    assert!(seen.failed.len() < 10, "what was under way is lost, and no more: {:?}", seen.failed);
    assert_eq!(get(nodes[0].at("far"), "/").unwrap().ok(), "ok");
}

#[test]
fn clients_of_a_node_that_holds_it_notice_nothing_of_others() {
    const AFTER: Duration = Duration::from_secs(12);
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 5);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3", &[]));
    let (asked, holder) = (nodes.remove(2), nodes.remove(1));
    let at = asked.at("far");
    let mut dies = vec![holder];
    let leader = known(&asked).into_iter().find(leads).unwrap();
    dies.extend(nodes.iter().position(|node| leader["id"] == id(node).as_str()).map(|leads| nodes.remove(leads)));
    let killed = under_load(at, AFTER, || dies.into_iter().for_each(|node| drop(node.kill())));
    let frozen = under_load(at, AFTER, || nodes[0].signal("STOP"));
    nodes[0].signal("CONT");
    for (what, seen) in [("killed", killed), ("froze", frozen)] {
        println!("{what} others: {seen}");
        assert!(seen.ok > 100 && seen.failed.is_empty(), "{seen:?}");
        seen.check(AT_ONCE);
    }
    let went = routed(&asked);
    assert!(went.is_empty(), "each ran where it came: {went:?}");
}

/// What is seen when a node that holds `far` freezes, and when it is killed after it was there again.
fn frozen_and_killed<T>(asked: &Node, holder: &Node, seen: impl Fn(&dyn Fn()) -> T) -> [T; 2] {
    let frozen = seen(&|| holder.signal("STOP"));
    holder.signal("CONT");
    eventually("it is there again", || (of(asked, &id(holder), "state") == "ready").then_some(()));
    asked.until_ready("far");
    [frozen, seen(&|| holder.signal("KILL"))]
}

/// How long after `what` each of some requests failed that were under way on the holders of an app for a second by then.
fn failures(asked: &Node, what: &dyn Fn()) -> Vec<Duration> {
    let at = asked.at("far");
    thread::scope(|scope| {
        let asks: Vec<_> =
            (0..12).map(|_| scope.spawn(move || (get(at, "/slow?ms=3000").unwrap().status, Instant::now()))).collect();
        thread::sleep(Duration::from_millis(1_100));
        what();
        let began = Instant::now();
        let ended = asks.into_iter().map(|ask| ask.join().unwrap());
        ended.filter(|(status, _)| *status != 200).map(|(_, at)| at.saturating_duration_since(began)).collect()
    })
}

#[test]
fn what_is_under_way_on_a_node_that_freezes_or_dies_fails_within_four_seconds() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2|3", &[]));
    let holder = nodes.remove(1);
    let [frozen, killed] = frozen_and_killed(&nodes[0], &holder, |what| failures(&nodes[0], what));
    println!("failed after a freeze: {frozen:?}, after a kill: {killed:?}");
    for failed in [frozen, killed] {
        assert!(failed.iter().max().is_some_and(|last| *last < LAST_FAILURE_MAX), "{failed:?}");
    }
}

#[test]
fn a_reply_under_way_breaks_off_soon_after_its_holder_is_lost() {
    let nats = NatsServer::start(false);
    let mut nodes = lattice(&nats, 3);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let holder = nodes.remove(1);
    let broken_after = |what: &dyn Fn()| {
        let mut stream = connect(nodes[0].at("far"));
        stream.write_all(head("GET", "/huge", &[], 0).as_bytes()).unwrap();
        let mut reply = BufReader::new(stream);
        assert_eq!(read_head(&mut reply).unwrap().status, 200);
        what();
        let began = Instant::now();
        let mut bytes = vec![0; 1 << 20];
        while reply.read(&mut bytes).is_ok_and(|read| read > 0) {}
        began.elapsed()
    };
    let [frozen, killed] = frozen_and_killed(&nodes[0], &holder, broken_after);
    println!("broken off {frozen:?} after a freeze, {killed:?} after a kill");
    assert!(frozen.max(killed) < Duration::from_secs(12), "9 s, and 3 for a busy machine");
}

#[test]
fn a_reply_before_the_end_of_an_upload_ends_the_connection() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    for node in &nodes {
        let mut stream = connect(node.at("far"));
        stream.write_all(head("POST", "/", &[], 40_000_000).as_bytes()).unwrap();
        stream.write_all(&[b'x'; 300_000]).unwrap();
        let mut reply = BufReader::new(stream);
        assert_eq!(read(&mut reply).unwrap().ok(), "ok");
        let began = Instant::now();
        let rest = reply.read(&mut [0]);
        let is_over =
            matches!(&rest, Ok(0)) || rest.as_ref().is_err_and(|why| why.kind() == ErrorKind::ConnectionReset);
        assert!(is_over && began.elapsed() < AT_ONCE, "{rest:?} after {:?}", began.elapsed());
    }
}
