//! One simulated node: its disk, its copy of the state, its view of the others, and what it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trellis_manifest::Tech;
use trellis_placement::{
    Assigned, Command, Decision, Delta, Direction, Entry, HeldLink, LogView, Membership, NodeFacts, Patience, State,
    Versions, plan,
};
use trellis_wire::{AppName, ComponentKey, Generation, NodeId, frame};

/// What a component without a number of permits counts as.
pub(super) const UNBOUNDED: u64 = u32::MAX as u64;

/// A node.
pub(super) struct Peer {
    pub(super) facts: NodeFacts,
    pub(super) up: bool,
    /// When it last was.
    pub(super) last_up: Duration,
    /// Which side of a partition it is on.
    pub(super) side: u64,
    /// How many entries its copy of the state has seen.
    pub(super) applied: usize,
    pub(super) state: State,
    /// What it runs, and by which generation.
    running: Assigned,
    /// How much of the log that follows from. The same state says the same again.
    goes_by: Option<usize>,
    /// The next step of the plan, from so much of the log.
    planned: Option<(usize, Option<Delta>)>,
    membership: Membership,
    /// Its monotonic clock began so long before the world did.
    origin: Duration,
    /// Its wall clock is wrong by so many milliseconds.
    pub(super) wrong_ms: u64,
    /// Whether it has yet to tell the lattice what it is.
    pub(super) joins: bool,
}

impl Peer {
    /// A machine with an empty data directory.
    pub(super) fn new(facts: NodeFacts, side: u64, origin: Duration, wrong_ms: u64, now: Duration) -> Self {
        let membership = Membership::new(facts.id, Patience::default(), origin + now);
        let (state, running) = (State::default(), Assigned::default());
        Self {
            facts,
            up: true,
            last_up: now,
            side,
            applied: 0,
            state,
            running,
            goes_by: None,
            planned: None,
            membership,
            origin,
            wrong_ms,
            joins: true,
        }
    }

    pub(super) const fn id(&self) -> NodeId {
        self.facts.id
    }

    /// Stops at once. What was on disk stays.
    pub(super) fn crash(&mut self) {
        self.up = false;
        (self.running, self.goes_by) = (Assigned::default(), None);
    }

    /// Starts from disk, and runs what that says before it hears from anyone.
    pub(super) fn start(&mut self, now: Duration) {
        let state: State = frame::decode(&frame::encode(&self.state)).expect("a state reads back as it was written");
        self.state = state.at_home(self.state.home());
        self.membership = Membership::new(self.id(), Patience::default(), self.origin + now);
        (self.up, self.joins) = (true, true);
        self.carry_out();
    }

    /// Applies entries of the log up to `end`.
    pub(super) fn catch_up(&mut self, log: &[Entry], end: usize) {
        for entry in &log[self.applied..end] {
            self.state.apply(entry);
        }
        self.applied = end;
    }

    /// Carries out its share of the plan that it knows.
    pub(super) fn carry_out(&mut self) {
        if self.goes_by == Some(self.applied) {
            return;
        }
        let assigned = self.state.assigned(self.id());
        assert!(assigned.generation >= self.running.generation, "a copy of the state went back");
        (self.running, self.goes_by) = (assigned, Some(self.applied));
    }

    /// What it is to tell the lattice, if others wait for that.
    pub(super) fn acknowledgement(&self) -> Option<Command> {
        let generation = self.state.owes(self.id()).filter(|owed| *owed <= self.running.generation)?;
        Some(Command::Acked { node: self.id(), generation })
    }

    /// Permits by component that it may use now, whichever of two versions runs by them, and whatever the lattice thinks.
    pub(super) fn usable(&self) -> BTreeMap<&ComponentKey, u64> {
        let beside = self.running.all_beside().map(|(key, beside)| (key, &beside.held));
        let mut usable = BTreeMap::new();
        for (key, held) in self.running.components().chain(beside) {
            let most = usable.entry(key).or_default();
            *most = held.permits.map_or(UNBOUNDED, u64::from).max(*most);
        }
        usable
    }

    /// The next step of the plan, as it knows it.
    pub(super) fn plan(&mut self) -> Option<Delta> {
        if self.planned.as_ref().is_none_or(|(applied, _)| *applied != self.applied) {
            self.planned = Some((self.applied, plan(&self.state)));
        }
        self.planned.as_ref().and_then(|(_, delta)| delta.clone())
    }

    /// The home that it would record.
    pub(super) fn home_to_be(&self) -> Option<NodeId> {
        self.state.home_to_be()
    }

    /// Whether it answers for what is embedded, by all that it knows.
    pub(super) fn keeps(&self) -> bool {
        let answers = |held: &HeldLink| matches!(held.direction, Direction::Grants { tech: Tech::Embedded, .. });
        self.up && self.goes_by == Some(self.applied) && self.running.links().any(|held| answers(held))
    }

    /// The next step of every roll-out.
    pub(super) fn advances(&self) -> Vec<Command> {
        let next = |(app, versions): (&AppName, &Versions)| {
            let (rollout, newer) = (versions.rollout()?, versions.newer()?);
            Some(Command::Advance { app: app.clone(), version: newer.version.clone(), step: rollout.step + 1 })
        };
        self.state.rolling().filter_map(next).collect()
    }

    pub(super) const fn generation(&self) -> Generation {
        self.running.generation
    }

    pub(super) fn hear(&mut self, from: NodeId, now: Duration) {
        self.membership.heard(from, self.origin + now);
    }

    pub(super) fn hear_goodbye(&mut self, from: NodeId) {
        self.membership.left(from);
    }

    pub(super) fn decide(&mut self, log: &LogView, now: Duration) -> Vec<Decision> {
        self.membership.decide(&self.state, log, self.origin + now)
    }
}

/// Who votes, who listens, and how far everyone is, as the leader sees it.
pub(super) fn log_view(
    peers: &BTreeMap<NodeId, Peer>,
    voters: &BTreeSet<NodeId>,
    learners: &BTreeSet<NodeId>,
    leader: &Peer,
    end: usize,
) -> LogView {
    let lag = |peer: &Peer| (peer.up && peer.side == leader.side).then(|| (end - peer.applied) as u64);
    let lag = peers.iter().filter(|(id, _)| **id != leader.id()).map(|(id, peer)| (*id, lag(peer))).collect();
    LogView { voters: voters.clone(), learners: learners.clone(), lag }
}
