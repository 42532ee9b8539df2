//! Whatever comes over the bus is decoded or refused: every message that was ever valid, cut, changed, lengthened and of
//! another version, in little memory.

use openraft::raft::{AppendEntriesResponse, VoteResponse};
use openraft::{CommittedLeaderId, EntryPayload, Vote};
use trellis_bus::hostile::change_and_decode;
use trellis_placement::{Applied, State};
use trellis_wire::frame::{self, FrameError};

use super::{mark, marked, node};
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
    for ask in [Ask::Append(append), Ask::Propose(mark(5)), Ask::Barrier] {
        change_and_decode(&frame::encode(&ask), frame::decode::<Ask>);
    }
    let vote = VoteResponse::new(Vote::new(1, 0x42), Some(log_id), true);
    for answer in [
        Answer::Append(AppendEntriesResponse::PartialSuccess(Some(log_id))),
        Answer::Vote(vote),
        Answer::Proposed(Applied::Waiting(vec!["config `redis`".into(); 20])),
        Answer::NotLeader(Some(node(3))),
        Answer::Refused(Refusal::Malformed("no such thing".into())),
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
    assert_eq!(decode_snapshot(&snapshot), Ok(state));
    change_and_decode(&snapshot, decode_snapshot);
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
