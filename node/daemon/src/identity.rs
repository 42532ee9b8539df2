//! A data directory and who owns it: the node id is minted with it, and one process at a time may use it.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use trellis_wire::NodeId;

/// A data directory that this process owns until the value is dropped.
pub(crate) struct Identity {
    /// The node.
    pub(crate) node: NodeId,
    /// Held, never read: the operating system releases the lock with the process, however it ends.
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error("data directory {} is in use by another node: stop that one or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    /// `node-id` holds something else.
    #[error("{} holds no node id: restore it, or begin with an empty --data-dir, which makes a new node", .0.display())]
    Damaged(PathBuf),
    /// The disk says no.
    #[error("{}: {source}", path.display())]
    Disk {
        /// What was read or written.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Identity {
    /// Opens `data_dir`, making it and minting an id where there is none.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Disk { path, source }
        };
        std::fs::create_dir_all(data_dir).map_err(disk(data_dir))?;
        let lock_path = data_dir.join("lock");
        let lock = File::create(&lock_path).map_err(disk(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(disk(&lock_path)(source)),
        }
        let id_path = data_dir.join("node-id");
        let node = match std::fs::read_to_string(&id_path) {
            Ok(text) => text.trim().parse().map_err(|_| IdentityError::Damaged(id_path))?,
            Err(none) if none.kind() == ErrorKind::NotFound => Self::mint(&id_path).map_err(disk(&id_path))?,
            Err(source) => return Err(disk(&id_path)(source)),
        };
        Ok(Self { node, _lock: lock })
    }

    fn mint(path: &Path) -> std::io::Result<NodeId> {
        let node = NodeId::new(uuid::Uuid::now_v7());
        let part = path.with_extension("part");
        std::fs::write(&part, node.to_string())?;
        File::open(&part)?.sync_all()?;
        std::fs::rename(&part, path)?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_owns_a_data_directory_and_its_id_stays() {
        let data_dir = tempfile::tempdir().unwrap();
        let first = Identity::open(data_dir.path()).unwrap();
        assert!(matches!(Identity::open(data_dir.path()), Err(IdentityError::InUse(_))));
        let node = first.node;
        drop(first);
        assert_eq!(Identity::open(data_dir.path()).unwrap().node, node);
        std::fs::write(data_dir.path().join("node-id"), "what?").unwrap();
        assert!(matches!(Identity::open(data_dir.path()), Err(IdentityError::Damaged(_))));
    }
}
