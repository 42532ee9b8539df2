//! Delivery: how a queued message wakes a component, and what becomes of it. The same on every broker.
//!
//! - `queue`: what a broker supplies;
//! - `policy`: what follows from what the component said. Pure: no clock, no I/O, no random number;
//! - `engine`: the loop permit -> pull -> sandbox -> settle, and `ordered` the one that keeps an order; `pauses`: how long
//!   either waits while something fails;
//! - `lanes`: which message of an ordered link may run next, `breaker`: when a trigger pauses by itself, and `window`: by which
//!   attempts. Pure; `pause`: how other nodes know of that;
//! - `handle`: what is done with one message; `ledger`: what is kept of it meanwhile; `held`: how its claim is kept;
//! - `letter`: what is kept of a message that was given up;
//! - `progress` and `trigger`: what others see of an engine, and ask of it.
//!
//! A broker is one file that implements [`Queue`]. It keeps, beside each message, how often it was tried, how often the
//! component faulted on it, and how often a claim on it ended without a settlement; the engine decides by these.
//! `providers/embedded/src/durable.rs` is the example to copy, and [`crate::testing`] what it must pass.

mod breaker;
pub(crate) mod burying;
mod engine;
mod handle;
mod held;
mod lanes;
mod ledger;
mod letter;
mod ordered;
mod pause;
mod pauses;
mod policy;
mod progress;
mod queue;
mod running;
#[cfg(test)]
mod simulation;
mod trigger;
mod window;

pub use breaker::PROBE_EVERY_MS;
pub use engine::Engine;
pub use lanes::{BACK_MAX, LANE_MAX, LOOK_AHEAD};
pub use letter::{DeadLetter, Fate, Ran};
pub use policy::{KILLS_MAX, RETRY_AFTER_MAX, Reason, Record, Settlement, begin, settle};
pub use progress::{Counts, OUTCOMES, PAUSED, Progress, is_of_messages};
pub use queue::{
    CLAIM, Claimed, EXTEND_EVERY, LEDGER_KEY_BYTES_MAX, LEDGER_VALUE_BYTES_MAX, Ledger, Out, PULL_MAX, Place, Queue,
    Standing, Trouble,
};
pub use running::Running;
pub use trigger::Trigger;
