//! What one node has to run: its share of the plan with everything resolved, so that carrying it out needs no choices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trellis_manifest::{AppLink, DeliveryError, Limits, Provider, Tech, overlaid};
use trellis_wire::{ComponentKey, ComponentName, Config, Digest, Generation, Link, LinkId, NodeId};

use crate::{Release, State};

/// A node's share of the plan.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The plan that it is a share of.
    pub generation: Generation,
    /// The components that the node holds.
    pub components: BTreeMap<ComponentKey, HeldComponent>,
    /// The links that the node applies. Which providers run follows from them.
    pub links: BTreeMap<LinkId, HeldLink>,
}

/// A component that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldComponent {
    /// Its code.
    pub digest: Digest,
    /// The version of its app.
    pub version: String,
    /// How many sandboxes it may have on this node at one time; `None`: as many as the node allows.
    pub permits: Option<u32>,
    /// What one sandbox may use.
    pub limits: Limits,
    /// Its config, merged.
    pub config: Config,
    /// Its id, by which queue groups and consumers are named.
    pub id: String,
}

/// A link that a node applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLink {
    /// The link as a provider sees it. `link.component` is the component that is woken, or that calls.
    pub link: Link,
    /// Which way it goes, and what is at its other end.
    pub direction: Direction,
    /// What is wrong with a key `delivery.*` of its config, which only shows once all config is merged. Such a link is
    /// not applied.
    pub refused: Option<DeliveryError>,
}

/// Which way a link goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The provider, on this node, wakes the component, which may be held elsewhere.
    Wakes {
        /// The provider.
        provider: ComponentKey,
        /// What serves it.
        tech: Tech,
    },
    /// The provider, on this node, answers the component, which may be held elsewhere.
    Grants {
        /// The provider.
        provider: ComponentKey,
        /// What serves it.
        tech: Tech,
    },
    /// The component is held here and its provider is not: calls go to a node of [`State::provider_nodes`].
    GrantsElsewhere {
        /// The provider.
        provider: ComponentKey,
        /// What serves it.
        tech: Tech,
    },
    /// The component calls another component. Applied where either is held: the caller needs it to find the other, the
    /// other to check the caller's right.
    Between {
        /// The component that is called.
        target: ComponentKey,
    },
}

impl State {
    /// What `node` has to run.
    pub fn assigned(&self, node: NodeId) -> Assigned {
        let mut assigned = Assigned { generation: self.plan.generation(), ..Assigned::default() };
        for release in self.releases() {
            for (entry, component) in release.app.components.iter().filter(|(entry, _)| release.shared(entry).is_none())
            {
                let key = release.key(entry);
                let Some(&permits) = self.holding(&key).and_then(|holding| holding.get(&node)) else { continue };
                let permits = permits.into_iter().chain(component.limits.max_in_flight).min();
                let held = HeldComponent {
                    digest: *release.artifacts.get(entry).expect("no release is deployed without its artifacts"),
                    version: release.version.clone(),
                    permits,
                    limits: component.limits.clone(),
                    config: self.configs.merged(release, &component.configs),
                    id: component.id.clone(),
                };
                assigned.components.insert(key, held);
            }
            let links = release.app.links.iter().filter_map(|link| self.held_link(release, link, node));
            assigned.links.extend(links.map(|held| (held.link.id.clone(), held)));
        }
        assigned
    }

    /// A link as `node` applies it, if it does.
    fn held_link(&self, release: &Release, link: &AppLink, node: NodeId) -> Option<HeldLink> {
        let (source, target) = (release.key(&link.source), release.key(&link.target));
        let is_held = |key: &ComponentKey| self.holding(key).is_some_and(|holding| holding.contains_key(&node));
        let runs = |provider: &Provider, key: &ComponentKey, component: &ComponentKey| {
            if provider.scaler.is_some() { is_held(key) } else { is_held(component) }
        };
        let (direction, component, end) = match (self.served(release, &link.source), self.served(release, &link.target))
        {
            (Some((owner, provider)), None) if runs(provider, &source, &target) => {
                let tech = provider.tech()?;
                (
                    Direction::Wakes { provider: source.clone(), tech },
                    &target,
                    Some((owner, provider, &link.source_configs)),
                )
            }
            (None, Some((owner, provider))) if runs(provider, &target, &source) => {
                let tech = provider.tech()?;
                (
                    Direction::Grants { provider: target.clone(), tech },
                    &source,
                    Some((owner, provider, &link.target_configs)),
                )
            }
            (None, Some((owner, provider))) if is_held(&source) => {
                let (provider_key, tech) = (target.clone(), provider.tech()?);
                let direction = Direction::GrantsElsewhere { provider: provider_key, tech };
                (direction, &source, Some((owner, provider, &link.target_configs)))
            }
            (None, None) if is_held(&source) || is_held(&target) => {
                (Direction::Between { target: target.clone() }, &source, None)
            }
            _ => return None,
        };
        let config = match end {
            Some((owner, provider, names)) => {
                let own = self.configs.merged(owner, &provider.configs);
                own.overlaid_with(&self.configs.merged(release, names))
            }
            None => self.configs.merged(release, &link.target_configs),
        };
        let AppLink { name, namespace, package, interfaces, delivery, .. } = link.clone();
        let id = LinkId::new(&source, &target, &name, &namespace, &package, &interfaces);
        let (delivery, refused) = match overlaid(delivery.clone(), &config) {
            Ok(overlaid) => (overlaid, None),
            Err(why) => (delivery, Some(why)),
        };
        let component = component.clone();
        let link = Link { id, component, name, namespace, package, interfaces, config, delivery };
        Some(HeldLink { link, direction, refused })
    }

    /// The provider that an entry stands for, with the release that configures it. `None`: it is a component.
    pub(crate) fn served<'a>(
        &'a self,
        release: &'a Release,
        entry: &ComponentName,
    ) -> Option<(&'a Release, &'a Provider)> {
        let provider = release.app.providers.get(entry)?;
        match release.shared(entry) {
            None => Some((release, provider)),
            Some(shared) => self.provider(&shared).map(|(release, provider)| (&**release, provider)),
        }
    }
}
