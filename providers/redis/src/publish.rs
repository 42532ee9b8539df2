//! A component publishes to streams. A publish is answered when the server has added the message.
//!
//! The subject is the name of the stream, which is made if it is not there. `allowed_subjects` may bound it, as for NATS.
//! A message with an id is added once within [`ID_KEPT`], however often it is sent.

use std::sync::Arc;
use std::time::Duration;

use redis::Script;
use trellis_provider::{Allowed, LinkError};
use trellis_wire::{Answer, CallError, Link, Message};

use crate::config::Settings;
use crate::connection::{Connection, Connections};
use crate::fields;
use crate::stream::name;

/// Largest message, in bytes with its headers; as in `trellis://embedded`, so that an app can move.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How long the id of a message that was added is known: longer than any sender tries again.
pub const ID_KEPT: Duration = Duration::from_secs(10 * 60);
/// Headers of one message.
const HEADERS_MAX: usize = 1_000;

/// A link that lets a component publish.
#[derive(Debug)]
pub(crate) struct Publisher {
    connection: Arc<Connection>,
    allowed: Allowed,
    once: Script,
}

impl Publisher {
    pub(crate) fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let settings = Settings::read(link)?;
        let connection = connections.get(&settings)?;
        let once = Script::new(include_str!("ledger/publish.lua"));
        Ok(Self { connection, allowed: Allowed::read(&link.config)?, once })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn publish(&self, message: &Message) -> Result<Answer, CallError> {
        self.check(message)?;
        let fields = fields::write(message);
        if message.id.is_empty() {
            let mut add = redis::cmd("XADD");
            add.arg(&message.subject).arg("*").arg(fields);
            self.connection.send::<redis::Value>(&add).await?;
        } else {
            let mut once = self.once.key(&message.subject);
            once.key(format!("trellis:published:{}:{}", message.subject, message.id));
            once.arg(ID_KEPT.as_millis().to_string()).arg(fields);
            self.connection.run::<i64>(&once).await?;
        }
        Ok(Answer::Published)
    }

    /// Whether a message can be published at all.
    pub(crate) fn check(&self, message: &Message) -> Result<(), CallError> {
        let subject = &message.subject;
        name("subject", subject).map_err(|why| CallError::Invalid(why.to_string()))?;
        self.allowed.check(subject)?;
        let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = message.body.len() + headers;
        if bytes > MESSAGE_BYTES_MAX || message.headers.len() > HEADERS_MAX {
            let count = message.headers.len();
            return Err(CallError::Invalid(format!(
                "a message of {bytes} bytes and {count} headers is too large; at most {MESSAGE_BYTES_MAX} bytes and \
                 {HEADERS_MAX} headers are taken: store it and publish its key"
            )));
        }
        Ok(())
    }
}
