//! A node's own side of leases: whether it has those that the state names it for, now. Time is as for
//! [`Lessor`](crate::Lessor), by this node's clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use trellis_wire::{LinkId, NodeId};

use crate::{Renewal, State};

/// How many signs of life may wait for their answer. An answer to an older one would come too late.
const SENT_MAX: usize = 16;
/// Of a renewal so much is left unused: a clock that runs slower than the leader's by less does no harm.
const MARGIN_DIVISOR: u32 = 8;

/// What this node knows of its leases.
#[derive(Debug, Clone)]
pub struct Lessee {
    me: NodeId,
    /// The number of the next sign of life.
    next: u64,
    /// Number and time of the last signs of life, oldest first.
    sent: VecDeque<(u64, Duration)>,
    /// The highest term that renewed.
    term: u64,
    until: Duration,
}

impl Lessee {
    /// Nothing is renewed yet. `first` is the number of the first sign of life, another one each time that the node starts: so an
    /// answer to what it sent in a former life is none to what it sends now.
    pub const fn new(me: NodeId, first: u64) -> Self {
        Self { me, next: first, sent: VecDeque::new(), term: 0, until: Duration::ZERO }
    }

    /// A sign of life is sent now. The number that it is to carry.
    pub fn send(&mut self, now: Duration) -> u64 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((number, now));
        number
    }

    /// The leader answered the sign of life with this number. What speaks of an edition that this node does not know yet,
    /// or comes from a leader of the past, counts for nothing; the next sign of life is answered anew.
    pub fn renewed(&mut self, state: &State, number: u64, renewal: Renewal) {
        let Some((_, sent)) = self.sent.iter().find(|(sent, _)| *sent == number) else { return };
        if renewal.term < self.term || renewal.edition > state.leases().edition() {
            return;
        }
        self.term = renewal.term;
        self.until = self.until.max(*sent + renewal.lasts - renewal.lasts / MARGIN_DIVISOR);
    }

    /// Until when this node has its leases, if nothing more is heard.
    pub const fn until(&self) -> Duration {
        self.until
    }

    /// Whether the state names this node for a lease.
    pub fn is_named(&self, state: &State) -> bool {
        state.leases().of(self.me).next().is_some()
    }

    /// The leases that this node has now, with their tokens.
    pub fn holds(&self, state: &State, now: Duration) -> BTreeMap<LinkId, u64> {
        if now >= self.until {
            return BTreeMap::new();
        }
        state.leases().of(self.me).map(|(link, token)| (link.clone(), token)).collect()
    }
}
