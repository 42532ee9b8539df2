//! The MQTT provider: what components get from a server that speaks MQTT 5 or 3.1.1.
//!
//! | link | file |
//! | --- | --- |
//! | messages of a topic wake a component, at least once (`qos: "1"`, the default) | `session.rs` |
//! | the same where the server gives each once (`qos: "0"`), and the link has a policy | `session.rs` |
//! | the same without one, at most once | `source.rs` |
//! | a component publishes | `publish.rs` |
//!
//! What every link may say of its server:
//!
//! | config or secret | means |
//! | --- | --- |
//! | `url` | `mqtt://HOST:PORT`, or `mqtts://` for TLS; `mqtt://127.0.0.1:1883` by default |
//! | `protocol` | `5`, by default, or `3.1.1` |
//! | `user`, `password` | the login; the password as a secret |
//! | `tls_ca`, `tls_cert`, `tls_key` | the CA to trust, and the client's own certificate: PEM or a path |
//!
//! A link that wakes a component names its `topic` (or `queue`), with `+` and `#` as wildcards.
//!
//! MQTT has no second attempt, no wait and no dead letter. So what is to arrive at least once goes from the server into the
//! node's [`Depot`], is acknowledged, and is handled from there. So is what the server gives once, where a policy says what is
//! to become of it; else that waits in memory only. What one node alone can keep, an order or caps, goes to one, the lattice's
//! home: whether that is this one, a link's [`Part`] says.
//!
//! `client.rs` is the only file that knows both versions of the protocol, and this crate the only one that knows MQTT.

mod client;
mod config;
mod connection;
mod given;
mod publish;
mod session;
mod source;
#[cfg(feature = "testing")]
pub mod testing;
mod topic;

use std::sync::Arc;

use async_trait::async_trait;
pub use config::{PACKET_BYTES_MAX, RECEIVE_MAX};
pub use publish::MESSAGE_BYTES_MAX;
use trellis_provider::delivery::Trigger;
use trellis_provider::{
    Allowed, Depot, LinkError, Links, Permits, Provider, depot_queue, need_queue, no_such_call, no_such_package, short,
};
use trellis_wire::{Answer, Call, CallError, ComponentKey, Dedupe, DedupeKey, Link, LinkId, Message, OrderBy, Part};

use crate::config::{Qos, Settings};
use crate::publish::Publisher;
use crate::session::{Kept, Sessions, Wanted};
use crate::source::Subscribed;

/// How to open the provider.
#[derive(Clone)]
pub struct Options {
    /// Names the node for as long as what it stored lasts: servers keep sessions under it.
    pub node: String,
    /// Names the lattice for as long as that lasts: servers keep sessions under it that are not one node's.
    pub lattice: String,
    /// Where messages are stored that must arrive.
    pub depot: Arc<dyn Depot>,
}

/// The provider. One value serves every MQTT link of a node.
pub struct Mqtt {
    options: Options,
    links: Links<Bound>,
    sessions: Sessions,
}

/// Whether a link says rightly which topic wakes its component. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_wake(link: &Link) -> Result<(), LinkError> {
    check_package(link)?;
    read(link).map(drop)
}

/// Whether a link says rightly where its component publishes. The server is not asked.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_grant(link: &Link) -> Result<(), LinkError> {
    check_package(link)?;
    Settings::read(link)?;
    Allowed::read(&link.config)?;
    Qos::read(&link.config).map(drop)
}

/// The server of a link that wakes a component, and how often a message may arrive.
fn read(link: &Link) -> Result<(Settings, Qos), LinkError> {
    let (settings, qos) = (Settings::read(link)?, Qos::read(&link.config)?);
    topic::check(need_queue(&link.config, "topic")?)?;
    match &link.delivery.order_by {
        _ if link.delivery.dead_letter.is_some() => {
            let problem = "dead letters stay on the disk of the node that took the message, for `trellis dead-letters`; \
                           take it out of the link";
            Err(LinkError::config("delivery.dead_letter", problem))
        }
        Some(OrderBy::Header(name)) if !settings.has_headers() => {
            let problem = format!(
                "`header:{name}`: messages of MQTT 3.1.1 have no headers, which are the user properties of MQTT 5; write \
                 `subject`, which is the topic, or `protocol: \"5\"` in the link's config"
            );
            Err(LinkError::config("delivery.order_by", problem))
        }
        Some(_) | None => {
            check_dedupe(link.delivery.dedupe.as_ref(), &settings)?;
            Ok((settings, qos))
        }
    }
}

fn topic(link: &Link) -> &str {
    need_queue(&link.config, "topic").map_or("", |(_, topic)| topic)
}

/// By what a message does not have, it is not known again.
fn check_dedupe(dedupe: Option<&Dedupe>, settings: &Settings) -> Result<(), LinkError> {
    let problem = match dedupe.map(|dedupe| &dedupe.key) {
        Some(DedupeKey::Id) => {
            "`id`: messages of MQTT have no ids; write `header:<name>`, which is a user property of MQTT 5".to_owned()
        }
        Some(DedupeKey::Header(name)) if !settings.has_headers() => format!(
            "`header:{name}`: messages of MQTT 3.1.1 have no headers, which are the user properties of MQTT 5; take `dedupe` \
             out of the link, or write `protocol: \"5\"` in its config"
        ),
        Some(DedupeKey::Header(_)) | None => return Ok(()),
    };
    Err(LinkError::config("delivery.dedupe.key", problem))
}

/// What a link has become.
#[derive(Clone)]
enum Bound {
    /// Of this id in the depot, with the session by which messages come, if any do.
    Kept(LinkId, Arc<dyn Depot>, Option<Arc<Kept>>),
    /// Another node takes all, and nothing was ever stored here.
    Nothing,
    Subscribed(Arc<Subscribed>),
    Publisher(Arc<Publisher>),
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        match self {
            // The session goes on: the link may be applied anew at once.
            Self::Kept(link, depot, _) => depot.end(link).await,
            Self::Subscribed(subscribed) => subscribed.end().await,
            Self::Publisher(_) | Self::Nothing => {}
        }
    }
}

impl Mqtt {
    /// A provider without links.
    pub fn new(options: Options) -> Self {
        Self { options, links: Links::default(), sessions: Sessions::default() }
    }

    /// The queue of the depot that holds what came by a link, whatever server and topic it names.
    pub fn queue(&self, link: &LinkId, component: &ComponentKey) -> String {
        depot_queue(component, &[&self.options.node, &link.to_string()])
    }

    async fn keep(&self, link: &Link, server: (&Settings, Qos), permits: Permits) -> Result<Bound, LinkError> {
        let (queue, depot) = (self.queue(&link.id, &link.component), &self.options.depot);
        let was_here = depot.has(&queue);
        if link.part == Part::Stored && !was_here {
            return Ok(Bound::Nothing);
        }
        depot.begin(&queue, link.clone(), permits).await?;
        let opened = self.open(link, server, was_here).await;
        if opened.is_err() {
            depot.end(&link.id).await;
        }
        Ok(Bound::Kept(link.id.clone(), depot.clone(), opened?))
    }

    /// Has the session by which this node takes messages of a link, if it is to take any, and no other one.
    async fn open(
        &self,
        link: &Link,
        server: (&Settings, Qos),
        was_here: bool,
    ) -> Result<Option<Arc<Kept>>, LinkError> {
        let depot = &self.options.depot;
        // In order, what another session still has would come after later messages.
        if was_here && link.part != Part::Own && link.delivery.order_by.is_none() {
            self.sessions.retire(&link.id, self.wanted(link, server, Part::Own), depot)?;
        }
        if link.part == Part::Stored {
            self.sessions.forget(&link.id);
            return Ok(None);
        }
        self.sessions.open(&link.id, self.wanted(link, server, link.part), depot).await.map(Some)
    }

    /// The session by which a node takes this of a link's messages: all, of a topic that it has to itself, or its part of one
    /// that nodes share.
    fn wanted(&self, link: &Link, (settings, qos): (&Settings, Qos), part: Part) -> Wanted {
        let (owner, topic) = match part {
            Part::All => (&self.options.lattice, topic(link).into()),
            Part::Own | Part::Stored => (&self.options.node, topic::shared(topic(link), &link.component)),
        };
        // Of what every server takes: 23 letters and digits.
        let (link_id, server) = (link.id.to_string(), settings.shown());
        let parts = [owner, &*link_id, &*server, &*topic, "0"];
        // What the server keeps nothing of is another one, which the former leaves for.
        let id = format!("trellis{}", short(&parts[..if qos == Qos::AtMostOnce { 5 } else { 4 }]));
        Wanted { settings: settings.clone(), qos, id, topic, queue: self.queue(&link.id, &link.component) }
    }
}

#[async_trait]
impl Provider for Mqtt {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_package(&link)?;
        self.remove(&link.id).await;
        let (settings, qos) = read(&link)?;
        let id = link.id.clone();
        let bound = match qos == Qos::AtLeastOnce || !link.delivery.is_default() {
            true => self.keep(&link, (&settings, qos), permits).await?,
            false => {
                self.sessions.forget(&id);
                let topic = topic::shared(topic(&link), &link.component);
                Bound::Subscribed(Arc::new(Subscribed::begin(link, &settings, topic, permits)?))
            }
        };
        self.links.bind(id, bound).await;
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

    async fn forget(&self, link: &LinkId) {
        self.sessions.forget(link);
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

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        match self.links.get(link) {
            Ok(Bound::Kept(link, depot, _)) => depot.trigger(&link),
            _ => None,
        }
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        match self.links.get(link)? {
            Bound::Kept(link, depot, kept) => {
                kept.map_or(Ok(()), |kept| kept.health()).and_then(|()| depot.health(&link))
            }
            Bound::Nothing => Ok(()),
            Bound::Subscribed(subscribed) => subscribed.health(),
            Bound::Publisher(publisher) => publisher.health(),
        }
    }

    async fn drain(&self) {
        tokio::join!(self.links.drain(), self.sessions.drain());
    }
}

fn check_package(link: &Link) -> Result<(), LinkError> {
    if link.package == "messaging" {
        return Ok(());
    }
    Err(no_such_package(link, "trellis://mqtt has `messaging`"))
}
