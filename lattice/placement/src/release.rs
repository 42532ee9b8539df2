//! Releases: an app's version with its artifacts resolved, and the versions of an app that are kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_manifest::{App, Image, Served};
use trellis_wire::{ComponentKey, ComponentName, Digest};

use crate::Listener;

/// How many versions of an app are kept.
pub const HISTORY_MAX: usize = 10;

/// An app's version, ready to be deployed: every image is a digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// What the manifest declares.
    pub app: App,
    /// The version: the manifest's, or one that was made for it.
    pub version: String,
    /// The artifact of each component that is not another app's.
    pub artifacts: BTreeMap<ComponentName, Digest>,
    /// The manifest's text, as an artifact.
    pub manifest: Digest,
    /// Whether it may take the place of the same version with other content.
    pub replace: bool,
}

impl Release {
    /// The component or provider that an entry of this app stands for: its own, or the one another app shares.
    pub fn key(&self, entry: &ComponentName) -> ComponentKey {
        self.shared(entry).unwrap_or_else(|| ComponentKey { app: self.app.name.clone(), name: entry.clone() })
    }

    /// What another app shares under this entry, if the entry is such.
    pub(crate) fn shared(&self, entry: &ComponentName) -> Option<ComponentKey> {
        let image = self.app.components.get(entry).map(|component| &component.image);
        let served = self.app.providers.get(entry).map(|provider| &provider.served);
        match (image, served) {
            (Some(Image::Shared { app, component }), _) | (_, Some(Served::Shared { app, component })) => {
                Some(ComponentKey { app: app.clone(), name: component.clone() })
            }
            _ => None,
        }
    }

    /// Everything it uses of other apps.
    pub(crate) fn uses(&self) -> impl Iterator<Item = ComponentKey> {
        self.app.components.keys().chain(self.app.providers.keys()).filter_map(|entry| self.shared(entry))
    }

    /// Every config it names, with those its own manifest gives properties for.
    pub(crate) fn config_names(&self) -> impl Iterator<Item = &String> {
        let components = self.app.components.values().flat_map(|component| &component.configs);
        let providers = self.app.providers.values().flat_map(|provider| &provider.configs);
        let links = self.app.links.iter().flat_map(|link| link.source_configs.iter().chain(&link.target_configs));
        components.chain(providers).chain(links)
    }

    /// Whether it would run the same: comments and layout of the manifest do not count, digests do.
    fn is_same(&self, other: &Self) -> bool {
        self.app == other.app && self.artifacts == other.artifacts
    }
}

/// A version that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// What it deploys.
    pub release: Arc<Release>,
    /// When it was first put, in milliseconds since 1970.
    pub put_ms: u64,
}

/// The versions of one app.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest first.
    kept: Vec<Version>,
    /// What runs.
    deployed: Option<Arc<Release>>,
    /// What will run once what it waits for is there. What runs goes on until then.
    next: Option<Arc<Release>>,
    /// Where what runs listens for HTTP.
    listeners: Vec<Listener>,
}

/// What came of putting a version.
pub(crate) enum Put {
    /// It is new, or it is kept and not what runs.
    Kept(Arc<Release>),
    /// It is what runs or waits already.
    Unchanged,
    /// The same version with other content is kept.
    Differs,
}

impl Versions {
    /// Every version that is kept, oldest first.
    pub fn kept(&self) -> &[Version] {
        &self.kept
    }

    /// A version by name.
    pub fn get(&self, version: &str) -> Option<&Version> {
        self.kept.iter().find(|kept| kept.release.version == version)
    }

    /// What runs.
    pub fn deployed(&self) -> Option<&Arc<Release>> {
        self.deployed.as_ref()
    }

    /// What waits to run.
    pub fn next(&self) -> Option<&Arc<Release>> {
        self.next.as_ref()
    }

    /// Where what runs listens for HTTP.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Says what putting `release` would come to. Nothing changes yet.
    pub(crate) fn consider(&self, release: &Release) -> Put {
        match self.get(&release.version) {
            Some(kept) if !kept.release.is_same(release) && !release.replace => Put::Differs,
            Some(kept) if kept.release.is_same(release) => {
                let wanted = self.next.as_ref().or(self.deployed.as_ref());
                let is_wanted =
                    wanted.is_some_and(|wanted| Arc::ptr_eq(wanted, &kept.release) || **wanted == *kept.release);
                if is_wanted { Put::Unchanged } else { Put::Kept(Arc::clone(&kept.release)) }
            }
            _ => Put::Kept(Arc::new(Release { replace: false, ..release.clone() })),
        }
    }

    /// Keeps a release, in the place of the same version if that is kept, and forgets the oldest that neither runs nor
    /// waits when there are too many.
    pub(crate) fn keep(&mut self, release: &Arc<Release>, put_ms: u64) {
        match self.kept.iter_mut().find(|kept| kept.release.version == release.version) {
            Some(kept) if *kept.release == **release => {}
            Some(kept) => *kept = Version { release: Arc::clone(release), put_ms },
            None => self.kept.push(Version { release: Arc::clone(release), put_ms }),
        }
        while self.kept.len() > HISTORY_MAX {
            let in_use = [&self.deployed, &self.next, &Some(Arc::clone(release))]
                .map(|one| one.as_ref().map(|one| one.version.clone()));
            let oldest = self.kept.iter().position(|kept| !in_use.contains(&Some(kept.release.version.clone())));
            self.kept.remove(oldest.expect("at most three of more than ten are in use"));
        }
    }

    pub(crate) fn run(&mut self, release: Arc<Release>, listeners: Vec<Listener>) {
        (self.deployed, self.next, self.listeners) = (Some(release), None, listeners);
    }

    pub(crate) fn wait(&mut self, release: Arc<Release>) {
        self.next = Some(release);
    }

    /// Stops what runs and what waits. Says whether there was anything to stop.
    pub(crate) fn stop(&mut self) -> bool {
        self.listeners.clear();
        let (deployed, next) = (self.deployed.take(), self.next.take());
        deployed.is_some() || next.is_some()
    }

    pub(crate) fn listen(&mut self, listeners: Vec<Listener>) {
        self.listeners = listeners;
    }
}
