//! The manifest from the top: what is read so far, and in which order.

use std::collections::BTreeMap;

use trellis_wire::AppName;

use crate::fields::{self, Fields};
use crate::finding::{At, Report};
use crate::links::Linked;
use crate::settings::Given;
use crate::tree::Node;
use crate::{App, Options, Policy, entry, level, rules};

/// The only `apiVersion` (OAM v1beta1, as wadm has it).
const API_VERSION: &str = "core.oam.dev/v1beta1";
/// The only `kind`.
const KIND: &str = "Application";
/// Whether other apps may link with the components of this one.
const SHARED_ANNOTATION: &str = "experimental.wasmcloud.dev/shared";

/// An app while it is read. What is wrong is reported and stood in for by something harmless, so that reading goes on;
/// the app is given away only if nothing was wrong.
pub(crate) struct Reading<'r, 'a> {
    pub(crate) app: App,
    pub(crate) report: &'r mut Report<'a>,
    pub(crate) options: &'r Options,
    /// Config with properties, by the name the lattice stores it under.
    pub(crate) given: BTreeMap<String, Given>,
    /// Config without properties: the name and where it stands.
    pub(crate) named: Vec<(String, At)>,
    /// Every entry, with those that are refused.
    pub(crate) entries: Vec<Entry>,
    pub(crate) links: Vec<Linked>,
}

/// What the rules between entries need to know of one.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) at: At,
    /// `id`, given or generated; `None` for one that another app has.
    pub(crate) id: Option<(String, At)>,
    /// `None` where the type is wrong.
    pub(crate) kind: Option<Kind>,
    /// One for each secret.
    pub(crate) secrets_at: Vec<At>,
}

/// The `type` of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Component,
    Provider,
}

/// Reads a whole manifest.
pub(crate) fn read(root: &Node, options: &Options, report: &mut Report<'_>) -> Option<App> {
    let top = Fields::read(root, &level::MANIFEST, report)?;
    constant(&top, "apiVersion", API_VERSION, report);
    constant(&top, "kind", KIND, report);
    let app = metadata(&top, report);
    let mut reading = Reading {
        app,
        report,
        options,
        given: BTreeMap::new(),
        named: Vec::new(),
        entries: Vec::new(),
        links: Vec::new(),
    };
    reading.spec(&top);
    rules::check(&mut reading);
    reading.app.links = reading.links.into_iter().map(|linked| linked.link).collect();
    reading.app.configs = reading.given.into_iter().map(|(name, given)| (name, given.values)).collect();
    Some(reading.app)
}

fn constant(top: &Fields<'_>, key: &str, expected: &str, report: &mut Report<'_>) {
    let line = format!("{key}: {expected}");
    if let Some((found, at)) = top.need_text(key, &line, report)
        && found != expected
    {
        report.error(at, format!("`{key}` is `{found}`, which is not known"), format!("write `{line}`"));
    }
}

/// The app with what `metadata` says of it.
fn metadata(top: &Fields<'_>, report: &mut Report<'_>) -> App {
    let stand_in = AppName::new("unnamed").expect("the stand-in is a name");
    let node = top.need("metadata", "metadata:", report);
    let Some(fields) = node.and_then(|node| Fields::read(node, &level::METADATA, report)) else {
        return App::new(stand_in);
    };
    let mut app = App::new(name(&fields, report).unwrap_or(stand_in));
    if let Some(labels) = fields.get("labels") {
        keys(labels, "label", report);
        app.labels = fields::texts(labels, "`labels`", report);
    }
    if let Some(node) = fields.get("annotations") {
        keys(node, "annotation", report);
        annotations(&mut app, node, report);
    }
    app
}

fn name(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<AppName> {
    let (text, at) = fields.need_text("name", "name: my-app", report)?;
    let refused = |error: trellis_wire::IdError| {
        let allowed: String =
            text.chars().take(63).map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
        let allowed = allowed.trim_matches('-');
        let help = if allowed.is_empty() { "write `name: my-app`".into() } else { format!("write `name: {allowed}`") };
        report.error(at, error.to_string(), help);
    };
    AppName::new(text).map_err(refused).ok()
}

fn annotations(app: &mut App, node: &Node, report: &mut Report<'_>) {
    let mut annotations = fields::texts(node, "`annotations`", report);
    let at = |key: &str| node.pairs().iter().find(|pair| pair.key == key).map_or(node.at, |pair| pair.node.at);
    // As in wadm, an empty version is none.
    app.version = annotations.remove("version").filter(|version| !version.is_empty());
    if app.version.as_deref() == Some("latest") {
        let help = "write a version such as `version: v0.1.0`, or none: each deploy then gets one of its own";
        report.error(at("version"), "the version `latest` is not allowed: it would name another app every time", help);
    }
    app.description = annotations.remove("description");
    if let Some(shared) = annotations.remove(SHARED_ANNOTATION) {
        app.shared = shared == "true";
        if shared != "true" && shared != "false" {
            let help = format!("write `{SHARED_ANNOTATION}: \"true\"`");
            report.warn(at(SHARED_ANNOTATION), format!("`{shared}` counts as `false` here"), help);
        }
    }
}

/// What to write as the key of a label.
pub const LABEL_KEY_HELP: &str = "write up to 63 of a-z, A-Z, 0-9, `-`, `_` and `.` with a letter or digit at both ends, \
                                  after a DNS name and `/` if you like: `example.com/team`";

/// Checks the keys of labels or annotations.
fn keys(node: &Node, what: &str, report: &mut Report<'_>) {
    for pair in node.pairs().iter().filter(|pair| !is_label_key(&pair.key)) {
        report.error(pair.key_at, format!("`{}` is no {what} key", pair.key), LABEL_KEY_HELP);
    }
}

/// The OAM rule for keys of labels and annotations, as wadm applies it (wadm-types 0.8, `valid_oam_label`).
pub fn is_label_key(key: &str) -> bool {
    let ends = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_name = |name: &str| {
        name.len() <= 63
            && ends(name)
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let is_part = |part: &str| {
        part.len() <= 63
            && ends(part)
            && part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    match key.split_once('/') {
        Some((prefix, name)) => prefix.len() <= 253 && prefix.split('.').all(is_part) && is_name(name),
        None => is_name(key),
    }
}

impl Reading<'_, '_> {
    /// Policies first: secrets of components name them.
    fn spec(&mut self, top: &Fields<'_>) {
        let node = top.need("spec", "spec:", self.report);
        let Some(spec) = node.and_then(|node| Fields::read(node, &level::SPEC, self.report)) else { return };
        for node in spec.list("policies", self.report) {
            self.policy(node);
        }
        let Some(node) = spec.need("components", "components:", self.report) else { return };
        let components = fields::list(node, "`components`", self.report);
        if components.is_empty() {
            self.report.warn(node.at, "the app declares no component", "add one: `- name: my-component`");
        }
        for node in components {
            entry::read(node, self);
        }
    }

    fn policy(&mut self, node: &Node) {
        let Some(fields) = Fields::read(node, &level::POLICY, self.report) else { return };
        let name = fields.need_text("name", "name: my-secrets", self.report);
        let kind = fields.need_text("type", &format!("type: {}", Policy::SECRETS), self.report);
        let properties = fields.need("properties", "properties: {backend: file}", self.report);
        let properties = properties.map(|node| fields::texts(node, "the properties of a policy", self.report));
        let (Some((name, at)), Some((kind, kind_at)), Some(properties)) = (name, kind, properties) else { return };
        let policy = Policy { kind: kind.into(), properties };
        if policy.kind != Policy::SECRETS {
            let help = format!("the only type with a meaning is `{}`", Policy::SECRETS);
            self.report.warn(kind_at, format!("policies of type `{kind}` are passed over"), help);
        } else if policy.backend().is_none() {
            self.report.warn(
                at,
                format!("policy `{name}` names no backend"),
                "write `backend: file` or `backend: env` below `properties`",
            );
        }
        if self.app.policies.insert(name.into(), policy).is_some() {
            let message = format!("policy `{name}` comes twice: the last one counts");
            self.report.warn(at, message, "keep one, or give it another name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_follow_the_rule_of_oam() {
        for key in ["team", "a.b_c-d", "example.com/team", "Example.com/x", &"k".repeat(63)] {
            assert!(is_label_key(key), "{key}");
        }
        let long = "a.".repeat(127) + "aa/x";
        for key in
            ["", "-a", "a-", "a b", "/x", "x/", "1a.com/x", "a..b/x", "a_b/x", "a/b/c", "é", &"k".repeat(64), &long]
        {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
