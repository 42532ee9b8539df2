//! Our types in the places that openraft leaves open.

use std::io::Cursor;

use serde::{Deserialize, Serialize};
use trellis_placement::{Applied, Entry, LogPoint};
use trellis_wire::NodeId;
use uuid::Uuid;

use crate::chance::Runtime;

openraft::declare_raft_types!(
    /// A command in; what came of it out, for entries that carry one. A node is its UUID as a number.
    pub(crate) Types:
        D = Entry,
        R = Option<Applied>,
        NodeId = u128,
        Node = Member,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

pub(crate) type LogEntry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<u128>;
pub(crate) type StorageError = openraft::StorageError<u128>;
pub(crate) type Membership = openraft::StoredMembership<u128, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u128, Member>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;

/// What the membership says of a node. It only describes: the subject to reach a node follows from its id alone, so
/// that a member never has to be replaced in place (openraft's `SetNodes`, which can split a cluster in two).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The host's name when the node became a member.
    pub host: String,
}

/// The number that openraft knows a node by.
pub(crate) fn number(node: NodeId) -> u128 {
    node.uuid().as_u128()
}

/// The node that openraft knows by a number.
pub(crate) fn node(number: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(number))
}

/// The place in the log that openraft names so.
pub(crate) fn point(id: &LogId) -> LogPoint {
    LogPoint { term: id.leader_id.term, leader: node(id.leader_id.node_id), index: id.index }
}
