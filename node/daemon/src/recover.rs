//! Going on without a quorum, on the data directory of a node that is stopped.

use std::path::Path;
use std::sync::Arc;

use trellis_placement::Release;
use trellis_raft::{RaftError, Recovery};
use trellis_wire::{LatticeName, NodeId};

use crate::artifacts::Artifacts;
use crate::identity::{Identity, IdentityError};
use crate::{clock, membership};

/// The lattice that a file is first taken for, where none is named.
const LATTICE_DEFAULT: &str = "default";

/// Why a data directory cannot go on without the others.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It does not exist, or holds no node.
    #[error("{0} holds no node: name the data directory of one that was in the lattice with --data-dir")]
    NoNode(String),
    /// The log.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The code.
    #[error("artifacts: {0}")]
    Artifacts(String),
}

/// What a node has, and what giving up the other voters comes to; with `write` they are given up.
#[derive(Debug)]
pub struct Recovered {
    /// The node.
    pub node: NodeId,
    /// What is in its log.
    pub recovery: Recovery,
    /// Apps whose code is not all in this data directory: they must be deployed again where no other node has it.
    pub without_code: Vec<String>,
}

impl Recovered {
    /// The other voters, each with its name where the node knows it.
    pub fn given_up(&self) -> Vec<String> {
        self.recovery.others.iter().map(|(id, name)| format!("{id} {name}").trim_end().into()).collect()
    }

    /// The nodes that neither vote nor are given up, in the same way.
    pub fn others(&self) -> Vec<String> {
        let nodes = self.recovery.state.nodes().iter().filter(|(id, _)| **id != self.node);
        nodes.map(|(id, node)| format!("{id} {}", node.facts.name)).collect()
    }
}

/// Reads the data directory of a node that is stopped, and with `write` makes it the only voter of its lattice. Without
/// `lattice` that is whichever it belongs to.
///
/// # Errors
/// A node uses it, or it is none's, or not of `lattice`.
pub async fn recover(data_dir: &Path, lattice: Option<LatticeName>, write: bool) -> Result<Recovered, RecoverError> {
    if !data_dir.join("raft.redb").exists() {
        return Err(RecoverError::NoNode(data_dir.display().to_string()));
    }
    let identity = Identity::open(data_dir)?;
    let (node, host, now_ms) = (identity.seal.node(), membership::hostname(), clock::now_ms());
    let begin = |lattice| trellis_raft::recover(data_dir.into(), node, lattice, host.clone(), now_ms, write);
    let recovery = match lattice {
        Some(lattice) => begin(lattice).await,
        // The file says whose it is before anything of it is read.
        None => match begin(LATTICE_DEFAULT.parse().expect("it is a valid lattice name")).await {
            Err(RaftError::OtherLattice { found, .. }) => begin(found).await,
            done => done,
        },
    }?;
    let artifacts = Artifacts::open(data_dir).map_err(|why| RecoverError::Artifacts(why.to_string()))?;
    let lacks = |release: &Arc<Release>| release.artifacts.values().any(|digest| !artifacts.has(*digest));
    let lacking =
        recovery.state.releases().filter(|release| lacks(release)).map(|release| release.app.name.to_string());
    let without_code = lacking.collect();
    Ok(Recovered { node, recovery, without_code })
}
