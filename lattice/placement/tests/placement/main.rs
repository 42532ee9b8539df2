//! Tests of what the lattice agrees on: transcripts that people can read, properties, and one of size.

mod lattice;
mod properties;
mod transcripts;
