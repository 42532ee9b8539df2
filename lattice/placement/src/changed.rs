//! Which apps a node's share has to be looked at again for, when one state follows another. A lattice may have thousands of
//! apps, and a change is about one of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use trellis_wire::{AppName, ComponentKey, NodeId};

use crate::level::{CAPPED_TOPICS_LEVEL, ORDERED_TOPICS_LEVEL};
use crate::pairs::{is_same, pairs};
use crate::{Plan, State};

/// The apps of which `node` may have something else to run by `after` than by `before`: everything that an app's share
/// follows from is compared here, what states share by its pointer. `borrowers` used what others share by `before`.
pub(crate) fn changed_apps(
    before: &State,
    after: &State,
    node: NodeId,
    borrowers: &BTreeSet<AppName>,
) -> BTreeSet<AppName> {
    // Of an app that is rolled out it follows from a node's labels, too, who holds which version. Those are few.
    let mut changed = after.rolling.clone();
    let knows = |state: &State| [ORDERED_TOPICS_LEVEL, CAPPED_TOPICS_LEVEL].map(|level| state.everyone_knows(level));
    let is_upgraded = || !Arc::ptr_eq(&before.nodes, &after.nodes) && knows(before) != knows(after);
    if before.home != after.home || is_upgraded() {
        // Of each that has something at home; it happens once in the life of most lattices.
        changed.extend(after.apps.keys().cloned());
    }
    let versions = pairs(&before.apps, &after.apps).filter(|(_, old, new)| !is_same(*old, *new));
    changed.extend(versions.map(|(app, ..)| app.clone()));
    changed.extend(moved(&before.plan, &after.plan, node).into_iter().map(|key| key.app.clone()));
    changed.extend(reconfigured(before, after));
    let uses_changed = |app: &&AppName| {
        let running = after.app(app).into_iter().flat_map(|versions| versions.running());
        running.flat_map(|release| release.uses()).any(|used| changed.contains(&used.app))
    };
    let users: Vec<AppName> = borrowers.iter().filter(uses_changed).cloned().collect();
    changed.extend(users);
    changed
}

/// What `node` holds in another way, or no more, or holds now.
fn moved<'a>(before: &'a Plan, after: &'a Plan, node: NodeId) -> Vec<&'a ComponentKey> {
    let mut moved = Vec::new();
    if !std::ptr::eq(before.holdings(), after.holdings()) {
        let holdings = pairs(before.holdings(), after.holdings());
        let here = holdings.map(|(key, old, new)| (key, old.map(|old| old.get(&node)), new.map(|new| new.get(&node))));
        moved.extend(here.filter(|(_, old, new)| old.flatten() != new.flatten()).map(|(key, ..)| key));
    }
    let is_here = |nodes: Option<&BTreeSet<NodeId>>| nodes.is_some_and(|nodes| nodes.contains(&node));
    let staged = pairs(before.all_staged(), after.all_staged());
    moved.extend(staged.filter(|(_, old, new)| is_here(*old) != is_here(*new)).map(|(key, ..)| key));
    moved
}

/// The apps that name a config which is another now.
fn reconfigured(before: &State, after: &State) -> Vec<AppName> {
    if Arc::ptr_eq(&before.configs, &after.configs) {
        return Vec::new();
    }
    let names = pairs(before.configs.all(), after.configs.all()).filter(|(_, old, new)| old != new);
    let names: BTreeSet<&str> = names.map(|(name, ..)| &**name).collect();
    let users = after.apps().filter(|(_, versions)| {
        versions.running().any(|release| release.config_names().any(|name| names.contains(name.as_str())))
    });
    users.map(|(app, _)| app.clone()).collect()
}
