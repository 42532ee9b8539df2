//! Spares: beside every node that needs an artifact, one more keeps it, so that it is not gone with them.
//!
//! Which node that is follows from the state alone: nodes stand on a ring by a hash of their ids, and an artifact is kept
//! by the first node after its digest that does not hold what is made of it. So a node that comes or goes moves few.

use std::collections::BTreeSet;

use trellis_wire::{ComponentKey, Digest, NodeId};

use crate::State;

/// How many nodes keep a manifest, which nobody holds.
const MANIFEST_COPIES: usize = 2;

impl State {
    /// What `node` keeps for others, of everything that runs or is rolled out.
    pub fn spares(&self, node: NodeId) -> BTreeSet<Digest> {
        let is_fit = |id: &NodeId| self.node(*id).is_some_and(|node| node.is_open() && !node.facts.edge);
        let mut ring: Vec<(u64, NodeId)> =
            self.nodes().keys().copied().filter(is_fit).map(|id| (scattered(id.uuid().as_bytes()), id)).collect();
        ring.sort_unstable();
        let after = |digest: Digest, but: BTreeSet<NodeId>| {
            let first = ring.partition_point(|(at, _)| *at < scattered(digest.bytes()));
            let around = ring[first..].iter().chain(&ring[..first]).map(|(_, id)| *id);
            around.filter(move |id| !but.contains(id))
        };
        let mut spares = BTreeSet::new();
        for release in self.running() {
            for (entry, digest) in &release.artifacts {
                let key = ComponentKey { app: release.app.name.clone(), name: entry.clone() };
                if after(*digest, self.holders(&key)).next() == Some(node) {
                    spares.insert(*digest);
                }
            }
            if after(release.manifest, BTreeSet::new()).take(MANIFEST_COPIES).any(|id| id == node) {
                spares.insert(release.manifest);
            }
        }
        spares
    }
}

/// FNV-1a with a last mix, so that ids minted one after the other stand far apart.
fn scattered(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
