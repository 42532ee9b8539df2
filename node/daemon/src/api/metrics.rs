//! `/metrics`: Prometheus text, read off the counters of the hot path when it is asked for.
//!
//! `faas_*` are the metrics of the OpenTelemetry semantic conventions for FaaS, in Prometheus' spelling, with a component
//! as the function. `trellis_*` is ours, for what the conventions have no word.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::counts::{Counts, Histogram};
use crate::dispatch::Holding;
use crate::node::Node;

/// What is read of each component.
enum Read {
    Counter(fn(&Counts) -> u64),
    /// By the value of `error_type`.
    Errors([(&'static str, fn(&Counts) -> u64); 2]),
    Gauge(fn(&Holding) -> usize),
    Histogram(fn(&Counts) -> &Histogram),
}

const FIGURES: [(&str, &str, Read); 10] = [
    ("faas_invocations_total", "Events that ended in a reply.", Read::Counter(|counts| counts.successes.load(Relaxed))),
    (
        "faas_errors_total",
        "Events that ended otherwise: in a fault of the component (trap, out of memory, deadline, no reply) or in an \
         error of the node.",
        Read::Errors([
            ("fault", |counts| counts.faults.load(Relaxed)),
            ("error", |counts| counts.errors.load(Relaxed)),
        ]),
    ),
    (
        "faas_timeouts_total",
        "Events that ended because the component was not done in time.",
        Read::Counter(|counts| counts.timeouts.load(Relaxed)),
    ),
    (
        "faas_coldstarts_total",
        "Times that the component's code was loaded for an event.",
        Read::Counter(|counts| counts.cold_starts.load(Relaxed)),
    ),
    (
        "faas_invoke_duration_seconds",
        "From the permit to the outcome; for HTTP, to the head of the response.",
        Read::Histogram(|counts| &counts.invoke),
    ),
    (
        "faas_init_duration_seconds",
        "From the permit to a guest whose handler can be called.",
        Read::Histogram(|counts| &counts.init),
    ),
    (
        "trellis_permit_wait_seconds",
        "How long requests waited for a permit. Queues are not pulled without one.",
        Read::Histogram(|counts| &counts.permit_wait),
    ),
    (
        "trellis_permits_refused_total",
        "Requests that got no permit: turned away, or gone before there was one.",
        Read::Counter(|counts| counts.refused.load(Relaxed)),
    ),
    ("trellis_permits_taken", "Permits taken: sandboxes alive or about to be.", Read::Gauge(Holding::running)),
    ("trellis_requests_waiting", "Requests that wait for a permit.", Read::Gauge(Holding::waiting)),
];

/// The whole page.
pub(super) fn page(node: &Node) -> String {
    let mut page = Page::default();
    page.components(&node.dispatch.holdings());
    let generation = node.raft.state().borrow().plan().generation();
    let uptime = node.started.elapsed().as_secs();
    page.gauge("trellis_sandboxes_running", "Permits of the node that are taken.", &node.dispatch.running());
    page.gauge("trellis_plan_generation", "Generation of the plan that this node knows.", &generation);
    page.gauge("trellis_uptime_seconds", "Seconds since the node started.", &uptime);
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn components(&mut self, holdings: &[Arc<Holding>]) {
        for (name, help, read) in &FIGURES {
            self.head(name, help, read.kind());
            for holding in holdings {
                let key = holding.key();
                let labels = format!("app=\"{}\",component=\"{}\"", label(key.app.as_str()), label(key.name.as_str()));
                match read {
                    Read::Counter(read) => self.line(format_args!("{name}{{{labels}}} {}", read(holding.counts()))),
                    Read::Gauge(read) => self.line(format_args!("{name}{{{labels}}} {}", read(holding))),
                    Read::Histogram(read) => self.histogram(name, &labels, read(holding.counts())),
                    Read::Errors(kinds) => {
                        for (kind, read) in kinds {
                            let value = read(holding.counts());
                            self.line(format_args!("{name}{{{labels},error_type=\"{kind}\"}} {value}"));
                        }
                    }
                }
            }
        }
    }

    /// One that never counted anything is left out: most of many components are idle.
    fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let read = histogram.read();
        if read.count == 0 {
            return;
        }
        for (bound, count) in &read.buckets {
            self.line(format_args!("{name}_bucket{{{labels},le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", read.count));
        self.line(format_args!("{name}_sum{{{labels}}} {}", read.sum.as_secs_f64()));
        self.line(format_args!("{name}_count{{{labels}}} {}", read.count));
    }

    fn gauge(&mut self, name: &str, help: &str, value: &dyn fmt::Display) {
        self.head(name, help, "gauge");
        self.line(format_args!("{name} {value}"));
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        writeln!(self.0, "{text}").expect("writing to a String cannot fail");
    }
}

impl Read {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) | Self::Errors(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A label's value in the text format: backslash, quote and line feed are escaped.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_is_left_out_while_it_is_empty() {
        let (histogram, mut page) = (Histogram::default(), Page::default());
        page.histogram("x_seconds", "app=\"a\"", &histogram);
        assert_eq!(page.0, "");
        histogram.record(Duration::from_micros(20));
        histogram.record(Duration::from_secs(20));
        page.histogram("x_seconds", "app=\"a\"", &histogram);
        let lines: Vec<_> = page.0.lines().collect();
        assert_eq!(lines[0], "x_seconds_bucket{app=\"a\",le=\"0.000025\"} 1");
        assert_eq!(lines[lines.len() - 4], "x_seconds_bucket{app=\"a\",le=\"10\"} 1");
        assert_eq!(lines[lines.len() - 3], "x_seconds_bucket{app=\"a\",le=\"+Inf\"} 2");
        assert_eq!(lines[lines.len() - 2], "x_seconds_sum{app=\"a\"} 20.00002");
        assert_eq!(lines[lines.len() - 1], "x_seconds_count{app=\"a\"} 2");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
