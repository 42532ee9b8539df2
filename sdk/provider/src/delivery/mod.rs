//! Delivery: how a queued message wakes a component, and what becomes of it. The same on every broker.
//!
//! - `queue`: what a broker supplies;
//! - `policy`: what follows from what the component said. Pure: no clock, no I/O, no random number;
//! - `engine`: the loop permit -> pull -> sandbox -> settle, which carries that out;
//! - `letter`: what is kept of a message that was given up.
//!
//! A broker is one file that implements [`Queue`]. It keeps, beside each message, how often it was tried, how often the
//! component faulted on it, and how often a claim on it ended without a settlement; the engine decides by these.
//! `providers/embedded/src/durable.rs` is the example to copy, and [`crate::testing`] what it must pass.

mod engine;
mod letter;
mod policy;
mod queue;
mod running;

pub use engine::{Engine, Progress};
pub use letter::{DeadLetter, Fate, Ran};
pub use policy::{KILLS_MAX, RETRY_AFTER_MAX, Reason, Record, Settlement, begin, settle};
pub use queue::{
    CLAIM, Claimed, EXTEND_EVERY, LEDGER_KEY_BYTES_MAX, LEDGER_VALUE_BYTES_MAX, Ledger, PULL_MAX, Place, Queue,
    Standing, Trouble,
};
pub use running::Running;
