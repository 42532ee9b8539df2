//! Several nodes on one wire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use trellis_bus::{Bus, Faults, Wire};
use trellis_placement::{Applied, State};

use super::{PATIENCE, has_mark, lattice_id, mark, marked, missing_marks, node, options, state_where, timing, watched};
use crate::{Member, MembershipError, Options, ProposeError, Raft, open};

/// Nodes of one lattice, numbered from 1.
pub(super) struct Lattice {
    pub(super) wire: Wire,
    pub(super) dirs: Vec<TempDir>,
}

impl Lattice {
    pub(super) fn new(nodes: usize) -> Self {
        let dirs = (0..nodes).map(|_| TempDir::new().unwrap()).collect();
        Self { wire: Wire::default(), dirs }
    }

    pub(super) fn options(&self, n: usize) -> Options {
        options(self.dirs[n - 1].path(), n as u128, Bus::Memory(self.wire.end(&n.to_string())))
    }

    /// Opens every node, founds the lattice on the first and makes all of them voters.
    pub(super) async fn voters(&self) -> Vec<Raft> {
        let mut rafts = Vec::new();
        for n in 1..=self.dirs.len() {
            rafts.push(open(self.options(n)).await.unwrap());
        }
        let all: BTreeSet<_> = (1..=rafts.len()).map(|n| node(n as u128)).collect();
        rafts[0].bootstrap(lattice_id(7)).await.unwrap();
        for learner in all.iter().skip(1) {
            rafts[0].add_learner(*learner, Member { host: "other".into() }).await.unwrap();
        }
        rafts[0].change_voters(all).await.unwrap();
        rafts
    }
}

/// Waits until these nodes agree on a leader among them, and says which of them it is.
pub(super) async fn leader_of(rafts: &[&Raft]) -> usize {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let leaders: BTreeSet<_> = rafts.iter().map(|raft| raft.leadership().borrow().leader).collect();
        if let Some(Some(leader)) = leaders.first().filter(|_| leaders.len() == 1)
            && let Some(at) = rafts.iter().position(|raft| raft.node() == *leader && raft.leadership().borrow().me)
        {
            return at;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no leader among {} nodes", rafts.len());
}

pub(super) async fn all_marked(rafts: &[&Raft], n: u128) {
    for raft in rafts {
        state_where(raft, &format!("mark {n} on {}", raft.node()), |state| has_mark(state, n)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_replicate_and_survive_their_leader() {
    let lattice = Lattice::new(3);
    let rafts = lattice.voters().await;
    let [a, b, c] = &rafts[..] else { unreachable!() };
    let leader = leader_of(&[a, b, c]).await;
    assert_eq!(a.members().voters.len(), 3);

    // Any node takes a command; it travels to the leader.
    for (n, raft) in (0..).zip([a, b, c, a, b, c]) {
        assert_eq!(raft.propose(mark(n)).await, Ok(Applied::Done));
    }
    for raft in [a, b, c] {
        raft.read_barrier().await.unwrap();
        assert_eq!(missing_marks(&raft.state().borrow(), 0..6), [] as [u128; 0], "a barrier shows all of it");
    }

    rafts[leader].shutdown().await;
    let left: Vec<&Raft> = (0..3).filter(|n| *n != leader).map(|n| &rafts[n]).collect();
    assert_eq!(left[0].propose(mark(10)).await, Ok(Applied::Done));
    assert_eq!(left[1].propose(mark(11)).await, Ok(Applied::Done));
    assert!(left[leader_of(&left).await].leadership().borrow().term > 1);
    all_marked(&left, 11).await;

    let back = open(lattice.options(leader + 1)).await.unwrap();
    all_marked(&[&back], 11).await;
    assert_eq!(missing_marks(&back.state().borrow(), (0..6).chain([10, 11])), [] as [u128; 0]);
    for raft in left.into_iter().chain([&back]) {
        raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_the_others_commits_nothing() {
    let lattice = Lattice::new(3);
    let mut rafts = lattice.voters().await;
    let leader = leader_of(&rafts.iter().collect::<Vec<_>>()).await;
    let cut = rafts.swap_remove(leader);
    let name = (leader + 1).to_string();
    lattice.wire.partition(&[&[name.as_str()]]);

    let left: Vec<&Raft> = rafts.iter().collect();
    assert_eq!(left[0].propose(mark(1)).await, Ok(Applied::Done));
    let alone = tokio::time::timeout(Duration::from_secs(2), cut.propose(mark(2))).await;
    assert!(alone.is_err(), "{alone:?}");
    let barrier = tokio::time::timeout(Duration::from_secs(1), cut.read_barrier()).await;
    assert!(!matches!(barrier, Ok(Ok(()))), "it cannot know what it missed");
    assert!(!has_mark(&cut.state().borrow(), 1) && !has_mark(&cut.state().borrow(), 2));

    lattice.wire.heal();
    all_marked(&[&cut], 1).await;
    assert_eq!(cut.propose(mark(3)).await, Ok(Applied::Done));
    all_marked(&left, 3).await;
    for raft in left.into_iter().chain([&cut]) {
        raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_wire_loses_no_command_and_doubles_none() {
    let lattice = Lattice::new(3);
    let rafts = lattice.voters().await;
    let delay = Duration::ZERO..=Duration::from_millis(20);
    lattice.wire.set_faults(Faults { seed: 42, delay, loss: 0.05, duplication: 0.1 });
    for n in 0..40 {
        let raft = &rafts[n as usize % 3];
        let mut outcome = raft.propose(mark(n)).await;
        while outcome.as_ref().is_err_and(ProposeError::is_retryable) {
            outcome = raft.propose(mark(n)).await;
        }
        assert!(matches!(outcome, Ok(Applied::Done | Applied::Repeated)), "{outcome:?}");
    }
    lattice.wire.set_faults(Faults::default());
    let mut states: Vec<Arc<State>> = Vec::new();
    for raft in &rafts {
        raft.read_barrier().await.unwrap();
        states.push(raft.state().borrow().clone());
    }
    assert_eq!(missing_marks(&states[0], 0..40), [] as [u128; 0]);
    assert!(states.iter().all(|state| *state == states[0]), "every node has the same state");
    for raft in rafts {
        raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_takes_effect_once() {
    let lattice = Lattice::new(1);
    let raft = &lattice.voters().await[0];
    assert_eq!(raft.propose(marked(1, "first")).await, Ok(Applied::Done));
    let once = raft.state().borrow().clone();
    assert_eq!(raft.propose(marked(1, "first")).await, Ok(Applied::Repeated));
    assert_eq!(*raft.state().borrow(), once);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_learner_gets_a_snapshot_in_chunks() {
    let lattice = Lattice::new(2);
    let mut first = lattice.options(1);
    (first.timing.snapshot_entries, first.timing.kept_entries) = (30, 2);
    let raft = open(first).await.unwrap();
    raft.bootstrap(lattice_id(7)).await.unwrap();
    let value = "v".repeat(10_000);
    for n in 0..100 {
        raft.propose(marked(n, &value)).await.unwrap();
    }
    // One that takes many entries.
    assert_eq!(raft.propose(marked(100, &"w".repeat(400_000))).await, Ok(Applied::Done));
    let purged = raft.openraft().wait(Some(PATIENCE)).metrics(|now| now.purged.is_some(), "a purge").await.unwrap();
    assert!(purged.purged.unwrap().index > 30, "the beginning of the log is gone");

    let learner = open(lattice.options(2)).await.unwrap();
    assert!(!learner.is_initialized().await.unwrap());
    raft.add_learner(node(2), Member { host: "fresh".into() }).await.unwrap();
    state_where(&learner, "all marks on the learner", |state| missing_marks(state, 0..101).is_empty()).await;
    assert!(learner.openraft().metrics().borrow().snapshot.is_some(), "it came as a snapshot");
    raft.read_barrier().await.unwrap();
    learner.read_barrier().await.unwrap();
    assert_eq!(*learner.state().borrow(), *raft.state().borrow());
    assert_eq!(learner.members().learners, BTreeMap::from([(node(2), Member { host: "fresh".into() })]));
    assert!(learner.is_initialized().await.unwrap());
    assert_eq!(raft.lag().get(&node(2)).copied().flatten(), Some(0));

    // What was installed survives a restart, and the learner goes on from there.
    learner.shutdown().await;
    raft.propose(mark(200)).await.unwrap();
    let learner = open(lattice.options(2)).await.unwrap();
    assert_eq!(missing_marks(&learner.state().borrow(), 0..101), [] as [u128; 0]);
    all_marked(&[&learner], 200).await;
    assert_eq!(learner.propose(mark(201)).await, Ok(Applied::Done), "a learner's command reaches the leader");
    assert_eq!(learner.propose(marked(202, &"x".repeat(300_000))).await, Ok(Applied::Done), "so does a long one");
    let why = learner.add_learner(node(3), Member::default()).await.unwrap_err();
    assert_eq!(why, MembershipError::NotLeader(Some(node(1))));
    learner.shutdown().await;
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_proposer_is_told_in_time() {
    let lattice = Lattice::new(1);
    let mut options = lattice.options(1);
    options.timing.propose_wait = Duration::from_millis(300);
    let raft = open(options).await.unwrap();
    let began = Instant::now();
    let why = raft.propose(mark(1)).await.unwrap_err();
    assert_eq!(why, ProposeError::NoLeader(Duration::from_millis(300)));
    assert!(why.is_retryable() && began.elapsed() < Duration::from_secs(5));
    raft.shutdown().await;
    assert!(matches!(raft.propose(mark(1)).await, Err(ProposeError::Stopped(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_too_large_for_the_log_is_refused_by_name() {
    let lattice = Lattice::new(1);
    let raft = &lattice.voters().await[0];
    let why = raft.propose(marked(1, &"v".repeat(1024 * 1024))).await.unwrap_err();
    assert!(matches!(why, ProposeError::TooLarge(_)), "{why}");
    assert!(why.to_string().contains("config `mark-1`"), "{why}");
    assert!(!why.is_retryable());
    assert_eq!(raft.propose(marked(1, &"v".repeat(59 * 1024))).await, Ok(Applied::Done));
    raft.shutdown().await;
}

#[tokio::test]
async fn leadership_is_told_and_acknowledged() {
    let lattice = Lattice::new(1);
    let raft = open(lattice.options(1)).await.unwrap();
    assert_eq!(raft.acknowledged(), None);
    raft.bootstrap(lattice_id(7)).await.unwrap();
    let now = watched(raft.leadership(), "this node leads", |now| now.me).await;
    assert_eq!(now.leader, Some(node(1)));
    raft.propose(mark(1)).await.unwrap();
    assert!(raft.acknowledged().is_some_and(|at| at.elapsed() < PATIENCE));
    raft.shutdown().await;
    watched(raft.leadership(), "nobody leads", |now| !now.me && now.leader.is_none()).await;
    assert_eq!(*raft.failed().borrow(), None, "a shutdown is no failure");
}

#[tokio::test]
async fn timing_that_contradicts_itself_is_refused() {
    let lattice = Lattice::new(1);
    let mut options = lattice.options(1);
    options.timing = crate::Timing { election_min: Duration::from_millis(50), ..timing() };
    assert!(matches!(open(options).await, Err(crate::RaftError::Timing(_))));
}
