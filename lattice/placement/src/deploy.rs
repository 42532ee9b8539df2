//! Deploying: what is checked, what a deploy waits for, and what happens when it starts.

use std::collections::BTreeSet;
use std::sync::Arc;

use trellis_wire::{AppName, ComponentKey};

use crate::conflict::{self, Conflict, Listener};
use crate::release::Put;
use crate::state::done_if;
use crate::{Applied, Refusal, Release, State, StoredConfig, Versions};

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
        self.start(&release, listeners);
        self.start_waiting();
        Ok(Applied::Done)
    }

    pub(crate) fn undeploy(&mut self, app: &AppName) -> Result<Applied, Refusal> {
        self.check_unused(app)?;
        let versions = self.apps.get_mut(app).ok_or_else(|| Refusal::UnknownApp(app.clone()))?;
        let stopped = Arc::make_mut(versions).stop();
        self.waiting.remove(app);
        self.start_waiting();
        Ok(done_if(stopped))
    }

    pub(crate) fn delete(&mut self, app: &AppName) -> Result<Applied, Refusal> {
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
        self.waiting.remove(app);
        let configs = Arc::make_mut(&mut self.configs);
        owned.iter().for_each(|name| configs.remove(name));
        self.start_waiting();
        Ok(Applied::Done)
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
        let others = self.releases().filter(|other| other.app.name != release.app.name);
        for other in others {
            if let Some((owner, id)) = self::ids(other).find(|(_, id)| ids.contains(id)) {
                return Err(Refusal::IdTaken { id: id.into(), owner });
            }
        }
        Ok(())
    }

    /// Another app that runs may use what this one shares.
    fn check_unused(&self, app: &AppName) -> Result<(), Refusal> {
        if !self.app(app).and_then(Versions::deployed).is_some_and(|release| release.app.shared) {
            return Ok(());
        }
        for user in self.releases().filter(|release| release.app.name != *app) {
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

    /// Makes a release what runs, with its config.
    fn start(&mut self, release: &Arc<Release>, listeners: Vec<Listener>) {
        let app = &release.app.name;
        let gone = self.owned_configs(app).into_iter().filter(|name| !release.app.configs.contains_key(name));
        // What another app still reads stays until this app is deleted.
        let gone: Vec<String> = gone.filter(|name| self.config_users(name).all(|user| user.app.name == *app)).collect();
        if !gone.is_empty() || !release.app.configs.is_empty() {
            let configs = Arc::make_mut(&mut self.configs);
            gone.iter().for_each(|name| configs.remove(name));
            for (name, values) in &release.app.configs {
                configs.put(name, StoredConfig { values: values.clone(), owner: Some(app.clone()) });
            }
        }
        Arc::make_mut(self.apps.entry(app.clone()).or_default()).run(Arc::clone(release), listeners);
        self.waiting.remove(app);
    }

    /// Starts whatever waits and can start now. One start may be what the next one waits for.
    pub(crate) fn start_waiting(&mut self) {
        while let Some((release, listeners)) = self.startable() {
            self.start(&release, listeners);
        }
    }

    fn startable(&self) -> Option<(Arc<Release>, Vec<Listener>)> {
        self.waiting.iter().find_map(|app| {
            let release = self.app(app)?.next()?;
            let is_ready = self.check(release).is_ok() && self.blockers(release).is_empty();
            let listeners = self.listeners(release);
            (is_ready && self.conflict(app, &listeners).is_none()).then(|| (Arc::clone(release), listeners))
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

    /// Finds out anew where the users of a config listen. On a conflict nothing changes.
    pub(crate) fn listen_again(&mut self, config: &str) -> Result<(), Box<Conflict>> {
        let users = self.config_users(config);
        let anew: Vec<_> = users.map(|release| (release.app.name.clone(), self.listeners(release))).collect();
        let others = self.apps.iter().filter(|(name, _)| anew.iter().all(|(user, _)| user != *name));
        let others = others.flat_map(|(_, versions)| versions.listeners());
        let wanted: Vec<Listener> = anew.iter().flat_map(|(_, listeners)| listeners).cloned().collect();
        if let Some(conflict) = conflict::find(&wanted, others) {
            return Err(conflict);
        }
        for (app, listeners) in anew {
            Arc::make_mut(self.apps.entry(app).or_default()).listen(listeners);
        }
        Ok(())
    }

    /// What runs and reads a config from the lattice, not from its own manifest.
    pub(crate) fn config_users(&self, name: &str) -> impl Iterator<Item = &Arc<Release>> {
        let reads = move |release: &&Arc<Release>| {
            !release.app.configs.contains_key(name) && release.config_names().any(|read| read == name)
        };
        self.releases().filter(reads)
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
fn ids(release: &Release) -> impl Iterator<Item = (ComponentKey, &str)> {
    let components = release.app.components.iter().map(|(entry, component)| (entry, component.id.as_str()));
    let providers = release.app.providers.iter().map(|(entry, provider)| (entry, provider.id.as_str()));
    let own = components.chain(providers).filter(|(entry, _)| release.shared(entry).is_none());
    own.map(|(entry, id)| (release.key(entry), id))
}
