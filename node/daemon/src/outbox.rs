//! The outbox: what a message handler publishes is held until it says ok, and sent then. A handler that refuses its
//! message, faults or is aborted has published nothing, so that the next attempt does not say the same again.
//!
//! A source that can try a message again gets what is held with the reply: it stores that beside the message, sends it and
//! settles, so that a crash in between sends the rest and runs no handler anew. For other sources it is sent from here.
//!
//! Sending is not one step: when a message cannot be sent, those before it are out already, and the next attempt sends
//! them anew. So each carries an id that is the same at every attempt, by which a broker that keeps messages knows the
//! ones it has. It begins with the component and its link, since others may be led to messages by the same one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use trellis_provider::Outgoing;
use trellis_wire::{Call, CallError, ComponentKey, Event, EventId, Message, Settle};

use crate::dispatch::Dispatch;
use crate::grants::Grant;
use crate::telemetry::Trace;

/// How many messages one run may publish.
const MESSAGES_MAX: usize = 1_000;
/// How much they may hold in all, with subjects and headers: 32 MiB.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// How long sending all of them may take.
const SEND_MAX: Duration = Duration::from_secs(30);

/// What one run of a message handler has published so far.
pub(crate) struct Outbox {
    /// Where an answer to its message is awaited. An answer is not held: whoever asked waits for it.
    reply_to: Option<String>,
    /// What the ids of the messages begin with.
    id: String,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    messages: Vec<(Arc<Grant>, Message)>,
    bytes: usize,
}

impl Outbox {
    /// The outbox of a run, if it has one: what other events lead to is sent at once. A message whose source gives it no
    /// id goes by that of its event, which the next attempt does not share.
    pub(crate) fn of(event: &Event, id: EventId, component: &ComponentKey, source: &str) -> Option<Arc<Self>> {
        let Event::Message(message) = event else { return None };
        let id = if message.id.is_empty() { id.to_string() } else { message.id.clone() };
        let id = format!("{component}/{source}/{id}");
        Some(Arc::new(Self { reply_to: message.reply_to.clone(), id, held: Mutex::default() }))
    }

    /// Whether this waits for the handler to say ok.
    pub(crate) fn holds(&self, message: &Message) -> bool {
        self.reply_to.as_ref() != Some(&message.subject)
    }

    /// Holds a message that the grant's provider would take.
    pub(crate) fn hold(&self, grant: Arc<Grant>, message: Message) -> Result<(), CallError> {
        // Nothing panics while it holds this lock but an allocation, after which what is held is as it was.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let message = self.named(message, held.messages.len());
        grant.check_publish(&message)?;
        held.bytes = held.bytes_with(&message)?;
        held.messages.push((grant, message));
        Ok(())
    }

    /// The message with an id, if it has none of its own.
    fn named(&self, message: Message, index: usize) -> Message {
        let id = if message.id.is_empty() { format!("{}-{index}", self.id) } else { message.id };
        Message { id, ..message }
    }

    /// What is held, in order, for whoever brought the message to send: it can be stored first.
    pub(crate) fn take(&self) -> Vec<Outgoing> {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        held.messages.into_iter().map(|(grant, message)| Outgoing { link: grant.link().clone(), message }).collect()
    }

    /// Sends what is held, in order, until one cannot be sent: that decides what becomes of the message that led to
    /// them. Those before it are out. `version` is the component's that published them.
    pub(crate) async fn send(&self, dispatch: &Dispatch, trace: &Trace, version: &str) -> Settle {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        let (all, until) = (held.messages.len(), Instant::now() + SEND_MAX);
        for (sent, (grant, message)) in held.messages.into_iter().enumerate() {
            let subject = message.subject.clone();
            let published = timeout_at(until, grant.call(dispatch, trace, version, Call::Publish(message))).await;
            let late = |_| Err(CallError::TimedOut(format!("sending took longer than {SEND_MAX:?}")));
            let Err(why) = published.unwrap_or_else(late) else { continue };
            let reason = format!("what it published on `{subject}` could not be sent ({sent} of {all} were): {why}");
            return match why {
                CallError::Unavailable(_) | CallError::TimedOut(_) => Settle::Retry { after: None, reason },
                _ => Settle::DeadLetter(reason),
            };
        }
        Settle::Ack
    }
}

impl Held {
    /// How much it would hold with one more.
    fn bytes_with(&self, message: &Message) -> Result<usize, CallError> {
        let bytes = self.bytes + size(message);
        if self.messages.len() < MESSAGES_MAX && bytes <= BYTES_MAX {
            return Ok(bytes);
        }
        let why = format!("one message may lead to at most {MESSAGES_MAX} others with {BYTES_MAX} bytes in all");
        Err(CallError::Invalid(why))
    }
}

/// A message with all that comes with it.
fn size(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    let reply_to = message.reply_to.as_ref().map_or(0, String::len);
    message.subject.len() + message.body.len() + message.id.len() + reply_to + headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str) -> Message {
        Message { id: id.into(), subject: "orders".into(), ..Message::default() }
    }

    #[test]
    fn the_ids_of_what_a_message_leads_to_are_the_same_at_every_attempt_and_no_one_elses() {
        let id = |source: &str, component: &str| {
            let (event, component) = (Event::Message(message(source)), component.parse().unwrap());
            let outbox = Outbox::of(&event, EventId::new(uuid::Uuid::now_v7()), &component, "in").unwrap();
            outbox.named(message(""), 2).id
        };
        assert_eq!(id("17", "shop/mail"), "shop/mail/in/17-2");
        assert_eq!(id("17", "shop/mail"), id("17", "shop/mail"));
        assert_ne!(id("17", "shop/mail"), id("17", "shop/bill"));
        assert_ne!(id("", "shop/mail"), id("", "shop/mail"), "without an id it is another message");
    }

    #[test]
    fn headers_and_subjects_count_like_bodies() {
        let header = ("h".into(), "x".repeat(BYTES_MAX));
        let large = Message { headers: vec![header], ..message("") };
        assert!(matches!(Held::default().bytes_with(&large), Err(CallError::Invalid(_))));
        let reply_to = Some("y".repeat(BYTES_MAX));
        assert!(matches!(Held::default().bytes_with(&Message { reply_to, ..message("") }), Err(CallError::Invalid(_))));
        assert_eq!(Held::default().bytes_with(&message("1")).unwrap(), "orders1".len());
    }
}
