//! Releases: an app's version with its artifacts resolved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trellis_manifest::{App, AppLink, Image, Served};
use trellis_wire::{ComponentKey, ComponentName, Digest, LinkId};

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

    /// The id of one of this app's links.
    pub fn link_id(&self, link: &AppLink) -> LinkId {
        let AppLink { name, namespace, package, interfaces, .. } = link;
        LinkId::new(&self.key(&link.source), &self.key(&link.target), name, namespace, package, interfaces)
    }

    /// Whether there is such an entry.
    pub(crate) fn has(&self, entry: &ComponentName) -> bool {
        self.app.components.contains_key(entry) || self.app.providers.contains_key(entry)
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

    /// Every artifact that it is made of, with its manifest's text.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.artifacts.values().copied().chain([self.manifest])
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
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.app == other.app && self.artifacts == other.artifacts
    }
}
