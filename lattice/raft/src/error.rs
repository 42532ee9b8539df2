//! What can go wrong below the commands: the file, the bus, the configuration.

use std::path::PathBuf;

use trellis_wire::{LatticeId, LatticeName, NodeId};

/// Why a node's Raft cannot be opened, or why it has stopped for good.
///
/// The texts are for people: what happened, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// Another process has the data directory open.
    #[error("{}: another process uses this data directory; stop it, or give this node one of its own", path.display())]
    DataDirInUse {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The file cannot be what this crate wrote.
    #[error(
        "{}: the file is damaged: {why}; restore it from a backup, or start the node with an empty data directory: \
         it then joins as a new node",
        path.display()
    )]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// A newer build wrote the file.
    #[error("{}: the file has format {found}; this build reads format {known}: upgrade it", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// The format that the file names.
        found: u8,
        /// The format that this build reads.
        known: u8,
    },
    /// No space is left for the file.
    #[error("{}: the disk is full; free some space and start the node again", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// The file or its directory cannot be read or written.
    #[error("{}: {why}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// What the operating system or the database said.
        why: String,
    },
    /// The data directory belongs to another node.
    #[error("{}: this data directory belongs to node {found}, not to node {wanted}", path.display())]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// The node that made it.
        found: NodeId,
        /// The node that opens it.
        wanted: NodeId,
    },
    /// The data directory belongs to a lattice of another name.
    #[error(
        "{}: this data directory belongs to lattice `{found}`, not to `{wanted}`; \
         give the node another data directory, or start it with --lattice {found}",
        path.display()
    )]
    OtherLattice {
        /// The file.
        path: PathBuf,
        /// The lattice whose log it holds.
        found: LatticeName,
        /// The lattice that was asked for.
        wanted: LatticeName,
    },
    /// The data directory belongs to a lattice of the same name that was bootstrapped apart.
    #[error(
        "{}: this data directory belongs to another lattice of that name (id {found}, not {wanted}); \
         give the node an empty data directory to join this one",
        path.display()
    )]
    OtherLatticeId {
        /// The file.
        path: PathBuf,
        /// The id in its state.
        found: LatticeId,
        /// The id that was asked for.
        wanted: LatticeId,
    },
    /// An older copy of the data directory was put back. What is missing was acknowledged, and others count on it.
    #[error(
        "{}: this data directory is older than what this node acknowledged: node {by} knows that it had entry {known} of the \
         lattice's log, and it ends at entry {holds}; start with an empty --data-dir (it joins as a new node), then \
         `trellis nodes forget {this}`",
        path.display()
    )]
    WentBack {
        /// The file.
        path: PathBuf,
        /// This node.
        this: NodeId,
        /// Who says so.
        by: NodeId,
        /// The last entry that this node is known to have had.
        known: u64,
        /// The last entry that it has.
        holds: u64,
    },
    /// The lattice goes on without what this node knows to be agreed on.
    #[error(
        "{}: the lattice has lost entry {index} of its log, which this node knows to be agreed on, and goes on with another one \
         (says node {by}): more voters lost their disks, or had older copies of them put back, than it can bear. To go on \
         with what the others have, start this node with an empty --data-dir; to go on with what this node has, stop the \
         others, run `trellis recover --new-quorum` here, and start them with an empty --data-dir",
        path.display()
    )]
    Contradicted {
        /// The file.
        path: PathBuf,
        /// Who leads the others.
        by: NodeId,
        /// The entry.
        index: u64,
    },
    /// The timing contradicts itself.
    #[error("timing: {0}")]
    Timing(String),
    /// The bus cannot carry Raft.
    #[error("the bus cannot carry Raft: {0}")]
    Bus(String),
    /// Raft stopped by a fault of its own; nothing was lost that was acknowledged.
    #[error("Raft stopped: {0}; start the node again and report this")]
    Stopped(String),
}

impl RaftError {
    /// Whether starting again later, with nothing changed, may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::DataDirInUse { .. } | Self::DiskFull { .. } | Self::Bus(_) | Self::Stopped(_))
    }

    /// Whether this node's log and the lattice's have parted for good.
    pub fn is_parted(&self) -> bool {
        matches!(self, Self::WentBack { .. } | Self::Contradicted { .. })
    }

    /// Whether the data directory belongs to someone else.
    pub fn is_mismatch(&self) -> bool {
        matches!(self, Self::OtherNode { .. } | Self::OtherLattice { .. } | Self::OtherLatticeId { .. })
    }
}
