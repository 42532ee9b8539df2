//! The lattice's own events: what changed in its state, and what nodes report of the components they hold, as CloudEvents
//! 1.0. Each node makes its own from what it knows, so any node can be followed; their ids are each node's own.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use trellis_placement::{Happening, State, happenings};
use trellis_wire::{ComponentKey, LatticeId, NodeId};

use crate::api::types::CloudEvent;
use crate::clock;
use crate::tail::Tail;

/// Events kept in memory.
const KEPT_EVENTS_MAX: usize = 2_000;

/// What a node reports of a component that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// It is ready there.
    Started,
    /// It is there no more.
    Stopped,
    /// So many events of it ended in a fault since the last report.
    Faulted(u64),
}

/// The events of the lattice, as this node knows them.
pub(crate) struct Events {
    me: NodeId,
    tail: Tail<CloudEvent>,
}

impl Events {
    pub(crate) fn new(me: NodeId) -> Self {
        Self { me, tail: Tail::new(KEPT_EVENTS_MAX) }
    }

    /// Takes what changes in the state, until `shutdown`. What was before is no event.
    pub(crate) async fn run(self: Arc<Self>, mut states: watch::Receiver<Arc<State>>, shutdown: CancellationToken) {
        let mut before = states.borrow_and_update().clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = states.changed() => if changed.is_err() { return },
            }
            let after = states.borrow_and_update().clone();
            if before.lattice_id().is_some() {
                for happening in happenings(&before, &after) {
                    let (kind, subject, data) = told(&happening, &before, &after);
                    self.push(&after, kind, subject, data);
                }
            }
            before = after;
        }
    }

    /// Takes what a node reports.
    pub(crate) fn reported(&self, state: &State, node: NodeId, component: &ComponentKey, report: &Report) {
        let mut data =
            json!({ "component": component.to_string(), "node": node.to_string(), "name": name(state, node) });
        let kind = match report {
            Report::Started => "component.started",
            Report::Stopped => "component.stopped",
            Report::Faulted(faults) => {
                data["faults"] = json!(faults);
                "component.faulted"
            }
        };
        self.push(state, kind, component.to_string(), data);
    }

    /// The last `lines` events that `wanted` takes, and a receiver of all that come after them.
    pub(crate) fn follow(
        &self,
        lines: usize,
        wanted: impl Fn(&CloudEvent) -> bool,
    ) -> (Vec<CloudEvent>, broadcast::Receiver<CloudEvent>) {
        self.tail.follow(lines, wanted)
    }

    fn push(&self, state: &State, kind: &str, subject: String, data: Value) {
        let lattice = state.lattice_id().as_ref().map(LatticeId::to_string).unwrap_or_default();
        self.tail.push(CloudEvent {
            specversion: "1.0".into(),
            id: uuid::Uuid::now_v7().to_string(),
            source: format!("/trellis/{lattice}/{}", self.me),
            kind: format!("trellis.{kind}"),
            subject,
            time: clock::now_rfc3339(),
            datacontenttype: "application/json".into(),
            data,
        });
    }
}

fn name(state: &State, node: NodeId) -> String {
    state.node(node).map(|known| known.facts.name.clone()).unwrap_or_default()
}

/// The type without its prefix, the subject and the data of an event.
fn told(happening: &Happening, before: &State, after: &State) -> (&'static str, String, Value) {
    let of_node = |kind, node: NodeId| {
        let state = if after.node(node).is_some() { after } else { before };
        (kind, node.to_string(), json!({ "node": node.to_string(), "name": name(state, node) }))
    };
    let lease = |kind, link: &trellis_wire::LinkId, lease: &trellis_placement::Lease| {
        let (node, name) = (lease.node.to_string(), name(after, lease.node));
        (kind, link.to_string(), json!({ "link": link.to_string(), "node": node, "name": name, "token": lease.token }))
    };
    match happening {
        Happening::NodeJoined(node) => of_node("node.joined", *node),
        Happening::NodeLost(node) => of_node("node.lost", *node),
        Happening::NodeBack(node) => of_node("node.back", *node),
        Happening::NodeForgotten(node) => of_node("node.forgotten", *node),
        Happening::NodeDrained(node) => of_node("node.drained", *node),
        Happening::NodeUndrained(node) => of_node("node.undrained", *node),
        Happening::AppDeployed { app, version, before } => {
            ("app.deployed", app.to_string(), json!({ "app": app, "version": version, "before": before }))
        }
        Happening::AppRolling { app, version, before } => {
            ("app.rolling", app.to_string(), json!({ "app": app, "version": version, "before": before }))
        }
        Happening::AppRolledBack { app, version, before } => {
            ("app.rolled_back", app.to_string(), json!({ "app": app, "version": version, "before": before }))
        }
        Happening::AppWaits { app, version, waits_for } => {
            ("app.waits", app.to_string(), json!({ "app": app, "version": version, "waits_for": waits_for }))
        }
        Happening::AppUndeployed(app) => ("app.undeployed", app.to_string(), json!({ "app": app })),
        Happening::AppDeleted(app) => ("app.deleted", app.to_string(), json!({ "app": app })),
        Happening::LinkSet(app, link) => ("link.set", link.to_string(), json!({ "app": app, "link": link })),
        Happening::LinkRemoved(app, link) => ("link.removed", link.to_string(), json!({ "app": app, "link": link })),
        Happening::TriggerPaused(component) => (
            "trigger.paused",
            component.to_string(),
            json!({ "app": component.app, "component": component.to_string() }),
        ),
        Happening::TriggerResumed(component) => (
            "trigger.resumed",
            component.to_string(),
            json!({ "app": component.app, "component": component.to_string() }),
        ),
        Happening::LeaseGranted(link, granted) => lease("lease.granted", link, granted),
        Happening::LeaseLost(link, lost) => lease("lease.lost", link, lost),
    }
}
