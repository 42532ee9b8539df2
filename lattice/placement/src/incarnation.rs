//! Incarnations: how often the lattice was recovered without a quorum. A node on which it was recovered goes on in a new one,
//! and names it in all that it says; so nobody takes anything from who is in another. Who was given up then is a node like any
//! stranger from there on. All others go on in the new one too, as far as they can.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use trellis_wire::{CommandId, NodeId};
use uuid::Uuid;

use crate::{Command, Entry, State};

/// A place in the log. One is greater if it is of a later leader, and of one leader if it is further on: what is agreed on up
/// to a place is in every log that goes up to a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPoint {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub leader: NodeId,
    /// Which entry.
    pub index: u64,
}

/// Which incarnation of the lattice this is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// How often it was recovered.
    pub number: u32,
    /// Up to where the log of the one before is a part of it.
    pub after: Option<LogPoint>,
}

/// What becomes of a node that hears of a later incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rise {
    /// It goes on in it.
    Along,
    /// It was given up.
    LeftOut,
    /// It has carried out what that one does not know, or was away while the lattice was recovered twice.
    Ahead,
}

impl Incarnation {
    /// What becomes of a node of `before` that has applied its log up to `applied`. `None`: this is no later one.
    pub fn takes(&self, before: &Self, is_member: bool, applied: Option<LogPoint>) -> Option<Rise> {
        if self.number <= before.number {
            return None;
        }
        Some(match () {
            () if !is_member => Rise::LeftOut,
            () if self.number == before.number + 1 && applied <= self.after => Rise::Along,
            () => Rise::Ahead,
        })
    }
}

impl State {
    /// Which incarnation of the lattice this is.
    pub const fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// The same state in this incarnation, as a snapshot has it.
    #[must_use]
    pub const fn reborn(mut self, incarnation: Incarnation) -> Self {
        self.incarnation = incarnation;
        self
    }

    /// Gives up these nodes, with all that they keep, and begins a new incarnation without them. `after` is where the log ends.
    pub fn begin_anew(&mut self, given_up: &BTreeSet<NodeId>, after: LogPoint, at_ms: u64) {
        for node in given_up {
            for command in [Command::Lost(*node), Command::Forget(*node)] {
                // No entry of the log, so that it needs no id. What is refused is of a node that is not there.
                drop(self.change(&Entry { id: CommandId::new(Uuid::nil()), at_ms, command }));
            }
        }
        self.incarnation = Incarnation { number: self.incarnation.number + 1, after: Some(after) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(term: u64, index: u64) -> Option<LogPoint> {
        Some(LogPoint { term, leader: "0a0de000-0000-7000-8000-000000000001".parse().unwrap(), index })
    }

    #[test]
    fn who_knows_no_more_goes_on_and_who_was_given_up_does_not() {
        let second = Incarnation { number: 2, after: point(3, 10) };
        let of = |number| Incarnation { number, after: point(1, 1) };
        for (before, is_member, applied, becomes) in [
            (1, true, point(3, 10), Some(Rise::Along)),
            (1, true, point(2, 9), Some(Rise::Along)),
            (1, true, None, Some(Rise::Along)),
            (1, true, point(3, 11), Some(Rise::Ahead)),
            (1, true, point(4, 10), Some(Rise::Ahead)),
            (0, true, point(1, 1), Some(Rise::Ahead)),
            (1, false, point(2, 9), Some(Rise::LeftOut)),
            (0, false, None, Some(Rise::LeftOut)),
            (2, true, point(9, 99), None),
            (3, false, None, None),
        ] {
            assert_eq!(second.takes(&of(before), is_member, applied), becomes, "{before} {is_member} {applied:?}");
        }
    }
}
