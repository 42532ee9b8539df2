//! Nodes outside the log.

use std::time::Duration;

use tempfile::TempDir;
use trellis_bus::{Bus, Wire};
use trellis_placement::{Applied, Capacity, Command, Entry, NodeFacts, TrustChange};
use trellis_wire::CommandId;
use uuid::Uuid;

use super::{PATIENCE, has_mark, lattice_id, mark, missing_marks, node, options, state_where};
use crate::{Member, Options, Raft, Timing, open};

/// A command that makes a node known.
fn joins(n: u128) -> Entry {
    let facts = NodeFacts {
        id: node(n),
        name: format!("host-{n}"),
        labels: Default::default(),
        version: "0.1.0".into(),
        capacity: Capacity { permits: 1, memory_bytes: 1 },
        edge: n > 1,
        key: trellis_bus::members::secret(node(n)).key(),
    };
    Entry { id: CommandId::new(Uuid::from_u128(n | 1 << 101)), at_ms: 0, command: Command::Join(facts) }
}

/// One voter, and a node that follows it.
struct Pair {
    wire: Wire,
    dirs: [TempDir; 2],
}

impl Pair {
    fn new() -> Self {
        Self { wire: Wire::default(), dirs: [TempDir::new().unwrap(), TempDir::new().unwrap()] }
    }

    fn options(&self, n: u128) -> Options {
        let dir = self.dirs[n as usize - 1].path();
        let options = options(dir, n, Bus::Memory(self.wire.end(&n.to_string())));
        let timing = Timing { snapshot_entries: 40, kept_entries: 5, ..options.timing.clone() };
        Options { lattice_id: Some(lattice_id(7)), timing, ..options }
    }

    async fn leader(&self) -> Raft {
        let leader = open(self.options(1)).await.unwrap();
        leader.bootstrap(lattice_id(7)).await.unwrap();
        // What hides the words that are for all.
        let secret = trellis_wire::LatticeSecret::new([9; 32]);
        let begin = TrustChange::Begin { secret, token: None, allowed: Default::default() };
        let id = CommandId::new(Uuid::from_u128(1 << 102));
        leader.propose(Entry { id, at_ms: 0, command: Command::Trust(begin) }).await.unwrap();
        leader.propose(joins(1)).await.unwrap();
        leader
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_keeps_up_sends_commands_and_starts_without_a_bus() {
    let pair = Pair::new();
    let leader = pair.leader().await;
    leader.propose(mark(1)).await.unwrap();
    let follower = open(pair.options(2)).await.unwrap();
    leader.propose(joins(2)).await.unwrap();
    follower.follow(node(1));
    state_where(&follower, "what was before", |state| has_mark(state, 1)).await;
    for n in 2..30 {
        leader.propose(mark(n)).await.unwrap();
    }
    state_where(&follower, "what comes", |state| has_mark(state, 29)).await;
    assert_eq!(leader.members().learners.len(), 0);
    assert_eq!(follower.propose(mark(30)).await, Ok(Applied::Done));
    follower.read_barrier().await.unwrap();
    assert!(has_mark(&follower.state().borrow(), 30));

    // Cut off it knows what it knew, also after a new start.
    pair.wire.partition(&[&["2"]]);
    follower.shutdown().await;
    let follower = open(pair.options(2)).await.unwrap();
    let state = tokio::time::timeout(Duration::from_secs(5), state_where(&follower, "the disk", |s| has_mark(s, 30)));
    assert_eq!(missing_marks(&state.await.unwrap(), 1..=30), [] as [u128; 0]);
    assert!(follower.is_initialized().await.unwrap());

    // What it missed is fetched; so much that the log no longer goes back that far comes as a snapshot.
    for n in 31..200 {
        leader.propose(mark(n)).await.unwrap();
    }
    pair.wire.heal();
    let state = state_where(&follower, "what was missed", |state| has_mark(state, 199)).await;
    assert_eq!(missing_marks(&state, 1..200), [] as [u128; 0]);
    leader.shutdown().await;
    follower.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_becomes_a_member_and_a_follower_again() {
    let pair = Pair::new();
    let leader = pair.leader().await;
    let follower = open(pair.options(2)).await.unwrap();
    leader.propose(joins(2)).await.unwrap();
    leader.propose(mark(1)).await.unwrap();
    follower.follow(node(1));
    state_where(&follower, "it follows", |state| has_mark(state, 1)).await;
    leader.add_learner(node(2), Member { host: "host-2".into() }).await.unwrap();
    leader.propose(mark(2)).await.unwrap();
    state_where(&follower, "it listens", |state| has_mark(state, 2)).await;
    let caught_up = async {
        while leader.lag().get(&node(2)).copied().flatten() != Some(0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.unwrap();
    leader.remove_learners([node(2)].into()).await.unwrap();
    leader.propose(mark(3)).await.unwrap();
    state_where(&follower, "it follows again", |state| has_mark(state, 3)).await;
    leader.shutdown().await;
    follower.shutdown().await;
}
