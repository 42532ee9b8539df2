//! What comes over the bus: anything.

use std::time::Duration;

use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use openraft::{CommittedLeaderId, EntryPayload, Vote};
use tempfile::TempDir;
use trellis_bus::{Bus, Wire};
use trellis_placement::Applied;
use trellis_wire::subject::{self, RaftRpc};
use trellis_wire::{LatticeId, frame};

use super::{lattice_id, lattice_name, mark, marked, node, options};
use crate::message::{Answer, Ask, Envelope, Refusal};
use crate::types::{LogEntry, LogId, SnapshotMeta};
use crate::{Raft, open};

const RPCS: [RaftRpc; 4] = [RaftRpc::Append, RaftRpc::Vote, RaftRpc::Snapshot, RaftRpc::Forward];

struct Stranger {
    raft: Raft,
    bus: Bus,
    _dir: TempDir,
}

impl Stranger {
    /// A founded node, and an end of the wire that is no member's.
    async fn meets_a_node() -> Self {
        let (wire, dir) = (Wire::default(), TempDir::new().unwrap());
        let raft = open(options(dir.path(), 1, Bus::Memory(wire.end("1")))).await.unwrap();
        raft.bootstrap(lattice_id(7)).await.unwrap();
        Self { raft, bus: Bus::Memory(wire.end("stranger")), _dir: dir }
    }

    async fn send(&self, rpc: RaftRpc, payload: Vec<u8>) -> Answer {
        let to = subject::raft(&lattice_name(), node(1), rpc);
        let answer = self.bus.request(&to, &[], payload.into(), Duration::from_secs(10)).await.unwrap();
        let answer: Envelope<Answer> = frame::decode(&answer.payload).unwrap();
        assert_eq!((answer.from, answer.lattice), (node(1), Some(lattice_id(7))));
        answer.body
    }

    async fn ask(&self, lattice: Option<LatticeId>, ask: Ask) -> Answer {
        self.send(ask.rpc(), sealed(lattice, ask)).await
    }

    async fn node_still_works(self) {
        assert_eq!(self.raft.propose(mark(999)).await, Ok(Applied::Done));
        assert_eq!(*self.raft.failed().borrow(), None);
        self.raft.shutdown().await;
    }
}

fn sealed(lattice: Option<LatticeId>, body: Ask) -> Vec<u8> {
    frame::encode(&Envelope { lattice, from: node(0x42), body })
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 0x42), index)
}

fn append(prev: Option<LogId>, entries: Vec<LogEntry>) -> Ask {
    Ask::Append(AppendEntriesRequest { vote: Vote::new(1, 0x42), prev_log_id: prev, entries, leader_commit: None })
}

fn vote() -> Ask {
    Ask::Vote(VoteRequest::new(Vote::new(0, 0x42), None))
}

fn chunk(offset: u64, data: Vec<u8>, done: bool) -> Ask {
    let meta = SnapshotMeta { snapshot_id: "s".into(), ..SnapshotMeta::default() };
    Ask::Snapshot(InstallSnapshotRequest { vote: Vote::new_committed(9, 0x42), meta, offset, data, done })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_are_answered_and_harm_nothing() {
    let stranger = Stranger::meets_a_node().await;
    let entry = LogEntry { log_id: log_id(1, 0), payload: EntryPayload::Normal(mark(5)) };
    let whole = [append(None, vec![entry]), vote(), chunk(0, vec![1; 100], false), Ask::Propose(mark(5)), Ask::Barrier]
        .map(|ask| sealed(None, ask));
    for rpc in RPCS {
        let mut payloads = vec![vec![], vec![9, 0], vec![1], vec![1; 40], vec![0xff; 2000]];
        // A generator of our own, so that a failure comes back.
        let mut dice = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..50 {
            let mut noise = vec![frame::VERSION];
            for _ in 0..dice % 60 {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                // No high byte: noise must not happen to be a vote of a term beyond all others.
                noise.push((dice >> 32) as u8 | 0x80);
            }
            dice = dice.wrapping_mul(31).wrapping_add(7);
            payloads.push(noise);
        }
        for whole in &whole {
            payloads.extend([whole.len() / 2, whole.len() - 1].map(|cut| whole[..cut].to_vec()));
            payloads.push([whole.as_slice(), &[0]].concat());
        }
        for payload in payloads {
            let answer = stranger.send(rpc, payload.clone()).await;
            assert!(matches!(answer, Answer::Refused(Refusal::Malformed(_))), "{rpc:?} {payload:?}: {answer:?}");
        }
    }
    stranger.node_still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn well_formed_nonsense_never_reaches_the_log() {
    let stranger = Stranger::meets_a_node().await;
    let refused = |answer: &Answer| matches!(answer, Answer::Refused(Refusal::Malformed(_)));

    let on_the_wrong_subject = stranger.send(RaftRpc::Append, sealed(None, vote())).await;
    assert!(refused(&on_the_wrong_subject), "{on_the_wrong_subject:?}");

    let gap = [3, 5].map(|index| LogEntry { log_id: log_id(1, index), payload: EntryPayload::Blank });
    let gap = stranger.ask(None, append(Some(log_id(1, 2)), gap.into())).await;
    assert!(refused(&gap), "{gap:?}");

    let large = stranger.ask(None, Ask::Propose(marked(1, &"v".repeat(70_000)))).await;
    assert!(refused(&large), "{large:?}");

    let hole = stranger.ask(None, chunk(1 << 60, vec![0; 10], false)).await;
    assert!(matches!(hole, Answer::Mismatch(_)), "{hole:?}");
    assert!(matches!(stranger.ask(None, chunk(0, vec![1; 10], false)).await, Answer::Snapshot(_)));
    let ahead = stranger.ask(None, chunk(20, vec![1; 10], false)).await;
    assert!(matches!(&ahead, Answer::Mismatch(mismatch) if mismatch.expect.offset == 10), "{ahead:?}");
    let state = stranger.ask(None, chunk(10, vec![0xff; 10], true)).await;
    assert!(refused(&state), "a snapshot that is none is not installed: {state:?}");
    stranger.node_still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_lattice_of_the_same_name_is_refused_by_its_id() {
    let stranger = Stranger::meets_a_node().await;
    for ask in [vote(), append(None, vec![]), chunk(0, vec![1], false), Ask::Propose(mark(1)), Ask::Barrier] {
        let answer = stranger.ask(Some(lattice_id(8)), ask).await;
        assert!(matches!(answer, Answer::Refused(Refusal::OtherLattice(ours)) if ours == lattice_id(7)), "{answer:?}");
    }
    let answer = stranger.ask(Some(lattice_id(7)), Ask::Propose(mark(1))).await;
    assert!(matches!(answer, Answer::Proposed(Applied::Done)), "{answer:?}");
    stranger.node_still_works().await;
}

/// What is on the wire stays as it is: a new kind of message goes to the end of its enum.
#[test]
fn messages_are_pinned() {
    // Version, no lattice, the sender's 16 bytes with their length, then the kind.
    let mut barrier = vec![frame::VERSION, 0, 16];
    barrier.extend([0; 15]);
    barrier.extend([0x42, 4]);
    assert_eq!(sealed(None, Ask::Barrier), barrier);
    let kinds = [append(None, vec![]), vote(), chunk(0, vec![], false), Ask::Propose(mark(1)), Ask::Barrier];
    for (number, ask) in kinds.into_iter().enumerate() {
        assert_eq!(usize::from(sealed(None, ask)[barrier.len() - 1]), number);
    }
}
