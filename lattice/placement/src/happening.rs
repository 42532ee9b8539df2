//! What happened in the lattice between two states, for those who follow it: `trellis events`. Worked out from the states
//! alone, so that every node sees the same, whoever did it.

use std::collections::BTreeMap;
use std::sync::Arc;

use trellis_wire::{AppName, ComponentKey, LinkId, NodeId};

use crate::pairs::{is_same, pairs};
use crate::{End, Lease, Node, Release, State, Versions};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A node became a member.
    NodeJoined(NodeId),
    /// A node has been silent for too long.
    NodeLost(NodeId),
    /// A lost node is heard again.
    NodeBack(NodeId),
    /// A node is a member no more.
    NodeForgotten(NodeId),
    /// Everything moves off a node.
    NodeDrained(NodeId),
    /// A drained node may hold things again.
    NodeUndrained(NodeId),
    /// Labels of a node are others than before: each that is, with its value now; `None`: it is gone.
    NodeLabelled(NodeId, BTreeMap<String, Option<String>>),
    /// What is embedded is on this node from now on.
    HomeSet(NodeId),
    /// A version begins to take another's place, step by step.
    AppRolling {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
        /// What runs.
        before: Option<String>,
    },
    /// A version of an app runs from now on, and gets all events.
    AppDeployed {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
        /// What ran before.
        before: Option<String>,
    },
    /// A version that was there before runs again in place of a later one, or goes on where a later one was given up.
    AppRolledBack {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
        /// What ran before.
        before: String,
        /// Why that was taken back, where it was.
        why: Option<String>,
    },
    /// A version waits for something before it runs.
    AppWaits {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
        /// For what, in words.
        waits_for: Vec<String>,
    },
    /// An app runs no more; its versions are kept.
    AppUndeployed(AppName),
    /// An app is forgotten.
    AppDeleted(AppName),
    /// A link is there, or is another than before.
    LinkSet(AppName, LinkId),
    /// A link is gone.
    LinkRemoved(AppName, LinkId),
    /// Nothing wakes a component until it is resumed.
    TriggerPaused(ComponentKey),
    /// It is woken again.
    TriggerResumed(ComponentKey),
    /// A node is to do what must run once.
    LeaseGranted(LinkId, Lease),
    /// It is not to any more.
    LeaseLost(LinkId, Lease),
}

/// What happened between `before` and `after`.
pub fn happenings(before: &State, after: &State) -> Vec<Happening> {
    let mut all = Vec::new();
    if !Arc::ptr_eq(&before.nodes, &after.nodes) {
        nodes(before, after, &mut all);
    }
    let home = after.home_node().filter(|home| before.home_node() != Some(*home));
    all.extend(home.map(Happening::HomeSet));
    for (name, old, new) in pairs(&before.apps, &after.apps).filter(|(_, old, new)| !is_same(*old, *new)) {
        app(name, old.map(|old| &**old), new.map(|new| &**new), after, &mut all);
    }
    let paused = after.paused.difference(&before.paused);
    all.extend(paused.map(|component| Happening::TriggerPaused(component.clone())));
    let resumed = before.paused.difference(&after.paused);
    all.extend(resumed.map(|component| Happening::TriggerResumed(component.clone())));
    if before.leases.edition() != after.leases.edition() {
        leases(before, after, &mut all);
    }
    all
}

fn nodes(before: &State, after: &State, all: &mut Vec<Happening>) {
    for (&id, node) in after.nodes() {
        let old = before.node(id);
        if old.is_none() {
            all.push(Happening::NodeJoined(id));
        }
        match (old.is_some_and(Node::is_lost), node.is_lost()) {
            (false, true) => all.push(Happening::NodeLost(id)),
            (true, false) => all.push(Happening::NodeBack(id)),
            _ => {}
        }
        let labels = old.map(|old| relabelled(old, node)).filter(|labels| !labels.is_empty());
        all.extend(labels.map(|labels| Happening::NodeLabelled(id, labels)));
        match (old.is_some_and(|old| old.drained), node.drained) {
            (false, true) => all.push(Happening::NodeDrained(id)),
            (true, false) => all.push(Happening::NodeUndrained(id)),
            _ => {}
        }
    }
    let gone = before.nodes().keys().filter(|id| after.node(**id).is_none());
    all.extend(gone.map(|id| Happening::NodeForgotten(*id)));
}

/// The labels that differ, as they are now.
fn relabelled(old: &Node, new: &Node) -> BTreeMap<String, Option<String>> {
    let (was, is) = (old.labels(), new.labels());
    let keys = was.keys().chain(is.keys()).filter(|key| was.get(*key) != is.get(*key));
    keys.map(|key| ((*key).to_owned(), is.get(key).map(|value| (*value).to_owned()))).collect()
}

/// Why a version was taken back, if it was.
fn taken_back(versions: Option<&Versions>, version: &str) -> Option<String> {
    match &versions?.get(version)?.ended.as_ref()?.how {
        End::RolledBack(why) => Some(why.clone()),
        End::Replaced(_) | End::Undeployed => None,
    }
}

fn app(name: &AppName, old: Option<&Versions>, new: Option<&Versions>, after: &State, all: &mut Vec<Happening>) {
    let (was, is) = (old.and_then(Versions::deployed), new.and_then(Versions::deployed));
    let gone = |all: &mut Vec<Happening>| links(name, was, None, all);
    match (was, is, new) {
        (_, None, None) => {
            gone(all);
            all.push(Happening::AppDeleted(name.clone()));
        }
        (Some(_), None, _) => {
            gone(all);
            all.push(Happening::AppUndeployed(name.clone()));
        }
        (was, Some(is), _) if was != Some(is) => {
            let (app, version) = (name.clone(), is.version.clone());
            let before = was.map(|was| was.version.clone());
            // Of two versions that are kept the later one was put later.
            let place = |version: &str| old?.kept().iter().position(|kept| kept.release.version == version);
            all.push(match before {
                Some(before) if place(&version).is_some_and(|now| Some(now) < place(&before)) => {
                    let why = taken_back(new, &before);
                    Happening::AppRolledBack { app, version, before, why }
                }
                before => Happening::AppDeployed { app, version, before },
            });
            links(name, was, Some(is), all);
        }
        _ => {}
    }
    let rolls = |versions: Option<&Versions>| versions.filter(|one| one.newer() != one.deployed())?.newer().cloned();
    if let Some(newer) = rolls(new).filter(|newer| rolls(old).as_ref() != Some(newer)) {
        let (version, before) = (newer.version.clone(), is.map(|is| is.version.clone()));
        all.push(Happening::AppRolling { app: name.clone(), version, before });
    }
    if let (Some(given_up), None, Some(is)) = (rolls(old), rolls(new), is)
        && given_up != *is
    {
        let (version, before) = (is.version.clone(), given_up.version.clone());
        let why = taken_back(new, &before);
        all.push(Happening::AppRolledBack { app: name.clone(), version, before, why });
    }
    let waits = new.and_then(Versions::next);
    if let Some(next) = waits.filter(|next| old.and_then(Versions::next) != Some(*next)) {
        let (app, version, waits_for) = (name.clone(), next.version.clone(), after.waiting(name));
        all.push(Happening::AppWaits { app, version, waits_for });
    }
}

/// The links of a release by id; each is compared whole.
fn links(name: &AppName, was: Option<&Arc<Release>>, is: Option<&Arc<Release>>, all: &mut Vec<Happening>) {
    let of = |release: Option<&Arc<Release>>| -> BTreeMap<LinkId, trellis_manifest::AppLink> {
        let Some(release) = release else { return BTreeMap::new() };
        release.app.links.iter().map(|link| (release.link_id(link), link.clone())).collect()
    };
    let (was, is) = (of(was), of(is));
    let set = is.iter().filter(|(id, link)| was.get(id) != Some(link));
    all.extend(set.map(|(id, _)| Happening::LinkSet(name.clone(), id.clone())));
    let gone = was.keys().filter(|id| !is.contains_key(id));
    all.extend(gone.map(|id| Happening::LinkRemoved(name.clone(), id.clone())));
}

fn leases(before: &State, after: &State, all: &mut Vec<Happening>) {
    let lost = before.leases.iter().filter(|(link, lease)| after.leases.get(link) != Some(*lease));
    all.extend(lost.map(|(link, lease)| Happening::LeaseLost(link.clone(), lease)));
    let granted = after.leases.iter().filter(|(link, lease)| before.leases.get(link) != Some(*lease));
    all.extend(granted.map(|(link, lease)| Happening::LeaseGranted(link.clone(), lease)));
}
