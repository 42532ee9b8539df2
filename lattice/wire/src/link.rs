//! A link as a provider sees it: which component it may wake or must answer, and how it is configured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComponentKey, Config, Delivery, LinkName};

/// Names one link in the lattice, for as long as source, target, name and interfaces stay the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LinkId(String);

impl LinkId {
    /// Makes the id of the link from `source` to `target`.
    pub fn new(
        source: &ComponentKey,
        target: &ComponentKey,
        name: &LinkName,
        namespace: &str,
        package: &str,
        interfaces: &[String],
    ) -> Self {
        Self(format!("{source} -> {target} {namespace}:{package}/{} {name}", interfaces.join(",")))
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A link between a provider and a component, with the configuration of the provider's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Which link this is.
    pub id: LinkId,
    /// The component at the other end.
    pub component: ComponentKey,
    /// The link's name: what a guest passes to choose between two links of one interface.
    pub name: LinkName,
    /// WIT namespace, such as `wasi`.
    pub namespace: String,
    /// WIT package, such as `keyvalue`.
    pub package: String,
    /// WIT interfaces of that package, such as `store`.
    pub interfaces: Vec<String>,
    /// The provider's own configuration with the link's on top.
    pub config: Config,
    /// How messages of it are delivered, with the keys `delivery.*` of the config laid on top.
    pub delivery: Delivery,
}
