//! A depot: where a node keeps what a source took over from a broker that gives nothing out again, until it is settled.
//!
//! An MQTT broker and core NATS have no second attempt, no wait and no dead letter: a source of that kind puts each message
//! into a queue of the node's own, acknowledges it where that is asked for, and has the engine of that queue deliver it like
//! any other.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use trellis_wire::{ComponentKey, Link, LinkId, Message};
use uuid::Uuid;

use crate::delivery::{Trigger, Trouble};
use crate::{LinkError, Permits};

/// The queue of a depot that is a link's own: told from the component's others by all of these together. What was stored by
/// an earlier build is found by it.
pub fn depot_queue(component: &ComponentKey, told_by: &[&str]) -> String {
    format!("{}.{}", component.to_string().replace('/', "."), short(told_by))
}

/// A name of 16 letters and digits for all of these together.
pub fn short(parts: &[&str]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, parts.join("\n").as_bytes()).simple().to_string()[..16].into()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_called_as_earlier_builds_called_it() {
        let component: ComponentKey = "shop/worker".parse().unwrap();
        assert_eq!(depot_queue(&component, &["nats", "a link"]), "shop.worker.840b80e362d75cfd");
        assert_eq!(depot_queue(&component, &["a node", "a link"]), "shop.worker.6cb16f23308f56d0");
    }
}
