//! A component publishes to topics.
//!
//! | key | means |
//! | --- | --- |
//! | `qos` | `1`, by default: a publish is answered once the server has the message; `0`: once it is on its way |
//! | `allowed_subjects` | what the component may publish to, with `/` written as `.`, as for NATS |
//!
//! MQTT 3.1.1 has no place for headers, nor for where an answer is awaited: there a message is its body.

use tokio::sync::mpsc;
use trellis_provider::{Allowed, LinkError};
use trellis_wire::{Answer, CallError, Link, Message};

use crate::config::{Qos, Session, Settings};
use crate::connection::Connection;

/// Largest message, in bytes with its headers; as in `trellis://embedded`, so that an app can move.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Longest topic, name and value of a header, by the protocol.
const TEXT_BYTES_MAX: usize = 65_535;

/// A link that lets a component publish.
pub(crate) struct Publisher {
    connection: Connection,
    allowed: Allowed,
    qos: Qos,
}

impl Publisher {
    pub(crate) fn open(link: &Link) -> Result<Self, LinkError> {
        // Nothing is subscribed to, so nothing comes.
        let (inbox, _) = mpsc::channel(1);
        let connection = Connection::open(&Settings::read(link)?, &Session::Passing, None, inbox)?;
        Ok(Self { connection, allowed: Allowed::read(&link.config)?, qos: Qos::read(&link.config)? })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn publish(&self, message: Message) -> Result<Answer, CallError> {
        self.check(&message)?;
        self.connection.publish(message, self.qos).await?;
        Ok(Answer::Published)
    }

    /// Whether a message can be published at all.
    pub(crate) fn check(&self, message: &Message) -> Result<(), CallError> {
        let subject = &message.subject;
        let texts = message.headers.iter().flat_map(|(name, value)| [name, value]).chain([subject]);
        if subject.is_empty() || subject.contains(['+', '#', '\0']) || subject.starts_with('$') {
            return Err(CallError::Invalid(format!("`{subject}` is no topic to publish to: no wildcards, no `$`")));
        }
        self.allowed.check(&subject.replace('/', "."))?;
        let (mut bytes, mut longest) = (message.body.len(), 0);
        for text in texts {
            bytes += text.len();
            longest = longest.max(text.len());
        }
        if bytes > MESSAGE_BYTES_MAX || longest > TEXT_BYTES_MAX {
            return Err(CallError::Invalid(format!(
                "a message of {bytes} bytes is too large; at most {MESSAGE_BYTES_MAX} are taken, and {TEXT_BYTES_MAX} for a \
                 header: store it and publish its key"
            )));
        }
        Ok(())
    }
}
