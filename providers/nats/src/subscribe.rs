//! Messages of core NATS subjects wake a component.
//!
//! Core NATS hands a message over once and keeps nothing, so a message stays in the subscription's bounded buffer until
//! there is a permit for it, and what is in the buffer when a link ends is still handled. What the component refuses
//! cannot be tried again; it is said in the log. Answers to a message that awaits one are published by the component.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures::stream::{Peekable, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::{LinkError, Permit, Permits, Want};
use trellis_wire::{Delivery, Error, Event, Failure, Link, LinkId, Message, Outcome, Reply, Settle};

use crate::config;
use crate::connection::{Connection, Connections};

/// How often a message is run again when our side was short of something, which is never the component's fault.
const BUSY_TRIES_MAX: u32 = 6;
/// The pauses between such tries, and between requests for a permit that were refused.
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(100);
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long an ended link goes on handing out what its buffer holds.
const BUFFER_TAIL_MAX: Duration = Duration::from_secs(30);
/// How long the buffer must stay empty to count as empty, where the server cannot say so because it is not there.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// A link whose messages wake a component.
#[derive(Debug)]
pub(crate) struct Subscribed {
    connection: Arc<Connection>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Why no permit is given, while that is so.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Subscribed {
    /// Subscribes to all that the link names.
    pub(crate) async fn begin(connections: &Connections, link: Link, permits: Permits) -> Result<Self, LinkError> {
        if link.delivery != Delivery::default() {
            return Err(LinkError::Unsupported(
                "`delivery`: core NATS hands a message over once and keeps nothing to try again; write `stream: NAME` \
                 in the source config, or take `delivery` out"
                    .into(),
            ));
        }
        let wanted = config::subscriptions(&link.config, &link.component)?;
        let connection = connections.get(&link.config).await?;
        let subscribed = Self {
            connection: connection.clone(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            trouble: Arc::default(),
        };
        for wanted in wanted {
            let subscriber = connection.client.queue_subscribe(wanted.subject.clone(), wanted.group).await;
            let messages = subscriber.map_err(|why| LinkError::Failed(format!("{}: {why}", wanted.subject)))?;
            let puller = Puller {
                link: link.id.clone(),
                permits: permits.clone(),
                stop: subscribed.stop.clone(),
                tasks: subscribed.tasks.clone(),
                trouble: subscribed.trouble.clone(),
            };
            subscribed.tasks.spawn(puller.run(messages.peekable()));
        }
        connection.round_trip().await;
        Ok(subscribed)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        let trouble = self.trouble.lock().expect("nothing panics while it holds the trouble");
        trouble.clone().map_or(Ok(()), Err)
    }

    /// Unsubscribes, and returns when all that came in is settled.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Subscribed {
    /// A link that was dropped without [`Subscribed::end`] takes no more messages.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Pulls the messages of one subscription.
struct Puller {
    link: LinkId,
    permits: Permits,
    stop: CancellationToken,
    tasks: TaskTracker,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Puller {
    async fn run(self, mut messages: Peekable<Subscriber>) {
        loop {
            // No permit is held while nothing has come: others may use it.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                next = Pin::new(&mut messages).peek() => if next.is_none() { return },
            }
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                permit = self.permit() => permit,
            };
            let Some(permit) = permit else { break };
            self.start(permit, &mut messages).await;
        }
        self.finish(messages).await;
    }

    /// Takes the next message, and runs it beside the others.
    async fn start(&self, permit: Permit, messages: &mut Peekable<Subscriber>) {
        let Some(message) = messages.next().await else { return };
        let (link, permits) = (self.link.clone(), self.permits.clone());
        self.tasks.spawn(async move {
            let subject = message.subject.to_string();
            let outcome = handle(&permits, permit, received(message)).await;
            note(&link, &subject, outcome);
        });
    }

    /// Waits for a permit. `None` when the node gives none any more.
    async fn permit(&self) -> Option<Permit> {
        let mut pause = BUSY_PAUSE_MIN;
        loop {
            match self.permits.acquire(Want::Pull).await {
                Ok(permit) => {
                    self.set_trouble(None);
                    return Some(permit);
                }
                Err(Error::ShuttingDown) => return None,
                Err(why) => self.set_trouble(Some(format!("messages wait for a permit: {why}"))),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BUSY_PAUSE_MAX);
        }
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().expect("nothing panics while it holds the trouble") = trouble;
    }

    /// Unsubscribes, then hands out what the buffer still holds, because nobody would send it again.
    async fn finish(&self, mut messages: Peekable<Subscriber>) {
        let tail = async {
            let unsubscribed = tokio::time::timeout(QUIET_MIN, messages.get_mut().drain()).await;
            if !matches!(unsubscribed, Ok(Ok(()))) {
                tracing::debug!(link = %self.link, "not unsubscribed: there is no server");
            }
            while let Ok(Some(_)) = tokio::time::timeout(QUIET_MIN, Pin::new(&mut messages).peek()).await {
                match self.permits.acquire(Want::Pull).await {
                    Ok(permit) => self.start(permit, &mut messages).await,
                    Err(Error::Busy(_)) => tokio::time::sleep(BUSY_PAUSE_MIN).await,
                    Err(_) => return,
                }
            }
        };
        // Whether the time was up does not matter: what is left is counted.
        let _ = tokio::time::timeout(BUFFER_TAIL_MAX, tail).await;
        let mut lost = 0_u64;
        while let Some(Some(_)) = futures::FutureExt::now_or_never(messages.next()) {
            lost += 1;
        }
        if lost > 0 {
            tracing::warn!(link = %self.link, lost, "messages were lost: they had come, but no permit for them");
        }
    }
}

/// Runs a message, again while our own side is short of something.
async fn handle(permits: &Permits, mut permit: Permit, message: Message) -> Outcome {
    let mut pause = BUSY_PAUSE_MIN;
    for _ in 1..BUSY_TRIES_MAX {
        match permit.run(Event::Message(message.clone())).await {
            Err(Failure::Error(why)) if why.is_retryable() => tracing::debug!(%why, "a message is run again"),
            outcome => return outcome,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BUSY_PAUSE_MAX);
        permit = permits.acquire(Want::Pull).await?;
    }
    permit.run(Event::Message(message)).await
}

/// Says what became of a message that did not end well: on core NATS it is gone.
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
    tracing::warn!(%link, subject, why, "a message was not handled and is lost: core NATS keeps none to try again");
}

/// A message of the client library as ours.
fn received(message: async_nats::Message) -> Message {
    let headers = crate::publish::read_headers(message.headers.as_ref());
    let id = message.headers.as_ref().and_then(|headers: &HeaderMap| headers.get("Nats-Msg-Id"));
    Message {
        subject: message.subject.to_string(),
        body: message.payload,
        reply_to: message.reply.map(async_nats::Subject::into_string),
        id: id.map(ToString::to_string).unwrap_or_default(),
        headers,
        attempt: 1,
        published_ms: None,
    }
}
