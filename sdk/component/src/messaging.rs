//! Messages: taking them, publishing them, and asking for an answer.
//!
//! ```
//! use trellis_component::messaging::{Message, OutMessage, Refusal, publish};
//!
//! trellis_component::messages!(on_message);
//!
//! fn on_message(message: Message) -> Result<(), Refusal> {
//!     if message.body.is_empty() {
//!         return Err(Refusal::dead_letter("an order without a body"));
//!     }
//!     publish(OutMessage::new("orders.seen", message.body).header("seen-by", "audit"))?;
//!     Ok(())
//! }
//! ```
//!
//! Which messages wake the component is said by a link *from* the messaging provider; publishing needs a link *to* it.
//! A message that a handler publishes is sent once the handler said `Ok`, and only then.

use std::fmt;
use std::time::Duration;

use crate::bindings::messaging::{producer, types};

/// A message as it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// What it holds.
    pub body: Vec<u8>,
    /// Its headers in order; a name may come twice.
    pub headers: Vec<(String, String)>,
    /// Where an answer is awaited, if one is: [`Message::answer`] publishes there.
    pub reply_to: Option<String>,
    /// The source's own id of it, such as a stream sequence. The same at every attempt; empty where the source has
    /// none.
    pub id: String,
    /// 1 at the first delivery.
    pub attempt: u32,
    /// When it was published, in milliseconds since 1970, where the source knows.
    pub published_ms: Option<u64>,
    /// The name of the link that brought it; empty if none did.
    pub source: String,
}

impl Message {
    /// The first header of this name; case does not matter.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text, with what is no UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body, read from JSON.
    ///
    /// # Errors
    /// A refusal that sends the message to the dead letters: what is no JSON now will be none at the next attempt.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body)
            .map_err(|why| Refusal::dead_letter(format!("the body is not as expected: {why}")))
    }

    /// Answers whoever asked. Nothing is sent where no answer is awaited.
    ///
    /// # Errors
    /// As for [`publish`].
    pub fn answer(&self, body: impl Into<Vec<u8>>) -> Result<(), Error> {
        self.reply_to.as_ref().map_or(Ok(()), |inbox| publish(OutMessage::new(inbox.as_str(), body)))
    }
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutMessage {
    /// Where to.
    pub subject: String,
    /// What it holds.
    pub body: Vec<u8>,
    /// Its headers in order; a name may come twice.
    pub headers: Vec<(String, String)>,
    /// Where an answer is awaited, if one is. [`request`] fills it in.
    pub reply_to: Option<String>,
}

impl OutMessage {
    /// A message without headers.
    pub fn new(subject: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { subject: subject.into(), body: body.into(), headers: Vec::new(), reply_to: None }
    }

    /// A message whose body is JSON.
    ///
    /// # Errors
    /// The value cannot be JSON, such as a map whose keys are no text.
    #[cfg(feature = "json")]
    pub fn json<T: serde::Serialize + ?Sized>(subject: impl Into<String>, value: &T) -> Result<Self, Error> {
        let body =
            serde_json::to_vec(value).map_err(|why| Error::Invalid(format!("the body cannot be JSON: {why}")))?;
        Ok(Self::new(subject, body).header("content-type", "application/json"))
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Publishes by the default link.
///
/// # Errors
/// No link grants it, the broker is not there, the message is too large.
pub fn publish(message: OutMessage) -> Result<(), Error> {
    Ok(producer::publish(&message.into())?)
}

/// Publishes by the link of this name.
///
/// # Errors
/// As for [`publish`].
pub fn publish_to(link: &str, message: OutMessage) -> Result<(), Error> {
    Ok(producer::publish_to(link, &message.into())?)
}

/// Publishes at once and waits for one answer, at most this long.
///
/// # Errors
/// As for [`publish`]; nobody listens, or nobody answered in time.
pub fn request(message: OutMessage, timeout: Duration) -> Result<Message, Error> {
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(producer::request(&message.into(), timeout_ms)?.into())
}

/// What to do with a message that could not be handled. Any error becomes [`Refusal::Retry`] by `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Try it again, up to the link's `max_attempts`; then it goes to the dead letters.
    Retry {
        /// Why, for people.
        reason: String,
        /// After this long; `None`: after the link's back-off.
        after: Option<Duration>,
    },
    /// It will never succeed, and someone should see it, with this reason.
    DeadLetter(String),
    /// It is of no use: take it off and count it, with this reason.
    Drop(String),
}

impl Refusal {
    /// Try it again after the link's back-off.
    pub fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: None }
    }

    /// Try it again after this long.
    pub fn retry_after(after: Duration, reason: impl Into<String>) -> Self {
        Self::Retry { reason: reason.into(), after: Some(after) }
    }

    /// Put it aside for someone to look at.
    pub fn dead_letter(reason: impl Into<String>) -> Self {
        Self::DeadLetter(reason.into())
    }

    /// Forget it.
    pub fn drop(reason: impl Into<String>) -> Self {
        Self::Drop(reason.into())
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(why: E) -> Self {
        Self::retry(why.to_string())
    }
}

/// Why a message could not be sent, or got no answer. Every text is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No link grants it; the text names the link to add.
    Denied(String),
    /// There is no such subject, stream or receiver.
    NoSuch(String),
    /// It took too long.
    TimedOut(String),
    /// The broker is not there now; trying again may help.
    Unavailable(String),
    /// It can never be sent as it is, such as one that is too large.
    Invalid(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(why)
            | Self::NoSuch(why)
            | Self::TimedOut(why)
            | Self::Unavailable(why)
            | Self::Invalid(why)
            | Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<types::Error> for Error {
    fn from(why: types::Error) -> Self {
        match why {
            types::Error::Denied(why) => Self::Denied(why),
            types::Error::NoSuch(why) => Self::NoSuch(why),
            types::Error::TimedOut(why) => Self::TimedOut(why),
            types::Error::Unavailable(why) => Self::Unavailable(why),
            types::Error::Invalid(why) => Self::Invalid(why),
            types::Error::Other(why) => Self::Other(why),
        }
    }
}

impl From<types::Message> for Message {
    fn from(message: types::Message) -> Self {
        let types::Message { subject, body, headers, reply_to, id, attempt, published_ms, source } = message;
        Self { subject, body, headers, reply_to, id, attempt, published_ms, source }
    }
}

impl From<OutMessage> for types::OutMessage {
    fn from(message: OutMessage) -> Self {
        let OutMessage { subject, body, headers, reply_to } = message;
        Self { subject, body, headers, reply_to }
    }
}

/// Calls the author's function; the macro's half.
#[doc(hidden)]
pub fn __handle(
    message: types::Message,
    on_message: impl FnOnce(Message) -> Result<(), Refusal>,
) -> Result<(), types::Refusal> {
    on_message(message.into()).map_err(|refusal| match refusal {
        Refusal::Retry { reason, after } => {
            let after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
            types::Refusal::Retry(types::Retry { reason, after_ms })
        }
        Refusal::DeadLetter(reason) => types::Refusal::DeadLetter(reason),
        Refusal::Drop(reason) => types::Refusal::Drop(reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, &str)]) -> types::Message {
        types::Message {
            subject: "orders.placed".into(),
            body: b"1".to_vec(),
            headers: headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            reply_to: None,
            id: "7".into(),
            attempt: 2,
            published_ms: None,
            source: "default".into(),
        }
    }

    #[test]
    fn a_refusal_says_what_to_do_with_the_message() {
        let refused = |refusal: Refusal| __handle(message(&[]), |_| Err(refusal)).unwrap_err();
        let soon = Refusal::retry_after(Duration::from_millis(1_500), "busy");
        let types::Refusal::Retry(retry) = refused(soon) else { panic!("a retry stays one") };
        assert_eq!((retry.reason.as_str(), retry.after_ms), ("busy", Some(1_500)));
        assert!(matches!(refused(Refusal::dead_letter("bad")), types::Refusal::DeadLetter(why) if why == "bad"));
        assert!(matches!(refused(Refusal::drop("old")), types::Refusal::Drop(why) if why == "old"));
        // `?` on any error tries again, after the link's back-off.
        let types::Refusal::Retry(retry) = refused(Error::Unavailable("down".into()).into()) else { panic!("a retry") };
        assert_eq!((retry.reason.as_str(), retry.after_ms), ("down", None));
    }

    #[test]
    fn a_message_arrives_whole() {
        let taken = __handle(message(&[("Trace", "a"), ("trace", "b")]), |message| {
            assert_eq!(message.header("TRACE"), Some("a"));
            assert_eq!((message.text().as_str(), message.attempt, message.id.as_str()), ("1", 2, "7"));
            Ok(())
        });
        assert!(taken.is_ok());
    }
}
