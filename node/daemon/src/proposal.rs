//! Proposals: a command gets its id and its time here.

use trellis_placement::{Applied, Command, Entry};
use trellis_raft::{ProposeError, Raft};
use trellis_wire::CommandId;

use crate::clock;

/// Makes the entry for a command: a new id, so that it is applied once however often it is sent.
pub(crate) fn entry(command: Command) -> Entry {
    Entry { id: CommandId::new(uuid::Uuid::now_v7()), at_ms: clock::now_ms(), command }
}

/// Commits a command, and returns when this node's own state shows it: whoever asks this node next sees what it did.
pub(crate) async fn commit(raft: &Raft, entry: Entry) -> Result<Applied, ProposeError> {
    let applied = raft.propose(entry).await?;
    if let Err(why) = raft.read_barrier().await {
        tracing::debug!(%why, "a change is committed and not here yet");
    }
    Ok(applied)
}
