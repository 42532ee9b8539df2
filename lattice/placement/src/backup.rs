//! What a backup holds: the commands that make the same apps and configs on an empty lattice. Commands only grow at their
//! end, so a later version reads what an earlier one wrote.
//!
//! Nodes, the plan and leases are not among them: they are the new lattice's own.

use std::collections::{BTreeSet, VecDeque};

use trellis_wire::AppName;

use crate::{Command, Release, State, Versions};

impl State {
    /// The commands, in the order in which they are to be applied: config that was put by hand, then each app's versions
    /// from the oldest on, an app that shares something before those that use it, and what is paused.
    pub fn commands(&self) -> Vec<Command> {
        let put = self.configs().iter().filter(|(_, config)| config.owner.is_none());
        let mut commands: Vec<Command> =
            put.map(|(name, config)| Command::PutConfig { name: name.into(), values: config.values.clone() }).collect();
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
            commands.extend(of_app(name, versions));
        }
        let paused = self.paused.iter().map(|component| Command::Pause { component: component.clone(), on: true });
        commands.extend(paused);
        commands
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
}

fn of_app(name: &AppName, versions: &Versions) -> Vec<Command> {
    let deploy = |release: &Release| Command::Deploy(Box::new(release.clone()));
    // Each is stopped before the next, so that none is rolled out only to be replaced.
    let past = versions.kept().iter().flat_map(|kept| [deploy(&kept.release), Command::Undeploy(name.clone())]);
    let mut commands: Vec<Command> = past.collect();
    let rolled_out = versions.newer().filter(|newer| Some(*newer) != versions.deployed());
    let again = [versions.deployed(), rolled_out, versions.next()];
    commands.extend(again.into_iter().flatten().map(|release| deploy(release)));
    commands
}
