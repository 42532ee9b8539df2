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
mod publish;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
pub use publish::{ID_KEPT, MESSAGE_BYTES_MAX};
pub use stream::Source;
use trellis_provider::delivery::Trigger;
use trellis_provider::{LinkError, Permits, Provider};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::connection::Connections;
use crate::keyvalue::Keys;
use crate::publish::Publisher;
use crate::stream::Streamed;

/// The provider. One value serves every Redis link of a node.
#[derive(Debug, Default)]
pub struct Redis {
    connections: Connections,
    links: Mutex<HashMap<LinkId, Bound>>,
}

/// What a link has become.
#[derive(Debug, Clone)]
enum Bound {
    Streamed(Arc<Streamed>),
    Publisher(Arc<Publisher>),
    Keys(Arc<Keys>),
}

impl Bound {
    async fn end(&self) {
        match self {
            Self::Streamed(streamed) => streamed.running.end().await,
            Self::Publisher(_) | Self::Keys(_) => {}
        }
    }
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
impl Provider for Redis {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        if link.package != "messaging" {
            return Err(unsupported(&link, "wake a component by `messaging`"));
        }
        let id = link.id.clone();
        self.remove(&id).await;
        let streamed = Streamed::begin(&self.connections, link, permits)?;
        self.bind(id, Bound::Streamed(Arc::new(streamed))).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        let bound = match link.package.as_str() {
            "messaging" => Bound::Publisher(Arc::new(Publisher::open(&self.connections, &link)?)),
            "keyvalue" => Bound::Keys(Arc::new(Keys::open(&self.connections, &link)?)),
            _ => return Err(unsupported(&link, "grant `messaging` and `keyvalue`")),
        };
        self.bind(link.id, bound).await;
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
            (Some(Bound::Publisher(publisher)), Call::Publish(message)) => publisher.publish(&message).await,
            (Some(Bound::Publisher(_)), Call::Request { .. }) => {
                Err(CallError::Invalid("streams of Redis have no answers: publish, or link a NATS provider".into()))
            }
            (Some(Bound::Keys(keys)), Call::KeyValue(operation)) => keys.call(operation).await.map(Answer::KeyValue),
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

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        match self.links().get(link) {
            Some(Bound::Streamed(streamed)) => Some(streamed.running.trigger()),
            _ => None,
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links().get(link) {
            Some(Bound::Streamed(streamed)) => streamed.health(),
            Some(Bound::Publisher(publisher)) => publisher.health(),
            Some(Bound::Keys(keys)) => keys.health(),
            None => Err(format!("link {link} is not bound on this node")),
        }
    }

    async fn drain(&self) {
        let all: Vec<_> = self.links().values().cloned().collect();
        for bound in &all {
            if let Bound::Streamed(streamed) = bound {
                streamed.running.stop();
            }
        }
        for bound in all {
            bound.end().await;
        }
    }
}

fn unsupported(link: &Link, can: &str) -> LinkError {
    let (namespace, package) = (&link.namespace, &link.package);
    LinkError::Unsupported(format!("trellis://redis can {can}, not `{namespace}:{package}`"))
}
