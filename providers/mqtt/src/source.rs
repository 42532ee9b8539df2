//! Messages of a topic wake a component, at most once.
//!
//! | key | means |
//! | --- | --- |
//! | `topic` | the topic, with `+` and `#` as wildcards |
//! | `qos` | `0`; others are refused: what the component refuses cannot be tried again |
//!
//! Nodes share the subscription (`$share/<app>.<component>/<topic>`), so each message goes to one of them; the server must
//! speak MQTT 5. A message waits in a bounded buffer until there is a permit for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::{LinkError, Permit, Permits, Want};
use trellis_wire::{ComponentKey, Delivery, Error, Event, Link, LinkId, Message, Outcome, Reply, Settle};

use crate::config::Settings;
use crate::connection::Connection;

/// Messages that wait for a permit before the next ones are lost and counted.
const BUFFER_MESSAGES_MAX: usize = 256;
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
    pub(crate) fn begin(link: Link, permits: Permits) -> Result<Self, LinkError> {
        if link.delivery != Delivery::default() {
            let problem =
                "`delivery`: trellis://mqtt delivers at most once and keeps nothing to try again; take it out";
            return Err(LinkError::Unsupported(problem.into()));
        }
        if let Some(qos) = link.config.get("qos").filter(|qos| *qos != "0") {
            let problem = format!("`{qos}`: only `0` is built, at most once");
            return Err(LinkError::config("qos", problem));
        }
        let topic = shared(link.config.get("topic").unwrap_or_default(), &link.component)?;
        let (inbox, waiting) = mpsc::channel(BUFFER_MESSAGES_MAX);
        let subscribed = Self {
            connection: Connection::open(&Settings::read(&link)?, Some(topic), inbox)?,
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
    async fn run(self, mut waiting: mpsc::Receiver<Publish>) {
        let stop = self.stop.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = waiting.recv() => next,
            };
            let Some(message) = next else { return };
            let permit = tokio::select! {
                biased;
                permit = self.permit() => permit,
                () = stop.cancelled() => None,
            };
            let Some(permit) = permit else { break };
            let link = self.link.clone();
            self.tasks.spawn(async move {
                let message = received(message);
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

/// The shared subscription to a topic: the same on every node.
fn shared(topic: &str, component: &ComponentKey) -> Result<String, LinkError> {
    let levels: Vec<_> = topic.split('/').collect();
    let last = levels.len() - 1;
    let is_level = |(at, level): (usize, &&str)| match *level {
        "+" => true,
        "#" => at == last,
        level => !level.contains(['+', '#', '\0']),
    };
    if topic.is_empty() || topic.starts_with('$') || !levels.iter().enumerate().all(is_level) {
        let problem =
            "is no topic: levels between `/`, of which one may be `+` and the last `#`; not beginning with `$`";
        return Err(LinkError::config("topic", format!("`{topic}` {problem}")));
    }
    let group: String = component.to_string().replace('/', ".").replace(['+', '#'], "_");
    Ok(format!("$share/{group}/{topic}"))
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

/// A message of the client library as ours. What is no UTF-8 in its topic is replaced by `U+FFFD`.
fn received(message: Publish) -> Message {
    let properties = message.properties.unwrap_or_default();
    Message {
        subject: String::from_utf8_lossy(&message.topic).into_owned(),
        body: message.payload,
        reply_to: properties.response_topic,
        headers: properties.user_properties,
        attempt: 1,
        ..Message::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_shared_by_the_nodes_of_a_component() {
        let component: ComponentKey = "shop/worker".parse().unwrap();
        assert_eq!(shared("a/+/c/#", &component), Ok("$share/shop.worker/a/+/c/#".into()));
        for wrong in ["", "$SYS/#", "a/#/b", "a+/b", "#a"] {
            assert!(shared(wrong, &component).is_err(), "{wrong}");
        }
    }
}
