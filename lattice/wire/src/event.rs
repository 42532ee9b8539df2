//! Events and replies: what wakes a component, and what the component said.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Body;

/// Something happened, for one component.
#[derive(Debug)]
pub enum Event {
    /// An HTTP request. Answered by [`Reply::Http`].
    Http(http::Request<Body>),
    /// A message from a queue or a subject. Answered by [`Reply::Settle`].
    Message(Message),
    /// One run of `wasi:cli/run`, with these arguments after the program's name. Answered by [`Reply::Run`].
    Run(Vec<String>),
    /// A function of an interface that the component exports. Answered by [`Reply::Values`].
    Invoke {
        /// The interface, as `namespace:package/interface` with the version if it has one.
        interface: String,
        /// The function in it.
        function: String,
        /// The parameters in component-model value encoding.
        params: Bytes,
    },
}

/// A message, as a source took it or as a component publishes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// What it holds.
    pub body: Bytes,
    /// Where an answer is awaited, if one is.
    pub reply_to: Option<String>,
    /// Headers in order; a name may come twice.
    pub headers: Vec<(String, String)>,
    /// The source's own id of it, such as a stream sequence; empty where the source has none.
    pub id: String,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// When it was published, in milliseconds since 1970, where the source knows.
    pub published_ms: Option<u64>,
}

/// What the component said.
#[derive(Debug)]
pub enum Reply {
    /// The answer to [`Event::Http`]; its body goes on streaming after the head is here.
    Http(http::Response<Body>),
    /// The answer to [`Event::Message`].
    Settle(Settle),
    /// The answer to [`Event::Run`].
    Run(RunOutput),
    /// The answer to [`Event::Invoke`]: the results in component-model value encoding.
    Values(Bytes),
}

/// What a component says of a message. A trap is no settlement but a [`crate::Fault`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settle {
    /// Handled: take it off.
    Ack,
    /// Try again, after this long or after the link's back-off. `reason` is for people.
    Retry {
        /// The guest's own wish for the delay.
        after: Option<Duration>,
        /// What the guest said.
        reason: String,
    },
    /// Write it to the dead letters, then take it off.
    DeadLetter(String),
    /// Take it off and count it.
    Drop(String),
}

/// What one run of `wasi:cli/run` left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOutput {
    /// Whether it ended in `ok`.
    pub ok: bool,
    /// What it wrote to standard output, cut at the host's bound.
    pub stdout: Bytes,
    /// What it wrote to standard error, cut at the host's bound.
    pub stderr: Bytes,
}
