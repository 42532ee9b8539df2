//! The MQTT provider: what components get from a server that speaks MQTT 5.
//!
//! | link | file |
//! | --- | --- |
//! | messages of a topic wake a component, at most once | `source.rs` |
//! | a component publishes | `publish.rs` |
//!
//! What every link may say of its server:
//!
//! | config or secret | means |
//! | --- | --- |
//! | `url` | `mqtt://HOST:PORT`, or `mqtts://` for TLS; `mqtt://127.0.0.1:1883` by default |
//! | `user`, `password` | the login; the password as a secret |
//! | `tls_ca`, `tls_cert`, `tls_key` | the CA to trust, which `mqtts://` needs, and the client's own certificate: PEM or a path |
//!
//! MQTT 3.1.1 and delivery at least once are not built. This crate is the only one that knows MQTT.

mod config;
mod connection;
mod publish;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

use std::sync::Arc;

use async_trait::async_trait;
pub use publish::MESSAGE_BYTES_MAX;
use trellis_provider::{LinkError, Links, Permits, Provider, no_such_call, no_such_package};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::publish::Publisher;
use crate::source::Subscribed;

/// The provider. One value serves every MQTT link of a node.
#[derive(Default)]
pub struct Mqtt {
    links: Links<Bound>,
}

/// What a link has become.
#[derive(Clone)]
enum Bound {
    Subscribed(Arc<Subscribed>),
    Publisher(Arc<Publisher>),
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        match self {
            Self::Subscribed(subscribed) => subscribed.end().await,
            Self::Publisher(_) => {}
        }
    }
}

impl Mqtt {
    /// A provider without links.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Provider for Mqtt {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_package(&link)?;
        let id = link.id.clone();
        self.remove(&id).await;
        let subscribed = Subscribed::begin(link, permits)?;
        self.links.bind(id, Bound::Subscribed(Arc::new(subscribed))).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        check_package(&link)?;
        let publisher = Publisher::open(&link)?;
        self.links.bind(link.id, Bound::Publisher(Arc::new(publisher))).await;
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        self.links.remove(link).await;
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        match (self.links.get(link).map_err(CallError::Unavailable)?, call) {
            (Bound::Publisher(publisher), Call::Publish(message)) => publisher.publish(message).await,
            (Bound::Publisher(_), Call::Request { .. }) => {
                Err(CallError::Invalid("MQTT links await no answers: publish, or link a NATS provider".into()))
            }
            (_, call) => Err(no_such_call(link, &call)),
        }
    }

    fn check_publish(&self, link: &LinkId, message: &Message) -> Result<(), CallError> {
        match self.links.get(link) {
            Ok(Bound::Publisher(publisher)) => publisher.check(message),
            _ => Ok(()),
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links.get(link)? {
            Bound::Subscribed(subscribed) => subscribed.health(),
            Bound::Publisher(publisher) => publisher.health(),
        }
    }

    async fn drain(&self) {
        self.links.drain().await;
    }
}

fn check_package(link: &Link) -> Result<(), LinkError> {
    if link.package == "messaging" {
        return Ok(());
    }
    Err(no_such_package(link, "trellis://mqtt has `messaging`"))
}
