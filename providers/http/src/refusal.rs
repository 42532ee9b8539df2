//! Every response that is ours and not the component's. A closed set: each line of [`Refusal::status`] is a promise
//! that the documentation repeats.
//!
//! The text is one line for people. What a guest printed or where it trapped stays inside: the node records it.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use trellis_wire::{Body, BodyError, Error, Fault};

/// Which kind of fault the component had: `trap`, `memory`, `deadline`, `no-reply` or `refused`.
const FAULT: HeaderName = HeaderName::from_static("x-trellis-fault");

/// When a client that found us busy is asked to try again.
const RETRY_AFTER_SECS: u64 = 1;

/// Why a request gets no answer of its component.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// No link is there.
    NoRoute {
        /// What requests are told apart by.
        by: String,
        /// Where.
        address: SocketAddr,
    },
    /// The `Host` header is not as HTTP wants it.
    BadHost(&'static str),
    /// CONNECT: this is no proxy.
    NoTunnel,
    /// The link has `readonly_mode`.
    ReadOnly,
    TooLarge {
        limit_bytes: u64,
    },
    TooSlow,
    /// The client broke its own body off; nobody may hear this.
    BrokenOff,
    /// As much of other requests' bodies is here as may be.
    ArrivalsFull,
    /// As many requests as may wait are waiting.
    QueueFull,
    /// The deadline passed before a permit was free.
    QueueTooLong,
    /// The deadline passed before the head of the answer was there.
    Deadline {
        after: Duration,
    },
    /// The guest's failure.
    Fault(Fault),
    /// Ours.
    Error(Error),
}

impl Refusal {
    /// The whole response.
    pub(crate) fn into_response(self) -> Response<Body> {
        if let Self::Error(error @ (Error::Internal(_) | Error::Unusable(_))) = &self {
            tracing::warn!(%error, "a request could not be handed to its component");
        }
        let mut text = self.text();
        text.push('\n');
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        self.mark(headers);
        response
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::BadHost(_) | Self::BrokenOff => StatusCode::BAD_REQUEST,
            Self::NoRoute { .. } => StatusCode::NOT_FOUND,
            Self::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Fault(Fault::Deadline { .. }) | Self::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Fault(_) | Self::Error(Error::Unusable(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoTunnel => StatusCode::NOT_IMPLEMENTED,
            Self::Error(Error::Internal(_)) => StatusCode::BAD_GATEWAY,
            Self::ArrivalsFull | Self::QueueFull | Self::QueueTooLong => StatusCode::SERVICE_UNAVAILABLE,
            Self::Error(Error::Busy(_) | Error::NotHeld(_) | Error::ShuttingDown) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::NoRoute { by, address } => format!("no component is linked to this {by} on {address}"),
            Self::BadHost(problem) => format!("the Host header {problem}"),
            Self::NoTunnel => "CONNECT is not offered here".into(),
            Self::ReadOnly => "only GET and HEAD are allowed here (`readonly_mode`)".into(),
            Self::TooLarge { limit_bytes } => format!("the body is larger than {limit_bytes} bytes (`max_body_bytes`)"),
            Self::TooSlow => "the body came too slowly".into(),
            Self::BrokenOff => "the body broke off".into(),
            Self::ArrivalsFull => "busy: no room for the body, since too many others have come before it".into(),
            Self::QueueFull => "busy: as many requests as may wait are waiting (`max_waiting`)".into(),
            Self::QueueTooLong => "busy: no permit was free in time (`timeout_ms`)".into(),
            Self::Deadline { after } => format!("no answer within {} ms (`timeout_ms`)", after.as_millis()),
            Self::Fault(Fault::Trap(_)) => "the component trapped".into(),
            Self::Fault(Fault::Refused(_)) => "the component answered with an error".into(),
            Self::Fault(fault) => fault.to_string(),
            Self::Error(Error::Internal(_) | Error::Unusable(_)) => "the component could not be reached".into(),
            Self::Error(error) => error.to_string(),
        }
    }

    fn mark(&self, headers: &mut HeaderMap) {
        match self {
            Self::ReadOnly => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            Self::Fault(fault) => {
                headers.insert(FAULT, HeaderValue::from_static(kind(fault)));
            }
            // The link's deadline or the component's own, whichever was shorter: the component was late.
            Self::Deadline { .. } => {
                headers.insert(FAULT, HeaderValue::from_static("deadline"));
            }
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
            }
            _ => {}
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge { limit_bytes } => Self::TooLarge { limit_bytes },
            BodyError::TooSlow(_) => Self::TooSlow,
            BodyError::BrokenOff(_) => Self::BrokenOff,
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

const fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Trap(_) => "trap",
        Fault::OutOfMemory { .. } => "memory",
        Fault::Deadline { .. } => "deadline",
        Fault::NoReply => "no-reply",
        Fault::Refused(_) => "refused",
    }
}
