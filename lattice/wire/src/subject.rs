//! Every subject that the lattice uses on NATS. No other file spells one.
//!
//! Components travel in headers, never as subject tokens, so the number of subjects grows with nodes and not with apps.

use crate::{LatticeName, NodeId};

/// `trellis.v1.<lattice>.>`: what a guest or a link's configuration may never touch.
pub fn all(lattice: &LatticeName) -> String {
    format!("trellis.v1.{lattice}.>")
}

/// `trellis.v1.<lattice>.join`: a node asks to become a member.
pub fn join(lattice: &LatticeName) -> String {
    format!("trellis.v1.{lattice}.join")
}

/// `trellis.v1.<lattice>.join.<node>`: the answers to a node that asks.
pub fn joining(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.join.{}", token(node))
}

/// `trellis.v1.<lattice>.hb.*`: everyone's heartbeats.
pub fn heartbeats(lattice: &LatticeName) -> String {
    format!("trellis.v1.{lattice}.hb.*")
}

/// `trellis.v1.<lattice>.hb.<node>`: a node's heartbeat; one publisher, everyone listens.
pub fn heartbeat(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.hb.{}", token(node))
}

/// `trellis.v1.<lattice>.greet.<node>`: which start of its process a node is in, asked before the first sealed word.
pub fn greet(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.greet.{}", token(node))
}

/// `trellis.v1.<lattice>.raft.<node>.<rpc>`: one Raft call to one node.
pub fn raft(lattice: &LatticeName, node: NodeId, rpc: RaftRpc) -> String {
    let rpc = match rpc {
        RaftRpc::Append => "append",
        RaftRpc::Vote => "vote",
        RaftRpc::Snapshot => "snapshot",
        RaftRpc::Forward => "forward",
    };
    format!("trellis.v1.{lattice}.raft.{}.{rpc}", token(node))
}

/// `trellis.v1.<lattice>.event.<node>`: an event for a component that this node holds.
pub fn event(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.event.{}", token(node))
}

/// `trellis.v1.<lattice>.call.<node>`: a call to a provider on this node.
pub fn call(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.call.{}", token(node))
}

/// `trellis.v1.<lattice>.stream.<node>`: pieces of bodies and replies for this node.
pub fn stream(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.stream.{}", token(node))
}

/// `trellis.v1.<lattice>.artifact.<node>`: a chunk of an artifact that this node has.
pub fn artifact(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.artifact.{}", token(node))
}

/// `trellis.v1.<lattice>.page.<node>`: a page of what this node holds, for one that missed it.
pub fn page(lattice: &LatticeName, node: NodeId) -> String {
    format!("trellis.v1.{lattice}.page.{}", token(node))
}

/// `trellis.v1.<lattice>.delta`: numbered state deltas for followers.
pub fn delta(lattice: &LatticeName) -> String {
    format!("trellis.v1.{lattice}.delta")
}

/// The calls of Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaftRpc {
    /// Append entries.
    Append,
    /// Ask for a vote.
    Vote,
    /// One chunk of a snapshot.
    Snapshot,
    /// A command for the leader.
    Forward,
}

/// Whether a guest or a link's configuration may use `subject` for publishing or, with wildcards, for subscribing.
///
/// Refused is whatever equals or could match a subject of a lattice, of JetStream (`$JS`, `$KV`, `$O`), of the server
/// (`$SYS`) or of an inbox that is not its own.
pub fn is_free(subject: &str) -> bool {
    let first = subject.split('.').next().unwrap_or_default();
    !matches!(first, "" | "*" | ">" | "trellis" | "_INBOX") && !first.starts_with('$')
}

/// A node as one subject token: 32 hex digits.
fn token(node: NodeId) -> uuid::fmt::Simple {
    node.uuid().simple()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_pinned() {
        let (lattice, node): (LatticeName, NodeId) =
            ("home".parse().unwrap(), "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap());
        let node_token = "01890a5dac96774bbcceb302099a8057";
        assert_eq!(all(&lattice), "trellis.v1.home.>");
        assert_eq!(join(&lattice), "trellis.v1.home.join");
        assert_eq!(heartbeat(&lattice, node), format!("trellis.v1.home.hb.{node_token}"));
        assert_eq!(raft(&lattice, node, RaftRpc::Append), format!("trellis.v1.home.raft.{node_token}.append"));
        assert_eq!(raft(&lattice, node, RaftRpc::Vote), format!("trellis.v1.home.raft.{node_token}.vote"));
        assert_eq!(raft(&lattice, node, RaftRpc::Snapshot), format!("trellis.v1.home.raft.{node_token}.snapshot"));
        assert_eq!(raft(&lattice, node, RaftRpc::Forward), format!("trellis.v1.home.raft.{node_token}.forward"));
        assert_eq!(event(&lattice, node), format!("trellis.v1.home.event.{node_token}"));
        assert_eq!(call(&lattice, node), format!("trellis.v1.home.call.{node_token}"));
        assert_eq!(artifact(&lattice, node), format!("trellis.v1.home.artifact.{node_token}"));
        assert_eq!(joining(&lattice, node), format!("trellis.v1.home.join.{node_token}"));
        assert_eq!(heartbeats(&lattice), "trellis.v1.home.hb.*");
        assert_eq!(stream(&lattice, node), format!("trellis.v1.home.stream.{node_token}"));
        assert_eq!(page(&lattice, node), format!("trellis.v1.home.page.{node_token}"));
        assert_eq!(delta(&lattice), "trellis.v1.home.delta");
        assert_eq!(greet(&lattice, node), format!("trellis.v1.home.greet.{node_token}"));
    }

    #[test]
    fn subjects_of_the_lattice_and_of_the_server_are_not_free() {
        for subject in ["orders", "orders.*", "trellisor.x", "orders.trellis"] {
            assert!(is_free(subject), "{subject}");
        }
        for subject in ["", ">", "*.v1", "trellis.v1.home.join", "$JS.API.>", "$KV.x", "$SYS", "_INBOX.abc", ".x"] {
            assert!(!is_free(subject), "{subject}");
        }
    }
}
