//! The answering side: what this node does when its peers ask.
//!
//! Only what a member sealed for this node comes here at all. Whatever is not a sound request gets a [`Refusal`] as its
//! answer, and nothing of it reaches openraft, which takes much for granted and stops for good on what it cannot store.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::SnapshotMismatch;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse};
use openraft::{LogIdOptionExt, SnapshotSegmentId};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_bus::{BusError, Heard, Listening, Reply};
use trellis_wire::subject::RaftRpc;
use trellis_wire::{NodeId, frame, subject};

use crate::doubt::Doubt;
use crate::follow::Follow;
use crate::machine::decode_snapshot;
use crate::message::{Answer, Ask, Refusal};
use crate::network::Network;
use crate::propose::lead;
use crate::types::{Snapshot, Types, number};

/// How many questions for the leader are worked on at once; more are answered [`Refusal::Busy`].
const FORWARDED_MAX: usize = 64;
/// How long an answer may take. The asker has given up by then.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait before listening again where the bus ended a subscription.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);
/// The longest snapshot that is taken from a peer, in bytes.
pub(crate) const SNAPSHOT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What listens. One task for each subject: appends do not wait behind a snapshot that is being installed.
pub(crate) struct Server {
    raft: openraft::Raft<Types>,
    network: Network,
    follow: Follow,
    doubt: Doubt,
    /// The snapshot that is coming in. There is one leader, so there is one.
    incoming: Mutex<Incoming>,
    forwarded: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Incoming {
    id: String,
    body: Vec<u8>,
}

impl Server {
    /// Listens to this node's subjects until `stop`.
    pub(crate) async fn listen(follow: Follow, tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), BusError> {
        let forwarded = Arc::new(Semaphore::new(FORWARDED_MAX));
        let (incoming, tasks, stop) = (Mutex::default(), tasks.clone(), stop.clone());
        let (raft, network, doubt) = (follow.raft.clone(), follow.network.clone(), follow.doubt.clone());
        let server = Arc::new(Self { raft, network, follow, doubt, incoming, forwarded, tasks, stop });
        for rpc in [RaftRpc::Append, RaftRpc::Vote, RaftRpc::Snapshot, RaftRpc::Forward] {
            let words = server.words(rpc).await?;
            server.tasks.spawn(server.clone().run(rpc, words));
        }
        let (greeted, stop) = (server.network.sealed.be_greeted().await?, server.stop.clone());
        server.tasks.spawn(async move { stop.run_until_cancelled_owned(greeted).await.unwrap_or_default() });
        Ok(())
    }

    async fn words(&self, rpc: RaftRpc) -> Result<Listening, BusError> {
        let sealed = &self.network.sealed;
        sealed.listen(&subject::raft(sealed.lattice(), sealed.node(), rpc)).await
    }

    async fn run(self: Arc<Self>, rpc: RaftRpc, words: Listening) {
        let stop = self.stop.clone();
        stop.run_until_cancelled_owned(self.serve(rpc, words)).await.unwrap_or_default();
    }

    async fn serve(self: Arc<Self>, rpc: RaftRpc, mut words: Listening) {
        loop {
            match words.next().await {
                Some(Ok(asked)) if rpc == RaftRpc::Forward => self.forward(asked).await,
                Some(Ok(asked)) => self.reply(rpc, asked).await,
                // Who sent it was told.
                Some(Err(_)) => {}
                None => words = self.listen_again(rpc).await,
            }
        }
    }

    async fn listen_again(&self, rpc: RaftRpc) -> Listening {
        loop {
            tokio::time::sleep(LISTEN_AGAIN).await;
            match self.words(rpc).await {
                Ok(words) => return words,
                Err(why) => tracing::warn!(?rpc, %why, "listening for Raft again"),
            }
        }
    }

    /// Commands wait for a quorum, so they are worked on beside each other.
    async fn forward(self: &Arc<Self>, asked: Heard) {
        let Ok(slot) = self.forwarded.clone().try_acquire_owned() else {
            return self.send(asked.reply, Answer::Refused(Refusal::Busy)).await;
        };
        let (server, stop) = (self.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(server.reply(RaftRpc::Forward, asked)).await.unwrap_or_default();
            drop(slot);
        });
    }

    async fn reply(&self, rpc: RaftRpc, asked: Heard) {
        let answer = tokio::time::timeout(ANSWER_WAIT, self.answer(rpc, asked.from, &asked.body)).await;
        let answer = answer.unwrap_or(Ok(Answer::Refused(Refusal::Busy))).unwrap_or_else(Answer::Refused);
        if let Answer::Refused(why @ (Refusal::Malformed(_) | Refusal::OtherLattice(_))) = &answer {
            tracing::warn!(?rpc, from = %asked.from, %why, "refused a Raft message");
        }
        self.send(asked.reply, answer).await;
    }

    async fn send(&self, reply: Option<Reply>, answer: Answer) {
        let Some(reply) = reply else { return };
        if let Err(why) = self.network.sealed.answer(reply, &frame::encode(&answer)).await {
            // The asker sees a time-out and asks again.
            tracing::debug!(%why, "answering a Raft message");
        }
    }

    async fn answer(&self, rpc: RaftRpc, from: NodeId, body: &[u8]) -> Result<Answer, Refusal> {
        let asked: Ask = frame::decode(body).map_err(|why| Refusal::Malformed(why.to_string()))?;
        if asked.rpc() != rpc {
            return Err(Refusal::Malformed(format!("{:?} came on the subject of {rpc:?}", asked.rpc())));
        }
        let stopped = |why: &dyn std::fmt::Display| Refusal::Stopped(why.to_string());
        match asked {
            Ask::Append(request) => {
                check_append(&request)?;
                self.append(from, request).await.map(Answer::Append)
            }
            // It does not know yet whether what it acknowledged is still there.
            Ask::Vote(_) if !self.doubt.is_over() => Err(Refusal::Busy),
            Ask::Vote(request) => self.raft.vote(request).await.map(Answer::Vote).map_err(|why| stopped(&why)),
            Ask::Snapshot(request) => self.take_chunk(request).await,
            Ask::Propose(entry) => {
                if !entry.fits() {
                    return Err(Refusal::Malformed(format!("an entry of {} bytes", entry.encoded_len())));
                }
                let state = self.network.state.borrow().clone();
                state.check_level(&entry).map_err(|why| Refusal::Malformed(why.to_string()))?;
                Ok(lead(&self.raft, Ask::Propose(entry)).await)
            }
            Ask::Barrier => Ok(lead(&self.raft, Ask::Barrier).await),
            Ask::Rest(last) => self.follow.rest(last).await,
            Ask::Piece(id, offset) => self.follow.piece(Some(id), offset).await,
            Ask::Held => {
                let (vote, applied) = self.doubt.point();
                let known = self.network.held.known(number(from), vote, applied);
                // Nobody counts on what others have.
                Ok(Answer::Held(known.filter(|_| self.is_member(from))))
            }
            Ask::WentBack(vote, known) => {
                // A later leader may have taken that entry out of this log.
                let known = Some(known.index).filter(|_| vote >= self.doubt.point().0);
                Ok(Answer::Held(self.doubt.told(from, known).await))
            }
        }
    }

    fn is_member(&self, node: NodeId) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_node(&number(node)).is_some()
    }

    /// Takes entries of a leader, and notes what that says of its own log.
    async fn append(
        &self,
        from: NodeId,
        request: AppendEntriesRequest<Types>,
    ) -> Result<AppendEntriesResponse<u128>, Refusal> {
        self.doubt.check(from, &request)?;
        let (vote, committed) = (request.vote, request.leader_commit);
        let taken = self.raft.append_entries(request).await.map_err(|why| Refusal::Stopped(why.to_string()))?;
        if let Some(committed) = committed
            && vote.leader_id.node_id == number(from)
            && !matches!(taken, AppendEntriesResponse::HigherVote(_))
        {
            self.network.held.heard(number(from), committed.index);
        }
        Ok(taken)
    }

    /// Takes one chunk; with the last one, installs the snapshot.
    async fn take_chunk(&self, request: InstallSnapshotRequest<Types>) -> Result<Answer, Refusal> {
        let my_vote = self.raft.metrics().borrow().vote;
        if request.vote < my_vote {
            return Ok(Answer::Snapshot(InstallSnapshotResponse { vote: my_vote }));
        }
        let mut incoming = self.incoming.lock().await;
        if let Some(mismatch) = incoming.take(&request)? {
            return Ok(Answer::Mismatch(mismatch));
        }
        if !request.done {
            return Ok(Answer::Snapshot(InstallSnapshotResponse { vote: my_vote }));
        }
        let Incoming { body, .. } = std::mem::take(&mut *incoming);
        let state = decode_snapshot(&body).map_err(Refusal::Malformed)?;
        if let (Some(ours), Some(theirs)) = (self.network.lattice_id(), state.lattice_id())
            && ours != theirs
        {
            return Err(Refusal::OtherLattice(ours));
        }
        let snapshot = Snapshot { meta: request.meta, snapshot: Box::new(Cursor::new(body)) };
        let installed = self.raft.install_full_snapshot(request.vote, snapshot).await;
        installed.map(|done| Answer::Snapshot(done.into())).map_err(|why| Refusal::Stopped(why.to_string()))
    }
}

impl Incoming {
    /// Adds a chunk. A chunk that came before may come again; one that leaves a gap is a mismatch, after which the
    /// sender begins again.
    fn take(&mut self, request: &InstallSnapshotRequest<Types>) -> Result<Option<SnapshotMismatch>, Refusal> {
        let id = &request.meta.snapshot_id;
        let offset = usize::try_from(request.offset).unwrap_or(usize::MAX);
        if offset == 0 {
            *self = Self { id: id.clone(), body: Vec::new() };
        }
        let expected = if self.id == *id { self.body.len() } else { 0 };
        if self.id != *id || offset > expected {
            let segment = |offset| SnapshotSegmentId { id: id.clone(), offset };
            return Ok(Some(SnapshotMismatch { expect: segment(expected as u64), got: segment(request.offset) }));
        }
        if offset.saturating_add(request.data.len()) > SNAPSHOT_BYTES_MAX {
            return Err(Refusal::Malformed(format!("the snapshot is larger than {SNAPSHOT_BYTES_MAX} bytes")));
        }
        self.body.truncate(offset);
        self.body.extend_from_slice(&request.data);
        Ok(None)
    }
}

/// openraft takes for granted that entries follow each other.
pub(crate) fn check_append(request: &AppendEntriesRequest<Types>) -> Result<(), Refusal> {
    let mut next = request.prev_log_id.next_index();
    for entry in &request.entries {
        if entry.log_id.index != next {
            let why = format!("entry {} stands where entry {next} should", entry.log_id.index);
            return Err(Refusal::Malformed(why));
        }
        next = next.saturating_add(1);
    }
    Ok(())
}
