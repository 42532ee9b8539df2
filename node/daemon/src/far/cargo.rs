//! Cargo: an event, call, reply or answer, taken apart into a head that is one message and a body that streams, and put
//! together again at the other end.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use trellis_provider::Delivered;
use trellis_wire::{
    Answer, Body, BodyError, Call, CallError, Error, Event, HttpCall, Outcome, Reply, RunOutput, frame,
};

use super::message::{Back, Head, Headers};
use super::{FIRST_BYTES_MAX, WHOLE_BYTES_MAX};

/// How many headers a request, response or body may have.
const HEADERS_MAX: usize = 4_096;

/// A body with its beginning taken out.
pub(crate) struct Load {
    /// At most [`FIRST_BYTES_MAX`].
    pub(crate) first: Bytes,
    /// What follows; `None`: that was all.
    pub(crate) rest: Option<Rest>,
}

/// What follows the beginning of a body.
pub(crate) struct Rest {
    /// What was read of it already.
    pub(crate) read: VecDeque<Frame<Bytes>>,
    /// What was not. `None`: it has ended.
    pub(crate) body: Option<Body>,
}

impl Load {
    /// Takes the beginning out of a body: what is there already, at most 64 KiB. Nothing is waited for, since whoever
    /// sends may want to hear first.
    pub(crate) fn of(mut body: Body) -> Result<Self, BodyError> {
        let (mut first, mut read) = (BytesMut::new(), VecDeque::new());
        loop {
            match body.frame().now_or_never().map(Option::transpose).transpose()? {
                None => return Ok(Self { first: first.freeze(), rest: Some(Rest { read, body: Some(body) }) }),
                Some(None) if read.is_empty() => return Ok(Self { first: first.freeze(), rest: None }),
                Some(None) => return Ok(Self { first: first.freeze(), rest: Some(Rest { read, body: None }) }),
                Some(Some(frame)) => match frame.into_data() {
                    Ok(mut data) => {
                        let room = FIRST_BYTES_MAX - first.len();
                        first.extend_from_slice(&data.split_to(room.min(data.len())));
                        if !data.is_empty() {
                            read.push_back(Frame::data(data));
                        }
                        if first.len() == FIRST_BYTES_MAX && !body.is_end_stream() {
                            return Ok(Self { first: first.freeze(), rest: Some(Rest { read, body: Some(body) }) });
                        }
                    }
                    Err(trailers) => read.push_back(trailers),
                },
            }
        }
    }

    /// The body as it was.
    pub(crate) fn into_body(self) -> Body {
        let Some(rest) = self.rest else { return self.first.into() };
        let mut read = rest.read;
        if !self.first.is_empty() {
            read.push_front(Frame::data(self.first));
        }
        let next = async |(mut read, body): (VecDeque<Frame<Bytes>>, Option<Body>)| {
            if let Some(frame) = read.pop_front() {
                return Some((Ok(frame), (read, body)));
            }
            let mut body = body?;
            let frame = body.frame().await?;
            Some((frame, (read, Some(body))))
        };
        Body::new(StreamBody::new(Box::pin(futures::stream::unfold((read, rest.body), next))))
    }
}

/// Why cargo cannot be put together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Damaged(String);

fn damaged(why: impl std::fmt::Display) -> Damaged {
    Damaged(why.to_string())
}

/// Reads a body whole that is no stream to a guest.
pub(super) async fn whole(body: Body) -> Result<Bytes, Damaged> {
    let body = http_body_util::Limited::new(body, WHOLE_BYTES_MAX);
    body.collect().await.map(http_body_util::Collected::to_bytes).map_err(damaged)
}

pub(super) fn headers_out(headers: &HeaderMap) -> Headers {
    headers.iter().map(|(name, value)| (name.to_string(), Bytes::copy_from_slice(value.as_bytes()))).collect()
}

pub(super) fn headers_in(headers: Headers) -> Result<HeaderMap, Damaged> {
    // The map itself ends the process's thread over a number that fits a frame.
    if headers.len() > HEADERS_MAX {
        return Err(damaged(format!("{} headers; at most {HEADERS_MAX} are taken", headers.len())));
    }
    let pair = |(name, value): (String, Bytes)| {
        let name = HeaderName::try_from(name).map_err(damaged)?;
        Ok((name, HeaderValue::from_maybe_shared(value).map_err(damaged)?))
    };
    headers.into_iter().map(pair).collect()
}

fn request_out(parts: http::request::Parts, timeouts: Option<[std::time::Duration; 3]>) -> Head {
    Head::Http {
        method: parts.method.to_string(),
        uri: parts.uri.to_string(),
        headers: headers_out(&parts.headers),
        timeouts,
    }
}

fn request_in(method: &str, uri: &str, headers: Headers, body: Body) -> Result<http::Request<Body>, Damaged> {
    let mut request = http::Request::builder().method(method).uri(uri).body(body).map_err(damaged)?;
    *request.headers_mut() = headers_in(headers)?;
    Ok(request)
}

/// Takes an event apart.
pub(crate) fn event_out(event: Event) -> (Head, Body) {
    match event {
        Event::Http(request) => {
            let (parts, body) = request.into_parts();
            (request_out(parts, None), body)
        }
        Event::Message(mut message) => {
            let body = std::mem::take(&mut message.body);
            (Head::Message(message), body.into())
        }
        Event::Run(arguments) => (Head::Run(arguments), Body::empty()),
        Event::Invoke { interface, function, params } => (Head::Invoke { interface, function }, params.into()),
    }
}

/// Puts an event together.
pub(crate) async fn event_in(head: Head, body: Body) -> Result<Event, Damaged> {
    Ok(match head {
        Head::Http { method, uri, headers, .. } => Event::Http(request_in(&method, &uri, headers, body)?),
        Head::Message(mut message) => {
            message.body = whole(body).await?;
            Event::Message(message)
        }
        Head::Run(arguments) => Event::Run(arguments),
        Head::Invoke { interface, function } | Head::TracedInvoke { interface, function, .. } => {
            Event::Invoke { interface, function, params: whole(body).await? }
        }
        Head::KeyValue | Head::Publish(_) | Head::Request(..) => return Err(damaged("a call came as an event")),
    })
}

/// Takes what a component said apart.
pub(crate) fn outcome_out(outcome: Outcome) -> (Back, Body) {
    match outcome {
        Ok(Reply::Http(response)) => response_out(response),
        Ok(Reply::Settle(settle)) => (Back::Settle(settle), Body::empty()),
        Ok(Reply::Run(RunOutput { ok, stdout, stderr })) => {
            let (bytes, body) = (stdout.len() as u64, [stdout, stderr].concat());
            (Back::Run(RunOutput { ok, ..RunOutput::default() }, bytes), body.into())
        }
        Ok(Reply::Values(results)) => (Back::Values, results.into()),
        Err(failure) => (Back::Failed(failure), Body::empty()),
    }
}

fn response_out(response: http::Response<Body>) -> (Back, Body) {
    let (parts, body) = response.into_parts();
    (Back::Http { status: parts.status.as_u16(), headers: headers_out(&parts.headers) }, body)
}

fn response_in(status: u16, headers: Headers, body: Body) -> Result<http::Response<Body>, Damaged> {
    let mut response = http::Response::builder().status(status).body(body).map_err(damaged)?;
    *response.headers_mut() = headers_in(headers)?;
    Ok(response)
}

/// Puts what a component said together.
pub(crate) async fn outcome_in(back: Back, body: Body) -> Outcome {
    let reply = match back {
        Back::Http { status, headers } => response_in(status, headers, body).map(Reply::Http),
        Back::Settle(settle) => Ok(Reply::Settle(settle)),
        Back::Run(output, stdout_bytes) => whole(body).await.map(|mut stdout| {
            let cut = usize::try_from(stdout_bytes).unwrap_or(usize::MAX).min(stdout.len());
            let stderr = stdout.split_off(cut);
            Reply::Run(RunOutput { stdout, stderr, ..output })
        }),
        Back::Values => whole(body).await.map(Reply::Values),
        Back::Failed(failure) => return Err(failure),
        other => Err(damaged(format!("an event was answered with {other:?}"))),
    };
    reply.map_err(|why| Error::Internal(why.to_string()).into())
}

/// Takes what a delivery came to apart.
pub(crate) fn delivered_out(delivered: Delivered) -> (Back, Body) {
    let Delivered { outcome, sends, ran, .. } = delivered;
    let settle = match outcome {
        Ok(Reply::Settle(settle)) => Ok(settle),
        Ok(other) => Err(Error::Internal(format!("a message was answered with {other:?}")).into()),
        Err(failure) => Err(failure),
    };
    let body = postcard::to_stdvec(&sends).expect("plain data can be written");
    (Back::Delivered(settle, ran), body.into())
}

/// Puts what a delivery came to together.
pub(crate) async fn delivered_in(back: Back, body: Body) -> Delivered {
    let Back::Delivered(settle, ran) = back else { return outcome_in(back, body).await.into() };
    let sends = whole(body).await.and_then(|bytes| postcard::from_bytes(&bytes).map_err(damaged));
    match sends {
        Ok(sends) => Delivered { outcome: settle.map(Reply::Settle), sends, ran, lost: false },
        // What it published is not known: it is run again.
        Err(why) => Delivered { ran, ..Outcome::Err(Error::Internal(why.to_string()).into()).into() },
    }
}

/// Takes a call apart.
pub(crate) fn call_out(call: Call) -> (Head, Body) {
    match call {
        Call::KeyValue(operation) => (Head::KeyValue, frame::encode(&operation).into()),
        Call::Publish(mut message) => {
            let body = std::mem::take(&mut message.body);
            (Head::Publish(message), body.into())
        }
        Call::Request { mut message, timeout } => {
            let body = std::mem::take(&mut message.body);
            (Head::Request(message, timeout), body.into())
        }
        Call::Http(HttpCall { request, connect_timeout, first_byte_timeout, between_bytes_timeout }) => {
            let (parts, body) = request.into_parts();
            (request_out(parts, Some([connect_timeout, first_byte_timeout, between_bytes_timeout])), body)
        }
        Call::Invoke { interface, function, params } => (Head::Invoke { interface, function }, params.into()),
    }
}

/// Puts a call together.
pub(crate) async fn call_in(head: Head, body: Body) -> Result<Call, Damaged> {
    Ok(match head {
        Head::KeyValue => Call::KeyValue(plain(&whole(body).await?)?),
        Head::Publish(mut message) => {
            message.body = whole(body).await?;
            Call::Publish(message)
        }
        Head::Request(mut message, timeout) => {
            message.body = whole(body).await?;
            Call::Request { message, timeout }
        }
        Head::Http { method, uri, headers, timeouts: Some([connect, first_byte, between]) } => Call::Http(HttpCall {
            request: request_in(&method, &uri, headers, body)?,
            connect_timeout: connect,
            first_byte_timeout: first_byte,
            between_bytes_timeout: between,
        }),
        Head::Invoke { interface, function } => Call::Invoke { interface, function, params: whole(body).await? },
        Head::Http { timeouts: None, .. } | Head::Message(_) | Head::Run(_) | Head::TracedInvoke { .. } => {
            return Err(damaged("an event came as a call"));
        }
    })
}

/// Takes an answer apart.
pub(crate) fn answer_out(answer: Result<Answer, CallError>) -> (Back, Body) {
    match answer {
        Ok(Answer::KeyValue(answer)) => (Back::KeyValue, frame::encode(&answer).into()),
        Ok(Answer::Published) => (Back::Published, Body::empty()),
        Ok(Answer::Message(mut message)) => {
            let body = std::mem::take(&mut message.body);
            (Back::Message(message), body.into())
        }
        Ok(Answer::Http(response)) => response_out(response),
        Ok(Answer::Values(results)) => (Back::Values, results.into()),
        Err(why) => (Back::CallFailed(why), Body::empty()),
    }
}

/// Puts an answer together.
pub(crate) async fn answer_in(back: Back, body: Body) -> Result<Answer, CallError> {
    let answer = async {
        Ok(match back {
            Back::KeyValue => Ok(Answer::KeyValue(plain(&whole(body).await?)?)),
            Back::Published => Ok(Answer::Published),
            Back::Message(mut message) => {
                message.body = whole(body).await?;
                Ok(Answer::Message(message))
            }
            Back::Http { status, headers } => Ok(Answer::Http(response_in(status, headers, body)?)),
            Back::Values => Ok(Answer::Values(whole(body).await?)),
            Back::CallFailed(why) => Err(why),
            Back::Failed(failure) => Err(CallError::Unavailable(failure.to_string())),
            other => return Err(damaged(format!("a call was answered with {other:?}"))),
        })
    };
    answer.await.unwrap_or_else(|why: Damaged| Err(CallError::Other(why.to_string())))
}

/// A frame that came in bounded chunks: a value may be larger than any one message.
fn plain<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Damaged> {
    frame::decode_any(bytes).map_err(damaged)
}
