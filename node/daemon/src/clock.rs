//! The wall clock of the daemon, for what people read: histories and logs. No decision is taken by it.

pub(crate) use trellis_provider::now_ms;
use trellis_wire::{ComponentKey, EventId};

use crate::api::types::LogLine;

/// The time as RFC 3339 has it, always as long: `2026-11-22T14:07:56.123456Z`.
pub(crate) fn now_rfc3339() -> String {
    rfc3339(jiff::Timestamp::now())
}

fn rfc3339(at: jiff::Timestamp) -> String {
    format!("{at:.6}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_below_each_other_are_as_long() {
        let told = |nanoseconds| rfc3339(jiff::Timestamp::new(1_764_000_000, nanoseconds).unwrap());
        assert_eq!(told(0), "2025-11-24T16:00:00.000000Z");
        assert_eq!(told(972_943_660), "2025-11-24T16:00:00.972943Z");
    }
}
