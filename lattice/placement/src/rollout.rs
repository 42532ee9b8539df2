//! Roll-outs: how one version takes another's place, step by step, and how it is taken back.
//!
//! A permit is a component's, whichever of its versions runs by it: so the two share their pool, and at no time are there
//! more permits than `instances`. What moves with the steps is the share of events that the newer version gets where a
//! node holds both ([`SHARES`](crate::SHARES)), and, where the two ask for different nodes or numbers, the permits between
//! those nodes. The plan keeps beside the permits who holds the newer version ([`Plan::staged`](crate::Plan::staged)).
//!
//! When to take a step is decided by [`Watch`](crate::Watch) and proposed by the leader; only its steps are in the log.

use std::sync::Arc;

use trellis_wire::{AppName, ComponentKey, ComponentName, Digest, NodeId};

use crate::demand::{Demand, Planned};
use crate::level::ENDINGS_LEVEL;
use crate::versions::{BY_HAND, End, Ended, Endings, Version};
use crate::{Applied, LAST_STEP, Refusal, Release, Rollout, State, Versions};

impl State {
    /// Why a version of an app was taken back, if it was and has not been deployed again since. What failed under it is
    /// not the failure of what it was to do.
    pub fn rolled_back(&self, app: &AppName, version: &str) -> Option<&str> {
        let versions = self.app(app)?;
        taken_back(versions, versions.get(version)?)
    }

    /// The version of a component that is rolled out or still watched, if this may be its code. `None`: any may be. Where a
    /// version changes no code, what its predecessor runs may be it as well.
    pub fn on_trial(&self, component: &ComponentKey, code: Option<Digest>) -> Option<&str> {
        let newer = self.app(&component.app)?.newer()?;
        let its = *newer.artifacts.get(&component.name)?;
        code.is_none_or(|code| code == its).then_some(newer.version.as_str())
    }

    /// What is written down of versions: what all members know how to.
    fn endings(&self) -> Endings {
        if self.everyone_knows(ENDINGS_LEVEL) { Endings::Told } else { Endings::Blurred }
    }

    /// Begins to roll a release out beside what runs.
    pub(crate) fn begin(&mut self, release: &Arc<Release>, at_ms: u64) {
        let (app, endings) = (&release.app.name, self.endings());
        self.plan.unstage(app);
        self.versions_mut(app).begin(release, at_ms, endings);
        self.rolling.insert(app.clone());
    }

    pub(crate) fn advance(&mut self, app: &AppName, version: &str, step: u8, at_ms: u64) -> Result<Applied, Refusal> {
        let versions = self.app(app).ok_or_else(|| Refusal::UnknownApp(app.clone()))?;
        let is_next = is_of(versions, version) && versions.rollout().is_some_and(|rollout| rollout.step + 1 == step);
        if !is_next {
            return Ok(Applied::Unchanged);
        }
        let endings = self.endings();
        self.versions_mut(app).advance(at_ms, endings);
        if step == LAST_STEP {
            self.own_configs(app);
            self.listen_as_running(app);
            // What the newer version shares may be what others wait for.
            self.start_waiting(at_ms);
        } else if step > LAST_STEP {
            self.rolled(app);
        }
        Ok(Applied::Done)
    }

    pub(crate) fn give_up(&mut self, app: &AppName, version: &str, why: &str, at_ms: u64) -> Result<Applied, Refusal> {
        let versions = self.app(app).ok_or_else(|| Refusal::UnknownApp(app.clone()))?;
        if !is_of(versions, version) {
            return Ok(Applied::Unchanged);
        }
        self.take_back(app, at_ms, End::RolledBack(why.into()));
        Ok(Applied::Done)
    }

    /// Back to `version`, or to what ran before. What waits is not waited for any more; what is on its way or watched is
    /// taken back at once; a version further back is rolled out as any other.
    pub(crate) fn roll_back(&mut self, app: &AppName, version: Option<&str>, at_ms: u64) -> Result<Applied, Refusal> {
        let versions = self.app(app).ok_or_else(|| Refusal::UnknownApp(app.clone()))?;
        if version.is_none() && versions.next().is_some() && versions.deployed().is_some() {
            self.versions_mut(app).forget_next();
            self.waiting.remove(app);
            return Ok(Applied::Done);
        }
        let older = versions.older().map(|older| older.version.as_str());
        if older.is_some() && version.is_none_or(|version| Some(version) == older) {
            self.take_back(app, at_ms, End::RolledBack(BY_HAND.into()));
            return Ok(Applied::Done);
        }
        let to = match version {
            Some(version) => versions.get(version).map(|kept| kept.release.clone()),
            None => versions.previous(self.endings()).cloned(),
        };
        let to = to.ok_or_else(|| Refusal::NoSuchVersion { app: app.clone(), version: version.map(str::to_owned) })?;
        let applied = self.deploy(&to, at_ms)?;
        let is_on_its_way = |versions: &Versions| is_of(versions, &to.version) && !versions.is_deployed(&to.version);
        if self.app(app).is_some_and(is_on_its_way) && self.endings() == Endings::Told {
            self.versions_mut(app).leave(at_ms);
        }
        Ok(applied)
    }

    /// Ends a roll-out in favour of what was before.
    pub(crate) fn take_back(&mut self, app: &AppName, at_ms: u64, how: End) -> bool {
        let Some(rollout) = self.app(app).and_then(Versions::rollout) else { return false };
        let was_last = rollout.is_last();
        let endings = self.endings();
        self.versions_mut(app).give_up(at_ms, how, endings);
        if was_last {
            self.own_configs(app);
        }
        self.rolled(app);
        self.start_waiting(at_ms);
        true
    }

    /// Nothing is on its way any more.
    fn rolled(&mut self, app: &AppName) {
        self.plan.unstage(app);
        self.rolling.remove(app);
        self.listen_as_running(app);
    }

    pub(crate) fn versions_mut(&mut self, app: &AppName) -> &mut Versions {
        Arc::make_mut(self.apps.entry(app.clone()).or_default())
    }
}

/// Why a version was taken back, if it was. What is left by hand is so once another version has its place.
fn taken_back<'a>(versions: &Versions, kept: &'a Version) -> Option<&'a str> {
    match &kept.ended {
        Some(Ended { how: End::RolledBack(why), .. }) if !versions.is_deployed(&kept.release.version) => Some(why),
        _ => None,
    }
}

/// Whether the version is what is rolled out, or was and is watched.
fn is_of(versions: &Versions, version: &str) -> bool {
    versions.newer().is_some_and(|newer| newer.version == version)
}

/// One version of an app as nodes hold it.
#[derive(Clone, Copy)]
pub(crate) struct Form<'a> {
    pub(crate) release: &'a Arc<Release>,
    held: Held,
}

/// Who holds a version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Whoever has permits: there is no other version.
    Alone,
    /// Whoever has permits and fits what it asks for.
    Older,
    /// Whoever it is staged on.
    Newer,
}

impl<'a> Form<'a> {
    /// The versions that nodes hold, the deployed one first.
    pub(crate) fn all(versions: &'a Versions) -> impl Iterator<Item = Self> {
        let (deployed, other) = match versions.rollout() {
            None => (Held::Alone, None),
            Some(rollout) if rollout.is_last() => (Held::Newer, Some((&rollout.other, Held::Older))),
            Some(rollout) => (Held::Older, Some((&rollout.other, Held::Newer))),
        };
        let deployed = versions.deployed().map(|release| (release, deployed));
        deployed.into_iter().chain(other).map(|(release, held)| Self { release, held })
    }

    /// Whether `node` is to hold `key` in this version. Another app's component is held in whichever it has.
    pub(crate) fn holds(&self, state: &State, key: &ComponentKey, node: NodeId) -> bool {
        let has_permits = || state.holding(key).is_some_and(|holding| holding.contains_key(&node));
        let is_staged = || state.plan.staged(key).is_some_and(|nodes| nodes.contains(&node));
        if key.app != self.release.app.name {
            return has_permits() || is_staged();
        }
        match self.held {
            Held::Alone => has_permits(),
            Held::Newer => is_staged(),
            Held::Older => has_permits() && self.suits(state, key, node),
        }
    }

    /// Whether this is the version whose links wake components now, as soon as the newer one has a share of the events.
    pub(crate) fn wakes(&self, rollout: Option<&Rollout>) -> bool {
        match self.held {
            Held::Alone => true,
            Held::Older => rollout.is_some_and(|rollout| rollout.step == 0),
            Held::Newer => rollout.is_some_and(|rollout| rollout.step > 0),
        }
    }

    fn suits(&self, state: &State, key: &ComponentKey, node: NodeId) -> bool {
        let Some((demand, sandboxes)) = Demand::of_entry(self.release, &key.name) else { return false };
        let Some(node) = state.node(node) else { return false };
        demand.portions().iter().any(|portion| node.suits(portion.requirements, sandboxes).is_ok())
    }
}

/// What the plan is to fulfil for one component or provider.
pub(crate) struct Want<'a> {
    pub(crate) key: ComponentKey,
    /// Who is to have permits. `None`: nobody yet.
    pub(crate) demand: Option<Demand<'a>>,
    /// Who is to hold the newer version of a roll-out.
    pub(crate) newer: Option<Demand<'a>>,
    /// Whether it needs sandboxes.
    pub(crate) sandboxes: bool,
}

impl<'a> Want<'a> {
    /// Everything of an app that is planned.
    pub(crate) fn all(versions: &'a Versions) -> impl Iterator<Item = Self> {
        let newer = versions.newer();
        let entries = versions.running().flat_map(|release| {
            let entries = release.app.components.keys().chain(release.app.providers.keys());
            entries.map(move |entry| (release, entry))
        });
        // What both versions have comes with the newer.
        let once = entries.filter(move |(release, entry)| {
            let is_older = newer.is_some_and(|newer| !Arc::ptr_eq(newer, release));
            !is_older || newer.is_none_or(|newer| !newer.has(entry))
        });
        once.filter_map(move |(release, entry)| {
            let key = ComponentKey { app: release.app.name.clone(), name: entry.clone() };
            Self::of(versions, key)
        })
    }

    /// Whether someone is to have permits for an entry.
    pub(crate) fn is_for_permits(versions: &Versions, entry: &ComponentName) -> bool {
        let has = |release: &Arc<Release>| Planned::of(release, entry).is_some();
        match versions.rollout() {
            None => versions.deployed().is_some_and(has),
            Some(rollout) => versions.older().is_some_and(has) || rollout.step > 0 && versions.newer().is_some_and(has),
        }
    }

    /// The same for one entry.
    pub(crate) fn of(versions: &'a Versions, key: ComponentKey) -> Option<Self> {
        let Some(rollout) = versions.rollout() else {
            let (demand, sandboxes) = Demand::of_entry(versions.deployed()?, &key.name)?;
            return Some(Self { key, demand: Some(demand), newer: None, sandboxes });
        };
        let older = versions.older().and_then(|older| Demand::of_entry(older, &key.name));
        let newer = versions.newer().and_then(|newer| Demand::of_entry(newer, &key.name));
        let sandboxes = newer.as_ref().or(older.as_ref())?.1;
        let staged = versions.newer().and_then(|newer| Demand::of_entry(newer, &key.name)).map(|(demand, _)| demand);
        let demand = match (older, newer) {
            (Some((older, _)), Some((newer, _))) => Some(older.giving_way_to(newer, rollout.share())),
            (Some((older, _)), None) => Some(older),
            (None, newer) => newer.map(|(newer, _)| newer).filter(|_| rollout.step > 0),
        };
        Some(Self { key, demand, newer: staged, sandboxes })
    }
}
