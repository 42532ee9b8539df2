//! Shares: what each node has to run by the plan that this node knows. Worked out once for each state and node, so that
//! the data plane can look up rights for every event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use trellis_placement::{Assigned, State};
use trellis_wire::NodeId;

/// What each node has to run.
pub(crate) struct Shares {
    states: watch::Receiver<Arc<State>>,
    known: Mutex<Known>,
}

/// A state, and the shares worked out for it so far.
type Known = (Arc<State>, HashMap<NodeId, Arc<Assigned>>);

impl Shares {
    pub(crate) fn new(states: watch::Receiver<Arc<State>>) -> Self {
        let state = states.borrow().clone();
        Self { states, known: Mutex::new((state, HashMap::new())) }
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

    /// What `node` has to run by a state. Only what is worked out for the last one that was asked about is known.
    pub(crate) fn by(&self, state: &Arc<State>, node: NodeId) -> Arc<Assigned> {
        let mut known = self.known.lock().expect("no code panics while it holds this lock");
        if !Arc::ptr_eq(&known.0, state) {
            *known = (state.clone(), HashMap::new());
        }
        known.1.entry(node).or_insert_with(|| Arc::new(state.assigned(node))).clone()
    }
}
