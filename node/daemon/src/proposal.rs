//! Proposals: a command gets its id and its time here.

use trellis_placement::{Command, Entry};
use trellis_wire::CommandId;

use crate::clock;

/// Makes the entry for a command: a new id, so that it is applied once however often it is sent.
pub(crate) fn entry(command: Command) -> Entry {
    Entry { id: CommandId::new(uuid::Uuid::now_v7()), at_ms: clock::now_ms(), command }
}
