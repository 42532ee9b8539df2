//! Caps on calls that the whole lattice shares: keeps each told how much of it is this node's. What a part is, is decided by
//! `placement::part`; here it is only looked up who has gone along with the plan.
//!
//! A node's part shrinks as soon as it knows, and grows once every other node carries out the plan by which theirs shrank: so the parts of all nodes that are not declared lost never come to more than the cap.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use trellis_placement::part;
use trellis_wire::NodeId;

use crate::dispatch::Dispatch;
use crate::grants::Gate;
use crate::liveness::Liveness;
use crate::shares::Shares;

/// How often it is looked whether others have gone along.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The caps of this node.
pub(crate) struct Caps {
    pub(crate) me: NodeId,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) dispatch: Arc<Dispatch>,
}

impl Caps {
    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => self.dispatch.grants().gates().iter().for_each(|gate| self.look(gate)),
            }
        }
    }

    fn look(&self, gate: &Gate) {
        let state = self.shares.state();
        let holders: BTreeSet<NodeId> =
            state.holding(gate.component()).into_iter().flatten().map(|(node, _)| *node).collect();
        let generation = state.plan().generation();
        // All others: one that holds it no more may not know that yet.
        let mut others = state.nodes().values().filter(|node| node.facts.id != self.me && !node.is_lost());
        let has_shrunk = |node: &trellis_placement::Node| {
            self.liveness.generation(node.facts.id).is_some_and(|carried_out| carried_out >= generation)
        };
        gate.set(part(gate.calls_max(), &holders, self.me, gate.own(), others.all(has_shrunk)));
    }
}
