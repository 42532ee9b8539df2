//! Trace context in headers, as W3C Trace Context has it: `traceparent` and `tracestate`, in HTTP requests and in messages
//! alike. Header names of NATS have a case, and these are written in lower case.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use serde::{Deserialize, Serialize};
use trellis_wire::{Call, Event};

const TRACEPARENT_TEXT: &str = "traceparent";
const TRACESTATE_TEXT: &str = "tracestate";
const TRACEPARENT: HeaderName = HeaderName::from_static(TRACEPARENT_TEXT);
const TRACESTATE: HeaderName = HeaderName::from_static(TRACESTATE_TEXT);

/// The headers of an event or a call.
pub(super) enum Headers<'a> {
    Http(&'a mut HeaderMap),
    Message(&'a mut Vec<(String, String)>),
}

/// What came in headers, as it came; or what would be in them, for another node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Carried {
    pub(crate) traceparent: String,
    pub(crate) tracestate: Option<String>,
}

impl<'a> Headers<'a> {
    /// Those of an event, if it has any.
    pub(super) fn of_event(event: &'a mut Event) -> Option<Self> {
        match event {
            Event::Http(request) => Some(Self::Http(request.headers_mut())),
            Event::Message(message) => Some(Self::Message(&mut message.headers)),
            Event::Run(_) | Event::Invoke { .. } => None,
        }
    }

    /// Those that a call takes outside, if it does.
    pub(super) fn of_call(call: &'a mut Call) -> Option<Self> {
        match call {
            Call::Http(call) => Some(Self::Http(call.request.headers_mut())),
            Call::Publish(message) | Call::Request { message, .. } => Some(Self::Message(&mut message.headers)),
            Call::KeyValue(_) | Call::Invoke { .. } => None,
        }
    }

    /// The span that they name, if they name one.
    pub(super) fn remote(&self) -> Option<Context> {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), self);
        context.has_active_span().then_some(context)
    }

    /// Has them name the span of `context`.
    pub(super) fn name(&mut self, context: &Context) {
        TraceContextPropagator::new().inject_context(context, self);
    }

    fn read(&self, name: &HeaderName) -> Option<&str> {
        match self {
            Self::Http(headers) => headers.get(name)?.to_str().ok(),
            Self::Message(headers) => {
                let found = headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name.as_str()));
                found.map(|(_, value)| value.as_str())
            }
        }
    }

    fn write(&mut self, name: HeaderName, value: &str) {
        match self {
            Self::Http(headers) => {
                headers.remove(&name);
                if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
                    headers.insert(name, value);
                }
            }
            Self::Message(headers) => {
                headers.retain(|(header, _)| !header.eq_ignore_ascii_case(name.as_str()));
                if !value.is_empty() {
                    headers.push((name.as_str().into(), value.into()));
                }
            }
        }
    }
}

impl Carried {
    /// What these headers carry, if they do.
    pub(super) fn read(headers: &Headers<'_>) -> Option<Self> {
        let traceparent = headers.read(&TRACEPARENT)?.to_owned();
        Some(Self { traceparent, tracestate: headers.read(&TRACESTATE).map(str::to_owned) })
    }

    /// What headers would carry of `context`.
    pub(super) fn of(context: &Context) -> Option<Self> {
        let mut headers = Vec::new();
        let mut headers = Headers::Message(&mut headers);
        headers.name(context);
        Self::read(&headers)
    }

    /// The span that it names, if it names one.
    pub(super) fn remote(&self) -> Option<Context> {
        let mut headers = Vec::new();
        self.pass_on(Headers::Message(&mut headers));
        Headers::Message(&mut headers).remote()
    }

    /// The trace's id: what stands between the version and the parent's id.
    pub(super) fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }

    /// Passes it on, unless the guest has done that itself.
    pub(super) fn pass_on(&self, mut headers: Headers<'_>) {
        if headers.read(&TRACEPARENT).is_none() {
            headers.write(TRACEPARENT, &self.traceparent);
            headers.write(TRACESTATE, self.tracestate.as_deref().unwrap_or_default());
        }
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.read(&known(key)?)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT_TEXT, TRACESTATE_TEXT]
    }
}

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let Some(name) = known(key) {
            self.write(name, &value);
        }
    }
}

/// The propagator asks for these two and for nothing else.
fn known(key: &str) -> Option<HeaderName> {
    match key {
        TRACEPARENT_TEXT => Some(TRACEPARENT),
        TRACESTATE_TEXT => Some(TRACESTATE),
        _ => None,
    }
}
