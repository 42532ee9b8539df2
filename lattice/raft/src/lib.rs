//! How the nodes of a lattice agree: commands in, one [`State`] for all out.
//!
//! - `store` is the file under the data directory: the one module that knows redb;
//! - `log` and `machine` are what openraft wants of it: log and vote, state and snapshots;
//! - `message`, `network` and `serve` are what nodes say to each other, the asking and the answering side;
//! - `held` is what others are known to hold of the log, and `doubt` whether this node still holds what it did;
//! - `silence` is which members do not answer;
//! - `chance` is what nothing here decides, but the seed of a simulation;
//! - `progress` is waiting for openraft;
//! - `follow` is how nodes outside the log keep up with it;
//! - `recover` begins a new log where too many voters are gone;
//! - `node` puts them together into [`Raft`]; `propose` brings a command to whoever leads.
//!
//! What a command means is not known here: [`State::apply`](trellis_placement::State) says it, without I/O or clock.
//! This crate is the only one that knows openraft.
//!
//! Promises: what [`Raft::propose`] answered survives any crash of fewer than half of the voters' disks; each command
//! id takes effect once; a data directory serves one node of one lattice. What a peer sends was sealed by a member for this
//! node, and is checked for sense here. Not promised: protection from a member that lies on purpose.

mod chance;
mod doubt;
mod error;
mod follow;
mod held;
mod log;
mod machine;
mod message;
mod network;
mod node;
mod progress;
mod propose;
mod recover;
mod serve;
mod silence;
mod store;
mod types;

#[cfg(test)]
mod tests;

pub use error::RaftError;
pub use node::{Leadership, Members, MembershipError, Options, Raft, Timing, open};
pub use propose::ProposeError;
pub use recover::{Recovery, recover};
pub use types::Member;

/// The longest batch of entries in one request, in bytes.
pub const BATCH_BYTES_MAX: usize = 128 * 1024;

/// The longest chunk of a snapshot in one request, in bytes.
pub const CHUNK_BYTES_MAX: usize = 128 * 1024;

/// How many commands and read barriers of one node may be under way at once.
pub const PROPOSALS_WAITING_MAX: usize = 256;
