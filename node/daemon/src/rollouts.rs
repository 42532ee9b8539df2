//! The leader's loop over roll-outs: how they go by the heartbeats of all nodes in, the next step out, proposed as a
//! command. When to take it is decided by `placement::Watch`, which is pure; here is only what nodes say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use trellis_placement::{Assigned, Care, Direction, Progress, Release, Spare, State, Watch};
use trellis_raft::Raft;
use trellis_wire::{AppName, ComponentKey, ComponentName};

use crate::board::{Health, Mark};
use crate::fetch::Fetch;
use crate::liveness::{Counts, Liveness, OfComponent};
use crate::proposal;
use crate::shares::Shares;

/// How often roll-outs are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many things that are not ready are named.
const MISSING_MAX: usize = 8;

/// What the loop needs.
pub(crate) struct Rollouts {
    pub(crate) raft: Raft,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) care: Care,
}

impl Rollouts {
    /// Runs until `shutdown`. Every node looks, so that whoever comes to lead knows enough; the leader acts.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let (mut watch, origin) = (Watch::new(self.care), Instant::now());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let state = self.raft.state().borrow().clone();
            if !self.raft.leadership().borrow().me {
                watch.look(&state, origin.elapsed());
                continue;
            }
            let asked = state.rolling().map(async |(app, _)| (app.clone(), self.fetch.lacking(&state, app).await));
            let lacking: BTreeMap<_, _> = futures::future::join_all(asked).await.into_iter().collect();
            let progress = |app: &AppName| {
                let mut progress = progress(&state, &self.shares, &self.liveness, app);
                let spares = lacking.get(app).into_iter().flatten();
                progress.missing.extend(spares.map(|(name, spare)| without_spare(&state, name, *spare)));
                progress
            };
            for command in watch.decide(&state, origin.elapsed(), progress) {
                tracing::info!(?command, "roll-out");
                if let Err(why) = self.raft.propose(proposal::entry(command)).await {
                    tracing::warn!("a roll-out does not go on yet: {why}");
                }
            }
        }
    }
}

/// How the version that is rolled out is doing, by the plan and by what nodes said last.
pub(crate) fn progress(state: &State, shares: &Shares, liveness: &Liveness, app: &AppName) -> Progress {
    let Some((versions, newer)) = state.app(app).and_then(|versions| Some((versions, versions.newer()?))) else {
        return Progress::default();
    };
    let (step, is_last) = versions.rollout().map_or((0, false), |rollout| (rollout.step, rollout.is_last()));
    let mut progress = Progress { missing: state.unready(app), ..Progress::default() };
    let links = state.link_ids(newer);
    for (&id, node) in state.nodes().iter().filter(|(_, node)| !node.is_lost()) {
        let share = shares.of(id);
        let mut missing = Vec::new();
        for key in newer.app.components.keys().map(|entry| newer.key(entry)).filter(|key| key.app == *app) {
            let Some(mark) = marked(&share, &key, newer, is_last) else { continue };
            let report = if is_last { liveness.component(id, &key) } else { liveness.beside(id, &key) };
            // What is said of another version is not counted for this one.
            let report = report.filter(|report| report.mark == mark);
            if let Some(OfComponent { counts: Counts { tally: (events, faults), .. }, .. }) = report {
                (progress.events, progress.faults) = (progress.events + events, progress.faults + faults);
            }
            missing.extend(lack(report.map(|report| report.health)).map(|why| format!("{}{why}", key.name)));
        }
        for held in links.iter().filter_map(|link| share.exact_link(link)) {
            // At the first step what wakes is the former version's still.
            if step == 0 && matches!(held.direction, Direction::Wakes { .. }) {
                continue;
            }
            let report = liveness.link(id, &held.link.id).filter(|report| report.mark == Mark::of(&**held));
            let why = lack(report.map(|report| report.health));
            missing.extend(why.map(|why| format!("link {}{why}", held.link.id)));
        }
        if !node.facts.edge {
            let on = |what: String| format!("{what} (on {}, {id})", node.facts.name);
            progress.missing.extend(missing.into_iter().map(on));
        }
    }
    progress.missing.truncate(MISSING_MAX);
    progress
}

/// What is said of a component whose spare has no copy of its code yet.
pub(crate) fn without_spare(state: &State, name: &ComponentName, spare: Spare) -> String {
    format!("{name}: node {}, which is to keep a copy of its code, has none yet", state.named(spare.node))
}

/// What the node is to hold of the newer version, if it is to.
fn marked(share: &Assigned, key: &ComponentKey, newer: &Release, is_last: bool) -> Option<Mark> {
    match is_last {
        true => share.component(key).filter(|held| held.version == newer.version).map(Mark::of),
        false => share.beside(key).map(Mark::of),
    }
}

/// What a report lacks to be ready.
fn lack(health: Option<Health>) -> Option<String> {
    match health {
        Some(health) if health.is_ready() => None,
        Some(Health::Failed(why) | Health::Unwell(why)) => Some(format!(": {why}")),
        Some(Health::Starting | Health::Ready) | None => Some(" is not ready yet".into()),
    }
}
