//! The leader's side of leases: who is to have each, for how long it is renewed, and when it may go to another. Signs of
//! life, the time and the state go in; moves and renewals come out. Time is a [`Duration`] since any fixed moment of this
//! node's monotonic clock: nothing here reads it.
//!
//! Why no two nodes have one lease, whatever is lost or late:
//!
//! - a renewal lasts until one lease after a quorum last acknowledged this leader. A later leader was elected after that
//!   moment, and grants nothing before it has led for one lease itself, the longest that there ever was, and by how much
//!   slower the former one's clock may be;
//! - a lease goes to another only when every renewal to its holder has run out, and only after the state says that it
//!   was taken back. A renewal names the edition of the leases that it speaks of, and counts only where that is known;
//! - a holder counts from when it sent what was answered, and stops a little early, for the same reason. In both, clocks may
//!   differ by a sixteenth of the time that they count: monotonic clocks differ by some millionths.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trellis_wire::{LinkId, NodeId};

use crate::lease::MOVES_BYTES_MAX;
use crate::{LeaseMoves, Node, State};

/// By what part of it a time may be longer by one node's clock than by another's.
const DRIFT_DIVISOR: u32 = 16;

/// What a leader answers to a holder's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The term in which it leads.
    pub term: u64,
    /// The edition of the leases that it knows.
    pub edition: u64,
    /// How long the node has its leases, from when it sent what this answers.
    pub lasts: Duration,
}

/// Grants leases, while this node leads.
#[derive(Debug, Clone)]
pub struct Lessor {
    lease: Duration,
    reign: Option<Reign>,
}

/// What a leader must remember while it leads. Nothing of it outlives that: the next one waits instead.
#[derive(Debug, Clone)]
struct Reign {
    term: u64,
    since: Duration,
    /// Until when each node was told that it has its leases.
    renewed: BTreeMap<NodeId, Duration>,
    /// Who had each lease when this was last looked at, and since when.
    seen: BTreeMap<LinkId, (NodeId, Duration)>,
    /// Leases that were taken back, and from when on each may be granted.
    free: BTreeMap<LinkId, Duration>,
}

impl Lessor {
    /// Leases last so long without a renewal, until the state has the lattice's timings.
    pub const fn new(lease: Duration) -> Self {
        Self { lease, reign: None }
    }

    /// This node leads in `term`. Its state must hold everything that was committed before.
    pub fn lead(&mut self, term: u64, now: Duration) {
        if self.term() != Some(term) {
            let (renewed, seen, free) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            self.reign = Some(Reign { term, since: now, renewed, seen, free });
        }
    }

    /// This node does not lead, or not yet.
    pub fn step_down(&mut self) {
        self.reign = None;
    }

    /// The term in which this node leads.
    pub fn term(&self) -> Option<u64> {
        self.reign.as_ref().map(|reign| reign.term)
    }

    /// Renews the leases of a node that gave a sign of life. `acknowledged` is when a quorum last acknowledged this leader.
    /// `None`: it does not lead, or cannot be sure that it still does.
    pub fn renew(
        &mut self,
        state: &State,
        node: NodeId,
        acknowledged: Option<Duration>,
        now: Duration,
    ) -> Option<Renewal> {
        let reign = self.reign.as_mut()?;
        if state.node(node).is_none_or(Node::is_lost) {
            return None;
        }
        let until = acknowledged? + lease(self.lease, state);
        let lasts = until.checked_sub(now).filter(|lasts| !lasts.is_zero())?;
        let renewed = reign.renewed.entry(node).or_default();
        *renewed = until.max(*renewed);
        Some(Renewal { term: reign.term, edition: state.leases().edition(), lasts })
    }

    /// What is to change hands, if anything. `wanted` are the links that need a lease with the nodes
    /// that may have it, `is_alive` says who was heard lately.
    pub fn decide(
        &mut self,
        state: &State,
        wanted: &BTreeMap<LinkId, BTreeSet<NodeId>>,
        is_alive: impl Fn(NodeId) -> bool,
        now: Duration,
    ) -> Option<LeaseMoves> {
        let lease = lease(self.lease, state);
        let reign = self.reign.as_mut()?;
        let longest = state.timings().map_or(lease, |agreed| agreed.longest_lease);
        // Whoever led before may have renewed until then. Where there is only one node, it was this one.
        let first =
            if state.nodes().len() <= 1 { Duration::ZERO } else { reign.since + longest + longest / DRIFT_DIVISOR };
        reign.look(state, first, now);
        let mut moves = Moves::default();
        for (link, granted) in state.leases().iter() {
            let may = wanted.get(link).is_some_and(|nodes| nodes.contains(&granted.node));
            // Who was named a moment ago has yet to ask.
            let asks_by = reign.seen.get(link).map_or(now, |(_, since)| *since) + lease;
            let has_run_out = reign.until(granted.node, asks_by).max(asks_by) < now;
            if !may || has_run_out {
                moves.add(link, None);
            }
        }
        let fits = |id: NodeId| is_alive(id) && state.node(id).is_some_and(|node| !node.is_lost());
        reign.grant(state, wanted, fits, first <= now, &mut moves);
        (!moves.to.is_empty()).then(|| LeaseMoves { edition: state.leases().edition(), to: moves.to })
    }
}

/// How long leases last: as the lattice has agreed, or as this node was told where it has not.
fn lease(own: Duration, state: &State) -> Duration {
    state.timings().map_or(own, |agreed| agreed.patience.lease)
}

impl Reign {
    /// Until when a node was told that it has its leases; `or` where this leader told it nothing.
    fn until(&self, node: NodeId, or: Duration) -> Duration {
        self.renewed.get(&node).copied().unwrap_or(or)
    }

    /// Grants what is free: each to whoever has the fewest, of several the first.
    fn grant(
        &self,
        state: &State,
        wanted: &BTreeMap<LinkId, BTreeSet<NodeId>>,
        fits: impl Fn(NodeId) -> bool,
        may_begin: bool,
        moves: &mut Moves,
    ) {
        let mut loads: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (_, lease) in state.leases().iter() {
            *loads.entry(lease.node).or_default() += 1;
        }
        let is_free = |link| may_begin && state.leases().get(link).is_none() && !self.free.contains_key(link);
        for (link, nodes) in wanted.iter().filter(|(link, _)| is_free(link)) {
            let load = |id: &NodeId| loads.get(id).copied().unwrap_or_default();
            if let Some(node) = nodes.iter().copied().filter(|id| fits(*id)).min_by_key(load) {
                *loads.entry(node).or_default() += 1;
                moves.add(link, Some(node));
            }
        }
    }

    /// Notes which leases were taken back since the last look. Renewals up to here may speak of them; later ones do not.
    fn look(&mut self, state: &State, first: Duration, now: Duration) {
        let before = std::mem::take(&mut self.seen);
        for (link, (node, _)) in &before {
            if state.leases().get(link).is_none_or(|lease| lease.node != *node) {
                self.free.insert(link.clone(), self.until(*node, first).max(first));
            }
        }
        self.free.retain(|_, free| *free > now);
        let since =
            |link, node| before.get(link).filter(|(before, _)| *before == node).map_or(now, |(_, since)| *since);
        let seen = state.leases().iter().map(|(link, lease)| (link.clone(), (lease.node, since(link, lease.node))));
        self.seen = seen.collect();
    }
}

/// Collects moves until a command is full.
#[derive(Default)]
struct Moves {
    to: BTreeMap<LinkId, Option<NodeId>>,
    bytes: usize,
}

impl Moves {
    fn add(&mut self, link: &LinkId, to: Option<NodeId>) {
        self.bytes += link.to_string().len() + 32;
        if self.bytes <= MOVES_BYTES_MAX || self.to.is_empty() {
            self.to.insert(link.clone(), to);
        }
    }
}
