//! What was acknowledged survives: a node that is dropped, copied under way, or killed.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use trellis_bus::{Bus, Memory};
use trellis_placement::Applied;

use super::disk::Disk;
use super::{lattice_id, lattice_name, mark, missing_marks, node, options};
use crate::node::run;
use crate::store::Store;
use crate::{Options, Raft, open};

/// Where a child process finds the data directory that it is to write to until it is killed.
const CHILD_DIR: &str = "TRELLIS_RAFT_TEST_CHILD_DIR";

fn alone(dir: &std::path::Path) -> Options {
    options(dir, 1, Bus::Memory(Memory::alone()))
}

async fn propose_marks(raft: &Raft, marks: std::ops::Range<u128>) {
    for n in marks {
        assert_eq!(raft.propose(mark(n)).await, Ok(Applied::Done));
    }
}

/// Opens the directory again and names the marks that are lost.
fn lost(dir: &std::path::Path, marks: impl IntoIterator<Item = u128>) -> Vec<u128> {
    Runtime::new().unwrap().block_on(async {
        let raft = open(alone(dir)).await.unwrap();
        raft.read_barrier().await.unwrap();
        let lost = missing_marks(&raft.state().borrow(), marks);
        raft.shutdown().await;
        lost
    })
}

#[test]
fn nothing_is_lost_when_a_node_is_dropped() {
    let dir = TempDir::new().unwrap();
    let copy = TempDir::new().unwrap();
    let runtime = Runtime::new().unwrap();
    let raft = runtime.block_on(async {
        let raft = open(alone(dir.path())).await.unwrap();
        raft.bootstrap(lattice_id(7)).await.unwrap();
        propose_marks(&raft, 0..200).await;
        raft
    });
    // As the disk looks while the node still has the file open: nothing was closed in order.
    std::fs::copy(dir.path().join("raft.redb"), copy.path().join("raft.redb")).unwrap();
    drop(raft);
    drop(runtime);

    assert_eq!(lost(copy.path(), 0..200), [] as [u128; 0], "from the copy");
    assert_eq!(lost(dir.path(), 0..200), [] as [u128; 0], "after the drop");
}

#[tokio::test]
async fn a_restart_shows_the_state_before_anyone_leads() {
    let dir = TempDir::new().unwrap();
    let raft = open(alone(dir.path())).await.unwrap();
    raft.bootstrap(lattice_id(7)).await.unwrap();
    propose_marks(&raft, 0..20).await;
    raft.shutdown().await;
    let raft = open(alone(dir.path())).await.unwrap();
    assert_eq!(missing_marks(&raft.state().borrow(), 0..20), [] as [u128; 0]);
    assert!(raft.is_initialized().await.unwrap());
    raft.shutdown().await;
}

/// A node that is alone with its disk after a power cut, such as one at the edge, knows what it knew a moment before.
#[tokio::test]
async fn what_was_applied_a_moment_before_a_power_cut_is_applied_after_it() {
    let disk = Disk::default();
    let open = |disk: Disk| Store::on(disk, "/data/raft.redb".as_ref(), node(1), &lattice_name()).unwrap();
    let (store, closed) = open(disk.clone());
    let raft = run(alone("/data".as_ref()), store, closed).await.unwrap();
    raft.bootstrap(lattice_id(7)).await.unwrap();
    propose_marks(&raft, 0..5).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (store, closed) = open(disk.after_power_loss(|| false));
    let again = run(alone("/data".as_ref()), store, closed).await.unwrap();
    assert_eq!(missing_marks(&again.state().borrow(), 0..5), [] as [u128; 0], "before anyone leads");
    again.shutdown().await;
    raft.shutdown().await;
}

#[tokio::test]
async fn snapshots_and_purged_logs_come_back_too() {
    let dir = TempDir::new().unwrap();
    let mut options = alone(dir.path());
    (options.timing.snapshot_entries, options.timing.kept_entries) = (20, 3);
    let raft = open(options.clone()).await.unwrap();
    raft.bootstrap(lattice_id(7)).await.unwrap();
    propose_marks(&raft, 0..105).await;
    let purged = raft.openraft().wait(Some(super::PATIENCE)).metrics(|now| now.purged.is_some(), "a purge").await;
    assert!(purged.unwrap().snapshot.is_some());
    raft.shutdown().await;

    let raft = open(options).await.unwrap();
    assert_eq!(missing_marks(&raft.state().borrow(), 0..105), [] as [u128; 0]);
    raft.propose(mark(105)).await.unwrap();
    raft.shutdown().await;
}

/// Not a test of its own: what the killed process does.
#[test]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    Runtime::new().unwrap().block_on(async {
        let raft = open(alone(dir.as_ref())).await.unwrap();
        raft.bootstrap(lattice_id(7)).await.unwrap();
        for n in 0.. {
            raft.propose(mark(n)).await.unwrap();
            // Around what the test harness does to `println!`.
            writeln!(std::io::stderr(), "acknowledged {n}").unwrap();
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_when_a_process_is_killed() {
    let dir = TempDir::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::child_that_is_killed", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let acknowledged = |line: &std::io::Result<String>| -> Option<u128> {
        line.as_ref().ok()?.strip_prefix("acknowledged ")?.parse().ok()
    };
    let mut last = lines.by_ref().find_map(|line| acknowledged(&line).filter(|n| *n >= 150)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    last = lines.filter_map(|line| acknowledged(&line)).last().unwrap_or(last);
    assert_eq!(lost(dir.path(), 0..=last), [] as [u128; 0]);
}
