//! Permits that are kept for other nodes. Each is given to who asked for it, for the component it was asked for, and to
//! nobody else: naming the exchange is not enough, since whoever names another's has passed no check of its right.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use trellis_provider::Permit;
use trellis_wire::{ComponentKey, NodeId};
use uuid::Uuid;

/// By the exchange that asked for it. Each exchange is one of a bounded number.
#[derive(Default)]
pub(crate) struct Reserved(Mutex<HashMap<Uuid, Kept>>);

/// A permit, and whose it is.
pub(super) struct Kept {
    pub(super) asker: NodeId,
    pub(super) component: ComponentKey,
    pub(super) permit: Permit,
}

impl Reserved {
    pub(super) fn keep(&self, exchange: Uuid, kept: Kept) {
        self.all().insert(exchange, kept);
    }

    /// The permit, once.
    pub(super) fn take(&self, exchange: Uuid, asker: NodeId, component: &ComponentKey) -> Option<Permit> {
        let mut all = self.all();
        let is_its = all.get(&exchange).is_some_and(|kept| kept.asker == asker && kept.component == *component);
        if is_its { all.remove(&exchange).map(|kept| kept.permit) } else { None }
    }

    pub(super) fn forget(&self, exchange: Uuid) {
        self.all().remove(&exchange);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, Kept>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tests::Nothing;

    #[test]
    fn it_is_given_once_to_who_asked_for_what_was_asked_for() {
        let (reserved, exchange) = (Reserved::default(), Uuid::now_v7());
        let [asker, other] = [(); 2].map(|()| NodeId::new(Uuid::now_v7()));
        let [mine, theirs]: [ComponentKey; 2] = ["shop/mine", "shop/theirs"].map(|key| key.parse().unwrap());
        reserved.keep(exchange, Kept { asker, component: mine.clone(), permit: Permit::new(Nothing) });
        assert!(reserved.take(exchange, asker, &theirs).is_none(), "another component would run by its permit");
        assert!(reserved.take(exchange, other, &mine).is_none(), "another node would");
        assert!(reserved.take(Uuid::now_v7(), asker, &mine).is_none());
        assert!(reserved.take(exchange, asker, &mine).is_some());
        assert!(reserved.take(exchange, asker, &mine).is_none(), "once");
        reserved.keep(exchange, Kept { asker, component: mine.clone(), permit: Permit::new(Nothing) });
        reserved.forget(exchange);
        assert!(reserved.take(exchange, asker, &mine).is_none());
    }
}
