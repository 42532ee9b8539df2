//! Whether the lattice has forgotten this node. Nobody brings it the entry that says so: who is no member is told nothing,
//! and its own log goes on saying that it is one. So members are believed, of those that the log names.

use trellis_placement::State;
use trellis_trust::Presented;
use trellis_wire::NodeId;

use crate::join::{Answer, Said};

/// What a member that this node knows says of it.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Whether that member leads.
    leads: bool,
    /// Whether it votes, as far as this node knows.
    votes: bool,
    /// Whether it knows this node as a member.
    knows: bool,
}

/// Whether those who answered say that this node was forgotten. One that lags may not have heard of it yet, so it must be so
/// twice in a row.
pub(crate) fn is_forgotten(
    me: NodeId,
    state: &State,
    members: &trellis_raft::Members,
    answered: &[(Presented, Answer)],
) -> bool {
    // This node answers, too.
    let known = |by: &Presented| by.from != me && state.node(by.from).is_some_and(|known| known.facts.key == by.key);
    let ours = answered.iter().filter(|(by, answer)| known(by) && Some(answer.here.lattice) == state.lattice_id());
    let words = ours.map(|(by, answer)| Word {
        leads: matches!(answer.here.said, Said::Present(Some(_))),
        votes: members.voters.contains_key(&by.from),
        // Only members are told who else is one.
        knows: !answer.here.members.is_empty(),
    });
    is_disowned(&words.collect::<Vec<_>>(), members.voters.len())
}

/// The leader does not know it, or most of so many voters do not. Others that know it may have been forgotten like itself.
fn is_disowned(words: &[Word], voters: usize) -> bool {
    let (knows, disowns): (Vec<&Word>, Vec<&Word>) = words.iter().partition(|word| word.knows);
    let most_vote = disowns.iter().filter(|word| word.votes).count() * 2 > voters;
    !knows.iter().any(|word| word.leads) && (disowns.iter().any(|word| word.leads) || most_vote)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOTER: Word = Word { leads: false, votes: true, knows: false };
    const LEADER: Word = Word { leads: true, ..VOTER };
    const OTHER: Word = Word { votes: false, ..VOTER };

    #[test]
    fn the_leader_or_most_voters_forget_a_node() {
        let knows = |word: Word| Word { knows: true, ..word };
        for (words, voters, forgotten) in [
            (&[][..], 3, false),
            (&[VOTER], 3, false),
            (&[OTHER, OTHER, OTHER], 3, false),
            (&[VOTER, VOTER], 3, true),
            (&[VOTER, VOTER], 5, false),
            (&[LEADER], 5, true),
            (&[Word { votes: false, ..LEADER }, OTHER], 3, true),
            (&[LEADER, VOTER, knows(OTHER)], 3, true),
            (&[VOTER, knows(VOTER), knows(VOTER)], 5, false),
            (&[knows(LEADER), VOTER, VOTER], 5, false),
        ] {
            assert_eq!(is_disowned(words, voters), forgotten, "{words:?} of {voters} voters");
        }
    }
}
