//! The outbox: what a message handler publishes is held until it says ok, and sent then. A handler that refuses its
//! message, faults or is aborted has published nothing, so that the next attempt does not say the same again.

use std::sync::{Arc, Mutex, PoisonError};

use trellis_wire::{Call, CallError, Event, Message, Settle};

use crate::dispatch::Dispatch;
use crate::grants::Grant;

/// How many messages one run may publish.
const MESSAGES_MAX: usize = 1_000;
/// How much they may hold in all: 32 MiB.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// What one run of a message handler has published so far.
pub(crate) struct Outbox {
    /// Where an answer to its message is awaited. An answer is not held: whoever asked waits for it.
    reply_to: Option<String>,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    messages: Vec<(Arc<Grant>, Message)>,
    bytes: usize,
}

impl Outbox {
    /// The outbox of a run, if it has one: what other events lead to is sent at once.
    pub(crate) fn of(event: &Event) -> Option<Arc<Self>> {
        let Event::Message(message) = event else { return None };
        Some(Arc::new(Self { reply_to: message.reply_to.clone(), held: Mutex::default() }))
    }

    /// Whether this waits for the handler to say ok.
    pub(crate) fn holds(&self, message: &Message) -> bool {
        self.reply_to.as_ref() != Some(&message.subject)
    }

    /// Holds a message that the grant's provider would take.
    pub(crate) fn hold(&self, grant: Arc<Grant>, message: Message) -> Result<(), CallError> {
        grant.check_publish(&message)?;
        // Nothing panics while it holds this lock but an allocation, after which what is held is as it was.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = held.bytes + message.body.len();
        if held.messages.len() >= MESSAGES_MAX || bytes > BYTES_MAX {
            let why = format!("one message may lead to at most {MESSAGES_MAX} others with {BYTES_MAX} bytes in all");
            return Err(CallError::Invalid(why));
        }
        held.bytes = bytes;
        held.messages.push((grant, message));
        Ok(())
    }

    /// Sends what is held, in order. What cannot be sent decides what becomes of the message that led to it.
    pub(crate) async fn send(&self, dispatch: &Dispatch) -> Settle {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        for (grant, message) in held.messages {
            let subject = message.subject.clone();
            let Err(why) = grant.call(dispatch, Call::Publish(message)).await else { continue };
            let reason = format!("what it published on `{subject}` could not be sent: {why}");
            return match why {
                CallError::Unavailable(_) | CallError::TimedOut(_) => Settle::Retry { after: None, reason },
                _ => Settle::DeadLetter(reason),
            };
        }
        Settle::Ack
    }
}
