//! A component publishes to topics.
//!
//! | key | means |
//! | --- | --- |
//! | `qos` | `0` or `1`; `1` by default: sent until the server has it, as long as the node lives |
//! | `allowed_subjects` | what the component may publish to, with `/` written as `.`, as for NATS |
//!
//! A publish is answered once it is handed to a standing connection.

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use tokio::sync::mpsc;
use trellis_provider::{Allowed, LinkError};
use trellis_wire::{Answer, CallError, Link, Message};

use crate::config::Settings;
use crate::connection::Connection;

/// Largest message, in bytes with its headers; as in `trellis://embedded`, so that an app can move.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Longest topic, name and value of a header, by the protocol.
const TEXT_BYTES_MAX: usize = 65_535;

/// A link that lets a component publish.
pub(crate) struct Publisher {
    connection: Connection,
    allowed: Allowed,
    qos: QoS,
}

impl Publisher {
    pub(crate) fn open(link: &Link) -> Result<Self, LinkError> {
        let qos = match link.config.get("qos") {
            None | Some("1") => QoS::AtLeastOnce,
            Some("0") => QoS::AtMostOnce,
            Some(other) => return Err(LinkError::config("qos", format!("`{other}`: `0` or `1` is expected"))),
        };
        // Nothing is subscribed to, so nothing comes.
        let (inbox, _) = mpsc::channel(1);
        let connection = Connection::open(&Settings::read(link)?, None, inbox)?;
        Ok(Self { connection, allowed: Allowed::read(&link.config)?, qos })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn publish(&self, message: Message) -> Result<Answer, CallError> {
        self.check(&message)?;
        self.health().map_err(CallError::Unavailable)?;
        let properties = PublishProperties {
            user_properties: message.headers,
            response_topic: message.reply_to,
            ..PublishProperties::default()
        };
        let sent = self.connection.client.try_publish_with_properties(
            message.subject,
            self.qos,
            false,
            message.body,
            properties,
        );
        sent.map_err(|why| CallError::Unavailable(format!("too much waits to be sent: {why}")))?;
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
