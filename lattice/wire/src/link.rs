//! A link as a provider sees it: which component it may wake or must answer, and how it is configured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ComponentKey, Config, Delivery, LinkName, Secret, Secrets};

/// Between a link's id and what names its config. No name has control characters.
const GRANT_MARK: char = '\u{1f}';

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

    /// The id of what the link grants with this config: another config is another grant, and two versions of an app may
    /// have one each at one time.
    pub fn granting(&self, config: &Config) -> Self {
        if config.iter().next().is_none() {
            return self.clone();
        }
        // FNV-1a, 64 bits; keys and values have no end of their own.
        let bytes = config.iter().flat_map(|(key, value)| key.bytes().chain([0]).chain(value.bytes()).chain([0]));
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(format!("{}{GRANT_MARK}{hash:016x}", self.0))
    }

    /// What the link leads to, by its name in the app.
    pub fn target(&self) -> Option<ComponentKey> {
        self.0.split_once(" -> ")?.1.split(' ').next()?.parse().ok()
    }

    /// The apps that the link's source and target belong to. No app's name has a slash or a space.
    pub fn apps(&self) -> Option<(&str, &str)> {
        let mut parts = self.0.split('/');
        let (source, between) = (parts.next()?, parts.next()?);
        Some((source, between.rsplit_once(" -> ")?.1))
    }

    /// The link that this is a grant of, or the same.
    pub fn link(&self) -> Self {
        Self(self.0.split(GRANT_MARK).next().unwrap_or_default().into())
    }
}

/// For people: without what names the config.
impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.split(GRANT_MARK).next().unwrap_or_default())
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
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
    /// The provider's own secrets with the link's on top, read on this node. They are left out wherever a link is encoded.
    #[serde(skip)]
    pub secrets: Secrets,
    /// What this node takes of its messages. It follows from what every node knows, and is left out as the secrets are.
    #[serde(skip)]
    pub part: Part,
}

/// What a node takes of the messages of a link that wakes a component, where their source would divide them among nodes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its part, as each node does that applies the link.
    #[default]
    Own,
    /// All of them: no other node takes any.
    All,
    /// Nothing that comes, since another node takes all. What it stored of its own part before is handled here.
    Stored,
}

impl Link {
    /// What is to be kept to oneself: the secret of that name, else the config value, as manifests for wasmCloud have it. What
    /// [`held`](crate::credentials::held) calls `Plain` is refused where config comes into the lattice, and found here only in
    /// what it kept before.
    pub fn secret(&self, key: &str) -> Option<Secret> {
        self.secrets.get(key).cloned().or_else(|| self.config.get(key).map(Secret::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_named_by_its_config_and_shown_by_its_link() {
        let (api, store) = ("shop/api".parse().unwrap(), "shop/store".parse().unwrap());
        let link = LinkId::new(&api, &store, &LinkName::default(), "wasi", "keyvalue", &["store".into()]);
        assert_eq!(link.target(), Some(store));
        assert_eq!(link.apps(), Some(("shop", "shop")));
        let odd = LinkId::new(&"a/b -> c".parse().unwrap(), &api, &"x -> y/z".parse().unwrap(), "n -> m/o", "p", &[]);
        assert_eq!(odd.apps(), Some(("a", "shop")));
        let of = |pairs: &[(&str, &str)]| link.granting(&pairs.iter().copied().collect());
        assert_eq!(of(&[]), link);
        assert_eq!(of(&[("bucket", "one")]), of(&[("bucket", "one")]));
        assert_ne!(of(&[("bucket", "one")]), of(&[("bucket", "two")]));
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
        assert_eq!(of(&[("bucket", "one")]).link(), link);
        assert_eq!(of(&[("bucket", "one")]).to_string(), "shop/api -> shop/store wasi:keyvalue/store default");
    }
}
