//! Frames that no node would send, on every subject that a node listens to, as the server tells: noise, frames that were
//! heard and then cut, changed and made longer than any, and frames of another version. The lattice goes on, and nobody's
//! memory grows with them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::Client;
use futures::{FutureExt as _, StreamExt as _};
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, Memory, members};
use trellis_wire::{LatticeId, NodeId, subject};
use uuid::Uuid;

use crate::apps::{eventually, hello, image, link, provider};
use crate::client::{get, send};
use crate::connections::{kind, listened_to, monitored};
use crate::lattice::{held_by, id, known, lattice, node};
use crate::node::{DataDir, Node};

/// How many frames are kept of each kind of subject, and how often each is changed in each way.
const KEPT_MAX: usize = 8;
const CHANGED: usize = 3;
/// What is listened to and may not be said here: votes and snapshots, what followers outside the log are told, and pages of
/// nodes that somebody missed. It gets frames of the other subjects then.
const UNSAID: [&str; 4] = ["raft.vote", "raft.snapshot", "delta", "page"];
/// How much more memory a node may have used afterwards.
const MORE_BYTES_MAX: u64 = 64 << 20;
/// How many frames of each kind a flood has.
const FLOOD: u128 = 500;
/// After so long one more line of a kind is written.
const NEXT_LINE: Duration = Duration::from_secs(10);

/// What is said on the bus while `what` happens, by kind of subject, and what that comes to.
fn heard<T>(nats: &NatsServer, what: impl FnOnce() -> T) -> (BTreeMap<String, Vec<Vec<u8>>>, T) {
    let runtime = Runtime::new().unwrap();
    let mut heard: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    let client = runtime.block_on(async_nats::connect(&nats.url)).unwrap();
    let subjects = [subject::all(&"default".parse().unwrap()), "_INBOX.>".into()];
    let mut said = subjects.map(|subject| runtime.block_on(client.subscribe(subject)).unwrap());
    runtime.block_on(client.flush()).unwrap();
    let came = what();
    // What was said by now is here by then; heartbeats never end.
    std::thread::sleep(Duration::from_secs(1));
    for said in &mut said {
        while let Some(Some(message)) = said.next().now_or_never() {
            let kept = heard.entry(kind(&message.subject)).or_default();
            if kept.len() < KEPT_MAX && !message.payload.is_empty() {
                kept.push(message.payload.to_vec());
            }
        }
    }
    (heard, came)
}

/// A generator of our own, so that a failure comes back.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 20).unwrap() % sides.max(1)
    }
}

/// What can be wrong with a frame.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    Cut,
    Longer,
    /// As long as anything may be.
    Longest,
    OlderVersion,
    NewerVersion,
    /// A length within it that is far more than there is.
    Length,
    Bits,
    /// Nothing of it is left.
    Noise,
}

impl Wrong {
    const ALL: [Self; 8] = [
        Self::Cut,
        Self::Longer,
        Self::Longest,
        Self::OlderVersion,
        Self::NewerVersion,
        Self::Length,
        Self::Bits,
        Self::Noise,
    ];

    fn of(self, frame: &[u8], longest: usize, dice: &mut Dice) -> Vec<u8> {
        let mut frame = frame.to_vec();
        match self {
            Self::Cut => frame.truncate(dice.below(frame.len())),
            Self::Longer => frame.extend((0..=dice.below(40)).map(|n| n.to_le_bytes()[0])),
            Self::Longest => frame.resize(longest, 0xff),
            Self::OlderVersion => frame.first_mut().into_iter().for_each(|version| *version = 0),
            Self::NewerVersion => {
                let newer = 2 + dice.below(254);
                frame.first_mut().into_iter().for_each(|version| *version = newer.to_le_bytes()[0]);
            }
            Self::Length => {
                let at = dice.below(frame.len());
                frame.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f]);
            }
            Self::Bits => {
                for _ in 0..=dice.below(4) {
                    let at = dice.below(frame.len());
                    frame.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << dice.below(8));
                }
            }
            Self::Noise => frame = (0..dice.below(3_000)).map(|_| dice.below(256).to_le_bytes()[0]).collect(),
        }
        frame
    }
}

fn use_everything(nodes: &[Node]) {
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    let home = "{type: spreadscaler, properties: {instances: 1, spread: [{name: home, requirements: {n: '1'}}]}}";
    let store = format!("{}      traits:\n        - {home}\n", provider("store", "embedded"));
    let uses = link("store", "wasi:keyvalue/store, atomics, batch");
    nodes[1].deploy(&(held_by("keys", "test_kv", "2", &[uses]) + &store));
    for node in nodes {
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
        assert_eq!(send(node.at("far"), "POST", "/echo", &[], &[7; 300_000]).unwrap().body.len(), 300_000);
        assert_eq!(send(node.at("keys"), "PUT", "/key", &[], b"value").unwrap().status, 204);
    }
    nodes[2].trellis(&["config", "put", "colours", "sky=blue"]).ok();
}

/// Sends to a subject what is wrong with each of these frames. How many that were.
async fn assail(client: &Client, subject: &str, frames: &[&Vec<u8>], dice: &mut Dice) -> usize {
    let longest = client.max_payload();
    let mut sent = 0;
    for (nth, frame) in frames.iter().enumerate() {
        for wrong in Wrong::ALL {
            // One of those is enough, and three take as long as all the rest.
            let times = if matches!(wrong, Wrong::Longest) { usize::from(nth == 0) } else { CHANGED };
            for _ in 0..times {
                let frame = wrong.of(frame, longest, dice);
                client.publish_with_reply(subject.to_owned(), client.new_inbox(), frame.into()).await.unwrap();
                sent += 1;
            }
        }
    }
    client.publish_with_reply(subject.to_owned(), client.new_inbox(), "".into()).await.unwrap();
    client.flush().await.unwrap();
    sent + 1
}

#[test]
fn hostile_frames_on_every_subject_harm_nothing() {
    let (nats, monitor) = monitored();
    let (heard, nodes) = heard(&nats, || {
        let nodes = lattice(&nats, 3);
        use_everything(&nodes);
        nodes
    });
    let ids: Vec<String> = nodes.iter().map(id).collect();
    let leader = || known(&nodes[0]).into_iter().find(|one| one["leader"] == true).map(|one| one["id"].clone());
    let (before, led): (Vec<u64>, _) = (nodes.iter().map(Node::forget_peak).collect(), leader());
    let listened_to = listened_to(monitor);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(&nats.url).await.unwrap();
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        for pattern in &listened_to {
            let kind = kind(pattern);
            let own = heard.get(&kind);
            let is_covered = own.is_some() || UNSAID.contains(&&*kind);
            assert!(is_covered, "nothing was heard on {pattern}: have it said by `use_everything`, or name it there");
            let others = heard.values().filter_map(|frames| frames.first());
            let frames = own.map_or_else(|| others.collect::<Vec<_>>(), |own| own.iter().collect());
            let subject = pattern.replace('*', &ids[0].replace('-', ""));
            let sent = assail(&client, &subject, &frames, &mut dice).await;
            println!("{sent} frames on {subject}");
        }
    });
    for node in &nodes {
        eventually("everyone is there for everyone", || {
            let known = known(node);
            let all = known.iter().all(|one| one["state"] == "ready" && ids.iter().any(|id| one["id"] == id.as_str()));
            (known.len() == 3 && all).then_some(())
        });
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
        assert_eq!(get(node.at("keys"), "/key").unwrap().ok(), "value");
    }
    // Before anything is compiled anew, which takes more than this.
    for (node, before) in nodes.iter().zip(before) {
        let more = node.peak_bytes().saturating_sub(before);
        println!("{} needed {} KiB more", node.admin, more >> 10);
        assert!(more < MORE_BYTES_MAX, "{} needed {more} bytes more", node.admin);
    }
    nodes[1].deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello")));
    assert_eq!(leader(), led, "and the leader still leads");
    for node in &nodes {
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

/// A heartbeat of a lattice that there is not, as anybody can make it.
fn of_no_lattice(n: u128) -> (String, Vec<u8>) {
    let (node, lattice) = (NodeId::new(Uuid::from_u128(n)), LatticeId::new(Uuid::from_u128(n << 64)));
    let [stranger] = members::members(&Bus::Memory(Memory::alone()), lattice, [node]);
    let subject = subject::heartbeat(&"default".parse().unwrap(), node);
    let frame = stranger.seal().announce(&subject, b"I live").unwrap();
    (subject, frame)
}

#[test]
fn a_flood_of_frames_does_not_fill_the_logs() {
    let nats = NatsServer::start(false);
    let node = node(&nats, &DataDir::new(), 1, &["--bootstrap"]);
    let lines =
        |what: &str| node.log().lines().filter(|line| line.contains(what)).map(str::to_owned).collect::<Vec<_>>();
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(async_nats::connect(&nats.url)).unwrap();
    let flood = |frames: std::ops::Range<u128>| {
        runtime.block_on(async {
            for n in frames {
                let (subject, frame) = of_no_lattice(n);
                client.publish(subject, frame.into()).await.unwrap();
                let join = subject::join(&"default".parse().unwrap());
                client.publish(join, format!("junk {n}").into()).await.unwrap();
            }
            client.flush().await.unwrap();
        });
    };
    let began = Instant::now();
    flood(1..FLOOD);
    for what in ["is not understood", "another lattice of this name is on the same NATS"] {
        let n = Cell::new(FLOOD);
        let told = eventually("the count of those that were left out", || {
            // Each of another lattice, so that it is news.
            flood(n.get()..n.get() + 1);
            n.set(n.get() + 1);
            let told = lines(what);
            (told.len() > 1).then_some(told)
        });
        let due = 1 + began.elapsed().as_secs() / NEXT_LINE.as_secs();
        assert!(told.len() as u64 <= due, "{} lines in {:?}", told.len(), began.elapsed());
        let left_out = told[1].split("left_out=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(left_out.parse::<u128>().unwrap() >= FLOOD / 2, "{told:?}");
    }
}
