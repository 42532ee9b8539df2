//! Commands: everything that changes what the lattice agrees on. A command is proposed to the leader, written to the
//! log once it is agreed, and applied by every node in the log's order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, CommandId, ComponentKey, Config, Generation, LatticeId, LatticeName, NodeId, frame};

use crate::{COMMAND_BYTES_MAX, Delta, LeaseMoves, NodeFacts, Part, Patience, Release, Restored, TrustChange};

/// The longest entry the log takes, in bytes. One that does not fit a message would be sent again for ever.
pub const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// What the log and the bus may wrap around an entry, in bytes: an entry itself is at most
/// `ENTRY_BYTES_MAX - ENTRY_ENVELOPE_BYTES` long.
pub const ENTRY_ENVELOPE_BYTES: usize = 4 * 1024;

/// A command as it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Names the command: one that is proposed twice is applied once.
    pub id: CommandId,
    /// The proposer's wall clock, in milliseconds since 1970. For people and for ages; nothing is ordered by it.
    pub at_ms: u64,
    /// What is to change.
    pub command: Command,
}

/// What is to change. Append-only: a new command goes to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The lattice begins.
    Found {
        /// Its id, minted by the node that bootstraps it.
        lattice: LatticeId,
        /// Its name.
        name: LatticeName,
    },
    /// A node becomes a member, or a member says what it is now, such as after an upgrade.
    Join(NodeFacts),
    /// A node has been silent for too long.
    Lost(NodeId),
    /// A lost node is heard again.
    Back(NodeId),
    /// A lost node will not come back.
    Forget(NodeId),
    /// Changes labels of a node over those it joined with.
    Label {
        /// The node.
        node: NodeId,
        /// The new value of each label; `None` takes it away, also where the node joined with it.
        labels: BTreeMap<String, Option<String>>,
    },
    /// Begins or ends a drain: a drained node holds nothing.
    Drain {
        /// The node.
        node: NodeId,
        /// Whether it is to be drained.
        on: bool,
    },
    /// Deploys an app's version.
    Deploy(Box<Release>),
    /// Stops an app and keeps its history.
    Undeploy(AppName),
    /// Stops an app and forgets it with its config.
    Delete(AppName),
    /// Writes a named config.
    PutConfig {
        /// Its name.
        name: String,
        /// All its values.
        values: Config,
    },
    /// Removes a named config.
    DeleteConfig(String),
    /// The next step of the plan.
    Plan(Delta),
    /// A node carries out this generation: permits it gave up before are free.
    Acked {
        /// The node.
        node: NodeId,
        /// The generation.
        generation: Generation,
    },
    /// Who may become a member.
    Trust(TrustChange),
    /// Takes the next step of a roll-out.
    Advance {
        /// The app.
        app: AppName,
        /// The version that is rolled out.
        version: String,
        /// The step that it comes to, as an index of [`SHARES`](crate::SHARES); one more than the last ends it.
        step: u8,
    },
    /// Takes back the version that is rolled out or watched, because it is not what it should be.
    GiveUp {
        /// The app.
        app: AppName,
        /// The version.
        version: String,
        /// Why, for people.
        why: String,
    },
    /// Goes back to a version that is kept, by hand.
    Rollback {
        /// The app.
        app: AppName,
        /// The version; `None`: the one before.
        version: Option<String>,
    },
    /// Leases change hands.
    Lease(LeaseMoves),
    /// Queues wake a component no more, or again. What was taken off them goes on.
    Pause {
        /// The component.
        component: ComponentKey,
        /// Whether it is to pause.
        on: bool,
    },
    /// One part of a command that is too long for one entry.
    Part(Part),
    /// This node keeps what `trellis://embedded` keeps, from now on.
    Home(NodeId),
    /// The lattice has these timings from now on.
    Timings(Patience),
    /// Makes what a backup has beside what runs.
    Restore(Restored),
}

impl Entry {
    /// How many bytes it takes, as the wire's frames are written.
    pub fn encoded_len(&self) -> usize {
        frame::encode(self).len()
    }

    /// Whether the log takes it as one entry.
    pub fn fits(&self) -> bool {
        self.encoded_len() <= ENTRY_BYTES_MAX - ENTRY_ENVELOPE_BYTES
    }

    /// Checks that the log takes it, in parts if need be.
    ///
    /// # Errors
    /// It is too large; the text says what to do about it.
    pub fn check_size(&self) -> Result<(), EntryTooLarge> {
        let bytes = frame::encode(&self.command).len();
        if bytes <= COMMAND_BYTES_MAX {
            return Ok(());
        }
        let what = match &self.command {
            Command::Deploy(release) => format!("app {} is", release.app.name),
            Command::Restore(Restored::Version(version)) => format!("app {} is", version.release.app.name),
            Command::PutConfig { name, .. } | Command::Restore(Restored::Config { name, .. }) => {
                format!("config `{name}` is")
            }
            _ => "the command is".into(),
        };
        Err(EntryTooLarge { what, bytes })
    }
}

/// A command does not fit the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} too large for the lattice's log: {bytes} bytes, at most {COMMAND_BYTES_MAX} are taken; move large config \
     values into files or a store, or divide the app"
)]
pub struct EntryTooLarge {
    /// What is too large, with its verb.
    what: String,
    /// Its length.
    bytes: usize,
}
