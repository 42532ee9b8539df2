//! One event in one fresh sandbox.
//!
//! This crate alone knows wasmtime. An [`Engine`] compiles artifacts and keeps the budgets of the node; a [`Component`] is
//! a loaded artifact; [`Component::run`] takes one event, makes a sandbox for it, and lets it go when the event is
//! answered. All that a sandbox does outside itself goes through one trait, [`Outside`], which the node implements.
//!
//! To follow an event, read `run.rs`, then the file of its kind under `guest/`, then the import it uses under `host/`.
//!
//! What holds everywhere here: a guest has no sockets, files, environment or host of its own; nothing of one run is seen
//! by the next; a guest that spins, waits, grows or traps ends its own run and no other.

mod cache;
mod clock;
mod component;
mod engine;
mod fault;
mod flavor;
mod guest;
mod host;
mod inspect;
mod limits;
mod outside;
mod run;
mod state;
mod value;

pub use component::{Component, ComponentError};
pub use engine::{Engine, EngineError, Options};
pub use inspect::{Inspection, InterfaceName, Need, Wake, inspect};
pub use outside::{Level, Limits, Outside, Setup};
