//! What one node has to run: its share of the plan with everything resolved, so that carrying it out needs no choices.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use trellis_manifest::{AppLink, DeliveryError, Limits, Provider, SecretRef, Tech, overlaid};
use trellis_wire::{ComponentKey, ComponentName, Config, Digest, Generation, Link, LinkId, NodeId, Secrets};

use crate::rollout::Form;
use crate::{Release, Rollout, State, Versions};

/// A node's share of the plan.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// The plan that it is a share of.
    pub generation: Generation,
    /// The components that the node holds, in the version that is deployed.
    pub components: BTreeMap<ComponentKey, HeldComponent>,
    /// Those it holds in the other version of a roll-out, beside that or alone.
    pub beside: BTreeMap<ComponentKey, Beside>,
    /// The links that the node applies. Which providers run follows from them.
    pub links: BTreeMap<LinkId, HeldLink>,
}

/// A component in the other version of a roll-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// What is held.
    pub held: HeldComponent,
    /// Its share of the events where the deployed version is held too, in percent; without that it gets all.
    pub share: u8,
}

/// A component that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldComponent {
    /// Its code.
    pub digest: Digest,
    /// The version of its app.
    pub version: String,
    /// How many sandboxes it may have on this node at one time, whichever of its versions runs in them; `None`: as many
    /// as the node allows.
    pub permits: Option<u32>,
    /// What one sandbox may use.
    pub limits: Limits,
    /// Its config, merged.
    pub config: Config,
    /// Where its secrets are.
    pub secret_refs: Vec<SecretRef>,
    /// What the node read there; empty before it did. Left out wherever this is encoded.
    #[serde(skip)]
    pub secrets: Secrets,
    /// Its id, by which queue groups and consumers are named.
    pub id: String,
    /// The links that this version of it has: what may wake it, and what it may call.
    pub links: BTreeSet<LinkId>,
}

/// A link that a node applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLink {
    /// The link as a provider sees it. `link.component` is the component that is woken, or that calls.
    pub link: Link,
    /// Which way it goes, and what is at its other end.
    pub direction: Direction,
    /// Where the secrets of the provider's end are, each name once. What the node reads there is `link.secrets`.
    pub secret_refs: Vec<SecretRef>,
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

impl Assigned {
    /// Whether the node holds a component in some version.
    pub fn holds(&self, key: &ComponentKey) -> bool {
        self.components.contains_key(key) || self.beside.contains_key(key)
    }

    /// A link by its id; else with another config: that has just changed.
    pub fn link(&self, id: &LinkId) -> Option<&HeldLink> {
        self.links.get(id).or_else(|| self.links_of(&id.link()).next())
    }

    /// What is applied under a link, whatever its config.
    pub fn links_of(&self, link: &LinkId) -> impl Iterator<Item = &HeldLink> {
        let from = self.links.range(link.clone()..).map(|(_, held)| held);
        from.take_while(|held| held.link.id.link() == *link)
    }
}

/// The provider at one end of a link.
struct End<'a> {
    provider: &'a Provider,
    /// Whether it is the one that wakes.
    wakes: bool,
}

impl State {
    /// What `node` has to run.
    pub fn assigned(&self, node: NodeId) -> Assigned {
        let mut assigned = Assigned { generation: self.plan.generation(), ..Assigned::default() };
        for (_, versions) in self.apps() {
            for (n, form) in Form::all(versions).enumerate() {
                for (key, held) in self.held_components(form, node) {
                    match versions.rollout() {
                        Some(rollout) if n > 0 => {
                            let share = if rollout.is_last() { 0 } else { rollout.share() };
                            assigned.beside.insert(key, Beside { held, share });
                        }
                        _ => drop(assigned.components.insert(key, held)),
                    }
                }
                let links = form.release.app.links.iter();
                for held in links.filter_map(|link| self.held_link(form, versions, link, node)) {
                    // What is answered here for one version need not be asked for elsewhere for the other.
                    let is_far = matches!(held.direction, Direction::GrantsElsewhere { .. });
                    if !is_far || !assigned.links.contains_key(&held.link.id) {
                        assigned.links.insert(held.link.id.clone(), held);
                    }
                }
            }
        }
        assigned
    }

    /// The ids of a version's links.
    pub fn link_ids(&self, release: &Release) -> BTreeSet<LinkId> {
        release.app.links.iter().map(|link| self.link_of(release, link).0).collect()
    }

    /// The components that `node` holds of one version.
    fn held_components<'a>(
        &'a self,
        form: Form<'a>,
        node: NodeId,
    ) -> impl Iterator<Item = (ComponentKey, HeldComponent)> + 'a {
        let release = form.release;
        let own = release.app.components.iter().filter(|(entry, _)| release.shared(entry).is_none());
        own.filter_map(move |(entry, component)| {
            let key = release.key(entry);
            if !form.holds(self, &key, node) {
                return None;
            }
            let permits = self.holding(&key).and_then(|holding| holding.get(&node)).copied().unwrap_or(Some(0));
            let links = release.app.links.iter().filter(|link| link.source == *entry || link.target == *entry);
            let held = HeldComponent {
                digest: *release.artifacts.get(entry).expect("no release is deployed without its artifacts"),
                version: release.version.clone(),
                permits: permits.into_iter().chain(component.limits.max_in_flight).min(),
                limits: component.limits.clone(),
                config: self.configs.merged(release, &component.configs),
                secret_refs: component.secrets.clone(),
                secrets: Secrets::default(),
                id: component.id.clone(),
                links: links.map(|link| self.link_of(release, link).0).collect(),
            };
            Some((key, held))
        })
    }

    /// A link's id in one version, with its config and what serves its provider's end.
    fn link_of<'a>(&'a self, release: &'a Release, link: &AppLink) -> (LinkId, Config, Option<End<'a>>) {
        let AppLink { name, namespace, package, interfaces, .. } = link;
        let (source, target) = (release.key(&link.source), release.key(&link.target));
        let id = LinkId::new(&source, &target, name, namespace, package, interfaces);
        let merged = |(owner, provider): (&Release, &Provider), names: &[String]| {
            self.configs.merged(owner, &provider.configs).overlaid_with(&self.configs.merged(release, names))
        };
        let ends = (self.served(release, &link.source), self.served(release, &link.target));
        match ends {
            (Some(end), _) => {
                let config = merged(end, &link.source_configs);
                (id, config, Some(End { provider: end.1, wakes: true }))
            }
            (None, Some(end)) => {
                let config = merged(end, &link.target_configs);
                (id.granting(&config), config, Some(End { provider: end.1, wakes: false }))
            }
            (None, None) => {
                let config = self.configs.merged(release, &link.target_configs);
                (id.granting(&config), config, None)
            }
        }
    }

    /// A link as `node` applies it, if it does.
    pub(crate) fn held_link(
        &self,
        form: Form<'_>,
        versions: &Versions,
        link: &AppLink,
        node: NodeId,
    ) -> Option<HeldLink> {
        let (source, target) = (form.release.key(&link.source), form.release.key(&link.target));
        let (id, config, end) = self.link_of(form.release, link);
        let is_held = |key: &ComponentKey| form.holds(self, key, node);
        let runs = |end: &End<'_>, key: &ComponentKey, component: &ComponentKey| {
            if end.provider.scaler.is_some() { is_held(key) } else { is_held(component) }
        };
        let (direction, component, secret_refs) = match end {
            Some(end) if end.wakes => {
                if !self.wakes(form, versions.rollout(), &end, (&source, &target), node) {
                    return None;
                }
                let refs = overlaid_refs(&end.provider.secrets, &link.source_secrets);
                (Direction::Wakes { provider: source, tech: end.provider.tech()? }, target, refs)
            }
            Some(end) => {
                let (here, tech) = (runs(&end, &target, &source), end.provider.tech()?);
                if !here && !is_held(&source) {
                    return None;
                }
                let provider = target;
                let (direction, refs) = match here {
                    true => {
                        let refs = overlaid_refs(&end.provider.secrets, &link.target_secrets);
                        (Direction::Grants { provider, tech }, refs)
                    }
                    false => (Direction::GrantsElsewhere { provider, tech }, Vec::new()),
                };
                (direction, source, refs)
            }
            None if is_held(&source) || is_held(&target) => (Direction::Between { target }, source, Vec::new()),
            None => return None,
        };
        let AppLink { name, namespace, package, interfaces, delivery, .. } = link.clone();
        let (delivery, refused) = match overlaid(delivery.clone(), &config) {
            Ok(overlaid) => (overlaid, None),
            Err(why) => (delivery, Some(why)),
        };
        let secrets = Secrets::default();
        let link = Link { id, component, name, namespace, package, interfaces, config, delivery, secrets };
        Some(HeldLink { link, direction, secret_refs, refused })
    }

    /// Whether a provider wakes a component from `node` under this version's link. In a roll-out it does wherever either
    /// version is held: until all has moved, what comes is for both.
    fn wakes(
        &self,
        form: Form<'_>,
        rollout: Option<&Rollout>,
        end: &End<'_>,
        (provider, component): (&ComponentKey, &ComponentKey),
        node: NodeId,
    ) -> bool {
        let key = if end.provider.scaler.is_some() { provider } else { component };
        let in_some = || match rollout {
            Some(rollout) if rollout.step > 0 => self.holders(key).contains(&node),
            _ => self.holding(key).is_some_and(|holding| holding.contains_key(&node)),
        };
        form.wakes(rollout) && in_some()
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

/// A provider's own secrets with a link's on top: of one name the link's counts.
fn overlaid_refs(own: &[SecretRef], of_link: &[SecretRef]) -> Vec<SecretRef> {
    let replaced = |own: &&SecretRef| of_link.iter().any(|other| other.name == own.name);
    own.iter().filter(|own| !replaced(own)).chain(of_link).cloned().collect()
}
