//! What a node tells about its events: traces to a collector, which is a scripted one here, and figures at `/metrics`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, free_address, http, link, link_from, orders_at, provider, waking};
use crate::client;
use crate::lattice::{held_by, lattice, on};
use crate::node::{DataDir, Node};
use crate::scripted::Scripted;

const ORDER: &[u8] = br#"{"customer":"Ada","lines":[{"article":"tea","quantity":2,"price_cents":450}]}"#;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
/// Spans are sent this soon, in milliseconds.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "100");

/// A span as the tests look at it.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    kind: SpanKind,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
    failed: bool,
    service: String,
}

impl Seen {
    #[track_caller]
    fn has(&self, attributes: &[(&str, &str)]) {
        for (name, value) in attributes {
            assert_eq!(self.attributes.get(*name).map(String::as_str), Some(*value), "{name} of {self:#?}");
        }
    }
}

/// A collector that takes OTLP over HTTP.
struct Collector(Scripted);

impl Collector {
    fn start() -> Self {
        // An empty body is an empty response in protobuf: all was taken.
        Self(Scripted::start(|_, _| (200, String::new())))
    }

    fn of_trace(&self, trace: &str) -> Vec<Seen> {
        let sent = self.0.asked().into_iter().flat_map(|asked| {
            assert_eq!(asked.line, "POST /v1/traces");
            decode(&asked.body)
        });
        sent.filter(|span| span.trace == trace).collect()
    }

    /// Waits until a trace has such a span.
    #[track_caller]
    fn span(&self, name: &str, parent: &str) -> Seen {
        eventually(&format!("the span {name} under {parent} arrives"), || {
            self.of_trace(TRACE).into_iter().find(|span| span.name == name && span.parent == parent)
        })
    }

    /// The variables that have a node send its traces here.
    fn environment<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [&[("OTEL_EXPORTER_OTLP_ENDPOINT", self.0.url.as_str()), SOON], more].concat()
    }
}

fn decode(body: &[u8]) -> Vec<Seen> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut seen = Vec::new();
    for resource in request.resource_spans {
        let of_resource = attributes(&resource.resource.unwrap().attributes);
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        seen.extend(spans.map(|span| Seen {
            kind: span.kind(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            attributes: attributes(&span.attributes),
            failed: span.status.is_some_and(|status| status.code() == StatusCode::Error),
            service: of_resource["service.name"].clone(),
            name: span.name,
        }));
    }
    seen
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn start(environment: &[(&str, &str)]) -> Node {
    Node::start_with(&DataDir::new(), &[], environment)
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// The trait of a component that may send requests there.
fn sends_to(host: &str) -> String {
    let target = format!("{{name: out, config: [{{name: hosts, properties: {{allowed_hosts: '{host}'}}}}]}}");
    link(&target, "wasi:http/outgoing-handler")
}

/// `misbehave`, which may send requests there.
fn misbehave(host: &str) -> String {
    app("bad", &[http("bad", ""), component("bad", "test_misbehave", "", &[sends_to(host)]), provider("out", "http")])
}

#[track_caller]
fn place_order(address: SocketAddr, headers: &[(&str, &str)]) {
    let placed = client::send(address, "POST", "/orders", headers, ORDER).unwrap();
    assert_eq!(placed.status, 201, "{}", placed.text());
    eventually("the invoice is written", || {
        client::get(address, "/orders/1").unwrap().text().contains("\"total_cents\":900").then_some(())
    });
}

#[test]
fn one_trace_leads_from_a_request_to_the_key_value_store_and_to_the_message_that_follows() {
    let collector = Collector::start();
    let node = start(&collector.environment(&[("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=tea")]));
    let address = free_address();
    node.deploy(&orders_at("app.yaml", address));
    place_order(address, &[("traceparent", &traceparent("01")), ("tracestate", "shop=7")]);

    let request = collector.span("POST orders/api", PARENT);
    assert_eq!((request.kind, request.failed, request.service.as_str()), (SpanKind::Server, false, "trellis"));
    request.has(&[
        ("http.request.method", "POST"),
        ("http.response.status_code", "201"),
        ("url.path", "/orders"),
        ("url.scheme", "http"),
        ("faas.trigger", "http"),
        ("faas.name", "orders/api"),
        ("faas.coldstart", "true"),
    ]);
    assert_eq!(collector.span("permit", &request.id).kind, SpanKind::Internal);
    assert_eq!(collector.span("instantiate", &request.id).kind, SpanKind::Internal);
    let increment = collector.span("increment", &request.id);
    assert_eq!(increment.kind, SpanKind::Client);
    increment.has(&[("db.system.name", "trellis"), ("db.operation.name", "increment")]);
    collector.span("set", &request.id);
    let publish = collector.span("publish orders.placed", &request.id);
    assert_eq!(publish.kind, SpanKind::Producer);
    publish.has(&[
        ("messaging.system", "trellis"),
        ("messaging.destination.name", "orders.placed"),
        ("messaging.operation.type", "send"),
    ]);

    let process = collector.span("process orders.placed", &publish.id);
    assert_eq!((process.kind, process.failed), (SpanKind::Consumer, false));
    process.has(&[
        ("messaging.operation.type", "process"),
        ("faas.trigger", "pubsub"),
        ("faas.name", "orders/invoice"),
        ("trellis.settle", "ack"),
    ]);
    collector.span("instantiate", &process.id);
    collector.span("set", &process.id);
    let id = process.attributes["faas.invocation_id"].as_str();
    assert!(node.logs("orders").iter().any(|line| line["event"] == id), "{id} is the event of its log lines");
    for asked in collector.0.asked() {
        assert!(asked.headers.contains(&"x-tenant: tea".into()), "{:?}", asked.headers);
        assert!(!String::from_utf8_lossy(&asked.body).contains("Ada"), "no body is in a span");
    }
}

#[test]
fn what_fails_is_marked_and_what_is_left_is_sent_when_the_node_ends() {
    let collector = Collector::start();
    let late = ("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let node = start(&collector.environment(&[late, ("OTEL_SERVICE_NAME", "shop")]));
    node.deploy(&misbehave("127.0.0.1:1"));
    let address = node.at("bad");
    let headers = [("traceparent", &*traceparent("01"))];
    assert_eq!(client::send(address, "GET", "/trap", &headers, b"").unwrap().status, 500);
    assert_eq!(client::send(address, "GET", "/out?url=http://127.0.0.1:1/x", &headers, b"").unwrap().status, 502);
    assert_eq!(collector.0.asked().len(), 0, "nothing is due yet");
    assert!(node.stop().success());

    let spans = collector.of_trace(TRACE);
    let failed = |error: &str| {
        let found = spans.iter().find(|span| span.attributes.get("error.type").is_some_and(|kind| kind == error));
        found.unwrap_or_else(|| panic!("no span ended as {error}: {spans:#?}"))
    };
    for error in ["trap", "502", "unavailable"] {
        assert!(failed(error).failed);
        assert_eq!(failed(error).service, "shop");
    }
    let call = failed("unavailable");
    assert_eq!((call.kind, call.name.as_str(), &call.parent), (SpanKind::Client, "GET", &failed("502").id));
    call.has(&[("url.full", "http://127.0.0.1:1/x"), ("server.port", "1")]);
}

#[test]
fn what_is_asked_of_others_names_the_span_that_asks() {
    let (collector, outside) = (Collector::start(), Scripted::start(|_, _| (200, "from outside".into())));
    let host = outside.url.strip_prefix("http://").unwrap();
    let ask = |environment: &[(&str, &str)]| {
        let node = start(environment);
        node.deploy(&misbehave(host));
        let headers = [("traceparent", &*traceparent("01")), ("tracestate", "shop=7")];
        let path = format!("/out?url={}/x?password=1", outside.url);
        client::send(node.at("bad"), "GET", &path, &headers, b"").unwrap().ok();
        assert!(node.stop().success());
        outside.asked().pop().unwrap().headers
    };

    let headers = ask(&collector.environment(&[]));
    let call = collector.of_trace(TRACE).into_iter().find(|span| span.kind == SpanKind::Client).unwrap();
    assert!(headers.contains(&format!("traceparent: 00-{TRACE}-{}-01", call.id)), "{headers:?}");
    assert!(headers.contains(&"tracestate: shop=7".into()), "{headers:?}");
    call.has(&[("url.full", &format!("{}/x", outside.url)), ("http.response.status_code", "200")]);

    let sent = collector.0.asked().len();
    let headers = ask(&[]);
    assert!(headers.contains(&format!("traceparent: {}", traceparent("01"))), "it is passed on: {headers:?}");
    assert!(headers.contains(&"tracestate: shop=7".into()), "{headers:?}");
    assert_eq!(collector.0.asked().len(), sent);
}

#[test]
fn what_another_node_runs_is_in_the_trace_that_it_belongs_to() {
    let (nats, outside) = (NatsServer::start(false), Scripted::start(|_, _| (200, "from outside".into())));
    let nodes = lattice(&nats, 2);
    let host = outside.url.strip_prefix("http://").unwrap();
    nodes[0].deploy(&(held_by("far", "test_misbehave", "2", &[sends_to(host)]) + &provider("out", "http")));
    let headers = [("traceparent", &*traceparent("01")), ("tracestate", "shop=7")];
    let path = format!("/out?url={}/x", outside.url);
    client::send(nodes[0].at("far"), "GET", &path, &headers, b"").unwrap().ok();
    let headers = outside.asked().pop().unwrap().headers;
    for header in [format!("traceparent: {}", traceparent("01")), "tracestate: shop=7".into()] {
        assert!(headers.contains(&header), "{header}: {headers:?}");
    }

    // The queue is on the first node.
    let store = || link("store", "wasi:keyvalue/store, atomics, batch");
    let worker = [store(), link("bus", "trellis:messaging/producer"), on("2")];
    let wakes = link_from("worker", "trellis:messaging/handler", "mail", "{queue: mail, subject: mail}");
    nodes[0].deploy(&app(
        "post",
        &[
            component("window", "test_kv", "", &[store(), on("1")]),
            component("worker", "test_messages", "", &worker),
            http("window", ""),
            provider("store", "embedded"),
            waking("bus", "embedded", &[wakes]),
        ],
    ));
    nodes[0].trellis(&["publish", "mail", "fine", "--header", &format!("traceparent={}", traceparent("01"))]).ok();
    let seen = eventually("it is handled", || {
        client::get(nodes[0].at("post"), "/last/fine").ok().filter(|seen| seen.status == 200)
    });
    assert_eq!(seen.text(), format!("mail attempt=1 traceparent={}", traceparent("01")));
}

#[test]
fn a_call_of_a_component_on_another_node_goes_on_with_its_trace() {
    let (collector, nats) = (Collector::start(), NatsServer::start(false));
    let environment = collector.environment(&[]);
    let start = |label: &str, more: &[&str]| {
        let args = [&["--nats", &nats.url, "--label", label], more].concat();
        Node::start_with(&DataDir::new(), &args, &environment)
    };
    let nodes = [start("n=1", &["--bootstrap"]), start("n=2", &[])];
    let caller = component("caller", "test_caller", "", &[on("1"), link("ping", "test:calls/pinging")]);
    let ping = component("ping", "test_ping", "", &[on("2")]);
    nodes[0].deploy(&app("calls", &[caller, ping, http("caller", "")]));
    let headers = [("traceparent", &*traceparent("01"))];
    client::send(nodes[0].at("calls"), "GET", "/?n=1", &headers, b"").unwrap().ok();

    let of =
        |what: &str, is: &dyn Fn(&Seen) -> bool| eventually(what, || collector.of_trace(TRACE).into_iter().find(is));
    let is_of = |name: &'static str| move |span: &Seen| span.attributes.get("faas.name").is_some_and(|of| of == name);
    let called = of("the span of what was called", &is_of("calls/ping"));
    let call = of("the span of the call", &|span| span.id == called.parent);
    let request = of("the span of the request", &is_of("calls/caller"));
    assert_eq!((call.parent, &*request.parent), (request.id, PARENT));
}

#[test]
fn nothing_is_sent_unless_a_collector_is_named_and_the_trace_is_wanted() {
    let collector = Collector::start();
    for (environment, flags) in [
        (vec![SOON], "01"),
        (collector.environment(&[("OTEL_SDK_DISABLED", "true")]), "01"),
        (collector.environment(&[("OTEL_TRACES_SAMPLER", "always_off")]), "01"),
        (collector.environment(&[]), "00"),
    ] {
        let node = start(&environment);
        let address = free_address();
        node.deploy(&orders_at("app.yaml", address));
        place_order(address, &[("traceparent", &traceparent(flags))]);
        assert!(node.stop().success());
        assert_eq!(collector.of_trace(TRACE).len(), 0, "{environment:?}");
    }
}

#[test]
fn a_collector_that_is_not_there_costs_no_event_and_is_named_in_the_log() {
    let gone = free_address();
    let endpoint = format!("http://{gone}");
    let node = start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), SOON]);
    let address = free_address();
    node.deploy(&orders_at("app.yaml", address));
    place_order(address, &[]);
    eventually("the log says so", || {
        node.log().contains(&format!("traces do not reach {endpoint}/v1/traces")).then_some(())
    });
    for _ in 0..50 {
        assert_eq!(client::get(address, "/orders/1").unwrap().status, 200);
    }
    let asked = Instant::now();
    assert!(node.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}

#[test]
fn the_metrics_page_counts_events_and_their_durations() {
    let node = Node::start(&[]);
    let address = free_address();
    node.deploy(&orders_at("app.yaml", address));
    place_order(address, &[]);
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let page = client::get(admin, "/metrics").unwrap().ok();
    let value = |line: &str| {
        let found = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} is not in\n{page}")).parse::<f64>().unwrap()
    };
    let (api, invoice) = ("app=\"orders\",component=\"api\"", "app=\"orders\",component=\"invoice\"");
    assert!(value(&format!("faas_invocations_total{{{api}}}")) >= 2.0);
    assert_eq!(value(&format!("faas_invocations_total{{{invoice}}}")), 1.0);
    assert_eq!(value(&format!("faas_errors_total{{{api},error_type=\"fault\"}}")), 0.0);
    assert_eq!(value(&format!("faas_coldstarts_total{{{invoice}}}")), 1.0);
    for name in ["faas_invoke_duration_seconds", "faas_init_duration_seconds"] {
        assert_eq!(value(&format!("{name}_count{{{invoice}}}")), 1.0);
        assert_eq!(value(&format!("{name}_bucket{{{invoice},le=\"+Inf\"}}")), 1.0);
        assert!(value(&format!("{name}_sum{{{invoice}}}")) > 0.0);
    }
    assert!(value(&format!("trellis_permit_wait_seconds_count{{{api}}}")) >= 2.0);
    assert!(!page.contains(&format!("trellis_permit_wait_seconds_count{{{invoice}}}")), "nobody waits for a pull");
    let types: Vec<_> = page.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    let names: BTreeSet<_> = types.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(types.len(), names.len(), "each name has one type");
}
