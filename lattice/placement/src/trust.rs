//! Trust: what all members share, and who may become one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use trellis_trust::{Proof, TokenKey};
use trellis_wire::{LatticeId, LatticeSecret, NodeId, NodeKey};

use crate::state::{State, done_if};
use crate::{Applied, Refusal};

/// How many keys may stand on the list of those that are let in.
pub const ALLOWED_MAX: usize = 1_000;

/// What all members share, and who may become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Hides what members announce.
    pub secret: LatticeSecret,
    /// What the lattice keeps of its join token.
    pub token: Option<TokenKey>,
    /// Whose nodes are let in without it.
    pub allowed: BTreeSet<NodeKey>,
    /// Whether anyone is let in. Never again once there was a token or a list.
    pub open: bool,
}

/// Changes who may become a member. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustChange {
    /// How the lattice begins. Comes after `Found`, and is done once.
    Begin {
        /// Drawn by the founder.
        secret: LatticeSecret,
        /// Of the join token, if it begins with one.
        token: Option<TokenKey>,
        /// The list that it begins with.
        allowed: BTreeSet<NodeKey>,
    },
    /// Another join token from now on.
    Token(TokenKey),
    /// A node with this key is let in.
    Allow(NodeKey),
    /// It is not any more. A node that is a member stays one.
    Disallow(NodeKey),
}

/// Why a node is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It has not shown the token.
    #[error("joining needs its join token: start the node with --join-token or --join-token-file")]
    NoToken,
    /// It has shown another token.
    #[error("the node's join token is another one")]
    OtherToken,
    /// Its key is not on the list.
    #[error(
        "only nodes on its list are let in, and this one's key {0} is not: `trellis nodes allow {0}` on a member adds it"
    )]
    NotListed(NodeKey),
}

impl Trust {
    /// Whether a node that wants to join may.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(
        &self,
        lattice: LatticeId,
        challenge: &[u8; 16],
        (node, key): (NodeId, NodeKey),
        proof: Option<&Proof>,
    ) -> Result<(), NotAdmitted> {
        if self.open || self.allowed.contains(&key) {
            return Ok(());
        }
        match (&self.token, proof) {
            (Some(token), Some(proof)) if token.accepts(proof, lattice, challenge, node, key) => Ok(()),
            (Some(_), Some(_)) => Err(NotAdmitted::OtherToken),
            (Some(_), None) => Err(NotAdmitted::NoToken),
            (None, _) => Err(NotAdmitted::NotListed(key)),
        }
    }

    fn change(&mut self, change: &TrustChange) -> Result<Applied, Refusal> {
        let before = self.clone();
        match change {
            TrustChange::Begin { .. } => {}
            TrustChange::Token(token) => (self.token, self.open) = (Some(token.clone()), false),
            TrustChange::Allow(_) if self.allowed.len() >= ALLOWED_MAX => return Err(Refusal::ListFull),
            TrustChange::Allow(key) => {
                self.open = false;
                self.allowed.insert(*key);
            }
            TrustChange::Disallow(key) => drop(self.allowed.remove(key)),
        }
        Ok(done_if(*self != before))
    }
}

impl State {
    /// What all members share and who may become one, once the founder has said so.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_deref()
    }

    pub(crate) fn change_trust(&mut self, change: &TrustChange) -> Result<Applied, Refusal> {
        match (&mut self.trust, change) {
            (Some(trust), change) => std::sync::Arc::make_mut(trust).change(change),
            (none, TrustChange::Begin { secret, token, allowed }) => {
                let open = token.is_none() && allowed.is_empty();
                let (secret, token, allowed) = (secret.clone(), token.clone(), allowed.clone());
                *none = Some(Trust { secret, token, allowed, open }.into());
                Ok(Applied::Done)
            }
            (None, _) => Err(Refusal::NotFounded),
        }
    }
}

#[cfg(test)]
mod tests {
    use trellis_trust::Token;
    use trellis_wire::CommandId;

    use super::*;
    use crate::{Command, Entry};

    fn id<T>(new: fn(uuid::Uuid) -> T, n: u128) -> T {
        new(uuid::Uuid::from_u128(n))
    }

    fn apply(state: &mut State, n: u128, change: TrustChange) -> Applied {
        state.apply(&Entry { id: id(CommandId::new, n), at_ms: 0, command: Command::Trust(change) })
    }

    fn begun(token: Option<TokenKey>, allowed: &[NodeKey]) -> State {
        let mut state = State::default();
        let begin = TrustChange::Begin {
            secret: LatticeSecret::new([1; 32]),
            token,
            allowed: allowed.iter().copied().collect(),
        };
        assert_eq!(apply(&mut state, 1, begin), Applied::Done);
        state
    }

    #[test]
    fn an_open_lattice_takes_anyone_until_it_has_a_token_or_a_list() {
        let (lattice, node) = (id(LatticeId::new, 1), id(NodeId::new, 1));
        let (listed, other) = (NodeKey::new([1; 32]), NodeKey::new([2; 32]));
        let admits = |state: &State, key, proof: Option<Proof>| {
            state.trust().unwrap().admits(lattice, &[7; 16], (node, key), proof.as_ref())
        };
        let mut state = begun(None, &[]);
        assert_eq!(admits(&state, other, None), Ok(()));
        assert_eq!(apply(&mut state, 2, TrustChange::Allow(listed)), Applied::Done);
        assert_eq!(admits(&state, listed, None), Ok(()));
        assert_eq!(admits(&state, other, None), Err(NotAdmitted::NotListed(other)));
        assert_eq!(apply(&mut state, 3, TrustChange::Disallow(listed)), Applied::Done);
        assert_eq!(admits(&state, listed, None), Err(NotAdmitted::NotListed(listed)), "an empty list is no open door");

        let [token, wrong] =
            ["the token of this lattice", "another token altogether"].map(|text| Token::new(lattice, text));
        let mut state = begun(Some(token.key()), &[listed]);
        assert_eq!(admits(&state, listed, None), Ok(()));
        assert_eq!(admits(&state, other, None), Err(NotAdmitted::NoToken));
        assert_eq!(admits(&state, other, Some(token.prove(&[7; 16], node, other))), Ok(()));
        assert_eq!(admits(&state, other, Some(token.prove(&[8; 16], node, other))), Err(NotAdmitted::OtherToken));
        assert_eq!(admits(&state, other, Some(wrong.prove(&[7; 16], node, other))), Err(NotAdmitted::OtherToken));
        assert_eq!(apply(&mut state, 2, TrustChange::Token(wrong.key())), Applied::Done);
        assert_eq!(admits(&state, other, Some(token.prove(&[7; 16], node, other))), Err(NotAdmitted::OtherToken));
        assert_eq!(admits(&state, other, Some(wrong.prove(&[7; 16], node, other))), Ok(()));
    }

    #[test]
    fn trust_begins_once_and_before_it_changes() {
        let mut state = State::default();
        let early = apply(&mut state, 1, TrustChange::Allow(NodeKey::new([1; 32])));
        assert_eq!(early, Applied::Refused(Refusal::NotFounded));
        let mut state = begun(None, &[]);
        let again = TrustChange::Begin { secret: LatticeSecret::new([2; 32]), token: None, allowed: BTreeSet::new() };
        assert_eq!(apply(&mut state, 2, again), Applied::Unchanged);
        assert_eq!(state.trust().unwrap().secret, LatticeSecret::new([1; 32]));
    }
}
