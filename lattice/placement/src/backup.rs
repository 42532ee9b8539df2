//! What a backup holds: the commands that make the same apps and configs on an empty lattice. Commands only grow at their
//! end, so a later version reads what an earlier one wrote.
//!
//! What runs, or is to, is deployed again. What is past is told as it was, with how it ended: it is neither deployed nor
//! checked against what others have by now. Nodes, the plan and leases are not among it: they are the new lattice's own.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, Config};

use crate::level::ENDINGS_LEVEL;
use crate::state::done_if;
use crate::{Applied, Command, Release, State, StoredConfig, Version, Versions};

/// What a backup has beside what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restored {
    /// A version that is kept, and what became of it.
    Version(Box<Version>),
    /// A config that an app's manifest gave, and what runs of the app does not.
    Config {
        /// Its name.
        name: String,
        /// The app.
        owner: AppName,
        /// All its values.
        values: Config,
    },
}

impl State {
    /// The commands, in the order in which they are to be applied: config that was put by hand, then each app's versions
    /// from the oldest on, an app that shares something before those that use it, what is left of the apps' config, and
    /// what is paused.
    pub fn commands(&self) -> Vec<Command> {
        let put = self.configs().iter().filter(|(_, config)| config.owner.is_none());
        let mut commands: Vec<Command> =
            put.map(|(name, config)| Command::PutConfig { name: name.into(), values: config.values.clone() }).collect();
        let is_told = self.everyone_knows(ENDINGS_LEVEL);
        let (mut done, mut left): (BTreeSet<&AppName>, VecDeque<_>) = (BTreeSet::new(), self.apps().collect());
        // Each app is put off once at most for each other one; apps that use each other in a circle cannot be.
        let mut put_off = 0;
        while let Some((name, versions)) = left.pop_front() {
            if put_off < left.len() && self.uses(versions).any(|used| used != *name && !done.contains(&used)) {
                left.push_back((name, versions));
                put_off += 1;
                continue;
            }
            put_off = 0;
            done.insert(name);
            commands.extend(of_app(name, versions, is_told));
        }
        if is_told {
            commands.extend(self.left_configs());
        }
        let paused = self.paused.iter().map(|component| Command::Pause { component: component.clone(), on: true });
        commands.extend(paused);
        commands
    }

    /// The config of apps that what runs of them does not give anew: of those that are stopped, and what others still read.
    fn left_configs(&self) -> impl Iterator<Item = Command> {
        self.configs().iter().filter_map(|(name, StoredConfig { values, owner })| {
            let owner = owner.clone()?;
            let gives = |release: &Arc<Release>| release.app.configs.contains_key(name);
            let is_given = self.app(&owner).and_then(Versions::deployed).is_some_and(gives);
            let config = || Restored::Config { name: name.into(), owner, values: values.clone() };
            (!is_given).then(config).map(Command::Restore)
        })
    }

    /// The apps of this lattice that any version of an app uses.
    fn uses<'a>(&'a self, versions: &'a Versions) -> impl Iterator<Item = AppName> + 'a {
        let used = versions.kept().iter().flat_map(|kept| kept.release.uses().map(|key| key.app).collect::<Vec<_>>());
        used.filter(|app| self.app(app).is_some())
    }

    /// Whether nothing was ever deployed or configured: what a backup may be restored onto.
    pub fn is_empty(&self) -> bool {
        self.apps().next().is_none() && self.configs().iter().next().is_none()
    }

    /// What is there already stays as it is.
    pub(crate) fn restore(&mut self, restored: &Restored, at_ms: u64) -> Applied {
        match restored {
            Restored::Version(version) => {
                let versions = self.apps.entry(version.release.app.name.clone()).or_default();
                done_if(Arc::make_mut(versions).recall(version))
            }
            Restored::Config { name, .. } if self.configs.get(name).is_some() => Applied::Unchanged,
            Restored::Config { name, owner, values } => {
                let config = StoredConfig { values: values.clone(), owner: Some(owner.clone()) };
                Arc::make_mut(&mut self.configs).put(name, config);
                self.start_waiting(at_ms);
                Applied::Done
            }
        }
    }
}

fn of_app(name: &AppName, versions: &Versions, is_told: bool) -> Vec<Command> {
    let deploy = |release: &Release| Command::Deploy(Box::new(release.clone()));
    let past = versions.kept().iter().flat_map(|kept| match is_told {
        true => vec![Command::Restore(Restored::Version(Box::new(kept.clone())))],
        // Each is stopped before the next, so that none is rolled out only to be replaced.
        false => vec![deploy(&kept.release), Command::Undeploy(name.clone())],
    });
    let mut commands: Vec<Command> = past.collect();
    let rolled_out = versions.newer().filter(|newer| Some(*newer) != versions.deployed());
    let again = [versions.deployed(), rolled_out, versions.next()].into_iter().flatten();
    // Of one version both contents may be running.
    commands.extend(again.map(|release| deploy(&Release { replace: true, ..Release::clone(release) })));
    commands
}
