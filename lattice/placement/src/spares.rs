//! Spares: beside every node that needs an artifact, one more keeps it, so that it is not gone with them.
//!
//! Which node that is follows from the state alone: nodes stand on a ring by a hash of their ids, and an artifact is kept
//! by the first node after its digest that does not hold what is made of it. So a node that comes or goes moves few. What is
//! kept and does not run is held by nobody, and two nodes keep it: it can be gone back to.

use std::collections::BTreeSet;

use trellis_wire::{AppName, ComponentKey, ComponentName, Digest, NodeId};

use crate::{Release, State, Versions};

/// How many nodes keep what nobody holds: a manifest, and all of a version that does not run.
const UNHELD_COPIES: usize = 2;

/// A copy of an artifact that a node keeps for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spare {
    /// Of what.
    pub digest: Digest,
    /// Who keeps it.
    pub node: NodeId,
}

impl State {
    /// What `node` keeps for others, of everything that runs or is rolled out.
    pub fn spares(&self, node: NodeId) -> BTreeSet<Digest> {
        let (ring, mut spares) = (Ring::of(self), BTreeSet::new());
        for release in self.running() {
            let kept = release.artifacts.keys().filter_map(|entry| ring.spare(self, release, entry));
            spares.extend(kept.filter(|spare| spare.node == node).map(|spare| spare.digest));
            spares.extend(Some(release.manifest).filter(|manifest| ring.keeps(node, *manifest)));
        }
        spares
    }

    /// What `node` keeps of what only versions name that are kept and do not run.
    pub fn past_spares(&self, node: NodeId) -> BTreeSet<Digest> {
        let (ring, mut spares) = (Ring::of(self), BTreeSet::new());
        for (_, versions) in self.apps() {
            let running: BTreeSet<Digest> = versions.running().flat_map(|release| release.digests()).collect();
            let kept = versions.kept().iter().flat_map(|kept| kept.release.digests());
            spares.extend(kept.filter(|digest| !running.contains(digest) && ring.keeps(node, *digest)));
        }
        spares
    }

    /// The spare of each component of an app that runs or is rolled out, where there is a node for one.
    pub fn spares_of(&self, app: &AppName) -> Vec<(ComponentName, Spare)> {
        let ring = Ring::of(self);
        let releases = self.app(app).into_iter().flat_map(Versions::running);
        let entries = releases.flat_map(|release| release.artifacts.keys().map(move |entry| (release, entry)));
        entries.filter_map(|(release, entry)| Some((entry.clone(), ring.spare(self, release, entry)?))).collect()
    }
}

/// The nodes that may keep something, by the hash of their ids.
struct Ring(Vec<(u64, NodeId)>);

impl Ring {
    fn of(state: &State) -> Self {
        let is_fit = |id: &NodeId| state.node(*id).is_some_and(|node| node.is_open() && !node.facts.edge);
        let fit = state.nodes().keys().copied().filter(is_fit);
        let mut ring: Vec<_> = fit.map(|id| (scattered(id.uuid().as_bytes()), id)).collect();
        ring.sort_unstable();
        Self(ring)
    }

    /// The nodes after a digest, but for some.
    fn after(&self, digest: Digest, but: BTreeSet<NodeId>) -> impl Iterator<Item = NodeId> {
        let first = self.0.partition_point(|(at, _)| *at < scattered(digest.bytes()));
        let around = self.0[first..].iter().chain(&self.0[..first]).map(|(_, id)| *id);
        around.filter(move |id| !but.contains(id))
    }

    /// Whether a node is among those that keep what nobody holds.
    fn keeps(&self, node: NodeId, digest: Digest) -> bool {
        self.after(digest, BTreeSet::new()).take(UNHELD_COPIES).any(|id| id == node)
    }

    /// The spare of a component: the first node after its digest that does not hold it.
    fn spare(&self, state: &State, release: &Release, entry: &ComponentName) -> Option<Spare> {
        let digest = *release.artifacts.get(entry)?;
        let key = ComponentKey { app: release.app.name.clone(), name: entry.clone() };
        self.after(digest, state.holders(&key)).next().map(|node| Spare { digest, node })
    }
}

/// FNV-1a with a last mix, so that ids minted one after the other stand far apart.
fn scattered(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
