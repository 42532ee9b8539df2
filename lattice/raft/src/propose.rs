//! Commands and read barriers: done here where this node leads, asked of the leader where it does not.
//!
//! A command carries an id, and the state machine applies each id once. So a command whose answer was lost is simply
//! sent again, to whoever leads by then, until it is answered or the time is over.

use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError as PeerError};
use tokio::time::{Instant, sleep, timeout_at};
use trellis_bus::BusError;
use trellis_placement::{Applied, Entry, EntryTooLarge, TooOld};
use trellis_trust::Distrust;
use trellis_wire::{LatticeId, NodeId};

use crate::PROPOSALS_WAITING_MAX;
use crate::message::{Answer, Ask, Refusal};
use crate::network::AskError;
use crate::node::Raft;
use crate::types::{Types, node};

/// How long one node may take to answer before the next is asked.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long to wait before asking again where nobody leads, or before following another node's hint.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Why a command was not committed, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It can never be committed.
    #[error(transparent)]
    TooLarge(#[from] EntryTooLarge),
    /// A member would not know it. Nothing was sent.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// This node has too many commands under way. Nothing was sent.
    #[error("{PROPOSALS_WAITING_MAX} commands wait already; try again later")]
    Busy,
    /// Nobody led for so long. The command was not committed.
    #[error("no leader for {0:?}: more than half of the voters must be up and connected")]
    NoLeader(Duration),
    /// Somebody was asked and did not answer. The command may yet be committed; proposing it again under the same id
    /// does no harm.
    #[error("no answer from the leader for {0:?}; a command may or may not take effect")]
    Unanswered(Duration),
    /// The leader belongs to another lattice of the same name.
    #[error(
        "node {node} belongs to another lattice of this name (id {theirs}); this node's data directory is foreign to it"
    )]
    OtherLattice {
        /// Who was asked.
        node: NodeId,
        /// Its lattice's id.
        theirs: LatticeId,
    },
    /// The leader does not understand us: another version.
    #[error("node {node} does not understand this one: {why}; do both run the same version?")]
    NotUnderstood {
        /// Who was asked.
        node: NodeId,
        /// What it said.
        why: String,
    },
    /// This node's Raft has stopped.
    #[error("Raft has stopped on this node: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// Whether the same command may be committed a moment later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy | Self::NoLeader(_) | Self::Unanswered(_))
    }
}

impl Raft {
    /// Commits a command, through the leader wherever it is, and says what came of it. One that is too long for an entry
    /// of the log goes there in parts, one after the other.
    ///
    /// # Errors
    /// After `Timing::propose_wait` for each entry at the latest.
    pub async fn propose(&self, entry: Entry) -> Result<Applied, ProposeError> {
        let state = self.state().borrow().clone();
        state.check_level(&entry)?;
        let mut outcome = Applied::Unchanged;
        for part in entry.into_parts()? {
            state.check_level(&part)?;
            outcome = self.commit(part).await?;
            if matches!(outcome, Applied::Refused(_)) {
                break;
            }
        }
        Ok(outcome)
    }

    /// Commits a command as the leader that this node is; `None` where it is none. What a leader decided may be wrong for the next
    /// one, and is never passed on to it.
    ///
    /// # Errors
    /// After `Timing::propose_wait` at the latest.
    pub async fn propose_as_leader(&self, entry: Entry) -> Result<Option<Applied>, ProposeError> {
        self.state().borrow().check_level(&entry)?;
        let _slot = self.proposals().try_acquire().map_err(|_| ProposeError::Busy)?;
        let deadline = Instant::now() + self.timing().propose_wait;
        match self.attempt(self.node(), Ask::Propose(entry), deadline).await? {
            Attempt::Answer(answer) => match *answer {
                Answer::Proposed(applied) => Ok(Some(applied)),
                _ => Err(ProposeError::Stopped("it answered another question".into())),
            },
            Attempt::Hint(_) | Attempt::Nothing => Ok(None),
            Attempt::Unanswered => Err(ProposeError::Unanswered(self.timing().propose_wait)),
        }
    }

    async fn commit(&self, entry: Entry) -> Result<Applied, ProposeError> {
        let deadline = Instant::now() + self.timing().propose_wait;
        match self.ask_leader(|| Ask::Propose(entry.clone()), deadline).await? {
            Answer::Proposed(applied) => Ok(applied),
            _ => Err(ProposeError::Stopped("its leader answered another question".into())),
        }
    }

    /// Returns once [`Raft::state`] shows everything that was committed, anywhere, before this call.
    ///
    /// # Errors
    /// After `Timing::propose_wait` at the latest. What `state` shows then is still a state that once was.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let wait = self.timing().propose_wait;
        let deadline = Instant::now() + wait;
        let Answer::Barrier(index) = self.ask_leader(|| Ask::Barrier, deadline).await? else {
            return Err(ProposeError::Stopped("its leader answered another question".into()));
        };
        match timeout_at(deadline, self.progress().applied(index)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(ProposeError::Stopped(why.to_string())),
            Err(_) => Err(ProposeError::Unanswered(wait)),
        }
    }

    /// Asks whoever leads, until there is an answer or the time is over.
    async fn ask_leader(&self, ask: impl Fn() -> Ask, deadline: Instant) -> Result<Answer, ProposeError> {
        let _slot = self.proposals().try_acquire().map_err(|_| ProposeError::Busy)?;
        let wait = self.timing().propose_wait;
        let (mut to, mut unanswered) = (self.node(), false);
        while Instant::now() < deadline {
            let attempt = match self.attempt(to, ask(), deadline).await? {
                Attempt::Answer(answer) => return Ok(*answer),
                attempt => attempt,
            };
            unanswered |= matches!(attempt, Attempt::Unanswered);
            let was_here = to == self.node();
            to = match attempt {
                Attempt::Hint(leader) if leader != to => leader,
                _ => self.node(),
            };
            // What this node knows of the leader is followed at once; two others may point at each other for a while.
            if !was_here || to == self.node() {
                sleep(ASK_AGAIN).await;
            }
        }
        Err(if unanswered { ProposeError::Unanswered(wait) } else { ProposeError::NoLeader(wait) })
    }

    /// Asks one node, this one or another.
    async fn attempt(&self, to: NodeId, ask: Ask, deadline: Instant) -> Result<Attempt, ProposeError> {
        let answer = if to == self.node() {
            let Ok(answer) = timeout_at(deadline, lead(self.openraft(), ask)).await else {
                return Ok(Attempt::Unanswered);
            };
            match answer {
                Answer::Refused(Refusal::Stopped(why)) => return Err(ProposeError::Stopped(why)),
                answer => Ok(answer),
            }
        } else {
            let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT);
            self.network().ask(to, ask, left).await
        };
        Ok(match answer {
            Ok(Answer::NotLeader(Some(leader))) => Attempt::Hint(leader),
            Ok(Answer::NotLeader(None) | Answer::Refused(_)) => Attempt::Nothing,
            Ok(answer) => Attempt::Answer(Box::new(answer)),
            Err(AskError::Refused { node, why }) => match why {
                Refusal::OtherLattice(theirs) => return Err(ProposeError::OtherLattice { node, theirs }),
                Refusal::Malformed(why) => return Err(ProposeError::NotUnderstood { node, why }),
                // It may have been committed before that node stopped or ran out of time.
                Refusal::Busy | Refusal::Stopped(_) => Attempt::Unanswered,
            },
            // What a node does not take does nothing there.
            Err(AskError::Bus(BusError::NoResponders { .. }) | AskError::Distrust(Distrust::Refused { .. })) => {
                Attempt::Nothing
            }
            Err(
                AskError::Bus(_)
                | AskError::Frame { .. }
                | AskError::WentBack { .. }
                | AskError::Beside { .. }
                | AskError::Distrust(_),
            ) => Attempt::Unanswered,
        })
    }
}

/// What came of asking one node.
enum Attempt {
    Answer(Box<Answer>),
    /// Another node leads.
    Hint(NodeId),
    /// Nothing happened there.
    Nothing,
    /// Something may have happened there.
    Unanswered,
}

/// Does what only the leader can, if this node leads.
pub(crate) async fn lead(raft: &openraft::Raft<Types>, ask: Ask) -> Answer {
    match ask {
        Ask::Propose(entry) => match raft.client_write(entry).await {
            Ok(written) => Answer::Proposed(written.data.expect("an entry with a command has an outcome")),
            Err(PeerError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Answer::NotLeader(to.leader_id.map(node))
            }
            Err(PeerError::APIError(why @ ClientWriteError::ChangeMembershipError(_))) => {
                Answer::Refused(Refusal::Malformed(why.to_string()))
            }
            Err(PeerError::Fatal(why)) => Answer::Refused(Refusal::Stopped(why.to_string())),
        },
        Ask::Barrier => match raft.ensure_linearizable().await {
            Ok(read) => Answer::Barrier(read.map(|read| read.index)),
            Err(PeerError::APIError(CheckIsLeaderError::ForwardToLeader(to))) => {
                Answer::NotLeader(to.leader_id.map(node))
            }
            Err(PeerError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => Answer::NotLeader(None),
            Err(PeerError::Fatal(why)) => Answer::Refused(Refusal::Stopped(why.to_string())),
        },
        Ask::Append(_)
        | Ask::Vote(_)
        | Ask::Snapshot(_)
        | Ask::Rest(_)
        | Ask::Piece(..)
        | Ask::Held
        | Ask::WentBack(..) => Answer::Refused(Refusal::Malformed("not a question for a leader".into())),
    }
}
