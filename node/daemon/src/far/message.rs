//! The words of an exchange. Each message is a frame of `trellis_wire::frame`, sealed for its receiver by
//! `trellis_bus::Sealed`; the enums only grow at their ends.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trellis_provider::delivery::Ran;
use trellis_wire::{CallError, ComponentKey, Error, Failure, Generation, LinkId, Message, RunOutput, Settle};
use uuid::Uuid;

use crate::telemetry::{Carried, Trace};

/// What comes on a node's `event` and `call` subjects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Something to do.
    Offer(Box<Offer>),
    /// Whether it still works on that exchange.
    Still(Uuid),
    /// Whether it holds a component in this version, ready for events.
    Holds(ComponentKey, String),
    /// Whether the one that asks answers the same: an echo.
    Echo(ComponentKey, String),
}

/// Something to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// The plan that the asker knows.
    pub(crate) generation: Generation,
    /// Names the exchange; minted for this offer alone.
    pub(crate) exchange: Uuid,
    /// What is to be done.
    pub(crate) what: What,
    /// How long the reply is awaited.
    pub(crate) within: Duration,
    /// The body's beginning.
    pub(crate) first: Bytes,
    /// Whether that is all of it.
    pub(crate) whole: bool,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// An event for a component.
    Event {
        /// The component.
        component: ComponentKey,
        /// By what right.
        origin: Origin,
        /// The event without its body.
        head: Head,
    },
    /// A call to a provider.
    Call {
        /// The link that grants it.
        link: LinkId,
        /// The call without its body.
        head: Head,
    },
    /// A message for a handler that may be tried again. What it publishes comes back with the reply.
    Deliver {
        /// The component.
        component: ComponentKey,
        /// By what right.
        origin: Origin,
        /// The message without its body.
        head: Head,
        /// The exchange that reserved a permit for it there.
        reserved: Option<Uuid>,
    },
    /// A permit, for as long as the exchange is under way: a queue is pulled only with one in hand.
    Reserve {
        /// The component.
        component: ComponentKey,
        /// By what right.
        origin: Origin,
    },
    /// What a handler published, to be sent by one of its component's links.
    Send {
        /// The component.
        component: ComponentKey,
        /// By what right the component was woken.
        origin: Origin,
        /// The link that grants it.
        link: LinkId,
        /// The publish without its body.
        head: Head,
    },
    /// A place under a cap on calls, for as long as the exchange is under way.
    Slot {
        /// The component whose call it is for.
        component: ComponentKey,
        /// The link that has the cap.
        link: LinkId,
    },
    /// Something about the triggers of that node. The question is plain data.
    Ask(crate::triggers::Question),
    /// What a person publishes, for what is embedded: that node is its home.
    Publish {
        /// The publish without its body.
        head: Head,
    },
}

impl What {
    /// The trace that it is within, if it says one beside what headers say.
    pub(crate) fn trace(&self) -> Trace {
        match self {
            Self::Event { head: Head::TracedInvoke { within, .. }, .. } => within.clone().into(),
            _ => Trace::default(),
        }
    }
}

/// By what right a component is woken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// A source's link, with its name.
    Link(LinkId, String),
    /// A person asked for it.
    Invoke,
    /// Another component's link, and the version that calls: its app's own version answers it where there are two.
    Component(LinkId, String),
}

impl Origin {
    /// The name of the link that brought the event, as the guest sees it.
    pub(crate) fn source(&self) -> &str {
        match self {
            Self::Link(_, name) => name,
            Self::Invoke => "invoke",
            Self::Component(..) => "",
        }
    }
}

/// Headers on the wire.
pub(crate) type Headers = Vec<(String, Bytes)>;

/// An event or a call without its body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Head {
    /// An HTTP request, to a component or out of the lattice.
    Http {
        /// The method.
        method: String,
        /// The whole URI.
        uri: String,
        /// The headers.
        headers: Headers,
        /// What an outgoing request may take: connecting, first byte, between bytes. `None` for an event.
        timeouts: Option<[Duration; 3]>,
    },
    /// A message; its body is empty here.
    Message(Message),
    /// A run.
    Run(Vec<String>),
    /// A function; its parameters are the body.
    Invoke {
        /// The interface.
        interface: String,
        /// The function.
        function: String,
    },
    /// A key-value operation: the body is the operation itself.
    KeyValue,
    /// Publish; the message's body is empty here.
    Publish(Message),
    /// Publish and await an answer; the message's body is empty here.
    Request(Message, Duration),
    /// A function, and the trace that its call belongs to. Only where all nodes take this
    /// ([`trellis_placement::TRACED_CALLS`]).
    TracedInvoke {
        /// The interface.
        interface: String,
        /// The function.
        function: String,
        /// As headers would say it.
        within: Carried,
    },
}

impl Head {
    /// The same within a trace, where it has no headers that say so.
    pub(crate) fn within(self, within: Carried) -> Self {
        match self {
            Self::Invoke { interface, function } => Self::TracedInvoke { interface, function, within },
            head => head,
        }
    }
}

/// What a node says to an [`Ask`] at once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Taken {
    /// It does it; the reply follows.
    Accepted,
    /// It cannot now; another may.
    Busy(String),
    /// It will not.
    Refused(String),
    /// To all questions but an offer.
    Still(bool),
    /// It has done it already: the reply, with all of its body. Only to a node that
    /// takes this ([`trellis_placement::NodeFacts::takes_done`]).
    Done(Box<Back>, Bytes),
}

/// A reply without its body.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Back {
    /// An HTTP response.
    Http {
        /// The status.
        status: u16,
        /// The headers.
        headers: Headers,
    },
    /// What a component says of a message.
    Settle(Settle),
    /// What a run left behind; standard output of this many bytes and standard error are the body.
    Run(RunOutput, u64),
    /// Results; they are the body.
    Values,
    /// It failed.
    Failed(Failure),
    /// The answer of a key-value operation is the body.
    KeyValue,
    /// It is published.
    Published,
    /// A message that answers a request; its body is the body.
    Message(Message),
    /// The call failed.
    CallFailed(CallError),
    /// What a delivery came to; what the handler published is the body.
    Delivered(Result<Settle, Failure>, Ran),
    /// The answer to a question is the body.
    Answer,
    /// So many queues and links took it.
    Took(u64),
}

impl From<Error> for Back {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

/// What comes on a node's `stream` subject.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Which exchange it belongs to.
    pub(crate) exchange: Uuid,
    /// Whether it is for the side that asked.
    pub(crate) to_asker: bool,
    /// The word.
    pub(crate) word: Word,
}

/// One word of an exchange.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// The reply, with the beginning of its body and whether that is all of it.
    Reply(Box<Back>, Bytes, bool),
    /// The next chunk, numbered from 0.
    Chunk(u32, Bytes),
    /// The body has ended after so many chunks, with these trailers.
    End(u32, Headers),
    /// So many chunks more may come.
    Credit(u32),
    /// It breaks off here.
    Abort(String),
}
