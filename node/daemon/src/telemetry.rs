//! Telemetry: one trace of all that one event leads to, sent by OTLP. [`trace`] makes the spans, [`attributes`] says what
//! is in them, [`headers`] carries them from process to process, [`collector`] sends them. Figures are no part of this:
//! they are counted in [`crate::counts`] and read at `/metrics`.
//!
//! It is set up by the environment, as the OpenTelemetry specification has it. Unless a variable there names a
//! collector no span is made; then a `traceparent` that comes with an event is passed on to what follows from it, and
//! that is all.

mod attributes;
mod collector;
mod headers;
mod trace;

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use trellis_wire::NodeId;

pub(crate) use self::attributes::{call, system};
use self::collector::Collector;
pub(crate) use self::headers::Carried;
pub(crate) use self::trace::{Trace, Waking};

/// How long the last spans may take to reach the collector when the node ends.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// What `OTEL_TRACES_SAMPLER` may name.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The traces of this node: nothing, unless a collector was named.
#[derive(Default)]
pub(crate) struct Traces(Option<Export>);

struct Export {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Traces {
    /// As the environment says. What is wrong there is logged and keeps no node from starting.
    pub(crate) fn from_environment(node: NodeId) -> Self {
        let read = |name: &str| std::env::var(name).ok();
        let Some(endpoint) = endpoint(read) else { return Self::default() };
        for warning in misunderstood(read) {
            tracing::warn!("{warning}");
        }
        match Export::new(node, read) {
            Ok(export) => {
                tracing::info!("traces are sent to {endpoint}");
                Self(Some(export))
            }
            Err(why) => {
                tracing::error!("no traces are sent to {endpoint}: {why}");
                Self::default()
            }
        }
    }

    /// Sends what is still here, for a bounded time. Spans that end later are lost.
    pub(crate) async fn end(&self) {
        let Some(export) = &self.0 else { return };
        let provider = export.provider.clone();
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_MAX)).await;
        match ended.map_err(|why| why.to_string()).and_then(|ended| ended.map_err(|why| why.to_string())) {
            Ok(()) => {}
            Err(why) => tracing::warn!("the last traces may not have been sent: {why}"),
        }
    }
}

impl Export {
    fn new(node: NodeId, read: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let collector = Collector::new(timeout(read)).map_err(|why| why.to_string())?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(collector)
            .build()
            .map_err(|why| why.to_string())?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(node)).build();
        Ok(Self { tracer: provider.tracer("trellis"), provider })
    }
}

/// What this process is. The environment goes before what we know of ourselves.
fn resource(node: NodeId) -> Resource {
    let ours = [
        KeyValue::new("service.name", "trellis"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_string()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(ours)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Where traces go, if they do. The specification has a default for it, which would have every node look for a
/// collector on its own machine: here an endpoint must be named.
fn endpoint(read: impl Fn(&str) -> Option<String>) -> Option<String> {
    let is = |name: &str, value: &str| read(name).is_some_and(|text| text.trim().eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return None;
    }
    let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    named.iter().filter_map(|name| read(name)).map(|text| text.trim().to_owned()).find(|text| !text.is_empty())
}

/// How long one request to the collector may take: 10 s, unless the environment says otherwise in milliseconds.
fn timeout(read: impl Fn(&str) -> Option<String>) -> Duration {
    let named = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let millis = named.iter().find_map(|name| read(name)?.trim().parse().ok());
    Duration::from_millis(millis.unwrap_or(10_000))
}

/// What the environment asks for and does not get.
fn misunderstood(read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let set = |name: &str| read(name).filter(|text| !text.is_empty());
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if let Some(protocol) = set(name).filter(|protocol| protocol != "http/protobuf") {
            warnings.push(format!("{name}={protocol} is not built; traces are sent as http/protobuf"));
        }
    }
    if let Some(sampler) = set("OTEL_TRACES_SAMPLER").filter(|sampler| !SAMPLERS.contains(&sampler.as_str())) {
        let known = SAMPLERS.join(", ");
        warnings.push(format!("OTEL_TRACES_SAMPLER={sampler} is not known; parentbased_always_on is used of {known}"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + Copy + use<'a> {
        |name| variables.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn traces_are_sent_where_an_endpoint_is_named_and_nobody_says_no() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://general:4318");
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:4318/v1/traces");
        assert_eq!(endpoint(environment(&[])), None);
        assert_eq!(endpoint(environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")])), None);
        assert_eq!(endpoint(environment(&[general])).as_deref(), Some("http://general:4318"));
        assert_eq!(endpoint(environment(&[general, of_traces])).as_deref(), Some("http://traces:4318/v1/traces"));
        assert_eq!(endpoint(environment(&[general, ("OTEL_SDK_DISABLED", "TRUE")])), None);
        assert_eq!(endpoint(environment(&[general, ("OTEL_TRACES_EXPORTER", "none")])), None);
        assert!(endpoint(environment(&[general, ("OTEL_SDK_DISABLED", "false")])).is_some());
    }

    #[test]
    fn the_timeout_is_in_milliseconds_and_that_of_traces_goes_first() {
        assert_eq!(timeout(environment(&[])), Duration::from_secs(10));
        let general = ("OTEL_EXPORTER_OTLP_TIMEOUT", "2000");
        assert_eq!(timeout(environment(&[general])), Duration::from_secs(2));
        let of_traces = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "500");
        assert_eq!(timeout(environment(&[general, of_traces])), Duration::from_millis(500));
    }

    #[test]
    fn what_is_not_built_or_not_known_is_said() {
        assert!(misunderstood(environment(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")])).is_empty());
        assert!(misunderstood(environment(&[("OTEL_TRACES_SAMPLER", "traceidratio")])).is_empty());
        let said = misunderstood(environment(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ]));
        assert!(said[0].contains("OTEL_EXPORTER_OTLP_PROTOCOL=grpc"), "{said:?}");
        assert!(said[1].contains("OTEL_TRACES_SAMPLER=sometimes"), "{said:?}");
    }
}
