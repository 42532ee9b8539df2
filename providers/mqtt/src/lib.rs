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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
pub use publish::MESSAGE_BYTES_MAX;
use trellis_provider::{LinkError, Permits, Provider};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::publish::Publisher;
use crate::source::Subscribed;

/// The provider. One value serves every MQTT link of a node.
#[derive(Default)]
pub struct Mqtt {
    links: Mutex<HashMap<LinkId, Bound>>,
}

/// What a link has become.
#[derive(Clone)]
enum Bound {
    Subscribed(Arc<Subscribed>),
    Publisher(Arc<Publisher>),
}

impl Bound {
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

    async fn bind(&self, id: LinkId, bound: Bound) {
        let before = self.links().insert(id, bound);
        if let Some(before) = before {
            before.end().await;
        }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<LinkId, Bound>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Provider for Mqtt {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_package(&link)?;
        let id = link.id.clone();
        self.remove(&id).await;
        let subscribed = Subscribed::begin(link, permits)?;
        self.bind(id, Bound::Subscribed(Arc::new(subscribed))).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        check_package(&link)?;
        let publisher = Publisher::open(&link)?;
        self.bind(link.id, Bound::Publisher(Arc::new(publisher))).await;
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        let removed = self.links().remove(link);
        if let Some(removed) = removed {
            removed.end().await;
        }
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        let bound = self.links().get(link).cloned();
        match (bound, call) {
            (Some(Bound::Publisher(publisher)), Call::Publish(message)) => publisher.publish(message).await,
            (Some(Bound::Publisher(_)), Call::Request { .. }) => {
                Err(CallError::Invalid("MQTT links await no answers: publish, or link a NATS provider".into()))
            }
            (Some(_), call) => Err(CallError::Invalid(format!("link {link} answers no {:?}", call.capability()))),
            (None, _) => Err(CallError::Unavailable(format!("link {link} is not bound on this node"))),
        }
    }

    fn check_publish(&self, link: &LinkId, message: &Message) -> Result<(), CallError> {
        match self.links().get(link) {
            Some(Bound::Publisher(publisher)) => publisher.check(message),
            _ => Ok(()),
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links().get(link) {
            Some(Bound::Subscribed(subscribed)) => subscribed.health(),
            Some(Bound::Publisher(publisher)) => publisher.health(),
            None => Err(format!("link {link} is not bound on this node")),
        }
    }

    async fn drain(&self) {
        let all: Vec<_> = self.links().values().cloned().collect();
        futures::future::join_all(all.iter().map(Bound::end)).await;
    }
}

fn check_package(link: &Link) -> Result<(), LinkError> {
    if link.package == "messaging" {
        return Ok(());
    }
    let (namespace, package) = (&link.namespace, &link.package);
    Err(LinkError::Unsupported(format!("trellis://mqtt has `messaging`, not `{namespace}:{package}`")))
}
