//! The RabbitMQ provider: what components get from a server that speaks AMQP 0.9.1, RabbitMQ 3.10 or later.
//!
//! | link | file |
//! | --- | --- |
//! | messages of a queue wake a component, at least once | `source.rs`, and `ordered.rs` in their order |
//! | a component publishes | `publish.rs` |
//!
//! What every link may say of its server:
//!
//! | config or secret | means |
//! | --- | --- |
//! | `url` | `amqp://HOST:PORT/VHOST`, or `amqps://` for TLS; `amqp://127.0.0.1:5672` by default |
//! | `user`, `password` | the login; the password as a secret. `guest` by default |
//! | `tls_ca`, `tls_cert`, `tls_key` | the CA to trust, and the client's own certificate: PEM or a path |
//!
//! This crate is the only one that knows AMQP.

mod base;
mod claims;
mod config;
mod connection;
mod delays;
mod kept;
mod known;
mod letters;
mod ordered;
mod outstanding;
mod publish;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod walk;
mod wanted;
mod young;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
pub use ordered::{HELD_MAX, Ordered};
pub use publish::MESSAGE_BYTES_MAX;
pub use source::{Claim, Source};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::delivery::{Engine, Queue, Running, Trigger};
use trellis_provider::{Ledgers, LinkError, Links, Permits, Provider, Shared, Threads, no_such_call, no_such_package};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::base::{Base, Common};
use crate::config::Settings;
use crate::connection::{Connection, Connections};
use crate::publish::Publisher;
use crate::wanted::Wanted;

/// The provider. One value serves every RabbitMQ link of a node.
pub struct Rabbitmq {
    ledgers: Arc<dyn Ledgers>,
    connections: Connections,
    queues: Queues,
    links: Links<Bound>,
}

/// What the links of this node to one queue share, by server and queue.
pub(crate) type Queues = Shared<(Settings, String), Common>;

/// Whether a link says rightly which queue wakes its component. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_wake(link: &Link) -> Result<(), LinkError> {
    check_package(link)?;
    Wanted::read(link)?;
    Settings::read(link).map(drop)
}

/// Whether a link says rightly where its component publishes. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_grant(link: &Link) -> Result<(), LinkError> {
    check_package(link)?;
    publish::read(link).map(drop)
}

/// What a link has become.
#[derive(Debug, Clone)]
enum Bound {
    Running(Arc<Pulling>),
    Publisher(Arc<Publisher>),
}

/// A link whose queue wakes a component.
#[derive(Debug)]
struct Pulling {
    connection: Arc<Connection>,
    found: Arc<AtomicBool>,
    /// What is not well with an ordered link besides what its engine says.
    trouble: Arc<Mutex<Option<String>>>,
    running: Running,
    _preparing: Option<AbortOnDropHandle<()>>,
}

impl Pulling {
    fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)?;
        self.running.progress().health()?;
        if self.found.load(Ordering::Relaxed) { Ok(()) } else { Err("its queue is being looked for".into()) }
    }
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        match self {
            Self::Running(pulling) => pulling.running.end().await,
            Self::Publisher(_) => {}
        }
    }
}

impl Rabbitmq {
    /// A provider without links, whose links have their ledgers there. It connects when the first link needs it.
    pub fn new(ledgers: Arc<dyn Ledgers>) -> Self {
        Self { ledgers, connections: Connections::default(), queues: Queues::default(), links: Links::default() }
    }

    /// The same on a node that has threads which its guests cannot hold up: its connections live there.
    #[must_use]
    pub fn connected_on(self, threads: impl Into<Threads>) -> Self {
        Self { connections: Connections::on(threads.into()), ..self }
    }

    /// The queue of a link, as its engine sees it.
    ///
    /// # Errors
    /// The configuration is wrong.
    pub fn source(&self, link: &Link) -> Result<Source, LinkError> {
        Ok(Source::new(self.base(link)?))
    }

    /// The queue of an ordered link, as its engine sees it.
    ///
    /// # Errors
    /// As for [`Rabbitmq::source`].
    pub fn ordered(&self, link: &Link) -> Result<Ordered, LinkError> {
        Ok(Ordered::new(self.base(link)?))
    }

    fn base(&self, link: &Link) -> Result<Base, LinkError> {
        Base::open((&self.connections, &self.queues), &self.ledgers, link)
    }
}

#[async_trait]
impl Provider for Rabbitmq {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_package(&link)?;
        let id = link.id.clone();
        self.remove(&id).await;
        let base = self.base(&link)?;
        let (connection, found) = (base.connection.clone(), base.found.clone());
        let (running, trouble, preparing) = if link.delivery.order_by.is_some() {
            let source = Ordered::new(base);
            let (trouble, queue) = (source.trouble(), source.clone());
            let running = begin(link, source, permits)?;
            // After that: a link that is refused makes no queue.
            (running, trouble, Some(queue.prepare()))
        } else {
            (begin(link, Source::new(base), permits)?, Arc::default(), None)
        };
        let pulling = Pulling { connection, found, trouble, running, _preparing: preparing };
        self.links.bind(id, Bound::Running(Arc::new(pulling))).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        check_package(&link)?;
        let publisher = Publisher::open(&self.connections, &link)?;
        self.links.bind(link.id, Bound::Publisher(Arc::new(publisher))).await;
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        self.links.remove(link).await;
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        match (self.links.get(link).map_err(CallError::Unavailable)?, call) {
            (Bound::Publisher(publisher), Call::Publish(message)) => publisher.publish(&message).await,
            (Bound::Publisher(_), Call::Request { .. }) => {
                Err(CallError::Invalid("RabbitMQ links await no answers: publish, or link a NATS provider".into()))
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

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        match self.links.get(link) {
            Ok(Bound::Running(pulling)) => Some(pulling.running.trigger()),
            _ => None,
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links.get(link)? {
            Bound::Running(pulling) => pulling.health(),
            Bound::Publisher(publisher) => publisher.health(),
        }
    }

    async fn drain(&self) {
        self.links.drain().await;
    }
}

fn begin(link: Link, queue: impl Queue, permits: Permits) -> Result<Running, LinkError> {
    Ok(Running::begin(Engine::new(link.id, queue, permits, link.delivery)?))
}

fn check_package(link: &Link) -> Result<(), LinkError> {
    if link.package == "messaging" {
        return Ok(());
    }
    Err(no_such_package(link, "trellis://rabbitmq has `messaging`"))
}
