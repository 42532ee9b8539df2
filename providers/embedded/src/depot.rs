//! Queues for what sources of other technologies took over: durable queues under names that nothing else can mean.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use trellis_provider::delivery::{Trigger, Trouble};
use trellis_provider::{Depot, LinkError, Permits, not_bound};
use trellis_wire::{ComponentKey, Link, LinkId, Message};

use crate::{Embedded, Pulled};

/// Begins the name of each: a subject has no empty token, so that no link and no publisher can name one.
const MARK: char = '.';

impl Embedded {
    /// A queue of the depot as the engine of a link to this component sees it. `None`: none of that name was ever begun.
    pub fn kept(&self, queue: &str, component: &ComponentKey) -> Option<Pulled> {
        self.durable.find(&name(queue), component)
    }
}

#[async_trait]
impl Depot for Embedded {
    async fn begin(&self, queue: &str, link: Link, permits: Permits) -> Result<(), LinkError> {
        self.durable.begin(&name(queue), Vec::new(), link, permits).await
    }

    fn has(&self, queue: &str) -> bool {
        self.durable.has(&name(queue))
    }

    async fn keep(&self, queue: &str, messages: Vec<Message>, note: Bytes) -> Result<(), Trouble> {
        self.durable.keep(&name(queue), messages, note).await.map_err(|why| why.to_string())
    }

    fn note(&self, queue: &str) -> Result<Bytes, Trouble> {
        self.durable.note(&name(queue)).map_err(|why| why.to_string())
    }

    async fn end(&self, link: &LinkId) {
        self.durable.remove(link).await;
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.durable.trigger(link)
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        self.durable.health(link).unwrap_or_else(|| Err(not_bound(link)))
    }
}

fn name(queue: &str) -> String {
    format!("{MARK}{queue}")
}
