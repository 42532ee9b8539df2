//! The plan: which node holds what, with how many permits. It changes by deltas, each of which is one generation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, ComponentKey, Generation, NodeId};

use crate::Refusal;

/// How long a delta gets before the rest is left for the next one, in bytes; an entry has room for it.
pub const DELTA_BYTES_MAX: usize = 48 * 1024;

/// What one change takes in a delta at most, in bytes: a node id, the kind of change and the permits.
const CHANGE_BYTES_MAX: usize = 24;

/// The nodes that hold a component or run a provider, with their permits. `None`: as many as the node allows. A node with
/// 0 makes it ready and has permits once others gave some up.
pub type Holding = BTreeMap<NodeId, Option<u32>>;

/// One step of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The generation that it was made from. It is applied to no other.
    pub parent: Generation,
    /// What changes, by component and node.
    pub changes: BTreeMap<ComponentKey, BTreeMap<NodeId, Change>>,
}

/// What changes for one component on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// It holds the component with so many permits; `None`: as many as the node allows.
    Hold(Option<u32>),
    /// It no longer holds it.
    Release,
    /// It holds the newer version of a roll-out too.
    Stage,
    /// It no longer does.
    Unstage,
}

impl Delta {
    pub(crate) const fn new(parent: Generation) -> Self {
        Self { parent, changes: BTreeMap::new() }
    }

    /// The generation that it makes.
    pub const fn generation(&self) -> Generation {
        self.parent.next()
    }
}

/// Collects changes until a delta is full.
pub(crate) struct Draft {
    delta: Delta,
    bytes: usize,
}

impl Draft {
    pub(crate) const fn new(parent: Generation) -> Self {
        Self { delta: Delta::new(parent), bytes: 0 }
    }

    /// Adds a change. What does not fit is left for the next delta.
    pub(crate) fn add(&mut self, key: &ComponentKey, node: NodeId, change: Change) {
        let key_bytes =
            if self.delta.changes.contains_key(key) { 0 } else { key.app.as_str().len() + key.name.as_str().len() + 8 };
        if self.bytes + key_bytes + CHANGE_BYTES_MAX > DELTA_BYTES_MAX {
            self.bytes = DELTA_BYTES_MAX;
            return;
        }
        self.bytes += key_bytes + CHANGE_BYTES_MAX;
        // Of two changes for one node the second is left for the next delta, too.
        self.delta.changes.entry(key.clone()).or_default().entry(node).or_insert(change);
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.bytes == DELTA_BYTES_MAX
    }

    pub(crate) fn finish(self) -> Option<Delta> {
        (!self.delta.changes.is_empty()).then_some(self.delta)
    }
}

/// The most permits that a holder may use.
pub(crate) fn most(permits: Option<u32>) -> u32 {
    permits.unwrap_or(u32::MAX)
}

/// The plan as it is agreed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    generation: Generation,
    holdings: Arc<BTreeMap<ComponentKey, Holding>>,
    /// Permits that were taken from a node which has not said yet that it carries that out.
    unacked: BTreeMap<ComponentKey, BTreeMap<NodeId, Unacked>>,
    /// Who holds the newer version of a roll-out. Few: only of apps that are rolled out.
    staged: BTreeMap<ComponentKey, BTreeSet<NodeId>>,
}

/// Permits that a node may still use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Unacked {
    /// The generation that took some of them away last.
    since: Generation,
    /// How many it may use, in all.
    permits: u32,
}

impl Plan {
    /// The newest generation.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Everything that is held.
    pub fn holdings(&self) -> &BTreeMap<ComponentKey, Holding> {
        &self.holdings
    }

    /// Who holds `key`.
    pub fn holding(&self, key: &ComponentKey) -> Option<&Holding> {
        self.holdings.get(key)
    }

    /// Who holds the newer version of `key` while its app is rolled out.
    pub fn staged(&self, key: &ComponentKey) -> Option<&BTreeSet<NodeId>> {
        self.staged.get(key)
    }

    /// Everything that is held in a newer version while its app is rolled out.
    pub(crate) const fn all_staged(&self) -> &BTreeMap<ComponentKey, BTreeSet<NodeId>> {
        &self.staged
    }

    /// Nobody holds a newer version of an app any more.
    pub(crate) fn unstage(&mut self, app: &AppName) {
        self.staged.retain(|key, _| key.app != *app);
    }

    /// Permits of `key` that nodes may still use, though the plan gives them fewer.
    pub fn unacked(&self, key: &ComponentKey) -> impl Iterator<Item = (NodeId, u32)> {
        self.unacked.get(key).into_iter().flatten().map(|(&node, unacked)| (node, unacked.permits))
    }

    /// What `node` may still use permits of that the plan gives it no more.
    pub(crate) fn given_up_by(&self, node: NodeId) -> impl Iterator<Item = &ComponentKey> {
        self.unacked.iter().filter(move |(_, nodes)| nodes.contains_key(&node)).map(|(key, _)| key)
    }

    /// The generation that `node` must say it carries out, if others wait for it.
    pub fn owes(&self, node: NodeId) -> Option<Generation> {
        self.unacked.values().filter_map(|nodes| nodes.get(&node)).map(|unacked| unacked.since).max()
    }

    /// Whether a delta gives out more permits of `key` than `pool`, counting what live nodes may still use.
    pub(crate) fn exceeds(
        &self,
        key: &ComponentKey,
        changes: &BTreeMap<NodeId, Change>,
        pool: u64,
        is_live: impl Fn(NodeId) -> bool,
    ) -> bool {
        let mut used: BTreeMap<NodeId, u32> = BTreeMap::new();
        let held = self.holding(key).into_iter().flatten().map(|(&node, &permits)| (node, most(permits)));
        for (node, permits) in held.chain(self.unacked(key)) {
            let most = used.entry(node).or_default();
            *most = permits.max(*most);
        }
        let mut grows = false;
        for (&node, change) in changes {
            let Change::Hold(permits) = change else { continue };
            let before = used.entry(node).or_default();
            grows |= most(*permits) > *before;
            *before = most(*permits).max(*before);
        }
        let live = used.into_iter().filter(|(node, _)| is_live(*node));
        grows && live.map(|(_, permits)| u64::from(permits)).sum::<u64>() > pool
    }

    /// Applies a delta. A node that closed since the delta was made gets nothing.
    pub(crate) fn carry(&mut self, delta: &Delta, is_open: impl Fn(NodeId) -> bool) -> Result<(), Refusal> {
        if delta.parent != self.generation {
            return Err(Refusal::StalePlan { parent: delta.parent, current: self.generation });
        }
        self.generation = delta.generation();
        let holdings = Arc::make_mut(&mut self.holdings);
        for (key, changes) in &delta.changes {
            let holding = holdings.entry(key.clone()).or_default();
            for (&node, change) in changes {
                let before = match change {
                    Change::Hold(permits) if is_open(node) => holding.insert(node, *permits),
                    Change::Hold(_) => continue,
                    Change::Release => holding.remove(&node),
                    Change::Stage => {
                        if is_open(node) {
                            self.staged.entry(key.clone()).or_default().insert(node);
                        }
                        continue;
                    }
                    Change::Unstage => {
                        self.staged.entry(key.clone()).or_default().remove(&node);
                        continue;
                    }
                };
                let before = before.map_or(0, most);
                let after = holding.get(&node).copied().map_or(0, most);
                if after < before {
                    let unacked = self.unacked.entry(key.clone()).or_default();
                    let permits = unacked.get(&node).map_or(before, |unacked| unacked.permits.max(before));
                    unacked.insert(node, Unacked { since: self.generation, permits });
                }
            }
            if holding.is_empty() {
                holdings.remove(key);
            }
        }
        Ok(())
    }

    /// Notes that `node` carries out `generation`. Says whether anything waited for that.
    pub(crate) fn ack(&mut self, node: NodeId, generation: Generation) -> bool {
        let mut found = false;
        self.unacked.retain(|_, nodes| {
            if nodes.get(&node).is_some_and(|unacked| unacked.since <= generation) {
                nodes.remove(&node);
                found = true;
            }
            !nodes.is_empty()
        });
        found
    }

    /// Strikes a node out.
    pub(crate) fn forget(&mut self, node: NodeId) {
        if self.holdings.values().any(|holding| holding.contains_key(&node)) {
            Arc::make_mut(&mut self.holdings).retain(|_, holding| {
                holding.remove(&node);
                !holding.is_empty()
            });
        }
        for nodes in self.staged.values_mut() {
            nodes.remove(&node);
        }
        self.ack(node, self.generation);
    }
}
