//! What must hold of a lattice, whatever happened: the promises, written a second time and simpler.

use std::collections::{BTreeMap, HashSet};

use trellis_manifest::Scaler;
use trellis_placement::{Applied, Command, Entry, Home, State, Versions, plan};
use trellis_wire::{AppName, CommandId, ComponentKey, Config, NodeId};

use super::peer::{Peer, UNBOUNDED};

/// What is known apart from the state that is under test.
#[derive(Default)]
pub(super) struct Model {
    /// Commands that took effect.
    taken: HashSet<CommandId>,
    /// The version of each app that runs, or is on its way.
    apps: BTreeMap<AppName, String>,
    configs: BTreeMap<String, Config>,
    drained: BTreeMap<NodeId, bool>,
    /// The most permits that each component ever asked for.
    asked: BTreeMap<ComponentKey, u64>,
}

impl Model {
    /// Notes what came of a command, and checks that it came of it.
    pub(super) fn note(&mut self, entry: &Entry, applied: &Applied, before: &State, after: &State) {
        let is_again = self.taken.contains(&entry.id);
        assert_eq!(*applied == Applied::Repeated, is_again, "{entry:?} {applied:?}");
        if is_again || matches!(applied, Applied::Refused(_)) {
            assert_eq!(before, after, "{applied:?} changes nothing: {entry:?}");
            return;
        }
        self.taken.insert(entry.id);
        self.check_pools(&entry.command, before, after);
        check_home(&entry.command, before, after);
        match &entry.command {
            Command::Deploy(release) => drop(self.apps.insert(release.app.name.clone(), release.version.clone())),
            Command::Undeploy(app) | Command::Delete(app) => drop(self.apps.remove(app)),
            Command::PutConfig { name, values } => drop(self.configs.insert(name.clone(), values.clone())),
            Command::DeleteConfig(name) => drop(self.configs.remove(name)),
            Command::Drain { node, on } => drop(self.drained.insert(*node, *on)),
            Command::Forget(node) => drop(self.drained.remove(node)),
            Command::Plan(_) => check_step(before, after),
            _ => {}
        }
    }

    /// Every command that was committed still shows.
    pub(super) fn check_register(&self, state: &State) {
        let wanted =
            |versions: &Versions| versions.newer().or(versions.deployed()).map(|wanted| wanted.version.clone());
        let apps: BTreeMap<_, _> =
            state.apps().filter_map(|(name, versions)| Some((name.clone(), wanted(versions)?))).collect();
        assert_eq!(apps, self.apps);
        let configs: BTreeMap<_, _> =
            self.configs.keys().map(|name| (name.clone(), state.configs().get(name).unwrap().values.clone())).collect();
        assert_eq!(configs, self.configs);
        for (id, node) in state.nodes() {
            assert_eq!(node.drained, self.drained.get(id).copied().unwrap_or_default(), "{id} {node:?}");
        }
    }

    /// What all nodes that are not declared lost may use sums to at most `instances`. A sum that is above it because a
    /// deploy asked for less may stay until nodes gave that up, and comes back with a node that had its part of it; a plan
    /// never adds to it.
    fn check_pools(&mut self, command: &Command, before: &State, after: &State) {
        for key in after.plan().holdings().keys() {
            let asked = instances(after, key);
            let most = self.asked.entry(key.clone()).or_default();
            *most = asked.max(*most);
            let allowed = if matches!(command, Command::Plan(_)) { asked } else { *most };
            let sums =
                [before, after].map(|state| live(state).map(|node| usable_at_most(state, key, node)).sum::<u64>());
            assert!(
                sums[1] <= allowed.max(sums[0]),
                "of {key} {allowed} were asked for, and nodes may use {} after {}: {:?}, {:?} may still be used",
                sums[1],
                sums[0],
                after.holding(key),
                after.plan().unacked(key).collect::<Vec<_>>(),
            );
        }
    }
}

/// The nodes that are not declared lost.
fn live(state: &State) -> impl Iterator<Item = NodeId> {
    state.nodes().iter().filter(|(_, node)| !node.is_lost()).map(|(&id, _)| id)
}

/// The most permits that a node may use by the plan: what it holds, or held until it says otherwise.
fn usable_at_most(state: &State, key: &ComponentKey, node: NodeId) -> u64 {
    let held = state.holding(key).and_then(|holding| holding.get(&node));
    let held = held.map_or(0, |permits| permits.map_or(UNBOUNDED, u64::from));
    let unacked = state.plan().unacked(key).filter(|(id, _)| *id == node).map(|(_, permits)| u64::from(permits));
    unacked.fold(held, u64::max)
}

/// No node that is not declared lost uses more than the plan knows of, however late it hears of things.
pub(super) fn check_use<'a>(truth: &State, peers: impl Iterator<Item = &'a Peer>) {
    for peer in peers.filter(|peer| truth.node(peer.id()).is_some_and(|node| !node.is_lost())) {
        for (key, permits) in peer.usable() {
            let most = usable_at_most(truth, key, peer.id());
            assert!(permits <= most, "{} uses {permits} permits of {key}, and the plan knows of {most}", peer.id());
        }
    }
}

/// The home is recorded once, and again only after it was forgotten.
fn check_home(command: &Command, before: &State, after: &State) {
    match (before.home(), after.home()) {
        (Home::At(was), Home::GivenUp) => assert_eq!(*command, Command::Forget(was), "only who forgets it gives it up"),
        (Home::Unsettled | Home::GivenUp, Home::At(is)) => assert_eq!(*command, Command::Home(is)),
        (before, after) => assert_eq!(before, after, "the home moved by {command:?}"),
    }
}

/// Nobody keeps what is embedded who knows that another node does.
pub(super) fn check_kept<'a>(peers: impl Iterator<Item = &'a Peer>) {
    for peer in peers.filter(|peer| peer.keeps()) {
        let home = peer.state.home();
        assert!(matches!(home, Home::Unsettled) || home == Home::At(peer.id()), "{} answers, and {home:?}", peer.id());
    }
}

/// What a component asks for in the whole lattice, where that is a number: of two versions the one that asks for more.
fn instances(state: &State, key: &ComponentKey) -> u64 {
    let running = state.app(&key.app).into_iter().flat_map(Versions::running);
    let asked =
        running.filter_map(|release| release.app.components.get(&key.name)).map(|component| match &component.scaler {
            Some(Scaler::Spread { instances: Some(instances), .. }) => u64::from(*instances),
            _ => u64::MAX,
        });
    asked.max().unwrap_or_default()
}

/// A step of the plan gives nothing to a node that may hold nothing.
fn check_step(before: &State, after: &State) {
    assert_eq!(after.plan().generation(), before.plan().generation().next());
    for (key, holding) in after.plan().holdings() {
        for (id, permits) in holding {
            let had = before.holding(key).and_then(|holding| holding.get(id));
            let is_open = after.node(*id).is_some_and(|node| node.is_open());
            assert!(is_open || had == Some(permits), "{key} goes to {id}, which is lost, drained or unknown");
        }
    }
}

/// Once the plan is known, nobody who is lost or drained holds anything, and another look changes nothing.
pub(super) fn check_planned(state: &State) {
    if plan(state).is_some() {
        return;
    }
    for (key, holding) in state.plan().holdings() {
        let closed = holding.keys().find(|id| !state.node(**id).is_some_and(|node| node.is_open()));
        assert_eq!(closed, None, "{key} is held by a node that is lost, drained or unknown");
        assert!(state.component(key).is_some(), "{key} is held and does not run");
    }
}
