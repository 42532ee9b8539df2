//! Explain: why an app is placed as it is, what would change that, and where events for it went. Made from the state and
//! from what this node did lately; changes nothing.

use trellis_placement::{Life, State, Verdict, Versions};
use trellis_wire::{AppName, ComponentKey, NodeId};

use crate::api::types::{AppExplanation, ComponentExplanation, NodeVerdict, RoutedEvent};
use crate::cut_off;
use crate::home;
use crate::node::Node;
use crate::status;

/// Explains an app; `None` if there is none of that name.
pub(crate) fn app(node: &Node, name: &AppName) -> Option<AppExplanation> {
    let state = node.raft.state().borrow().clone();
    let versions = state.app(name)?;
    let mut keys: Vec<ComponentKey> = Vec::new();
    for release in versions.running() {
        let entries = release.app.components.keys().chain(release.app.providers.keys());
        keys.extend(entries.map(|entry| release.key(entry)).filter(|key| key.app == *name));
    }
    keys.sort();
    keys.dedup();
    let unplaced = state.unplaced(name);
    let component = |key: &ComponentKey| ComponentExplanation {
        name: key.name.to_string(),
        unplaced: unplaced.iter().filter(|missing| missing.component == *key).map(ToString::to_string).collect(),
        nodes: state.explain(key).into_iter().map(|(id, verdict)| judged(node, &state, key, id, &verdict)).collect(),
    };
    Some(AppExplanation {
        app: name.to_string(),
        notes: [
            // First: it is said of all that follows.
            cut_off::why(node).into_iter().collect(),
            of_versions(node, &state, name, versions),
            of_home(node, &state, versions),
            node.liveness.problems(),
        ]
        .concat(),
        components: keys.iter().map(component).collect(),
        routed: node
            .dispatch
            .elsewhere()
            .routed()
            .into_iter()
            .filter(|one| one.component.app == *name)
            .map(|one| RoutedEvent {
                at_ms: one.at_ms,
                component: one.component.name.to_string(),
                to: state.shown(one.to),
                why: one.why.into(),
            })
            .collect(),
    })
}

fn judged(node: &Node, state: &State, key: &ComponentKey, id: NodeId, verdict: &Verdict) -> NodeVerdict {
    let mut why = verdict.to_string();
    let is_lost = state.node(id).is_none_or(trellis_placement::Node::is_lost);
    if !is_lost && node.liveness.life(id) != Life::Alive {
        why.push_str("; it is late with its heartbeat, and gets no new events until it is heard");
    }
    if let Some(leased) = status::leased(node, id, key) {
        why.push_str(&format!("; {leased}"));
    }
    NodeVerdict {
        node: id.to_string(),
        name: state.shown(id),
        holds: matches!(verdict, Verdict::Holds(..) | Verdict::Home),
        change: verdict.remedy(&id.to_string()),
        why,
    }
}

/// What became of versions, where that says why the app is as it is.
fn of_versions(node: &Node, state: &State, name: &AppName, versions: &Versions) -> Vec<String> {
    let mut notes = Vec::new();
    match versions.deployed() {
        Some(deployed) => notes.push(format!("version {} is deployed", deployed.version)),
        None => notes.push("nothing of it runs: it is undeployed or waits".into()),
    }
    if let Some(rollout) = status::app(node, name).and_then(|status| status.rollout) {
        notes.push(status::on_its_way(&rollout));
    }
    for kept in versions.kept() {
        if let Some(why) = state.rolled_back(name, &kept.release.version) {
            notes.push(format!("version {} was rolled back: {why}", kept.release.version));
        }
    }
    notes
}

/// Where what is embedded of an app is kept, and where its MQTT topics with an order or caps are pulled, if it has any.
fn of_home(node: &Node, state: &State, versions: &Versions) -> Vec<String> {
    let Some(home) = state.home_node() else { return Vec::new() };
    let providers =
        || versions.running().flat_map(|release| release.app.providers.keys().map(|entry| release.key(entry)));
    let keeps = providers().any(|provider| state.kept_at(&provider).is_some());
    let pulls = providers().any(|provider| state.pulls_at_home(&provider));
    if !keeps && !pulls {
        return Vec::new();
    }
    let (home, mut notes) = (state.named(home), Vec::new());
    if keeps {
        notes.push(format!(
            "what trellis://embedded keeps of it is on node {home}, the home; other nodes reach it over the bus"
        ));
    }
    if pulls {
        notes.push(format!(
            "what it is to have of MQTT in order or under caps is pulled on node {home}, the home, for every node that holds it"
        ));
    }
    notes.into_iter().chain(home::away(state, &node.liveness)).collect()
}
