//! Status: what was asked, what runs where, and why not. Made from the state, the board and the counts; changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use trellis_bus::Connection;
use trellis_manifest::{AppLink, Scaler, Tech};
use trellis_placement::{
    Assigned, Direction, End, HeldLink, LAST_STEP, Life, Patience, Progress, Release, State, Unplaced, Version,
    Versions,
};
use trellis_provider::delivery::OUTCOMES;
use trellis_wire::{AppName, ComponentKey, ComponentName, LinkId, NodeId, Part};

use crate::api::types::{
    AppStatus, AppSummary, ComponentStatus, Holder, LatticeStatus, LeaseStatus, LinkStatus, NodeStatus, RolloutStatus,
    TriggerStatus, TriggersStatus, VersionStatus,
};
use crate::board::{Health, Mark};
use crate::cut_off::{self, silent};
use crate::home;
use crate::node::Node;
use crate::rollouts;
use crate::triggers::{Stands, Times, View, is_each_nodes_own};

/// The word for a holder whose node is late with its heartbeat.
const SILENT: &str = "silent";
/// What is said of what a person paused.
const PAUSED_BY_HAND: &str = "paused by hand: `trellis resume` lets queues and timers wake it again";

/// One line for each app.
pub(crate) fn apps(node: &Node) -> Vec<AppSummary> {
    let state = node.shares.state();
    let assigned = node.shares.by(&state, node.id);
    let summary = |name: &AppName| {
        let status = app_of(node, &state, &assigned, name)?;
        let release = release(state.app(name)?)?;
        let is_troubled = status.state == "ready" && status.links.iter().any(waits_for_someone);
        Some(AppSummary {
            app: status.app,
            version: status.version,
            state: if is_troubled { "troubled".into() } else { status.state },
            components: release.app.components.len(),
            providers: release.app.providers.len(),
            description: release.app.description.clone(),
        })
    };
    state.apps().filter_map(|(name, _)| summary(name)).collect()
}

/// Everything about one app; `None` if there is none of that name.
pub(crate) fn app(node: &Node, name: &AppName) -> Option<AppStatus> {
    let state = node.shares.state();
    app_of(node, &state, &node.shares.by(&state, node.id), name)
}

/// The same, and whether each spare has its copy of the code, which takes asking them: a deploy is ready only then.
pub(crate) async fn whole(node: &Node, name: &AppName) -> Option<AppStatus> {
    let (mut status, state) = (app(node, name)?, node.shares.state());
    // Nobody answers a node that is cut off, whatever they have.
    if cut_off::why(node).is_some() {
        return Some(status);
    }
    for (component, spare) in node.fetch.lacking(&state, name).await {
        status.problems.push(rollouts::without_spare(&state, &component, spare));
        if status.state == "ready" {
            status.state = "deploying".into();
        }
    }
    Some(status)
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
    let unplaced = state.unplaced(name);
    status.components = components(node, state, assigned, (release, &unplaced));
    status.links = release.app.links.iter().map(|link| link_status(node, state, release, link)).collect();
    status.problems = problems(&status, release, &unplaced);
    status.state = overall(&status).into();
    status.problems.extend(said_of_ready(&status.links));
    status.rollout = rollout(node, state, versions);
    if let Some(rollout) = status.rollout.as_ref().filter(|rollout| rollout.step < rollout.last) {
        status.state = "deploying".into();
        status.problems.insert(0, on_its_way(rollout));
    }
    if let Some(next) = versions.next() {
        status.state = "waiting".into();
        status.problems.insert(0, format!("version {} waits; {} goes on running", next.version, release.version));
        status.problems.extend(missing.iter().map(|name| waits_for(name)));
    }
    status.problems.extend(frozen(node, state, &status));
    if let Some(why) = cut_off::why(node) {
        // First: it is said of all that follows.
        status.problems.insert(0, why);
    }
    Some(status)
}

/// What is to be said where too many nodes vanished at once and the app is on some of them: they are not lost, and nobody
/// takes their place.
fn frozen(node: &Node, state: &State, status: &AppStatus) -> Option<String> {
    let frozen = node.liveness.frozen();
    let holds = |id: &NodeId| {
        let holders = status.components.iter().flat_map(|component| &component.holders);
        holders.into_iter().any(|holder| holder.node == id.to_string())
    };
    let names = frozen.iter().filter(|id| holds(id)).map(|id| state.shown(*id));
    let names: Vec<String> = names.collect();
    (!names.is_empty()).then(|| {
        format!(
            "what it has on {} is placed nowhere else until they are back, because over a third of the nodes vanished \
             within a minute; `trellis nodes thaw` places it anew now",
            names.join(", ")
        )
    })
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
        rollout: None,
        history: versions.kept().iter().rev().map(|kept| version(versions, kept)).collect(),
    }
}

fn rollout(node: &Node, state: &State, versions: &Versions) -> Option<RolloutStatus> {
    let (rollout, newer, older) = (versions.rollout()?, versions.newer()?, versions.older()?);
    let Progress { missing, events, faults } = rollouts::progress(state, &node.shares, &node.liveness, &newer.app.name);
    Some(RolloutStatus {
        to: newer.version.clone(),
        from: older.version.clone(),
        step: rollout.step,
        last: LAST_STEP,
        share: rollout.share(),
        waits_for: missing,
        events,
        faults,
    })
}

/// What is said of a version that is not all of the app yet, or has just become so.
pub(crate) fn on_its_way(rollout: &RolloutStatus) -> String {
    let RolloutStatus { to, from, step, last, share, waits_for, .. } = rollout;
    let waits: String = waits_for.iter().map(|what| format!("; {what}")).collect();
    match step {
        _ if step == last => {
            format!("version {to} took the place of {from}, which is kept ready while {to} is watched")
        }
        0 => format!("version {to} is made ready; {from} goes on running{waits}"),
        _ => format!("version {to} takes the place of {from}: step {step} of {last}, {share} % of the events{waits}"),
    }
}

fn version(versions: &Versions, kept: &Version) -> VersionStatus {
    let is = |release: Option<&Arc<Release>>| release.is_some_and(|one| one.version == kept.release.version);
    let ended = kept.ended.as_ref().map(|ended| &ended.how);
    let (state, why) = match ended {
        _ if is(versions.next()) => ("waiting", None),
        _ if is(versions.deployed()) => ("deployed", None),
        _ if is(versions.newer()) => ("rolling-out", None),
        Some(End::Replaced(by)) if kept.deployed_ms.is_none() => ("overtaken", Some(format!("by {by}"))),
        Some(End::Replaced(by)) => ("replaced", Some(format!("by {by}"))),
        Some(End::RolledBack(why)) => ("rolled-back", Some(why.clone())),
        Some(End::Undeployed) => ("undeployed", None),
        None => ("kept", None),
    };
    VersionStatus {
        version: kept.release.version.clone(),
        state: state.into(),
        put_ms: kept.put_ms,
        deployed_ms: kept.deployed_ms,
        // What is left by hand runs on until the other one has its place.
        ended_ms: kept.ended.as_ref().filter(|_| state != "deployed").map(|ended| ended.at_ms),
        why,
    }
}

fn components(
    node: &Node,
    state: &State,
    assigned: &Assigned,
    (release, unplaced): (&Release, &[Unplaced]),
) -> Vec<ComponentStatus> {
    // What is another app's is not among this one's.
    let of_other = |key: &ComponentKey| {
        let mut unplaced = state.unplaced(&key.app).into_iter();
        unplaced.find(|missing| missing.component == *key)
    };
    let problem = |key: &ComponentKey| match key.app == release.app.name {
        true => unplaced.iter().find(|missing| missing.component == *key).map(ToString::to_string),
        false => of_other(key).map(|missing| missing.to_string()),
    };
    let holders = |key: &ComponentKey| {
        let holding = state.holding(key).into_iter().flatten();
        holding.map(|(holder, permits)| holder_status(node, state, assigned, key, (*holder, *permits))).collect()
    };
    let status = |(name, component): (&ComponentName, &trellis_manifest::Component)| ComponentStatus {
        name: name.to_string(),
        digest: release.artifacts.get(name).map(ToString::to_string).unwrap_or_default(),
        asked: asked(component.scaler.as_ref()),
        holders: holders(&release.key(name)),
        problem: problem(&release.key(name)),
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
    let mut status = Holder {
        node: holder.to_string(),
        name: state.shown(holder),
        permits,
        state: "starting".into(),
        running: 0,
        events: 0,
        faults: 0,
        problem: None,
    };
    if holder != node.id {
        elsewhere(node, key, holder, &mut status);
    } else if let Some(held) = assigned.component(key) {
        let health = node.board.of_component(key, held);
        status.state = health.word().into();
        status.problem = health.problem();
        if let Some(holding) = node.dispatch.holding(key) {
            status.running = holding.running() as u64;
            status.events = holding.counts().events.load(Ordering::Relaxed);
            status.faults = holding.counts().faults.load(Ordering::Relaxed);
        }
    }
    if status.state != "ready" && is_edge(state, holder) {
        status.state = "behind".into();
    }
    status
}

/// Whether a node is at the edge: what it lacks is not waited for.
fn is_edge(state: &State, node: NodeId) -> bool {
    state.node(node).is_some_and(|node| node.facts.edge)
}

/// How a component is on another node, by that node's heartbeat. It is ready once the node says that it holds just what
/// it is to hold.
fn elsewhere(node: &Node, key: &ComponentKey, holder: NodeId, status: &mut Holder) {
    let Some(report) = node.liveness.component(holder, key) else {
        status.problem = Some("it has not said yet how it is".into());
        return;
    };
    (status.running, status.events, status.faults) =
        (report.counts.running, report.counts.events, report.counts.faults);
    if let Some(silent) = silent(node, holder) {
        (status.state, status.problem) = (SILENT.into(), Some(silent));
        return;
    }
    if node.shares.of(holder).component(key).is_some_and(|held| Mark::of(held) == report.mark) {
        status.state = report.health.word().into();
        status.problem = report.health.problem();
    }
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

fn link_status(node: &Node, state: &State, release: &Release, link: &AppLink) -> LinkStatus {
    let id = release.link_id(link);
    let is_needed = !is_unasked(release, link.source.as_str()) && !is_unasked(release, link.target.as_str());
    let Seen { word, at, problem } = match unserved(state, release, link).filter(|_| is_needed) {
        Some(why) => Seen::starting(Some(why)),
        None => of_link(node, &id, is_needed),
    };
    LinkStatus {
        source: link.source.to_string(),
        target: link.target.to_string(),
        name: link.name.to_string(),
        interfaces: format!("{}:{}/{}", link.namespace, link.package, link.interfaces.join(",")),
        state: word.into(),
        at,
        problem,
        lease: lease(node, &id),
    }
}

/// Why there is nobody at the provider's end of a link, on whichever node the other end is: no event comes, and no call is
/// answered.
fn unserved(state: &State, release: &Release, link: &AppLink) -> Option<String> {
    let ends = [&link.source, &link.target].into_iter();
    let mut providers = ends.filter(|end| release.app.providers.contains_key(*end)).map(|end| release.key(end));
    providers.find_map(|provider| state.nowhere(&provider))
}

/// Who has a link's lease.
fn lease(node: &Node, id: &LinkId) -> Option<LeaseStatus> {
    let state = node.shares.state();
    let lease = state.leases().get(id)?;
    Some(LeaseStatus {
        node: lease.node.to_string(),
        name: state.shown(lease.node),
        token: lease.token,
        held: (lease.node == node.id).then(|| node.leases.has(id)),
    })
}

/// The links that wake a component and whose lease a node has, for `explain`.
pub(crate) fn leased(node: &Node, holder: NodeId, component: &ComponentKey) -> Option<String> {
    let share = node.shares.of(holder);
    let state = node.shares.state();
    let leases = share.links().filter(|held| held.link.component == *component).filter_map(|held| {
        let lease = state.leases().get(&held.link.id).filter(|lease| lease.node == holder)?;
        Some(format!("has the lease of link `{}` (token {})", held.link.name, lease.token))
    });
    let told: Vec<String> = leases.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// How a link is, where it is reached, and what is wrong.
struct Seen {
    /// `ready`, `starting`, `silent` or `failed`.
    word: &'static str,
    at: Option<String>,
    problem: Option<String>,
}

impl Seen {
    fn starting(problem: Option<String>) -> Self {
        Self::of(&Health::Starting, None, problem)
    }

    fn of(health: &Health, at: Option<String>, problem: Option<String>) -> Self {
        Self { word: health.word(), at, problem }
    }

    fn badness(&self) -> u8 {
        match self.word {
            "ready" => 0,
            SILENT => 2,
            "failed" => 3,
            _ => 1,
        }
    }
}

/// How a link is on all nodes that apply it: as well as on the one where it is worst, and where it is reached, here if
/// it is.
fn of_link(node: &Node, id: &LinkId, is_needed: bool) -> Seen {
    let state = node.shares.state();
    // Where only the rest is handled of what was stored, nothing comes by it.
    let is_open = |held: &Arc<HeldLink>| held.link.part != Part::Stored;
    let applies = |other: &&trellis_placement::Node| node.shares.of(other.facts.id).links_of(id).any(is_open);
    let mut nodes: Vec<_> = state.nodes().values().filter(applies).collect();
    if nodes.is_empty() && !is_needed {
        return Seen::of(&Health::Ready, None, None);
    }
    if nodes.is_empty() {
        let too_old = || Some(state.check_pulled_at_home(&id.apps()?.1.parse().ok()?).err()?.to_string());
        let why = home::away(&state, &node.liveness).or_else(too_old);
        return Seen::starting(Some(why.unwrap_or_else(|| "no node applies it yet".into())));
    }
    nodes.sort_by_key(|other| other.facts.id != node.id);
    let seen = nodes.into_iter().map(|other| {
        let there = other.facts.id;
        if there == node.id {
            return (None, true, link_here(node, id));
        }
        // The edge is not waited for, but for what is nowhere else.
        let counts = !other.facts.edge || state.home_node() == Some(there);
        (Some(format!("on {} ({there})", other.facts.name)), counts, link_there(node, there, id))
    });
    worst(seen)
}

/// The worst of a link on several nodes: of each where that is, if it is not here, and whether it counts.
fn worst(seen: impl Iterator<Item = (Option<String>, bool, Seen)>) -> Seen {
    let mut worst = Seen::of(&Health::Ready, None, None);
    for (on, counts, Seen { word, at, problem }) in seen {
        let at = worst.at.take().or(at);
        let one = Seen { word, at: None, problem };
        let is_told = match one.badness() {
            // It does its part, and something is to be said of it.
            0 => one.problem.is_some() && worst.problem.is_none(),
            badness => badness >= worst.badness() && worst.word != "failed",
        };
        if counts && is_told {
            let problem = match (on, one.problem) {
                (None, why) => why,
                (Some(on), Some(why)) => Some(format!("{on}: {why}")),
                (Some(on), None) => Some(format!("not ready {on} yet")),
            };
            worst = Seen { word, at: None, problem };
        }
        worst.at = at;
    }
    worst
}

fn link_there(node: &Node, other: NodeId, id: &LinkId) -> Seen {
    let share = node.shares.of(other);
    let Some(wanted) = share.links_of(id).last() else { return Seen::starting(None) };
    if let Some(away) = home_away(node, other, wanted) {
        return Seen::starting(Some(away));
    }
    if let Some(silent) = silent(node, other) {
        return Seen { word: SILENT, at: None, problem: Some(silent) };
    }
    if is_paused(node, Some(wanted)) {
        return Seen::of(&Health::Ready, None, Some(PAUSED_BY_HAND.into()));
    }
    match node.liveness.link(other, &wanted.link.id) {
        Some(report) if report.mark == Mark::of(wanted) => {
            let problem = report.health.problem();
            Seen::of(&report.health, report.at, problem)
        }
        _ => Seen::starting(None),
    }
}

/// What is to be said of a link that the home applies as such, while that is away: nobody takes its place.
fn home_away(node: &Node, other: NodeId, held: &HeldLink) -> Option<String> {
    let (Direction::Wakes { provider, .. } | Direction::Grants { provider, .. }) = &held.direction else { return None };
    let state = node.shares.state();
    let home = if held.is_pulled_at_home() { state.home_node() } else { state.kept_at(provider) };
    if home != Some(other) {
        return None;
    }
    home::away(&state, &node.liveness)
}

fn link_here(node: &Node, id: &LinkId) -> Seen {
    let share = node.shares.of(node.id);
    let held = share.links_of(id).last();
    let health = held.map_or(Health::Starting, |held| node.board.of_link(held));
    match held.map(|held| &held.direction) {
        _ if is_paused(node, held) => Seen::of(&Health::Ready, None, Some(PAUSED_BY_HAND.into())),
        Some(Direction::Wakes { tech, .. } | Direction::Grants { tech, .. }) if health == Health::Ready => {
            let applied = held.map_or(id, |held| &held.link.id);
            let at = address(node, *tech, applied);
            match node.providers.of(*tech).health(applied) {
                Ok(()) => Seen::of(&health, at, None),
                Err(why) => Seen::of(&Health::Unwell(why.clone()), at, Some(why)),
            }
        }
        _ => {
            let problem = health.problem();
            Seen::of(&health, None, problem)
        }
    }
}

/// Whether a person paused what a link wakes from a queue or by the clock.
fn is_paused(node: &Node, held: Option<&Arc<HeldLink>>) -> bool {
    let wakes = |held: &HeldLink| matches!(held.direction, Direction::Wakes { .. }) && held.link.package != "http";
    held.is_some_and(|held| wakes(held) && node.shares.state().is_paused(&held.link.component))
}

/// Where a link can be reached, if it listens.
fn address(node: &Node, tech: Tech, id: &LinkId) -> Option<String> {
    match tech {
        Tech::Http => node.providers.http.url(id),
        Tech::Nats | Tech::Embedded | Tech::Redis | Tech::Rabbitmq | Tech::Mqtt | Tech::Timer => None,
    }
}

/// Whether nothing is asked for of a component or provider, so that nothing is missed of it.
fn is_unasked(release: &Release, name: &str) -> bool {
    let Ok(name) = name.parse::<ComponentName>() else { return false };
    let component = release.app.components.get(&name).and_then(|component| component.scaler.as_ref());
    let provider = release.app.providers.get(&name).and_then(|provider| provider.scaler.as_ref());
    component.or(provider).is_some_and(Scaler::is_zero)
}

fn problems(status: &AppStatus, release: &Release, unplaced: &[Unplaced]) -> Vec<String> {
    let mut problems = Vec::new();
    for component in &status.components {
        problems.extend(component.problem.iter().map(|why| format!("{}: {why}", component.name)));
        let is_missed = component.problem.is_none() && !is_unasked(release, &component.name);
        if component.holders.is_empty() && is_missed {
            problems.push(format!("{}: no node holds it yet", component.name));
        }
        for holder in component.holders.iter().filter(|holder| !is_well(holder)) {
            let why = holder.problem.as_deref().unwrap_or("not ready yet");
            problems.push(format!("{} on {}: {why}", component.name, holder.name));
        }
    }
    // Providers, and what a newer version alone has. Nobody waits for what is at the edge.
    let is_told = |missing: &Unplaced| release.app.components.contains_key(&missing.component.name);
    let others = unplaced.iter().filter(|missing| !missing.edge && !is_told(missing));
    problems.extend(others.map(ToString::to_string));
    for link in status.links.iter().filter(|link| link.state != "ready") {
        let why = link.problem.as_deref().unwrap_or("not ready yet");
        if !problems.iter().any(|told| told == why) {
            problems.push(of_its_link(link, why));
        }
    }
    problems
}

/// Whether a link does its part and its messages do not go well.
fn waits_for_someone(link: &LinkStatus) -> bool {
    link.state == "ready" && link.problem.as_deref().is_some_and(|why| why != PAUSED_BY_HAND)
}

/// What is said of links that are ready, such as that keys are parked.
fn said_of_ready(links: &[LinkStatus]) -> Vec<String> {
    let ready = links.iter().filter(|link| link.state == "ready");
    ready.filter_map(|link| Some(of_its_link(link, link.problem.as_deref()?))).collect()
}

fn of_its_link(link: &LinkStatus, why: &str) -> String {
    format!("link {} -> {} ({}): {why}", link.source, link.target, link.interfaces)
}

/// Whether nothing waits for this holder.
fn is_well(holder: &Holder) -> bool {
    matches!(holder.state.as_str(), "ready" | "behind")
}

fn overall(status: &AppStatus) -> &'static str {
    let holders = status.components.iter().flat_map(|component| &component.holders).map(|holder| holder.state.as_str());
    let states: BTreeSet<&str> = holders.chain(status.links.iter().map(|link| link.state.as_str())).collect();
    match () {
        () if status.problems.is_empty() => "ready",
        () if states.contains("failed") => "failed",
        // What ran there is not on its way to anywhere yet.
        () if states.contains(SILENT) => "troubled",
        () => "deploying",
    }
}

/// Every trigger, with what each node that runs it says of it.
pub(crate) async fn triggers(node: &Node) -> TriggersStatus {
    let (views, problems) = node.triggers.all().await;
    let mut by_link = BTreeMap::<LinkId, Vec<(NodeId, View)>>::new();
    for (on, view) in views {
        by_link.entry(view.link.clone()).or_default().push((on, view));
    }
    let state = node.shares.state();
    let is_apart = |(on, view): &(NodeId, View)| {
        node.shares.of(*on).exact_link(&view.link).is_some_and(|held| is_each_nodes_own(held))
    };
    let triggers = by_link.into_values().map(|views| trigger(&state, &views, views.iter().any(is_apart)));
    TriggersStatus { triggers: triggers.collect(), problems }
}

/// One trigger, from at least one view. A queue of each node's own counts with all of them, one that all see once: as who sees
/// the most of it, since RabbitMQ shows what one node holds to that node only.
fn trigger(state: &State, views: &[(NodeId, View)], is_apart: bool) -> TriggerStatus {
    let first = &views[0].1;
    let sum = |of: fn(&View) -> u64| views.iter().map(|(_, view)| of(view)).sum::<u64>();
    let held = sum(|view| view.held);
    let stands: Vec<Stands> = views.iter().filter_map(|(_, view)| view.stands(held)).collect();
    let most = stands.iter().max_by_key(|stands| stands.waiting.saturating_add(stands.claimed));
    let most = most.map_or(&[][..], std::slice::from_ref);
    let stands = if is_apart { &stands[..] } else { most };
    let whole = |of: fn(&Stands) -> u64| (!stands.is_empty()).then(|| stands.iter().map(of).sum());
    let outcome = |i: usize| views.iter().map(|(_, view)| view.outcomes[i]).sum::<u64>();
    let problem =
        |(on, view): &(NodeId, View)| view.problem.as_ref().map(|why| format!("on {}: {why}", state.shown(*on)));
    let problems: Vec<_> = views.iter().filter_map(problem).collect();
    let word = match () {
        () if state.is_paused(&first.component) => "paused",
        () if views.iter().any(|(_, view)| view.paused_since_ms.is_some()) => "auto-paused",
        () if !problems.is_empty() => "troubled",
        () => "running",
    };
    TriggerStatus {
        component: first.component.to_string(),
        link: first.link.to_string(),
        system: first.system.clone(),
        state: word.into(),
        nodes: views.len(),
        waiting: whole(|stands| stands.waiting),
        claimed: whole(|stands| stands.claimed),
        oldest_age_ms: stands.iter().filter_map(|stands| stands.oldest_age_ms).max(),
        in_flight: sum(|view| view.in_flight),
        held,
        attempts: sum(|view| view.attempts),
        outcomes: OUTCOMES.iter().enumerate().map(|(i, word)| ((*word).into(), outcome(i))).collect(),
        dead_letters: stands.iter().filter_map(|stands| stands.dead).reduce(|all, more| all + more),
        permit_wait_ms: average_ms(views.iter().map(|(_, view)| view.permit_wait)),
        in_queue_ms: average_ms(views.iter().map(|(_, view)| view.in_queue)),
        run_ms: average_ms(views.iter().map(|(_, view)| view.run)),
        problems,
    }
}

fn average_ms(times: impl Iterator<Item = Times>) -> Option<f64> {
    let (count, sum_us) = times.fold((0, 0), |(count, sum), times| (count + times.count, sum + times.sum_us));
    (count > 0).then(|| sum_us as f64 / count as f64 / 1_000.0)
}

/// Every node of the lattice.
pub(crate) fn nodes(node: &Node) -> Vec<NodeStatus> {
    let state = node.raft.state().borrow().clone();
    let leader = node.raft.leadership().borrow().leader;
    let members = node.raft.members();
    let status = |known: &trellis_placement::Node| NodeStatus {
        id: known.facts.id.to_string(),
        name: known.facts.name.clone(),
        key: known.facts.key.to_string(),
        role: role(&members, known).into(),
        leader: leader == Some(known.facts.id),
        home: state.home_node() == Some(known.facts.id),
        state: match (known.is_lost(), known.drained, node.liveness.life(known.facts.id)) {
            (true, ..) => "lost",
            (false, true, _) => "drained",
            (false, false, Life::Alive | Life::Suspect) if node.liveness.silence(known.facts.id).is_none() => "unheard",
            (false, false, Life::Alive) => "ready",
            (false, false, Life::Suspect) => "suspect",
            (false, false, Life::Silent) => "silent",
        }
        .into(),
        labels: known.labels().into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        version: known.facts.version.clone(),
        last_seen_ms: node
            .liveness
            .silence(known.facts.id)
            .map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX)),
        lag: lag(node, known.facts.id),
        running: if known.facts.id == node.id {
            Some(node.dispatch.running() as u64)
        } else {
            node.liveness.running(known.facts.id)
        },
    };
    state.nodes().values().map(status).collect()
}

/// What a node is to the log.
fn role(members: &trellis_raft::Members, node: &trellis_placement::Node) -> &'static str {
    let id = node.facts.id;
    match () {
        () if members.voters.contains_key(&id) => "voter",
        () if members.learners.contains_key(&id) => "learner",
        () if node.facts.edge => "edge",
        () => "follower",
    }
}

/// How many entries of the log a node lacks, where this node knows: the leader of every member, everyone of those outside.
fn lag(node: &Node, id: NodeId) -> Option<u64> {
    let outside = || Some(node.raft.applied().saturating_sub(node.liveness.applied(id)?));
    node.raft.lag().get(&id).copied().flatten().or_else(outside)
}

/// The lattice, and this node in it.
pub(crate) fn lattice(node: &Node) -> LatticeStatus {
    let state = node.raft.state().borrow().clone();
    // Here, and not below: what is borrowed there is so until all of it is made. Who borrows it again meanwhile waits for who
    // is to change it, and that one for us.
    let leader = node.raft.leadership().borrow().leader;
    LatticeStatus {
        name: node.lattice.to_string(),
        id: state.lattice_id().map(|id| id.to_string()).unwrap_or_default(),
        node: node.id.to_string(),
        leader: leader.map(|id| id.to_string()),
        bus: bus(node),
        version: env!("CARGO_PKG_VERSION").into(),
        generation: state.plan().generation().0,
        trust: trust(node),
        timings: timings(node).into(),
        problems: [unready(node), node.liveness.problems(), home::away(&state, &node.liveness).into_iter().collect()]
            .concat(),
    }
}

/// The timings that the lattice has agreed on, which this node goes by at its next look at the latest.
pub(crate) fn timings(node: &Node) -> Patience {
    let agreed = node.raft.state().borrow().timings().copied();
    agreed.map_or_else(|| node.liveness.patience(), |agreed| agreed.patience)
}

/// Who can join the lattice.
pub(crate) fn trust(node: &Node) -> String {
    let state = node.raft.state().borrow().clone();
    match (&node.nats_url, state.trust()) {
        (None, _) => "this node alone".into(),
        (Some(_), None) => "not known yet".into(),
        (Some(_), Some(trust)) if trust.open => "open to every node that its NATS account lets in".into(),
        (Some(_), Some(trust)) => {
            let list = format!("a key on its list of {}", trust.allowed.len());
            match (&trust.token, trust.allowed.is_empty()) {
                (Some(_), true) => "closed: a node joins with the join token".into(),
                (Some(_), false) => format!("closed: a node joins with the join token, or with {list}"),
                (None, _) => format!("closed: a node joins with {list}"),
            }
        }
    }
}

fn bus(node: &Node) -> String {
    let connection = node.control.bus().connection().borrow().clone();
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
    problems.extend(cut_off::why(node));
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

#[cfg(test)]
mod tests {
    use trellis_manifest::App;
    use trellis_placement::{Command, Entry};
    use trellis_wire::{CommandId, Digest};

    use super::*;

    fn shop(version: &str) -> Release {
        let mut app = App::new("shop".parse().unwrap());
        app.description = Some(version.into());
        let (artifacts, manifest) = (BTreeMap::new(), Digest::new([0; 32]));
        Release { app, version: version.into(), artifacts, manifest, replace: false }
    }

    #[test]
    fn a_provider_that_is_not_placed_is_a_problem_and_said_once() {
        let of = |provider: &str, edge| Unplaced {
            component: format!("shop/{provider}").parse().unwrap(),
            spread: "far".into(),
            wanted: 1,
            placed: 0,
            why: "no node fits".into(),
            edge,
        };
        let unplaced = [of("kv", false), of("laptop", true)];
        let link = |why: &str| LinkStatus {
            source: "api".into(),
            target: "kv".into(),
            name: "default".into(),
            interfaces: "wasi:keyvalue/store".into(),
            state: "starting".into(),
            at: None,
            problem: Some(why.into()),
            lease: None,
        };
        let mut status = empty(&State::default(), &Versions::default(), &shop("v1"), "ready", Vec::new());
        let told = "shop/kv: 0 of 1 placed for spread `far`: no node fits";
        status.links = vec![link(told), link("refused")];
        status.problems = problems(&status, &shop("v1"), &unplaced);
        assert_eq!(status.problems, [told, "link api -> kv (wasi:keyvalue/store): refused"]);
        assert_eq!(overall(&status), "deploying");
        let holder = Holder {
            node: "n".into(),
            name: "laptop".into(),
            permits: None,
            state: SILENT.into(),
            running: 0,
            events: 0,
            faults: 0,
            problem: Some("the node was last heard 3 s ago".into()),
        };
        let (name, digest, asked) = ("api".into(), String::new(), String::new());
        status.components = vec![ComponentStatus { name, digest, asked, holders: vec![holder], problem: None }];
        assert_eq!(overall(&status), "troubled", "a node that is late is no deploy");
        status.components.clear();
        status.links.clear();
        status.problems = problems(&status, &shop("v1"), &unplaced);
        assert_eq!((overall(&status), status.problems), ("deploying", vec![told.to_owned()]));
    }

    #[test]
    fn a_link_is_as_well_as_on_the_worst_node_that_counts() {
        let seen = |word, at: Option<&str>, problem: Option<&str>| Seen {
            word,
            at: at.map(str::to_owned),
            problem: problem.map(str::to_owned),
        };
        let well = || (None, true, seen("ready", Some("http://here"), None));
        let late = || (Some("on cellar".to_owned()), true, seen(SILENT, None, Some("the node was last heard 4 s ago")));
        let starts = || (Some("on attic".to_owned()), true, seen("starting", Some("http://attic"), None));
        let fails = || (Some("on attic".to_owned()), true, seen("failed", None, Some("taken")));
        let pauses = || (Some("on attic".to_owned()), true, seen("ready", Some("http://here"), Some("paused")));
        let edge = || (Some("on laptop".to_owned()), false, seen(SILENT, None, Some("away")));
        for (all, word, problem) in [
            (vec![well(), edge()], "ready", None),
            (vec![well(), late(), starts()], SILENT, Some("on cellar: the node was last heard 4 s ago")),
            (vec![well(), starts()], "starting", Some("not ready on attic yet")),
            (vec![well(), pauses()], "ready", Some("on attic: paused")),
            (vec![pauses(), starts()], "starting", Some("not ready on attic yet")),
            (vec![well(), fails(), late()], "failed", Some("on attic: taken")),
        ] {
            let worst = worst(all.into_iter());
            assert_eq!(
                (worst.word, worst.problem.as_deref(), worst.at.as_deref()),
                (word, problem, Some("http://here"))
            );
        }
        let mut status = empty(&State::default(), &Versions::default(), &shop("v1"), "ready", Vec::new());
        let (source, target, name) = ("http".into(), "api".into(), "default".into());
        let Seen { word, at, problem } = worst([late()].into_iter());
        let interfaces = "wasi:http/incoming-handler".into();
        status.links =
            vec![LinkStatus { source, target, name, interfaces, state: word.into(), at, problem, lease: None }];
        status.problems = problems(&status, &shop("v1"), &[]);
        assert_eq!(overall(&status), "troubled", "a node that is late is no deploy");
    }

    #[test]
    fn history_tells_who_was_overtaken_and_who_is_left_but_runs_still() {
        let (name, mut state) = ("shop".parse::<AppName>().unwrap(), State::default());
        let mut apply = |command| {
            let id = CommandId::new(uuid::Uuid::now_v7());
            state.apply(&Entry { id, at_ms: 1, command });
            let versions = state.app(&"shop".parse().unwrap()).unwrap();
            let told = |kept| {
                let VersionStatus { version, state, deployed_ms, ended_ms, .. } = version(versions, kept);
                format!("{version} {state} {} {}", deployed_ms.is_some(), ended_ms.is_some())
            };
            versions.kept().iter().map(told).collect::<Vec<_>>()
        };
        apply(Command::Deploy(Box::new(shop("v1"))));
        apply(Command::Deploy(Box::new(shop("v2"))));
        apply(Command::Deploy(Box::new(shop("v3"))));
        let steps = 1..=LAST_STEP + 1;
        let step = |step| Command::Advance { app: name.clone(), version: "v3".into(), step };
        let past = steps.map(|n| apply(step(n))).last().unwrap();
        assert_eq!(past, ["v1 replaced true true", "v2 overtaken false true", "v3 deployed true false"]);
        let past = apply(Command::Rollback { app: name.clone(), version: None });
        assert_eq!(past, ["v1 rolling-out false false", "v2 overtaken false true", "v3 deployed true false"]);
    }
}
