//! The spans of an event and of the calls that it leads to, and what is known of a trace where no span is made.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::Context;
use opentelemetry::trace::{Span as _, SpanBuilder, Status, TraceContextExt as _, Tracer as _};
use trellis_wire::{Answer, Call, CallError, ComponentKey, Digest, Event, EventId, Outcome};

use super::attributes::{self, Ending, Named};
use super::headers::{Carried, Headers};
use super::{Export, Traces};

/// Where an event or a call stands in a trace. Whatever is dropped before it ended, ends then.
#[derive(Clone, Default)]
pub(crate) enum Trace {
    /// No trace is known.
    #[default]
    Unknown,
    /// One that others keep: this node passes on what it was told, and where it sends spans they belong there.
    OfOthers(Arc<Carried>),
    /// A span of this node.
    Span(Context),
}

/// How an event came to wake a component.
pub(crate) struct Waking<'a> {
    pub(crate) component: &'a ComponentKey,
    /// What is run.
    pub(crate) version: Digest,
    pub(crate) id: EventId,
    /// The link that brought it; empty if none did.
    pub(crate) link: &'a str,
    /// What the source speaks to, such as `nats`.
    pub(crate) system: &'static str,
    /// How long someone waited for the permit. A pull has not: nothing was pulled yet.
    pub(crate) waited: Option<Duration>,
    /// Whether the code has to be loaded first.
    pub(crate) cold: bool,
    /// The call that led to it, where no header says more.
    pub(crate) because_of: &'a Trace,
}

impl Traces {
    /// Begins the span of an event. From here on the event's headers name this span, so that a guest which keeps a
    /// trace of its own ties it in here.
    pub(crate) fn event(&self, event: &mut Event, waking: &Waking<'_>) -> Trace {
        let headers = Headers::of_event(event);
        let Some(export) = &self.0 else {
            let carried = headers.and_then(|headers| Carried::read(&headers));
            return carried.map_or_else(|| waking.because_of.clone(), |carried| Trace::OfOthers(Arc::new(carried)));
        };
        let parent = headers.and_then(|headers| headers.remote()).unwrap_or_else(|| waking.because_of.context());
        let waited = waking.waited.unwrap_or_default();
        let context = export.begin(&parent, attributes::event(event, waking), waited);
        if waking.waited.is_some() {
            export.step(&context, "permit", waited);
        }
        if let Some(mut headers) = Headers::of_event(event) {
            headers.name(&context);
        }
        Trace::Span(context)
    }

    /// Begins the span of a call. What goes outside with it names this span. Where the guest named one of its own, that
    /// is the parent.
    pub(crate) fn call(&self, within: &Trace, call: &mut Call, named: impl FnOnce(&Call) -> Named) -> Trace {
        let Some(export) = &self.0 else {
            if let (Trace::OfOthers(carried), Some(headers)) = (within, Headers::of_call(call)) {
                carried.pass_on(headers);
            }
            return within.clone();
        };
        let guests_own = Headers::of_call(call).and_then(|headers| headers.remote());
        let parent = guests_own.unwrap_or_else(|| within.context());
        let context = export.begin(&parent, named(call), Duration::ZERO);
        if let Some(mut headers) = Headers::of_call(call) {
            headers.name(&context);
        }
        Trace::Span(context)
    }

    /// A step of an event that has just ended and took this long.
    pub(crate) fn step(&self, of: &Trace, name: &'static str, took: Duration) {
        if let (Some(export), Trace::Span(context)) = (&self.0, of) {
            export.step(context, name, took);
        }
    }
}

impl Export {
    /// A span that began so long ago.
    fn begin(&self, parent: &Context, named: Named, ago: Duration) -> Context {
        let span = SpanBuilder::from_name(named.name)
            .with_kind(named.kind)
            .with_start_time(before_now(ago))
            .with_attributes(named.attributes)
            .start_with_context(&self.tracer, parent);
        parent.with_span(span)
    }

    fn step(&self, within: &Context, name: &'static str, took: Duration) {
        let began = SpanBuilder::from_name(name).with_start_time(before_now(took));
        self.tracer.build_with_context(began, within).end();
    }
}

impl Trace {
    /// Ends the span of an event.
    pub(crate) fn came_to(&self, outcome: &Outcome) {
        self.end(|| attributes::outcome(outcome));
    }

    /// Ends the span of a call.
    pub(crate) fn answered(&self, answer: &Result<Answer, CallError>) {
        self.end(|| attributes::answer(answer));
    }

    /// The trace's id in hex; empty where none is known.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Unknown => String::new(),
            Self::OfOthers(carried) => carried.trace_id().to_owned(),
            Self::Span(context) => context.span().span_context().trace_id().to_string(),
        }
    }

    /// What another node is told of it.
    pub(crate) fn carried(&self) -> Option<Carried> {
        match self {
            Self::Unknown => None,
            Self::OfOthers(carried) => Some(Carried::clone(carried)),
            Self::Span(context) => Carried::of(context),
        }
    }

    /// Under which a span begins.
    fn context(&self) -> Context {
        match self {
            Self::Unknown => Context::new(),
            Self::OfOthers(carried) => carried.remote().unwrap_or_default(),
            Self::Span(context) => context.clone(),
        }
    }

    fn end(&self, ending: impl FnOnce() -> Ending) {
        let Self::Span(context) = self else { return };
        let span = context.span();
        if !span.is_recording() {
            return;
        }
        let ending = ending();
        span.set_attributes(ending.attributes);
        if let Some(why) = ending.failed {
            span.set_status(Status::error(why));
        }
        span.end();
    }
}

impl From<Carried> for Trace {
    /// What another node told.
    fn from(carried: Carried) -> Self {
        Self::OfOthers(Arc::new(carried))
    }
}

/// A clock that was set back meanwhile gives the first moment that it knows.
fn before_now(ago: Duration) -> SystemTime {
    SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)
}
