//! What spans say, in the words of the OpenTelemetry semantic conventions for HTTP, messaging, databases, RPC and FaaS.
//! `trellis.*` is ours, where they have no word.
//!
//! Left out on purpose: query strings, keys, values and bodies, which hold what should not lie in a second place.

use http::{Method, Request, Uri, Version, header};
use opentelemetry::KeyValue as Attribute;
use opentelemetry::trace::SpanKind;
use trellis_manifest::Tech;
use trellis_wire::{
    Answer, Body, Call, CallError, Error, Event, Failure, Fault, KeyValue, Link, Message, Outcome, Reply, Settle,
};

use super::trace::Waking;

/// The longest text of a failure in a span, in bytes; the log has it whole.
const FAILURE_BYTES_MAX: usize = 1_024;

/// What a span begins with.
pub(crate) struct Named {
    pub(super) name: String,
    pub(super) kind: SpanKind,
    pub(super) attributes: Vec<Attribute>,
}

/// What a span ends with.
pub(super) struct Ending {
    pub(super) attributes: Vec<Attribute>,
    /// What failed, if it did.
    pub(super) failed: Option<String>,
}

/// What a provider is called in `messaging.system` and `db.system.name`.
pub(crate) const fn system(tech: Tech) -> &'static str {
    match tech {
        Tech::Http => "http",
        Tech::Nats => "nats",
        Tech::Redis => "redis",
        Tech::Rabbitmq => "rabbitmq",
        Tech::Mqtt => "mqtt",
        Tech::Embedded | Tech::Timer => "trellis",
    }
}

/// An event.
pub(super) fn event(event: &Event, waking: &Waking<'_>) -> Named {
    let component = waking.component.to_string();
    let (name, kind, trigger, mut attributes) = match event {
        Event::Http(request) => {
            let (method, attributes) = http_request(request);
            (format!("{method} {component}"), SpanKind::Server, "http", attributes)
        }
        Event::Message(message) => {
            let mut attributes = messaging(message, waking.system, "process", "process");
            attributes.push(Attribute::new("trellis.attempt", i64::from(message.attempt)));
            (destination("process", message), SpanKind::Consumer, "pubsub", attributes)
        }
        Event::Run(_) => (component.clone(), SpanKind::Internal, "other", Vec::new()),
        Event::Invoke { interface, function, .. } => {
            let method = format!("{interface}/{function}");
            (method.clone(), SpanKind::Server, "other", rpc(method))
        }
    };
    attributes.extend([
        Attribute::new("faas.name", component),
        Attribute::new("faas.version", waking.version.to_string()),
        Attribute::new("faas.trigger", trigger),
        Attribute::new("faas.invocation_id", waking.id.to_string()),
        Attribute::new("faas.coldstart", waking.cold),
    ]);
    if !waking.link.is_empty() {
        attributes.push(Attribute::new("trellis.link", waking.link.to_owned()));
    }
    Named { name, kind, attributes }
}

/// A call under `link`, which `system` answers.
pub(crate) fn call(call: &Call, link: &Link, system: &'static str) -> Named {
    let (name, kind, mut attributes) = match call {
        Call::KeyValue(operation) => {
            let (name, attributes) = key_value(operation, link, system);
            (name.to_owned(), SpanKind::Client, attributes)
        }
        Call::Publish(message) => {
            let attributes = messaging(message, system, "send", "publish");
            (destination("publish", message), SpanKind::Producer, attributes)
        }
        Call::Request { message, .. } => {
            let attributes = messaging(message, system, "send", "request");
            (destination("request", message), SpanKind::Client, attributes)
        }
        Call::Http(call) => {
            let (method, mut attributes) = method(call.request.method());
            attributes.push(Attribute::new("url.full", without_secrets(call.request.uri())));
            attributes.extend(server(call.request.uri()));
            (method, SpanKind::Client, attributes)
        }
        Call::Invoke { interface, function, .. } => {
            let method = format!("{interface}/{function}");
            (method.clone(), SpanKind::Client, rpc(method))
        }
    };
    attributes.push(Attribute::new("trellis.link", link.name.to_string()));
    Named { name, kind, attributes }
}

/// What became of an event.
pub(super) fn outcome(outcome: &Outcome) -> Ending {
    match outcome {
        Ok(Reply::Http(response)) => http_response(response.status(), 500),
        Ok(Reply::Settle(settle)) => settled(settle),
        Ok(Reply::Run(output)) if !output.ok => Ending::failed("exit", "it ended with an error"),
        Ok(Reply::Run(_) | Reply::Values(_)) => Ending::well(Vec::new()),
        Err(Failure::Fault(fault)) => Ending::failed(fault_type(fault), &fault.to_string()),
        Err(Failure::Error(error)) => Ending::failed(error_type(error), &error.to_string()),
    }
}

/// What a call was answered with.
pub(super) fn answer(answer: &Result<Answer, CallError>) -> Ending {
    let why = match answer {
        Ok(Answer::Http(response)) => return http_response(response.status(), 400),
        Ok(_) => return Ending::well(Vec::new()),
        Err(why) => why,
    };
    let kind = match why {
        CallError::Denied(_) => "denied",
        CallError::NoSuch(_) => "no_such",
        CallError::TimedOut(_) => "timeout",
        CallError::Unavailable(_) => "unavailable",
        CallError::Invalid(_) => "invalid",
        CallError::Other(_) => "_OTHER",
    };
    Ending::failed(kind, &why.to_string())
}

impl Ending {
    const fn well(attributes: Vec<Attribute>) -> Self {
        Self { attributes, failed: None }
    }

    fn failed(kind: &'static str, why: &str) -> Self {
        let end = why.floor_char_boundary(FAILURE_BYTES_MAX);
        Self { attributes: vec![Attribute::new("error.type", kind)], failed: Some(why[..end].to_owned()) }
    }
}

fn settled(settle: &Settle) -> Ending {
    let (word, failed) = match settle {
        Settle::Ack => ("ack", None),
        Settle::Retry { reason, .. } => ("retry", Some(reason)),
        Settle::DeadLetter(reason) => ("dead_letter", Some(reason)),
        Settle::Drop(_) => ("drop", None),
    };
    let mut ending = failed.map_or_else(|| Ending::well(Vec::new()), |reason| Ending::failed(word, reason));
    ending.attributes.push(Attribute::new("trellis.settle", word));
    ending
}

fn fault_type(fault: &Fault) -> &'static str {
    match fault {
        Fault::Trap(_) => "trap",
        Fault::OutOfMemory { .. } => "out_of_memory",
        Fault::Deadline { .. } => "timeout",
        Fault::NoReply => "no_reply",
        Fault::Refused(_) => "refused",
    }
}

fn error_type(error: &Error) -> &'static str {
    match error {
        Error::Busy(_) => "busy",
        Error::NotHeld(_) => "not_held",
        Error::Unusable(_) => "unusable",
        Error::ShuttingDown => "shutting_down",
        Error::Internal(_) => "internal",
    }
}

fn http_request(request: &Request<Body>) -> (String, Vec<Attribute>) {
    let (name, mut attributes) = method(request.method());
    let uri = request.uri();
    attributes.push(Attribute::new("url.path", uri.path().to_owned()));
    attributes.extend(uri.scheme_str().map(|scheme| Attribute::new("url.scheme", scheme.to_owned())));
    attributes.extend(server(uri));
    let version = match request.version() {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.push(Attribute::new("network.protocol.version", version));
    let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    attributes.extend(agent.map(|agent| Attribute::new("user_agent.original", agent.to_owned())));
    (name, attributes)
}

/// Whoever invents methods does not invent names of spans.
fn method(method: &Method) -> (String, Vec<Attribute>) {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    if known.contains(method) {
        return (method.to_string(), vec![Attribute::new("http.request.method", method.to_string())]);
    }
    let attributes = vec![
        Attribute::new("http.request.method", "_OTHER"),
        Attribute::new("http.request.method_original", method.to_string()),
    ];
    ("HTTP".into(), attributes)
}

fn http_response(status: http::StatusCode, failed_from: u16) -> Ending {
    let code = Attribute::new("http.response.status_code", i64::from(status.as_u16()));
    if status.as_u16() < failed_from {
        return Ending::well(vec![code]);
    }
    // The code says all there is to say, so the status has no text.
    let attributes = vec![code, Attribute::new("error.type", status.as_str().to_owned())];
    Ending { attributes, failed: Some(String::new()) }
}

fn server(uri: &Uri) -> impl Iterator<Item = Attribute> {
    let default = match uri.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let host = uri.host().map(|host| Attribute::new("server.address", host.to_owned()));
    let port = uri.port_u16().unwrap_or(default);
    let port = host.is_some().then(|| Attribute::new("server.port", i64::from(port)));
    host.into_iter().chain(port)
}

/// A URI without the credentials and the query that it may have.
fn without_secrets(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

fn messaging(
    message: &Message,
    system: &'static str,
    operation_type: &'static str,
    operation: &'static str,
) -> Vec<Attribute> {
    let mut attributes = vec![
        Attribute::new("messaging.system", system),
        Attribute::new("messaging.operation.type", operation_type),
        Attribute::new("messaging.operation.name", operation),
        Attribute::new("messaging.destination.name", message.subject.clone()),
        Attribute::new("messaging.message.body.size", i64::try_from(message.body.len()).unwrap_or(i64::MAX)),
    ];
    if is_temporary(message) {
        attributes.push(Attribute::new("messaging.destination.temporary", true));
    }
    if !message.id.is_empty() {
        attributes.push(Attribute::new("messaging.message.id", message.id.clone()));
    }
    attributes
}

/// `publish orders.placed`. An inbox is another one each time and makes no name.
fn destination(operation: &str, message: &Message) -> String {
    let subject = if is_temporary(message) { "(temporary)" } else { &message.subject };
    format!("{operation} {subject}")
}

fn is_temporary(message: &Message) -> bool {
    message.subject.starts_with("_INBOX")
}

fn key_value(operation: &KeyValue, link: &Link, system: &'static str) -> (&'static str, Vec<Attribute>) {
    let (name, batch) = match operation {
        KeyValue::Open => ("open", None),
        KeyValue::Get(_) => ("get", None),
        KeyValue::Set(..) => ("set", None),
        KeyValue::Delete(_) => ("delete", None),
        KeyValue::Exists(_) => ("exists", None),
        KeyValue::Keys { .. } => ("keys", None),
        KeyValue::Increment(..) => ("increment", None),
        KeyValue::Swap { .. } => ("swap", None),
        KeyValue::GetMany(keys) => ("get_many", Some(keys.len())),
        KeyValue::SetMany(pairs) => ("set_many", Some(pairs.len())),
        KeyValue::DeleteMany(keys) => ("delete_many", Some(keys.len())),
    };
    let mut attributes = vec![Attribute::new("db.system.name", system), Attribute::new("db.operation.name", name)];
    let store = link.config.get("bucket").or_else(|| link.config.get("store"));
    attributes.extend(store.map(|store| Attribute::new("db.namespace", store.to_owned())));
    let batch = batch.map(|keys| i64::try_from(keys).unwrap_or(i64::MAX));
    attributes.extend(batch.map(|keys| Attribute::new("db.operation.batch.size", keys)));
    (name, attributes)
}

fn rpc(method: String) -> Vec<Attribute> {
    vec![Attribute::new("rpc.system.name", "trellis"), Attribute::new("rpc.method", method)]
}
