//! Overload: ten times the load, for a minute. The rate of good replies must hold, who is let in must not wait long, whoever
//! is not is told when to come again, and memory must not grow.
//!
//! Twice: with a handler that waits, where permits are what there is too little of, and with one that computes, where it is
//! the processor.

use std::net::SocketAddr;
use std::time::Duration;

use crate::Scale;
use crate::apps::{app, component, http};
use crate::load::wrk;
use crate::node::Node;
use crate::paced::{Paced, paced};
use crate::table::{Table, count, mib, ms, times};

const PERMITS: u32 = 32;
/// Half as many wait as run: whoever is let in waits no longer than half a turn.
const WAITING_MAX: u32 = PERMITS / 2;
/// Each asks a few times a second, so that none waits for its reply when it is due again.
const CONNECTIONS: u32 = 1_000;
const PATH: &str = "/slow?ms=20";

pub(crate) fn bench(scale: Scale) -> String {
    format!("{}\n\n{}", waiting(scale), computing(scale))
}

/// A node whose component has [`PERMITS`], and where it listens.
fn node(guest: &str, waiting_max: u32) -> (Node, SocketAddr) {
    let node = Node::start(&[]);
    let scaler = format!("{{type: spreadscaler, properties: {{instances: {PERMITS}}}}}");
    let listen = format!("max_waiting: '{waiting_max}'");
    node.deploy(&app("bench", &[component("guest", guest, "", &[scaler]), http("guest", &listen)]));
    let at = node.at("bench");
    (node, at)
}

fn waiting(scale: Scale) -> String {
    let (node, at) = node("test_misbehave", WAITING_MAX);
    let lasts = Duration::from_secs(scale.or(10, 1));
    let columns = ["load", "2xx per second", "p50 of 2xx", "p99 of 2xx", "503 per second", "other", "memory"];
    let mut table = Table::new(&columns);
    let mut row = |load: &str, came: &Paced| {
        let a_second = |events: f64| events / came.took.as_secs_f64();
        let [p50, p99] = [0.5, 0.99].map(|of| came.accepted.quantile_ms(of));
        let rate = a_second(came.accepted.len() as f64);
        let refused = count(a_second(came.refused as f64));
        let memory = mib(node.memory_bytes());
        table.row(&[load.into(), count(rate), ms(p50), ms(p99), refused, came.others.to_string(), memory]);
        (rate, p99)
    };
    paced(at, PATH, PERMITS, Duration::ZERO, Duration::from_secs(1));
    let peak = row("as many at once as permits", &paced(at, PATH, PERMITS, Duration::ZERO, lasts));
    let all = PERMITS + WAITING_MAX;
    let full = row("as many at once as permits and who may wait", &paced(at, PATH, all, Duration::ZERO, lasts));
    let most = peak.0.max(full.0);
    let each = Duration::from_secs_f64(f64::from(CONNECTIONS) / (most * 10.0));
    let (mut rate, mut p99) = (f64::INFINITY, 0.0_f64);
    for nth in 0..scale.or(6, 1) {
        let load = format!("ten times as many a second, second {} on", nth * 10);
        let over = row(&load, &paced(at, PATH, CONNECTIONS, each, lasts));
        (rate, p99) = (rate.min(over.0), p99.max(over.1));
    }
    format!(
        "A handler that waits for 20 ms; {PERMITS} permits, at most {WAITING_MAX} who wait. Requests are sent at ten times the \
         highest rate over {CONNECTIONS} connections, whatever comes back, on the same cores. In the worst ten seconds: {} of the \
         highest rate, {} of the p99 with as many at once as permits. How long who is let in waits is what `max_waiting` \
         says: with its default of 1,000 a request waits for up to {:.1} s here.\n\n{}",
        times(rate / most),
        times(p99 / peak.1),
        1_000.0 / most,
        table.finish()
    )
}

fn computing(scale: Scale) -> String {
    let (node, at) = node("hello", PERMITS);
    wrk(at, "/", PERMITS, 1);
    let mut table = Table::new(&["load", "2xx per second", "p50 of all", "p99 of all", "not 2xx", "memory"]);
    let mut row = |load: &str, run: &crate::load::Ran| {
        let memory = mib(node.memory_bytes());
        table.row(&[load.into(), count(run.good_per_s), ms(run.p50_ms), ms(run.p99_ms), count(run.bad as f64), memory]);
    };
    let peak = wrk(at, "/", PERMITS, scale.or(10, 1));
    row("as many connections as permits", &peak);
    let over = wrk(at, "/", PERMITS * 10, scale.or(60, 1));
    row("ten times as many, for 60 s", &over);
    format!(
        "The Rust hello, which takes longer to reach than to run, so that no permit is ever missing: `wrk` asks anew as soon as \
         it is answered, so ten times as many connections wait ten times as long. {} of the peak rate.\n\n{}",
        times(over.good_per_s / peak.good_per_s),
        table.finish()
    )
}
