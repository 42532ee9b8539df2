//! A simulation of the deciding parts of a whole lattice: peers with a fake clock each, a model of the log between them,
//! and everything that can go wrong. One seed decides it all.
//!
//! - `world` is what happens: time, the wire, the log, crashes, partitions, people;
//! - `peer` is one node: its copy of the state, what it knows of the others, what it runs;
//! - `model` is what must hold, written a second time and simpler.
//!
//! A seed that fails is printed, and `TRELLIS_SIMULATE_SEED=N` replays it alone. `TRELLIS_SIMULATE_SEEDS=N` runs so many
//! instead of the few that CI runs.

mod model;
mod peer;
mod world;

use std::ops::Range;

use world::World;

/// The variable that names the one seed to replay. What happens is printed then.
const SEED: &str = "TRELLIS_SIMULATE_SEED";
/// How many seeds are run unless the environment says otherwise.
const SEEDS: u64 = 200;

/// The seeds that one test runs: each of `parts` tests has its part, so that they run beside each other.
fn seeds(part: u64, parts: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number(SEED) {
        return if part == 0 { seed..seed + 1 } else { 0..0 };
    }
    let each = number("TRELLIS_SIMULATE_SEEDS").unwrap_or(SEEDS).div_ceil(parts);
    part * each..(part + 1) * each
}

/// Says which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "seed {seed} failed; replay it: TRELLIS_SIMULATE_SEED={seed} cargo test -p trellis-placement simulation"
            );
        }
    }
}

fn run(seeds: Range<u64>) {
    let (mut entries, mut lost) = (0, 0);
    for seed in seeds.clone() {
        let _named = Named(seed);
        let mut world = World::new(seed);
        world.run();
        entries += world.entries();
        lost += world.lost();
    }
    println!("{} seeds: {entries} entries, {lost} nodes declared lost", seeds.end - seeds.start);
}

#[test]
fn whatever_happens_the_promises_hold() {
    run(seeds(0, 2));
}

#[test]
fn whatever_happens_the_promises_hold_in_the_other_half() {
    run(seeds(1, 2));
}

#[test]
fn a_seed_gives_the_same_lattice_every_time() {
    for seed in 0..3 {
        let [one, other] = [(); 2].map(|()| {
            let mut world = World::new(seed);
            world.run();
            world.truth().clone()
        });
        assert_eq!(one, other);
    }
}
