//! The leader's loop: state in, plan out, committed as data. The plan itself is made by `placement::plan`, which is
//! pure; here is only when.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use trellis_placement::{Command, plan};
use trellis_raft::Raft;

use crate::proposal;

/// The wait after a proposal that did not get through.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`. Wakes when the state or the leadership changes.
pub(crate) async fn run(raft: Raft, shutdown: CancellationToken) {
    let (mut states, mut leaders) = (raft.state(), raft.leadership());
    loop {
        let mut wait = None;
        let leads = leaders.borrow_and_update().me;
        let state = states.borrow_and_update().clone();
        if leads && let Some(delta) = plan(&state) {
            tracing::info!(generation = %delta.generation(), "a new plan");
            if let Err(why) = raft.propose(proposal::entry(Command::Plan(delta))).await {
                tracing::warn!("the plan was not committed: {why}; trying again");
                wait = Some(RETRY);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = states.changed() => {}
            Ok(()) = leaders.changed() => {}
            () = tokio::time::sleep(wait.unwrap_or(RETRY)), if wait.is_some() => {}
            // Both channels closed: Raft is gone.
            else => return,
        }
    }
}
