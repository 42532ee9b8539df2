//! Levels: what a build knows. A node that meets a command in the log that it does not know can only stop; so a new command
//! is proposed only once every member says that it knows it. What is said to one node alone goes by its own level.
//!
//! A node says its level by a label, which every older build takes and passes on as any other.

use std::collections::BTreeMap;

use crate::{Command, Entry, Node, NodeFacts, State};

/// The level of this build: the highest of those below.
pub const LEVEL: u16 = TRACED_CALLS;

/// The highest level of anything that a lattice relies on once all of its members have it: of any command, of where links are
/// pulled, and of what is written down of versions.
const RELIED_ON_LEVEL: u16 = CAPPED_TOPICS_LEVEL;

/// From here on a node takes an offer's acceptance and its reply as one message.
const DONE_LEVEL: u16 = 2;

/// From here on nodes take heartbeats that say only what is new.
pub const SHORT_HEARTBEATS: u16 = 3;

/// From here on nodes know of a home.
pub(crate) const HOME_LEVEL: u16 = 4;

/// From here on nodes have the lattice's timings.
pub(crate) const TIMINGS_LEVEL: u16 = 5;

/// From here on nodes know that the home pulls MQTT topics whose order is kept.
pub(crate) const ORDERED_TOPICS_LEVEL: u16 = 6;

/// From here on nodes write down of versions what [`Endings::Told`](crate::versions::Endings) says, and take from a backup what
/// was.
pub(crate) const ENDINGS_LEVEL: u16 = 7;

/// From here on nodes know that the home pulls MQTT topics that are capped for the lattice.
pub(crate) const CAPPED_TOPICS_LEVEL: u16 = 8;

/// From here on nodes take the trace that a call of a component's function belongs to.
pub const TRACED_CALLS: u16 = 9;

/// The label that says a node's level. One that a person sets over it counts for nothing.
const LEVEL_LABEL: &str = "trellis.level";

impl Command {
    /// The level from which on builds know it.
    const fn level(&self) -> u16 {
        match self {
            Self::Found { .. } | Self::Join(_) | Self::Lost(_) | Self::Back(_) | Self::Forget(_) => 0,
            Self::Label { .. } | Self::Drain { .. } | Self::Deploy(_) | Self::Undeploy(_) | Self::Delete(_) => 0,
            Self::PutConfig { .. } | Self::DeleteConfig(_) | Self::Plan(_) | Self::Acked { .. } => 0,
            Self::Trust(_) | Self::Advance { .. } | Self::GiveUp { .. } | Self::Rollback { .. } => 0,
            Self::Lease(_) | Self::Pause { .. } => 0,
            Self::Part(_) => 1,
            Self::Home(_) => HOME_LEVEL,
            Self::Timings(_) => TIMINGS_LEVEL,
            Self::Restore(_) => ENDINGS_LEVEL,
        }
    }
}

impl NodeFacts {
    /// Adds this build's level to a node's labels.
    pub fn announce_level(labels: &mut BTreeMap<String, String>) {
        labels.insert(LEVEL_LABEL.into(), LEVEL.to_string());
    }

    /// The level that it announced. Builds that knew of none announce none.
    pub fn level(&self) -> u16 {
        self.labels.get(LEVEL_LABEL).and_then(|level| level.parse().ok()).unwrap_or(0)
    }

    /// Whether the node takes an offer's acceptance and its reply as one message.
    pub fn takes_done(&self) -> bool {
        self.level() >= DONE_LEVEL
    }
}

/// A member does not know a command yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {id} ({name}) runs Trellis {version} of level {has}, and this takes level {needed} on every node: upgrade it, or \
     give it up with `trellis nodes forget` if it will not come back"
)]
pub struct TooOld {
    id: trellis_wire::NodeId,
    name: String,
    version: String,
    has: u16,
    needed: u16,
}

/// A member's build was replaced by one that may not know what the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "every node of the lattice runs Trellis of level {used} or higher, which this build, of level {LEVEL}, may not understand: \
     start this node with the newer Trellis again"
)]
pub struct Downgraded {
    used: u16,
}

impl State {
    /// Checks that this build knows whatever may be in the log, as the node last saw it.
    ///
    /// # Errors
    /// It is older than what wrote there.
    pub fn check_build(&self) -> Result<(), Downgraded> {
        let used = self.used();
        if used <= LEVEL { Ok(()) } else { Err(Downgraded { used }) }
    }

    /// The level that all members have, so that what needs it may be in the log.
    fn used(&self) -> u16 {
        self.nodes().values().map(|Node { facts, .. }| facts.level()).min().unwrap_or(0)
    }

    /// Checks that every member knows the command of an entry, the lost ones included: they may come back.
    ///
    /// # Errors
    /// One that does not.
    pub fn check_level(&self, entry: &Entry) -> Result<(), TooOld> {
        self.check_members(entry.command.level())
    }

    /// Checks that every member is of this level, the lost ones included.
    pub(crate) fn check_members(&self, level: u16) -> Result<(), TooOld> {
        self.nodes().values().try_for_each(|node| check(&node.facts, level))
    }

    /// Whether every member is of this level, the lost ones included: they may come back.
    pub fn everyone_knows(&self, level: u16) -> bool {
        self.nodes().values().all(|node| node.facts.level() >= level)
    }

    /// Checks that a node which wants to join knows whatever may be in the log, and what the others rely on.
    ///
    /// # Errors
    /// It does not.
    pub fn check_newcomer(&self, facts: &NodeFacts) -> Result<(), TooOld> {
        check(facts, self.used().min(RELIED_ON_LEVEL))
    }
}

fn check(facts: &NodeFacts, needed: u16) -> Result<(), TooOld> {
    let has = facts.level();
    if has >= needed {
        return Ok(());
    }
    Err(TooOld { id: facts.id, name: facts.name.clone(), version: facts.version.clone(), has, needed })
}
