//! What comes over the bus: anything, from strangers and from members.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use openraft::{CommittedLeaderId, EntryPayload, Vote};
use tempfile::TempDir;
use trellis_bus::members::{self, Known};
use trellis_bus::{Bus, BusError, Sealed, SealedError, Wire};
use trellis_placement::Applied;
use trellis_trust::{Distrust, NodeSecret, Refused, Seal, Start};
use trellis_wire::frame;
use trellis_wire::subject::{self, RaftRpc};

use super::{NODES, has_mark, lattice_id, lattice_name, mark, marked, node, options, sealed};
use crate::message::{Answer, Ask, Refusal};
use crate::types::{LogEntry, LogId, SnapshotMeta};
use crate::{Raft, open};

const RPCS: [RaftRpc; 4] = [RaftRpc::Append, RaftRpc::Vote, RaftRpc::Snapshot, RaftRpc::Forward];

/// A member that means no good, or has a defect.
struct Rogue {
    raft: Raft,
    wire: Wire,
    sealed: Sealed,
    _dir: TempDir,
}

/// The member.
const ROGUE: u128 = 9;

impl Rogue {
    /// A founded node, and an end of the wire that is another member's.
    async fn meets_a_node() -> Self {
        let (wire, dir) = (Wire::default(), TempDir::new().unwrap());
        let raft = open(options(dir.path(), 1, Bus::Memory(wire.end("1")))).await.unwrap();
        raft.bootstrap(lattice_id(7)).await.unwrap();
        let sealed = sealed(ROGUE, Bus::Memory(wire.end("rogue")));
        sealed.seal().read(Arc::new(Known::new(lattice_id(7), [])));
        Self { raft, wire, sealed, _dir: dir }
    }

    async fn send(&self, rpc: RaftRpc, payload: &[u8]) -> Answer {
        let to = subject::raft(&lattice_name(), node(1), rpc);
        let answer = self.sealed.ask(node(1), &to, payload, Duration::from_secs(10)).await.unwrap();
        frame::decode(&answer).unwrap()
    }

    async fn ask(&self, ask: Ask) -> Answer {
        self.send(ask.rpc(), &frame::encode(&ask)).await
    }

    async fn refused(&self, ask: &Ask) -> Distrust {
        let to = subject::raft(&lattice_name(), node(1), ask.rpc());
        match self.sealed.ask(node(1), &to, &frame::encode(ask), Duration::from_secs(10)).await {
            Err(SealedError::Distrust(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    async fn node_still_works(self) {
        assert_eq!(self.raft.propose(mark(999)).await, Ok(Applied::Done));
        assert_eq!(*self.raft.failed().borrow(), None);
        self.raft.shutdown().await;
    }
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, ROGUE), index)
}

fn append(prev: Option<LogId>, entries: Vec<LogEntry>) -> Ask {
    Ask::Append(AppendEntriesRequest { vote: Vote::new(1, ROGUE), prev_log_id: prev, entries, leader_commit: None })
}

fn vote() -> Ask {
    Ask::Vote(VoteRequest::new(Vote::new(0, ROGUE), None))
}

fn chunk(offset: u64, data: Vec<u8>, done: bool) -> Ask {
    let meta = SnapshotMeta { snapshot_id: "s".into(), ..SnapshotMeta::default() };
    Ask::Snapshot(InstallSnapshotRequest { vote: Vote::new_committed(9, ROGUE), meta, offset, data, done })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_are_answered_and_harm_nothing() {
    let rogue = Rogue::meets_a_node().await;
    let entry = LogEntry { log_id: log_id(1, 0), payload: EntryPayload::Normal(mark(5)) };
    let whole = [append(None, vec![entry]), vote(), chunk(0, vec![1; 100], false), Ask::Propose(mark(5)), Ask::Barrier]
        .map(|ask| frame::encode(&ask));
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
            let answer = rogue.send(rpc, &payload).await;
            assert!(matches!(answer, Answer::Refused(Refusal::Malformed(_))), "{rpc:?} {payload:?}: {answer:?}");
        }
    }
    rogue.node_still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn well_formed_nonsense_never_reaches_the_log() {
    let rogue = Rogue::meets_a_node().await;
    let refused = |answer: &Answer| matches!(answer, Answer::Refused(Refusal::Malformed(_)));

    let on_the_wrong_subject = rogue.send(RaftRpc::Append, &frame::encode(&vote())).await;
    assert!(refused(&on_the_wrong_subject), "{on_the_wrong_subject:?}");

    let gap = [3, 5].map(|index| LogEntry { log_id: log_id(1, index), payload: EntryPayload::Blank });
    let gap = rogue.ask(append(Some(log_id(1, 2)), gap.into())).await;
    assert!(refused(&gap), "{gap:?}");

    let large = rogue.ask(Ask::Propose(marked(1, &"v".repeat(70_000)))).await;
    assert!(refused(&large), "{large:?}");

    let hole = rogue.ask(chunk(1 << 60, vec![0; 10], false)).await;
    assert!(matches!(hole, Answer::Mismatch(_)), "{hole:?}");
    assert!(matches!(rogue.ask(chunk(0, vec![1; 10], false)).await, Answer::Snapshot(_)));
    let ahead = rogue.ask(chunk(20, vec![1; 10], false)).await;
    assert!(matches!(&ahead, Answer::Mismatch(mismatch) if mismatch.expect.offset == 10), "{ahead:?}");
    let state = rogue.ask(chunk(10, vec![0xff; 10], true)).await;
    assert!(refused(&state), "a snapshot that is none is not installed: {state:?}");
    rogue.node_still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_lattice_of_the_same_name_is_refused_by_its_id() {
    let rogue = Rogue::meets_a_node().await;
    // It met the node while it was of its lattice, and goes on from another one.
    let answer = rogue.ask(Ask::Propose(mark(1))).await;
    assert!(matches!(answer, Answer::Proposed(Applied::Done)), "{answer:?}");
    rogue.sealed.seal().read(Arc::new(Known::new(lattice_id(8), [node(1)])));
    for ask in [vote(), append(None, vec![]), chunk(0, vec![1], false), Ask::Propose(mark(2)), Ask::Barrier] {
        let why = rogue.refused(&ask).await;
        assert_eq!(why, Distrust::Refused { by: node(1), why: Refused::OtherLattice(lattice_id(7)) });
    }
    rogue.node_still_works().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_no_member_can_ask_nothing() {
    let mut rogue = Rogue::meets_a_node().await;
    let all = [vote(), append(None, vec![]), chunk(0, vec![1], false), Ask::Propose(mark(1)), Ask::Barrier];
    // As itself, and with the id of a member and its own key.
    let short = Duration::from_millis(300);
    for n in [NODES + 1, 2] {
        let seal = Seal::new(node(n), NodeSecret::new([200; 32]), Start { number: 1 << 50, salt: 1 });
        seal.introduce(node(1), members::secret(node(1)).key());
        seal.read(Arc::new(Known::new(lattice_id(7), [])));
        rogue.sealed = Sealed::new(Bus::Memory(rogue.wire.end("stranger")), lattice_name(), Arc::new(seal));
        for ask in &all {
            let to = subject::raft(&lattice_name(), node(1), ask.rpc());
            let answer = rogue.sealed.ask(node(1), &to, &frame::encode(ask), short).await.unwrap_err();
            let unknown = SealedError::Distrust(Distrust::Refused { by: node(1), why: Refused::Unknown });
            assert!(
                answer == unknown || (n == 2 && matches!(answer, SealedError::Bus(BusError::TimedOut { .. }))),
                "{answer}"
            );
        }
    }
    // In clear, as if there were no seals: there is no answer, and nothing happens.
    for ask in &all {
        let to = subject::raft(&lattice_name(), node(1), ask.rpc());
        let clear = frame::encode(ask).into();
        let answer = rogue.sealed.bus().request(&to, &[], clear, short).await;
        assert!(matches!(answer, Err(BusError::TimedOut { .. })), "{answer:?}");
    }
    assert!(!has_mark(&rogue.raft.state().borrow(), 1));
    rogue.node_still_works().await;
}

/// What is on the wire stays as it is: a new kind of message goes to the end of its enum.
#[test]
fn messages_are_pinned() {
    assert_eq!(frame::encode(&Ask::Barrier), [frame::VERSION, 4]);
    assert_eq!(frame::encode(&Ask::Held), [frame::VERSION, 7]);
    assert_eq!(frame::encode(&Answer::Held(Some(9))), [frame::VERSION, 10, 1, 9]);
    let kinds = [append(None, vec![]), vote(), chunk(0, vec![], false), Ask::Propose(mark(1)), Ask::Barrier];
    for (number, ask) in kinds.into_iter().enumerate() {
        assert_eq!(usize::from(frame::encode(&ask)[1]), number);
    }
}
