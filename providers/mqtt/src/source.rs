//! Messages of a topic wake a component, at most once and without a policy.
//!
//! A message waits in a bounded buffer until there is a permit for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::{LinkError, Permit, Permits, Want};
use trellis_wire::{Error, Event, Link, LinkId, Outcome, Reply, Settle};

use crate::client::Arrived;
use crate::config::{Qos, Session, Settings};
use crate::connection::{Connection, Subscription};

/// Messages that wait, for a permit or to be stored, before the next ones are lost and counted.
pub(crate) const BUFFER_MESSAGES_MAX: usize = 256;
/// The pauses between requests for a permit that were refused.
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(100);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A link whose messages wake a component.
pub(crate) struct Subscribed {
    connection: Connection,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Why no permit is given, while that is so.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Subscribed {
    /// Subscribes to what the link names.
    pub(crate) fn begin(link: Link, settings: &Settings, topic: String, permits: Permits) -> Result<Self, LinkError> {
        let (inbox, waiting) = mpsc::channel(BUFFER_MESSAGES_MAX);
        let subscription = Subscription { topic, qos: Qos::AtMostOnce, is_former: false };
        let subscribed = Self {
            connection: Connection::open(settings, &Session::Passing, Some(subscription), inbox)?,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            trouble: Arc::default(),
        };
        let puller = Puller {
            link: link.id,
            permits,
            stop: subscribed.stop.clone(),
            tasks: subscribed.tasks.clone(),
            trouble: subscribed.trouble.clone(),
        };
        subscribed.tasks.spawn(puller.run(waiting));
        subscribed.tasks.close();
        Ok(subscribed)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// Takes no more messages, and returns when those that run are done.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Pulls messages out of the buffer.
struct Puller {
    link: LinkId,
    permits: Permits,
    stop: CancellationToken,
    tasks: TaskTracker,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Puller {
    async fn run(self, mut waiting: mpsc::Receiver<Arrived>) {
        let stop = self.stop.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = waiting.recv() => next,
            };
            let Some(Arrived { message, .. }) = next else { return };
            let permit = tokio::select! {
                biased;
                permit = self.permit() => permit,
                () = stop.cancelled() => None,
            };
            let Some(permit) = permit else { break };
            let link = self.link.clone();
            self.tasks.spawn(async move {
                let subject = message.subject.clone();
                note(&link, &subject, permit.run(Event::Message(message)).await);
            });
        }
        let lost = waiting.len();
        if lost > 0 {
            tracing::warn!(link = %self.link, lost, "messages were lost: they had come, but the link ended");
        }
    }

    /// Waits for a permit. `None` when the node gives none any more.
    async fn permit(&self) -> Option<Permit> {
        let mut pause = BUSY_PAUSE_MIN;
        loop {
            let trouble = match self.permits.acquire(Want::Pull).await {
                Ok(permit) => {
                    self.set_trouble(None);
                    return Some(permit);
                }
                Err(Error::ShuttingDown) => return None,
                Err(why) => format!("messages wait for a permit: {why}"),
            };
            self.set_trouble(Some(trouble));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BUSY_PAUSE_MAX);
        }
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Says what became of a message that did not end well: it is gone.
fn note(link: &LinkId, subject: &str, outcome: Outcome) {
    let why = match outcome {
        Ok(Reply::Settle(Settle::Ack)) => return,
        Ok(Reply::Settle(Settle::Drop(reason))) => {
            return tracing::info!(%link, subject, reason, "the component dropped a message");
        }
        Ok(Reply::Settle(Settle::Retry { reason, .. } | Settle::DeadLetter(reason))) => reason,
        Ok(_) => "the component gave an answer that is none to a message".into(),
        Err(why) => why.to_string(),
    };
    tracing::warn!(%link, subject, why, "a message was not handled and is lost: it is delivered at most once");
}
