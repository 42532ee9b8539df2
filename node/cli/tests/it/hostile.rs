//! Frames that no node would send, on every subject that a node listens to: noise, frames that were heard and then cut,
//! changed and doubled, and frames of another version. The lattice goes on, and nobody's memory grows with them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, Memory, members};
use trellis_wire::{LatticeId, NodeId, subject};
use uuid::Uuid;

use crate::apps::{eventually, hello, image};
use crate::client::{get, send};
use crate::lattice::{held_by, id, known, lattice, node};
use crate::node::{DataDir, Node};

/// How many frames are kept of each kind of subject, and how often each is sent again.
const KEPT_MAX: usize = 24;
const CHANGED: u64 = 12;
/// How much more memory a node may have used afterwards.
const MORE_BYTES_MAX: u64 = 64 << 20;
/// How many frames of each kind a flood has.
const FLOOD: u128 = 500;
/// After so long one more line of a kind is written.
const NEXT_LINE: Duration = Duration::from_secs(10);

/// What is said on the bus while `what` happens, by kind of subject: subject and payload.
fn heard(nats: &NatsServer, what: impl FnOnce()) -> BTreeMap<String, Vec<(String, Vec<u8>)>> {
    let runtime = Runtime::new().unwrap();
    let mut heard: BTreeMap<String, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    let client = runtime.block_on(async_nats::connect(&nats.url)).unwrap();
    let all = subject::all(&"default".parse().unwrap());
    let mut said = runtime.block_on(client.subscribe(all)).unwrap();
    runtime.block_on(client.flush()).unwrap();
    what();
    runtime.block_on(async {
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(2), said.next()).await {
            // Without the node's own token: `event`, `raft.append`.
            let kind: Vec<&str> = message.subject.split('.').skip(3).filter(|token| token.len() != 32).collect();
            let kept = heard.entry(kind.join(".")).or_default();
            // Heartbeats never end.
            if kept.len() == KEPT_MAX {
                if kind == ["hb"] && heard.len() > 1 {
                    break;
                }
                continue;
            }
            kept.push((message.subject.to_string(), message.payload.to_vec()));
        }
    });
    heard
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

/// The frame, cut, longer, of another version, or with bytes of it changed.
fn changed(frame: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut frame = frame.to_vec();
    match dice.below(6) {
        0 => frame.truncate(dice.below(frame.len())),
        1 => frame.extend((0..dice.below(40)).map(|n| n.to_le_bytes()[0])),
        // Versions that were and will be.
        2 => frame.first_mut().into_iter().for_each(|version| *version = if dice.below(2) == 0 { 0 } else { 2 }),
        // A length that is far more than there is.
        3 => {
            let at = dice.below(frame.len());
            frame.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f]);
        }
        _ => {
            for _ in 0..=dice.below(4) {
                let at = dice.below(frame.len());
                frame.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << dice.below(8));
            }
        }
    }
    frame
}

fn use_everything(nodes: &[Node]) {
    nodes[0].deploy(&held_by("far", "test_misbehave", "2", &[]));
    for node in nodes {
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
        assert_eq!(send(node.at("far"), "POST", "/echo", &[], &[7; 300_000]).unwrap().body.len(), 300_000);
    }
    nodes[2].trellis(&["config", "put", "colours", "sky=blue"]).ok();
}

#[test]
fn hostile_frames_on_every_subject_harm_nothing() {
    let nats = NatsServer::start(false);
    let nodes = lattice(&nats, 3);
    let ids: Vec<String> = nodes.iter().map(id).collect();
    let heard = heard(&nats, || use_everything(&nodes));
    for kind in ["event", "stream", "hb", "artifact", "raft.append", "raft.forward"] {
        assert!(heard.contains_key(kind), "{kind} was not heard: {:?}", heard.keys());
    }
    let before: Vec<u64> = nodes.iter().map(Node::peak_bytes).collect();
    let runtime = Runtime::new().unwrap();
    let sent = runtime.block_on(async {
        let client = async_nats::connect(&nats.url).await.unwrap();
        let (mut dice, mut sent) = (Dice(0x2545_f491_4f6c_dd1d), 0);
        for (subject, frame) in heard.values().flatten() {
            for _ in 0..CHANGED {
                let frame = changed(frame, &mut dice);
                client.publish_with_reply(subject.clone(), client.new_inbox(), frame.into()).await.unwrap();
                sent += 1;
            }
            let noise: Vec<u8> = (0..dice.below(3_000)).map(|_| dice.below(256).to_le_bytes()[0]).collect();
            client.publish_with_reply(subject.clone(), client.new_inbox(), noise.into()).await.unwrap();
        }
        client.flush().await.unwrap();
        sent
    });
    println!("{sent} changed frames on {:?}", heard.keys().collect::<Vec<_>>());
    for node in &nodes {
        eventually("everyone is there for everyone", || {
            let known = known(node);
            let all = known.iter().all(|one| one["state"] == "ready" && ids.iter().any(|id| one["id"] == id.as_str()));
            (known.len() == 3 && all).then_some(())
        });
        assert_eq!(get(node.at("far"), "/").unwrap().ok(), "ok");
    }
    nodes[1].deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello")));
    for (node, before) in nodes.iter().zip(before) {
        let more = node.peak_bytes().saturating_sub(before);
        assert!(more < MORE_BYTES_MAX, "{} needed {more} bytes more", node.admin);
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
