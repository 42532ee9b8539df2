//! `/metrics`: Prometheus text, read off the counters of the hot path when it is asked for.
//!
//! `faas_*` are the metrics of the OpenTelemetry semantic conventions for FaaS, in Prometheus' spelling, with a component
//! as the function. `trellis_*` is ours, for what the conventions have no word.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use trellis_provider::Histogram;
use trellis_provider::delivery::{Counts as TriggerCounts, OUTCOMES};
use trellis_wire::ComponentKey;

use crate::counts::Counts;
use crate::dispatch::Holding;
use crate::grants::Gate;
use crate::node::Node;
use crate::triggers::View;

/// One count of a component.
type Count = fn(&Counts) -> u64;

/// What is read of each component.
enum Read {
    Counter(Count),
    /// By the value of `error_type`.
    Errors([(&'static str, Count); 2]),
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
pub(super) async fn page(node: &Node) -> String {
    let views = node.triggers.views().await;
    let mut page = Page::default();
    page.components(&node.dispatch.holdings());
    page.triggers(&views);
    page.trigger_times(node);
    page.gates(&node.dispatch.grants().gates());
    let generation = node.raft.state().borrow().plan().generation();
    let uptime = node.started.elapsed().as_secs();
    page.gauge("trellis_sandboxes_running", "Permits of the node that are taken.", &node.dispatch.running());
    page.gauge("trellis_plan_generation", "Generation of the plan that this node knows.", &generation);
    page.gauge("trellis_uptime_seconds", "Seconds since the node started.", &uptime);
    page.0
}

/// What is read of how a trigger is. `messaging_*` are the semantic conventions for messaging, in Prometheus' spelling.
type TriggerFigure = (&'static str, &'static str, &'static str, fn(&View) -> Option<u64>);

const TRIGGER_FIGURES: [TriggerFigure; 7] = [
    ("messaging_client_consumed_messages_total", "Messages that were handed to a handler.", "counter", |view| {
        Some(view.attempts)
    }),
    (
        "trellis_trigger_waiting",
        "Messages that wait, also between two attempts: the lag. On NATS also those that other nodes hold.",
        "gauge",
        |view| view.stands(view.held).map(|stands| stands.waiting),
    ),
    (
        "trellis_trigger_claimed",
        "Messages that are given out and not settled. On NATS and RabbitMQ those that this node holds.",
        "gauge",
        |view| view.stands(view.held).map(|stands| stands.claimed),
    ),
    (
        "trellis_trigger_oldest_age_milliseconds",
        "How long ago the oldest message was published. RabbitMQ does not tell.",
        "gauge",
        |view| view.standing.as_ref().ok().and_then(|stands| stands.oldest_age_ms),
    ),
    ("trellis_trigger_dead_letters", "Dead letters beside the queue.", "gauge", |view| {
        view.standing.as_ref().ok().and_then(|stands| stands.dead)
    }),
    ("trellis_trigger_in_flight", "Messages in handlers.", "gauge", |view| Some(view.in_flight)),
    ("trellis_trigger_paused", "1 while the trigger pauses by itself.", "gauge", |view| {
        Some(u64::from(view.paused_since_ms.is_some()))
    }),
];

/// Durations of a trigger.
type TriggerTimes = (&'static str, &'static str, fn(&TriggerCounts) -> &Histogram);

const TRIGGER_TIMES: [TriggerTimes; 3] = [
    ("messaging_process_duration_seconds", "From the permit to the outcome.", |counts| &counts.run),
    ("trellis_trigger_permit_wait_seconds", "How long messages that were there waited for a permit.", |counts| {
        &counts.permit_wait
    }),
    ("trellis_trigger_in_queue_seconds", "From a message's publication to its first attempt.", |counts| {
        &counts.in_queue
    }),
];

/// What is read of a `max_in_flight` of calls.
type GateFigure = (&'static str, &'static str, fn(&Gate) -> usize);

const GATE_FIGURES: [GateFigure; 3] = [
    ("trellis_calls_in_flight", "Calls under way in this node's part of a link's `max_in_flight`.", Gate::in_use),
    ("trellis_calls_in_flight_max", "This node's part of a link's `max_in_flight`.", |gate| gate.own() as usize),
    ("trellis_calls_waiting", "Calls of this node that wait at a link's `max_in_flight`.", Gate::waiting),
];

#[derive(Default)]
struct Page(String);

impl Page {
    fn triggers(&mut self, views: &[View]) {
        for (name, help, kind, read) in &TRIGGER_FIGURES {
            self.head(name, help, kind);
            for view in views {
                if let Some(value) = read(view) {
                    self.line(format_args!("{name}{{{}}} {value}", of_view(view)));
                }
            }
        }
        let name = "trellis_trigger_outcomes_total";
        self.head(name, "Deliveries by how they ended.", "counter");
        for view in views {
            for (outcome, count) in OUTCOMES.iter().zip(view.outcomes) {
                self.line(format_args!("{name}{{{},outcome=\"{outcome}\"}} {count}", of_view(view)));
            }
        }
    }

    fn trigger_times(&mut self, node: &Node) {
        let here = node.triggers.here();
        for (name, help, read) in &TRIGGER_TIMES {
            self.head(name, help, "histogram");
            for (held, trigger) in &here {
                let labels = of_link(&held.link.component, &held.link.id.to_string());
                self.histogram(name, &labels, read(trigger.progress().counts()));
            }
        }
    }

    fn gates(&mut self, gates: &[Arc<Gate>]) {
        for (name, help, read) in &GATE_FIGURES {
            self.head(name, help, "gauge");
            for gate in gates {
                let labels = of_link(gate.component(), &gate.link().to_string());
                self.line(format_args!("{name}{{{labels}}} {}", read(gate)));
            }
        }
    }

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

fn of_view(view: &View) -> String {
    format!("messaging_system=\"{}\",{}", label(&view.system), of_link(&view.component, &view.link.to_string()))
}

fn of_link(component: &ComponentKey, link: &str) -> String {
    let (app, name) = (label(component.app.as_str()), label(component.name.as_str()));
    format!("app=\"{app}\",component=\"{name}\",link=\"{}\"", label(link))
}

/// A label's value in the text format: backslash, quote and line feed are escaped.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trellis_wire::{Link, LinkId, LinkName};

    use super::*;
    use crate::grants::{Answers, Grants};

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
    fn each_cap_on_calls_is_there_with_its_link() {
        let (component, target): (ComponentKey, ComponentKey) =
            ("shop/api".parse().unwrap(), "shop/stock".parse().unwrap());
        let id = LinkId::new(&component, &target, &LinkName::default(), "shop", "stock", &["count".into()]);
        let link = Link {
            id: id.clone(),
            component,
            name: LinkName::default(),
            namespace: "shop".into(),
            package: "stock".into(),
            interfaces: vec!["count".into()],
            config: [("max_in_flight", "4")].into_iter().collect(),
            delivery: Default::default(),
            secrets: Default::default(),
            part: Default::default(),
        };
        let (grants, mut page) = (Grants::default(), Page::default());
        grants.add(&link, Answers::Component(target)).unwrap();
        let gates = grants.gates();
        gates[0].set(3);
        let _under_way = gates[0].lend().unwrap();
        page.gates(&gates);
        for (name, value) in [("in_flight", 1), ("in_flight_max", 3), ("waiting", 0)] {
            let line = format!("trellis_calls_{name}{{app=\"shop\",component=\"api\",link=\"{id}\"}} {value}");
            assert!(page.0.lines().any(|other| other == line), "{line} is not in\n{}", page.0);
        }
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
