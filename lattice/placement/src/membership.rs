//! Membership: who is there, who is lost, and who votes. Signs of life, the time and the state go in; decisions come
//! out, for the leader to carry out. Time is a [`Duration`] since any fixed moment: nothing here reads a clock.
//!
//! A node hears its own heartbeats too, over the same bus. As long as it does not, its own bus is what is dead, and
//! nobody else is: no decision is taken, and everyone gets a fresh start once it hears itself again. The same covers a
//! process that was stopped for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trellis_wire::NodeId;

use crate::{Node, Patience, State};

/// How many nodes may listen to the log without a vote. All others, and every edge node, follow from outside.
pub const LEARNERS_MAX: usize = 32;
/// How many entries a node may lack and still be made a voter.
const LAG_MAX: u64 = 64;
/// Within this time the nodes are counted that vanish together. Those at the edge are not: laptops are shut as people go
/// home. Nor are those that had been lost before: their silence is no news.
const BURST: Duration = Duration::from_secs(60);
/// A lost node that the leader itself has not heard for so long is forgotten. Not by the wall clock: one that is wrong
/// would forget nodes that only restart.
const FORGET_AFTER: Duration = Duration::from_hours(7 * 24);

/// How a node seems to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It was heard lately.
    Alive,
    /// It is late.
    Suspect,
    /// It has been silent for too long.
    Silent,
}

/// What the leader is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Declare a node lost.
    Lost(NodeId),
    /// Declare that a lost node is back.
    Back(NodeId),
    /// Forget a node that has been lost for seven days and is not the home.
    Forget(NodeId),
    /// Let a node listen to the log.
    Listen(NodeId),
    /// Make these the voters.
    Voters(BTreeSet<NodeId>),
    /// Take nodes out of the log: the lattice no longer knows them, or they follow from outside now.
    Part(BTreeSet<NodeId>),
}

/// Who belongs to the log, as the leader knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogView {
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who only listens.
    pub learners: BTreeSet<NodeId>,
    /// How many entries each other member lacks; `None`: it has not answered yet.
    pub lag: BTreeMap<NodeId, Option<u64>>,
}

/// What one node knows of the life of all.
#[derive(Debug, Clone)]
pub struct Membership {
    me: NodeId,
    patience: Patience,
    /// When each node was last heard. A node that was never heard counts from when it was first looked for.
    heard: BTreeMap<NodeId, Duration>,
    /// Who gave a sign of life since it was last silent, and since this process started or was last deaf. A fresh start is
    /// none.
    signs: BTreeSet<NodeId>,
    /// Who said that it ends.
    left: BTreeSet<NodeId>,
    /// When each node that is silent now was first found so, and whether it had given a sign of life before.
    vanished: BTreeMap<NodeId, (Duration, bool)>,
    /// Who vanished together with too many others, for as long as they are silent.
    frozen: BTreeSet<NodeId>,
}

impl Membership {
    /// Nobody was heard yet. The timings count until the state has the lattice's.
    pub fn new(me: NodeId, patience: Patience, now: Duration) -> Self {
        let heard = BTreeMap::from([(me, now)]);
        let (signs, left) = (BTreeSet::new(), BTreeSet::new());
        let (vanished, frozen) = (BTreeMap::new(), BTreeSet::new());
        Self { me, patience, heard, signs, left, vanished, frozen }
    }

    /// The timings by which all this is decided.
    pub const fn patience(&self) -> &Patience {
        &self.patience
    }

    /// A node gave a sign of life.
    pub fn heard(&mut self, node: NodeId, now: Duration) {
        if node == self.me && self.is_deaf(now) {
            // The bus is back, or this process goes on: what was missed meanwhile says nothing about the others.
            self.heard.values_mut().for_each(|heard| *heard = now);
            self.signs.clear();
        }
        self.left.remove(&node);
        self.signs.insert(node);
        self.heard.insert(node, now);
    }

    /// A node said that it ends now.
    pub fn left(&mut self, node: NodeId) {
        self.left.insert(node);
    }

    /// Whether a node said that it ends, and gave no sign of life since.
    pub fn has_left(&self, node: NodeId) -> bool {
        self.left.contains(&node)
    }

    /// Whether this node does not hear itself, so that nothing can be said of the others.
    pub fn is_deaf(&self, now: Duration) -> bool {
        self.silence(self.me, now).is_none_or(|silence| silence >= self.patience.suspect)
    }

    /// How long a node has been silent; `None`: it was never heard or looked for.
    pub fn silence(&self, node: NodeId, now: Duration) -> Option<Duration> {
        self.heard.get(&node).map(|heard| now.saturating_sub(*heard))
    }

    /// How a node seems.
    pub fn life(&self, node: NodeId, now: Duration) -> Life {
        if self.left.contains(&node) {
            return Life::Silent;
        }
        if node == self.me {
            return Life::Alive;
        }
        match self.silence(node, now) {
            Some(silence) if silence >= self.patience.lost => Life::Silent,
            Some(silence) if silence < self.patience.suspect => Life::Alive,
            Some(_) | None => Life::Suspect,
        }
    }

    /// Who is silent and yet not declared lost, because over a third of the nodes vanished within a minute that are not at the
    /// edge.
    pub fn frozen(&self) -> &BTreeSet<NodeId> {
        &self.frozen
    }

    /// What is to be done now. Every node asks, so that whoever comes to lead knows enough; only the leader acts.
    pub fn decide(&mut self, state: &State, log: &LogView, now: Duration) -> Vec<Decision> {
        self.patience = state.timings().map_or(self.patience, |agreed| agreed.patience);
        self.heard.retain(|id, _| *id == self.me || state.node(*id).is_some());
        self.signs.retain(|id| self.heard.contains_key(id));
        for &id in state.nodes().keys() {
            self.heard.entry(id).or_insert(now);
        }
        if self.is_deaf(now) {
            return Vec::new();
        }
        self.count_the_silent(state, now);
        let mut decisions = self.fates(state, now);
        decisions.extend(self.changes_of_the_log(state, log, now));
        decisions
    }

    /// Notes who is silent, and freezes those who vanished together: so many at once is the network, or someone's
    /// mistake, and moving everything to the few that are left would make it worse. One node alone is never frozen.
    fn count_the_silent(&mut self, state: &State, now: Duration) {
        let silent: BTreeSet<NodeId> =
            state.nodes().keys().copied().filter(|id| self.life(*id, now) == Life::Silent).collect();
        self.vanished.retain(|id, _| silent.contains(id));
        for &id in &silent {
            self.vanished.entry(id).or_insert((now, self.signs.contains(&id)));
        }
        self.signs.retain(|id| !silent.contains(id));
        let undeclared = |id: &NodeId| state.node(*id).is_some_and(|node| !node.is_lost());
        // Declared lost by hand, a node is frozen no longer.
        self.frozen.retain(|id| silent.contains(id) && undeclared(id));
        let together = self.vanished_together(state, now);
        let rest =
            state.nodes().iter().filter(|(id, node)| !node.is_lost() && !node.facts.edge && !together.contains(id));
        if together.len() >= 2 && together.len() * 3 > together.len() + rest.count() {
            self.frozen.extend(together.into_iter().filter(undeclared));
        }
    }

    /// Who vanished within [`BURST`], declared lost by now or not.
    fn vanished_together(&self, state: &State, now: Duration) -> BTreeSet<NodeId> {
        let is_fresh = |(id, &(since, heard)): (&NodeId, &(Duration, bool))| {
            let node = state.node(*id)?;
            // This process may find a node silent, or learn that it is lost, long after it was lost.
            let is_news = heard || !node.is_lost();
            // Who says goodbye did not vanish.
            let vanished = is_news && !self.left.contains(id) && !node.facts.edge;
            (vanished && now.saturating_sub(since) < BURST).then_some(*id)
        };
        self.vanished.iter().filter_map(is_fresh).collect()
    }

    fn fates(&self, state: &State, now: Duration) -> Vec<Decision> {
        let fate = |(&id, node): (&NodeId, &Node)| match (self.life(id, now), node.lost_since_ms) {
            (Life::Silent, None) if !self.frozen.contains(&id) => Some(Decision::Lost(id)),
            // What the home keeps is nowhere else: only a person gives it up.
            (Life::Silent, Some(_)) if self.silence(id, now) > Some(FORGET_AFTER) && state.home_node() != Some(id) => {
                Some(Decision::Forget(id))
            }
            // A node that may still use what others have by now is told so first, by the log.
            (Life::Alive, Some(_)) if self.signs.contains(&id) && state.owes(id).is_none() => Some(Decision::Back(id)),
            _ => None,
        };
        state.nodes().iter().filter_map(fate).collect()
    }

    /// At most one change at a time: the next is decided when the log shows this one.
    fn changes_of_the_log(&self, state: &State, log: &LogView, now: Duration) -> Option<Decision> {
        let alive = |id: &NodeId| self.life(*id, now) == Life::Alive;
        let gone: BTreeSet<NodeId> = log.learners.iter().copied().filter(|id| state.node(*id).is_none()).collect();
        if !gone.is_empty() {
            return Some(Decision::Part(gone));
        }
        // The edge only follows. A node may have become one since it was let in.
        let edge = |id: &NodeId| state.node(*id).is_some_and(|node| node.facts.edge);
        let edges: BTreeSet<NodeId> = log.learners.iter().copied().filter(edge).collect();
        if !edges.is_empty() {
            return Some(Decision::Part(edges));
        }
        let lost = |id: &NodeId| state.node(*id).is_some_and(Node::is_lost);
        let is_member = |id: &NodeId| log.voters.contains(id) || log.learners.contains(id);
        if let Some(&new) = state.nodes().keys().find(|id| alive(id) && !lost(id) && !edge(id) && !is_member(id)) {
            match log.learners.iter().copied().find(lost) {
                _ if log.learners.len() < LEARNERS_MAX => return Some(Decision::Listen(new)),
                // A place among the learners is for one who can become a voter.
                Some(lost) => return Some(Decision::Part(BTreeSet::from([lost]))),
                None => {}
            }
        }
        let voters = self.voters(state, log, now);
        (voters != log.voters).then_some(Decision::Voters(voters))
    }

    /// Who should vote: one, three or five. A voter that is lost, forgotten or at the edge is replaced when a spare stands ready, and
    /// not before: its place is what keeps the quorum honest.
    fn voters(&self, state: &State, log: &LogView, now: Duration) -> BTreeSet<NodeId> {
        let is_gone = |id: &NodeId| state.node(*id).is_none_or(|node| node.is_lost() || node.facts.edge);
        let is_ready = |id: &&NodeId| {
            let fit = state.node(**id).is_some_and(|node| !node.is_lost() && !node.facts.edge);
            let caught_up = log.lag.get(id).copied().flatten().is_some_and(|lag| lag <= LAG_MAX);
            fit && caught_up && self.life(**id, now) == Life::Alive
        };
        let mut spares = log.learners.iter().filter(is_ready).copied();
        let mut voters = log.voters.clone();
        let gone: Vec<NodeId> = voters.iter().copied().filter(is_gone).collect();
        for id in gone {
            let Some(spare) = spares.next() else { return voters };
            voters.remove(&id);
            voters.insert(spare);
        }
        while voters.len() < 5 {
            let pair: Vec<NodeId> = spares.by_ref().take(2).collect();
            // 1 -> 3 and 3 -> 5 in one step; an even number only adds a vote that can be missing.
            let wanted = if voters.len().is_multiple_of(2) { 1 } else { 2 };
            if pair.len() < wanted {
                break;
            }
            voters.extend(pair.into_iter().take(wanted));
        }
        voters
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::{CommandId, NodeKey};

    use super::*;
    use crate::{Capacity, Command, Entry, NodeFacts};

    const SECOND: Duration = Duration::from_secs(1);

    fn id(n: u64) -> NodeId {
        format!("0a0de000-0000-7000-8000-{n:012x}").parse().unwrap()
    }

    /// A lattice in which nothing travels: decisions are carried out at once.
    struct Lattice {
        state: State,
        log: LogView,
        membership: Membership,
        now: Duration,
        commands: u64,
        alive: BTreeSet<NodeId>,
    }

    impl Lattice {
        fn of(nodes: u64) -> Self {
            let log = LogView { voters: BTreeSet::from([id(0)]), ..LogView::default() };
            let membership = Membership::new(id(0), Patience::default(), Duration::ZERO);
            let (state, now, commands, alive) = (State::default(), Duration::ZERO, 0, BTreeSet::new());
            let mut lattice = Self { state, log, membership, now, commands, alive };
            for n in 0..nodes {
                lattice.join(id(n), false);
            }
            lattice
        }

        fn join(&mut self, node: NodeId, edge: bool) {
            let capacity = Capacity { permits: 10, memory_bytes: 1 << 30 };
            let (name, version, labels) = (node.to_string(), "0.1.0".into(), BTreeMap::new());
            self.apply(Command::Join(NodeFacts {
                id: node,
                name,
                labels,
                version,
                capacity,
                edge,
                key: NodeKey::new([0; 32]),
            }));
            self.alive.insert(node);
        }

        fn apply(&mut self, command: Command) {
            self.commands += 1;
            let id = format!("00000000-0000-0000-0000-{:012x}", self.commands).parse::<CommandId>().unwrap();
            let at_ms = u64::try_from(self.now.as_millis()).unwrap();
            self.state.apply(&Entry { id, at_ms, command });
        }

        /// Lets a second pass: who lives is heard, and what is decided is done.
        fn second(&mut self) -> Vec<Decision> {
            self.now += SECOND;
            for &node in &self.alive {
                self.membership.heard(node, self.now);
            }
            let decisions = self.membership.decide(&self.state, &self.log, self.now);
            for decision in decisions.clone() {
                self.carry_out(decision);
            }
            decisions
        }

        fn carry_out(&mut self, decision: Decision) {
            match decision {
                Decision::Lost(id) => self.apply(Command::Lost(id)),
                Decision::Back(id) => self.apply(Command::Back(id)),
                Decision::Forget(id) => self.apply(Command::Forget(id)),
                Decision::Listen(id) => {
                    self.log.learners.insert(id);
                    self.log.lag.insert(id, Some(0));
                }
                Decision::Voters(voters) => {
                    let all = self.log.voters.union(&self.log.learners).copied().collect::<BTreeSet<_>>();
                    self.log.learners = all.difference(&voters).copied().collect();
                    self.log.lag.extend(self.log.learners.iter().map(|id| (*id, Some(0))));
                    self.log.voters = voters;
                }
                Decision::Part(gone) => self.log.learners.retain(|id| !gone.contains(id)),
            }
        }

        fn seconds(&mut self, count: usize) -> Vec<Decision> {
            (0..count).flat_map(|_| self.second()).collect()
        }

        fn is_lost(&self, n: u64) -> bool {
            self.state.node(id(n)).unwrap().is_lost()
        }
    }

    #[test]
    fn voters_are_one_three_or_five_and_never_an_edge_node() {
        for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)] {
            let mut lattice = Lattice::of(nodes);
            lattice.seconds(20);
            assert_eq!(lattice.log.voters.len(), voters, "{nodes} nodes");
            assert_eq!(lattice.log.voters.len() + lattice.log.learners.len(), nodes as usize);
            assert_eq!(lattice.seconds(5), [], "nothing changes by itself");
        }
        let mut lattice = Lattice::of(2);
        lattice.join(id(2), true);
        lattice.seconds(20);
        assert_eq!((lattice.log.voters.len(), lattice.log.learners.len()), (1, 1), "an edge node is in no log");
    }

    #[test]
    fn whoever_finds_no_place_in_the_log_follows_and_gets_one_when_it_is_free() {
        let mut lattice = Lattice::of(60);
        lattice.seconds(100);
        assert_eq!((lattice.log.voters.len(), lattice.log.learners.len()), (5, LEARNERS_MAX));
        let members: BTreeSet<NodeId> = lattice.log.voters.union(&lattice.log.learners).copied().collect();
        // Learners die one after the other: followers take their places, and one is a voter's spare in the end.
        for learner in lattice.log.learners.clone() {
            lattice.alive.remove(&learner);
            lattice.seconds(70);
        }
        let now: BTreeSet<NodeId> = lattice.log.voters.union(&lattice.log.learners).copied().collect();
        assert_eq!(now.difference(&members).count(), 60 - 37);
        let voter = *lattice.log.voters.iter().find(|voter| **voter != id(0)).unwrap();
        lattice.alive.remove(&voter);
        lattice.seconds(10);
        assert!(lattice.log.voters.difference(&members).count() == 1, "{:?}", lattice.log.voters);
    }

    #[test]
    fn a_member_that_comes_back_as_an_edge_node_leaves_the_log() {
        let mut lattice = Lattice::of(4);
        lattice.seconds(10);
        let voter = *lattice.log.voters.iter().find(|voter| **voter != id(0)).unwrap();
        lattice.join(voter, true);
        lattice.seconds(5);
        assert_eq!((lattice.log.voters.len(), lattice.log.learners.len()), (3, 0));
        assert!(!lattice.log.voters.contains(&voter));
    }

    #[test]
    fn a_learner_that_lags_is_no_spare() {
        let mut lattice = Lattice::of(3);
        lattice.seconds(2);
        lattice.log.lag.extend([(id(1), Some(1_000)), (id(2), None)]);
        lattice.log.learners = BTreeSet::from([id(1), id(2)]);
        assert_eq!(lattice.second(), []);
        lattice.log.lag.extend([(id(1), Some(0)), (id(2), Some(3))]);
        assert_eq!(lattice.second(), [Decision::Voters(BTreeSet::from([id(0), id(1), id(2)]))]);
    }

    #[test]
    fn a_silent_node_is_suspect_then_lost_then_back() {
        let mut lattice = Lattice::of(3);
        lattice.seconds(10);
        lattice.alive.remove(&id(2));
        assert_eq!(lattice.seconds(2), []);
        assert_eq!(lattice.membership.life(id(2), lattice.now), Life::Alive);
        lattice.second();
        assert_eq!(lattice.membership.life(id(2), lattice.now), Life::Suspect);
        assert_eq!(lattice.seconds(3), [Decision::Lost(id(2))]);
        assert_eq!(lattice.log.voters.len(), 3, "no spare stands ready, so its vote stays");
        lattice.alive.insert(id(2));
        assert_eq!(lattice.second(), [Decision::Back(id(2))]);
    }

    #[test]
    fn a_lost_voter_is_replaced_by_a_spare_and_forgotten_after_a_week() {
        let mut lattice = Lattice::of(4);
        lattice.seconds(10);
        let voter = *lattice.log.voters.iter().find(|voter| **voter != id(0)).unwrap();
        lattice.alive.remove(&voter);
        lattice.seconds(8);
        assert_eq!(lattice.log.voters.len(), 3);
        assert!(!lattice.log.voters.contains(&voter) && lattice.log.learners.contains(&voter));
        lattice.now += FORGET_AFTER - 10 * SECOND;
        assert_eq!(lattice.second(), [], "the leader was asleep for a week, and hears itself again");
        let mut almost = FORGET_AFTER;
        while almost > SECOND {
            // The others are heard all the while.
            lattice.now += 2 * SECOND;
            almost -= 2 * SECOND;
            lattice.alive.iter().for_each(|node| lattice.membership.heard(*node, lattice.now));
        }
        assert_eq!(lattice.seconds(5), [Decision::Forget(voter), Decision::Part(BTreeSet::from([voter]))]);
    }

    #[test]
    fn the_home_is_never_forgotten_by_itself() {
        let mut lattice = Lattice::of(4);
        lattice.seconds(10);
        lattice.apply(Command::Home(id(3)));
        lattice.alive.remove(&id(3));
        lattice.seconds(8);
        assert!(lattice.is_lost(3));
        for _ in 0..(FORGET_AFTER.as_secs() / 2 + 10) {
            lattice.now += 2 * SECOND;
            lattice.alive.iter().for_each(|node| lattice.membership.heard(*node, lattice.now));
        }
        assert_eq!(lattice.seconds(5), [], "what it keeps is nowhere else");
        lattice.apply(Command::Forget(id(3)));
        assert_eq!((lattice.state.node(id(3)), lattice.state.home_node()), (None, None));
    }

    #[test]
    fn a_fresh_start_brings_nobody_back() {
        let mut lattice = Lattice::of(4);
        lattice.seconds(10);
        lattice.alive.remove(&id(3));
        lattice.seconds(10);
        assert!(lattice.is_lost(3));
        // The leader starts anew, and knows the lost node only from the state.
        lattice.membership = Membership::new(id(0), Patience::default(), lattice.now);
        assert_eq!(lattice.seconds(30), []);
        // It hears nobody for a while, itself included.
        let alive = std::mem::take(&mut lattice.alive);
        lattice.seconds(30);
        lattice.alive = alive;
        assert_eq!(lattice.seconds(30), []);
        lattice.alive.insert(id(3));
        assert_eq!(lattice.second(), [Decision::Back(id(3))]);
    }

    #[test]
    fn who_says_goodbye_is_lost_at_once() {
        let mut lattice = Lattice::of(3);
        lattice.seconds(10);
        lattice.alive.remove(&id(1));
        lattice.membership.left(id(1));
        assert_eq!(lattice.second(), [Decision::Lost(id(1))]);
        // So is whoever leads: what it holds goes elsewhere while it still serves.
        lattice.alive.remove(&id(0));
        lattice.membership.left(id(0));
        assert_eq!(lattice.second(), [Decision::Lost(id(0))]);
    }

    #[test]
    fn ones_own_deafness_is_nobodys_death() {
        let mut lattice = Lattice::of(5);
        lattice.seconds(10);
        let alive = std::mem::take(&mut lattice.alive);
        assert_eq!(lattice.seconds(60), [], "this node hears not even itself");
        lattice.alive = BTreeSet::from([id(0)]);
        assert_eq!(lattice.seconds(5), [], "everyone gets a fresh start");
        lattice.alive = alive;
        assert_eq!(lattice.seconds(30), []);
    }

    #[test]
    fn when_over_a_third_vanish_together_nothing_moves_until_they_are_back() {
        let mut lattice = Lattice::of(5);
        lattice.seconds(10);
        lattice.alive = BTreeSet::from([id(0), id(3), id(4)]);
        assert_eq!(lattice.seconds(300), []);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(1), id(2)]));
        lattice.alive.extend([id(1), id(2)]);
        lattice.second();
        assert!(lattice.membership.frozen().is_empty());

        // By hand it ends, too; who comes back is taken in again.
        lattice.seconds(70);
        lattice.alive = BTreeSet::from([id(0), id(3), id(4)]);
        assert_eq!(lattice.seconds(20), []);
        [1, 2].iter().for_each(|n| lattice.apply(Command::Lost(id(*n))));
        lattice.second();
        assert!(lattice.membership.frozen().is_empty() && lattice.is_lost(1) && lattice.is_lost(2));
        lattice.alive.extend([id(1), id(2)]);
        assert_eq!(lattice.second(), [Decision::Back(id(1)), Decision::Back(id(2))]);
        lattice.seconds(70);

        // One after the other, each a minute after the last, is no burst.
        lattice.alive.remove(&id(1));
        lattice.seconds(70);
        assert!(lattice.is_lost(1));
        lattice.alive.remove(&id(2));
        lattice.seconds(7);
        assert!(lattice.is_lost(2));
    }

    /// Nodes die; the rest are the lattice a minute and more later.
    fn lattice_without(nodes: u64, edges: u64, dead: &[u64]) -> Lattice {
        let mut lattice = Lattice::of(nodes);
        (nodes..nodes + edges).for_each(|n| lattice.join(id(n), true));
        lattice.seconds(10);
        for n in dead {
            lattice.alive.remove(&id(*n));
            lattice.seconds(70);
            assert!(lattice.is_lost(*n));
        }
        lattice
    }

    /// A node dies, and is lost as soon as it has been silent for long enough.
    fn dies_alone(lattice: &mut Lattice, n: u64) {
        lattice.alive.remove(&id(n));
        let lost = lattice.seconds(6).into_iter().find(|decision| matches!(decision, Decision::Lost(_)));
        assert_eq!((lost, lattice.membership.frozen()), (Some(Decision::Lost(id(n))), &BTreeSet::new()));
    }

    #[test]
    fn those_long_lost_did_not_vanish_just_now_because_the_leader_starts_anew() {
        // Three servers, two at the edge; and five servers. Both times the last two have been away for long.
        for (nodes, edges) in [(3, 2), (5, 0)] {
            let mut lattice = lattice_without(nodes, edges, &[3, 4]);
            lattice.membership = Membership::new(id(0), Patience::default(), lattice.now);
            assert_eq!(lattice.seconds(10), []);
            dies_alone(&mut lattice, 2);
        }
    }

    #[test]
    fn those_long_lost_did_not_vanish_just_now_because_the_leader_was_deaf() {
        for (nodes, edges) in [(3, 2), (5, 0)] {
            let mut lattice = lattice_without(nodes, edges, &[3, 4]);
            let alive = std::mem::take(&mut lattice.alive);
            lattice.seconds(4);
            lattice.alive = alive;
            assert_eq!(lattice.seconds(10), []);
            dies_alone(&mut lattice, 2);
        }
    }

    #[test]
    fn who_was_declared_lost_while_the_leader_was_deaf_did_not_vanish_just_now() {
        let mut lattice = lattice_without(5, 0, &[]);
        let alive = std::mem::take(&mut lattice.alive);
        lattice.seconds(30);
        // Another one led meanwhile.
        [3, 4].iter().for_each(|n| lattice.apply(Command::Lost(id(*n))));
        lattice.alive = alive.into_iter().filter(|node| ![id(3), id(4)].contains(node)).collect();
        assert_eq!(lattice.seconds(10), []);
        dies_alone(&mut lattice, 2);
    }

    #[test]
    fn who_learns_late_that_nodes_are_lost_does_not_take_that_for_news() {
        let mut lattice = lattice_without(5, 0, &[3, 4]);
        let agreed = lattice.state.clone();
        // All voters start anew; until there is a leader, the state is as of long ago.
        lattice.membership = Membership::new(id(0), Patience::default(), lattice.now);
        [3, 4].iter().for_each(|n| lattice.apply(Command::Back(id(*n))));
        assert_eq!(lattice.seconds(8), []);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(3), id(4)]));
        lattice.state = agreed;
        assert_eq!(lattice.second(), []);
        dies_alone(&mut lattice, 2);
    }

    #[test]
    fn a_leader_that_starts_anew_does_not_end_a_freeze() {
        let mut lattice = lattice_without(5, 0, &[]);
        lattice.alive = BTreeSet::from([id(0), id(3), id(4)]);
        lattice.seconds(100);
        lattice.membership = Membership::new(id(0), Patience::default(), lattice.now);
        assert_eq!(lattice.seconds(100), []);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(1), id(2)]));
    }

    #[test]
    fn the_first_of_those_that_vanish_together_may_be_lost_before_the_others_are_missed() {
        let mut lattice = lattice_without(5, 0, &[]);
        dies_alone(&mut lattice, 1);
        lattice.alive.remove(&id(2));
        assert_eq!(lattice.seconds(100), []);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(2)]));
    }

    #[test]
    fn nodes_at_the_edge_and_those_long_lost_are_no_part_of_the_third() {
        // However many laptops are shut at once, each is lost, and no server is frozen with them.
        let mut lattice = lattice_without(3, 6, &[]);
        lattice.alive.retain(|node| *node < id(2));
        let lost: Vec<Decision> = (2..9).map(|n| Decision::Lost(id(n))).collect();
        assert_eq!(lattice.seconds(8), lost);
        // Nor do many laptops hide that the servers vanish.
        let mut lattice = lattice_without(4, 20, &[]);
        lattice.alive.retain(|node| ![id(2), id(3)].contains(node));
        assert_eq!(lattice.seconds(20), []);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(2), id(3)]));
        // Nor do those that were lost before.
        let mut lattice = lattice_without(7, 0, &[4, 5, 6]);
        lattice.alive.retain(|node| ![id(2), id(3)].contains(node));
        lattice.seconds(20);
        assert_eq!(lattice.membership.frozen(), &BTreeSet::from([id(2), id(3)]));
    }

    /// Xorshift: a seed gives the same lattice every time.
    fn dice(seed: &mut u64, sides: u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed % sides
    }

    #[test]
    fn whatever_comes_and_goes_the_voters_stay_few_and_known() {
        for first in 1..=300_u64 {
            let mut seed = first.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut lattice = Lattice::of(1 + dice(&mut seed, 9));
            let mut minted = 100;
            for _ in 0..400 {
                match dice(&mut seed, 40) {
                    0 => {
                        let edge = dice(&mut seed, 4) == 0;
                        lattice.join(id(minted), edge);
                        minted += 1;
                    }
                    // The leader itself stays: who decides is alive.
                    1 => {
                        let nodes: Vec<NodeId> = lattice.alive.iter().copied().filter(|node| *node != id(0)).collect();
                        if !nodes.is_empty() {
                            let node = nodes[dice(&mut seed, nodes.len() as u64) as usize];
                            lattice.alive.remove(&node);
                        }
                    }
                    2 => {
                        let all: Vec<NodeId> = lattice.state.nodes().keys().copied().collect();
                        lattice.alive.insert(all[dice(&mut seed, all.len() as u64) as usize]);
                    }
                    3 => drop(std::mem::take(&mut lattice.log.lag)),
                    _ => {}
                }
                let before = lattice.log.voters.clone();
                lattice.second();
                let voters = &lattice.log.voters;
                assert!([1, 3, 5].contains(&voters.len()), "seed {first}: {voters:?}");
                assert!(voters.contains(&id(0)), "seed {first}: who leads is never voted out");
                for new in voters.difference(&before) {
                    let node = lattice.state.node(*new).unwrap();
                    let life = lattice.membership.life(*new, lattice.now);
                    assert!(!node.facts.edge && life == Life::Alive, "seed {first}: {new} is no spare");
                }
                for (lost, node) in lattice.state.nodes().iter().filter(|(_, node)| node.is_lost()) {
                    let heard = lattice.membership.silence(*lost, lattice.now).unwrap();
                    assert!(heard >= 6 * SECOND, "seed {first}: {lost} was heard {heard:?} ago: {node:?}");
                }
            }
        }
    }
}
