//! Cut off: whether this node reaches those who decide for the lattice, and what is said where it does not. Reads what is
//! known; changes nothing.

use std::time::Duration;

use trellis_bus::Connection;
use trellis_placement::{Life, State};
use trellis_wire::NodeId;

use crate::node::Node;

/// What a node that is cut off still does.
const SERVES: &str = "this node serves what it holds, has no leases, and takes no changes until that is over";

/// Why what this node knows of the lattice may be stale: it is cut off from those who decide.
pub(crate) fn why(node: &Node) -> Option<String> {
    let leads = node.raft.leadership().borrow().clone();
    if leads.me {
        let is_old = node.raft.acknowledged()?.elapsed() >= node.liveness.patience().suspect;
        // How old it is says too much: it counts from before this node last looked.
        return is_old.then(|| {
            format!("this node leads, and is cut off from the other voters{}: {SERVES}", for_about(silence(node)))
        });
    }
    if is_unmet(node) {
        return Some(format!(
            "this node is not connected to the lattice yet, and what it shows is from its last visit: {SERVES}"
        ));
    }
    if node.nats_url.is_none() && has_others(node) {
        return Some(format!(
            "this node was started without --nats, by which it reached the others of its lattice: {SERVES}"
        ));
    }
    let Some(leader) = leads.leader else { return Some(format!("the lattice has no leader: {SERVES}")) };
    if node.liveness.life(leader) == Life::Alive {
        return None;
    }
    let heard = silent(node, leader).unwrap_or_else(|| "the node was not heard since this node started".into());
    let leader = node.raft.state().borrow().named(leader);
    Some(match hears_quorum(node) {
        true => format!(
            "the leader {leader} is late ({heard}): the voters elect another one unless it is heard again. Until then this \
             node serves what it holds, changes wait, and what it knows may be stale"
        ),
        false => {
            format!("this node is cut off from the leader {leader} ({heard}), and what it knows may be stale: {SERVES}")
        }
    })
}

/// Whether this node is without its NATS.
fn is_off(node: &Node) -> bool {
    !matches!(&*node.control.bus().connection().borrow(), Connection::Connected { .. })
}

/// Whether so many voters are heard that they can elect a leader.
fn hears_quorum(node: &Node) -> bool {
    let voters = node.raft.members().voters;
    let heard = voters.keys().filter(|voter| node.liveness.life(**voter) == Life::Alive).count();
    !is_off(node) && heard * 2 > voters.len()
}

/// The same where it is certain that nothing can be agreed on now, so that nobody need wait to hear of it. While another
/// leader may be on its way, it is not.
pub(crate) fn certainly(node: &Node) -> Option<String> {
    let has_quorum = || {
        let (voters, state) = (node.raft.members().voters, node.shares.state());
        // Who was forgotten is listened for no more, and counts as a voter until another one takes its place.
        let is_silent = |voter: &NodeId| node.liveness.is_silent(*voter) || is_forgotten(node.id, &state, *voter);
        let silent = voters.keys().filter(|voter| is_silent(voter)).count();
        (voters.len() - silent) * 2 > voters.len()
    };
    why(node).filter(|_| is_off(node) || !has_quorum())
}

/// Whether the lattice has forgotten a node other than this one.
fn is_forgotten(me: NodeId, state: &State, other: NodeId) -> bool {
    other != me && state.node(other).is_none()
}

/// Whether this node has heard nobody since it started, though there are others: it shows what it stored.
pub(crate) fn is_unmet(node: &Node) -> bool {
    node.nats_url.is_some() && has_others(node) && !node.liveness.has_heard_others()
}

fn has_others(node: &Node) -> bool {
    node.raft.state().borrow().nodes().keys().any(|id| *id != node.id)
}

/// What is to be said of a node that is late with its heartbeat.
pub(crate) fn silent(node: &Node, other: NodeId) -> Option<String> {
    if node.liveness.life(other) == Life::Alive {
        return None;
    }
    let seconds = node.liveness.silence(other)?.as_secs();
    Some(format!("the node was last heard {seconds} s ago"))
}

/// For how long no quorum has been heard, by the heartbeats of the voters.
fn silence(node: &Node) -> Option<Duration> {
    of_quorum(node.raft.members().voters.keys().map(|voter| node.liveness.silence(*voter)).collect())
}

/// For how long more than half of these voters have not been heard together; `None`: so many never were.
fn of_quorum(mut silences: Vec<Option<Duration>>) -> Option<Duration> {
    silences.sort_unstable_by_key(|silence| silence.unwrap_or(Duration::MAX));
    silences.get(silences.len() / 2).copied().flatten()
}

/// ` for about 20 s`; nothing where it is not known, or was only just heard.
fn for_about(silence: Option<Duration>) -> String {
    match silence.map_or(0, |silence| silence.as_secs()) {
        0 => String::new(),
        seconds => format!(" for about {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_has_been_silent_for_as_long_as_the_voter_that_it_lacks() {
        let seconds = |silences: &[Option<u64>]| {
            of_quorum(silences.iter().map(|silence| silence.map(Duration::from_secs)).collect())
                .map(|silence| silence.as_secs())
        };
        assert_eq!(seconds(&[Some(0)]), Some(0), "this node alone votes");
        assert_eq!(seconds(&[Some(0), Some(40), Some(20)]), Some(20), "one more is enough");
        assert_eq!(seconds(&[Some(7), None, Some(0), Some(9), Some(1)]), Some(7));
        assert_eq!(seconds(&[None, Some(0), None]), None, "too many were never heard");
        assert_eq!(seconds(&[]), None);
    }

    #[test]
    fn no_figure_is_said_that_is_not_known() {
        assert_eq!(for_about(None), "");
        assert_eq!(for_about(Some(Duration::from_millis(900))), "");
        assert_eq!(for_about(Some(Duration::from_millis(20_400))), " for about 20 s");
    }
}
