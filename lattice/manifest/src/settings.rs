//! `config` and `secrets`, of an entry and of either end of a link.

use std::collections::BTreeMap;

use trellis_wire::Config;

use crate::fields::{self, Fields};
use crate::finding::At;
use crate::links::Side;
use crate::nearest::did_you_mean;
use crate::reading::Reading;
use crate::tree::Node;
use crate::{Policy, Secret, level};

/// Config that the manifest gives properties for.
pub(crate) struct Given {
    pub(crate) values: Config,
    /// Where each key stands.
    pub(crate) keys: BTreeMap<String, At>,
    at: At,
    side: Side,
}

/// Reads both: the names that the lattice knows the config by, and the secrets.
pub(crate) fn read(fields: &Fields<'_>, side: Side, reading: &mut Reading<'_, '_>) -> (Vec<String>, Vec<Secret>) {
    (configs(fields, "config", side, reading), secrets(fields, reading))
}

/// Reads a list of config under `key`.
pub(crate) fn configs(fields: &Fields<'_>, key: &str, side: Side, reading: &mut Reading<'_, '_>) -> Vec<String> {
    let nodes = fields.list(key, reading.report);
    nodes.iter().filter_map(|node| config(node, side, reading)).collect()
}

fn config(node: &Node, side: Side, reading: &mut Reading<'_, '_>) -> Option<String> {
    let fields = Fields::read(node, &level::CONFIG, reading.report)?;
    let name = fields.need_text("name", "name: my-config", reading.report);
    let Some(properties) = fields.get("properties") else {
        let (name, at) = name?;
        reading.named.push((name.into(), at));
        return Some(name.into());
    };
    let values = Config::from_iter(fields::texts(properties, "the properties of a config", reading.report));
    let (name, at) = name?;
    let keys = properties.pairs().iter().map(|pair| (pair.key.clone(), pair.key_at)).collect();
    let stored = format!("{}-{name}", reading.app.name);
    give(name, &stored, Given { values, keys, at, side }, reading);
    Some(stored)
}

/// Takes config; two of one name would overwrite each other in the lattice.
fn give(name: &str, stored: &str, given: Given, reading: &mut Reading<'_, '_>) {
    if let Some(first) = reading.given.get(stored) {
        let line = first.at.line;
        if given.side == Side::Link && first.side == Side::Link {
            let help = format!(
                "line {line} gives it already: choose another name, or write `- name: {stored}` alone to use that one"
            );
            reading.report.error(given.at, format!("the link config `{name}` is given twice"), help);
        } else if given.values != first.values {
            let message =
                format!("the config `{name}` is given twice with different properties: the last one counts for both");
            reading.report.warn(given.at, message, format!("choose another name here or in line {line}"));
        }
    }
    reading.given.insert(stored.into(), given);
}

fn secrets(fields: &Fields<'_>, reading: &mut Reading<'_, '_>) -> Vec<Secret> {
    let nodes = fields.list("secrets", reading.report);
    nodes.iter().filter_map(|node| secret(node, reading)).collect()
}

fn secret(node: &Node, reading: &mut Reading<'_, '_>) -> Option<Secret> {
    let report = &mut *reading.report;
    let fields = Fields::read(node, &level::SECRET, report)?;
    let name = fields.need_text("name", "name: api-key", report);
    let properties = fields.need("properties", "properties: {policy: my-secrets, key: api-key}", report)?;
    let fields = Fields::read(properties, &level::SECRET_PROPERTIES, report)?;
    let policy = fields.need_text("policy", "policy: my-secrets", report);
    let key = fields.need_text("key", "key: api-key", report);
    let field = fields.text("field", report).map(|(text, _)| text.to_owned());
    let version = fields.text("version", report).map(|(text, _)| text.to_owned());
    let (policy, at) = policy?;
    policy_of_secret(policy, at, reading);
    Some(Secret { name: name?.0.into(), policy: policy.into(), key: key?.0.into(), field, version })
}

fn policy_of_secret(name: &str, at: At, reading: &mut Reading<'_, '_>) {
    match reading.app.policies.get(name) {
        None => {
            let known: Vec<_> = reading.app.policies.keys().map(String::as_str).collect();
            let add = format!(
                "add it below `spec.policies`: `- {{name: {name}, type: {}, properties: {{backend: ..}}}}`",
                Policy::SECRETS
            );
            let help = did_you_mean(name, known.iter().copied(), &add);
            reading.report.error(at, format!("the policy `{name}` is not in this manifest"), help);
        }
        Some(policy) if policy.kind != Policy::SECRETS => {
            let message = format!("the policy `{name}` is no secrets policy: its type is `{}`", policy.kind);
            reading.report.error(at, message, format!("write `type: {}` in the policy", Policy::SECRETS));
        }
        Some(policy) => match policy.backend() {
            None => {
                let message = format!("the policy `{name}` names no backend");
                reading.report.error(at, message, "write `backend: ..` below the policy's `properties`");
            }
            Some(backend) => {
                let message =
                    format!("the secrets backend `{backend}` is not built yet: this can be validated but not deployed");
                reading.report.warn(
                    at,
                    message,
                    "leave the secret out, or give the value as config where that is safe enough",
                );
            }
        },
    }
}
