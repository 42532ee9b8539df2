//! Commands that are too long for one entry of the log, and who must know of them first.

use std::collections::BTreeMap;

use proptest::prelude::*;
use trellis_placement::{Applied, Command, Entry, LEVEL, NodeFacts, Refusal, State, UNFINISHED_MAX, Unfinished};
use trellis_wire::{CommandId, Config, frame};
use uuid::Uuid;

use crate::lattice::{Lattice, component, facts, release, scaler};

fn id(n: u128) -> CommandId {
    CommandId::new(Uuid::from_u128(n << 64))
}

fn put(n: u128, bytes: usize) -> Entry {
    let values = Config::from_iter([("certificates", "x".repeat(bytes))]);
    Entry { id: id(n), at_ms: 1, command: Command::PutConfig { name: format!("tls{n}"), values } }
}

/// The parts of an entry, each of which the log takes.
fn parts(entry: &Entry) -> Vec<Entry> {
    let parts = entry.clone().into_parts().unwrap();
    assert!(parts.iter().all(Entry::fits));
    assert_eq!(parts.last().unwrap().id, entry.id);
    parts
}

fn done(state: &mut State, parts: &[Entry]) {
    parts.iter().for_each(|part| assert_eq!(state.apply(part), Applied::Done));
}

#[test]
fn a_large_app_is_deployed_in_parts_as_a_whole_would_be() {
    let mut large = release("large", "1");
    for n in 0..2_000 {
        component(&mut large, &format!("component-{n}"), 1, scaler("2 on zone=z1"));
    }
    let entry = Entry { id: id(1), at_ms: 1, command: Command::Deploy(Box::new(large)) };
    assert!(entry.encoded_len() > 150_000, "{}", entry.encoded_len());
    let (mut at_once, mut in_parts) = (State::default(), State::default());
    assert_eq!(at_once.apply(&entry), Applied::Done);
    done(&mut in_parts, &parts(&entry));
    assert_eq!(in_parts.app(&"large".parse().unwrap()), at_once.app(&"large".parse().unwrap()));
    assert!(in_parts.unfinished().is_empty());

    // The command is applied once, whichever of its parts comes again.
    let after = in_parts.clone();
    parts(&entry).iter().for_each(|part| assert_eq!(in_parts.apply(part), Applied::Repeated));
    assert_eq!(in_parts, after);
}

#[test]
fn a_refusal_of_the_whole_changes_nothing_and_comes_again() {
    let mut state = State::default();
    let mut unready = release("large", "1");
    (0..2_000).for_each(|n| component(&mut unready, &format!("component-{n}"), 1, None));
    unready.artifacts.clear();
    let parts = parts(&Entry { id: id(1), at_ms: 1, command: Command::Deploy(Box::new(unready)) });
    let (last, first) = parts.split_last().unwrap();
    done(&mut state, first);
    let before = state.clone();
    for _ in 0..2 {
        assert!(matches!(state.apply(last), Applied::Refused(Refusal::NoArtifact { .. })));
    }
    assert_eq!(state, before);
}

#[test]
fn what_is_half_told_is_bounded_outlives_a_snapshot_and_is_refused_once_pushed_out() {
    let mut state = State::default();
    let all: Vec<_> = (0..=UNFINISHED_MAX as u128).map(|n| parts(&put(n, 100_000))).collect();
    for parts in &all {
        done(&mut state, &parts[..parts.len() - 1]);
    }
    let unfinished: Unfinished = frame::decode(&frame::encode(state.unfinished())).unwrap();
    let bare: State = frame::decode(&frame::encode(&state)).unwrap();
    assert!(bare.unfinished().is_empty(), "older builds read what is written of it");
    let mut resumed = bare.resuming(unfinished);
    assert_eq!(resumed, state);
    for (n, parts) in all.iter().enumerate() {
        let applied = resumed.apply(parts.last().unwrap());
        assert_eq!(applied, if n == 0 { Applied::Refused(Refusal::PartMissing) } else { Applied::Done });
    }
    assert!(resumed.unfinished().is_empty());
    assert_eq!(resumed.configs().iter().count(), UNFINISHED_MAX);
}

#[test]
fn a_command_that_not_even_parts_can_carry_says_what_to_do() {
    assert_eq!(put(1, 100).into_parts().unwrap(), [put(1, 100)]);
    let refused = put(1, 1024 * 1024).into_parts().unwrap_err();
    assert!(refused.to_string().starts_with("config `tls1` is too large for the lattice's log"), "{refused}");
}

#[test]
fn parts_are_used_once_every_member_knows_of_them() {
    let mut lattice = Lattice::default();
    let labels = |announced: bool| {
        let mut labels = BTreeMap::from([("zone".to_owned(), "z1".to_owned())]);
        if announced {
            NodeFacts::announce_level(&mut labels);
        }
        labels
    };
    let part = parts(&put(1, 100_000)).remove(0);
    let join = |n, announced| Command::Join(facts(n, "node", 1, labels(announced), false));
    assert_eq!(lattice.state.check_level(&part), Ok(()));
    lattice.apply(join(1, true));
    lattice.apply(join(2, false));
    assert_eq!(lattice.state.check_level(&put(1, 100)), Ok(()), "what was always there needs nothing");
    let why = lattice.state.check_level(&part).unwrap_err().to_string();
    assert!(why.contains("level 0, and this takes level 1 on every node: upgrade it"), "{why}");
    assert_eq!(lattice.state.check_newcomer(&facts(3, "old", 1, labels(false), false)), Ok(()));

    // A lost node may come back, and what a person labels it is no build.
    lattice.apply(Command::Lost(crate::lattice::node_id(2)));
    let told = BTreeMap::from([("trellis.level".to_owned(), Some("9".to_owned()))]);
    lattice.apply(Command::Label { node: crate::lattice::node_id(2), labels: told });
    assert!(lattice.state.check_level(&part).is_err());
    lattice.apply(join(2, true));
    assert_eq!(lattice.state.check_level(&part), Ok(()));
    assert_eq!(facts(2, "node", 1, labels(true), false).level(), LEVEL);

    // From here on there may be parts in the log, so that no older build is let in.
    assert!(lattice.state.check_newcomer(&facts(3, "old", 1, labels(false), false)).is_err());
    assert_eq!(lattice.state.check_newcomer(&facts(3, "new", 1, labels(true), false)), Ok(()));

    // Once all nodes run a newer build than this one, this one does not go on.
    let newer = |n| {
        let level = BTreeMap::from([("trellis.level".to_owned(), (LEVEL + 1).to_string())]);
        Command::Join(facts(n, "node", 1, level, false))
    };
    assert!(lattice.state.everyone_knows(LEVEL) && !lattice.state.everyone_knows(LEVEL + 1));
    lattice.apply(newer(1));
    assert_eq!(lattice.state.check_build(), Ok(()), "node 2 does not know yet what it would be");
    lattice.apply(newer(2));
    let why = lattice.state.check_build().unwrap_err().to_string();
    assert!(why.contains("start this node with the newer Trellis again"), "{why}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn parts_in_any_order_make_the_command_or_nothing(
        sizes in proptest::collection::vec(62_000_usize..200_000, 1..4),
        order in proptest::collection::vec((0_usize..4, 0_usize..5), 0..40),
    ) {
        let all: Vec<_> = (0..).zip(&sizes).map(|(n, bytes)| parts(&put(n, *bytes))).collect();
        let mut state = State::default();
        let mut finished = BTreeMap::new();
        for (n, nth) in order {
            let Some(part) = all.get(n).and_then(|parts| parts.get(nth)) else { continue };
            let is_last = part.id == id(n as u128);
            match state.apply(part) {
                Applied::Done if is_last => drop(finished.insert(format!("tls{n}"), ())),
                Applied::Done | Applied::Repeated | Applied::Refused(Refusal::PartMissing) => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
        let known: Vec<_> = state.configs().iter().map(|(name, _)| name.to_owned()).collect();
        prop_assert_eq!(known, finished.into_keys().collect::<Vec<_>>());
        for (n, bytes) in sizes.iter().enumerate() {
            if let Some(config) = state.configs().get(&format!("tls{n}")) {
                prop_assert_eq!(config.values.get("certificates").map(str::len), Some(*bytes));
            }
        }
        // Whatever came before: one that is told from its beginning to its end takes effect.
        done(&mut state, &parts(&put(99, 150_000)));
    }
}
