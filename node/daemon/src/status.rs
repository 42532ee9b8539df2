//! Status: what was asked, what runs where, and why not. Made from the state, the board and the counts; changes
//! nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use trellis_bus::Connection;
use trellis_manifest::{AppLink, Scaler, Tech};
use trellis_placement::{Assigned, Direction, Release, State, Versions};
use trellis_wire::{AppName, ComponentKey, ComponentName, LinkId, NodeId};

use crate::api::types::{AppStatus, AppSummary, ComponentStatus, Holder, LatticeStatus, LinkStatus, NodeStatus};
use crate::board::Health;
use crate::node::Node;

/// One line for each app.
pub(crate) fn apps(node: &Node) -> Vec<AppSummary> {
    let state = node.raft.state().borrow().clone();
    let assigned = state.assigned(node.id);
    let summary = |name: &AppName| {
        let status = app_of(node, &state, &assigned, name)?;
        let release = release(state.app(name)?)?;
        Some(AppSummary {
            app: status.app,
            version: status.version,
            state: status.state,
            components: release.app.components.len(),
            providers: release.app.providers.len(),
            description: release.app.description.clone(),
        })
    };
    state.apps().filter_map(|(name, _)| summary(name)).collect()
}

/// Everything about one app; `None` if there is none of that name.
pub(crate) fn app(node: &Node, name: &AppName) -> Option<AppStatus> {
    let state = node.raft.state().borrow().clone();
    app_of(node, &state, &state.assigned(node.id), name)
}

fn app_of(node: &Node, state: &State, assigned: &Assigned, name: &AppName) -> Option<AppStatus> {
    let versions = state.app(name)?;
    let missing = state.waiting(name);
    let Some(release) = versions.deployed() else {
        let newest = release(versions)?;
        let word = if missing.is_empty() { "undeployed" } else { "waiting" };
        return Some(empty(state, versions, newest, word, missing.iter().map(|name| waits_for(name)).collect()));
    };
    let mut status = empty(state, versions, release, "ready", Vec::new());
    status.components = components(node, state, assigned, release);
    status.links = release.app.links.iter().map(|link| link_status(node, assigned, release, link)).collect();
    status.problems = problems(&status);
    status.state = overall(&status).into();
    if let Some(next) = versions.next() {
        status.state = "waiting".into();
        status.problems.insert(0, format!("version {} waits; {} goes on running", next.version, release.version));
        status.problems.extend(missing.iter().map(|name| waits_for(name)));
    }
    Some(status)
}

/// The release that an app's status speaks of: what runs, else what waits, else the newest that is kept.
pub(crate) fn release(versions: &Versions) -> Option<&Arc<Release>> {
    let newest = || versions.kept().last().map(|version| &version.release);
    versions.deployed().or_else(|| versions.next()).or_else(newest)
}

/// What an app waits for, with what to do where that is known.
fn waits_for(missing: &str) -> String {
    match missing.strip_prefix("config `").and_then(|rest| rest.strip_suffix('`')) {
        Some(config) => format!("{missing} does not exist yet: `trellis config put {config} KEY=VALUE`"),
        None if missing.starts_with("component ") => format!("{missing} does not run yet"),
        None => missing.into(),
    }
}

fn empty(state: &State, versions: &Versions, release: &Release, word: &str, problems: Vec<String>) -> AppStatus {
    AppStatus {
        app: release.app.name.to_string(),
        version: release.version.clone(),
        state: word.into(),
        generation: state.plan().generation().0,
        problems,
        components: Vec::new(),
        links: Vec::new(),
        versions: versions.kept().iter().rev().map(|kept| kept.release.version.clone()).collect(),
    }
}

fn components(node: &Node, state: &State, assigned: &Assigned, release: &Release) -> Vec<ComponentStatus> {
    let unplaced = state.unplaced(&release.app.name);
    let holders = |key: &ComponentKey| {
        let holding = state.holding(key).into_iter().flatten();
        holding.map(|(holder, permits)| holder_status(node, state, assigned, key, (*holder, *permits))).collect()
    };
    let status = |(name, component): (&ComponentName, &trellis_manifest::Component)| ComponentStatus {
        name: name.to_string(),
        digest: release.artifacts.get(name).map(ToString::to_string).unwrap_or_default(),
        asked: asked(component.scaler.as_ref()),
        holders: holders(&release.key(name)),
        problem: unplaced.iter().find(|missing| missing.component.name == *name).map(ToString::to_string),
    };
    release.app.components.iter().map(status).collect()
}

fn holder_status(
    node: &Node,
    state: &State,
    assigned: &Assigned,
    key: &ComponentKey,
    (holder, permits): (NodeId, Option<u32>),
) -> Holder {
    let name = state.node(holder).map_or_else(|| holder.to_string(), |known| known.facts.name.clone());
    let mut status = Holder {
        node: holder.to_string(),
        name,
        permits,
        state: "starting".into(),
        running: 0,
        events: 0,
        faults: 0,
        problem: None,
    };
    if holder == node.id
        && let Some(held) = assigned.components.get(key)
    {
        let health = node.board.of_component(key, held);
        status.state = health.word().into();
        status.problem = health.problem();
        if let Some(holding) = node.dispatch.holding(key) {
            status.running = holding.running() as u64;
            status.events = holding.counts().events.load(Ordering::Relaxed);
            status.faults = holding.counts().faults.load(Ordering::Relaxed);
        }
    }
    status
}

fn asked(scaler: Option<&Scaler>) -> String {
    match scaler {
        None => "one holder".into(),
        Some(Scaler::Spread { instances: Some(instances), .. }) => format!("{instances} in the lattice"),
        Some(Scaler::Spread { instances: None, .. }) => "as many as the nodes allow".into(),
        Some(Scaler::Daemon { instances: Some(instances), .. }) => format!("{instances} on every matching node"),
        Some(Scaler::Daemon { instances: None, .. }) => "every matching node".into(),
    }
}

fn link_status(node: &Node, assigned: &Assigned, release: &Release, link: &AppLink) -> LinkStatus {
    let (source, target) = (release.key(&link.source), release.key(&link.target));
    let id = LinkId::new(&source, &target, &link.name, &link.namespace, &link.package, &link.interfaces);
    let held = assigned.links.get(&id);
    let mut health = held.map_or(Health::Starting, |held| node.board.of_link(held));
    let (mut at, mut problem) = (None, health.problem());
    if health == Health::Ready
        && let Some(Direction::Wakes { tech, .. } | Direction::Grants { tech, .. }) = held.map(|held| &held.direction)
    {
        at = address(node, *tech, &id);
        problem = node.providers.of(*tech).health(&id).err();
        if problem.is_some() {
            health = Health::Starting;
        }
    }
    LinkStatus {
        source: link.source.to_string(),
        target: link.target.to_string(),
        name: link.name.to_string(),
        interfaces: format!("{}:{}/{}", link.namespace, link.package, link.interfaces.join(",")),
        state: health.word().into(),
        at,
        problem,
    }
}

/// Where a link can be reached, if it listens.
fn address(node: &Node, tech: Tech, id: &LinkId) -> Option<String> {
    match tech {
        Tech::Http => node.providers.http.url(id),
        Tech::Nats | Tech::Embedded => None,
    }
}

fn problems(status: &AppStatus) -> Vec<String> {
    let mut problems = Vec::new();
    for component in &status.components {
        problems.extend(component.problem.iter().map(|why| format!("{}: {why}", component.name)));
        if component.holders.is_empty() && component.problem.is_none() {
            problems.push(format!("{}: no node holds it yet", component.name));
        }
        for holder in component.holders.iter().filter(|holder| holder.state != "ready") {
            let why = holder.problem.as_deref().unwrap_or("not ready yet");
            problems.push(format!("{} on {}: {why}", component.name, holder.name));
        }
    }
    for link in status.links.iter().filter(|link| link.state != "ready") {
        let why = link.problem.as_deref().unwrap_or("not ready yet");
        problems.push(format!("link {} -> {} ({}): {why}", link.source, link.target, link.interfaces));
    }
    problems
}

fn overall(status: &AppStatus) -> &'static str {
    let holders = status.components.iter().flat_map(|component| &component.holders).map(|holder| holder.state.as_str());
    let mut states = holders.chain(status.links.iter().map(|link| link.state.as_str()));
    if status.problems.is_empty() {
        "ready"
    } else if states.any(|state| state == "failed") {
        "failed"
    } else {
        "deploying"
    }
}

/// Every node of the lattice.
pub(crate) fn nodes(node: &Node) -> Vec<NodeStatus> {
    let state = node.raft.state().borrow().clone();
    let leader = node.raft.leadership().borrow().leader;
    let status = |known: &trellis_placement::Node| NodeStatus {
        id: known.facts.id.to_string(),
        name: known.facts.name.clone(),
        role: "voter".into(),
        leader: leader == Some(known.facts.id),
        state: match (known.is_lost(), known.drained) {
            (true, _) => "lost",
            (false, true) => "drained",
            (false, false) => "ready",
        }
        .into(),
        labels: known.labels().into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        version: known.facts.version.clone(),
        last_seen_ms: (known.facts.id == node.id).then_some(0),
        running: (known.facts.id == node.id).then(|| node.dispatch.running() as u64),
    };
    state.nodes().values().map(status).collect()
}

/// The lattice, and this node in it.
pub(crate) fn lattice(node: &Node) -> LatticeStatus {
    let state = node.raft.state().borrow().clone();
    LatticeStatus {
        name: node.lattice.to_string(),
        id: state.lattice_id().map(|id| id.to_string()).unwrap_or_default(),
        node: node.id.to_string(),
        leader: node.raft.leadership().borrow().leader.map(|id| id.to_string()),
        bus: bus(node),
        version: env!("CARGO_PKG_VERSION").into(),
        generation: state.plan().generation().0,
        problems: unready(node),
    }
}

fn bus(node: &Node) -> String {
    let connection = node.bus.connection().borrow().clone();
    match (&node.nats_url, connection) {
        (None, _) => "embedded".into(),
        (Some(_), Connection::Connected { server }) => format!("connected to nats {server}"),
        (Some(url), Connection::Disconnected { reason }) => format!("not connected to {url}: {reason}"),
        (Some(url), Connection::Refused(why)) => format!("refused {url}: {why}"),
    }
}

/// Why this node is not ready, one sentence each.
pub(crate) fn unready(node: &Node) -> Vec<String> {
    let mut problems = Vec::new();
    if node.raft.leadership().borrow().leader.is_none() {
        problems.push("the lattice has no leader: it serves what it holds and takes no changes".into());
    }
    let bus = bus(node);
    if bus.starts_with("not connected") || bus.starts_with("refused") {
        problems.push(format!("bus: {bus}"));
    }
    if node.raft.state().borrow().node(node.id).is_none() {
        problems.push("this node is not recorded in the lattice yet".into());
    }
    if !node.board.has_passed() {
        problems.push("this node has not gone through what it is to run yet".into());
    }
    problems
}
