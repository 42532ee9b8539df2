//! The lattice's own events: what changed in its state, and what nodes report of the components they hold, as CloudEvents
//! 1.0. Each node makes its own from what it knows, so any node can be followed; their ids are each node's own.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use trellis_placement::{Happening, State, happenings};
use trellis_provider::delivery::PAUSED;
use trellis_raft::{Leadership, Raft};
use trellis_wire::{ComponentKey, LatticeId, LinkId, NodeId};

use crate::api::types::CloudEvent;
use crate::board::Health;
use crate::clock;
use crate::liveness::OfLink;
use crate::tail::Tail;

/// Events kept in memory.
const KEPT_EVENTS_MAX: usize = 2_000;
/// Of a lost node with more components than this it is told how many they are, and not of each.
const LOST_EVENTS_MAX: usize = 100;

/// What a node reports of a component that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// It is ready there.
    Started,
    /// It is there no more.
    Stopped,
    /// So many events of it ended in a fault since the last report.
    Faulted(u64),
    /// The trigger of this link paused by itself.
    Paused(LinkId),
    /// It goes on.
    Resumed(LinkId),
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

    /// Takes what changes in the state, and who leads, until `shutdown`. What was before is no event.
    pub(crate) async fn run(self: Arc<Self>, raft: Raft, shutdown: CancellationToken) {
        let (mut states, mut leaders) = (raft.state(), raft.leadership());
        let mut before = states.borrow_and_update().clone();
        let mut led = None;
        self.elected(&before, &mut led, &leaders.borrow_and_update().clone());
        loop {
            // Ends with the node, or with Raft; both at once are told one after the other.
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = states.changed() => if changed.is_err() { return },
                changed = leaders.changed() => if changed.is_err() { return },
            }
            let after = states.borrow_and_update().clone();
            self.elected(&after, &mut led, &leaders.borrow_and_update().clone());
            if before.lattice_id().is_some() {
                for happening in happenings(&before, &after) {
                    let (kind, subject, data) = told(&happening, &before, &after);
                    self.push(&after, kind, subject, data);
                }
            }
            before = after;
        }
    }

    /// Tells who leads, where that is another node than before, or the same one anew. Who is the first to be known led before.
    fn elected(&self, state: &State, led: &mut Option<(NodeId, u64)>, now: &Leadership) {
        let Some(leader) = now.leader else { return };
        let before = led.replace((leader, now.term));
        if before.is_none() || before == *led {
            return;
        }
        let (node, name) = (leader.to_string(), name(state, leader));
        let data = json!({ "node": node, "name": name, "term": now.term });
        self.push(state, "leader.elected", node, data);
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
            Report::Paused(link) | Report::Resumed(link) => {
                (data["app"], data["link"], data["by"]) =
                    (json!(component.app), json!(link.to_string()), json!("itself"));
                if matches!(report, Report::Paused(_)) { "trigger.paused" } else { "trigger.resumed" }
            }
        };
        self.push(state, kind, component.to_string(), data);
    }

    /// Takes which components ran on a node that is lost.
    pub(crate) fn lost(&self, state: &State, node: NodeId, ran: &BTreeSet<ComponentKey>) {
        let (id, why) = (node.to_string(), "the node is lost");
        let data = json!({ "node": id, "name": name(state, node), "why": why });
        let stopped = |subject: String, of: &str, what: Value| {
            let mut data = data.clone();
            data[of] = what;
            self.push(state, "component.stopped", subject, data);
        };
        if ran.len() > LOST_EVENTS_MAX {
            return stopped(id.clone(), "components", json!(ran.len()));
        }
        ran.iter().map(ComponentKey::to_string).for_each(|key| stopped(key.clone(), "component", json!(key)));
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

/// Triggers of a node that paused by themselves, or go on, between what it said of its links before and now.
pub(crate) fn pauses<'a>(
    before: impl Iterator<Item = &'a (LinkId, OfLink)>,
    now: impl Iterator<Item = &'a (LinkId, OfLink)>,
) -> Vec<(ComponentKey, Report)> {
    let is_paused = |link: &OfLink| matches!(&link.health, Health::Unwell(why) if why.starts_with(PAUSED));
    let paused: BTreeSet<_> = before.filter(|(_, link)| is_paused(link)).map(|(id, _)| id).collect();
    let report = |(id, link): &(LinkId, OfLink)| match (paused.contains(id), is_paused(link)) {
        (false, true) => Some((id.target()?, Report::Paused(id.clone()))),
        // What ails it otherwise says nothing of the pause.
        (true, false) if link.health == Health::Ready => Some((id.target()?, Report::Resumed(id.clone()))),
        _ => None,
    };
    now.filter_map(report).collect()
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
    let lease = |kind, link: &LinkId, lease: &trellis_placement::Lease| {
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
        Happening::NodeLabelled(node, labels) => {
            let (kind, subject, mut data) = of_node("node.labelled", *node);
            data["labels"] = json!(labels);
            (kind, subject, data)
        }
        Happening::HomeSet(node) => of_node("home.set", *node),
        Happening::AppDeployed { app, version, before } => {
            ("app.deployed", app.to_string(), json!({ "app": app, "version": version, "before": before }))
        }
        Happening::AppRolling { app, version, before } => {
            ("app.rolling", app.to_string(), json!({ "app": app, "version": version, "before": before }))
        }
        Happening::AppRolledBack { app, version, before, why } => (
            "app.rolled_back",
            app.to_string(),
            json!({ "app": app, "version": version, "before": before, "why": why }),
        ),
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

#[cfg(test)]
mod tests {
    use trellis_wire::LinkName;

    use super::*;
    use crate::board::Mark;

    #[test]
    fn a_leader_is_told_when_another_leads_or_the_same_one_anew() {
        let node = |n: u128| NodeId::new(uuid::Uuid::from_u128(n));
        let (events, state, mut led) = (Events::new(node(1)), State::default(), None);
        let mut told = |leader: Option<NodeId>, term: u64| {
            events.elected(&state, &mut led, &Leadership { leader, term, me: false });
            events.follow(usize::MAX, |_| true).0.len()
        };
        assert_eq!(told(None, 0), 0);
        assert_eq!(told(Some(node(1)), 1), 0, "it led before");
        assert_eq!(told(None, 2), 0);
        assert_eq!(told(Some(node(1)), 1), 0, "it was only out of sight");
        assert_eq!(told(Some(node(2)), 3), 1);
        assert_eq!(told(Some(node(2)), 4), 2, "anew");
    }

    #[test]
    fn of_a_lost_node_each_component_is_told_or_how_many_they_are() {
        let (node, state) = (NodeId::new(uuid::Uuid::from_u128(1)), State::default());
        let told = |count: usize| {
            let events = Events::new(node);
            let ran = (0..count).map(|n| format!("app-{n}/component").parse().unwrap()).collect();
            events.lost(&state, node, &ran);
            events.follow(usize::MAX, |event| event.kind == "trellis.component.stopped").0
        };
        let few = told(LOST_EVENTS_MAX);
        assert_eq!(few.len(), LOST_EVENTS_MAX);
        assert_eq!((&*few[0].subject, &few[0].data["component"]), ("app-0/component", &json!("app-0/component")));
        assert_eq!((&few[0].data["node"], &few[0].data["why"]), (&json!(node.to_string()), &json!("the node is lost")));
        let many = told(LOST_EVENTS_MAX + 1);
        assert_eq!((many.len(), &*many[0].subject), (1, &*node.to_string()));
        assert_eq!(many[0].data["components"], LOST_EVENTS_MAX + 1);
    }

    #[test]
    fn a_trigger_that_pauses_by_itself_is_told_once_and_when_it_goes_on() {
        let key = |text: &str| text.parse::<ComponentKey>().unwrap();
        let name = LinkName::default();
        let id =
            LinkId::new(&key("shop/queue"), &key("shop/worker"), &name, "trellis", "messaging", &["handler".into()]);
        let said = |health: Health| [(id.clone(), OfLink { mark: Mark::of(&"link"), health, at: None })];
        let paused = || said(Health::Unwell(format!("{PAUSED}: most messages failed")));
        let away = || said(Health::Unwell("not connected".into()));
        let between = |before: &[(LinkId, OfLink)], now: &[(LinkId, OfLink)]| pauses(before.iter(), now.iter());
        let worker = |report: Report| vec![(key("shop/worker"), report)];
        assert_eq!(between(&said(Health::Ready), &paused()), worker(Report::Paused(id.clone())));
        assert_eq!(between(&paused(), &paused()), []);
        assert_eq!(between(&paused(), &away()), [], "nobody knows");
        assert_eq!(between(&paused(), &said(Health::Ready)), worker(Report::Resumed(id.clone())));
        assert_eq!(between(&away(), &said(Health::Ready)), []);
    }
}
