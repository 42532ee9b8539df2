//! Publishing to what a stream stores: such a publish is answered when the stream has the message.
//!
//! Core NATS confirms nothing, and a message that asks for an answer looks like a request to who listens. So the server is
//! asked first whether a stream takes the subject, and the answer is believed for a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind, RequestErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, Context, ErrorCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use trellis_wire::CallError;

use crate::connection::Connection;

/// How long it is believed that a stream takes a subject, and that none does.
const STORED_KEPT: Duration = Duration::from_secs(60);
const UNSTORED_KEPT: Duration = Duration::from_secs(5);
/// Subjects of which it is known. At the bound all are forgotten.
const SUBJECTS_MAX: usize = 10_000;
/// How long the server may take to say it. One without JetStream says so at once; one that forbids to ask says nothing.
const ASKED_MAX: Duration = Duration::from_secs(2);
/// Where answers go is never stored, and is another subject each time.
const INBOX: &str = "_INBOX.";

/// Asks for the streams that take a subject.
#[derive(Serialize)]
struct Asked<'a> {
    subject: &'a str,
}

#[derive(Deserialize)]
struct Streams {
    total: usize,
}

/// The streams behind one connection, as a publisher sees them.
#[derive(Debug)]
pub(crate) struct Stored {
    context: Context,
    /// Whether a stream takes a subject, and until when that is believed.
    known: Mutex<HashMap<String, (bool, Instant)>>,
}

/// A message on its way into a stream.
pub(crate) struct ToStore<'a> {
    pub(crate) subject: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Bytes,
}

impl Stored {
    pub(crate) fn new(connection: &Connection, domain: Option<&str>) -> Self {
        Self { context: connection.jetstream(domain), known: Mutex::default() }
    }

    /// Stores a message. `false`: no stream takes its subject, and nothing was sent.
    ///
    /// # Errors
    /// Whether it is stored is not known, or the stream refuses it.
    pub(crate) async fn publish(&self, message: ToStore<'_>) -> Result<bool, CallError> {
        if !self.takes(message.subject).await? {
            return Ok(false);
        }
        let ToStore { subject, headers, body } = message;
        let sent = self.context.publish_with_headers(subject.to_owned(), headers.clone(), body.clone()).await;
        let stored = match sent {
            Ok(sent) => sent.await,
            Err(why) => Err(why),
        };
        let Err(why) = stored else { return Ok(true) };
        // It may take the subject no more.
        self.known().remove(subject);
        match why.kind() {
            PublishErrorKind::StreamNotFound => Ok(false),
            _ => Err(refused(subject, &why)),
        }
    }

    /// Whether a stream takes this subject.
    async fn takes(&self, subject: &str) -> Result<bool, CallError> {
        if subject.starts_with(INBOX) {
            return Ok(false);
        }
        let known = self.known().get(subject).copied();
        if let Some((takes, _)) = known.filter(|(_, until)| *until > Instant::now()) {
            return Ok(takes);
        }
        let takes = self.asked(subject).await?;
        let until = Instant::now() + if takes { STORED_KEPT } else { UNSTORED_KEPT };
        let mut known = self.known();
        if known.len() >= SUBJECTS_MAX {
            known.clear();
        }
        known.insert(subject.to_owned(), (takes, until));
        Ok(takes)
    }

    async fn asked(&self, subject: &str) -> Result<bool, CallError> {
        let asked = Asked { subject };
        let asking = self.context.request::<_, _, Response<Streams>>("STREAM.NAMES", &asked);
        let silent = || Err(RequestErrorKind::TimedOut);
        match timeout(ASKED_MAX, asking).await.map_or_else(|_| silent(), |said| said.map_err(|why| why.kind())) {
            Ok(Response::Ok(streams)) => Ok(streams.total > 0),
            // There is no JetStream, or none for this account.
            Ok(Response::Err { .. }) | Err(RequestErrorKind::NoResponders) => Ok(false),
            Err(RequestErrorKind::TimedOut) => {
                tracing::warn!(subject, "JetStream does not say whether a stream takes it; published as if none did");
                Ok(false)
            }
            Err(why) => Err(CallError::Unavailable(format!("asking which stream takes `{subject}`: {why}"))),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (bool, Instant)>> {
        self.known.lock().expect("nothing panics while it holds what is known")
    }
}

/// What a stream said that has not taken a message. What it will never take is told from what it may take later.
fn refused(subject: &str, why: &PublishError) -> CallError {
    let source = std::error::Error::source(why);
    let code = source.and_then(|source| source.downcast_ref::<jetstream::Error>()).map(jetstream::Error::error_code);
    let said = source.map(|source| format!(": {source}")).unwrap_or_default();
    let said = format!("the stream behind `{subject}` has not taken it: {why}{said}");
    match (why.kind(), code) {
        (PublishErrorKind::TimedOut, _) => CallError::TimedOut(said),
        (PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence, _)
        | (PublishErrorKind::MaxPayloadExceeded, _)
        | (_, Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM)) => {
            CallError::Invalid(said)
        }
        _ => CallError::Unavailable(said),
    }
}
