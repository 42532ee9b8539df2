//! What travels between nodes in the data plane: events for components that are held elsewhere, and calls to providers
//! that run elsewhere. It has a connection of its own, so that no body ever stands before Raft or a heartbeat.
//!
//! Both are one exchange: the asker offers a head and the first 64 KiB of the body, the other node answers at once
//! whether it takes it ([`message::Taken`]), and from then on pieces flow both ways: chunks with credits, and the reply.
//! `send` is the asking side, `serve` the answering one, `line` carries the pieces, `cargo` packs and unpacks, `reserved`
//! keeps the permits that were asked for beforehand, `places` how much of others is under way.

pub(crate) mod cargo;
pub(crate) mod line;
pub(crate) mod message;
pub(crate) mod places;
pub(crate) mod reserved;
pub(crate) mod send;
pub(crate) mod serve;

use std::time::Duration;

use trellis_bus::{BusError, SealedError};
use trellis_wire::NodeId;

/// How much of a body goes with the head, in bytes.
const FIRST_BYTES_MAX: usize = 64 * 1024;
/// The longest chunk after that, in bytes.
const CHUNK_BYTES_MAX: usize = 128 * 1024;
/// How many chunks may be under way that the other side has not taken up.
const CREDITS: usize = 8;
/// The longest head: headers, a subject, a key.
const HEAD_BYTES_MAX: usize = 256 * 1024;
/// The largest body of what is not streamed to a guest: a message, the parameters of a call, a value.
pub(crate) const WHOLE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long a node may take to say whether it takes an offer.
const TAKE_WAIT: Duration = Duration::from_millis(500);
/// How many nodes are asked in one round.
const TRIES_MAX: usize = 3;
/// How many events that are answered may be elsewhere at one time, how many that were pulled, and how many calls; and how
/// many of others, of all kinds, may be here ([`places`]).
const EXCHANGES_MAX: usize = 1_024;
/// How long after the last sign the other node is asked whether it still works on it.
const STILL_EVERY: Duration = Duration::from_secs(1);
/// The pause before it is asked again when it did not say within [`TAKE_WAIT`].
const STILL_AGAIN: Duration = Duration::from_millis(100);
/// After so long without an answer a node is given up that is not heard either. With the time after which a silent node is
/// suspect (3 s unless told otherwise) and one more question, what is under way on a node that froze fails within 4 s.
const UNANSWERED_MIN: Duration = Duration::from_millis(2_500);
/// After so long so is one that is heard: it is busy, since its guests share the threads that answer here.
const UNANSWERED_MAX: Duration = Duration::from_secs(30);

/// Why a node was not reached, for those who do not know the lattice's subjects.
fn unreached(node: NodeId, why: &SealedError) -> String {
    match why {
        SealedError::Bus(BusError::NoResponders { .. }) => format!("node {node} is not there"),
        SealedError::Bus(BusError::TimedOut { .. }) => format!("node {node} did not answer"),
        why => format!("node {node}: {why}"),
    }
}
