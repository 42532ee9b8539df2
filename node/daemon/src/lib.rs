//! The daemon: ties the lattice, the sandboxes and the providers together into one node.
//!
//! Start at [`node`]: it builds every part. An event's way leads through [`dispatch`] and [`grants`]; a deploy's way
//! through [`deploy`], Raft, [`planner`] and [`reconcile`].

mod abortable;
pub mod api;
mod artifacts;
mod backup;
mod board;
mod caps;
mod changes;
mod clock;
mod counts;
mod cut_off;
#[cfg(test)]
mod decoding;
mod deploy;
mod dispatch;
mod events;
mod explain;
mod far;
mod fetch;
mod forgotten;
mod grants;
mod home;
mod identity;
mod join;
mod leases;
mod liveness;
mod logs;
pub mod manifest;
mod membership;
mod node;
mod oci;
mod outbox;
mod planner;
mod pool;
mod proposal;
mod providers;
mod reconcile;
mod recover;
mod risen;
mod rollouts;
mod secrets;
mod seldom;
mod shards;
mod shares;
mod status;
mod tail;
mod telemetry;
mod triggers;

pub use identity::IdentityError;
pub use membership::{MembershipError, is_automatic_label};
pub use recover::{RecoverError, Recovered, recover};
pub use risen::Parting;
pub use secrets::SecretSources;
pub use trellis_placement::{Care, GivenTimings, check_label};

pub use node::{Options, RunError, Running, STOP_MAX, StartError, start};
