//! The provider over real sockets on 127.0.0.1, with a node that is only a function: what it does with a request is
//! what a test is about.

mod bodies;
mod limits;
mod outgoing;
mod serving;
mod support;
