//! What a deploy changes, for people: one line for each entry of the manifest, one for each move of permits. And what
//! nobody holds any more once a node is drained.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use trellis_manifest::App;
use trellis_placement::{Command, Release, State, plan};
use trellis_wire::{AppName, ComponentKey, NodeId};

use crate::proposal;

/// `+ component api`, `~ link http -> api`, `- provider kv`: what `new` adds, changes and removes.
pub(crate) fn of_release(old: Option<&Release>, new: &Release) -> Vec<String> {
    let empty = BTreeMap::new();
    let mut lines = Vec::new();
    compare("component", old.map_or(&empty, |old| &old.app.components), &new.app.components, &mut lines);
    if let Some(old) = old {
        for (name, digest) in &new.artifacts {
            let line = format!("~ component {name}");
            if old.artifacts.get(name).is_some_and(|before| before != digest) && !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let empty = BTreeMap::new();
    compare("provider", old.map_or(&empty, |old| &old.app.providers), &new.app.providers, &mut lines);
    compare("link", &old.map(|old| links(&old.app)).unwrap_or_default(), &links(&new.app), &mut lines);
    let empty = BTreeMap::new();
    compare("config", old.map_or(&empty, |old| &old.app.configs), &new.app.configs, &mut lines);
    lines
}

fn links(app: &App) -> BTreeMap<String, &trellis_manifest::AppLink> {
    let named = |link: &trellis_manifest::AppLink| {
        format!("{} -> {} {}:{} {}", link.source, link.target, link.namespace, link.package, link.name)
    };
    app.links.iter().map(|link| (named(link), link)).collect()
}

fn compare<K: Ord + Display, V: PartialEq>(
    what: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    lines: &mut Vec<String>,
) {
    for (name, entry) in new {
        match old.get(name) {
            None => lines.push(format!("+ {what} {name}")),
            Some(before) if before != entry => lines.push(format!("~ {what} {name}")),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !new.contains_key(name));
    lines.extend(gone.map(|name| format!("- {what} {name}")));
}

/// How many plans, acknowledgements and steps are foreseen at most. A deploy settles in a few; the bound only guards
/// against a planner's bug.
const FORESEEN_MAX: usize = 200;

/// `api: node laptop 0 -> 10 permits`: how permits of `app` would move from `before` once everything that follows from
/// `after` is carried out, a roll-out's steps included.
pub(crate) fn moves(before: &State, after: State, app: &AppName) -> Vec<String> {
    let after = foreseen(after, |state| follows(state).or_else(|| step(state, app)));
    let (old, new) = (permits(before, app), permits(&after, app));
    let places: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let moved = places.into_iter().filter(|place| old.get(place) != new.get(place));
    moved
        .map(|place| {
            let (component, node) = place;
            let name = after.shown(*node);
            format!("{component}: node {name} {} -> {} permits", words(old.get(place)), words(new.get(place)))
        })
        .collect()
}

/// What a node holds that would be held by nobody once it is drained: one sentence each, with the reason.
pub(crate) fn unplaced_without(before: &State, node: NodeId) -> Vec<String> {
    let mut after = before.clone();
    after.apply(&proposal::entry(Command::Drain { node, on: true }));
    let after = foreseen(after, follows);
    let held = before.plan().holdings().iter().filter(|(_, holding)| holding.contains_key(&node));
    let held: BTreeSet<&ComponentKey> = held.map(|(key, _)| key).collect();
    let apps: BTreeSet<&AppName> = held.iter().map(|key| &key.app).collect();
    let mut sentences = Vec::new();
    for app in apps {
        let was = before.unplaced(app);
        let missing = after.unplaced(app).into_iter().filter(|missing| held.contains(&missing.component));
        let fewer = missing.filter(|missing| {
            let same = was.iter().find(|was| (&was.component, &was.spread) == (&missing.component, &missing.spread));
            same.is_none_or(|was| was.placed > missing.placed)
        });
        sentences.extend(fewer.map(|missing| missing.to_string()));
    }
    sentences
}

/// The state after everything that `next` says, one after the other.
fn foreseen(mut state: State, next: impl Fn(&State) -> Option<Command>) -> State {
    for _ in 0..FORESEEN_MAX {
        let Some(command) = next(&state) else { break };
        state.apply(&proposal::entry(command));
    }
    state
}

/// What comes next when every node does what it is to do.
fn follows(state: &State) -> Option<Command> {
    let owed = || state.nodes().keys().find_map(|&node| Some((node, state.owes(node)?)));
    let acked = || owed().map(|(node, generation)| Command::Acked { node, generation });
    plan(state).map(Command::Plan).or_else(acked)
}

/// The next step of an app's roll-out.
fn step(state: &State, app: &AppName) -> Option<Command> {
    let versions = state.app(app)?;
    let (rollout, newer) = (versions.rollout()?, versions.newer()?);
    let (version, step) = (newer.version.clone(), rollout.step + 1);
    Some(Command::Advance { app: app.clone(), version, step })
}

fn permits(state: &State, app: &AppName) -> BTreeMap<(String, NodeId), Option<u32>> {
    let of_app = state.plan().holdings().iter().filter(|(key, _)| key.app == *app);
    of_app
        .flat_map(|(key, holding)| holding.iter().map(|(node, permits)| ((key.name.to_string(), *node), *permits)))
        .collect()
}

fn words(permits: Option<&Option<u32>>) -> String {
    match permits {
        None => "0".into(),
        Some(None) => "all".into(),
        Some(Some(count)) => count.to_string(),
    }
}
