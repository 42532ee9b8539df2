//! The entries of a manifest that a component needs: itself with its links, and the providers at their other ends.

use std::fmt::Write as _;
use std::path::Path;

use trellis_sandbox::{Inspection, Need, Wake};

/// YAML to paste under `spec.components`, indented as it is there.
pub(super) fn of(file: &Path, inspection: &Inspection) -> String {
    let name = name(file);
    let mut yaml = format!("- name: {name}\n  type: component\n  properties:\n    image: {}\n", quoted(file));
    let links: Vec<_> = inspection.needs.iter().chain(&inspection.warns).collect();
    if !links.is_empty() {
        yaml += "  traits:\n";
    }
    for need in &links {
        yaml += &link(target(need), &need.namespace, &need.package, &need.interfaces.join(", "));
    }
    let mut targets: Vec<_> = links.iter().map(|need| target(need)).collect();
    targets.sort_unstable();
    targets.dedup();
    for target in targets {
        yaml += &end(target);
    }
    for (wake, source) in sources(&inspection.wakes) {
        yaml += &source_entry(wake, source, &name);
    }
    yaml.lines().map(|line| format!("    {line}\n")).collect()
}

/// The name of the entry at the other end of a link.
fn target(need: &Need) -> &'static str {
    match (need.namespace.as_str(), need.package.as_str()) {
        ("wasi", "keyvalue") => "kv",
        ("wasmcloud" | "trellis", "messaging") => "messages",
        ("wasi", "http") => "http-client",
        _ => "other",
    }
}

/// That entry, where it is a provider of ours.
fn end(target: &str) -> String {
    let image = match target {
        "kv" | "messages" => "trellis://embedded",
        "http-client" => "trellis://http",
        _ => return "# `other` is the component, or a provider of your own, that exports the interface\n".into(),
    };
    format!("- name: {target}\n  type: capability\n  properties:\n    image: {image}\n")
}

/// What must wake it: one entry for each kind of event.
fn sources(wakes: &[Wake]) -> Vec<(&Wake, &'static str)> {
    let mut sources: Vec<_> = wakes
        .iter()
        .filter_map(|wake| match wake {
            Wake::HttpP2 | Wake::HttpP3 => Some((wake, "http-server")),
            Wake::MessageWasmcloud | Wake::MessageTrellis => Some((wake, "queue")),
            Wake::RunP2 | Wake::RunP3 | Wake::Invoke(_) => None,
        })
        .collect();
    sources.dedup_by_key(|(_, source)| *source);
    sources
}

fn source_entry(wake: &Wake, source: &str, component: &str) -> String {
    let (image, namespace, package, interface, key, value) = match wake {
        Wake::HttpP2 => ("trellis://http", "wasi", "http", "incoming-handler", "address", "127.0.0.1:8000".to_owned()),
        Wake::HttpP3 => ("trellis://http", "wasi", "http", "handler", "address", "127.0.0.1:8000".to_owned()),
        Wake::MessageTrellis => {
            ("trellis://embedded", "trellis", "messaging", "handler", "subject", component.to_owned())
        }
        _ => ("trellis://embedded", "wasmcloud", "messaging", "handler", "subject", component.to_owned()),
    };
    let link = link(component, namespace, package, interface);
    format!(
        "- name: {source}\n  type: capability\n  properties:\n    image: {image}\n  traits:\n{link}        source:\n          \
         config:\n          - name: {component}-{source}\n            properties:\n              {key}: \"{value}\"\n"
    )
}

fn link(target: &str, namespace: &str, package: &str, interfaces: &str) -> String {
    let mut yaml = String::from("    - type: link\n      properties:\n");
    let lines = [("target", target), ("namespace", namespace), ("package", package)];
    for (key, value) in lines {
        writeln!(yaml, "        {key}: {value}").expect("writing to a String cannot fail");
    }
    writeln!(yaml, "        interfaces: [{interfaces}]").expect("writing to a String cannot fail");
    yaml
}

/// The file's name without its ending, as an entry's name.
fn name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if name.trim_matches('-').is_empty() { "component".into() } else { name.trim_matches('-').into() }
}

/// A path as a YAML scalar, in double quotes as JSON writes them.
fn quoted(file: &Path) -> String {
    serde_json::to_string(&file.display().to_string()).expect("a text is JSON")
}
