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

    /// Whether the data directory belongs to someone else.
    pub fn is_mismatch(&self) -> bool {
        matches!(self, Self::OtherNode { .. } | Self::OtherLattice { .. } | Self::OtherLatticeId { .. })
    }
}
