//! Whatever comes over the bus is decoded or refused: every message that was ever valid, cut, changed, lengthened and of
//! another version, in little memory.

use openraft::raft::{AppendEntriesResponse, VoteResponse};
use openraft::{CommittedLeaderId, EntryPayload, Vote};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use trellis_placement::{Applied, State};
use trellis_wire::frame::{self, FrameError};

use super::{mark, marked, node};
use crate::machine::{decode_snapshot, encode_snapshot};
use crate::message::{Answer, Ask, Refusal};
use crate::types::{LogEntry, LogId};

/// How often each message is changed.
const CHANGES: usize = 4_000;
/// How much more memory may be needed for all of it, other tests in this process included: far less than a length says.
const MORE_KIB_MAX: u64 = 256 * 1024;

/// The bytes, cut, lengthened, or with some of them others.
fn changed(whole: &[u8], dice: &mut StdRng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let at = dice.random_range(0..bytes.len());
    match dice.random_range(0..5) {
        0 => bytes.truncate(at),
        // A length of gigabytes where a small one stood.
        1 => drop(bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, dice.random_range(0..0x10)])),
        2 => bytes.extend((0..dice.random_range(1..20)).map(|_| dice.random::<u8>())),
        _ => {
            for _ in 0..dice.random_range(1..6) {
                let at = dice.random_range(0..bytes.len());
                bytes[at] = dice.random();
            }
        }
    }
    bytes
}

/// The most memory that this process ever had in use.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Decodes the bytes with many changes.
fn change_and_decode<T, E>(whole: &[u8], decode: impl Fn(&[u8]) -> Result<T, E>) {
    assert!(decode(whole).is_ok());
    let dice = &mut StdRng::seed_from_u64(whole.len() as u64);
    let before = peak_kib();
    (0..CHANGES).for_each(|_| drop(decode(&changed(whole, dice))));
    let more = peak_kib() - before;
    assert!(more < MORE_KIB_MAX, "{more} KiB more for changes of {} bytes", whole.len());
}

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
        snapshot[0] = snapshot[0].wrapping_add(version).wrapping_add(1);
        assert!(decode_snapshot(&snapshot).unwrap_err().contains("this build reads"));
    }
}
