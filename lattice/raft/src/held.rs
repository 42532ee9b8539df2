//! What other nodes are known to hold of the log. Who answers an append has the entries on its disk, and others count on that
//! for all time. A data directory that is put back from an older copy has forgotten it; whoever remembers can tell
//! (`doubt.rs`).
//!
//! Beyond one leadership only what is committed is remembered: no leader takes that out of a log again, so a log that lacks
//! it went back.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::Vote;
use tokio::sync::watch;
use trellis_placement::State;

use crate::types::LogId;

/// What is known of others since this node's process began. Clones share it.
#[derive(Clone)]
pub(crate) struct Held {
    state: watch::Receiver<Arc<State>>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// The vote under which this node last led, and what each member acknowledged to it.
    led: Option<Vote<u128>>,
    acknowledged: HashMap<u128, LogId>,
    /// Whose log went back since, and was spoken of.
    told: HashSet<u128>,
    /// In which incarnation of the lattice what follows is so: a later one may begin with less.
    incarnation: u32,
    /// Up to which index each node holds what is committed.
    committed: HashMap<u128, u64>,
}

impl Held {
    pub(crate) fn new(state: watch::Receiver<Arc<State>>) -> Self {
        Self { state, table: Arc::default() }
    }

    /// A member acknowledged everything up to `upto` to this node, which leads by `vote` and knows what is `committed`.
    pub(crate) fn acknowledged(&self, by: u128, vote: Vote<u128>, upto: Option<LogId>, committed: Option<LogId>) {
        let Some(upto) = upto else { return };
        {
            let mut table = self.lock();
            table.lead(vote);
            table.told.remove(&by);
            let known = table.acknowledged.entry(by).or_insert(upto);
            *known = upto.max(*known);
        }
        if let Some(committed) = committed {
            self.heard(by, committed.index.min(upto.index));
        }
    }

    /// What a member acknowledged to this node, which leads by `vote`, where it now says that it has no entry `lacks`; and
    /// whether that was not spoken of yet. `None`: it never said that it has that.
    pub(crate) fn went_back(&self, member: u128, vote: Vote<u128>, lacks: Option<LogId>) -> Option<(LogId, bool)> {
        let mut table = self.lock();
        table.lead(vote);
        let known = table.acknowledged.get(&member).copied().filter(|known| Some(*known) >= lacks)?;
        Some((known, table.told.insert(member)))
    }

    /// A node holds what is committed up to this index.
    pub(crate) fn heard(&self, node: u128, index: u64) {
        let incarnation = self.incarnation();
        let mut table = self.lock();
        table.rise(incarnation);
        let known = table.committed.entry(node).or_default();
        *known = index.max(*known);
    }

    /// Up to which index a node holds what is committed, as far as is known. This node has this vote and has applied so much.
    pub(crate) fn known(&self, node: u128, vote: Vote<u128>, applied: Option<LogId>) -> Option<u64> {
        let incarnation = self.incarnation();
        let mut table = self.lock();
        table.rise(incarnation);
        let leads = table.led == Some(vote);
        let acknowledged = leads.then(|| table.acknowledged.get(&node).copied()).flatten();
        let committed = acknowledged.zip(applied).map(|(acknowledged, applied)| acknowledged.index.min(applied.index));
        table.committed.get(&node).copied().max(committed)
    }

    fn incarnation(&self) -> u32 {
        self.state.borrow().incarnation().number
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// What was acknowledged to an earlier leadership says nothing in a later one: another leader may have been in between.
    fn lead(&mut self, vote: Vote<u128>) {
        if self.led < Some(vote) {
            (self.led, self.acknowledged, self.told) = (Some(vote), HashMap::new(), HashSet::new());
        }
    }

    fn rise(&mut self, incarnation: u32) {
        if self.incarnation < incarnation {
            (self.incarnation, self.committed) = (incarnation, HashMap::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn log_id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(CommittedLeaderId::new(term, 1), index))
    }

    fn held() -> Held {
        Held::new(watch::channel(Arc::default()).1)
    }

    #[test]
    fn a_member_that_lacks_what_it_acknowledged_went_back() {
        let (held, vote) = (held(), Vote::new_committed(3, 1));
        assert_eq!(held.went_back(2, vote, log_id(3, 7)), None, "it never said that it has it");
        held.acknowledged(2, vote, log_id(3, 9), None);
        held.acknowledged(2, vote, log_id(3, 8), None);
        assert_eq!(held.went_back(2, vote, log_id(3, 10)), None, "it may still get this one");
        assert_eq!(held.went_back(4, vote, log_id(3, 9)), None);
        let known = log_id(3, 9).unwrap();
        assert_eq!(held.went_back(2, vote, log_id(3, 9)), Some((known, true)));
        assert_eq!(held.went_back(2, vote, log_id(3, 9)), Some((known, false)), "said once");
        held.acknowledged(2, vote, log_id(3, 9), None);
        assert_eq!(held.went_back(2, vote, log_id(3, 4)), Some((known, true)), "it was put right in between");
        assert_eq!(held.went_back(2, Vote::new_committed(5, 1), log_id(3, 9)), None, "another leader may have been");
    }

    #[test]
    fn of_what_was_acknowledged_only_what_is_committed_is_known_later() {
        let (held, vote, later) = (held(), Vote::new_committed(3, 1), Vote::new(4, 5));
        assert_eq!(held.known(2, vote, log_id(3, 20)), None);
        held.acknowledged(2, vote, log_id(3, 9), log_id(3, 6));
        assert_eq!(held.known(2, vote, log_id(3, 8)), Some(8), "it is this leader's own log");
        assert_eq!(held.known(2, vote, log_id(3, 20)), Some(9));
        assert_eq!(held.known(2, later, log_id(4, 20)), Some(6), "others may have taken entries out of both logs");
        held.heard(2, 12);
        held.heard(2, 3);
        assert_eq!(held.known(2, later, log_id(4, 20)), Some(12));
    }
}
