//! The versions of one app: those that are kept, the one that is deployed, and the one that is on its way.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Listener, Release};

/// How many versions of an app are kept.
pub const HISTORY_MAX: usize = 10;

/// Which share of the events goes to the newer version at each step of a roll-out, in percent, where a node holds both.
/// At the first nothing does: it is made ready. At the last everything does, and the older version is only kept ready
/// for as long as the newer one is watched.
pub const SHARES: [u8; 4] = [0, 10, 50, 100];

/// The last step of a roll-out; the one after it ends it.
pub const LAST_STEP: u8 = SHARES.len() as u8 - 1;

/// Why a version was rolled back that a person had enough of.
pub(crate) const BY_HAND: &str = "by hand";

/// A version that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// What it deploys.
    pub release: Arc<Release>,
    /// When it was first put, in milliseconds since 1970.
    pub put_ms: u64,
    /// When all events went to it last, in milliseconds since 1970. `None`: they never did, or not since it began to be
    /// rolled out again. In a lattice with older builds: when that began.
    pub deployed_ms: Option<u64>,
    /// How that ended. `None`: it has not, or never began.
    pub ended: Option<Ended>,
}

/// How a version's time ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How.
    pub how: End,
}

/// In which way a version's time ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// This version took its place; where it was never deployed itself, this one was wanted before it had taken over.
    Replaced(String),
    /// It was taken back, or left by hand, and why.
    RolledBack(String),
    /// The app was undeployed.
    Undeployed,
}

/// What a lattice writes down of its versions. All of its builds must write the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endings {
    /// A version is deployed from the beginning of its roll-out on, and what is left by hand is replaced: as builds have it
    /// that know no better.
    Blurred,
    /// A version is deployed once all events go to it, and what is left by hand is rolled back.
    Told,
}

/// A version on its way to take another's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version beside the deployed one: before the last step the newer, at the last step the older.
    pub other: Arc<Release>,
    /// An index of [`SHARES`].
    pub step: u8,
}

impl Rollout {
    /// Whether all events go to the newer version, which is the deployed one by now.
    pub const fn is_last(&self) -> bool {
        self.step >= LAST_STEP
    }

    /// The newer version's share of the events, in percent.
    pub fn share(&self) -> u8 {
        SHARES[usize::from(self.step.min(LAST_STEP))]
    }
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
    /// Where what runs listens for HTTP, and where what is on its way will.
    listeners: Vec<Listener>,
    rollout: Option<Rollout>,
}

/// What came of putting a version.
pub(crate) enum Put {
    /// It is new, or it is kept and not what runs.
    Kept(Arc<Release>),
    /// It is what runs, waits or is on its way already.
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

    /// What runs. In a roll-out this is the older version until all events go to the newer one.
    pub fn deployed(&self) -> Option<&Arc<Release>> {
        self.deployed.as_ref()
    }

    /// What waits to run.
    pub fn next(&self) -> Option<&Arc<Release>> {
        self.next.as_ref()
    }

    /// The roll-out that is under way.
    pub fn rollout(&self) -> Option<&Rollout> {
        self.rollout.as_ref()
    }

    /// The version that is rolled out, or was and is still watched.
    pub fn newer(&self) -> Option<&Arc<Release>> {
        self.rollout.as_ref().and_then(|rollout| if rollout.is_last() { self.deployed() } else { Some(&rollout.other) })
    }

    /// The version whose place is taken.
    pub fn older(&self) -> Option<&Arc<Release>> {
        self.rollout.as_ref().and_then(|rollout| if rollout.is_last() { Some(&rollout.other) } else { self.deployed() })
    }

    /// What runs, and what a roll-out has beside it.
    pub fn running(&self) -> impl Iterator<Item = &Arc<Release>> {
        self.deployed.iter().chain(self.rollout.iter().map(|rollout| &rollout.other))
    }

    /// Where what runs listens for HTTP, and where what is on its way will.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// What the app will be once everything under way is done.
    fn target(&self) -> Option<&Arc<Release>> {
        self.next().or(self.newer()).or(self.deployed())
    }

    /// Whether a version of this name is what runs.
    pub(crate) fn is_deployed(&self, version: &str) -> bool {
        self.deployed().is_some_and(|deployed| deployed.version == version)
    }

    /// What was deployed before what runs now, and was not taken back.
    pub(crate) fn previous(&self, endings: Endings) -> Option<&Arc<Release>> {
        let was_good = |kept: &&Version| {
            let came_through = endings == Endings::Blurred || kept.deployed_ms.is_some();
            let ended_well = !matches!(kept.ended, None | Some(Ended { how: End::RolledBack(_), .. }));
            came_through && ended_well && !self.is_deployed(&kept.release.version)
        };
        self.kept.iter().filter(was_good).max_by_key(|kept| kept.deployed_ms).map(|kept| &kept.release)
    }

    /// Says what putting `release` would come to. Nothing changes yet.
    pub(crate) fn consider(&self, release: &Release) -> Put {
        match self.get(&release.version) {
            Some(kept) if !kept.release.is_same(release) && !release.replace => Put::Differs,
            Some(kept) if kept.release.is_same(release) => {
                let is_wanted =
                    self.target().is_some_and(|wanted| Arc::ptr_eq(wanted, &kept.release) || **wanted == *kept.release);
                if is_wanted { Put::Unchanged } else { Put::Kept(Arc::clone(&kept.release)) }
            }
            _ => Put::Kept(Arc::new(Release { replace: false, ..release.clone() })),
        }
    }

    /// Keeps a release, in the place of the same version if that is kept, and forgets the oldest that neither runs nor
    /// waits when there are too many.
    pub(crate) fn keep(&mut self, release: &Arc<Release>, put_ms: u64) {
        let new = || Version { release: Arc::clone(release), put_ms, deployed_ms: None, ended: None };
        match self.kept.iter_mut().find(|kept| kept.release.version == release.version) {
            Some(kept) if *kept.release == **release => {}
            Some(kept) => *kept = new(),
            None => self.kept.push(new()),
        }
        while self.kept.len() > HISTORY_MAX {
            let in_use = |kept: &Version| {
                let used = self.running().chain(self.next()).chain([release]);
                used.into_iter().any(|used| used.version == kept.release.version)
            };
            let oldest = self.kept.iter().position(|kept| !in_use(kept));
            self.kept.remove(oldest.expect("at most four of more than ten are in use"));
        }
    }

    /// Makes a release what runs at once: nothing runs whose place it could take step by step.
    pub(crate) fn run(&mut self, release: &Arc<Release>, at_ms: u64) {
        (self.deployed, self.next, self.rollout) = (Some(Arc::clone(release)), None, None);
        self.begun(release, Some(at_ms));
    }

    /// Begins to roll out a release. What was on its way until now is given up for it.
    pub(crate) fn begin(&mut self, release: &Arc<Release>, at_ms: u64, endings: Endings) {
        self.next = None;
        if let Some(Rollout { other, .. }) = self.rollout.take() {
            self.end(&other, at_ms, End::Replaced(release.version.clone()));
        }
        self.rollout = Some(Rollout { other: Arc::clone(release), step: 0 });
        self.begun(release, (endings == Endings::Blurred).then_some(at_ms));
    }

    /// Goes on to the next step. After the last one the older version is let go.
    pub(crate) fn advance(&mut self, at_ms: u64, endings: Endings) {
        let Some(rollout) = &mut self.rollout else { return };
        rollout.step += 1;
        if rollout.step > LAST_STEP {
            self.rollout = None;
        } else if rollout.is_last() {
            let (newer, older) = (rollout.other.clone(), self.deployed.replace(rollout.other.clone()));
            let older = older.expect("a roll-out begins only where something runs");
            rollout.other = older.clone();
            if older.version != newer.version {
                self.end(&older, at_ms, End::Replaced(newer.version.clone()));
            }
            if endings == Endings::Told {
                self.begun(&newer, Some(at_ms));
            }
        }
    }

    /// Takes the version back that is on its way, or is watched: what was before runs on.
    pub(crate) fn give_up(&mut self, at_ms: u64, how: End, endings: Endings) {
        let Some(rollout) = self.rollout.take() else { return };
        let (older, newer) = if rollout.is_last() {
            let newer =
                self.deployed.replace(rollout.other.clone()).expect("a roll-out begins only where something runs");
            (rollout.other, newer)
        } else {
            (self.deployed.clone().expect("a roll-out begins only where something runs"), rollout.other)
        };
        self.end(&newer, at_ms, how);
        for kept in self.kept.iter_mut().filter(|kept| kept.release.version == older.version) {
            // The same version with other content may have taken its place here too.
            kept.release = older.clone();
            kept.ended = None;
            if endings == Endings::Told {
                kept.deployed_ms.get_or_insert(at_ms);
            }
        }
    }

    /// What runs is left for what is rolled out in its place. Should that be given up, it is not.
    pub(crate) fn leave(&mut self, at_ms: u64) {
        if let Some(deployed) = self.deployed.clone() {
            self.end(&deployed, at_ms, End::RolledBack(BY_HAND.into()));
        }
    }

    /// Keeps a version with all that became of it, where none of that name is kept. Says whether that is so.
    pub(crate) fn recall(&mut self, version: &Version) -> bool {
        if self.get(&version.release.version).is_some() {
            return false;
        }
        self.keep(&version.release, version.put_ms);
        for kept in self.kept.iter_mut().filter(|kept| kept.release.version == version.release.version) {
            *kept = version.clone();
        }
        true
    }

    pub(crate) fn wait(&mut self, release: Arc<Release>) {
        self.next = Some(release);
    }

    /// Nothing waits any more.
    pub(crate) fn forget_next(&mut self) {
        self.next = None;
    }

    /// Stops what runs and what waits. Says whether there was anything to stop.
    pub(crate) fn stop(&mut self, at_ms: u64) -> bool {
        self.listeners.clear();
        if let Some(Rollout { other, .. }) = self.rollout.take() {
            // At the last step this is the older version, whose time has ended already.
            self.end(&other, at_ms, End::RolledBack("the app was undeployed before it had taken over".into()));
        }
        if let Some(deployed) = self.deployed.clone() {
            self.end(&deployed, at_ms, End::Undeployed);
        }
        let (deployed, next) = (self.deployed.take(), self.next.take());
        deployed.is_some() || next.is_some()
    }

    pub(crate) fn listen(&mut self, listeners: Vec<Listener>) {
        self.listeners = listeners;
    }

    fn begun(&mut self, release: &Release, deployed_ms: Option<u64>) {
        for kept in self.kept.iter_mut().filter(|kept| kept.release.version == release.version) {
            (kept.deployed_ms, kept.ended) = (deployed_ms, None);
        }
    }

    fn end(&mut self, release: &Release, at_ms: u64, how: End) {
        for kept in self.kept.iter_mut().filter(|kept| kept.release.version == release.version) {
            if kept.ended.is_none() {
                kept.ended = Some(Ended { at_ms, how: how.clone() });
            }
        }
    }
}
