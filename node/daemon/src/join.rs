//! The words of joining, and what the leader remembers of those who ask. Whoever asks presents the key of its node; so does
//! whoever answers. Where the lattice has a join token, each side proves to the other that it knows it, and never says it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use trellis_placement::{Incarnation, NodeFacts};
use trellis_trust::{Presented, Proof, TokenKey};
use trellis_wire::{LatticeId, NodeId, NodeKey, frame};

/// How long what was drawn for a node is good.
const CHALLENGE_LIFE: Duration = Duration::from_secs(60);
/// For how many nodes something is drawn at one time.
const CHALLENGES_MAX: usize = 256;

/// Bytes that are drawn for one question, so that its answer is no other question's.
pub(crate) type Nonce = [u8; 16];

/// What comes on the join subject, presented by who asks. Answers go to the asker's own subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Which lattices of this name are here? Every member answers.
    Who(Nonce),
    /// Let this node in. The leader answers, if it drew the challenge for this node.
    Admit {
        /// What the node is.
        facts: Box<NodeFacts>,
        /// The lattice that is meant.
        lattice: LatticeId,
        /// What the leader drew.
        challenge: Nonce,
        /// That the node has the token.
        proof: Option<Proof>,
    },
    /// Which incarnation of the lattice is here? Every member answers.
    Incarnation(Nonce),
}

/// What a member answers, presented by it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// What it says.
    pub(crate) here: Here,
    /// That it is the lattice which has the token, where it has one.
    pub(crate) vouched: Option<Proof>,
}

/// What a member says to one that asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Here {
    /// The lattice.
    pub(crate) lattice: LatticeId,
    /// The asker's nonce, or what was drawn for it.
    pub(crate) echo: Nonce,
    /// What of it.
    pub(crate) said: Said,
    /// Who belongs to the log and with which key. For members, and for whom was just let in.
    pub(crate) members: Vec<(NodeId, NodeKey)>,
}

/// What of a lattice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It is here. The leader says what it drew for the asker.
    Present(Option<Nonce>),
    /// The node is recorded; the log comes to it by itself.
    Admitted,
    /// It is not, and why.
    Refused(String),
    /// The incarnation of the lattice, by this member's state.
    Incarnation(Incarnation),
    /// The node is recorded, in a later incarnation of the lattice than the first.
    AdmittedTo(u32),
}

impl Said {
    /// Whether the node is recorded.
    pub(crate) const fn is_admission(&self) -> bool {
        matches!(self, Self::Admitted | Self::AdmittedTo(_))
    }
}

impl Answer {
    /// For one asker, from the member with this id and key.
    pub(crate) fn new(here: Here, token: Option<&TokenKey>, asker: NodeId, by: (NodeId, NodeKey)) -> Self {
        let vouched = token.map(|token| token.vouch(&told(&here, asker, by)));
        Self { here, vouched }
    }

    /// Whether whoever answered knows of this token, and answered this asker.
    pub(crate) fn is_vouched(&self, token: &TokenKey, asker: NodeId, by: &Presented) -> bool {
        let told = told(&self.here, asker, (by.from, by.key));
        self.vouched.as_ref().is_some_and(|vouched| token.vouches(&told, vouched))
    }
}

fn told(here: &Here, asker: NodeId, by: (NodeId, NodeKey)) -> Vec<u8> {
    frame::encode(&(here, asker, by))
}

/// What the leader drew for nodes that ask, each for one use.
#[derive(Default)]
pub(crate) struct Challenges(HashMap<NodeId, (Nonce, Instant)>);

impl Challenges {
    /// Keeps what was drawn for a node. `None`: too many ask at once; the oldest will do so no longer in a moment.
    pub(crate) fn keep(&mut self, node: NodeId, drawn: Nonce, now: Instant) -> Option<Nonce> {
        self.0.retain(|_, (_, since)| now.saturating_duration_since(*since) < CHALLENGE_LIFE);
        if self.0.len() >= CHALLENGES_MAX && !self.0.contains_key(&node) {
            return None;
        }
        self.0.insert(node, (drawn, now));
        Some(drawn)
    }

    /// Whether this was drawn for that node, lately; it is used up then.
    pub(crate) fn take(&mut self, node: NodeId, challenge: Nonce, now: Instant) -> bool {
        let is_it = |(drawn, since): &(Nonce, Instant)| {
            *drawn == challenge && now.saturating_duration_since(*since) < CHALLENGE_LIFE
        };
        let found = self.0.get(&node).is_some_and(is_it);
        if found {
            self.0.remove(&node);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use trellis_trust::Token;
    use uuid::Uuid;

    use super::*;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    #[test]
    fn what_was_drawn_is_good_once_for_one_node_and_a_while() {
        let (mut challenges, now) = (Challenges::default(), Instant::now());
        assert_eq!(challenges.keep(node(1), [1; 16], now), Some([1; 16]));
        assert!(!challenges.take(node(2), [1; 16], now) && !challenges.take(node(1), [2; 16], now));
        assert!(challenges.take(node(1), [1; 16], now));
        assert!(!challenges.take(node(1), [1; 16], now), "again");
        challenges.keep(node(1), [1; 16], now);
        assert!(!challenges.take(node(1), [1; 16], now + CHALLENGE_LIFE), "late");
        for n in 0..CHALLENGES_MAX as u128 {
            challenges.keep(node(n), [1; 16], now);
        }
        assert_eq!(challenges.keep(node(9999), [1; 16], now), None);
        assert_eq!(challenges.keep(node(9999), [1; 16], now + CHALLENGE_LIFE), Some([1; 16]));
    }

    #[test]
    fn an_answer_is_vouched_for_as_it_was_said_to_whom_and_by_whom() {
        let lattice = LatticeId::new(Uuid::from_u128(1));
        let [token, other] =
            ["the token of this lattice", "another token altogether"].map(|text| Token::new(lattice, text).key());
        let by = |n, key| Presented { from: node(n), key: NodeKey::new([key; 32]), body: Vec::new() };
        let here = Here { lattice, echo: [1; 16], said: Said::Present(None), members: Vec::new() };
        let mut answer = Answer::new(here, Some(&token), node(1), (node(2), NodeKey::new([2; 32])));
        assert!(answer.is_vouched(&token, node(1), &by(2, 2)));
        assert!(!answer.is_vouched(&other, node(1), &by(2, 2)), "another token");
        assert!(!answer.is_vouched(&token, node(3), &by(2, 2)), "said to another node");
        assert!(!answer.is_vouched(&token, node(1), &by(2, 3)), "with another key");
        answer.here.members.push((node(4), NodeKey::new([4; 32])));
        assert!(!answer.is_vouched(&token, node(1), &by(2, 2)), "something was added");
    }
}
