//! Nodes outside the log. What is committed is told to all of them at once on one subject, as the appends that a member
//! would get; whoever finds that it missed something asks the leader for the rest, or for a snapshot where the log no
//! longer goes back so far. A follower's file is thus a member's: it starts from it without a bus, sends its commands to
//! the leader, and becomes a member without a new beginning.
//!
//! Only what is committed is ever told, so a follower's log is a part of everyone's, and takes part in no vote.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{LogIdOptionExt, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use trellis_bus::Heard;
use trellis_wire::{NodeId, frame, subject};

use crate::doubt::Doubt;
use crate::log::HEAD_BYTES;
use crate::machine::decode_snapshot;
use crate::message::{Answer, Ask, Refusal};
use crate::network::{AskError, Network};
use crate::progress::{Metrics, Progress};
use crate::serve::{SNAPSHOT_BYTES_MAX, check_append};
use crate::store::Store;
use crate::types::{LogEntry, LogId, Snapshot, SnapshotMeta, Types, number};
use crate::{BATCH_BYTES_MAX, CHUNK_BYTES_MAX, RaftError};

/// How often the leader says how far the log is where nothing happens, so that a gap at its end is noticed.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long the leader may take to answer a follower.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long to wait before asking again for what was missed.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long what was appended may take until it is applied.
const APPLY_WAIT: Duration = Duration::from_secs(10);
/// How long a snapshot is kept in memory for those who fetch it in pieces.
const SHELF_LIFE: Duration = Duration::from_secs(30);

/// A piece of a snapshot.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Piece {
    /// The vote of the leader that gives it.
    pub(crate) vote: openraft::Vote<u128>,
    pub(crate) meta: SnapshotMeta,
    pub(crate) offset: u64,
    /// How many bytes there are in all.
    pub(crate) total: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The parts that both sides use.
#[derive(Clone)]
pub(crate) struct Follow {
    pub(crate) raft: openraft::Raft<Types>,
    pub(crate) progress: Progress,
    pub(crate) network: Network,
    pub(crate) store: Store,
    pub(crate) doubt: Doubt,
    pub(crate) shelf: Arc<Mutex<Option<Shelved>>>,
    /// Whom to ask for what was missed.
    pub(crate) missed: watch::Sender<Option<NodeId>>,
}

/// The snapshot that followers fetch now.
pub(crate) struct Shelved {
    since: Instant,
    meta: SnapshotMeta,
    body: Arc<Vec<u8>>,
}

/// The leader's side.
impl Follow {
    /// Tells followers what is committed while this node leads and there are any, until `stop`.
    pub(crate) async fn tell(self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            let metrics = self.raft.metrics();
            // The last entry that was told.
            let mut told: Option<LogId> = None;
            let mut leads_since: Option<u64> = None;
            loop {
                let now = metrics.borrow().clone();
                if now.state != ServerState::Leader || !self.has_followers(&now) {
                    leads_since = None;
                } else {
                    if leads_since.replace(now.current_term) != Some(now.current_term) {
                        told = now.last_applied;
                    }
                    told = self.tell_on(&now, told).await;
                }
                let moved = |later: &Metrics| later.last_applied != now.last_applied || later.state != now.state;
                if let Ok(Err(_)) = timeout(TELL_EVERY, self.progress.until(moved)).await {
                    return;
                }
            }
        })
        .await
        .unwrap_or_default();
    }

    /// Whether the state knows nodes that the log does not.
    fn has_followers(&self, metrics: &Metrics) -> bool {
        let members = metrics.membership_config.membership();
        let state = self.network.state.borrow();
        state.nodes().keys().any(|node| members.get_node(&number(*node)).is_none())
    }

    /// Tells what follows `told`, or where there is nothing, that there is not. What was told last.
    async fn tell_on(&self, metrics: &Metrics, mut told: Option<LogId>) -> Option<LogId> {
        loop {
            let batch = match self.committed(metrics, told) {
                Ok(Some(batch)) => batch,
                // The log no longer goes back so far: followers fetch what they lack.
                Ok(None) => AppendEntriesRequest {
                    vote: metrics.vote,
                    prev_log_id: metrics.last_applied,
                    entries: Vec::new(),
                    leader_commit: metrics.last_applied,
                },
                Err(why) => {
                    tracing::warn!(%why, "reading what followers are to be told");
                    return told;
                }
            };
            let last = batch.entries.last().map(|entry| entry.log_id).or(batch.prev_log_id);
            let (subject, empty) = (subject::delta(self.network.sealed.lattice()), batch.entries.is_empty());
            if let Err(why) = self.network.sealed.announce(&subject, &frame::encode(&Ask::Append(batch))).await {
                tracing::debug!(%why, "followers are not told");
                return told;
            }
            told = last;
            if empty || told >= metrics.last_applied {
                return told;
            }
        }
    }

    /// As many committed entries after `after` as one message takes. `None`: the log does not have them.
    fn committed(
        &self,
        metrics: &Metrics,
        after: Option<LogId>,
    ) -> Result<Option<AppendEntriesRequest<Types>>, RaftError> {
        let (first, end) = (after.next_index(), metrics.last_applied.next_index());
        let entries: Vec<LogEntry> = match first < end {
            true => self.store.entries(first..end, BATCH_BYTES_MAX - HEAD_BYTES)?,
            false => Vec::new(),
        };
        if first < end && entries.first().is_none_or(|entry| entry.log_id.index != first)
            || after > metrics.last_applied
        {
            return Ok(None);
        }
        let (vote, leader_commit) = (metrics.vote, metrics.last_applied);
        Ok(Some(AppendEntriesRequest { vote, prev_log_id: after, entries, leader_commit }))
    }

    /// Answers a follower that lacks what comes after `last`.
    pub(crate) async fn rest(&self, last: Option<LogId>) -> Result<Answer, Refusal> {
        let metrics = self.raft.metrics().borrow().clone();
        if metrics.state != ServerState::Leader {
            return Ok(Answer::NotLeader(metrics.current_leader.map(crate::types::node)));
        }
        let stopped = |why: RaftError| Refusal::Stopped(why.to_string());
        match self.committed(&metrics, last).map_err(stopped)? {
            Some(batch) => Ok(Answer::Rest(batch)),
            None => self.piece(None, 0).await,
        }
    }

    /// A piece of the snapshot with this id, or of the newest where none is named or it is gone.
    pub(crate) async fn piece(&self, id: Option<String>, offset: u64) -> Result<Answer, Refusal> {
        let kept = id.and_then(|id| self.shelved(&id));
        let (meta, body) = match kept {
            Some(kept) => kept,
            None => self.shelve().await?,
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
        let bytes = body[from..body.len().min(from.saturating_add(CHUNK_BYTES_MAX))].to_vec();
        let vote = self.raft.metrics().borrow().vote;
        Ok(Answer::Piece(Piece { vote, meta, offset: from as u64, total: body.len() as u64, bytes }))
    }

    fn shelved(&self, id: &str) -> Option<(SnapshotMeta, Arc<Vec<u8>>)> {
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        if shelf.as_ref().is_some_and(|kept| kept.since.elapsed() > SHELF_LIFE) {
            *shelf = None;
        }
        shelf.as_ref().filter(|kept| kept.meta.snapshot_id == id).map(|kept| (kept.meta.clone(), kept.body.clone()))
    }

    /// Takes the newest snapshot off the disk.
    async fn shelve(&self) -> Result<(SnapshotMeta, Arc<Vec<u8>>), Refusal> {
        let newest = self.raft.get_snapshot().await.map_err(|why| Refusal::Stopped(why.to_string()))?;
        // The log is only cut after there is one.
        let Snapshot { meta, snapshot } = newest.ok_or(Refusal::Busy)?;
        let body = Arc::new(snapshot.into_inner());
        let kept = Shelved { since: Instant::now(), meta: meta.clone(), body: body.clone() };
        *self.shelf.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok((meta, body))
    }
}

/// The follower's side.
impl Follow {
    /// Takes what is told to followers, for as long as this node does not vote, until `stop`.
    pub(crate) async fn listen(self, stop: CancellationToken) {
        let misses = self.missed.subscribe();
        let hearing = async {
            let sealed = &self.network.sealed;
            let mut words = sealed.words(subject::delta(sealed.lattice()));
            loop {
                // Who is not met yet is greeted, and what others say is no matter.
                let Ok(told) = words.next().await else { continue };
                if let Some(leader) = self.hear(&told).await {
                    self.missed.send_replace(Some(leader));
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = hearing => {}
            () = self.catch_up(misses) => {}
        }
    }

    /// Takes one message. If something before it was missed: whom to ask.
    async fn hear(&self, told: &Heard) -> Option<NodeId> {
        let Ok(Ask::Append(batch)) = frame::decode(&told.body) else {
            tracing::debug!(from = %told.from, "what followers are told is not understood");
            return None;
        };
        if told.from == self.network.sealed.node() || self.votes() {
            return None;
        }
        match self.take(told.from, batch).await {
            Ok(true) => None,
            Ok(false) => Some(told.from),
            Err(why) => {
                tracing::debug!(%why, "what followers are told is not taken");
                None
            }
        }
    }

    /// Whether this node votes, as far as it knows. Then it has a log of its own, and learns from the leader alone.
    fn votes(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().voter_ids().any(|voter| voter == number(self.network.sealed.node()))
    }

    /// Appends a batch. Whether it follows what this node has.
    async fn take(&self, from: NodeId, batch: AppendEntriesRequest<Types>) -> Result<bool, Refusal> {
        check_append(&batch)?;
        self.doubt.check(from, &batch)?;
        let taken = self.raft.append_entries(batch).await.map_err(|why| Refusal::Stopped(why.to_string()))?;
        Ok(!matches!(taken, AppendEntriesResponse::Conflict))
    }

    /// Asks for what was missed, whenever something was.
    async fn catch_up(&self, mut misses: watch::Receiver<Option<NodeId>>) {
        while misses.changed().await.is_ok() {
            let mut leader = *misses.borrow_and_update();
            while let Some(from) = leader {
                match self.fetch(from).await {
                    Ok(next) => leader = next,
                    Err(why) => {
                        tracing::info!(node = %from, "what was missed of the log does not come: {why}");
                        sleep(ASK_AGAIN).await;
                        // The leader says again how far it is, if it still leads.
                        leader = None;
                    }
                }
            }
        }
    }

    /// Takes the next part of what is missing. Whom to ask next, if that was not all.
    async fn fetch(&self, from: NodeId) -> Result<Option<NodeId>, AskError> {
        let last = self.raft.metrics().borrow().last_applied;
        let refused = |why| AskError::Refused { node: from, why };
        match self.network.ask(from, Ask::Rest(last), ANSWER_WAIT).await? {
            Answer::Rest(batch) if batch.entries.is_empty() => Ok(None),
            Answer::Rest(batch) => {
                let upto = batch.entries.last().map(|entry| entry.log_id.index);
                if !self.take(from, batch).await.map_err(refused)? {
                    return Err(AskError::Beside { node: from });
                }
                match timeout(APPLY_WAIT, self.progress.applied(upto)).await {
                    Ok(applied) => applied.map_err(|why| refused(Refusal::Stopped(why.to_string())))?,
                    Err(_) => return Err(refused(Refusal::Busy)),
                }
                Ok(Some(from))
            }
            Answer::Piece(piece) => {
                self.install(from, piece).await?;
                Ok(Some(from))
            }
            Answer::NotLeader(leader) => Ok(leader.filter(|leader| *leader != from)),
            _ => Err(AskError::Beside { node: from }),
        }
    }

    /// Fetches the rest of a snapshot and begins from it.
    async fn install(&self, from: NodeId, first: Piece) -> Result<(), AskError> {
        let refused = |why: &str| AskError::Refused { node: from, why: Refusal::Malformed(why.into()) };
        let Piece { vote, meta, total, bytes: mut body, .. } = first;
        if total > SNAPSHOT_BYTES_MAX as u64 {
            return Err(refused("its snapshot is too large"));
        }
        while (body.len() as u64) < total {
            let ask = Ask::Piece(meta.snapshot_id.clone(), body.len() as u64);
            match self.network.ask(from, ask, ANSWER_WAIT).await? {
                Answer::Piece(next)
                    if next.meta.snapshot_id == meta.snapshot_id
                        && next.offset == body.len() as u64
                        && !next.bytes.is_empty() =>
                {
                    body.extend_from_slice(&next.bytes);
                }
                _ => return Err(refused("its snapshot changed on the way")),
            }
        }
        let state = decode_snapshot(&body).map_err(|why| refused(&why))?;
        if state.lattice_id() != self.network.lattice_id() {
            return Err(refused("its snapshot is of another lattice"));
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(body)) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        installed.map_err(|why| AskError::Refused { node: from, why: Refusal::Stopped(why.to_string()) })?;
        Ok(())
    }
}
