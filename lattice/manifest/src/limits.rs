//! `limits:` beside the properties of a component.

use std::time::Duration;

use crate::fields::{self, Fields};
use crate::finding::{At, Report};
use crate::tree::Node;
use crate::{Limits, level, quantity};

/// One page of Wasm memory: with less, no component starts.
const MEMORY_BYTES_MIN: u64 = 64 << 10;

/// Reads the block.
pub(crate) fn read(node: &Node, report: &mut Report<'_>) -> Option<Limits> {
    let fields = Fields::read(node, &level::LIMITS, report)?;
    Some(Limits {
        memory_bytes: fields.text("memory", report).and_then(|(text, at)| memory(text, at, report)),
        timeout: fields.text("timeout", report).and_then(|(text, at)| timeout(text, at, report)),
        max_in_flight: fields.get("max_in_flight").and_then(|node| fields::count(node, "`max_in_flight`", 1, report)),
        strict: fields.get("strict").and_then(|node| fields::flag(node, "`strict`", report)).unwrap_or_default(),
    })
}

fn memory(text: &str, at: At, report: &mut Report<'_>) -> Option<u64> {
    match quantity::bytes(text) {
        Some(bytes) if bytes >= MEMORY_BYTES_MIN => return Some(bytes),
        Some(_) => report.error(at, format!("`{text}` of memory is less than one page"), "write `64KiB` or more"),
        None => report.error(at, format!("`{text}` is no size"), format!("write {}", quantity::BYTES)),
    }
    None
}

fn timeout(text: &str, at: At, report: &mut Report<'_>) -> Option<Duration> {
    let timeout = quantity::duration(text).filter(|timeout| !timeout.is_zero());
    if timeout.is_none() {
        report.error(at, format!("`{text}` is no duration"), format!("write {}", quantity::DURATION));
    }
    timeout
}
