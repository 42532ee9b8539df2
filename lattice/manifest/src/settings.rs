//! `config` and `secrets`, of an entry and of either end of a link.

use std::collections::BTreeMap;

use trellis_wire::Config;
use trellis_wire::credentials::{self, Held};

use crate::fields::{self, Fields};
use crate::finding::At;
use crate::links::Side;
use crate::nearest::did_you_mean;
use crate::reading::Reading;
use crate::tree::Node;
use crate::{Policy, SecretRef, SecretsBackend, level};

/// Config that the manifest gives properties for.
pub(crate) struct Given {
    pub(crate) values: Config,
    /// Where each key stands.
    pub(crate) keys: BTreeMap<String, At>,
    at: At,
    side: Side,
}

/// What an entry, or one end of a link, has.
#[derive(Default)]
pub(crate) struct Settings {
    /// The names that the lattice knows the config by.
    pub(crate) configs: Vec<String>,
    pub(crate) secrets: Vec<SecretRef>,
    /// Where the name of each secret stands.
    pub(crate) secrets_at: Vec<At>,
}

/// Reads both.
pub(crate) fn read(fields: &Fields<'_>, side: Side, reading: &mut Reading<'_, '_>) -> Settings {
    let configs = configs(fields, "config", side, reading);
    let (secrets, secrets_at) = secrets(fields, reading).into_iter().unzip();
    Settings { configs, secrets, secrets_at }
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
    credentials_in(properties, reading);
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

fn secrets(fields: &Fields<'_>, reading: &mut Reading<'_, '_>) -> Vec<(SecretRef, At)> {
    let nodes = fields.list("secrets", reading.report);
    nodes.iter().filter_map(|node| secret(node, reading)).collect()
}

fn secret(node: &Node, reading: &mut Reading<'_, '_>) -> Option<(SecretRef, At)> {
    let report = &mut *reading.report;
    let fields = Fields::read(node, &level::SECRET, report)?;
    let name = fields.need_text("name", "name: api-key", report);
    let properties = fields.need("properties", "properties: {policy: my-secrets, key: api-key}", report)?;
    let fields = Fields::read(properties, &level::SECRET_PROPERTIES, report)?;
    let policy = fields.need_text("policy", "policy: my-secrets", report);
    let key = fields.need_text("key", "key: api-key", report);
    let field = fields.text("field", report);
    let version = fields.text("version", report);
    let (policy, at) = policy?;
    let backend = backend(policy, at, reading)?;
    if let (SecretsBackend::Env | SecretsBackend::File, Some((_, at))) = (&backend, version) {
        let message = format!("the secrets backend `{backend}` keeps no versions");
        reading.report.error(
            at,
            message,
            "leave `version` out: the value is read as it is now, and again when it changes",
        );
    }
    if let (SecretsBackend::Env, Some((field, at))) = (&backend, field) {
        let message = format!("a variable has no field `{field}`");
        reading.report.error(at, message, "leave `field` out, or keep the secret in the backend `file`");
    }
    let (field, version) = (field.map(|(text, _)| text.to_owned()), version.map(|(text, _)| text.to_owned()));
    let (name, at) = name?;
    let named = SecretRef { name: name.into(), policy: policy.into(), backend, key: key?.0.into(), field, version };
    Some((named, at))
}

/// Who holds the secrets of a policy.
fn backend(policy: &str, at: At, reading: &mut Reading<'_, '_>) -> Option<SecretsBackend> {
    match reading.app.policies.get(policy) {
        None => {
            let known: Vec<_> = reading.app.policies.keys().map(String::as_str).collect();
            let add = format!(
                "add it below `spec.policies`: `- {{name: {policy}, type: {}, properties: {{backend: file}}}}`",
                Policy::SECRETS
            );
            let help = did_you_mean(policy, known.iter().copied(), &add);
            reading.report.error(at, format!("the policy `{policy}` is not in this manifest"), help);
            None
        }
        Some(found) if found.kind != Policy::SECRETS => {
            let message = format!("the policy `{policy}` is no secrets policy: its type is `{}`", found.kind);
            reading.report.error(at, message, format!("write `type: {}` in the policy", Policy::SECRETS));
            None
        }
        Some(found) => {
            let Some(backend) = found.backend() else {
                let message = format!("the policy `{policy}` names no backend");
                reading.report.error(
                    at,
                    message,
                    "write `backend: file` or `backend: env` below the policy's `properties`",
                );
                return None;
            };
            let backend = SecretsBackend::named(backend);
            if let SecretsBackend::NotBuilt(backend) = &backend {
                let message =
                    format!("the secrets backend `{backend}` is not built yet: this can be validated but not deployed");
                let help = "write `backend: file` or `backend: env` in the policy, and open it on the nodes: \
                            `trellis up --secrets PATH` or `--secrets-env-prefix PREFIX`";
                reading.report.warn(at, message, help);
            }
            Some(backend)
        }
    }
}

/// A credential would be in the lattice's log, its state and its status. What only a provider knows for one is left to the
/// rules: here it is only hidden.
fn credentials_in(properties: &Node, reading: &mut Reading<'_, '_>) {
    for pair in properties.pairs() {
        let Some(text) = pair.node.text() else { continue };
        match credentials::held(&pair.key, text) {
            None => {}
            Some(Held::InAddress) => {
                reading.report.hide(pair.node.text_at, |text| credentials::hidden_in(&pair.key, text));
                let message = format!("`{}` holds a password, which the lattice would keep and show", pair.key);
                let help = format!("take it out of the URL, and {}", to_secrets("password"));
                reading.report.error(pair.node.at, message, help);
            }
            Some(Held::Plain | Held::AsWasmcloud) => reading.report.hide(pair.node.text_at, credentials::hidden),
        }
    }
}

/// How to write a credential instead.
pub(crate) fn to_secrets(name: &str) -> String {
    format!(
        "name it below `secrets:` beside this `config:`, as in `- {{name: {name}, properties: {{policy: my-secrets, key: \
         my-{name}}}}}`"
    )
}
