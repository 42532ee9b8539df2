//! A data directory and who owns it: the node's id and key pair are minted with it, its starts are counted in it, and one
//! process at a time may use it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trellis_trust::{NodeSecret, Seal, Start};
use trellis_wire::NodeId;

use crate::clock;

/// Locked by the process that owns the directory.
const LOCK: &str = "lock";
/// Keeps the node's id.
const NODE_ID: &str = "node-id";
/// Keeps the seed of its key pair, for the node's own user alone.
const NODE_KEY: &str = "node-key";
/// Keeps the number of the last start.
const STARTS: &str = "starts";

/// A data directory that this process owns until the value is dropped.
pub(crate) struct Identity {
    /// The node, in this start of its process.
    pub(crate) seal: Arc<Seal>,
    /// Held, never read: the operating system releases the lock with the process, however it ends.
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error("data directory {} is in use by another node: stop that one or choose another --data-dir", .0.display())]
    InUse(PathBuf),
    /// `node-id`, `node-key` or `starts` holds something else.
    #[error("{} holds no {what}: restore it, or begin with an empty --data-dir, which makes a new node", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Of `node-id` and `node-key` there is only one.
    #[error(
        "{} is missing, and a node is its id together with its key: restore it, or begin with an empty --data-dir, which \
         makes a new node",
        .0.display()
    )]
    Half(PathBuf),
    /// Others may read the key.
    #[error("{} can be read by others (mode {mode:o}), who could then pass for this node: chmod 600 it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
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
    /// Opens `data_dir`, making it and minting an id and a key pair where there are none.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, IdentityError> {
        std::fs::create_dir_all(data_dir).map_err(disk(data_dir))?;
        let lock_path = data_dir.join(LOCK);
        let lock = File::create(&lock_path).map_err(disk(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(IdentityError::InUse(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(disk(&lock_path)(source)),
        }
        let (id, key) = (data_dir.join(NODE_ID), data_dir.join(NODE_KEY));
        let (node, secret) = match (read(&id)?, read(&key)?) {
            (Some(node), Some(secret)) => {
                let mode = std::fs::metadata(&key).map_err(disk(&key))?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(IdentityError::Exposed { path: key, mode });
                }
                let damaged = |path, what| move |_| IdentityError::Damaged { path, what };
                let secret =
                    NodeSecret::parse(&secret).map_err(|_| IdentityError::Damaged { path: key, what: "node key" })?;
                (node.parse().map_err(damaged(id, "node id"))?, secret)
            }
            // The id comes last: without it nobody has seen the key, and nothing else is here yet.
            (None, Some(_)) if is_used(data_dir)? => return Err(IdentityError::Half(id)),
            (None, _) => {
                let (node, secret) = (NodeId::new(uuid::Uuid::now_v7()), NodeSecret::new(rand::random()));
                write(&key, &secret.text())?;
                write(&id, &node.to_string())?;
                (node, secret)
            }
            (Some(_), None) => return Err(IdentityError::Half(key)),
        };
        let start = begin(&data_dir.join(STARTS))?;
        Ok(Self { seal: Arc::new(Seal::new(node, secret, start)), _lock: lock })
    }
}

/// Whether a node has been here: there is more than a key that was being minted.
fn is_used(data_dir: &Path) -> Result<bool, IdentityError> {
    let failed = |source| disk(data_dir)(source);
    for entry in std::fs::read_dir(data_dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let is_minting = path.extension().is_some_and(|extension| extension == "part");
        if !is_minting && path.file_name().is_some_and(|name| name != LOCK && name != NODE_KEY) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Counts a start before anything is said in it.
fn begin(path: &Path) -> Result<Start, IdentityError> {
    let damaged = |_| IdentityError::Damaged { path: path.into(), what: "number of starts" };
    let last = read(path)?.map(|text| text.parse().map_err(damaged)).transpose()?;
    let start = Start::after(last.unwrap_or_default(), clock::now_ms(), rand::random());
    write(path, &start.number.to_string())?;
    Ok(start)
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError + use<> {
    let path = path.to_owned();
    move |source| IdentityError::Disk { path, source }
}

fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(none) if none.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(disk(path)(source)),
    }
}

/// Writes a file whole, for the node's own user alone.
fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let part = path.with_extension("part");
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    written().map_err(disk(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_owns_a_data_directory_and_its_id_and_key_stay() {
        let data_dir = tempfile::tempdir().unwrap();
        let open = || Identity::open(data_dir.path());
        let first = open().unwrap();
        assert!(matches!(open(), Err(IdentityError::InUse(_))));
        let (node, key) = (first.seal.node(), first.seal.key());
        drop(first);
        let again = open().unwrap();
        assert_eq!((again.seal.node(), again.seal.key()), (node, key));
        drop(again);
        let file = data_dir.path().join(NODE_KEY);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(open(), Err(IdentityError::Exposed { mode: 0o644, .. })));
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(open(), Err(IdentityError::Half(path)) if path == file));
        write(&file, "what?").unwrap();
        assert!(matches!(open(), Err(IdentityError::Damaged { path, .. }) if path == file));
    }

    #[test]
    fn a_key_without_its_id_is_replaced_only_where_no_node_has_been() {
        let data_dir = tempfile::tempdir().unwrap();
        let open = || Identity::open(data_dir.path());
        // A first start that broke off before it had written the id.
        write(&data_dir.path().join(NODE_KEY), "half").unwrap();
        std::fs::write(data_dir.path().join("node-id.part"), "").unwrap();
        let (node, key) = open().map(|first| (first.seal.node(), first.seal.key())).unwrap();
        let id = data_dir.path().join(NODE_ID);
        std::fs::remove_file(&id).unwrap();
        assert!(matches!(open(), Err(IdentityError::Half(path)) if path == id));
        write(&id, &node.to_string()).unwrap();
        assert_eq!(open().unwrap().seal.key(), key, "the key is as it was");
    }

    #[test]
    fn starts_are_counted() {
        let data_dir = tempfile::tempdir().unwrap();
        let file = data_dir.path().join(STARTS);
        write(&file, "99999999999999").unwrap();
        assert_eq!(begin(&file).unwrap().number, 100_000_000_000_000, "whatever the clock says");
        write(&file, "many").unwrap();
        assert!(matches!(begin(&file), Err(IdentityError::Damaged { .. })));
    }
}
