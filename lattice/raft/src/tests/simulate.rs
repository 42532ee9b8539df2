//! What Raft promises, in a simulated lattice in which things go wrong.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;
use trellis_placement::Applied;
use trellis_wire::CommandId;

use super::mark;
use super::simulated::{Simulated, run, seeds, simulate};
use super::transcript::Transcript;

/// How many seeds are run unless the environment says otherwise.
const SEEDS: u64 = 24;
/// How many of them are run twice.
const REPLAYED: u64 = 6;
/// How many times something goes wrong.
const ROUNDS: usize = 20;

/// Proposes commands through any node, each again until it is answered, and notes those that were acknowledged.
async fn client(
    lattice: Arc<Simulated>,
    mut dice: StdRng,
    first: u128,
    over: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<CommandId>>>,
) {
    for n in first.. {
        let command = mark(n);
        loop {
            if over.load(Ordering::Relaxed) {
                return;
            }
            let Some(raft) = lattice.any(&mut dice) else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            match raft.propose(command.clone()).await {
                Ok(Applied::Done | Applied::Repeated) => break,
                Ok(other) => panic!("{other:?}"),
                // The node may have stopped under way. Whether it took effect is not known, and the id makes it safe.
                Err(_) => sleep(Duration::from_millis(dice.random_range(1..200))).await,
            }
        }
        acknowledged.lock().unwrap().insert(command.id);
        sleep(Duration::from_millis(dice.random_range(1..400))).await;
    }
}

async fn storm(seed: u64) -> Transcript {
    let mut dice = StdRng::seed_from_u64(seed);
    let voters = if dice.random_bool(0.7) { 3 } else { 5 };
    let lattice = Simulated::of(voters).await;
    let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let clients: Vec<_> = (0..3_u64)
        .map(|n| {
            let dice = StdRng::seed_from_u64(seed ^ (n + 1) << 32);
            let first = u128::from(n) * 100_000;
            tokio::spawn(client(lattice.clone(), dice, first, over.clone(), Arc::clone(&acknowledged)))
        })
        .collect();
    lattice.storm(seed, ROUNDS).await;
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let states = lattice.states().await;
    assert!(states.iter().all(|state| *state == states[0]), "every node has the same state");
    let seen = lattice.seen();
    let applied: BTreeSet<_> = seen.applied.iter().copied().collect();
    assert_eq!(applied.len(), seen.applied.len(), "a command takes effect once");
    assert!(states[0].applied().eq(seen.applied.iter().copied()), "what was seen once stays");
    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    let lost: Vec<_> = acknowledged.difference(&applied).collect();
    assert!(lost.is_empty(), "of {} acknowledged commands these are lost: {lost:?}", acknowledged.len());
    let transcript = lattice.shutdown().await;
    let (commands, leaders, lines, digest) = (acknowledged.len(), seen.leaders, transcript.len(), transcript.digest());
    println!(
        "seed {seed}: {voters} voters, {commands} commands acknowledged, of {leaders} leaders; {lines} lines, {digest:016x}"
    );
    transcript
}

#[test]
fn in_a_storm_each_entry_is_one_leaders_all_agree_and_nothing_is_lost() {
    simulate(SEEDS, async |seed| drop(storm(seed).await));
}

/// What failed once fails again: a seed decides every message and every entry, and when they are there.
#[test]
fn a_seed_replays_exactly_and_another_is_another_storm() {
    let mut digests = BTreeSet::new();
    for seed in seeds(REPLAYED) {
        let [once, again] = [run(seed, storm), run(seed, storm)];
        if let Some(differs) = once.parts_from(&again) {
            panic!("seed {seed} is not what it was: {differs}");
        }
        assert!(digests.insert(once.digest()), "seed {seed} is as another");
    }
}
