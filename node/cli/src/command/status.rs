//! `trellis status`: what an app was asked to be, what runs where, and why not. `deploy` ends with the same text. Without an
//! app: how each app is, and what is not well of the lattice.

use serde::Serialize;
use trellis_daemon::api::types::{
    AppStatus, AppSummary, ComponentStatus, Holder, LatticeStatus, LinkStatus, NodeStatus, RolloutStatus,
};
use trellis_wire::AppName;

use super::apps::NO_APPS;
use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};

/// Say what of an app runs where, and why not; or of all apps how they are
///
/// Without an app each app is told in one line, and what is not well of the lattice and its nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis status
  trellis status orders
  trellis status orders -o json")]
pub(crate) struct Status {
    /// The app; without it, the lattice and all apps
    app: Option<AppName>,
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let admin = connection.open();
        if let Some(app) = &self.app {
            return Ok(self.output.print(&admin.app(app).await?, render)?);
        }
        let (lattice, nodes) = (admin.lattice().await?, admin.nodes().await?);
        let overview = Overview { apps: admin.apps().await?, lattice, nodes };
        Ok(self.output.print(&overview, render_all)?)
    }
}

/// The lattice as a whole: what `apps`, `nodes` and the lattice's own status say.
#[derive(Serialize)]
struct Overview {
    lattice: LatticeStatus,
    nodes: Vec<NodeStatus>,
    apps: Vec<AppSummary>,
}

/// The same for people: one line for each app, and what is not well.
fn render_all(overview: &Overview) -> String {
    let Overview { lattice, nodes, apps } = overview;
    let ready = nodes.iter().filter(|node| node.state == "ready").count();
    let mut text = format!("lattice {}: {ready} of {} nodes ready\n", lattice.name, nodes.len());
    text += &match apps.is_empty() {
        true => format!("\n{NO_APPS}\n"),
        false => {
            let rows = apps.iter().map(|app| [app.app.clone(), app.version.clone(), app.state.clone()]);
            format!("\n{}\n", table(["APP", "VERSION", "STATE"], rows))
        }
    };
    let is_well = |node: &&NodeStatus| node.state == "ready";
    let unwell = nodes.iter().filter(|node| !is_well(node)).map(|node| {
        let seen = node.last_seen_ms.map(|ms| format!(", last heard {} s ago", ms / 1000)).unwrap_or_default();
        format!("node {} ({}) is {}{seen}", node.name, node.id, node.state)
    });
    let problems: Vec<String> = lattice.problems.iter().cloned().chain(unwell).collect();
    text + &not_well(&problems)
}

/// The list at the end; nothing where there is none.
fn not_well(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!("\nnot well:\n  {}\n", problems.join("\n  ")) }
}

/// The whole status, for people.
pub(super) fn render(status: &AppStatus) -> String {
    let mut text = format!("{} {} is {}\n", status.app, status.version, status.state);
    if !status.components.is_empty() {
        let heading = ["COMPONENT", "ASKED", "NODE", "PERMITS", "STATE", "RUNNING", "EVENTS", "FAULTS"];
        text += &format!("\n{}\n", table(heading, status.components.iter().flat_map(rows)));
    }
    if !status.links.is_empty() {
        let rows =
            status.links.iter().map(|link| [between(link), link.interfaces.clone(), link.state.clone(), at(link)]);
        text += &format!("\n{}\n", table(["LINK", "INTERFACES", "STATE", "AT"], rows));
    }
    if let Some(rollout) = &status.rollout {
        text += &format!("\n{}\n", watched(rollout));
    }
    text + &not_well(&missing(status))
}

/// How a roll-out goes.
fn watched(rollout: &RolloutStatus) -> String {
    let RolloutStatus { to, from, step, last, share, events, faults, .. } = rollout;
    let did = format!("{events} events, {faults} faults");
    if step < last {
        format!("rolling out {to} in place of {from}: step {step} of {last}, {share} % of the events; {did}")
    } else {
        format!("{to} took the place of {from}, which is kept ready while {to} is watched; {did}")
    }
}

/// One sentence for each thing that stands between an app and `ready`; none where nothing does. What the node sums up
/// already is not said again.
pub(super) fn missing(status: &AppStatus) -> Vec<String> {
    let is_new = |why: &Option<String>| {
        why.as_ref().is_none_or(|why| !status.problems.iter().any(|told| told.ends_with(why.as_str())))
    };
    let because = |why: &Option<String>| why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let mut missing = status.problems.clone();
    for component in &status.components {
        let name = &component.name;
        if component.problem.is_some() && is_new(&component.problem) {
            missing.push(format!("component {name}{}", because(&component.problem)));
        }
        for holder in component.holders.iter().filter(|holder| !is_well(holder) && is_new(&holder.problem)) {
            missing.push(format!(
                "component {name} on {} is {}{}",
                holder.name,
                holder.state,
                because(&holder.problem)
            ));
        }
    }
    let is_linked = |link: &LinkStatus| link.state == "ready" && link.problem.is_none();
    for link in status.links.iter().filter(|link| !is_linked(link) && is_new(&link.problem)) {
        let what = format!("link {} ({})", between(link), link.interfaces);
        missing.push(format!("{what} is {}{}", link.state, because(&link.problem)));
    }
    missing
}

/// Whether nothing waits for this holder.
fn is_well(holder: &Holder) -> bool {
    matches!(holder.state.as_str(), "ready" | "behind")
}

/// One row for each holder; one for a component that nobody holds.
fn rows(component: &ComponentStatus) -> Vec<[String; 8]> {
    let (name, asked) = (component.name.clone(), component.asked.clone());
    if component.holders.is_empty() {
        let nothing = String::new;
        return vec![[name, asked, "(no node)".into(), nothing(), nothing(), nothing(), nothing(), nothing()]];
    }
    let row = |(i, holder): (usize, &Holder)| {
        [
            if i == 0 { name.clone() } else { String::new() },
            if i == 0 { asked.clone() } else { String::new() },
            holder.name.clone(),
            holder.permits.map_or("any".into(), |permits| permits.to_string()),
            holder.state.clone(),
            holder.running.to_string(),
            holder.events.to_string(),
            holder.faults.to_string(),
        ]
    };
    component.holders.iter().enumerate().map(row).collect()
}

/// Where a link is reached, or which node has its lease.
fn at(link: &LinkStatus) -> String {
    let lease = link.lease.as_ref().map(|lease| format!("lease {} on {} ({})", lease.token, lease.name, lease.node));
    link.at.clone().or(lease).unwrap_or_default()
}

/// `http -> api`, with the link's name where it has one of its own.
fn between(link: &LinkStatus) -> String {
    let ends = format!("{} -> {}", link.source, link.target);
    if link.name == "default" { ends } else { format!("{ends} `{}`", link.name) }
}
