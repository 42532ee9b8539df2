//! How words travel between nodes: over NATS, or within one process.
//!
//! Both ends keep the promises of core NATS: at most once, in order from one publisher to one subscription, nothing
//! stored. What is published while nobody listens is gone; a request that nobody can hear fails at once with
//! [`BusError::NoResponders`] instead of waiting out its time. [`Memory`] is also the wire of the simulation, where a
//! seed decides what is late, lost or doubled.
//!
//! This crate is the only one that knows NATS as the lattice's transport. Nothing in it knows a subject of the lattice.

mod error;
mod faults;
#[cfg(feature = "testing")]
pub mod hostile;
#[cfg(feature = "testing")]
pub mod members;
mod memory;
mod nats;
mod options;
mod rules;
mod sealed;
#[cfg(feature = "testing")]
pub mod testing;
mod wire;

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use trellis_wire::pattern;

pub use error::BusError;
pub use faults::Faults;
pub use memory::Memory;
pub use nats::Nats;
pub use options::{Auth, Options, OptionsError, Tls};
pub use sealed::{Heard, Listening, Reply, Sealed, SealedError, Words};
pub use wire::{Passing, Wire};

/// How many messages wait in one subscription before the newest is dropped, counted and reported.
pub const SUBSCRIPTION_MESSAGES_MAX: usize = 4096;

/// A node's end of the bus. Clones share it.
#[derive(Debug, Clone)]
pub enum Bus {
    /// Over NATS.
    Nats(Nats),
    /// Within this process.
    Memory(Memory),
}

/// A message as a subscription or a request gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Where it was published.
    pub subject: String,
    /// Where to publish the answer, if one is awaited.
    pub reply: Option<String>,
    /// Sorted by name; the values of one name in the order in which they were written.
    pub headers: Vec<(String, String)>,
    /// What it holds.
    pub payload: Bytes,
}

impl Delivered {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }
}

/// How this end is connected now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Words travel.
    Connected {
        /// The server's version; for [`Memory`], this crate's.
        server: String,
    },
    /// They do not, and the end goes on trying.
    Disconnected {
        /// What is wrong, for people.
        reason: String,
    },
    /// The server answers but cannot be used: it is too old, or does not let us in. The end goes on trying, because
    /// people mend servers.
    Refused(String),
}

impl Connection {
    /// Whether words travel.
    pub const fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    /// As an error, unless words travel.
    fn usable(&self) -> Result<(), BusError> {
        match self {
            Self::Connected { .. } => Ok(()),
            Self::Disconnected { reason } | Self::Refused(reason) => Err(BusError::Disconnected(reason.clone())),
        }
    }
}

impl Bus {
    /// Publishes. `Ok` says that the message is on its way, not that anyone got it.
    ///
    /// # Errors
    /// [`BusError::Disconnected`] at once when there is no connection: nothing is kept for later, because words of the
    /// lattice are stale when they are late.
    pub async fn publish(&self, subject: &str, headers: &[(&str, &str)], payload: Bytes) -> Result<(), BusError> {
        self.check(subject, headers, &payload)?;
        match self {
            Self::Nats(nats) => nats.publish(subject, headers, payload).await,
            Self::Memory(memory) => memory.publish(subject, headers, payload),
        }
    }

    /// Publishes and awaits the first answer, at most for `timeout`.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] at once when nobody listens; [`BusError::Disconnected`] at once when the connection
    /// breaks meanwhile.
    pub async fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Delivered, BusError> {
        self.check(subject, headers, &payload)?;
        match self {
            Self::Nats(nats) => nats.request(subject, headers, payload, timeout).await,
            Self::Memory(memory) => memory.request(subject, headers, payload, timeout).await,
        }
    }

    /// Listens to a subject, in which `*` stands for one token and a last `>` for all that follow. Of the members of a
    /// queue group one gets each message. When this returns on a connected end, the subscription stands; on one that
    /// is not connected it will once it is.
    ///
    /// # Errors
    /// [`BusError::Subject`] when the subject or the group is malformed.
    pub async fn subscribe(&self, subject: &str, queue_group: Option<&str>) -> Result<Subscription, BusError> {
        rules::check_subscription(subject, queue_group)?;
        match self {
            Self::Nats(nats) => nats.subscribe(subject, queue_group).await.map(Subscription::nats),
            Self::Memory(memory) => Ok(Subscription(Source::Memory(memory.subscribe(subject, queue_group)))),
        }
    }

    /// The longest message that travels: headers as they are written on the wire, and payload.
    pub fn payload_bytes_max(&self) -> usize {
        match self {
            Self::Nats(nats) => nats.payload_bytes_max(),
            Self::Memory(_) => wire::PAYLOAD_BYTES_MAX,
        }
    }

    /// How this end is connected, now and from now on.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        match self {
            Self::Nats(nats) => nats.connection(),
            Self::Memory(memory) => memory.connection(),
        }
    }

    /// How many messages this end's subscriptions have dropped because they were full. A lower bound on NATS, whose
    /// client tells of it with best effort.
    pub fn overflowed(&self) -> u64 {
        match self {
            Self::Nats(nats) => nats.overflowed(),
            Self::Memory(memory) => memory.overflowed(),
        }
    }

    /// Waits until all that was published and subscribed before has reached the server.
    ///
    /// # Errors
    /// [`BusError::Disconnected`].
    pub async fn flush(&self) -> Result<(), BusError> {
        match self {
            Self::Nats(nats) => nats.flush().await,
            Self::Memory(_) => Ok(()),
        }
    }

    fn check(&self, subject: &str, headers: &[(&str, &str)], payload: &Bytes) -> Result<(), BusError> {
        pattern::check_literal(subject)?;
        rules::check_headers(headers)?;
        let (bytes, max) = (rules::headers_bytes(headers) + payload.len(), self.payload_bytes_max());
        if bytes > max { Err(BusError::TooLarge { bytes, max }) } else { Ok(()) }
    }
}

/// What a subscription gets. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription(Source);

#[derive(Debug)]
enum Source {
    Nats(Box<async_nats::Subscriber>),
    Memory(wire::Listener),
}

impl Subscription {
    fn nats(subscriber: async_nats::Subscriber) -> Self {
        Self(Source::Nats(Box::new(subscriber)))
    }

    /// Waits for the next message. `None` when the bus is closed. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Delivered> {
        match &mut self.0 {
            Source::Nats(subscriber) => futures::StreamExt::next(subscriber).await.map(nats::delivered),
            Source::Memory(listener) => listener.next().await,
        }
    }
}

/// Awaits `done`, but no longer than words travel: what waits for an answer learns at once that none can come.
async fn while_connected<T>(
    mut connection: watch::Receiver<Connection>,
    done: impl Future<Output = Result<T, BusError>>,
) -> Result<T, BusError> {
    connection.borrow_and_update().usable()?;
    let broken = async {
        match connection.wait_for(|connection| !connection.is_connected()).await {
            Ok(connection) => connection.usable().err(),
            Err(_) => None,
        }
        .unwrap_or_else(|| BusError::Disconnected("the bus is closed".into()))
    };
    tokio::select! {
        biased;
        outcome = done => outcome,
        why = broken => Err(why),
    }
}
