//! Why a frame is not taken, in words for people, and the part of it that is told to whoever sent it.

use serde::{Deserialize, Serialize};
use trellis_wire::frame::FrameError;
use trellis_wire::{LatticeId, NodeId};

/// Why a frame is not taken, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It is no frame, or of another kind than is awaited here.
    #[error("it is no frame that belongs here: {0}")]
    Malformed(String),
    /// This node belongs to no lattice yet.
    #[error("this node belongs to no lattice yet")]
    NoLattice,
    /// It comes from another lattice of this name.
    #[error("it comes from another lattice of this name (id {theirs}, node {from})")]
    OtherLattice {
        /// The id that it names.
        theirs: LatticeId,
        /// The node that it names.
        from: NodeId,
    },
    /// It comes from before or after this lattice was recovered, by what this node knows of that.
    #[error("it comes from incarnation {theirs} of this lattice, and this node knows another one (node {from})")]
    OtherIncarnation {
        /// How many times the lattice was recovered by then.
        theirs: u32,
        /// The node that it names.
        from: NodeId,
    },
    /// No member has that id, or none whose key this node knows.
    #[error("node {0} is no member that this node knows")]
    Unknown(NodeId),
    /// Which start that node is in has yet to be asked.
    #[error("node {0} was not greeted yet")]
    NotMet(NodeId),
    /// It is for or from a start that is over.
    #[error("node {0} or this one has started again since")]
    OtherStart(NodeId),
    /// It came before.
    #[error("it came from node {0} before")]
    Replayed(NodeId),
    /// That node did not make it, or not for here.
    #[error("node {0} did not make it, or not for here")]
    Forged(NodeId),
    /// The other side said why it does not take ours.
    #[error("node {by} does not take it: {why}")]
    Refused {
        /// Who said so.
        by: NodeId,
        /// Why.
        why: Refused,
    },
}

impl From<FrameError> for Distrust {
    fn from(why: FrameError) -> Self {
        Self::Malformed(why.to_string())
    }
}

/// What a node says to whoever asked it something that it does not take. Append-only. Nothing is said of a word that was
/// repeated or changed: it may have been by somebody who wants its sender to hear that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// It belongs to another lattice.
    #[error("it belongs to another lattice of this name, with id {0}")]
    OtherLattice(LatticeId),
    /// It does not know the sender.
    #[error("it knows no member with this id and key")]
    Unknown,
    /// The question was for or from a start that is over.
    #[error("one of the two has started again since")]
    OtherStart,
}

impl Refused {
    /// What is told of a reason; `None`: nothing is.
    pub(crate) fn of(why: &Distrust, ours: Option<LatticeId>) -> Option<Self> {
        Some(match why {
            Distrust::OtherLattice { .. } | Distrust::OtherIncarnation { .. } => Self::OtherLattice(ours?),
            Distrust::Unknown(_) => Self::Unknown,
            Distrust::OtherStart(_) => Self::OtherStart,
            Distrust::Malformed(_)
            | Distrust::NoLattice
            | Distrust::NotMet(_)
            | Distrust::Replayed(_)
            | Distrust::Forged(_)
            | Distrust::Refused { .. } => return None,
        })
    }
}
