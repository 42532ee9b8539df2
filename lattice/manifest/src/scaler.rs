//! The properties of a spreadscaler or a daemonscaler.

use std::collections::{BTreeMap, BTreeSet};

use crate::fields::{self, Fields};
use crate::finding::Report;
use crate::tree::Node;
use crate::{Scaler, Spread, level};

/// The weight of a spread that names none (wadm-types 0.8, `DEFAULT_SPREAD_WEIGHT`).
const WEIGHT: u32 = 100;

/// Reads a scaler.
pub(crate) fn read(node: &Node, daemon: bool, report: &mut Report<'_>) -> Option<Scaler> {
    let fields = Fields::read(node, &level::SCALER, report)?;
    let instances = instances(&fields, report);
    let spreads = spreads(&fields, report);
    Some(if daemon { Scaler::Daemon { instances, spreads } } else { Scaler::Spread { instances, spreads } })
}

/// `instances`, or `replicas` as older manifests have it.
fn instances(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<u32> {
    let alias = fields.pair("replicas");
    if let (Some(_), Some(pair)) = (fields.get("instances"), alias) {
        report.error(pair.key_at, "`replicas` is another word for `instances`: both are given", "keep `instances`");
    }
    let node = fields.get("instances").or(alias.map(|pair| &pair.node))?;
    fields::count(node, "`instances`", 0, report)
}

fn spreads(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<Spread> {
    let nodes = fields.list("spread", report);
    let spreads: Vec<_> = nodes.iter().filter_map(|node| spread(node, report)).collect();
    let mut names = BTreeSet::new();
    for (node, spread) in nodes.iter().zip(&spreads) {
        if !names.insert(&spread.name) {
            let message = format!("the spread `{}` comes twice", spread.name);
            report.warn(node.at, message, "give each a name of its own, so that `explain` can tell them apart");
        }
    }
    if let Some(first) = nodes.first()
        && spreads.iter().all(|spread| spread.weight == 0)
        && spreads.len() == nodes.len()
    {
        report.warn(
            first.at,
            "all weights are 0: they count as equal",
            "write `weight: 100`, or leave the weights out",
        );
    }
    if spreads.is_empty() { vec![everywhere()] } else { spreads }
}

fn spread(node: &Node, report: &mut Report<'_>) -> Option<Spread> {
    let fields = Fields::read(node, &level::SPREAD, report)?;
    let name = fields.need_text("name", "name: eastcoast", report);
    let requirements = fields.need("requirements", "requirements: {}", report);
    let requirements = requirements.map(|node| fields::texts(node, "`requirements`", report));
    let weight = fields.get("weight").map_or(Some(WEIGHT), |node| fields::count(node, "`weight`", 0, report));
    Some(Spread { name: name?.0.into(), requirements: requirements?, weight: weight? })
}

/// The spread of a scaler that names none.
fn everywhere() -> Spread {
    Spread { name: "default".into(), requirements: BTreeMap::new(), weight: WEIGHT }
}
