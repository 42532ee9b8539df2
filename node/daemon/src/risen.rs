//! Whether the lattice was recovered, and what that makes of this node. Who is in another incarnation takes nothing from it
//! and is not taken at its word, but for this: what a member says of itself, that this node's log names.

use std::fmt;

use trellis_placement::{Incarnation, LogPoint, Rise, State};
use trellis_trust::Presented;
use trellis_wire::NodeId;

use crate::join::{Answer, Said};

/// Why a node is none of its lattice's any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// Its lattice has forgotten it.
    Forgotten,
    /// Its lattice was recovered on this node, and gave it up.
    LeftOut(NodeId),
    /// Its lattice was recovered on this node, and knows less than it.
    Ahead(NodeId),
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forgotten => f.write_str("its lattice has forgotten it, and what it kept there is given up"),
            Self::LeftOut(on) => write!(
                f,
                "this lattice was recovered without this node (`trellis recover` on another, says node {on}), and what it kept \
                 there is given up"
            ),
            Self::Ahead(on) => write!(
                f,
                "this lattice was recovered (`trellis recover`, says node {on}) from a log that lacks what this node has carried \
                 out, so that it cannot go on in it"
            ),
        }
    }
}

/// What members say of a later incarnation of the lattice, and what becomes of this node in it. Of several the latest counts.
pub(crate) fn risen(
    me: NodeId,
    state: &State,
    applied: Option<LogPoint>,
    answered: &[(Presented, Answer)],
) -> Option<(Incarnation, Result<(), Parting>)> {
    let known = |by: &Presented| by.from != me && state.node(by.from).is_some_and(|known| known.facts.key == by.key);
    let ours = answered.iter().filter(|(by, answer)| known(by) && Some(answer.here.lattice) == state.lattice_id());
    let told = ours.filter_map(|(by, answer)| match answer.here.said {
        // Only members are told who else is one.
        Said::Incarnation(incarnation) => Some((incarnation, by.from, !answer.here.members.is_empty())),
        _ => None,
    });
    let (incarnation, by, is_member) = told.max_by_key(|(incarnation, ..)| incarnation.number)?;
    let becomes = match incarnation.takes(state.incarnation(), is_member, applied)? {
        Rise::Along => Ok(()),
        Rise::LeftOut => Err(Parting::LeftOut(by)),
        Rise::Ahead => Err(Parting::Ahead(by)),
    };
    Some((incarnation, becomes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trellis_placement::{Capacity, Command, Entry, NodeFacts};
    use trellis_wire::{CommandId, LatticeId, NodeKey};
    use uuid::Uuid;

    use super::*;
    use crate::join::Here;

    fn node(n: u128) -> NodeId {
        NodeId::new(Uuid::from_u128(n))
    }

    fn key(n: u8) -> NodeKey {
        NodeKey::new([n; 32])
    }

    fn lattice(n: u128) -> LatticeId {
        LatticeId::new(Uuid::from_u128(n << 64))
    }

    /// A lattice of nodes 1 to 3, as node 1 knows it.
    fn state() -> State {
        let mut state = State::default();
        let found = Command::Found { lattice: lattice(1), name: "test".parse().unwrap() };
        let join = |n: u8| {
            let (labels, capacity) = (BTreeMap::new(), Capacity { permits: 1, memory_bytes: 0 });
            let (name, version) = ("n".into(), String::new());
            Command::Join(NodeFacts { id: node(n.into()), name, labels, version, capacity, edge: false, key: key(n) })
        };
        for (n, command) in [found, join(1), join(2), join(3)].into_iter().enumerate() {
            state.apply(&Entry { id: CommandId::new(Uuid::from_u128(n as u128)), at_ms: 0, command });
        }
        state
    }

    fn says(by: u8, shown: u8, of: LatticeId, number: u32, knows: bool) -> (Presented, Answer) {
        let incarnation = Incarnation { number, after: Some(LogPoint { term: 3, leader: node(2), index: 10 }) };
        let members = if knows { vec![(node(by.into()), key(by))] } else { Vec::new() };
        let here = Here { lattice: of, echo: [0; 16], said: Said::Incarnation(incarnation), members };
        let by = (node(by.into()), key(shown));
        (Presented { from: by.0, key: by.1, body: Vec::new() }, Answer::new(here, None, node(1), by))
    }

    #[test]
    fn members_that_the_log_names_are_believed_and_the_latest_of_them() {
        let (state, applied) = (state(), Some(LogPoint { term: 3, leader: node(2), index: 10 }));
        let of =
            |answered: &[_]| risen(node(1), &state, applied, answered).map(|(risen, becomes)| (risen.number, becomes));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[says(2, 2, lattice(1), 0, true)]), None, "the same as ours");
        assert_eq!(of(&[says(2, 2, lattice(1), 1, true), says(3, 3, lattice(1), 0, true)]), Some((1, Ok(()))));
        assert_eq!(of(&[says(2, 2, lattice(1), 1, false)]), Some((1, Err(Parting::LeftOut(node(2))))));
        let later = [says(2, 2, lattice(1), 1, true), says(3, 3, lattice(1), 2, true)];
        assert_eq!(of(&later), Some((2, Err(Parting::Ahead(node(3))))));
        for stranger in
            [says(2, 9, lattice(1), 1, false), says(9, 9, lattice(1), 1, false), says(1, 1, lattice(1), 1, false)]
        {
            assert_eq!(of(&[stranger]), None, "with another key, no member, or this node itself");
        }
        assert_eq!(of(&[says(2, 2, lattice(2), 1, false)]), None, "of another lattice");
    }
}
