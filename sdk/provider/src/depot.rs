//! A depot: where a node keeps what a source took over from a broker that gives nothing out again, until it is settled.
//!
//! An MQTT broker and core NATS have no second attempt, no wait and no dead letter: a source of that kind puts each message
//! into a queue of the node's own, acknowledges it where that is asked for, and has the engine of that queue deliver it like
//! any other.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use trellis_wire::{Link, LinkId, Message};

use crate::delivery::{Trigger, Trouble};
use crate::{LinkError, Permits};

impl fmt::Debug for dyn Depot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Depot")
    }
}

/// Queues on this node's disk for sources of other technologies. No link can name one of them and no subject reaches one:
/// only who made it puts messages there.
#[async_trait]
pub trait Depot: Send + Sync + 'static {
    /// Has the queue of this name on disk, and begins to wake the link's component by what it holds, as the link's policy
    /// says. Names are made of what a ledger's key may hold, and `.`.
    ///
    /// # Errors
    /// The policy asks for what the queue cannot keep, or the queue cannot be made.
    async fn begin(&self, queue: &str, link: Link, permits: Permits) -> Result<(), LinkError>;

    /// Whether a queue was begun once, in this process or an earlier one.
    fn has(&self, queue: &str) -> bool;

    /// Puts messages at the end of a queue that was begun once, in this order, and a note in the place of its former one.
    /// All of that is on disk when this returns.
    ///
    /// # Errors
    /// Nothing of it is kept: the queue is full or the disk fails.
    async fn keep(&self, queue: &str, messages: Vec<Message>, note: Bytes) -> Result<(), Trouble>;

    /// What was noted with the last messages of a queue; empty where nothing was.
    ///
    /// # Errors
    /// The disk fails.
    fn note(&self, queue: &str) -> Result<Bytes, Trouble>;

    /// Wakes the link's component no more, and returns when what runs is settled. What is kept stays, and more may come.
    async fn end(&self, link: &LinkId);

    /// The engine of a link that was begun.
    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>>;

    /// How a link that was begun is.
    ///
    /// # Errors
    /// For people.
    fn health(&self, link: &LinkId) -> Result<(), String>;
}
