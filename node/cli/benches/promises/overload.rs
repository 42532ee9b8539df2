//! Overload: ten times as many connections as permits, for a minute. The rate of good replies must hold, and memory must not
//! grow.

use crate::Scale;
use crate::apps::{app, component, http};
use crate::load::wrk;
use crate::node::Node;
use crate::table::{Table, count, mib, ms};

const PERMITS: u32 = 32;

pub(crate) fn bench(scale: Scale) -> String {
    let node = Node::start(&[]);
    let scaler = format!("{{type: spreadscaler, properties: {{instances: {PERMITS}}}}}");
    // Those who wait are as many as run, so that whoever is let in waits no longer than one turn.
    let listen = format!("max_waiting: '{PERMITS}'");
    node.deploy(&app("bench", &[component("hello", "hello", "", &[scaler]), http("hello", &listen)]));
    let at = node.at("bench");
    wrk(at, "/", PERMITS, 1);
    let mut table = Table::new(&["load", "2xx per second", "p50 of all", "p99 of all", "not 2xx", "memory"]);
    let mut row = |load: &str, run: &crate::load::Ran| {
        let memory = mib(node.memory_bytes());
        table.row(&[load.into(), count(run.good_per_s), ms(run.p50_ms), ms(run.p99_ms), count(run.bad as f64), memory]);
    };
    let peak = wrk(at, "/", PERMITS, scale.or(10, 1));
    row("as many connections as permits", &peak);
    let mut rates = Vec::new();
    for nth in 0..scale.or(6, 1) {
        let over = wrk(at, "/", PERMITS * 10, scale.or(10, 1));
        rates.push(over.good_per_s);
        row(&format!("ten times as many, second {} on", nth * 10), &over);
    }
    let worst = rates.iter().copied().fold(f64::INFINITY, f64::min);
    format!(
        "{PERMITS} permits, at most {PERMITS} who wait, the Rust hello; `wrk` asks again at once when it is refused. The worst ten \
         seconds have {:.0} % of the peak.\n\n{}",
        worst / peak.good_per_s * 100.0,
        table.finish()
    )
}
