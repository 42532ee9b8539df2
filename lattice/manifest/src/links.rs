//! The properties of a link.

use trellis_wire::{ComponentName, LinkName};

use crate::fields::{self, Fields};
use crate::finding::{At, Report};
use crate::nearest::did_you_mean;
use crate::reading::Reading;
use crate::settings::{self, Settings};
use crate::tree::{Node, Pair, Value};
use crate::{AppLink, Delivery, delivery, interfaces, level};

/// Whose config it is: the rules for names that come twice differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Entry,
    Link,
}

/// A link with the places that rules between entries point at.
pub(crate) struct Linked {
    pub(crate) link: AppLink,
    pub(crate) target_at: At,
    /// One for each interface.
    pub(crate) interfaces_at: Vec<At>,
    /// One for each secret of the source, and of the target.
    pub(crate) secrets_at: (Vec<At>, Vec<At>),
    /// The `delivery:` block, and whether it does more than cap.
    pub(crate) delivery: Option<(At, bool)>,
}

/// Reads a link of `source`, which is `None` where the entry's name is refused.
pub(crate) fn read(node: &Node, source: Option<&ComponentName>, reading: &mut Reading<'_, '_>) {
    let Some(fields) = Fields::read(node, &level::LINK, reading.report) else { return };
    let namespace = fields.need_text("namespace", "namespace: wasi", reading.report);
    let package = fields.need_text("package", "package: keyvalue", reading.report);
    let interfaces = interfaces(&fields, reading.report);
    let name = name(&fields, reading.report);
    let target = target(&fields, reading);
    let from = source_end(&fields, reading);
    let delivery = fields.pair("delivery").map(|pair| (delivery_block(pair, reading.report), pair.key_at));
    let (Some((namespace, _)), Some((package, _)), Some((target, target_at, to))) = (namespace, package, target) else {
        return;
    };
    let namespace = if namespace == "wrpc" { "wasi" } else { namespace };
    for (interface, at) in &interfaces {
        if let Some(help) = interfaces::doubt(namespace, package, interface) {
            reading.report.warn(*at, format!("`{namespace}:{package}/{interface}` is not known"), help);
        }
    }
    let (Some(source), Some(name)) = (source, name) else { return };
    let (policy, places) = delivery.unzip();
    let (policy, more_than_caps) = policy.unwrap_or_default();
    let (interfaces, interfaces_at) = interfaces.into_iter().unzip();
    let link = AppLink {
        source: source.clone(),
        target,
        name,
        namespace: namespace.into(),
        package: package.into(),
        interfaces,
        source_configs: from.configs,
        target_configs: to.configs,
        source_secrets: from.secrets,
        target_secrets: to.secrets,
        delivery: policy,
    };
    let delivery = places.map(|at| (at, more_than_caps));
    let secrets_at = (from.secrets_at, to.secrets_at);
    reading.links.push(Linked { link, target_at, interfaces_at, secrets_at, delivery });
}

fn interfaces(fields: &Fields<'_>, report: &mut Report<'_>) -> Vec<(String, At)> {
    let Some(node) = fields.need("interfaces", "interfaces: [store]", report) else { return Vec::new() };
    let nodes = fields::list(node, "`interfaces`", report);
    if nodes.is_empty() && matches!(node.value, Value::List(_)) {
        report.warn(node.at, "a link without interfaces links nothing", "write `interfaces: [store]`");
    }
    nodes.iter().filter_map(|node| Some((fields::text(node, "an interface", report)?.to_owned(), node.at))).collect()
}

fn name(fields: &Fields<'_>, report: &mut Report<'_>) -> Option<LinkName> {
    let Some(node) = fields.get("name") else { return Some(LinkName::default()) };
    let text = fields::text(node, "`name`", report)?;
    LinkName::new(text).map_err(|error| report.error(node.at, error.to_string(), "write `name: default`, or none")).ok()
}

/// The target with its config: a mapping, or a bare name as wadm before 0.13 had it.
fn target(fields: &Fields<'_>, reading: &mut Reading<'_, '_>) -> Option<(ComponentName, At, Settings)> {
    let deprecated = deprecated(fields, "target", reading.report);
    let node = fields.need("target", "target: {name: other-component}", reading.report)?;
    if !matches!(node.value, Value::Map(_)) {
        let text = fields::text(node, "`target`", reading.report)?;
        let configs =
            if deprecated { settings::configs(fields, "target_config", Side::Link, reading) } else { Vec::new() };
        let end = Settings { configs, ..Settings::default() };
        return Some((target_name(text, node.at, reading.report)?, node.at, end));
    }
    let target = Fields::read(node, &level::TARGET, reading.report)?;
    let name = target.need_text("name", "name: other-component", reading.report);
    let end = settings::read(&target, Side::Link, reading);
    let (text, at) = name?;
    Some((target_name(text, at, reading.report)?, at, end))
}

fn target_name(text: &str, at: At, report: &mut Report<'_>) -> Option<ComponentName> {
    ComponentName::new(text)
        .map_err(|error| report.error(at, error.to_string(), "name a component of this manifest"))
        .ok()
}

fn source_end(fields: &Fields<'_>, reading: &mut Reading<'_, '_>) -> Settings {
    let deprecated = deprecated(fields, "source", reading.report);
    match fields.get("source") {
        Some(node) => {
            let source = Fields::read(node, &level::SOURCE, reading.report);
            source.map(|source| settings::read(&source, Side::Link, reading)).unwrap_or_default()
        }
        None if deprecated => {
            let configs = settings::configs(fields, "source_config", Side::Link, reading);
            Settings { configs, ..Settings::default() }
        }
        None => Settings::default(),
    }
}

/// Warns of `source_config` or `target_config`; as in wadm it counts only where the new form is not there.
fn deprecated(fields: &Fields<'_>, end: &str, report: &mut Report<'_>) -> bool {
    let old = format!("{end}_config");
    let Some(pair) = fields.pair(&old) else { return false };
    let replaced = fields.get(end).is_some_and(|node| matches!(node.value, Value::Map(_)));
    let help = format!("move it: `{end}:` with `config:` below");
    let message = if replaced {
        format!("`{old}` is passed over, because `{end}` is there")
    } else {
        format!("`{old}` is deprecated")
    };
    report.warn(pair.key_at, message, help);
    !replaced
}

/// Reads `delivery:`. Returned with it: whether it does more than cap.
fn delivery_block(block: &Pair, report: &mut Report<'_>) -> (Delivery, bool) {
    let mut draft = delivery::Draft::new(Delivery::default());
    let mut more_than_caps = false;
    let mut leaves = Vec::new();
    delivery_leaves(&block.node, "", &mut leaves, report);
    for (key, key_at, node) in leaves {
        if !delivery::KEYS.contains(&key.as_str()) {
            let known = format!("known here: {}", delivery::KEYS.join(", "));
            let help = did_you_mean(&key, delivery::KEYS.iter().copied(), &known);
            report.error(key_at, format!("unknown key `{key}` in `delivery`"), help);
            continue;
        }
        more_than_caps |= !matches!(key.as_str(), "max_in_flight" | "rate_limit");
        let Some(value) = fields::text(node, &format!("`{key}`"), report) else { continue };
        if let Err(error) = draft.set(&key, value.trim()) {
            report.error(node.at, format!("`{value}` does not fit `{key}`"), format!("{} is expected", error.wanted));
        }
    }
    let policy = draft.finish().unwrap_or_else(|error| {
        let help = format!("{} is expected for `{}`", error.wanted, error.key);
        report.error(block.key_at, format!("`{}` is missing or does not fit", error.key), help);
        Delivery::default()
    });
    if policy.on_dead_letter != Delivery::default().on_dead_letter && policy.order_by.is_none() {
        let message = "`on_dead_letter` means nothing without `order_by`";
        report.warn(block.key_at, message, "add `order_by: subject`, or leave it out");
    }
    (policy, more_than_caps)
}

/// The scalars of a block under their dotted names; only `backoff` and `dedupe` have more below them.
fn delivery_leaves<'t>(node: &'t Node, above: &str, leaves: &mut Vec<(String, At, &'t Node)>, report: &mut Report<'_>) {
    let what = if above.is_empty() { "`delivery`".to_owned() } else { format!("`{}`", above.trim_end_matches('.')) };
    for pair in fields::mapping(node, &what, report).unwrap_or_default() {
        let key = format!("{above}{}", pair.key);
        match (&pair.node.value, key.as_str()) {
            (Value::Null, _) => {}
            (_, "backoff" | "dedupe") => delivery_leaves(&pair.node, &format!("{key}."), leaves, report),
            _ => leaves.push((key, pair.key_at, &pair.node)),
        }
    }
}
