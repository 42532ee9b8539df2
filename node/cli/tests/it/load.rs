//! Load that would starve a careless node: guests that compute for ever, and bodies larger than anything may be held.

use std::io::{BufReader, Read as _, Write as _, sink};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use trellis_bus::testing::NatsServer;

use crate::apps::eventually;
use crate::client::{connect, get, head, read, read_body, read_head};
use crate::lattice::{held_by, known, lattice};
use crate::leases::events;
use crate::node::Node;

/// A number that the environment may raise, for a run that takes long.
fn torture(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn guests_that_compute_for_ever_make_no_node_seem_lost() {
    let (spinning, seconds) = (torture("TRELLIS_TORTURE_SPINNING", 30), torture("TRELLIS_TORTURE_SECONDS", 15));
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let instances = spinning + 10;
    let manifest =
        held_by("far", "test_misbehave", "1|2|3", &[]).replace("instances: 20", &format!("instances: {instances}"));
    nodes[0].deploy(&manifest.replace("limits: {timeout: 30s}", "limits: {timeout: 600s}"));
    let at: Vec<_> = nodes.iter().map(|node| node.at("far")).collect();
    let mut streams = Vec::new();
    for n in 0..spinning {
        let mut stream = connect(at[usize::try_from(n).unwrap() % at.len()]);
        stream.write_all(head("GET", "/loop", &[], 0).as_bytes()).unwrap();
        streams.push(stream);
    }
    let running = || -> u64 {
        let status = nodes[0].status("far");
        status["components"][0]["holders"].as_array().unwrap().iter().map(|one| one["running"].as_u64().unwrap()).sum()
    };
    eventually("they compute", || (running() == spinning).then_some(()));
    let until = Instant::now() + Duration::from_secs(seconds);
    let leader = || known(&nodes[0]).into_iter().find(|one| one["leader"] == true).map(|one| one["id"].clone());
    let first = leader();
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        let began = Instant::now();
        let known = known(&nodes[1]);
        slowest = slowest.max(began.elapsed());
        let ill: Vec<_> = known.iter().filter(|one| one["state"] != "ready").collect();
        assert!(ill.is_empty(), "{ill:?}");
        thread::sleep(Duration::from_millis(500));
    }
    println!("{spinning} guests computed for {seconds} s; the slowest answer of a node took {slowest:?}");
    assert_eq!(leader(), first, "and the leader still leads");
    for node in &nodes {
        let lost: Vec<_> = events(node).into_iter().filter(|event| event["type"] == "trellis.node.lost").collect();
        assert!(lost.is_empty(), "nor was anybody taken for lost between two looks: {lost:?}");
    }
    drop(streams);
    eventually("they are ended", || (running() == 0).then_some(()));
    assert_eq!(get(nodes[0].at("far"), "/").unwrap().ok(), "ok");
}

/// 100 MB up and down through a node that does not hold the component; neither node holds more than a little of it.
#[test]
fn a_large_body_passes_two_nodes_in_little_memory() {
    const BYTES: usize = 100_000_000;
    /// What a node may hold more than before: chunks under way, buffers of sockets, the sandbox.
    const MORE_BYTES_MAX: u64 = 40 << 20;
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    let manifest = held_by("far", "test_misbehave", "2", &[]).replace("'50000000'", "'200000000'");
    nodes[0].deploy(&manifest.replace("timeout: 30s", "timeout: 300s"));
    let at = nodes[0].at("far");
    assert_eq!(get(at, "/huge?bytes=1000000").unwrap().body.len(), 1_000_000);
    let chunk: Vec<u8> = (0..1_000_000_u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
    let chunks = || (0..BYTES / chunk.len()).map(|_| &chunk);
    let needs_little = |way: &str, what: &dyn Fn()| {
        let before: Vec<u64> = nodes.iter().map(Node::forget_peak).collect();
        let began = Instant::now();
        what();
        let took = began.elapsed();
        for (node, before) in nodes.iter().zip(before) {
            let more = node.peak_bytes().saturating_sub(before);
            println!("{BYTES} bytes {way} in {took:?}; {} held {} KiB more than before", node.admin, more >> 10);
            assert!(more < MORE_BYTES_MAX, "{way}: {more} bytes");
        }
    };
    needs_little("up", &|| {
        let mut up = connect(at);
        up.write_all(head("POST", "/sink", &[], BYTES).as_bytes()).unwrap();
        chunks().for_each(|chunk| up.write_all(chunk).unwrap());
        assert_eq!(read(&mut BufReader::new(up)).unwrap().ok(), BYTES.to_string());
    });
    needs_little("down", &|| {
        let mut down = connect(at);
        down.write_all(head("GET", &format!("/huge?bytes={BYTES}"), &[], 0).as_bytes()).unwrap();
        let mut reader = BufReader::new(down);
        let head = read_head(&mut reader).unwrap();
        assert_eq!((head.status, read_body(&mut reader, &head, &mut sink()).unwrap()), (200, BYTES as u64));
    });
    needs_little("up and down", &|| echo_compared(at, BYTES, &chunk));
}

/// Sends a body that is this chunk over and over, and compares what comes back meanwhile.
fn echo_compared(at: SocketAddr, bytes: usize, chunk: &[u8]) {
    let mut down = connect(at);
    let mut up = down.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            up.write_all(head("POST", "/echo", &[], bytes).as_bytes()).unwrap();
            (0..bytes / chunk.len()).for_each(|_| up.write_all(chunk).unwrap());
        });
        let mut reader = BufReader::new(&mut down);
        let head = read_head(&mut reader).unwrap();
        let came = read_body(&mut reader, &head, &mut Compared { chunk, at: 0 }).unwrap();
        assert_eq!((head.status, came), (200, bytes as u64));
        // Nothing follows.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    });
}

/// What comes back must be what was sent, and need not be kept for that.
struct Compared<'a> {
    chunk: &'a [u8],
    at: usize,
}

impl std::io::Write for Compared<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let from = self.at % self.chunk.len();
        let length = bytes.len().min(self.chunk.len() - from);
        assert!(bytes[..length] == self.chunk[from..from + length], "after {} bytes", self.at);
        self.at += length;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Two nodes with a permit each: who waits for either of them counts.
#[test]
fn no_more_wait_for_a_permit_of_any_node_than_may() {
    const SENT: usize = 12;
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 2);
    let manifest = held_by("far", "test_misbehave", "1|2", &[]).replace("instances: 20", "instances: 2");
    nodes[0].deploy(&manifest.replace("max_body_bytes: '50000000'", "max_waiting: '2'"));
    let at = nodes[0].at("far");
    let asked: Vec<_> = (0..SENT)
        .map(|_| {
            thread::spawn(move || {
                let began = Instant::now();
                (get(at, "/slow?ms=3000").unwrap(), began.elapsed())
            })
        })
        .collect();
    let answered: Vec<_> = asked.into_iter().map(|one| one.join().unwrap()).collect();
    let (ok, refused): (Vec<_>, Vec<_>) = answered.iter().partition(|(response, _)| response.status == 200);
    assert_eq!((ok.len(), refused.len()), (4, SENT - 4), "one runs on each node, and two wait");
    for (response, took) in refused {
        assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
        assert!(*took < Duration::from_secs(2), "told after {took:?}");
    }
}
