//! Nodes of one lattice in one thread, on a clock that jumps: real openraft, the real store on disks in memory, the real
//! messages over a wire that loses, doubles and delays them. Nodes lose power, are cut off, and come back.
//!
//! The seed decides everything, down to each byte on the wire and when it is there, but for the nonces of greetings. What
//! a simulation runs on keeps to that: one thread, no wall clock, nothing drawn but through `chance` and `seeded`, no
//! `select!` of ours that is not `biased`, and no `watch` of tokio's for which two tasks wait, because it wakes them in an
//! order of chance.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::{sleep, timeout};
use trellis_bus::{Bus, Faults, Wire, members};
use trellis_placement::State;
use trellis_wire::{CommandId, NodeId};

use super::disk::Disk;
use super::transcript::Transcript;
use super::{PATIENCE, introduced, lattice_id, lattice_name, node, seeded, start_of};
use crate::store::Store;
use crate::{Leadership, Member, Raft};

/// The seeds to run: so many from the first on, unless the environment says otherwise.
pub(super) fn seeds(count: u64) -> Range<u64> {
    match replayed() {
        Some(seed) => seed..seed + 1,
        None => 0..number_of("TRELLIS_SIMULATE_SEEDS").unwrap_or(count),
    }
}

/// The one seed that is to be run again, and shown.
pub(super) fn replayed() -> Option<u64> {
    number_of("TRELLIS_SIMULATE_SEED")
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs a simulation of each seed.
pub(super) fn simulate<S: Future<Output = ()>>(count: u64, simulation: impl Fn(u64) -> S) {
    seeds(count).for_each(|seed| run(seed, &simulation));
}

/// Runs a simulation in this thread, on a clock that jumps to whatever is due next. Says how to replay one that fails.
pub(super) fn run<S: Future>(seed: u64, simulation: impl Fn(u64) -> S) -> S::Output {
    let _named = Named(seed);
    seeded::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulation(seed))
}

/// Says which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, thread) = (self.0, std::thread::current());
            // The harness names the thread after the test, unless it runs all tests in its own.
            let test = thread
                .name()
                .filter(|name| *name != "main")
                .map_or("simulate".into(), |test| format!("--exact {test}"));
            eprintln!(
                "seed {seed} failed; to see it again, line by line:\n\
                 TRELLIS_SIMULATE_SEED={seed} cargo test -p trellis-raft --lib -- --nocapture {test}"
            );
        }
    }
}

/// A lattice of voters.
pub(super) struct Simulated {
    wire: Wire,
    seats: Mutex<Vec<Seat>>,
    /// How often a node was started.
    starts: AtomicU64,
    watch: Arc<Mutex<Watch>>,
    transcript: Transcript,
}

/// Where a node sits: its disk stays when the node goes.
#[derive(Clone)]
struct Seat {
    disk: Disk,
    raft: Option<Raft>,
}

impl Simulated {
    /// So many voters, that agree on a lattice before anything goes wrong.
    pub(super) async fn of(voters: usize) -> Arc<Self> {
        let seats = (0..voters).map(|_| Seat { disk: Disk::default(), raft: None }).collect();
        let simulated = Self {
            wire: Wire::default(),
            seats: Mutex::new(seats),
            starts: AtomicU64::default(),
            watch: Arc::default(),
            transcript: Transcript::new(replayed().is_some()),
        };
        simulated.transcript.tap(&simulated.wire);
        for at in 0..voters {
            simulated.start(at).await;
        }
        let first = simulated.raft(0).unwrap();
        first.bootstrap(lattice_id(7)).await.unwrap();
        let all: BTreeSet<_> = (0..voters).map(id).collect();
        for learner in all.iter().skip(1) {
            first.add_learner(*learner, Member::default()).await.unwrap();
        }
        first.change_voters(all).await.unwrap();
        Arc::new(simulated)
    }

    pub(super) fn len(&self) -> usize {
        self.seats.lock().unwrap().len()
    }

    /// The node on a seat, if it runs.
    pub(super) fn raft(&self, at: usize) -> Option<Raft> {
        self.seats.lock().unwrap()[at].raft.clone()
    }

    /// Any node that runs.
    pub(super) fn any(&self, dice: &mut StdRng) -> Option<Raft> {
        self.raft(dice.random_range(0..self.len()))
    }

    /// Starts a node from its disk.
    async fn start(&self, at: usize) {
        let disk = self.seats.lock().unwrap()[at].disk.clone();
        self.transcript.note(format_args!("{} starts", name(at)));
        self.wire.mend(&name(at));
        let (store, closed) = Store::on_the_spot(disk, Path::new("/data/raft.redb"), id(at), &lattice_name()).unwrap();
        let bus = Bus::Memory(self.wire.end(&name(at)));
        let start = self.starts.fetch_add(1, Ordering::Relaxed) + 1;
        let sealed = introduced(members::start_numbered(id(at), lattice_name(), bus, start));
        let mut options = start_of(Path::new("/data"), sealed);
        options.timing.propose_wait = Duration::from_secs(5);
        (options.timing.snapshot_entries, options.timing.kept_entries) = (25, 5);
        let raft = crate::node::run(options, store, closed).await.unwrap();
        self.watch(&raft);
        self.seats.lock().unwrap()[at].raft = Some(raft);
    }

    /// The power of a node fails: it says nothing more, and what it did not sync may be gone.
    async fn crash(&self, at: usize, dice: &mut StdRng) {
        self.transcript.note(format_args!("{} loses power", name(at)));
        self.wire.cut(&name(at));
        let kept = dice.random_range(0.0..=1.0);
        let raft = {
            let seat = &mut self.seats.lock().unwrap()[at];
            seat.disk = seat.disk.after_power_loss(|| dice.random_bool(kept));
            seat.raft.take()
        };
        // What is left of it in this process writes to a disk that nobody will look at.
        if let Some(raft) = raft {
            raft.shutdown().await;
        }
    }

    /// Something goes wrong, or is put right.
    async fn happen(&self, dice: &mut StdRng) {
        let at = dice.random_range(0..self.len());
        let running = self.seats.lock().unwrap().iter().filter(|seat| seat.raft.is_some()).count();
        match dice.random_range(0..8) {
            0 if running > 1 => self.crash(at, dice).await,
            1 | 2 => {
                for at in 0..self.len() {
                    if self.raft(at).is_none() {
                        self.start(at).await;
                    }
                }
            }
            3 => self.alone(at),
            4 => self.split(&(0..self.len()).filter(|_| dice.random()).map(name).collect::<Vec<_>>()),
            5 => self.heal(),
            6 => {
                self.transcript.note(format_args!("{} is cut off", name(at)));
                self.wire.cut(&name(at));
            }
            _ if self.raft(at).is_some() => {
                self.transcript.note(format_args!("{} is on the wire", name(at)));
                self.wire.mend(&name(at));
            }
            _ => {}
        }
    }

    /// Things go wrong for so long, and then all is well again.
    pub(super) async fn storm(&self, seed: u64, rounds: usize) {
        let mut dice = StdRng::seed_from_u64(seed);
        for _ in 0..rounds {
            let delay = Duration::ZERO..=Duration::from_millis(dice.random_range(1..120));
            let (loss, duplication) = (dice.random_range(0.0..0.15), dice.random_range(0.0..0.2));
            self.wire.set_faults(Faults { seed: dice.random(), delay, loss, duplication });
            self.happen(&mut dice).await;
            sleep(Duration::from_millis(dice.random_range(100..3_000))).await;
        }
        self.wire.set_faults(Faults::default());
        self.heal();
        for at in 0..self.len() {
            self.wire.mend(&name(at));
            if self.raft(at).is_none() {
                self.start(at).await;
            }
        }
    }

    /// Splits the wire: this seat alone, and all others.
    pub(super) fn alone(&self, at: usize) {
        self.split(&[name(at)]);
    }

    /// Splits the wire: these, and all others.
    fn split(&self, side: &[String]) {
        self.transcript.note(format_args!("split off: {}", side.join(" ")));
        self.wire.partition(&[&side.iter().map(String::as_str).collect::<Vec<_>>()]);
    }

    pub(super) fn heal(&self) {
        self.transcript.note("whole again");
        self.wire.heal();
    }

    /// Every node's state, once each knows all that was committed.
    pub(super) async fn states(&self) -> Vec<Arc<State>> {
        let mut states = Vec::new();
        for at in 0..self.len() {
            let raft = self.raft(at).unwrap();
            let known = async { while raft.read_barrier().await.is_err() {} };
            timeout(PATIENCE * 10, known).await.unwrap_or_else(|_| panic!("node {at} never hears the others again"));
            states.push(raft.state().borrow().clone());
        }
        states
    }

    /// Ends it, and says all that happened.
    pub(super) async fn shutdown(&self) -> Transcript {
        for at in 0..self.len() {
            if let Some(raft) = self.raft(at) {
                raft.shutdown().await;
            }
        }
        self.transcript.clone()
    }

    /// Checks all that this node ever says of the lattice.
    fn watch(&self, raft: &Raft) {
        let (watch, me) = (self.watch.clone(), raft.node());
        let (mut leadership, mut state, raft) = (raft.leadership(), raft.state(), raft.clone());
        let (transcript, mut known) = (self.transcript.clone(), 0);
        tokio::spawn(async move {
            loop {
                {
                    let mut watch = watch.lock().unwrap();
                    let state = state.borrow_and_update();
                    watch.agrees(me, &state);
                    let new: Vec<_> = state.applied().skip(known).map(|id| id.to_string()).collect();
                    known += new.len();
                    let Leadership { leader, term, .. } = leadership.borrow_and_update().clone();
                    let (leader, last) = (leader.map(short), raft.last_applied());
                    let applied = last.map_or("nothing".into(), |last| last.to_string());
                    let new = new.join(" ");
                    transcript.note(format_args!(
                        "{}: term {term}, leader {leader:?}, applied {applied}, new: {new}",
                        short(me)
                    ));
                    if let Some(last) = last {
                        watch.committed(me, last.index, (last.leader_id.term, node(last.leader_id.node_id)));
                    }
                }
                let ended = tokio::select! {
                    biased;
                    ended = leadership.changed() => ended,
                    ended = state.changed() => ended,
                };
                if ended.is_err() {
                    return;
                }
            }
        });
    }

    /// What was seen, after all the checks that were made meanwhile.
    pub(super) fn seen(&self) -> Seen {
        let watch = self.watch.lock().unwrap();
        assert_eq!(watch.wrong, None);
        let leaders: BTreeSet<_> = watch.committed.values().collect();
        Seen { leaders: leaders.len(), applied: watch.applied.clone() }
    }
}

/// What a simulation went through.
pub(super) struct Seen {
    /// How many leaders committed something.
    pub(super) leaders: usize,
    /// Every command that took effect, in order.
    pub(super) applied: Vec<CommandId>,
}

/// What all nodes said so far. What is wrong is kept for the end: a task that panics would go unnoticed.
#[derive(Default)]
struct Watch {
    /// Whose entry was committed at an index: a leader's, named by its term and id. For openraft these two together are what
    /// a vote is for: voters that gave a candidate of a term their vote may give it to another of that term, with a higher
    /// id, as they would in the next one. So a term may see two leaders, but each entry is one leader's, and none of a
    /// leader follows one of a later leader.
    committed: BTreeMap<u64, (u64, NodeId)>,
    applied: Vec<CommandId>,
    wrong: Option<String>,
}

impl Watch {
    /// An entry was committed by one leader, after those of all leaders before it.
    fn committed(&mut self, me: NodeId, index: u64, leader: (u64, NodeId)) {
        let before = self.committed.range(..index).next_back().is_none_or(|(_, before)| *before <= leader);
        let after = self.committed.range(index + 1..).next().is_none_or(|(_, after)| leader <= *after);
        let is_one = *self.committed.entry(index).or_insert(leader) == leader;
        if !(before && is_one && after) {
            let told = &self.committed;
            self.wrong.get_or_insert_with(|| format!("{me} has entry {index} of {leader:?}, others have {told:?}"));
        }
    }

    /// Of two states, one is what the other was or will be.
    fn agrees(&mut self, me: NodeId, state: &State) {
        let mut theirs = state.applied();
        let ours = &self.applied;
        let common = theirs.by_ref().zip(ours).position(|(theirs, ours)| theirs != *ours);
        if let Some(at) = common {
            self.wrong.get_or_insert(format!("{me} applied another command at {at} than the others"));
        }
        let more: Vec<_> = state.applied().skip(self.applied.len()).collect();
        self.applied.extend(more);
    }
}

fn number(at: usize) -> u128 {
    at as u128 + 1
}

fn id(at: usize) -> NodeId {
    node(number(at))
}

/// How a node is shown.
fn short(node: NodeId) -> u128 {
    node.uuid().as_u128()
}

fn name(at: usize) -> String {
    number(at).to_string()
}
