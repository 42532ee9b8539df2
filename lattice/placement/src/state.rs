//! The state: what the lattice agrees on. Every node makes it from the same log and has the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_manifest::{Component, Provider};
use trellis_wire::{AppName, CommandId, ComponentKey, Config, Generation, LatticeId, LatticeName, NodeId};

use crate::home::Seat;
use crate::rollout::Want;
use crate::{
    Applied, Command, Configs, Delta, Entry, Holding, Home, Incarnation, Leases, Node, NodeFacts, Plan, Refusal,
    Release, StoredConfig, Timings, Trust, Unfinished, Versions,
};

/// How many command ids are remembered. A proposer gives up long before so many others were applied.
pub const APPLIED_IDS_MAX: usize = 4096;

/// What the lattice agrees on. A clone shares what is large.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(crate) lattice: Option<(LatticeId, LatticeName)>,
    pub(crate) nodes: Arc<BTreeMap<NodeId, Node>>,
    pub(crate) apps: BTreeMap<AppName, Arc<Versions>>,
    /// The apps with a version that waits: few, while apps may be many.
    pub(crate) waiting: BTreeSet<AppName>,
    /// The apps with a roll-out under way: few, too.
    pub(crate) rolling: BTreeSet<AppName>,
    pub(crate) configs: Arc<Configs>,
    pub(crate) plan: Plan,
    /// Commands that were applied and not refused, oldest first.
    applied: VecDeque<CommandId>,
    pub(crate) trust: Option<Arc<Trust>>,
    pub(crate) leases: Leases,
    /// Components that queues do not wake, because a person says so.
    pub(crate) paused: BTreeSet<ComponentKey>,
    /// Commands that are half told. A snapshot has them beside the state, and only where there are any: so builds that do
    /// not know of them read every other.
    #[serde(skip)]
    pub(crate) unfinished: Arc<Unfinished>,
    /// A snapshot has it beside the state too, once there is one.
    #[serde(skip)]
    pub(crate) home: Home,
    /// So too, once they are agreed on.
    #[serde(skip)]
    pub(crate) timings: Option<Timings>,
    /// So too, once the lattice was recovered.
    #[serde(skip)]
    pub(crate) incarnation: Incarnation,
}

impl State {
    /// Applies the next entry of the log.
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        if self.applied.contains(&entry.id) {
            return Applied::Repeated;
        }
        let applied = match self.change(entry) {
            Ok(applied) => applied,
            Err(refusal) => return Applied::Refused(refusal),
        };
        if self.applied.len() == APPLIED_IDS_MAX {
            self.applied.pop_front();
        }
        self.applied.push_back(entry.id);
        applied
    }

    /// One arm per command. An arm that refuses has changed nothing.
    pub(crate) fn change(&mut self, entry: &Entry) -> Result<Applied, Refusal> {
        match &entry.command {
            Command::Found { lattice, name } => self.found(*lattice, name),
            Command::Join(facts) => self.join(facts),
            Command::Lost(id) => {
                self.set_node(*id, |node| node.lost_since_ms = Some(node.lost_since_ms.unwrap_or(entry.at_ms)))
            }
            Command::Back(id) => self.back(*id),
            Command::Forget(id) => self.forget(*id),
            Command::Label { node, labels } => {
                self.set_node(*node, |node| node.overrides.extend(labels.iter().map(|(k, v)| (k.clone(), v.clone()))))
            }
            Command::Drain { node, on } => self.set_node(*node, |node| node.drained = *on),
            Command::Deploy(release) => self.deploy(release, entry.at_ms),
            Command::Undeploy(app) => self.undeploy(app, entry.at_ms),
            Command::Delete(app) => self.delete(app, entry.at_ms),
            Command::PutConfig { name, values } => self.put_config(name, values, entry.at_ms),
            Command::DeleteConfig(name) => self.delete_config(name),
            Command::Plan(delta) => self.plan_on(delta),
            Command::Acked { node, generation } => Ok(done_if(self.plan.ack(*node, *generation))),
            Command::Trust(change) => self.change_trust(change),
            Command::Advance { app, version, step } => self.advance(app, version, *step, entry.at_ms),
            Command::GiveUp { app, version, why } => self.give_up(app, version, why, entry.at_ms),
            Command::Rollback { app, version } => self.roll_back(app, version.as_deref(), entry.at_ms),
            Command::Lease(moves) => Ok(self.move_leases(moves)),
            Command::Pause { component, on } => self.pause(component, *on),
            Command::Part(part) => self.take_part(entry, part),
            Command::Home(node) => self.settle(*node),
            Command::Timings(patience) => Ok(self.agree_on(*patience)),
            Command::Restore(restored) => Ok(self.restore(restored, entry.at_ms)),
        }
    }

    fn found(&mut self, id: LatticeId, name: &LatticeName) -> Result<Applied, Refusal> {
        match &self.lattice {
            Some((founded, _)) if *founded == id => Ok(Applied::Unchanged),
            Some((_, founded)) => Err(Refusal::OtherLattice(founded.clone())),
            None => {
                self.lattice = Some((id, name.clone()));
                Ok(Applied::Done)
            }
        }
    }

    /// A member that joins again keeps its drain and its labels. It stays lost until [`Command::Back`]. Its key never
    /// changes.
    fn join(&mut self, facts: &NodeFacts) -> Result<Applied, Refusal> {
        match self.nodes.get(&facts.id) {
            None => {
                Arc::make_mut(&mut self.nodes).insert(facts.id, Node::new(facts.clone()));
                Ok(Applied::Done)
            }
            Some(known) if known.facts.key != facts.key => {
                Err(Refusal::OtherKey { node: facts.id, known: known.facts.key, found: facts.key })
            }
            Some(_) => self.set_node(facts.id, |node| node.facts = facts.clone()),
        }
    }

    /// Others may have what the node held when it was lost: it is back once it says that it gave that up.
    fn back(&mut self, id: NodeId) -> Result<Applied, Refusal> {
        match self.plan.owes(id) {
            Some(_) => Err(Refusal::StillOwes(id)),
            None => self.set_node(id, |node| node.lost_since_ms = None),
        }
    }

    /// A delta may have been made before an app asked for less, or before a node came back with what it held: it never
    /// gives out permits that are not there.
    fn plan_on(&mut self, delta: &Delta) -> Result<Applied, Refusal> {
        let nodes = &self.nodes;
        let is_live = |id| nodes.get(&id).is_some_and(|node| !node.is_lost());
        for (key, changes) in &delta.changes {
            let demand = self.want(key).and_then(|want| want.demand);
            let pool = demand.map_or(Some(0), |demand| demand.pool());
            if pool.is_some_and(|pool| self.plan.exceeds(key, changes, pool, is_live)) {
                return Err(Refusal::NoSuchPermits(key.clone()));
            }
        }
        self.plan.carry(delta, |id| nodes.get(&id).is_some_and(Node::is_open))?;
        Ok(Applied::Done)
    }

    fn set_node(&mut self, id: NodeId, set: impl FnOnce(&mut Node)) -> Result<Applied, Refusal> {
        let before = self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?;
        let mut after = before.clone();
        set(&mut after);
        if after == *before {
            return Ok(Applied::Unchanged);
        }
        Arc::make_mut(&mut self.nodes).insert(id, after);
        Ok(Applied::Done)
    }

    fn forget(&mut self, id: NodeId) -> Result<Applied, Refusal> {
        if !self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?.is_lost() {
            return Err(Refusal::NotLost(id));
        }
        Arc::make_mut(&mut self.nodes).remove(&id);
        self.plan.forget(id);
        self.leases.forget(id);
        self.give_up_home(id);
        Ok(Applied::Done)
    }

    /// A pause outlives versions of the app and its undeploy, not its delete.
    fn pause(&mut self, component: &ComponentKey, on: bool) -> Result<Applied, Refusal> {
        if !on {
            return Ok(done_if(self.paused.remove(component)));
        }
        let app = self.app(&component.app).ok_or_else(|| Refusal::UnknownApp(component.app.clone()))?;
        let has = |release: &Arc<Release>| release.app.components.contains_key(&component.name);
        if !app.kept().iter().any(|version| has(&version.release)) {
            return Err(Refusal::UnknownComponent(component.clone()));
        }
        Ok(done_if(self.paused.insert(component.clone())))
    }

    pub(crate) fn forget_paused(&mut self, app: &AppName) {
        self.paused.retain(|component| component.app != *app);
    }

    fn put_config(&mut self, name: &str, values: &Config, at_ms: u64) -> Result<Applied, Refusal> {
        let before = self.configs.get(name).cloned();
        if let Some(owner) = before.as_ref().and_then(|before| before.owner.clone()) {
            return Err(Refusal::ConfigOwned { name: name.into(), owner });
        }
        if before.as_ref().is_some_and(|before| before.values == *values) {
            return Ok(Applied::Unchanged);
        }
        Arc::make_mut(&mut self.configs).put(name, StoredConfig { values: values.clone(), owner: None });
        if let Err(conflict) = self.listen_again(name) {
            let configs = Arc::make_mut(&mut self.configs);
            match before {
                Some(before) => configs.put(name, before),
                None => configs.remove(name),
            }
            return Err(conflict.into());
        }
        self.start_waiting(at_ms);
        Ok(Applied::Done)
    }

    fn delete_config(&mut self, name: &str) -> Result<Applied, Refusal> {
        let config = self.configs.get(name).ok_or_else(|| Refusal::UnknownConfig(name.into()))?;
        if let Some(owner) = &config.owner {
            return Err(Refusal::ConfigOwned { name: name.into(), owner: owner.clone() });
        }
        if let Some(user) = self.config_users(name).next() {
            return Err(Refusal::ConfigInUse { name: name.into(), user: user.app.name.clone() });
        }
        Arc::make_mut(&mut self.configs).remove(name);
        Ok(Applied::Done)
    }
}

/// What can be asked.
impl State {
    /// The lattice's id, once it is founded.
    pub fn lattice_id(&self) -> Option<LatticeId> {
        self.lattice.as_ref().map(|(id, _)| *id)
    }

    /// The lattice's name, once it is founded.
    pub fn lattice_name(&self) -> Option<&LatticeName> {
        self.lattice.as_ref().map(|(_, name)| name)
    }

    /// The last commands that were applied and not refused, oldest first: at most [`APPLIED_IDS_MAX`].
    pub fn applied(&self) -> impl Iterator<Item = CommandId> {
        self.applied.iter().copied()
    }

    /// Every member, the lost ones included.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// A member.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Every app that has a version, whether it runs or not.
    pub fn apps(&self) -> impl Iterator<Item = (&AppName, &Versions)> {
        self.apps.iter().map(|(name, versions)| (name, &**versions))
    }

    /// An app.
    pub fn app(&self, name: &AppName) -> Option<&Versions> {
        self.apps.get(name).map(|versions| &**versions)
    }

    /// What runs. Of an app that is rolled out this is the deployed version only.
    pub fn releases(&self) -> impl Iterator<Item = &Arc<Release>> {
        self.apps.values().filter_map(|versions| versions.deployed())
    }

    /// What runs, and what a roll-out has beside it.
    pub fn running(&self) -> impl Iterator<Item = &Arc<Release>> {
        self.apps.values().flat_map(|versions| versions.running())
    }

    /// Every app that is rolled out now.
    pub fn rolling(&self) -> impl Iterator<Item = (&AppName, &Versions)> {
        self.rolling.iter().filter_map(|app| Some((app, self.app(app)?)))
    }

    /// Whether queues do not wake a component, because a person says so.
    pub fn is_paused(&self, component: &ComponentKey) -> bool {
        self.paused.contains(component)
    }

    /// Every named config.
    pub fn configs(&self) -> &Configs {
        &self.configs
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Who holds a component, or runs a provider that has a scaler.
    pub fn holding(&self, key: &ComponentKey) -> Option<&Holding> {
        self.plan.holding(key)
    }

    /// The generation that `node` is to say it carries out, with [`Command::Acked`]: others wait for permits that it
    /// gave up.
    pub fn owes(&self, node: NodeId) -> Option<Generation> {
        self.plan.owes(node)
    }

    /// A component that runs, with the release it belongs to.
    pub fn component(&self, key: &ComponentKey) -> Option<(&Arc<Release>, &Component)> {
        let release = self.app(&key.app)?.deployed()?;
        let component = release.app.components.get(&key.name)?;
        release.shared(&key.name).is_none().then_some((release, component))
    }

    /// A provider that runs, with the release it belongs to.
    pub fn provider(&self, key: &ComponentKey) -> Option<(&Arc<Release>, &Provider)> {
        let release = self.app(&key.app)?.deployed()?;
        let provider = release.app.providers.get(&key.name)?;
        provider.tech().is_some().then_some((release, provider))
    }

    /// The nodes on which a provider runs in some version: where its scaler says, at home if it is embedded, or where the
    /// components are that it is linked with, and at home for those that the home wakes by MQTT.
    pub fn provider_nodes(&self, key: &ComponentKey) -> BTreeSet<NodeId> {
        let mut nodes = BTreeSet::new();
        let running = self.app(&key.app).into_iter().flat_map(Versions::running);
        for provider in running.filter_map(|release| release.app.providers.get(&key.name)) {
            match self.seat(provider) {
                Seat::Planned => nodes.extend(self.holders(key)),
                Seat::Home(home) => nodes.extend(home),
                Seat::Beside => nodes.extend(self.beside(key)),
            }
        }
        nodes
    }

    /// The nodes that hold a component which is linked with a provider, but by a link that is pulled at home; and that.
    fn beside(&self, provider: &ComponentKey) -> BTreeSet<NodeId> {
        let links = self.running().flat_map(|release| release.app.links.iter().map(move |link| (release, link)));
        let nodes = links.map(|(release, link)| match (release.key(&link.source), release.key(&link.target)) {
            (source, _) if source == *provider && self.is_pulled_at_home(release, link) => {
                self.home_node().into_iter().collect()
            }
            (source, target) if source == *provider => self.holders(&target),
            (source, target) if target == *provider => self.holders(&source),
            _ => BTreeSet::new(),
        });
        nodes.flatten().collect()
    }

    /// The nodes that hold a component in some version.
    pub fn holders(&self, key: &ComponentKey) -> BTreeSet<NodeId> {
        let placed = self.holding(key).into_iter().flat_map(|holding| holding.keys());
        placed.chain(self.plan.staged(key).into_iter().flatten()).copied().collect()
    }

    /// What the plan is to fulfil for an entry. `None`: it does not run, or is not planned.
    pub(crate) fn want(&self, key: &ComponentKey) -> Option<Want<'_>> {
        Want::of(self.app(&key.app)?, key.clone())
    }

    /// The same for everything that runs.
    pub(crate) fn wants(&self) -> impl Iterator<Item = Want<'_>> {
        self.apps.values().flat_map(|versions| Want::all(versions))
    }
}

pub(crate) const fn done_if(changed: bool) -> Applied {
    if changed { Applied::Done } else { Applied::Unchanged }
}
