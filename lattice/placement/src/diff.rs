//! How a node gets from what it runs to what it is assigned.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trellis_wire::{ComponentKey, LinkId};

use crate::{AppShare, Assigned, Beside, HeldComponent, HeldLink};

/// One step. Steps are carried out in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// End a link: nothing is woken or answered under it any more.
    RemoveLink(LinkId),
    /// Hold a component no longer.
    RemoveComponent(ComponentKey),
    /// Hold a component: it is new here, or its code is.
    Hold(ComponentKey, Box<HeldComponent>),
    /// Go on with the same code under other permits, limits, config or version. Nothing is loaded anew.
    Adjust(ComponentKey, Box<HeldComponent>),
    /// Apply a link. One that changed was removed before.
    AddLink(Arc<HeldLink>),
    /// Hold a component in the other version of a roll-out too, or go on so with another share of the events.
    HoldBeside(ComponentKey, Box<Beside>),
    /// Hold that version no longer.
    RemoveBeside(ComponentKey),
}

/// The steps from `running` to `assigned`: links end before their components go, components are there before their
/// links begin, and what did not change is not touched, nor looked at where both are the same in memory.
pub fn diff(running: &Assigned, assigned: &Assigned) -> Vec<Step> {
    let mut all: [Vec<Step>; 6] = Default::default();
    for (_, running, assigned) in running.apart(assigned) {
        for (steps, more) in all.iter_mut().zip(of_section(running, assigned)) {
            steps.extend(more);
        }
    }
    all.into_iter().flatten().collect()
}

/// The steps of one section, by their kind.
fn of_section(running: &AppShare, assigned: &AppShare) -> [Vec<Step>; 6] {
    let ended = running.links.iter().filter(|(id, held)| assigned.links.get(id) != Some(held));
    let gone = running.components.keys().filter(|key| !assigned.components.contains_key(key));
    let held = assigned.components.iter().filter_map(|(key, held)| match running.components.get(key) {
        Some(before) if before == held => None,
        Some(before) if before.digest == held.digest => Some(Step::Adjust(key.clone(), Box::new(held.clone()))),
        _ => Some(Step::Hold(key.clone(), Box::new(held.clone()))),
    });
    let begun = assigned.links.iter().filter(|(id, held)| running.links.get(id) != Some(held));
    let beside = assigned.beside.iter().filter(|(key, beside)| running.beside.get(key) != Some(beside));
    let beside_gone = running.beside.keys().filter(|key| !assigned.beside.contains_key(key));
    [
        ended.map(|(id, _)| Step::RemoveLink(id.clone())).collect(),
        gone.map(|key| Step::RemoveComponent(key.clone())).collect(),
        held.collect(),
        beside.map(|(key, beside)| Step::HoldBeside(key.clone(), Box::new(beside.clone()))).collect(),
        begun.map(|(_, held)| Step::AddLink(held.clone())).collect(),
        beside_gone.map(|key| Step::RemoveBeside(key.clone())).collect(),
    ]
}
