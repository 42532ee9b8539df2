//! The links of a provider: what each has become, by its id.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use trellis_wire::{Call, CallError, Link, LinkId};

use crate::LinkError;

/// What a link has become. A clone is the same link.
#[async_trait]
pub trait Bound: Clone + Send + Sync + 'static {
    /// Takes no more messages, and returns when those that came are settled. Guests under way may still need what they
    /// were granted, so that does not end here.
    async fn end(&self);
}

/// The links of a provider.
pub struct Links<B>(Mutex<HashMap<LinkId, B>>);

impl<B: Bound> Links<B> {
    /// Puts a link in place. The contract has one of that id removed before; if not, it ends here.
    pub async fn bind(&self, id: LinkId, bound: B) {
        let before = self.lock().insert(id, bound);
        if let Some(before) = before {
            before.end().await;
        }
    }

    /// Ends a link, as [`Provider::remove`](crate::Provider::remove) has it.
    pub async fn remove(&self, id: &LinkId) {
        let removed = self.lock().remove(id);
        if let Some(removed) = removed {
            removed.end().await;
        }
    }

    /// What a link has become.
    ///
    /// # Errors
    /// It is not bound, for people.
    pub fn get(&self, id: &LinkId) -> Result<B, String> {
        self.lock().get(id).cloned().ok_or_else(|| not_bound(id))
    }

    /// Ends every link, all at the same time.
    pub async fn drain(&self) {
        let all: Vec<B> = self.lock().values().cloned().collect();
        futures::future::join_all(all.iter().map(Bound::end)).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LinkId, B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Default for Links<B> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<B: fmt::Debug> fmt::Debug for Links<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fmt(f)
    }
}

/// What is said of a link that is not bound, for people.
pub fn not_bound(id: &LinkId) -> String {
    format!("link {id} is not bound on this node")
}

/// A call of something that this link does not offer.
pub fn no_such_call(link: &LinkId, call: &Call) -> CallError {
    CallError::Invalid(format!("link {link} answers no {:?}", call.capability()))
}

/// A link of a package that the provider does not have; `offers` says what it has.
pub fn no_such_package(link: &Link, offers: &str) -> LinkError {
    let (namespace, package) = (&link.namespace, &link.package);
    LinkError::Unsupported(format!("{offers}, not `{namespace}:{package}`"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use trellis_wire::LinkName;

    use super::*;

    #[derive(Clone)]
    struct Counted(Arc<AtomicUsize>);

    #[async_trait]
    impl Bound for Counted {
        async fn end(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_link_ends_when_it_is_replaced_removed_or_drained() {
        let key = |text: &str| text.parse().unwrap();
        let id = LinkId::new(&key("shop/worker"), &key("shop/broker"), &LinkName::default(), "wasi", "messaging", &[]);
        let (links, ended) = (Links::default(), Arc::new(AtomicUsize::new(0)));
        let ends = || ended.load(Ordering::Relaxed);
        assert_eq!(links.get(&id).err(), Some(format!("link {id} is not bound on this node")));
        links.bind(id.clone(), Counted(ended.clone())).await;
        links.bind(id.clone(), Counted(ended.clone())).await;
        assert_eq!(ends(), 1, "the one that was there");
        links.drain().await;
        assert!(ends() == 2 && links.get(&id).is_ok(), "what was granted stays");
        links.remove(&id).await;
        links.remove(&id).await;
        assert!(ends() == 3 && links.get(&id).is_err());
    }
}
