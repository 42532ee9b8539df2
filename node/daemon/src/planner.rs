//! The leader's loop: state in, plan out, committed as data, and before the first plan that needs it the home, and the timings
//! where there are none. What it is to be is decided by `placement`, which is pure; here is only when.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use trellis_placement::{Command, Patience, State, plan};
use trellis_raft::Raft;

use crate::proposal;

/// The wait after a proposal that did not get through.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`. Wakes when the state or the leadership changes. `own` are the timings that this node has where the
/// lattice has none.
pub(crate) async fn run(raft: Raft, own: Patience, shutdown: CancellationToken) {
    let (mut states, mut leaders) = (raft.state(), raft.leadership());
    loop {
        let mut wait = None;
        let leads = leaders.borrow_and_update().me;
        let state = states.borrow_and_update().clone();
        let timings = || state.lacks_timings().then_some(Command::Timings(own));
        if leads && let Some(next) = timings().or_else(|| next(&state)) {
            match &next {
                Command::Home(home) => {
                    tracing::info!(%home, "this node keeps what trellis://embedded keeps, from now on")
                }
                Command::Plan(delta) => tracing::info!(generation = %delta.generation(), "a new plan"),
                _ => {}
            }
            if let Err(why) = raft.propose(proposal::entry(next)).await {
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

/// What is to be committed next. The home comes first, so that nothing begins elsewhere what it is to keep.
pub(crate) fn next(state: &State) -> Option<Command> {
    state.home_to_be().map(Command::Home).or_else(|| plan(state).map(Command::Plan))
}
