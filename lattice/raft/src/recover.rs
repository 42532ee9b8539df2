//! Going on without a quorum: when more than half of the voters are gone for good, one node's file is made the beginning
//! of a new log with that node as its only voter. Offline, because nothing can be asked of the others any more.
//!
//! What the lost voters agreed on and this node had not heard yet is lost. What this node has is kept, also what it does
//! not know to be committed: it may have been acknowledged. A lost voter that comes back with its old data could agree
//! with another one behind the new log's back; so the new log begins a new incarnation of the lattice, which forgets them.
//!
//! The new log begins with a snapshot behind an entry that no other log has: whoever goes on in it, begins with that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload};
use trellis_placement::State;
use trellis_wire::{LatticeName, NodeId};

use crate::RaftError;
use crate::chance::unique_id;
use crate::machine::{decode_snapshot, encode_snapshot};
use crate::store::{Store, Word, Write, encode};
use crate::types::{LogEntry, LogId, Member, Membership, SnapshotMeta, node, number, point};

/// So many terms the new log leaves out. Others may have come to later ones than this node heard of; where a leader's term is
/// lower, nobody begins with its log.
const TERMS_PASSED: u64 = 1_000_000;

/// What is in a node's file, and what giving up the others comes to.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// What the node knows of the lattice.
    pub state: Arc<State>,
    /// Whether it votes. One that does not may lack more.
    pub votes: bool,
    /// Who else votes, and is given up, by its name where the node knows it.
    pub others: BTreeMap<NodeId, String>,
    /// The home, if it is one of them: what it kept is given up, too.
    pub home: Option<NodeId>,
    /// The index of its last entry.
    pub last: u64,
    /// How many entries of its own it does not know to be agreed on. They are kept.
    pub unknown: u64,
}

/// Reads a node's file and, if `write`, makes it the beginning of a new log. No process may use it.
///
/// # Errors
/// The file is in use, damaged or another's, or holds no lattice yet.
pub async fn recover(
    data_dir: PathBuf,
    me: NodeId,
    lattice: LatticeName,
    host: String,
    at_ms: u64,
    write: bool,
) -> Result<Recovery, RaftError> {
    let (store, closed) = Store::open(data_dir, me, lattice).await?;
    let done = begin_anew(&store, me, host, at_ms, write).await;
    drop(store);
    closed.wait().await;
    done
}

async fn begin_anew(store: &Store, me: NodeId, host: String, at_ms: u64, write: bool) -> Result<Recovery, RaftError> {
    let nothing = || RaftError::Storage { path: store.path().into(), why: "it holds no lattice yet".into() };
    let (mut state, mut last, mut membership) = match store.snapshot::<SnapshotMeta>()? {
        None => (State::default(), None, Membership::default()),
        Some((meta, body)) => {
            let state = decode_snapshot(&body).map_err(|why| store.damaged(why))?;
            (state, meta.last_log_id, meta.last_membership)
        }
    };
    let first = last.map_or(0, |last: LogId| last.index + 1);
    for entry in store.entries::<LogEntry>(first.., usize::MAX)? {
        last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(members) => membership = Membership::new(Some(entry.log_id), members),
            EntryPayload::Normal(command) => drop(state.apply(&command)),
        }
    }
    let last = last.ok_or_else(nothing)?;
    if state.lattice_id().is_none() {
        return Err(nothing());
    }
    let committed: Option<Option<LogId>> = store.word(Word::Committed)?;
    let known = committed.flatten().map_or(0, |committed| committed.index);
    let voters: BTreeSet<NodeId> = membership.membership().voter_ids().map(node).collect();
    let others: BTreeSet<NodeId> = voters.iter().copied().filter(|voter| *voter != me).collect();
    let name = |id: &NodeId| state.node(*id).map(|node| node.facts.name.clone()).unwrap_or_default();
    let (named, home) = (others.iter().map(|id| (*id, name(id))).collect(), state.home_node());
    if !others.is_empty() {
        state.begin_anew(&others, point(&last), at_ms);
    }
    let recovery = Recovery {
        votes: voters.contains(&me),
        others: named,
        home: home.filter(|_| state.home_node().is_none()),
        last: last.index,
        unknown: last.index.saturating_sub(known.max(first.saturating_sub(1))),
        state: Arc::new(state),
    };
    // Where nobody is given up, the log goes on as it is.
    if write && !others.is_empty() {
        replace(store, me, host, last, &recovery.state).await?;
    }
    Ok(recovery)
}

/// In this order: a crash in between leaves a file that recovers again to the same.
async fn replace(store: &Store, me: NodeId, host: String, last: LogId, state: &State) -> Result<(), RaftError> {
    let vote: Option<openraft::Vote<u128>> = store.word(Word::Vote)?;
    let term = TERMS_PASSED + vote.map_or(0, |vote| vote.leader_id().term).max(last.leader_id.term);
    let last = LogId::new(CommittedLeaderId::new(term, number(me)), last.index + 1);
    store.write(Write::Vote(encode(&openraft::Vote::new(term, number(me))))).await?;
    let members = BTreeMap::from([(number(me), Member { host })]);
    let membership = openraft::Membership::new(vec![BTreeSet::from([number(me)])], members);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: Membership::new(Some(last), membership),
        snapshot_id: unique_id().simple().to_string(),
    };
    let body = encode_snapshot(state);
    store.write(Write::Snapshot { index: Some(last.index), meta: encode(&meta), body }).await?;
    store.write(Write::Purge(last.index, encode(&last))).await?;
    store.write(Write::Committed(encode(&Some(last)))).await
}
