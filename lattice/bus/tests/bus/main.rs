//! The bus from outside: one contract for both ends, a server that comes and goes, a wire on which things go wrong.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod contract;
mod server;
mod wire;
