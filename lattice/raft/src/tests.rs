//! Tests of the whole crate: the store by openraft's own suite, lattices over one wire.

mod crash;
mod decoding;
mod disk;
mod file;
mod follow;
mod lattice;
mod peers;
mod register;
pub(crate) mod seeded;
mod simulate;
mod simulated;
mod transcript;
mod went_back;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trellis_bus::{Bus, Sealed, members};
use trellis_placement::{Command, Entry, State};
use trellis_wire::{CommandId, Config, LatticeId, LatticeName, NodeId};
use uuid::Uuid;

use crate::{Options, Raft, Timing};

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nodes that know each other's keys.
const NODES: u128 = 10;

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn lattice_name() -> LatticeName {
    "home".parse().unwrap()
}

fn lattice_id(n: u128) -> LatticeId {
    LatticeId::new(Uuid::from_u128(n))
}

/// Faster than in life, slower than a machine that is busy with other tests.
fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(500),
        election_max: Duration::from_millis(1000),
        propose_wait: PATIENCE,
        ..Timing::default()
    }
}

fn options(dir: &Path, n: u128, bus: Bus) -> Options {
    start_of(dir, sealed(n, bus))
}

fn start_of(dir: &Path, sealed: Sealed) -> Options {
    Options {
        data_dir: dir.into(),
        host: format!("host-{}", sealed.node().uuid().as_u128()),
        lattice_id: Some(lattice_id(7)),
        sealed,
        timing: timing(),
    }
}

/// A start of node `n` on a bus. These nodes join by no command, so each is introduced to all.
fn sealed(n: u128, bus: Bus) -> Sealed {
    introduced(members::start(node(n), lattice_name(), bus))
}

fn introduced(sealed: Sealed) -> Sealed {
    (1..=NODES).for_each(|other| sealed.seal().introduce(node(other), members::secret(node(other)).key()));
    sealed
}

/// A command that leaves a mark of its own in the state.
fn mark(n: u128) -> Entry {
    marked(n, "x")
}

fn marked(n: u128, value: &str) -> Entry {
    let values = Config::from_iter([("value", value)]);
    // Apart from the ids of lattices, which their founding commands have too.
    let id = CommandId::new(Uuid::from_u128(n | 1 << 100));
    Entry { id, at_ms: 0, command: Command::PutConfig { name: format!("mark-{n}"), values } }
}

fn has_mark(state: &State, n: u128) -> bool {
    state.configs().get(&format!("mark-{n}")).is_some()
}

fn missing_marks(state: &State, marks: impl IntoIterator<Item = u128>) -> Vec<u128> {
    marks.into_iter().filter(|n| !has_mark(state, *n)).collect()
}

/// Waits until the state is as asked.
async fn state_where(raft: &Raft, what: &str, as_asked: impl FnMut(&Arc<State>) -> bool) -> Arc<State> {
    watched(raft.state(), what, as_asked).await
}

async fn watched<T: Clone>(mut watch: watch::Receiver<T>, what: &str, as_asked: impl FnMut(&T) -> bool) -> T {
    let found = tokio::time::timeout(PATIENCE, watch.wait_for(as_asked)).await;
    found.unwrap_or_else(|_| panic!("waited in vain: {what}")).unwrap().clone()
}
