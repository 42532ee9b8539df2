//! The board: how each component and link of this node is now, for `status` and `/readyz`. Written by reconcile, read
//! by the admin API; no decision is taken by it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use trellis_wire::{ComponentKey, LinkId};

/// How something that was assigned to this node is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    /// Not there yet.
    Starting,
    /// Does what it should.
    Ready,
    /// Tried and not done; it is tried again.
    Failed(String),
}

impl Health {
    /// `ready`, `starting` or `failed`.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it failed.
    pub(crate) fn problem(&self) -> Option<String> {
        match self {
            Self::Failed(why) => Some(why.clone()),
            Self::Starting | Self::Ready => None,
        }
    }
}

/// The health of everything assigned to this node.
#[derive(Default)]
pub(crate) struct Board(Mutex<Sheet>);

#[derive(Default)]
struct Sheet {
    components: BTreeMap<ComponentKey, Health>,
    links: BTreeMap<LinkId, Health>,
}

impl Board {
    /// Notes how a component is; `None` when it is no longer assigned.
    pub(crate) fn component(&self, key: &ComponentKey, health: Option<Health>) {
        let mut sheet = self.lock();
        match health {
            Some(health) => sheet.components.insert(key.clone(), health),
            None => sheet.components.remove(key),
        };
    }

    /// Notes how a link is; `None` when it is no longer assigned.
    pub(crate) fn link(&self, id: &LinkId, health: Option<Health>) {
        let mut sheet = self.lock();
        match health {
            Some(health) => sheet.links.insert(id.clone(), health),
            None => sheet.links.remove(id),
        };
    }

    /// How a component is. What was never noted is starting.
    pub(crate) fn of_component(&self, key: &ComponentKey) -> Health {
        self.lock().components.get(key).cloned().unwrap_or(Health::Starting)
    }

    /// How a link is. What was never noted is starting.
    pub(crate) fn of_link(&self, id: &LinkId) -> Health {
        self.lock().links.get(id).cloned().unwrap_or(Health::Starting)
    }

    fn lock(&self) -> MutexGuard<'_, Sheet> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}
