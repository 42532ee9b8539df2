//! Whether this node's log is what it was. A data directory can be put back from an older copy; then entries are gone that
//! this node acknowledged, and with its vote others could agree on something else in their place.
//!
//! So a node that starts asks the other voters what they know of it (`held.rs`). Until it was told, it gives nobody its vote
//! and stands for no election. If it lacks what somebody knows that it had, it stops for good. Where nobody who knows is
//! there to be asked, nobody can tell.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::Vote;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine, StorageHelper};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trellis_wire::NodeId;

use crate::RaftError;
use crate::log::Log;
use crate::message::{Answer, Ask, Refusal};
use crate::network::{AskError, Network};
use crate::store::Store;
use crate::types::{LogEntry, LogId, StorageError, Types, node, number};

/// How long one voter may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// The wait before those are asked again who did not.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long all are waited for. After that a quorum is enough.
const ALL_WAIT: Duration = Duration::from_secs(2);
/// How long a quorum is waited for: the voters may be others by now than this node knows.
const QUORUM_WAIT: Duration = Duration::from_secs(30);

/// What a node that starts does not know of its own log. Clones share it.
#[derive(Clone)]
pub(crate) struct Doubt {
    raft: openraft::Raft<Types>,
    network: Network,
    store: Store,
    failed: watch::Sender<Option<RaftError>>,
    /// Whether this node may vote.
    is_over: Arc<AtomicBool>,
}

impl Doubt {
    /// Where no other node votes there is nobody to ask, and it is over at once.
    pub(crate) async fn begin(
        raft: openraft::Raft<Types>,
        network: Network,
        store: Store,
        failed: watch::Sender<Option<RaftError>>,
    ) -> Self {
        let doubt = Self { raft, network, store, failed, is_over: Arc::default() };
        if doubt.voters().await.is_none_or(|voters| !has_others(&voters, doubt.me())) {
            doubt.end();
        }
        doubt
    }

    /// Whether this node may vote.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Asks the other voters, until enough of them have answered, this node was found to have gone back, or `stop`.
    pub(crate) async fn settle(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.ask_all()).await.unwrap_or_default();
    }

    async fn ask_all(&self) {
        let (began, mut answered) = (Instant::now(), BTreeSet::from([self.me()]));
        while !self.is_over() {
            // They may change meanwhile: a leader is heard.
            let Some(voters) = self.voters().await else { return };
            for voter in voters.iter().flatten() {
                if !answered.contains(voter) && self.ask(node(*voter)).await {
                    answered.insert(*voter);
                }
            }
            if self.failed.borrow().is_some() {
                return;
            }
            if is_enough(&voters, &answered, began.elapsed()) {
                return self.end();
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Asks one voter what it knows of this node's log. Whether it answered.
    async fn ask(&self, voter: NodeId) -> bool {
        match self.network.ask(voter, Ask::Held, ANSWER_WAIT).await {
            Ok(Answer::Held(known)) => {
                self.told(voter, known).await;
                true
            }
            // An older build, which knows nothing.
            Err(AskError::Refused { why: Refusal::Malformed(_), .. }) => true,
            Ok(_) | Err(_) => false,
        }
    }

    /// A member says that this node held everything up to this index. Up to where it does.
    pub(crate) async fn told(&self, by: NodeId, index: Option<u64>) -> Option<u64> {
        let holds = self.holds().await?;
        if let Some(known) = index.filter(|known| *known > holds)
            && self.failed.borrow().is_none()
        {
            let (path, this) = (self.path(), self.network.sealed.node());
            self.fail(RaftError::WentBack { path, this, by, known, holds });
        }
        Some(holds)
    }

    /// An append that contradicts what this node knows to be committed is not taken: the lattice has lost that, and this node
    /// must not go along unnoticed.
    pub(crate) fn check(&self, by: NodeId, request: &AppendEntriesRequest<Types>) -> Result<(), Refusal> {
        let Some(index) = self.contradicted(request) else { return Ok(()) };
        let why = RaftError::Contradicted { path: self.path(), by, index };
        let told = Refusal::Stopped(why.to_string());
        self.fail(why);
        Err(told)
    }

    /// Which entry that this node knows to be committed is another one there.
    fn contradicted(&self, request: &AppendEntriesRequest<Types>) -> Option<u64> {
        let (vote, applied) = self.point();
        let applied = applied.filter(|_| request.vote >= vote)?;
        let named = request.prev_log_id.into_iter().chain(request.entries.iter().map(|entry| entry.log_id));
        let named: Vec<LogId> = named.filter(|named| named.index <= applied.index && *named != applied).collect();
        let (first, last) = named.first().zip(named.last())?;
        // Whoever reads the log next says why it cannot be read. What it no longer has cannot be compared.
        let ours: Vec<LogEntry> = self.store.entries(first.index..=last.index, usize::MAX).unwrap_or_default();
        let mut ours = ours.iter().map(|entry| entry.log_id).chain([applied]);
        let is_other = |ours: &LogId| named.iter().any(|named| named.index == ours.index && named != ours);
        ours.find(is_other).map(|ours| ours.index)
    }

    /// This node's vote, and up to where it has applied the log.
    pub(crate) fn point(&self) -> (Vote<u128>, Option<LogId>) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.vote, metrics.last_applied)
    }

    /// Up to where this node's log goes, on its disk or in a snapshot. `None`: it cannot be read.
    async fn holds(&self) -> Option<u64> {
        let logged = Log::new(self.store.clone()).get_log_state().await.ok()?.last_log_id;
        let committed = self.raft.with_raft_state(|state| state.committed).await.ok()?;
        [logged, committed].into_iter().flatten().map(|last| last.index).max().or(Some(0))
    }

    /// The voters as this node's log names them, in each configuration that counts. `None`: Raft has stopped.
    async fn voters(&self) -> Option<Vec<BTreeSet<u128>>> {
        let voters = |state: &openraft::RaftState<_, _, _>| {
            state.membership_state.effective().membership().get_joint_config().clone()
        };
        self.raft.with_raft_state(voters).await.ok()
    }

    fn me(&self) -> u128 {
        number(self.network.sealed.node())
    }

    fn path(&self) -> PathBuf {
        self.store.path().into()
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.raft.runtime_config().elect(true);
    }

    /// This node votes no more and answers no append.
    fn fail(&self, why: RaftError) {
        self.is_over.store(false, Ordering::Relaxed);
        self.raft.runtime_config().elect(false);
        self.failed.send_replace(Some(why));
        let raft = self.raft.clone();
        // Beside, because openraft waits for those who wait for its answers.
        tokio::spawn(async move { drop(raft.shutdown().await) });
    }
}

/// Whether others than this node vote. That it does itself, its log may have forgotten.
fn has_others(voters: &[BTreeSet<u128>], me: u128) -> bool {
    voters.iter().flatten().any(|voter| *voter != me)
}

/// Whether no more answers are waited for.
fn is_enough(voters: &[BTreeSet<u128>], answered: &BTreeSet<u128>, waited: Duration) -> bool {
    let has_quorum = |voters: &BTreeSet<u128>| voters.intersection(answered).count() * 2 > voters.len();
    voters.iter().all(|voters| voters.is_subset(answered))
        || waited >= ALL_WAIT && voters.iter().all(has_quorum)
        || waited >= QUORUM_WAIT
}

/// Makes a node that led stand for election again, where others vote too: openraft would let it lead on at once, with a log
/// that may have gone back.
pub(crate) async fn step_down(
    log: &mut Log,
    machine: &mut impl RaftStateMachine<Types>,
    me: u128,
) -> Result<(), StorageError> {
    let Some(vote) = log.read_vote().await?.filter(|vote| vote.committed && vote.leader_id.node_id == me) else {
        return Ok(());
    };
    let membership = StorageHelper::<Types, _, _>::new(log, machine).get_membership().await?;
    if has_others(membership.effective().membership().get_joint_config(), me) {
        log.save_vote(&Vote::new(vote.leader_id.term, me)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_voters_are_waited_for_a_little_and_a_quorum_longer() {
        let of = |ids: &[u128]| ids.iter().copied().collect::<BTreeSet<_>>();
        let (short, long) = (Duration::from_millis(100), ALL_WAIT);
        for (voters, answered, waited, enough) in [
            (vec![of(&[1, 2, 3])], of(&[1, 2, 3]), short, true),
            (vec![of(&[1, 2, 3])], of(&[1, 2]), short, false),
            (vec![of(&[1, 2, 3])], of(&[1, 2]), long, true),
            (vec![of(&[1, 2, 3])], of(&[1]), long, false),
            (vec![of(&[1, 2, 3])], of(&[1]), QUORUM_WAIT, true),
            (vec![of(&[1, 2, 3]), of(&[1, 4, 5])], of(&[1, 2]), long, false),
            (vec![of(&[1, 2, 3]), of(&[1, 4, 5])], of(&[1, 2, 4]), long, true),
        ] {
            assert_eq!(is_enough(&voters, &answered, waited), enough, "{answered:?} of {voters:?} after {waited:?}");
        }
    }
}
