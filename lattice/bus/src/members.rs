//! Members of a lattice for tests: their keys follow from their ids, and they know each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trellis_trust::{Book, NodeSecret, Seal, Start};
use trellis_wire::{LatticeId, LatticeName, LatticeSecret, NodeId, NodeKey};

use crate::{Bus, Sealed};

/// The key pair of a node.
pub fn secret(node: NodeId) -> NodeSecret {
    let (mut seed, id) = ([0; 32], node.uuid());
    seed[..16].copy_from_slice(id.as_bytes());
    NodeSecret::new(seed)
}

/// A new start of a node, which belongs to no lattice and knows nobody yet.
pub fn start(node: NodeId, lattice: LatticeName, bus: Bus) -> Sealed {
    static STARTS: AtomicU64 = AtomicU64::new(1);
    start_numbered(node, lattice, bus, STARTS.fetch_add(1, Ordering::Relaxed))
}

/// The start of a node with this number, which is higher than that of any start before it.
pub fn start_numbered(node: NodeId, lattice: LatticeName, bus: Bus, number: u64) -> Sealed {
    Sealed::new(bus, lattice, Arc::new(Seal::new(node, secret(node), Start { number, salt: number })))
}

/// Members of one lattice, each with its end of the bus.
pub fn members<const N: usize>(bus: &Bus, lattice: LatticeId, nodes: [NodeId; N]) -> [Sealed; N] {
    let book = Arc::new(Known::new(lattice, nodes));
    nodes.map(|node| {
        let sealed = start(node, "test".parse().expect("it is a valid lattice name"), bus.clone());
        sealed.seal().read(book.clone());
        sealed
    })
}

/// A book with these members in it.
#[derive(Debug)]
pub struct Known(LatticeId, BTreeMap<NodeId, NodeKey>);

impl Known {
    /// Their keys follow from their ids.
    pub fn new(lattice: LatticeId, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self(lattice, nodes.into_iter().map(|node| (node, secret(node).key())).collect())
    }
}

impl Book for Known {
    fn lattice(&self) -> Option<LatticeId> {
        Some(self.0)
    }

    fn key(&self, node: NodeId) -> Option<NodeKey> {
        self.1.get(&node).copied()
    }

    fn secret(&self) -> Option<LatticeSecret> {
        Some(LatticeSecret::new([9; 32]))
    }

    fn incarnation(&self) -> u32 {
        0
    }
}
