//! A component publishes and requests.
//!
//! Where a stream takes the subject, a publish is answered when that has stored the message. Else it is answered once it is
//! handed to a standing connection: core NATS confirms nothing beyond that. So is a message that says where an answer goes,
//! since a stream would tell it there that it is stored.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue, PublishErrorKind, Request, RequestErrorKind};
use trellis_provider::LinkError;
use trellis_wire::{Answer, CallError, Config, Link, Message, pattern};

use crate::config::Allowed;
use crate::connection::{Connection, Connections};
use crate::stored::{Stored, ToStore};

/// The header by which JetStream tells a message that it has already stored.
pub(crate) const ID_HEADER: &str = "Nats-Msg-Id";

/// How long a connection that was just begun may take until it stands.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// A link that lets a component publish.
#[derive(Debug)]
pub(crate) struct Publisher {
    connection: Arc<Connection>,
    allowed: Allowed,
    stored: Stored,
}

impl Publisher {
    pub(crate) async fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let (allowed, domain) = (Allowed::read(&link.config)?, crate::keyvalue::domain(link)?);
        let connection = connections.get(link).await?;
        let stored = Stored::new(&connection, domain.as_deref());
        Ok(Self { connection, allowed, stored })
    }

    /// For the node itself, which publishes for people.
    pub(crate) async fn own(connections: &Connections) -> Result<Self, LinkError> {
        let (connection, allowed) = (connections.own().await?, Allowed::read(&Config::default())?);
        connection.stands(CONNECT_WAIT).await;
        let stored = Stored::new(&connection, None);
        Ok(Self { connection, allowed, stored })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn publish(&self, message: Message) -> Result<Answer, CallError> {
        self.check_message(&message)?;
        let headers = written_headers(&message)?;
        let bytes = message.body.len();
        let Message { subject, body, reply_to, .. } = message;
        let client = &self.connection.client;
        let published = async {
            let message = ToStore { subject: &subject, headers: &headers, body: &body };
            if reply_to.is_none() && self.stored.publish(message).await? {
                return Ok(());
            }
            match reply_to {
                Some(reply_to) => client.publish_with_reply_and_headers(subject, reply_to, headers, body).await,
                None if headers.is_empty() => client.publish(subject, body).await,
                None => client.publish_with_headers(subject, headers, body).await,
            }
            .map_err(|why| match why.kind() {
                PublishErrorKind::MaxPayloadExceeded => self.too_large(bytes),
                PublishErrorKind::InvalidSubject => CallError::Invalid(why.to_string()),
                PublishErrorKind::Send => CallError::Unavailable(why.to_string()),
            })
        };
        self.connection.during(published).await.map(|()| Answer::Published)
    }

    /// The message's own `reply_to` is not used: the answer comes here.
    pub(crate) async fn request(&self, message: Message, timeout: Duration) -> Result<Answer, CallError> {
        self.check(&message.subject)?;
        let headers = written_headers(&message)?;
        let bytes = message.body.len();
        let Message { subject, body, .. } = message;
        let mut request = Request::new().payload(body).timeout(Some(timeout));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let answered = async {
            self.connection.client.send_request(subject.clone(), request).await.map_err(|why| match why.kind() {
                RequestErrorKind::NoResponders => CallError::Unavailable(format!("nobody listens to `{subject}`")),
                RequestErrorKind::TimedOut => {
                    CallError::TimedOut(format!("no answer from `{subject}` within {timeout:?}"))
                }
                RequestErrorKind::InvalidSubject => CallError::Invalid(why.to_string()),
                RequestErrorKind::MaxPayloadExceeded => self.too_large(bytes),
                RequestErrorKind::Other => CallError::Unavailable(why.to_string()),
            })
        };
        let answer = self.connection.during(answered).await?;
        Ok(Answer::Message(Message {
            subject: answer.subject.to_string(),
            headers: read_headers(answer.headers.as_ref()),
            body: answer.payload,
            reply_to: answer.reply.map(async_nats::Subject::into_string),
            attempt: 1,
            ..Message::default()
        }))
    }

    /// Whether a message can be published at all.
    pub(crate) fn check_message(&self, message: &Message) -> Result<(), CallError> {
        self.check(&message.subject)?;
        message.reply_to.as_ref().map_or(Ok(()), |reply_to| self.check(reply_to))?;
        let headers = written_headers(message)?;
        let bytes = message.body.len();
        if wire_bytes(&headers) + bytes > self.connection.client.max_payload() {
            return Err(self.too_large(bytes));
        }
        Ok(())
    }

    fn check(&self, subject: &str) -> Result<(), CallError> {
        pattern::check_literal(subject).map_err(|why| CallError::Invalid(why.to_string()))?;
        if self.allowed.may_publish(subject) {
            return Ok(());
        }
        let which = "subjects of the lattice and of the server are kept from components, and `allowed_subjects` of \
                     the link may say what is not";
        Err(CallError::Denied(format!("publishing to `{subject}`: {which}")))
    }

    fn too_large(&self, bytes: usize) -> CallError {
        let max = self.connection.client.max_payload();
        CallError::Invalid(format!("the message has {bytes} bytes and its headers; the server takes at most {max}"))
    }
}

/// How many bytes headers have as they are written on the wire, which count as payload.
fn wire_bytes(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().flat_map(|(name, values)| {
        let name = AsRef::<str>::as_ref(name).len();
        values.iter().map(move |value| name + ": ".len() + value.as_str().len() + "\r\n".len())
    });
    "NATS/1.0\r\n".len() + lines.sum::<usize>() + "\r\n".len()
}

/// Sorted by name; the values of one name in the order in which they were written.
pub(crate) fn read_headers(headers: Option<&HeaderMap>) -> Vec<(String, String)> {
    let mut read: Vec<(String, String)> = Vec::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        read.extend(values.iter().map(|value| (name.to_string(), value.to_string())));
    }
    read.sort_by(|(a, _), (b, _)| a.cmp(b));
    read
}

/// The headers of a message, and its id where it has one, so that a stream that hears it twice stores it once.
fn written_headers(message: &Message) -> Result<HeaderMap, CallError> {
    let mut written = HeaderMap::new();
    for (name, value) in &message.headers {
        let refused = |why: String| CallError::Invalid(format!("header `{name}`: {why}"));
        let key = HeaderName::try_from(name.as_str()).map_err(|why| refused(why.to_string()))?;
        let value: HeaderValue = value.parse().map_err(|_| refused("its value holds a line break".into()))?;
        written.append(key, value);
    }
    if !message.id.is_empty() && written.get(ID_HEADER).is_none() {
        let id = message.id.parse::<HeaderValue>();
        written.insert(ID_HEADER, id.map_err(|_| CallError::Invalid("the message's id holds a line break".into()))?);
    }
    Ok(written)
}
