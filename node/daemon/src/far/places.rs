//! Places for what other nodes have under way here. There is a bound for all of them, and a share of it for each that no other
//! node can take: one that is busy alone may have everything, and keeps nobody else out.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;
use trellis_wire::NodeId;

use super::EXCHANGES_MAX;

/// The places of this node. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Default)]
struct Inner {
    taken: Mutex<Taken>,
    /// The last one was given back.
    emptied: Notify,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: BTreeMap<NodeId, usize>,
}

/// One place, until dropped.
pub(crate) struct Place {
    places: Places,
    node: NodeId,
}

impl Places {
    /// A place for a node, one of so many. While all are taken, each that has less than its share still gets one: so there are
    /// never twice as many as [`EXCHANGES_MAX`], but for one of each node.
    pub(crate) fn take(&self, node: NodeId, nodes: usize) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.by.get(&node).copied().unwrap_or(0);
        let share = (EXCHANGES_MAX / nodes.max(1)).max(1);
        if taken.all >= EXCHANGES_MAX && own >= share {
            return None;
        }
        taken.all += 1;
        taken.by.insert(node, own + 1);
        Some(Place { places: self.clone(), node })
    }

    /// Returns when none is taken.
    pub(crate) async fn emptied(&self) {
        loop {
            let mut emptied = pin!(self.0.emptied.notified());
            // Heard from before the look, so that nothing comes in between unseen.
            emptied.as_mut().enable();
            if self.lock().all == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        match taken.by.get_mut(&self.node) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by.remove(&self.node)),
        }
        if taken.all == 0 {
            self.places.0.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_busy_node_may_have_all_places_and_keeps_nobody_out() {
        let node = |n: u128| NodeId::new(Uuid::from_u128(n));
        let all = |places: &Places, n| std::iter::from_fn(|| places.take(node(n), 4)).collect::<Vec<_>>();
        let places = Places::default();
        let busy = all(&places, 1);
        assert_eq!(busy.len(), EXCHANGES_MAX);
        let second = all(&places, 2);
        let third = all(&places, 3);
        assert_eq!((second.len(), third.len()), (EXCHANGES_MAX / 4, EXCHANGES_MAX / 4), "a share each, and no more");
        drop(busy);
        assert_eq!(
            all(&places, 2).len(),
            EXCHANGES_MAX - second.len() - third.len(),
            "what is free is for whoever comes"
        );
    }

    #[test]
    fn none_is_taken_once_each_is_given_back() {
        let (places, node) = (Places::default(), NodeId::new(Uuid::from_u128(1)));
        assert!(places.emptied().now_or_never().is_some());
        let taken = [places.take(node, 2), places.take(node, 2)];
        let mut emptied = pin!(places.emptied());
        assert!(emptied.as_mut().now_or_never().is_none());
        drop(taken);
        assert!(emptied.now_or_never().is_some());
        assert!(places.lock().by.is_empty());
    }
}
