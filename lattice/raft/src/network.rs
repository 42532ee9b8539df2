//! The calling side: Raft's requests to its peers over the bus.
//!
//! A peer's subject follows from its id, so there is nothing to connect. Whatever keeps a peer from answering as asked
//! is `Unreachable` to openraft, because that is the one error after which it waits before it tries again.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use openraft::Vote;
use openraft::error::{
    InstallSnapshotError, PayloadTooLarge, RPCError, RaftError as PeerError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use tokio::sync::watch;
use trellis_bus::{BusError, Sealed, SealedError};
use trellis_placement::State;
use trellis_trust::{Book, Distrust, Refused};
use trellis_wire::frame::{self, FrameError};
use trellis_wire::{LatticeId, LatticeSecret, NodeId, NodeKey, subject};

use crate::held::Held;
use crate::message::{Answer, Ask, Refusal};
use crate::silence::Silences;
use crate::types::{LogId, Member, Types, node};

/// How long a node may take to say whether its log went back.
const TELL_WAIT: Duration = Duration::from_secs(2);

/// Why a node did not answer what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The bus did not carry the question or the answer.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// One of the two does not take the other's words.
    #[error(transparent)]
    Distrust(Distrust),
    /// The answer makes no sense.
    #[error("node {node} answers what this one does not understand: {why}")]
    Frame {
        /// Who answered.
        node: NodeId,
        /// What is wrong with it.
        why: FrameError,
    },
    /// It would not.
    #[error("node {node} refuses: {why}")]
    Refused {
        /// Who refused.
        node: NodeId,
        /// Why.
        why: Refusal,
    },
    /// It lacks what it acknowledged.
    #[error("the log of node {node} went back: it lacks entry {known}, which it has acknowledged")]
    WentBack {
        /// Who lacks it.
        node: NodeId,
        /// The last entry that it acknowledged.
        known: u64,
    },
    /// It answered something else.
    #[error("node {node} answers another question")]
    Beside {
        /// Who answered.
        node: NodeId,
    },
}

/// This node's way to all others.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) sealed: Sealed,
    /// The id that the node was told to expect, for as long as its state names none.
    pub(crate) expected: Option<LatticeId>,
    pub(crate) state: watch::Receiver<Arc<State>>,
    /// How long to leave a peer alone that did not answer.
    pub(crate) pause: Duration,
    /// What others are known to hold of the log.
    pub(crate) held: Held,
    /// Which members do not answer this node as their leader.
    pub(crate) silences: Silences,
}

impl Network {
    /// The lattice that this node belongs to, as far as it knows.
    pub(crate) fn lattice_id(&self) -> Option<LatticeId> {
        self.state.borrow().lattice_id().or(self.expected)
    }

    /// Asks a node and awaits its answer, at most for `wait`.
    pub(crate) async fn ask(&self, to: NodeId, ask: Ask, wait: Duration) -> Result<Answer, AskError> {
        let subject = subject::raft(self.sealed.lattice(), to, ask.rpc());
        let answer = self.sealed.ask(to, &subject, &frame::encode(&ask), wait).await.map_err(|why| match why {
            SealedError::Bus(why) => AskError::Bus(why),
            SealedError::Distrust(
                Distrust::Refused { why: Refused::OtherLattice(theirs), .. } | Distrust::OtherLattice { theirs, .. },
            ) if self.lattice_id().and_then(|ours| ours.incarnation(theirs)).is_none() => {
                AskError::Refused { node: to, why: Refusal::OtherLattice(theirs) }
            }
            SealedError::Distrust(why) => AskError::Distrust(why),
        })?;
        match frame::decode(&answer).map_err(|why| AskError::Frame { node: to, why })? {
            Answer::Refused(why) => Err(AskError::Refused { node: to, why }),
            answer => Ok(answer),
        }
    }
}

/// Who is who, as the log says it.
pub(crate) struct StateBook {
    pub(crate) expected: Option<LatticeId>,
    pub(crate) state: watch::Receiver<Arc<State>>,
    /// The incarnation of the lattice that this node was told of, before its state says it.
    pub(crate) told: Arc<AtomicU32>,
}

impl Book for StateBook {
    fn lattice(&self) -> Option<LatticeId> {
        self.state.borrow().lattice_id().or(self.expected)
    }

    fn key(&self, node: NodeId) -> Option<NodeKey> {
        self.state.borrow().node(node).map(|node| node.facts.key)
    }

    fn secret(&self) -> Option<LatticeSecret> {
        self.state.borrow().trust().map(|trust| trust.secret.clone())
    }

    fn incarnation(&self) -> u32 {
        self.state.borrow().incarnation().number.max(self.told.load(Ordering::Relaxed))
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u128, _: &Member) -> Peer {
        Peer { network: self.clone(), target }
    }
}

/// This node's way to one other.
pub(crate) struct Peer {
    network: Network,
    target: u128,
}

impl Peer {
    async fn ask<E: std::error::Error>(
        &self,
        ask: Ask,
        option: &RPCOption,
    ) -> Result<Answer, RPCError<u128, Member, PeerError<u128, E>>> {
        self.network.ask(node(self.target), ask, option.soft_ttl()).await.map_err(|why| Unreachable::new(&why).into())
    }

    /// An answer of which holds what openraft takes for granted.
    fn sound(&self, answer: AppendEntriesResponse<u128>, sent: &Sent) -> Result<AppendEntriesResponse<u128>, AskError> {
        let held = &self.network.held;
        match &answer {
            AppendEntriesResponse::Success => held.acknowledged(self.target, sent.vote, sent.last, sent.committed),
            AppendEntriesResponse::PartialSuccess(upto) if sent.prev <= *upto && *upto <= sent.last => {
                held.acknowledged(self.target, sent.vote, *upto, sent.committed);
            }
            AppendEntriesResponse::Conflict if sent.prev.is_some() => {
                if let Some((known, is_new)) = held.went_back(self.target, sent.vote, sent.prev) {
                    return Err(self.went_back(sent.vote, known, is_new));
                }
            }
            AppendEntriesResponse::HigherVote(higher) if *higher > sent.vote => {}
            _ => return Err(AskError::Beside { node: node(self.target) }),
        }
        Ok(answer)
    }

    /// This node goes on without that peer, which openraft would not bear. The peer is told beside what else is done, and stops
    /// if it finds that it is so.
    fn went_back(&self, vote: Vote<u128>, known: LogId, is_new: bool) -> AskError {
        let (network, peer) = (self.network.clone(), node(self.target));
        tokio::spawn(async move {
            let holds = network.ask(peer, Ask::WentBack(vote, known), TELL_WAIT).await;
            let is_whole = matches!(holds, Ok(Answer::Held(Some(holds))) if holds >= known.index);
            if is_new && !is_whole {
                tracing::error!(
                    "node {peer} lacks entry {} of the log, which it has acknowledged: was an older copy of its data directory put \
                     back? It counts for nothing until it starts with an empty --data-dir, as a new node; then `trellis nodes \
                     forget {peer}`",
                    known.index
                );
            }
        });
        AskError::WentBack { node: peer, known: known.index }
    }

    fn beside<E: std::error::Error>(&self) -> RPCError<u128, Member, PeerError<u128, E>> {
        Unreachable::new(&AskError::Beside { node: node(self.target) }).into()
    }
}

/// What an append said.
struct Sent {
    vote: Vote<u128>,
    prev: Option<LogId>,
    /// The last entry that the peer has if it took all.
    last: Option<LogId>,
    committed: Option<LogId>,
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u128>, RPCError<u128, Member, PeerError<u128>>> {
        let last = request.entries.last().map(|entry| entry.log_id).max(request.prev_log_id);
        let (vote, prev, committed) = (request.vote, request.prev_log_id, request.leader_commit);
        let (sent, entries) = (Sent { vote, prev, last, committed }, request.entries.len() as u64);
        let answer = self.network.ask(node(self.target), Ask::Append(request), option.soft_ttl()).await;
        self.network.silences.asked(node(self.target), answer.as_ref().err());
        match answer {
            Ok(Answer::Append(answer)) => self.sound(answer, &sent).map_err(|why| Unreachable::new(&why).into()),
            Ok(_) => Err(self.beside()),
            // A bus that takes less than it did when the node started. One entry cannot be split: that one waits.
            Err(AskError::Bus(BusError::TooLarge { .. })) if entries > 1 => {
                Err(PayloadTooLarge::new_entries_hint(entries / 2).into())
            }
            Err(why) => Err(Unreachable::new(&why).into()),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u128>, RPCError<u128, Member, PeerError<u128, InstallSnapshotError>>> {
        let (vote, upto) = (request.vote, request.meta.last_log_id.filter(|_| request.done));
        match self.ask(Ask::Snapshot(request), &option).await? {
            Answer::Snapshot(answer) => {
                if answer.vote == vote {
                    self.network.held.acknowledged(self.target, vote, upto, upto);
                }
                Ok(answer)
            }
            Answer::Mismatch(mismatch) => {
                let mismatch = InstallSnapshotError::SnapshotMismatch(mismatch);
                Err(RemoteError::new(self.target, PeerError::APIError(mismatch)).into())
            }
            _ => Err(self.beside()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u128>,
        option: RPCOption,
    ) -> Result<VoteResponse<u128>, RPCError<u128, Member, PeerError<u128>>> {
        match self.ask(Ask::Vote(request), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.beside()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(iter::repeat(self.network.pause))
    }
}
