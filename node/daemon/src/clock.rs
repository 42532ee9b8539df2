//! The wall clock of the daemon, for what people read: histories and logs. No decision is taken by it.

pub(crate) use trellis_provider::now_ms;
use trellis_wire::{ComponentKey, EventId};

use crate::api::types::LogLine;

/// The time as RFC 3339 has it: `2026-11-22T14:07:56.123456Z`.
pub(crate) fn now_rfc3339() -> String {
    jiff::Timestamp::now().to_string()
}

/// A line of a guest's log, as of now.
pub(crate) fn log_line(
    node: &str,
    component: &ComponentKey,
    event: EventId,
    level: &str,
    context: &str,
    message: String,
) -> LogLine {
    LogLine {
        at_ms: now_ms(),
        node: node.into(),
        app: component.app.to_string(),
        component: component.name.to_string(),
        event: event.to_string(),
        level: level.into(),
        context: context.into(),
        message,
    }
}
