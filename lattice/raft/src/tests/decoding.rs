//! Whatever comes over the bus is decoded or refused: every message that was ever valid, cut, changed, lengthened and of
//! another version, in little memory.

use std::collections::{BTreeMap, BTreeSet};

use openraft::error::SnapshotMismatch;
use openraft::raft::{
    AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{CommittedLeaderId, EntryPayload, SnapshotMeta, SnapshotSegmentId, Vote};
use trellis_bus::hostile::change_and_decode;
use trellis_placement::{Applied, Capacity, Command, Entry, LogPoint, NodeFacts, Patience, State};
use trellis_wire::frame::{self, FrameError};
use trellis_wire::{CommandId, NodeKey};
use uuid::Uuid;

use super::{mark, marked, node};
use crate::follow::Piece;
use crate::machine::{decode_snapshot, encode_snapshot};
use crate::message::{Answer, Ask, Refusal};
use crate::types::{LogEntry, LogId};

fn state() -> State {
    let mut state = State::default();
    (0..50).for_each(|n| drop(state.apply(&mark(n))));
    state
}

#[test]
fn changed_messages_are_decoded_or_refused_in_little_memory() {
    let log_id = LogId::new(CommittedLeaderId::new(1, 0x42), 3);
    let entries = vec![LogEntry { log_id, payload: EntryPayload::Normal(marked(5, &"v".repeat(500))) }];
    let append = openraft::raft::AppendEntriesRequest {
        vote: Vote::new(1, 0x42),
        prev_log_id: Some(log_id),
        entries,
        leader_commit: Some(log_id),
    };
    let chunk = InstallSnapshotRequest {
        vote: Vote::new(1, 0x42),
        meta: SnapshotMeta { last_log_id: Some(log_id), snapshot_id: "1-3".into(), ..SnapshotMeta::default() },
        offset: 300_000,
        data: vec![7; 500],
        done: false,
    };
    let meta = chunk.meta.clone();
    let asks = [
        Ask::Append(append.clone()),
        Ask::Vote(VoteRequest::new(Vote::new(1, 0x42), Some(log_id))),
        Ask::Snapshot(chunk),
        Ask::Propose(mark(5)),
        Ask::Barrier,
        Ask::Rest(Some(log_id)),
        Ask::Piece("1-3".into(), 300_000),
        Ask::Held,
        Ask::WentBack(Vote::new(1, 0x42), log_id),
    ];
    for ask in asks {
        change_and_decode(&frame::encode(&ask), frame::decode::<Ask>);
    }
    let vote = VoteResponse::new(Vote::new(1, 0x42), Some(log_id), true);
    let segment = |offset| SnapshotSegmentId { id: "1-3".into(), offset };
    for answer in [
        Answer::Snapshot(InstallSnapshotResponse { vote: Vote::new(1, 0x42) }),
        Answer::Mismatch(SnapshotMismatch { expect: segment(0), got: segment(300_000) }),
        Answer::Piece(Piece { vote: Vote::new(1, 0x42), meta, offset: 300_000, total: 300_500, bytes: vec![7; 500] }),
        Answer::Append(AppendEntriesResponse::PartialSuccess(Some(log_id))),
        Answer::Vote(vote),
        Answer::Proposed(Applied::Waiting(vec!["config `redis`".into(); 20])),
        Answer::NotLeader(Some(node(3))),
        Answer::Refused(Refusal::Malformed("no such thing".into())),
        Answer::Barrier(Some(3)),
        Answer::Rest(append),
        Answer::Held(Some(300)),
    ] {
        change_and_decode(&frame::encode(&answer), frame::decode::<Answer>);
    }
}

#[test]
fn a_changed_snapshot_is_decoded_or_refused_in_little_memory() {
    let snapshot = encode_snapshot(&state());
    assert_eq!(decode_snapshot(&snapshot), Ok(state()));
    change_and_decode(&snapshot, decode_snapshot);

    // The same with a command half told.
    let mut state = state();
    let long = marked(100, &"v".repeat(100_000)).into_parts().unwrap();
    assert!(long.len() > 2);
    long[..2].iter().for_each(|part| drop(state.apply(part)));
    assert!(!state.unfinished().is_empty());
    let snapshot = encode_snapshot(&state);
    assert_eq!(decode_snapshot(&snapshot), Ok(state.clone()));
    change_and_decode(&snapshot, decode_snapshot);

    // And with a home, too.
    let state = with_home(state);
    let snapshot = encode_snapshot(&state);
    assert_eq!(decode_snapshot(&snapshot), Ok(state));
    change_and_decode(&snapshot, decode_snapshot);

    // With timings.
    let state = with_timings(self::state());
    let snapshot = encode_snapshot(&state);
    assert_eq!(decode_snapshot(&snapshot), Ok(state.clone()));
    change_and_decode(&snapshot, decode_snapshot);

    // And in a later incarnation, with timings and without.
    for mut state in [state, self::state()] {
        state.begin_anew(&BTreeSet::from([node(1)]), LogPoint { term: 2, leader: node(2), index: 9 }, 0);
        let snapshot = encode_snapshot(&state);
        assert_eq!(decode_snapshot(&snapshot), Ok(state));
        change_and_decode(&snapshot, decode_snapshot);
    }
}

fn with_timings(mut state: State) -> State {
    let id = CommandId::new(Uuid::from_u128(1 << 102));
    let command = Command::Timings(Patience::default());
    assert_eq!(state.apply(&Entry { id, at_ms: 0, command }), Applied::Done);
    state
}

/// The state with node 1 as its only member and its home.
fn with_home(mut state: State) -> State {
    let facts = NodeFacts {
        id: node(1),
        name: "one".into(),
        labels: BTreeMap::new(),
        version: "0.1.0".into(),
        capacity: Capacity { permits: 1, memory_bytes: 1 },
        edge: false,
        key: NodeKey::new([0; 32]),
    };
    for (n, command) in [Command::Join(facts), Command::Home(node(1))].into_iter().enumerate() {
        let id = CommandId::new(Uuid::from_u128(n as u128 | 1 << 101));
        assert_eq!(state.apply(&Entry { id, at_ms: 0, command }), Applied::Done);
    }
    state
}

/// What the build before the first home wrote of a state with the mark 1.
const BEFORE_HOME: &str =
    "02000000000001066d61726b2d31010576616c7565017800000000000110000000100000000000000000000000010000000000";

#[test]
fn builds_before_the_home_and_this_one_read_each_other_until_there_is_one() {
    let mut state = State::default();
    state.apply(&mark(1));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let written = encode_snapshot(&state);
    assert_eq!(hex(&written), BEFORE_HOME);
    assert_eq!(decode_snapshot(&written), Ok(state.clone()));
    let mut half_told = state.clone();
    half_told.apply(&marked(100, &"v".repeat(100_000)).into_parts().unwrap()[0]);
    assert_eq!(encode_snapshot(&half_told)[0], 3, "which those builds read, too");
    assert_eq!(
        encode_snapshot(&with_home(state.clone()))[0],
        4,
        "a build that knows of no home refuses this by its format"
    );
    assert_eq!(encode_snapshot(&with_timings(state))[0], 5, "and one that knows of no timings this");
}

#[test]
fn an_older_and_a_newer_version_are_refused_by_name() {
    for version in [0, frame::VERSION + 1, u8::MAX - 1] {
        let mut message = frame::encode(&Ask::Barrier);
        message[0] = version;
        let why = frame::decode::<Ask>(&message).unwrap_err();
        assert_eq!(why, FrameError::Version(version));
        assert!(why.to_string().contains("upgrade the older node"), "{why}");
        let mut snapshot = encode_snapshot(&state());
        snapshot[0] = u8::MAX - version;
        assert!(decode_snapshot(&snapshot).unwrap_err().contains("this build reads"));
    }
}
