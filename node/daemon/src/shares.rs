//! Shares: what each node has to run by the plan that this node knows. Worked out once for each state and node, so that
//! the data plane can look up rights for every event, and from the share before it, so that a change costs what it is about.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use trellis_placement::{Assigned, State};
use trellis_wire::NodeId;

/// What each node has to run.
pub(crate) struct Shares {
    states: watch::Receiver<Arc<State>>,
    known: Mutex<HashMap<NodeId, Known>>,
}

/// A node's share by the state that it was last asked for.
type Known = (Arc<State>, Arc<Assigned>);

impl Shares {
    pub(crate) fn new(states: watch::Receiver<Arc<State>>) -> Self {
        Self { states, known: Mutex::default() }
    }

    /// The state as it is now.
    pub(crate) fn state(&self) -> Arc<State> {
        self.states.borrow().clone()
    }

    /// Waits until the state is so.
    pub(crate) async fn until(&self, so: impl Fn(&State) -> bool) {
        if self.states.clone().wait_for(|state| so(state)).await.is_err() {
            // Raft is gone, and with it any further change: only shutdown is left.
            std::future::pending::<()>().await;
        }
    }

    /// What `node` has to run now.
    pub(crate) fn of(&self, node: NodeId) -> Arc<Assigned> {
        self.by(&self.state(), node)
    }

    /// What `node` has to run by a state. It is worked out from what it was by the last one that was asked about.
    pub(crate) fn by(&self, state: &Arc<State>, node: NodeId) -> Arc<Assigned> {
        let mut known = self.known.lock().expect("no code panics while it holds this lock");
        let (before, share) = known.entry(node).or_default();
        if !Arc::ptr_eq(before, state) {
            *share = Arc::new(state.assigned_since(before, node, share));
            *before = state.clone();
            // A node that is a member no more is asked about no more.
            if known.len() > state.nodes().len() {
                known.retain(|id, _| *id == node || state.node(*id).is_some());
            }
        }
        known[&node].1.clone()
    }
}
