//! Messages of core subjects that a policy speaks of. Core NATS hands each over once and keeps nothing, so a node stores what
//! comes in its depot, and the engine of that delivers it like any other. From then on it is not lost with the process; what
//! had come and was not stored yet is, as is what comes while nobody listens.
//!
//! A message that awaits an answer is stored as well: the component answers to its `reply_to` whenever it handles it, and who
//! asked may no longer wait by then. Whether somebody waits cannot be told, since who publishes to a stream awaits an answer
//! too.
//!
//! The nodes of a queue group have a part of the messages each, so that nothing holds there which all of them must know.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use trellis_provider::delivery::Trigger;
use trellis_provider::{Depot, LinkError, Permits, depot_queue};
use trellis_wire::{ComponentKey, Delivery, Link, LinkId, Message};

use crate::subscribe::{BUFFER_TAIL_MAX, BUSY_PAUSE_MAX, BUSY_PAUSE_MIN, Trouble, Waiting, received};

/// How many messages are stored together, of those that have come.
const TOGETHER_MAX: usize = 256;

/// What a link has come to in the depot.
#[derive(Debug)]
pub(crate) struct Kept {
    depot: Arc<dyn Depot>,
    queue: String,
    link: LinkId,
}

/// The queue of the depot that holds what came by a link.
pub(crate) fn queue(link: &LinkId, component: &ComponentKey) -> String {
    depot_queue(component, &["nats", &link.to_string()])
}

/// What a policy asks for that nodes which share a subject cannot keep, each for itself.
pub(crate) fn check(delivery: &Delivery) -> Result<(), LinkError> {
    let asks = [
        ("order_by", delivery.order_by.is_some()),
        ("max_in_flight", delivery.max_in_flight.is_some()),
        ("rate_limit", delivery.rate_limit.is_some()),
        ("dedupe", delivery.dedupe.is_some()),
    ];
    if let Some((key, _)) = asks.iter().find(|(_, is_asked)| *is_asked) {
        let problem = format!(
            "core NATS divides a subject among nodes, and each knows its own part only; write `stream: NAME` in the source \
             config, or take `{key}` out"
        );
        return Err(LinkError::config(&format!("delivery.{key}"), problem));
    }
    if delivery.dead_letter.is_some() {
        let problem = "dead letters of core NATS stay on the disk of the node that took the message, for `trellis \
                       dead-letters`; take it out, or write `stream: NAME` in the source config";
        return Err(LinkError::config("delivery.dead_letter", problem));
    }
    Ok(())
}

impl Kept {
    /// Begins to wake the component by what is stored. `None`: the link has no policy.
    pub(crate) async fn begin(
        depot: Option<&Arc<dyn Depot>>,
        link: &Link,
        permits: &Permits,
    ) -> Result<Option<Self>, LinkError> {
        if link.delivery.is_default() {
            return Ok(None);
        }
        let nowhere = || LinkError::Unsupported("`delivery`: there is no disk here to store messages on".into());
        let depot = depot.ok_or_else(nowhere)?.clone();
        let queue = queue(&link.id, &link.component);
        depot.begin(&queue, link.clone(), permits.clone()).await?;
        Ok(Some(Self { depot, queue, link: link.id.clone() }))
    }

    /// What stores the messages of one subscription.
    pub(crate) fn keeper(&self, stop: CancellationToken, trouble: Trouble) -> Keeper {
        let (depot, queue, link) = (self.depot.clone(), self.queue.clone(), self.link.clone());
        Keeper { depot, queue, link, stop, trouble }
    }

    pub(crate) fn trigger(&self) -> Option<Arc<dyn Trigger>> {
        self.depot.trigger(&self.link)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.depot.health(&self.link)
    }

    /// Wakes the component no more, and returns when what runs is settled. What is stored stays.
    pub(crate) async fn end(&self) {
        self.depot.end(&self.link).await;
    }
}

/// Stores what comes into a buffer.
pub(crate) struct Keeper {
    depot: Arc<dyn Depot>,
    queue: String,
    link: LinkId,
    stop: CancellationToken,
    trouble: Trouble,
}

impl Keeper {
    /// Until nothing more comes. What the disk does not take by some time after the link's end is lost.
    pub(crate) async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut some = Vec::with_capacity(TOGETHER_MAX);
        let tail = async {
            self.stop.cancelled().await;
            tokio::time::sleep(BUFFER_TAIL_MAX).await;
        };
        tokio::select! {
            biased;
            () = self.keep_all(&mut waiting, &mut some) => {}
            () = tail => {}
        }
        let lost = some.len() + waiting.len();
        if lost > 0 {
            tracing::warn!(link = %self.link, lost, "messages were lost: they had come, but could not be stored");
        }
    }

    async fn keep_all(&self, waiting: &mut mpsc::Receiver<Waiting>, some: &mut Vec<Waiting>) {
        while waiting.recv_many(some, TOGETHER_MAX).await > 0 {
            self.keep(some.iter().map(|(message, _room)| received(message.clone())).collect()).await;
            some.clear();
        }
    }

    /// Stores messages, however long the disk takes: meanwhile others wait in the buffer while it has room.
    async fn keep(&self, messages: Vec<Message>) {
        let mut pause: Duration = BUSY_PAUSE_MIN;
        while let Err(why) = self.depot.keep(&self.queue, messages.clone(), Bytes::new()).await {
            self.trouble.set(Some(format!("messages cannot be stored, and wait: {why}")));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BUSY_PAUSE_MAX);
        }
        self.trouble.set(None);
    }
}
