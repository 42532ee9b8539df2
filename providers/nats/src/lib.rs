//! The NATS provider: what components get from a NATS system of their own or from the lattice's.
//!
//! | link | file |
//! | --- | --- |
//! | messages of a subject wake a component, at most once | `subscribe.rs` |
//! | the same with a policy, at least once from when the node has stored them | `kept.rs` |
//! | messages of a JetStream stream wake a component, at least once | `stream.rs` |
//! | what must outlive a node, beside a stream | `ledger.rs` |
//! | the same of other brokers, for the lattice | `ledgers.rs` |
//! | dead letters of a stream | `letters.rs` |
//! | a component publishes and requests | `publish.rs` |
//! | a component uses a JetStream key-value bucket | `keyvalue.rs` |
//!
//! What every link may say of its server:
//!
//! | config or secret | means |
//! | --- | --- |
//! | `url`, or `cluster_uris` | `nats://HOST:PORT`, `tls://`, `ws://` or `wss://`; the lattice's own server by default |
//! | `user`, `password` | the login; the password as a secret |
//! | `token` | a token instead, as a secret |
//! | `creds` | a `.creds` file instead: its text or a path, as a secret |
//! | `client_seed`, `client_jwt` | an nkey seed instead, with the JWT that was issued to it or without |
//! | `tls_ca`, `tls_cert`, `tls_key` | the CA to trust, and the client's own certificate: PEM or a path |
//! | `js_domain` | the JetStream domain |
//!
//! Its connections are apart from the lattice's bus and have inboxes of their own. Links with equal settings share one.
//! This crate is the only one that knows NATS as a provider.

mod clock;
mod config;
mod connection;
mod entries;
mod kept;
mod keyvalue;
mod ledger;
mod ledgers;
mod letters;
mod marks;
mod publish;
mod pulls;
mod replays;
mod stored;
mod stream;
mod subscribe;
mod tail;
#[cfg(test)]
mod testing;
mod unreadable;

use std::sync::Arc;

use async_trait::async_trait;
pub use config::Auth;
pub use ledgers::Ledgers;
use tokio::sync::OnceCell;
use trellis_provider::delivery::Trigger;
use trellis_provider::{
    Allowed, Depot, LinkError, Links, Permits, Provider, Threads, Tls, no_such_call, no_such_package, queue,
};
use trellis_wire::{Answer, Call, CallError, ComponentKey, Link, LinkId, Message};

use crate::config::Settings;
use crate::connection::Connections;
use crate::keyvalue::Bucket;
use crate::publish::Publisher;
use crate::stream::Streamed;
use crate::subscribe::Subscribed;

/// What a link that names no server gets. One that names a server brings a login of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The server: the lattice's own NATS. `nats://127.0.0.1:4222` if there is none.
    pub default_url: Option<String>,
    /// Who the node is there.
    pub auth: Auth,
    /// What secures the connection to it.
    pub tls: Tls,
    /// A subject of which the account allows all below, for the inboxes of these connections. `_INBOX` by default.
    pub inbox_prefix: Option<String>,
}

/// The provider. One value serves every NATS link of a node.
#[derive(Debug)]
pub struct Nats {
    connections: Connections,
    /// Where messages of core subjects are stored whose link has a policy.
    depot: Option<Arc<dyn Depot>>,
    links: Links<Bound>,
    own: OnceCell<Publisher>,
}

/// What a link has become.
#[derive(Debug, Clone)]
enum Bound {
    Subscribed(Arc<Subscribed>),
    Streamed(Arc<Streamed>),
    Publisher(Arc<Publisher>),
    Bucket(Arc<Bucket>),
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        match self {
            Self::Subscribed(subscribed) => subscribed.end().await,
            Self::Streamed(streamed) => streamed.end().await,
            Self::Publisher(_) | Self::Bucket(_) => {}
        }
    }
}

/// Whether a link says rightly what wakes its component. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_wake(link: &Link) -> Result<(), LinkError> {
    if link.package != "messaging" {
        return Err(unsupported(link, "wake a component by `messaging`"));
    }
    connection::servers(&Settings::read(link, &Options::default())?)?;
    match queue(&link.config, "stream")? {
        Some(_) => stream::check(link),
        None => subscribe::check(link),
    }
}

/// Whether a link says rightly what it grants of which server. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_grant(link: &Link) -> Result<(), LinkError> {
    connection::servers(&Settings::read(link, &Options::default())?)?;
    match link.package.as_str() {
        "messaging" => Allowed::read(&link.config).map(drop),
        "keyvalue" => keyvalue::check(link),
        _ => Err(unsupported(link, "grant `messaging` and `keyvalue`")),
    }
}

impl Nats {
    /// A provider without links. It connects when the first link needs it.
    pub fn new(options: Options) -> Self {
        Self { connections: Connections::new(options), depot: None, links: Links::default(), own: OnceCell::new() }
    }

    /// The same on a node that stores what core NATS does not keep, for links that have a policy.
    #[must_use]
    pub fn storing_in(self, depot: Arc<dyn Depot>) -> Self {
        Self { depot: Some(depot), ..self }
    }

    /// The same on a node that has threads which its guests cannot hold up: its connections live there.
    #[must_use]
    pub fn connected_on(self, threads: impl Into<Threads>) -> Self {
        Self { connections: self.connections.on(threads.into()), ..self }
    }

    /// The queue of the depot that holds what came by a link of core subjects.
    pub fn queue(&self, link: &LinkId, component: &ComponentKey) -> String {
        kept::queue(link, component)
    }

    /// Publishes to the lattice's own server on behalf of a person: `trellis publish SUBJECT BODY`. What a stream takes is
    /// stored when this returns.
    ///
    /// # Errors
    /// As for a component's publish.
    pub async fn publish(&self, message: Message) -> Result<(), CallError> {
        let open = async || Publisher::own(&self.connections).await;
        let own = self.own.get_or_try_init(open).await.map_err(|why| CallError::Other(why.to_string()))?;
        own.publish(message).await.map(drop)
    }

    /// Lets the node itself use a bucket of the lattice's, such as `TRELLIS_home_timers`: no link may name such a one. It is
    /// made if need be, on three servers where there are so many.
    ///
    /// # Errors
    /// As for [`Provider::grant`].
    pub async fn grant_own(&self, link: Link) -> Result<(), LinkError> {
        let bound = Bound::Bucket(Arc::new(Bucket::own(&self.connections, &link).await?));
        self.links.bind(link.id, bound).await;
        Ok(())
    }
}

#[async_trait]
impl Provider for Nats {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        if link.package != "messaging" {
            return Err(unsupported(&link, "wake a component by `messaging`"));
        }
        let id = link.id.clone();
        self.remove(&id).await;
        let bound = if queue(&link.config, "stream")?.is_some() {
            Bound::Streamed(Arc::new(Streamed::begin(&self.connections, link, permits).await?))
        } else {
            Bound::Subscribed(Arc::new(Subscribed::begin(&self.connections, self.depot.as_ref(), link, permits).await?))
        };
        self.links.bind(id, bound).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        let bound = match link.package.as_str() {
            "messaging" => Bound::Publisher(Arc::new(Publisher::open(&self.connections, &link).await?)),
            "keyvalue" => Bound::Bucket(Arc::new(Bucket::open(&self.connections, &link).await?)),
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
            (Bound::Publisher(publisher), Call::Publish(message)) => publisher.publish(message).await,
            (Bound::Publisher(publisher), Call::Request { message, timeout }) => {
                publisher.request(message, timeout).await
            }
            (Bound::Bucket(bucket), Call::KeyValue(operation)) => bucket.call(operation).await.map(Answer::KeyValue),
            (_, call) => Err(no_such_call(link, &call)),
        }
    }

    fn check_publish(&self, link: &LinkId, message: &Message) -> Result<(), CallError> {
        match self.links.get(link) {
            Ok(Bound::Publisher(publisher)) => publisher.check_message(message),
            _ => Ok(()),
        }
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        match self.links.get(link) {
            Ok(Bound::Streamed(streamed)) => Some(streamed.trigger()),
            Ok(Bound::Subscribed(subscribed)) => subscribed.trigger(),
            _ => None,
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links.get(link)? {
            Bound::Subscribed(subscribed) => subscribed.health(),
            Bound::Streamed(streamed) => streamed.health(),
            Bound::Publisher(publisher) => publisher.health(),
            Bound::Bucket(bucket) => bucket.health(),
        }
    }

    async fn drain(&self) {
        self.links.drain().await;
    }
}

fn unsupported(link: &Link, can: &str) -> LinkError {
    no_such_package(link, &format!("trellis://nats can {can}"))
}
