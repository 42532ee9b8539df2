//! What stands in clear before a sealed or signed body. Append-only, as every message of the bus.

use serde::{Deserialize, Serialize};
use trellis_wire::{LatticeId, NodeId, NodeKey};

use crate::{Refused, Start};

/// The head of a frame. What follows it is the body, with a tag or a signature at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Head {
    /// A word for one node; what follows is sealed.
    Sealed {
        lattice: LatticeId,
        from: NodeId,
        start: Start,
        /// The start that it is for.
        to: Start,
        count: u64,
    },
    /// The answer to a sealed word; what follows is sealed.
    Answer,
    /// Why a sealed word was not taken. Signed, and bound to that word.
    Notice { lattice: LatticeId, start: Start, why: Refused },
    /// A word for all members; what follows is hidden and signed.
    Announced { lattice: LatticeId, from: NodeId, start: Start, count: u64 },
    /// Which start is a node in? Anyone may ask.
    Greeting { nonce: [u8; 16] },
    /// The answer, signed: the start, and how much that start has announced.
    Greeted { lattice: LatticeId, start: Start, announced: u64, nonce: [u8; 16] },
    /// A word of one who may be no member yet; what follows is signed with the key that it presents.
    Presented { from: NodeId, key: NodeKey },
}
