//! The words that Trellis speaks: ids, subjects, frames, events and calls.
//!
//! Everything here is a value. Nothing in this crate does I/O, reads a clock or draws a random number; ids that need
//! either are made by their owner and only carried here.

mod body;
mod call;
mod config;
pub mod credentials;
mod delivery;
mod event;
mod fault;
pub mod frame;
mod id;
mod key;
mod link;
pub mod pattern;
mod secret;
pub mod subject;

pub use body::{Body, BodyError};
pub use call::{Answer, Call, CallError, Capability, HttpCall, KeyValue, KeyValueAnswer};
pub use config::Config;
pub use delivery::{Backoff, DEAD_BYTES_MAX, Dedupe, DedupeKey, Delivery, OnDeadLetter, OrderBy, Rate};
pub use event::{Event, Message, Reply, RunOutput, Settle};
pub use fault::{Error, Failure, Fault, Outcome};
pub use id::{
    AppName, CommandId, ComponentKey, ComponentName, Digest, EventId, Generation, IdError, LatticeId, LatticeName,
    LinkName, NodeId,
};
pub use key::{LatticeSecret, NodeKey};
pub use link::{Link, LinkId, Part};
pub use secret::{Secret, Secrets};
