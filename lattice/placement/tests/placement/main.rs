//! Tests of what the lattice agrees on: transcripts that people can read, properties, and one of size.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod happenings;
mod lattice;
mod leases;
mod parts;
mod properties;
mod shares;
mod simulation;
mod spares;
mod transcripts;
