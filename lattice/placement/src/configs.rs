//! Named config, as the lattice stores it: put by hand, or owned by the app whose manifest gives its properties.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, Config};

use crate::Release;

/// A config under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredConfig {
    /// Its values.
    pub values: Config,
    /// The app whose manifest gives them; `None`: put by hand.
    pub owner: Option<AppName>,
}

/// Every named config. A clone shares names and values: one is made with every change of a config.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Configs(BTreeMap<Arc<str>, Arc<StoredConfig>>);

impl Configs {
    /// A config by its name.
    pub fn get(&self, name: &str) -> Option<&StoredConfig> {
        self.0.get(name).map(|config| &**config)
    }

    /// Every config by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredConfig)> {
        self.0.iter().map(|(name, config)| (&**name, &**config))
    }

    /// The same as they are kept.
    pub(crate) const fn all(&self) -> &BTreeMap<Arc<str>, Arc<StoredConfig>> {
        &self.0
    }

    /// Every config whose name begins so.
    pub(crate) fn starting_with(&self, prefix: &str) -> impl Iterator<Item = (&str, &StoredConfig)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let range = self.0.range::<str, _>(from).take_while(move |(name, _)| name.starts_with(prefix));
        range.map(|(name, config)| (&**name, &**config))
    }

    /// Writes a config.
    pub(crate) fn put(&mut self, name: &str, config: StoredConfig) {
        self.0.insert(name.into(), Arc::new(config));
    }

    /// Removes a config.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// What a release sees under `names`, merged in their order. Its own manifest's properties go before what the
    /// lattice stores, so that a version that is rolled back sees its own.
    pub(crate) fn merged(&self, release: &Release, names: &[String]) -> Config {
        names.iter().filter_map(|name| self.seen_by(release, name)).fold(Config::default(), Config::overlaid_with)
    }

    /// The configs that a release names and nobody gives.
    pub(crate) fn missing<'a>(&self, release: &'a Release) -> impl Iterator<Item = &'a String> {
        release.config_names().filter(|name| self.seen_by(release, name).is_none())
    }

    fn seen_by<'a>(&'a self, release: &'a Release, name: &str) -> Option<&'a Config> {
        release.app.configs.get(name).or_else(|| self.get(name).map(|stored| &stored.values))
    }
}
