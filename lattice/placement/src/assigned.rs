//! What one node has to run: its share of the plan with everything resolved, so that carrying it out needs no choices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_manifest::{AppLink, DeliveryError, Limits, Provider, SecretRef, Tech, overlaid};
use trellis_wire::{
    AppName, ComponentKey, ComponentName, Config, DEAD_BYTES_MAX, Delivery, Digest, Generation, Link, LinkId, NodeId,
    Part, Secrets,
};

use crate::changed::changed_apps;
use crate::home::{Seat, unkept_order};
use crate::pairs::{is_same, pairs};
use crate::rollout::Form;
use crate::{Release, Rollout, State, Versions};

/// A node's share of the plan. A clone shares what belongs to one app, so that what changed is found by looking at
/// pointers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The plan that it is a share of.
    pub generation: Generation,
    /// What belongs to one app alone, where there is anything.
    apps: BTreeMap<AppName, Arc<AppShare>>,
    /// The links that lead to or from another app than the one whose manifest has them.
    crossing: Arc<AppShare>,
    /// The apps that use what others share: their links follow from the others' state, too.
    borrowers: Arc<BTreeSet<AppName>>,
}

/// What a node has to run of one app.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct AppShare {
    /// The components that the node holds, in the version that is deployed.
    pub components: BTreeMap<ComponentKey, HeldComponent>,
    /// Those it holds in the other version of a roll-out, beside that or alone.
    pub beside: BTreeMap<ComponentKey, Beside>,
    /// The links that the node applies. Which providers run follows from them.
    pub links: BTreeMap<LinkId, Arc<HeldLink>>,
    /// Those of the app's manifest that lead to or from another app.
    outward: BTreeMap<LinkId, Arc<HeldLink>>,
}

/// The share of an app of which a node has nothing.
static NOTHING: AppShare =
    AppShare { components: BTreeMap::new(), beside: BTreeMap::new(), links: BTreeMap::new(), outward: BTreeMap::new() };

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
    /// A component that the node holds, in the version that is deployed.
    pub fn component(&self, key: &ComponentKey) -> Option<&HeldComponent> {
        self.apps.get(&key.app)?.components.get(key)
    }

    /// The same in the other version of a roll-out.
    pub fn beside(&self, key: &ComponentKey) -> Option<&Beside> {
        self.apps.get(&key.app)?.beside.get(key)
    }

    /// Whether the node holds a component in some version.
    pub fn holds(&self, key: &ComponentKey) -> bool {
        self.component(key).is_some() || self.beside(key).is_some()
    }

    /// A link by its id, config included.
    pub fn exact_link(&self, id: &LinkId) -> Option<&Arc<HeldLink>> {
        self.links_in(id).find_map(|links| links.get(id))
    }

    /// A link by its id; else with another config: that has just changed.
    pub fn link(&self, id: &LinkId) -> Option<&Arc<HeldLink>> {
        self.exact_link(id).or_else(|| self.links_of(&id.link()).next())
    }

    /// What is applied under a link, whatever its config.
    pub fn links_of(&self, link: &LinkId) -> impl Iterator<Item = &Arc<HeldLink>> {
        self.links_in(link).flat_map(|links| {
            let (link, from) = (link.clone(), links.range(link.clone()..).map(|(_, held)| held));
            from.take_while(move |held| held.link.id.link() == link)
        })
    }

    /// Every component that the node holds, in the version that is deployed.
    pub fn components(&self) -> impl Iterator<Item = (&ComponentKey, &HeldComponent)> {
        self.shares().flat_map(|share| &share.components)
    }

    /// Those it holds in the other version of a roll-out.
    pub fn all_beside(&self) -> impl Iterator<Item = (&ComponentKey, &Beside)> {
        self.shares().flat_map(|share| &share.beside)
    }

    /// Every link that the node applies.
    pub fn links(&self) -> impl Iterator<Item = &Arc<HeldLink>> {
        self.shares().flat_map(|share| share.links.values())
    }

    /// One section of it.
    pub fn section(&self, section: &Section) -> &AppShare {
        match section {
            Section::App(app) => self.apps.get(app).map_or(&NOTHING, |share| share),
            Section::Crossing => &self.crossing,
        }
    }

    /// The sections of `self` and `other` that are not one and the same in memory, though they may be equal.
    pub fn apart<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (Section, &'a AppShare, &'a AppShare)> {
        let apps = pairs(&self.apps, &other.apps).filter(|(_, one, other)| !is_same(*one, *other));
        let of = |share: Option<&'a Arc<AppShare>>| share.map_or(&NOTHING, |share| &**share);
        let apps = apps.map(move |(app, one, other)| (Section::App(app.clone()), of(one), of(other)));
        let is_crossing = !Arc::ptr_eq(&self.crossing, &other.crossing);
        apps.chain(is_crossing.then(|| (Section::Crossing, &*self.crossing, &*other.crossing)))
    }

    /// Changes what is in a section.
    pub fn change<T>(&mut self, section: Section, change: impl FnOnce(&mut AppShare) -> T) -> T {
        let app = match section {
            Section::Crossing => return change(Arc::make_mut(&mut self.crossing)),
            Section::App(app) => app,
        };
        let share = Arc::make_mut(self.apps.entry(app.clone()).or_default());
        let changed = change(share);
        if *share == NOTHING {
            self.apps.remove(&app);
        }
        changed
    }

    /// Takes over the sections of `other` that are equal, so that [`Assigned::apart`] need not look at them any more.
    pub fn meet(&mut self, other: &Self) {
        let equal = self.apart(other).filter(|(_, one, other)| one.runs_as(other)).map(|(section, ..)| section);
        for section in equal.collect::<Vec<_>>() {
            self.take(section, other);
        }
    }

    /// Takes over a section of `other`.
    pub fn take(&mut self, section: Section, other: &Self) {
        let Section::App(app) = section else {
            self.crossing = other.crossing.clone();
            return;
        };
        match other.apps.get(&app) {
            Some(share) => drop(self.apps.insert(app, share.clone())),
            None => drop(self.apps.remove(&app)),
        }
    }

    /// The section that has a link.
    pub fn section_of(&self, id: &LinkId) -> Section {
        let own = self.own_section(id).filter(|(_, share)| share.links.contains_key(id));
        own.map_or(Section::Crossing, |(app, _)| Section::App(app.clone()))
    }

    /// The section of the app that both ends of a link belong to.
    fn own_section(&self, id: &LinkId) -> Option<(&AppName, &Arc<AppShare>)> {
        let (app, _) = id.apps().filter(|(source, target)| source == target)?;
        self.apps.get_key_value(&app.parse().ok()?)
    }

    /// Where a link may be: with the app of both its ends, else among those that another app's manifest has.
    fn links_in(&self, id: &LinkId) -> impl Iterator<Item = &BTreeMap<LinkId, Arc<HeldLink>>> {
        let own = self.own_section(id).map(|(_, share)| &share.links);
        own.into_iter().chain([&self.crossing.links])
    }

    fn shares(&self) -> impl Iterator<Item = &AppShare> {
        self.apps.values().chain([&self.crossing]).map(|share| &**share)
    }
}

/// A section of a share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What belongs to this app alone.
    App(AppName),
    /// The links that lead to or from another app than the one whose manifest has them. No other section has one of the
    /// same id.
    Crossing,
}

impl Section {
    /// The section that a component is in.
    pub fn of(key: &ComponentKey) -> Self {
        Self::App(key.app.clone())
    }
}

impl AppShare {
    /// Whether it is to run just what another is.
    fn runs_as(&self, other: &Self) -> bool {
        (&self.components, &self.beside, &self.links) == (&other.components, &other.beside, &other.links)
    }
}

/// The provider at one end of a link.
pub(crate) struct End<'a> {
    provider: &'a Provider,
    /// Whether it is the one that wakes.
    wakes: bool,
}

impl State {
    /// What `node` has to run.
    pub fn assigned(&self, node: NodeId) -> Assigned {
        self.assigned_since(&Self::default(), node, &Assigned::default())
    }

    /// The same, going on from what it had to run by a former state: only where something changed is it worked out anew.
    pub fn assigned_since(&self, before: &Self, node: NodeId, share: &Assigned) -> Assigned {
        let mut next = Assigned { generation: self.plan.generation(), ..share.clone() };
        let mut crossing = false;
        for app in changed_apps(before, self, node, &share.borrowers) {
            let versions = self.app(&app);
            let borrowed = next.borrowers.contains(&app);
            let borrows = versions.is_some_and(|versions| versions.running().any(|one| one.uses().next().is_some()));
            crossing |= borrows || borrowed;
            if borrows != borrowed {
                let borrowers = Arc::make_mut(&mut next.borrowers);
                if borrows {
                    borrowers.insert(app.clone())
                } else {
                    borrowers.remove(&app)
                };
            }
            let now = versions.map(|versions| self.app_share(versions, node)).unwrap_or_default();
            let former = next.apps.get(&app).map_or(&NOTHING, |share| share);
            if *former == now {
                continue;
            }
            if now == NOTHING { drop(next.apps.remove(&app)) } else { drop(next.apps.insert(app, Arc::new(now))) }
        }
        if crossing {
            let links = crossing_links(&next);
            if links != next.crossing.links {
                next.crossing = Arc::new(AppShare { links, ..AppShare::default() });
            }
        }
        next
    }

    /// What `node` has to run of one app.
    fn app_share(&self, versions: &Versions, node: NodeId) -> AppShare {
        let mut share = AppShare::default();
        for (n, form) in Form::all(versions).enumerate() {
            let app = form.release.app.name.as_str();
            for (key, held) in self.held_components(form, node) {
                match versions.rollout() {
                    Some(rollout) if n > 0 => {
                        let of_events = if rollout.is_last() { 0 } else { rollout.share() };
                        share.beside.insert(key, Beside { held, share: of_events });
                    }
                    _ => drop(share.components.insert(key, held)),
                }
            }
            let links = form.release.app.links.iter();
            for held in links.filter_map(|link| self.held_link(form, versions, link, node)) {
                let is_own = held.link.id.apps() == Some((app, app));
                let links = if is_own { &mut share.links } else { &mut share.outward };
                put(links, held.link.id.clone(), Arc::new(held));
            }
        }
        share
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
    pub(crate) fn link_of<'a>(&'a self, release: &'a Release, link: &AppLink) -> (LinkId, Config, Option<End<'a>>) {
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
        let (delivery, mut refused) = match overlaid(link.delivery.clone(), &config) {
            Ok(overlaid) => (overlaid, None),
            Err(why) => (link.delivery.clone(), Some(why)),
        };
        let is_held = |key: &ComponentKey| form.holds(self, key, node);
        let runs = |end: &End<'_>, key: &ComponentKey, component: &ComponentKey| match self.seat(end.provider) {
            Seat::Planned => is_held(key),
            Seat::Home(home) => home == Some(node),
            Seat::Beside => is_held(component),
        };
        let mut part = Part::default();
        let (direction, component, secret_refs) = match end {
            Some(end) if end.wakes => {
                let wakes = |seat| self.wakes(form, versions.rollout(), seat, (&source, &target), node);
                part = self.part(end.provider, &delivery, wakes)?;
                refused = refused.or_else(|| unkept_order(end.provider, &delivery));
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
        let AppLink { name, namespace, package, interfaces, .. } = link.clone();
        let delivery = match &direction {
            // Other links go on as they are when the app has a queue more.
            Direction::Wakes { tech, .. } if tech.has_queue(&config, &delivery) => {
                let dead_bytes_max = DEAD_BYTES_MAX / self.queues(form.release).max(1);
                Delivery { dead_bytes_max, ..delivery }
            }
            _ => delivery,
        };
        let secrets = Secrets::default();
        let link = Link { id, component, name, namespace, package, interfaces, config, delivery, secrets, part };
        Some(HeldLink { link, direction, secret_refs, refused })
    }

    /// The links of a version that may leave dead letters, from queues and from timers, each with the component that it wakes.
    pub fn links_with_letters<'a>(&'a self, release: &'a Release) -> impl Iterator<Item = (LinkId, ComponentKey)> + 'a {
        release.app.links.iter().filter_map(|link| {
            let (id, config, Some(End { provider, wakes: true })) = self.link_of(release, link) else { return None };
            let tech = provider.tech()?;
            (tech == Tech::Timer || has_queue(tech, &config, link)).then(|| (id, release.key(&link.target)))
        })
    }

    /// How many links of a version have a queue, and dead letters beside it.
    fn queues(&self, release: &Release) -> u64 {
        let has_queue = |link: &&AppLink| match self.link_of(release, link) {
            (_, config, Some(End { provider, wakes: true })) => {
                provider.tech().is_some_and(|tech| has_queue(tech, &config, link))
            }
            _ => false,
        };
        release.app.links.iter().filter(has_queue).map(|_| 1).sum()
    }

    /// Whether a provider wakes a component from `node` under this version's link. In a roll-out it does wherever either
    /// version is held: until all has moved, what comes is for both.
    fn wakes(
        &self,
        form: Form<'_>,
        rollout: Option<&Rollout>,
        seat: Seat,
        (provider, component): (&ComponentKey, &ComponentKey),
        node: NodeId,
    ) -> bool {
        let in_some = |key| match rollout {
            Some(rollout) if rollout.step > 0 => self.holders(key).contains(&node),
            _ => self.holding(key).is_some_and(|holding| holding.contains_key(&node)),
        };
        let runs = || match seat {
            Seat::Planned => in_some(provider),
            Seat::Home(home) => home == Some(node),
            Seat::Beside => in_some(component),
        };
        form.wakes(rollout) && runs()
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

fn has_queue(tech: Tech, config: &Config, link: &AppLink) -> bool {
    let policy = overlaid(link.delivery.clone(), config);
    tech.has_queue(config, policy.as_ref().unwrap_or(&link.delivery))
}

/// The links that lead to or from another app than their manifest's, each once.
fn crossing_links(assigned: &Assigned) -> BTreeMap<LinkId, Arc<HeldLink>> {
    let mut links = BTreeMap::new();
    let borrowers = assigned.borrowers.iter().filter_map(|app| assigned.apps.get(app));
    for (id, held) in borrowers.flat_map(|share| &share.outward) {
        let is_own = assigned.own_section(id).is_some_and(|(_, share)| share.links.contains_key(id));
        if !is_own {
            put(&mut links, id.clone(), held.clone());
        }
    }
    links
}

/// Puts a link in the place of what was there under its id. What is answered here for one version, or by one app's
/// manifest, need not be asked for elsewhere for the other.
fn put(links: &mut BTreeMap<LinkId, Arc<HeldLink>>, id: LinkId, held: Arc<HeldLink>) {
    let is_far = matches!(held.direction, Direction::GrantsElsewhere { .. });
    if !is_far || !links.contains_key(&id) {
        links.insert(id, held);
    }
}

/// A provider's own secrets with a link's on top: of one name the link's counts.
fn overlaid_refs(own: &[SecretRef], of_link: &[SecretRef]) -> Vec<SecretRef> {
    let replaced = |own: &&SecretRef| of_link.iter().any(|other| other.name == own.name);
    own.iter().filter(|own| !replaced(own)).chain(of_link).cloned().collect()
}
