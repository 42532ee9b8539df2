//! Deploying: what is checked, what a deploy waits for, and what happens when it starts.

use std::collections::BTreeSet;
use std::sync::Arc;

use trellis_wire::{AppName, ComponentKey, ComponentName};

use crate::conflict::{self, Conflict, Listener};
use crate::state::done_if;
use crate::versions::{End, Put};
use crate::{Applied, Refusal, Release, Rollout, State, StoredConfig, Versions};

impl State {
    /// What the newest deploy of an app waits for, in words. Empty: it waits for nothing.
    pub fn waiting(&self, app: &AppName) -> Vec<String> {
        let Some(release) = self.app(app).and_then(Versions::next) else { return Vec::new() };
        let mut blockers = self.blockers(release);
        if blockers.is_empty() {
            blockers.extend(self.check(release).err().map(|refusal| refusal.to_string()));
            blockers.extend(self.conflict(app, &self.listeners(release)).map(|conflict| conflict.to_string()));
        }
        blockers
    }

    pub(crate) fn deploy(&mut self, release: &Release, at_ms: u64) -> Result<Applied, Refusal> {
        let app = &release.app.name;
        let put =
            self.app(app).map_or_else(|| Versions::default().consider(release), |versions| versions.consider(release));
        let release = match put {
            Put::Kept(release) => release,
            Put::Unchanged => {
                let waiting = self.waiting(app);
                return Ok(if waiting.is_empty() { Applied::Unchanged } else { Applied::Waiting(waiting) });
            }
            Put::Differs => return Err(Refusal::VersionTaken { app: app.clone(), version: release.version.clone() }),
        };
        self.check(&release)?;
        let blockers = self.blockers(&release);
        let listeners = self.listeners(&release);
        if let (true, Some(conflict)) = (blockers.is_empty(), self.conflict(app, &listeners)) {
            return Err(conflict.into());
        }
        let versions = Arc::make_mut(self.apps.entry(app.clone()).or_default());
        versions.keep(&release, at_ms);
        if !blockers.is_empty() {
            versions.wait(release);
            self.waiting.insert(app.clone());
            return Ok(Applied::Waiting(blockers));
        }
        self.start(&release, at_ms);
        self.start_waiting(at_ms);
        Ok(Applied::Done)
    }

    pub(crate) fn undeploy(&mut self, app: &AppName, at_ms: u64) -> Result<Applied, Refusal> {
        self.check_unused(app)?;
        let versions = self.apps.get_mut(app).ok_or_else(|| Refusal::UnknownApp(app.clone()))?;
        let stopped = Arc::make_mut(versions).stop(at_ms);
        self.forget_ways(app);
        self.start_waiting(at_ms);
        Ok(done_if(stopped))
    }

    pub(crate) fn delete(&mut self, app: &AppName, at_ms: u64) -> Result<Applied, Refusal> {
        self.check_unused(app)?;
        if !self.apps.contains_key(app) {
            return Err(Refusal::UnknownApp(app.clone()));
        }
        let owned = self.owned_configs(app);
        for name in &owned {
            if let Some(user) = self.config_users(name).find(|user| user.app.name != *app) {
                return Err(Refusal::ConfigInUse { name: name.clone(), user: user.app.name.clone() });
            }
        }
        self.apps.remove(app);
        self.forget_ways(app);
        self.forget_paused(app);
        let configs = Arc::make_mut(&mut self.configs);
        owned.iter().for_each(|name| configs.remove(name));
        self.start_waiting(at_ms);
        Ok(Applied::Done)
    }

    /// Nothing of an app waits or is on its way any more.
    fn forget_ways(&mut self, app: &AppName) {
        self.waiting.remove(app);
        self.rolling.remove(app);
        self.plan.unstage(app);
    }

    /// Checks what no waiting would mend.
    fn check(&self, release: &Release) -> Result<(), Refusal> {
        let app = &release.app.name;
        for entry in release.app.components.keys() {
            if release.shared(entry).is_none() && !release.artifacts.contains_key(entry) {
                return Err(Refusal::NoArtifact { app: app.clone(), component: entry.clone() });
            }
        }
        for name in release.app.configs.keys() {
            match self.configs.get(name).map(|config| config.owner.as_ref()) {
                None => {}
                Some(Some(owner)) if owner == app => {}
                Some(Some(owner)) => return Err(Refusal::ConfigOwned { name: name.clone(), owner: owner.clone() }),
                Some(None) => return Err(Refusal::ConfigPut { name: name.clone() }),
            }
        }
        if let Some(shared) =
            release.uses().find(|used| self.release_of(used).is_some_and(|release| !release.app.shared))
        {
            return Err(Refusal::NotShared { shared });
        }
        self.check_ids(release)
    }

    /// An id is one component's in the whole lattice: queue groups and consumers are named by it.
    fn check_ids(&self, release: &Release) -> Result<(), Refusal> {
        let ids: BTreeSet<&str> = ids(release).map(|(_, id)| id).collect();
        let others = self.running().filter(|other| other.app.name != release.app.name);
        for other in others {
            // Of thousands hardly one has such an id: whether it is its own is asked after that.
            let is_taken = |(entry, id): &(&ComponentName, &str)| ids.contains(id) && other.shared(entry).is_none();
            if let Some((entry, id)) = all_ids(other).find(is_taken) {
                return Err(Refusal::IdTaken { id: id.into(), owner: other.key(entry) });
            }
        }
        Ok(())
    }

    /// Another app that runs may use what this one shares.
    fn check_unused(&self, app: &AppName) -> Result<(), Refusal> {
        if !self.app(app).is_some_and(|versions| versions.running().any(|release| release.app.shared)) {
            return Ok(());
        }
        for user in self.running().filter(|release| release.app.name != *app) {
            if let Some(shared) = user.uses().find(|used| used.app == *app) {
                return Err(Refusal::SharedInUse { shared, user: user.app.name.clone() });
            }
        }
        Ok(())
    }

    /// What a release cannot start without and is not there.
    fn blockers(&self, release: &Release) -> Vec<String> {
        let configs: BTreeSet<&String> = self.configs.missing(release).collect();
        let used = release.uses().filter(|used| self.component(used).is_none() && self.provider(used).is_none());
        let used: BTreeSet<ComponentKey> = used.collect();
        let configs = configs.into_iter().map(|name| format!("config `{name}`"));
        configs.chain(used.into_iter().map(|key| format!("component {key}"))).collect()
    }

    /// Makes a release what runs: step by step where another one runs, at once where none does.
    fn start(&mut self, release: &Arc<Release>, at_ms: u64) {
        let app = &release.app.name;
        self.waiting.remove(app);
        match self.app(app).and_then(Versions::deployed) {
            None => {
                self.versions_mut(app).run(release, at_ms);
                self.own_configs(app);
            }
            // What runs is wanted again: what was to take its place is given up.
            Some(deployed) if **deployed == **release => {
                self.versions_mut(app).forget_next();
                if !self.app(app).and_then(Versions::rollout).is_some_and(Rollout::is_last) {
                    self.take_back(app, at_ms, End::Replaced(release.version.clone()));
                }
            }
            Some(_) => self.begin(release, at_ms),
        }
        self.listen_as_running(app);
    }

    /// Gives the lattice the config of an app's manifest.
    pub(crate) fn own_configs(&mut self, app: &AppName) {
        let Some(release) = self.app(app).and_then(Versions::deployed).cloned() else { return };
        let gone = self.owned_configs(app).into_iter().filter(|name| !release.app.configs.contains_key(name));
        // What another app still reads stays until this app is deleted.
        let gone: Vec<String> = gone.filter(|name| self.config_users(name).all(|user| user.app.name == *app)).collect();
        if gone.is_empty() && release.app.configs.is_empty() {
            return;
        }
        let configs = Arc::make_mut(&mut self.configs);
        gone.iter().for_each(|name| configs.remove(name));
        for (name, values) in &release.app.configs {
            configs.put(name, StoredConfig { values: values.clone(), owner: Some(app.clone()) });
        }
    }

    /// Starts whatever waits and can start now. One start may be what the next one waits for.
    pub(crate) fn start_waiting(&mut self, at_ms: u64) {
        while let Some(release) = self.startable() {
            self.start(&release, at_ms);
        }
    }

    fn startable(&self) -> Option<Arc<Release>> {
        self.waiting.iter().find_map(|app| {
            let release = self.app(app)?.next()?;
            let is_ready = self.check(release).is_ok() && self.blockers(release).is_empty();
            (is_ready && self.conflict(app, &self.listeners(release)).is_none()).then(|| Arc::clone(release))
        })
    }

    /// Where a release would listen for HTTP, as config is now.
    fn listeners(&self, release: &Release) -> Vec<Listener> {
        let links = release.app.links.iter().filter_map(|link| {
            let (owner, provider) = self.served(release, &link.source)?;
            let config = self.configs.merged(owner, &provider.configs);
            let config = config.overlaid_with(&self.configs.merged(release, &link.source_configs));
            Listener::read(provider.tech(), &config, release.key(&link.target))
        });
        links.collect()
    }

    fn conflict(&self, app: &AppName, listeners: &[Listener]) -> Option<Box<Conflict>> {
        let others = self.apps.iter().filter(|(name, _)| *name != app).flat_map(|(_, versions)| versions.listeners());
        conflict::find(listeners, others)
    }

    /// Notes where what runs of an app listens, and where what is on its way will. What is only kept ready listens nowhere.
    pub(crate) fn listen_as_running(&mut self, app: &AppName) {
        let Some(versions) = self.app(app) else { return };
        let next = versions.newer().filter(|_| !versions.rollout().is_some_and(Rollout::is_last));
        let running = versions.deployed().into_iter().chain(next);
        let listeners: Vec<Listener> = running.flat_map(|release| self.listeners(release)).collect();
        self.versions_mut(app).listen(listeners);
    }

    /// Finds out anew where the users of a config listen. On a conflict nothing changes.
    pub(crate) fn listen_again(&mut self, config: &str) -> Result<(), Box<Conflict>> {
        let users: Vec<_> = self.config_users(config).cloned().collect();
        let apps: BTreeSet<&AppName> = users.iter().map(|release| &release.app.name).collect();
        let before: Vec<_> = apps.iter().filter_map(|&app| Some((app.clone(), self.apps.get(app)?.clone()))).collect();
        apps.iter().for_each(|app| self.listen_as_running(app));
        let mut found = users.iter().map(|release| self.conflict(&release.app.name, &self.listeners(release)));
        let Some(conflict) = found.find_map(|conflict| conflict) else { return Ok(()) };
        drop(found);
        self.apps.extend(before);
        Err(conflict)
    }

    /// What runs and reads a config from the lattice, not from its own manifest.
    pub(crate) fn config_users(&self, name: &str) -> impl Iterator<Item = &Arc<Release>> {
        let reads = move |release: &&Arc<Release>| {
            !release.app.configs.contains_key(name) && release.config_names().any(|read| read == name)
        };
        self.running().filter(reads)
    }

    fn owned_configs(&self, app: &AppName) -> Vec<String> {
        // wadm names an app's config `{app}-{name}`, so only such names need to be looked at.
        let owned = self.configs.starting_with(app.as_str()).filter(|(_, config)| config.owner.as_ref() == Some(app));
        owned.map(|(name, _)| name.to_owned()).collect()
    }

    fn release_of(&self, key: &ComponentKey) -> Option<&Arc<Release>> {
        self.app(&key.app)?.deployed()
    }
}

/// The ids of a release's own components and providers.
fn ids(release: &Release) -> impl Iterator<Item = (&ComponentName, &str)> {
    all_ids(release).filter(|(entry, _)| release.shared(entry).is_none())
}

/// The same with those of what other apps share.
fn all_ids(release: &Release) -> impl Iterator<Item = (&ComponentName, &str)> {
    let components = release.app.components.iter().map(|(entry, component)| (entry, component.id.as_str()));
    let providers = release.app.providers.iter().map(|(entry, provider)| (entry, provider.id.as_str()));
    components.chain(providers)
}
