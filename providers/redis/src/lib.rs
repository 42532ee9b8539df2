//! The Redis provider: what components get from a Redis (or Valkey) server, 6.2 or later.
//!
//! | link | file |
//! | --- | --- |
//! | messages of a stream wake a component, at least once | `stream.rs`, with its ledger in `ledger.rs` |
//! | a component publishes to streams | `publish.rs` |
//! | a component uses keys | `keyvalue.rs` |
//!
//! What every link may say of its server:
//!
//! | config or secret | means |
//! | --- | --- |
//! | `url` (or `URL`) | `redis://HOST:PORT/DATABASE`, or `rediss://` for TLS; `redis://127.0.0.1:6379` by default |
//! | `user`, `password` | the login; the password as a secret |
//! | `tls_ca`, `tls_cert`, `tls_key` | the CA to trust, and the client's own certificate: PEM or a path |
//!
//! One server, or a primary that replicas follow; not Redis Cluster, over whose slots one script cannot reach. A message
//! is as safe as the server makes it: with `appendonly yes` and `appendfsync always` nothing is lost when it dies, with
//! `everysec` a second may be, with snapshots alone what came since the last one.
//!
//! This crate is the only one that knows Redis.

mod config;
mod connection;
mod fields;
mod keyvalue;
mod ledger;
mod off;
mod publish;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

use std::sync::Arc;

use async_trait::async_trait;
pub use publish::{ID_KEPT, MESSAGE_BYTES_MAX};
pub use stream::Source;
use trellis_provider::delivery::Trigger;
use trellis_provider::{Allowed, LinkError, Links, Permits, Provider, no_such_call, no_such_package};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::config::Settings;
use crate::connection::Connections;
use crate::keyvalue::Keys;
use crate::publish::Publisher;
use crate::stream::Streamed;

/// The provider. One value serves every Redis link of a node.
#[derive(Debug, Default)]
pub struct Redis {
    connections: Connections,
    links: Links<Bound>,
}

/// What a link has become.
#[derive(Debug, Clone)]
enum Bound {
    Streamed(Arc<Streamed>),
    Publisher(Arc<Publisher>),
    Keys(Arc<Keys>),
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        match self {
            Self::Streamed(streamed) => streamed.running.end().await,
            Self::Publisher(_) | Self::Keys(_) => {}
        }
    }
}

/// Whether a link says rightly which stream wakes its component. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_wake(link: &Link) -> Result<(), LinkError> {
    check_wakes(link)?;
    stream::Wanted::read(link).map(drop)
}

/// Whether a link says rightly what it grants of which server. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_grant(link: &Link) -> Result<(), LinkError> {
    match link.package.as_str() {
        "messaging" => Settings::read(link).and_then(|_| Allowed::read(&link.config)).map(drop),
        "keyvalue" => keyvalue::read(link).map(drop),
        _ => Err(unsupported(link, "grant `messaging` and `keyvalue`")),
    }
}

fn check_wakes(link: &Link) -> Result<(), LinkError> {
    if link.package == "messaging" { Ok(()) } else { Err(unsupported(link, "wake a component by `messaging`")) }
}

impl Redis {
    /// A provider without links. It connects when the first link needs it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The queue of a link, as its engine sees it.
    ///
    /// # Errors
    /// The configuration is wrong.
    pub fn source(&self, link: &Link) -> Result<Source, LinkError> {
        Source::open(&self.connections, link)
    }
}

#[async_trait]
impl Provider for Redis {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_wakes(&link)?;
        let id = link.id.clone();
        self.remove(&id).await;
        let streamed = Streamed::begin(&self.connections, link, permits)?;
        self.links.bind(id, Bound::Streamed(Arc::new(streamed))).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        let bound = match link.package.as_str() {
            "messaging" => Bound::Publisher(Arc::new(Publisher::open(&self.connections, &link)?)),
            "keyvalue" => Bound::Keys(Arc::new(Keys::open(&self.connections, &link)?)),
            _ => return Err(unsupported(&link, "grant `messaging` and `keyvalue`")),
        };
        self.links.bind(link.id, bound).await;
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        self.links.remove(link).await;
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        match (self.links.get(link).map_err(CallError::Unavailable)?, call) {
            (Bound::Publisher(publisher), Call::Publish(message)) => publisher.publish(&message).await,
            (Bound::Publisher(_), Call::Request { .. }) => {
                Err(CallError::Invalid("streams of Redis have no answers: publish, or link a NATS provider".into()))
            }
            (Bound::Keys(keys), Call::KeyValue(operation)) => keys.call(operation).await.map(Answer::KeyValue),
            (_, call) => Err(no_such_call(link, &call)),
        }
    }

    fn check_publish(&self, link: &LinkId, message: &Message) -> Result<(), CallError> {
        match self.links.get(link) {
            Ok(Bound::Publisher(publisher)) => publisher.check(message),
            _ => Ok(()),
        }
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        match self.links.get(link) {
            Ok(Bound::Streamed(streamed)) => Some(streamed.running.trigger()),
            _ => None,
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links.get(link)? {
            Bound::Streamed(streamed) => streamed.health(),
            Bound::Publisher(publisher) => publisher.health(),
            Bound::Keys(keys) => keys.health(),
        }
    }

    async fn drain(&self) {
        self.links.drain().await;
    }
}

fn unsupported(link: &Link, can: &str) -> LinkError {
    no_such_package(link, &format!("trellis://redis can {can}"))
}
