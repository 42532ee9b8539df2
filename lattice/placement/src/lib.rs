//! What the lattice agrees on. Commands go in, in the order of the log; [`State`] comes out, the same on every node;
//! [`plan`] turns it into the next [`Delta`] of who holds what; [`State::assigned`] says what one node has to run, and
//! [`diff`] how it gets there.
//!
//! Everything here is a value. Nothing in this crate does I/O, reads a clock or draws a random number.

mod assigned;
mod backup;
mod caps;
mod changed;
mod command;
mod configs;
mod conflict;
mod demand;
mod deploy;
mod diff;
mod divide;
mod explain;
mod flow;
mod happening;
mod home;
mod incarnation;
mod lease;
mod lessee;
mod lessor;
mod level;
mod membership;
mod node;
mod pairs;
mod part;
mod plan;
mod planner;
mod refusal;
mod release;
mod rollout;
mod spares;
mod state;
mod timings;
mod trust;
mod versions;
mod watch;

pub use assigned::{AppShare, Assigned, Beside, Direction, HeldComponent, HeldLink, Section};
pub use caps::part;
pub use command::{Command, ENTRY_BYTES_MAX, ENTRY_ENVELOPE_BYTES, Entry, EntryTooLarge};
pub use configs::{Configs, StoredConfig};
pub use conflict::{Conflict, DEFAULT_HTTP_ADDRESS, Listener, Route};
pub use diff::{Step, diff};
pub use explain::{Unplaced, Verdict};
pub use happening::{Happening, happenings};
pub use home::Home;
pub use incarnation::{Incarnation, LogPoint, Rise};
pub use lease::{Lease, LeaseMoves, LeasedLinks, Leases};
pub use lessee::Lessee;
pub use lessor::{Lessor, Renewal};
pub use level::{Downgraded, LEVEL, SHORT_HEARTBEATS, TooOld};
pub use membership::{Decision, LEARNERS_MAX, Life, LogView, Membership};
pub use node::{Capacity, LabelError, Node, NodeFacts, Unfit, check_label};
pub use part::{COMMAND_BYTES_MAX, Part, UNFINISHED_MAX, Unfinished};
pub use plan::{Change, DELTA_BYTES_MAX, Delta, Holding, Plan};
pub use planner::plan;
pub use refusal::{Applied, Refusal};
pub use release::Release;
pub use spares::Spare;
pub use state::{APPLIED_IDS_MAX, State};
pub use timings::{GivenTimings, OtherTimings, Patience, Timings, UnfitTimings};
pub use trust::{ALLOWED_MAX, NotAdmitted, Trust, TrustChange};
pub use versions::{End, Ended, HISTORY_MAX, LAST_STEP, Rollout, SHARES, Version, Versions};
pub use watch::{Care, Progress, Watch};
