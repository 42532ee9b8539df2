//! The file: openraft's suite, who may open it, and what happens when it fails.

use std::io;
use std::path::Path;

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, RaftLogReader};
use tempfile::TempDir;
use trellis_bus::{Bus, Memory};

use super::disk::Disk;
use super::{lattice_id, lattice_name, mark, marked, node, options, watched};
use crate::log::Log;
use crate::machine::Machine;
use crate::store::{Store, Word, Write, encode};
use crate::types::{LogEntry, LogId, SnapshotMeta, StorageError, Types};
use crate::{BATCH_BYTES_MAX, RaftError, open};

struct Fresh;

impl StoreBuilder<Types, Log, Machine, TempDir> for Fresh {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError> {
        let dir = TempDir::new().unwrap();
        let (store, _) = Store::open(dir.path().into(), node(1), lattice_name()).await.unwrap();
        let (machine, _) = Machine::restore(store.clone()).await.unwrap();
        Ok((dir, Log::new(store), machine))
    }
}

#[test]
fn the_suite_of_openraft_passes() {
    Suite::test_all(Fresh).unwrap();
}

async fn open_store(dir: &Path) -> Result<Store, RaftError> {
    Ok(Store::open(dir.into(), node(1), lattice_name()).await?.0)
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

#[tokio::test]
async fn a_data_directory_serves_one_process_node_and_lattice() {
    let dir = TempDir::new().unwrap();
    let (store, closed) = Store::open(dir.path().into(), node(1), lattice_name()).await.unwrap();
    let second = open_store(dir.path()).await.err().unwrap();
    assert!(matches!(second, RaftError::DataDirInUse { .. }), "{second}");
    assert!(second.is_retryable());
    drop(store);
    closed.wait().await;

    let other = Store::open(dir.path().into(), node(2), lattice_name()).await.err().unwrap();
    assert!(matches!(&other, RaftError::OtherNode { found, wanted, .. } if (*found, *wanted) == (node(1), node(2))));
    let other = Store::open(dir.path().into(), node(1), "away".parse().unwrap()).await.err().unwrap();
    assert!(matches!(&other, RaftError::OtherLattice { found, .. } if *found == lattice_name()), "{other}");
    assert!(other.to_string().contains("--lattice home"), "{other}");
    open_store(dir.path()).await.unwrap();
}

#[tokio::test]
async fn a_lattice_of_the_same_name_is_told_by_its_id() {
    let dir = TempDir::new().unwrap();
    let here = || options(dir.path(), 1, Bus::Memory(Memory::alone()));
    let raft = open(here()).await.unwrap();
    assert_eq!(raft.bootstrap(lattice_id(7)).await, Ok(lattice_id(7)));
    raft.shutdown().await;

    let other = open(crate::Options { lattice_id: Some(lattice_id(8)), ..here() }).await.err().unwrap();
    assert!(matches!(&other, RaftError::OtherLatticeId { found, .. } if *found == lattice_id(7)), "{other}");
    let raft = open(crate::Options { lattice_id: Some(lattice_id(7)), ..here() }).await.unwrap();
    assert_eq!(raft.bootstrap(lattice_id(9)).await, Ok(lattice_id(7)), "a data directory is founded once");
    raft.shutdown().await;
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("deep/raft.redb");
    drop(open_store(&dir.path().join("deep")).await.unwrap());
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("raft.redb");
    std::fs::write(&path, [0x5a; 100_000]).unwrap();
    let damaged = open_store(dir.path()).await.err().unwrap();
    assert!(matches!(damaged, RaftError::Corrupted { .. }), "{damaged}");
    std::fs::remove_file(&path).unwrap();

    let (store, closed) = Store::open(dir.path().into(), node(1), lattice_name()).await.unwrap();
    store.write(Write::Append(vec![(0, vec![7; 60_000])])).await.unwrap();
    drop(store);
    closed.wait().await;
    let whole = std::fs::read(&path).unwrap();
    for length in [1, 300, whole.len() / 3, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let damaged = open_store(dir.path()).await.err();
        assert!(matches!(damaged, Some(RaftError::Corrupted { .. })), "cut to {length} bytes: {damaged:?}");
    }
}

/// A build that meets a command which it does not know can only stop, and says what that may be.
#[tokio::test]
async fn an_entry_of_a_newer_build_is_named() {
    let dir = TempDir::new().unwrap();
    let (store, closed) = Store::open(dir.path().into(), node(1), lattice_name()).await.unwrap();
    store.write(Write::Append(vec![(0, vec![0xff; 300])])).await.unwrap();
    let unknown = store.last_entry::<trellis_placement::Entry>().unwrap_err().to_string();
    assert!(unknown.contains("its log entry") && unknown.contains("a newer Trellis wrote it"), "{unknown}");
    drop(store);
    closed.wait().await;
}

#[tokio::test]
async fn a_full_disk_stops_the_node_and_says_so() {
    let disk = Disk::default();
    let (store, closed) = Store::on(disk.clone(), Path::new("/data/raft.redb"), node(1), &lattice_name()).unwrap();
    let options = options(Path::new("/data"), 1, Bus::Memory(Memory::alone()));
    let raft = crate::node::run(options, store, closed).await.unwrap();
    raft.bootstrap(lattice_id(7)).await.unwrap();
    raft.propose(mark(1)).await.unwrap();

    disk.fill(true);
    let refused = raft.propose(mark(2)).await.unwrap_err();
    assert!(refused.to_string().contains("the disk is full"), "{refused}");
    let why = watched(raft.failed(), "the failure", Option::is_some).await.unwrap();
    assert_eq!(why, RaftError::DiskFull { path: "/data/raft.redb".into() });
    watched(raft.leadership(), "nobody leads", |now| now.leader.is_none() && !now.me).await;
    raft.shutdown().await;
}

fn entry(index: u64, bytes: usize) -> LogEntry {
    let command = marked(index.into(), &"v".repeat(bytes));
    LogEntry { log_id: log_id(index), payload: EntryPayload::Normal(command) }
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_never_empty() {
    let dir = TempDir::new().unwrap();
    let mut log = Log::new(open_store(dir.path()).await.unwrap());
    log.blocking_append((0..10).map(|index| entry(index, 50_000))).await.unwrap();
    let batch = log.limited_get_log_entries(0, 10).await.unwrap();
    assert_eq!(batch.len(), 2);
    assert!(encode(&batch).len() <= BATCH_BYTES_MAX);
    assert_eq!(log.limited_get_log_entries(9, 10).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(0..10).await.unwrap().len(), 10);

    log.blocking_append((10..11).map(|index| entry(index, 200_000))).await.unwrap();
    assert_eq!(log.limited_get_log_entries(10, 11).await.unwrap().len(), 1, "an empty batch would be asked for again");
}

#[tokio::test]
async fn log_vote_and_marks_come_back() {
    let dir = TempDir::new().unwrap();
    let (store, closed) = Store::open(dir.path().into(), node(1), lattice_name()).await.unwrap();
    let mut log = Log::new(store);
    let vote = openraft::Vote::new(3, 1);
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((0..20).map(|index| entry(index, 10))).await.unwrap();
    log.save_committed(Some(log_id(12))).await.unwrap();
    log.truncate(log_id(15)).await.unwrap();
    log.purge(log_id(4)).await.unwrap();
    drop(log);
    closed.wait().await;

    let mut log = Log::new(open_store(dir.path()).await.unwrap());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(12)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(4)), Some(log_id(14))));
    assert_eq!(log.try_get_log_entries(..).await.unwrap().first().unwrap().log_id, log_id(5));
}

#[tokio::test]
async fn an_older_snapshot_never_takes_the_place_of_a_newer_one() {
    let dir = TempDir::new().unwrap();
    let store = open_store(dir.path()).await.unwrap();
    let write = |index: u64, body: Vec<u8>| {
        let meta = SnapshotMeta { last_log_id: Some(log_id(index)), ..SnapshotMeta::default() };
        store.write(Write::Snapshot { index: Some(index), meta: encode(&meta), body })
    };
    write(5, vec![5; 300_000]).await.unwrap();
    write(9, vec![9; 150_000]).await.unwrap();
    write(7, vec![7; 10]).await.unwrap();
    let (meta, body): (SnapshotMeta, _) = store.snapshot().unwrap().unwrap();
    assert_eq!(meta.last_log_id, Some(log_id(9)));
    assert_eq!(body, vec![9; 150_000]);
    assert_eq!(store.word::<Option<u64>>(Word::SnapshotIndex).unwrap(), Some(Some(9)));
}

#[tokio::test]
async fn a_snapshot_of_another_format_is_refused_not_installed() {
    let dir = TempDir::new().unwrap();
    let (mut machine, _) = Machine::restore(open_store(dir.path()).await.unwrap()).await.unwrap();
    for body in [vec![], vec![9, 1, 2], vec![1, 0xff, 0xff, 0xff]] {
        let handle = Box::new(io::Cursor::new(body));
        assert!(machine.install_snapshot(&SnapshotMeta::default(), handle).await.is_err());
    }
    assert!(machine.get_current_snapshot().await.unwrap().is_none());
}
