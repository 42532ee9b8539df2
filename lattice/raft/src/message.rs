//! What nodes say to each other about Raft. Each message is a frame of `trellis_wire::frame`, sealed for its receiver by
//! `trellis_bus::Sealed`; the enums only grow at their ends.

use openraft::Vote;
use openraft::error::SnapshotMismatch;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};
use trellis_placement::{Applied, Entry};
use trellis_wire::subject::RaftRpc;
use trellis_wire::{LatticeId, NodeId};

use crate::follow::Piece;
use crate::types::{LogId, Types};

/// What one node asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Entries, or none as a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// A vote.
    Vote(VoteRequest<u128>),
    /// To take one chunk of a snapshot.
    Snapshot(InstallSnapshotRequest<Types>),
    /// To commit a command, of the leader.
    Propose(Entry),
    /// The index that a read must have seen to miss nothing, of the leader.
    Barrier,
    /// What is committed after this entry, of the leader, for a node outside the log.
    Rest(Option<LogId>),
    /// The snapshot with this id from this byte on, of the same.
    Piece(String, u64),
    /// Up to where the asker's log is known to go.
    Held,
    /// The leader with this vote says that the asked node acknowledged this entry to it, and now lacks it.
    WentBack(Vote<u128>, LogId),
}

impl Ask {
    /// Which subject it travels on.
    pub(crate) const fn rpc(&self) -> RaftRpc {
        match self {
            Self::Append(_) => RaftRpc::Append,
            Self::Vote(_) => RaftRpc::Vote,
            Self::Snapshot(_) => RaftRpc::Snapshot,
            Self::Propose(_) | Self::Barrier | Self::Rest(_) | Self::Piece(..) | Self::Held | Self::WentBack(..) => {
                RaftRpc::Forward
            }
        }
    }
}

/// What the other answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// To [`Ask::Append`].
    Append(AppendEntriesResponse<u128>),
    /// To [`Ask::Vote`].
    Vote(VoteResponse<u128>),
    /// To [`Ask::Snapshot`].
    Snapshot(InstallSnapshotResponse<u128>),
    /// To [`Ask::Snapshot`]: begin again.
    Mismatch(SnapshotMismatch),
    /// To [`Ask::Propose`]: it is committed, and this came of it.
    Proposed(Applied),
    /// To [`Ask::Barrier`].
    Barrier(Option<u64>),
    /// To [`Ask::Propose`], [`Ask::Barrier`] and [`Ask::Rest`]: ask this node, if one is known.
    NotLeader(Option<NodeId>),
    /// To anything.
    Refused(Refusal),
    /// To [`Ask::Rest`]: as much as one message takes; nothing where that is all.
    Rest(AppendEntriesRequest<Types>),
    /// To [`Ask::Rest`] where the log does not go back so far, and to [`Ask::Piece`].
    Piece(Piece),
    /// To [`Ask::Held`]: the last committed entry that the asker is known to have had; nothing is known. To
    /// [`Ask::WentBack`]: the last entry that the answering node has.
    Held(Option<u64>),
}

/// Why a node does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refusal {
    /// The message makes no sense.
    #[error("it does not understand us: {0}")]
    Malformed(String),
    /// It belongs to another lattice of the same name.
    #[error("it belongs to another lattice of this name, with id {0}")]
    OtherLattice(LatticeId),
    /// It has too much to do, or no quorum; later may do.
    #[error("it is busy")]
    Busy,
    /// Its Raft has stopped.
    #[error("its Raft has stopped: {0}")]
    Stopped(String),
}
