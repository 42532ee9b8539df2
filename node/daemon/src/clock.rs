//! The wall clock of the daemon, for what people read: histories and logs. No decision is taken by it.

use std::time::{SystemTime, UNIX_EPOCH};

use trellis_wire::{ComponentKey, EventId};

use crate::api::types::LogLine;

/// Milliseconds since 1970; 0 on a machine whose clock is set before that.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

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
