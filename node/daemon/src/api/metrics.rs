//! `/metrics`: Prometheus text, read off the counters of the hot path when it is asked for.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::dispatch::Holding;
use crate::node::Node;

/// One figure of each component.
struct Figure {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    read: fn(&Holding) -> u64,
}

const FIGURES: [Figure; 5] = [
    Figure {
        name: "trellis_events_total",
        kind: "counter",
        help: "Events that woke a sandbox.",
        read: |holding| holding.counts().events.load(Ordering::Relaxed),
    },
    Figure {
        name: "trellis_faults_total",
        kind: "counter",
        help: "Events that ended in the component's fault: trap, out of memory, deadline, no reply.",
        read: |holding| holding.counts().faults.load(Ordering::Relaxed),
    },
    Figure {
        name: "trellis_errors_total",
        kind: "counter",
        help: "Events that ended in an error of the node, such as busy.",
        read: |holding| holding.counts().errors.load(Ordering::Relaxed),
    },
    Figure {
        name: "trellis_permits_taken",
        kind: "gauge",
        help: "Permits taken: sandboxes alive or about to be.",
        read: |holding| holding.running() as u64,
    },
    Figure {
        name: "trellis_requests_waiting",
        kind: "gauge",
        help: "Requests that wait for a permit.",
        read: |holding| holding.waiting() as u64,
    },
];

/// The whole page.
pub(super) fn page(node: &Node) -> String {
    let holdings = node.dispatch.holdings();
    let mut page = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        writeln!(page, "{text}").expect("writing to a String cannot fail");
    };
    for figure in FIGURES {
        line(format_args!("# HELP {} {}", figure.name, figure.help));
        line(format_args!("# TYPE {} {}", figure.name, figure.kind));
        for holding in &holdings {
            let key = holding.key();
            let value = (figure.read)(holding);
            line(format_args!(
                "{}{{app=\"{}\",component=\"{}\"}} {value}",
                figure.name,
                label(key.app.as_str()),
                label(key.name.as_str())
            ));
        }
    }
    line(format_args!("# HELP trellis_sandboxes_running Permits of the node that are taken."));
    line(format_args!("# TYPE trellis_sandboxes_running gauge"));
    line(format_args!("trellis_sandboxes_running {}", node.dispatch.running()));
    line(format_args!("# HELP trellis_plan_generation Generation of the plan that this node knows."));
    line(format_args!("# TYPE trellis_plan_generation gauge"));
    line(format_args!("trellis_plan_generation {}", node.raft.state().borrow().plan().generation()));
    line(format_args!("# HELP trellis_uptime_seconds Seconds since the node started."));
    line(format_args!("# TYPE trellis_uptime_seconds gauge"));
    line(format_args!("trellis_uptime_seconds {}", node.started.elapsed().as_secs()));
    page
}

/// A label's value in the text format: backslash, quote and line feed are escaped.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
