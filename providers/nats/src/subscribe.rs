//! Messages of core NATS subjects wake a component.
//!
//! Core NATS hands a message over once and keeps nothing, so a message stays in the subscription's buffer, bounded in
//! messages and bytes, until there is a permit for it, and what is in the buffer when a link ends is still handled. What
//! the component refuses cannot be tried again; it is said in the log. Answers to a message that awaits one are
//! published by the component.
//!
//! Where a link has a policy, what is in the buffer is stored, and the engine has it from there: see `kept.rs`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures::stream::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::delivery::Trigger;
use trellis_provider::{Depot, LinkError, Permit, Permits, Want};
use trellis_wire::{Error, Event, Failure, Link, LinkId, Message, Outcome, Reply, Settle};

use crate::config;
use crate::connection::{Connection, Connections};
use crate::kept::{self, Kept};

/// How many messages wait in front of one subscription before the next ones are lost and counted.
const BUFFER_MESSAGES_MAX: usize = 4096;
/// What they may hold in all, in KiB: 64 MiB.
const BUFFER_KIB_MAX: usize = 64 * 1024;
/// How often a message is run again when our side was short of something, which is never the component's fault.
const BUSY_TRIES_MAX: u32 = 6;
/// The pauses between such tries, and between requests for a permit that were refused.
pub(crate) const BUSY_PAUSE_MIN: Duration = Duration::from_millis(100);
pub(crate) const BUSY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long an ended link goes on handing out what its buffer holds.
pub(crate) const BUFFER_TAIL_MAX: Duration = Duration::from_secs(30);
/// How long the buffer must stay empty to count as empty, where the server cannot say so because it is not there.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// A link whose messages wake a component.
#[derive(Debug)]
pub(crate) struct Subscribed {
    connection: Arc<Connection>,
    /// What has the messages once they are stored, where the link has a policy.
    kept: Option<Kept>,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What is not well with each of its subscriptions.
    troubles: Vec<Trouble>,
}

/// Why no permit is given, or nothing stored, while that is so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(crate) fn set(&self, why: Option<String>) {
        *self.0.lock().expect("nothing panics while it holds the trouble") = why;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().expect("nothing panics while it holds the trouble").clone()
    }
}

/// Whether a link says rightly which subjects it is. The server is not asked.
pub(crate) fn check(link: &Link) -> Result<(), LinkError> {
    read(link).map(drop)
}

fn read(link: &Link) -> Result<Vec<config::Wanted>, LinkError> {
    kept::check(&link.delivery)?;
    config::subscriptions(&link.config, &link.component)
}

impl Subscribed {
    /// Subscribes to all that the link names.
    pub(crate) async fn begin(
        connections: &Connections,
        depot: Option<&Arc<dyn Depot>>,
        link: Link,
        permits: Permits,
    ) -> Result<Self, LinkError> {
        let wanted = read(&link)?;
        let connection = connections.get(&link).await?;
        let mut subscribed = Self {
            connection: connection.clone(),
            kept: Kept::begin(depot, &link, &permits).await?,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            troubles: Vec::new(),
        };
        let subscribing = subscribed.subscribe(wanted, &link.id, &permits).await;
        if let Err(why) = subscribing {
            subscribed.end().await;
            return Err(why);
        }
        connection.round_trip().await;
        Ok(subscribed)
    }

    async fn subscribe(
        &mut self,
        wanted: Vec<config::Wanted>,
        link: &LinkId,
        permits: &Permits,
    ) -> Result<(), LinkError> {
        for wanted in wanted {
            let subscriber = self.connection.client.queue_subscribe(wanted.subject.clone(), wanted.group).await;
            let messages = subscriber.map_err(|why| LinkError::Failed(format!("{}: {why}", wanted.subject)))?;
            let (queue, waiting) = mpsc::channel(BUFFER_MESSAGES_MAX);
            let intake = Intake { link: link.clone(), queue, room: Arc::new(Semaphore::new(BUFFER_KIB_MAX)), lost: 0 };
            self.tasks.spawn(intake.run(messages, self.stop.clone()));
            let trouble = Trouble::default();
            self.troubles.push(trouble.clone());
            if let Some(kept) = &self.kept {
                self.tasks.spawn(kept.keeper(self.stop.clone(), trouble).run(waiting));
                continue;
            }
            let puller = Puller {
                link: link.clone(),
                permits: permits.clone(),
                stop: self.stop.clone(),
                tasks: self.tasks.clone(),
                trouble,
            };
            self.tasks.spawn(puller.run(waiting));
        }
        Ok(())
    }

    /// The engine of what is stored.
    pub(crate) fn trigger(&self) -> Option<Arc<dyn Trigger>> {
        self.kept.as_ref().and_then(Kept::trigger)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.troubles.iter().find_map(Trouble::get).map_or(Ok(()), Err)?;
        self.kept.as_ref().map_or(Ok(()), Kept::health)
    }

    /// Unsubscribes, and returns when all that came in is settled; where that is stored, what of it runs.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(kept) = &self.kept {
            kept.end().await;
        }
    }
}

impl Drop for Subscribed {
    /// A link that was dropped without [`Subscribed::end`] takes no more messages.
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A message in the buffer, with its part of the room there.
pub(crate) type Waiting = (async_nats::Message, OwnedSemaphorePermit);

/// Takes the messages of one subscription into its buffer as they come: the client's own buffer counts no bytes, so
/// nothing waits there.
struct Intake {
    link: LinkId,
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    lost: u64,
}

impl Intake {
    async fn run(mut self, mut messages: Subscriber, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = messages.next() => next,
            };
            let Some(message) = next else { return };
            self.keep(message);
        }
        let tail = async {
            let unsubscribed = tokio::time::timeout(QUIET_MIN, messages.drain()).await;
            if !matches!(unsubscribed, Ok(Ok(()))) {
                tracing::debug!(link = %self.link, "not unsubscribed: there is no server");
            }
            while let Ok(Some(message)) = tokio::time::timeout(QUIET_MIN, messages.next()).await {
                self.keep(message);
            }
        };
        // Whether the time was up does not matter: dropping the subscriber unsubscribes.
        let _ = tokio::time::timeout(BUFFER_TAIL_MAX, tail).await;
    }

    /// Puts a message into the buffer. One that finds no room is lost, as it would be in the client's own.
    fn keep(&mut self, message: async_nats::Message) {
        let kib = u32::try_from(message.length / 1024 + 1).unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(kib);
        if room.is_ok_and(|room| self.queue.try_send((message, room)).is_ok()) {
            return;
        }
        self.lost += 1;
        if self.lost.is_power_of_two() {
            let lost = self.lost;
            tracing::warn!(link = %self.link, lost, "messages were lost: they came faster than they were handled");
        }
    }
}

/// Pulls messages out of the buffer of one subscription.
struct Puller {
    link: LinkId,
    permits: Permits,
    stop: CancellationToken,
    tasks: TaskTracker,
    trouble: Trouble,
}

impl Puller {
    /// Until the buffer is empty and nothing more comes, or the time for what is left when the link ends is up.
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut next = None;
        let tail = async {
            self.stop.cancelled().await;
            tokio::time::sleep(BUFFER_TAIL_MAX).await;
        };
        tokio::select! {
            biased;
            () = self.pull(&mut waiting, &mut next) => {}
            () = tail => {}
        }
        waiting.close();
        let mut lost = u64::from(next.is_some());
        while waiting.try_recv().is_ok() {
            lost += 1;
        }
        if lost > 0 {
            tracing::warn!(link = %self.link, lost, "messages were lost: they had come, but no permit for them");
        }
    }

    async fn pull(&self, waiting: &mut mpsc::Receiver<Waiting>, next: &mut Option<Waiting>) {
        loop {
            // No permit is held while nothing has come: others may use it.
            *next = waiting.recv().await;
            if next.is_none() {
                return;
            }
            let Some(permit) = self.permit().await else { return };
            if let Some((message, _room)) = next.take() {
                self.start(permit, message);
            }
        }
    }

    /// Runs a message beside the others.
    fn start(&self, permit: Permit, message: async_nats::Message) {
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
                    self.trouble.set(None);
                    return Some(permit);
                }
                Err(Error::ShuttingDown) => return None,
                // An ended link waits for what is short, but not for a component that is gone.
                Err(why) if self.stop.is_cancelled() && !matches!(why, Error::Busy(_)) => return None,
                Err(why) => self.trouble.set(Some(format!("messages wait for a permit: {why}"))),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BUSY_PAUSE_MAX);
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
pub(crate) fn received(message: async_nats::Message) -> Message {
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
