//! The provider over real sockets on 127.0.0.1, with a node that is only a function: what it does with a request is
//! what a test is about.
#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too, which clippy sees only inside a #[test]")]

mod bodies;
mod limits;
mod outgoing;
mod serving;
mod support;
