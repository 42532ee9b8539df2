//! How a node gets from what it runs to what it is assigned.

use serde::{Deserialize, Serialize};
use trellis_wire::{ComponentKey, LinkId};

use crate::{Assigned, HeldComponent, HeldLink};

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
    AddLink(Box<HeldLink>),
}

/// The steps from `running` to `assigned`: links end before their components go, components are there before their
/// links begin, and what did not change is not touched.
pub fn diff(running: &Assigned, assigned: &Assigned) -> Vec<Step> {
    let ended = running.links.iter().filter(|(id, held)| assigned.links.get(id) != Some(held));
    let gone = running.components.keys().filter(|key| !assigned.components.contains_key(key));
    let held = assigned.components.iter().filter_map(|(key, held)| match running.components.get(key) {
        Some(before) if before == held => None,
        Some(before) if before.digest == held.digest => Some(Step::Adjust(key.clone(), Box::new(held.clone()))),
        _ => Some(Step::Hold(key.clone(), Box::new(held.clone()))),
    });
    let begun = assigned.links.iter().filter(|(id, held)| running.links.get(id) != Some(held));
    let ended = ended.map(|(id, _)| Step::RemoveLink(id.clone()));
    let gone = gone.map(|key| Step::RemoveComponent(key.clone()));
    let begun = begun.map(|(_, held)| Step::AddLink(Box::new(held.clone())));
    ended.chain(gone).chain(held).chain(begun).collect()
}
