//! The sandbox from outside: real guests (`tests/guests`, and a few in the text format), a real engine, and a stand-in
//! for the node behind them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod artifacts;
mod custom;
mod fresh;
mod http;
mod lab;
mod limits;
mod messages;
mod runs;
