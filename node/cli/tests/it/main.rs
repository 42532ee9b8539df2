//! The `trellis` binary from outside: what people type, what they get, and how it exits.
//!
//! `command_line`, `validate` and `inspect` need no node; `asking` talks to a scripted one; `up` starts a real one.
//! `tidy` holds the rules that no compiler checks.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too, which clippy sees only inside a #[test]")]

mod asking;
mod command_line;
mod inspect;
mod node;
mod scripted;
mod tidy;
mod trellis;
mod up;
mod validate;
