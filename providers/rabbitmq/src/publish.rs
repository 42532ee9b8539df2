//! A component publishes. A publish is answered when the server has stored the message.
//!
//! | key | means |
//! | --- | --- |
//! | `exchange` | where messages go; the default exchange if absent, for which a subject is the name of a queue |
//! | `allowed_subjects` | what the component may publish to, as for NATS |
//!
//! The subject is the routing key. On the default exchange a subject without a queue is an error; on a named one it is not,
//! since there it is common that nobody listens. RabbitMQ takes no message for another by its id: one that a node sends
//! again is there twice.

use std::sync::Arc;

use trellis_provider::{Allowed, LinkError, now_ms};
use trellis_wire::{Answer, CallError, Link, Message};

use crate::config::Settings;
use crate::connection::{Connection, Connections, NOT_FOUND, Unanswered, check_name};
use crate::known::{HEADERS_BYTES_MAX, published};

/// Largest message, in bytes; as in `trellis://embedded`, so that an app can move.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Longest routing key, name of a header, id and reply subject, by the protocol.
const SHORT_BYTES_MAX: usize = 255;

/// A link that lets a component publish.
#[derive(Debug)]
pub(crate) struct Publisher {
    connection: Arc<Connection>,
    exchange: String,
    allowed: Allowed,
}

/// The server of a link, its exchange, and where it may publish.
pub(crate) fn read(link: &Link) -> Result<(Settings, String, Allowed), LinkError> {
    let exchange = link.config.get("exchange").map(|name| check_name("exchange", name, SHORT_BYTES_MAX));
    Ok((Settings::read(link)?, exchange.transpose()?.unwrap_or_default(), Allowed::read(&link.config)?))
}

impl Publisher {
    pub(crate) fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let (settings, exchange, allowed) = read(link)?;
        Ok(Self { connection: connections.get(&settings)?, exchange, allowed })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn publish(&self, message: &Message) -> Result<Answer, CallError> {
        self.check(message)?;
        let (number, line) = self.connection.get().await.map_err(CallError::Unavailable)?;
        let properties = published(message, now_ms());
        match line.publish(&self.exchange, &message.subject, &message.body, properties).await {
            Ok(true) => Ok(Answer::Published),
            Ok(false) if !self.exchange.is_empty() => Ok(Answer::Published),
            Ok(false) => Err(CallError::NoSuch(format!("queue `{}`", message.subject))),
            Err(Unanswered::Refused(NOT_FOUND, _)) => Err(CallError::NoSuch(format!("exchange `{}`", self.exchange))),
            Err(Unanswered::Refused(_, why)) => Err(CallError::Unavailable(why)),
            Err(Unanswered::Away(why)) => Err(CallError::Unavailable(self.connection.broke(number, &why))),
        }
    }

    /// Whether a message can be published at all.
    pub(crate) fn check(&self, message: &Message) -> Result<(), CallError> {
        let subject = &message.subject;
        let short = [subject, &message.id].into_iter().chain(&message.reply_to);
        let names = message.headers.iter().map(|(name, _)| name);
        if let Some(long) = short.chain(names).find(|text| text.len() > SHORT_BYTES_MAX) {
            return Err(CallError::Invalid(format!(
                "`{}...`: subjects, ids and names of headers have at most {SHORT_BYTES_MAX} bytes",
                &long[..long.floor_char_boundary(40)]
            )));
        }
        if subject.is_empty() {
            return Err(CallError::Invalid(
                "an empty subject: the name of a queue, or a routing key, is expected".into(),
            ));
        }
        self.allowed.check(subject)?;
        let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 16).sum();
        let bytes = message.body.len();
        if bytes > MESSAGE_BYTES_MAX || headers > HEADERS_BYTES_MAX / 2 {
            return Err(CallError::Invalid(format!(
                "a message of {bytes} bytes with {headers} bytes of headers is too large; at most {MESSAGE_BYTES_MAX} and \
                 {} are taken: store it and publish its key",
                HEADERS_BYTES_MAX / 2
            )));
        }
        Ok(())
    }
}
