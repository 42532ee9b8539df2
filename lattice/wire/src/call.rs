//! Calls and answers: one use of a capability by a sandbox.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Body, Message};

/// What kind of thing a call uses; the WIT package that a grant must name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Capability {
    /// `wasi:keyvalue`.
    KeyValue,
    /// `wasmcloud:messaging` or `trellis:messaging`: publish and request.
    Messaging,
    /// `wasi:http/outgoing-handler` or `wasi:http/client`.
    Http,
    /// Any other interface, as `namespace:package/interface`: another component's, or a provider's of its own.
    Custom(String),
}

/// One use of a capability.
#[derive(Debug)]
pub enum Call {
    /// A key-value operation.
    KeyValue(KeyValue),
    /// Publish a message; answered once the provider has it.
    Publish(Message),
    /// Publish and await one answer. Never held back until the handler is done.
    Request {
        /// What to send.
        message: Message,
        /// How long to wait for the answer.
        timeout: Duration,
    },
    /// An outgoing HTTP request.
    Http(HttpCall),
    /// A function of a custom interface.
    Invoke {
        /// The interface, as `namespace:package/interface` with the version if it has one.
        interface: String,
        /// The function in it.
        function: String,
        /// The parameters in component-model value encoding.
        params: Bytes,
    },
}

impl Call {
    /// The capability that must be granted for this call.
    pub fn capability(&self) -> Capability {
        match self {
            Self::KeyValue(_) => Capability::KeyValue,
            Self::Publish(_) | Self::Request { .. } => Capability::Messaging,
            Self::Http(_) => Capability::Http,
            Self::Invoke { interface, .. } => {
                let unversioned = interface.split_once('@').map_or(interface.as_str(), |(name, _)| name);
                Capability::Custom(unversioned.into())
            }
        }
    }
}

/// An outgoing HTTP request with the limits the guest asked for.
#[derive(Debug)]
pub struct HttpCall {
    /// The request with an absolute URI: `http` or `https`, authority, path.
    pub request: http::Request<Body>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long the head of the response may take.
    pub first_byte_timeout: Duration,
    /// How long each further piece of the body may take.
    pub between_bytes_timeout: Duration,
}

/// A key-value operation on the store that the granting link names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyValue {
    /// Opens a store: an error if there is none of that name.
    Open,
    /// Reads a key.
    Get(String),
    /// Writes a key.
    Set(String, Bytes),
    /// Removes a key; it need not exist.
    Delete(String),
    /// Whether a key exists.
    Exists(String),
    /// Up to 1,000 keys after the cursor, in the store's order.
    Keys {
        /// What the last answer gave, or `None` to begin.
        cursor: Option<String>,
    },
    /// Adds to a decimal number; an absent key counts as 0. Atomic.
    Increment(String, i64),
    /// Reads several keys; the answers are in their order.
    GetMany(Vec<String>),
    /// Writes several keys.
    SetMany(Vec<(String, Bytes)>),
    /// Removes several keys.
    DeleteMany(Vec<String>),
    /// Writes `new` if the key still holds `old` (`None`: is absent). Atomic. Answered by `Swapped`.
    Swap {
        /// The key.
        key: String,
        /// What it must hold.
        old: Option<Bytes>,
        /// What it will hold.
        new: Bytes,
    },
}

/// The answer to a [`KeyValue`] operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyValueAnswer {
    /// Open, Set, Delete, SetMany, DeleteMany.
    Done,
    /// Get.
    Value(Option<Bytes>),
    /// Exists.
    Exists(bool),
    /// Keys.
    Keys {
        /// The keys.
        keys: Vec<String>,
        /// Where to go on, or `None` at the end.
        cursor: Option<String>,
    },
    /// Increment: the new number.
    Number(i64),
    /// GetMany: each key asked for, with its value if it has one.
    Values(Vec<(String, Option<Bytes>)>),
    /// Swap: `Ok` if it was written, else what the key holds.
    Swapped(Result<(), Option<Bytes>>),
}

/// What a capability answered.
#[derive(Debug)]
pub enum Answer {
    /// To [`Call::KeyValue`].
    KeyValue(KeyValueAnswer),
    /// To [`Call::Publish`].
    Published,
    /// To [`Call::Request`].
    Message(Message),
    /// To [`Call::Http`].
    Http(http::Response<Body>),
    /// To [`Call::Invoke`]: the results in component-model value encoding.
    Values(Bytes),
}

/// Why a call got no answer. The guest sees it as its interface's own error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CallError {
    /// No link grants it. The text names the link to add.
    #[error("denied: {0}")]
    Denied(String),
    /// There is no such store, stream or subject.
    #[error("{0} does not exist")]
    NoSuch(String),
    /// It took too long.
    #[error("timed out: {0}")]
    TimedOut(String),
    /// What is behind the provider is not there now; trying again may help.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The call can never succeed as it is: a malformed key, a value that is too large, a number that is none.
    #[error("{0}")]
    Invalid(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}
