//! The ledger of a link. RabbitMQ has no place for small entries by key, so the lattice keeps it.
//!
//! Where the lattice has no place for one either, a link goes without, unless it asks for what needs one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use trellis_provider::Ledgers;
use trellis_provider::delivery::{Ledger, Trouble};
use trellis_wire::{Delivery, Link};
use uuid::Uuid;

use crate::config::Settings;

/// What the lattice keeps of one link.
pub(crate) struct Kept {
    ledgers: Arc<dyn Ledgers>,
    ledger: Arc<dyn Ledger>,
    /// What the link asks for that needs it.
    needed_for: Option<&'static str>,
    /// Why there is none, once that is known.
    missing: OnceCell<Option<String>>,
}

impl Kept {
    /// That of a link's component and a queue. Nothing is asked yet.
    pub(crate) fn new(ledgers: &Arc<dyn Ledgers>, settings: &Settings, queue: &str, link: &Link) -> Self {
        let of = ["rabbitmq", &link.component.to_string(), &settings.shown(), queue].join("\n");
        let ledger = ledgers.ledger(&Uuid::new_v5(&Uuid::NAMESPACE_OID, of.as_bytes()).to_string());
        let (needed_for, missing) = (needed_for(&link.delivery), OnceCell::new());
        Self { ledgers: ledgers.clone(), ledger, needed_for, missing }
    }

    /// Whether the link can be pulled for.
    pub(crate) async fn find(&self) -> Result<(), Trouble> {
        match (self.missing().await, self.needed_for) {
            (Ok(None), _) => Ok(()),
            (Ok(Some(why)), Some(key)) => {
                Err(format!("`{key}` needs a ledger, and {why}: give it JetStream, or take `{key}` out of the link"))
            }
            (Err(why), Some(key)) => Err(format!("`{key}` needs the ledger of the lattice: {why}")),
            // Whoever needs it later finds it, or is told.
            (Ok(Some(_)) | Err(_), None) => Ok(()),
        }
    }

    /// The ledger, unless it is known that there is none.
    pub(crate) fn ledger(&self) -> Option<&dyn Ledger> {
        let is_missing = matches!(self.missing.get(), Some(Some(_)));
        (!is_missing).then_some(self)
    }

    /// Has an entry be this, or none.
    pub(crate) async fn put(&self, key: &str, new: Option<&[u8]>, keep: Duration) -> Result<(), Trouble> {
        let held = self.read(key).await?;
        if held.as_deref() == new || self.swap(key, held.as_deref(), new, keep).await? {
            return Ok(());
        }
        Err(format!("`{key}` of the ledger is being written by another"))
    }

    async fn missing(&self) -> Result<&Option<String>, Trouble> {
        self.missing.get_or_try_init(|| self.ledgers.missing()).await
    }

    /// The ledger, once it is known to be there.
    async fn found(&self) -> Result<&dyn Ledger, Trouble> {
        match self.missing().await? {
            None => Ok(&*self.ledger),
            Some(why) => Err(why.clone()),
        }
    }
}

#[async_trait]
impl Ledger for Kept {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        self.found().await?.read(key).await
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        self.found().await?.swap(key, old, new, keep).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        self.found().await?.keys(prefix).await
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({:?})", self.missing.get())
    }
}

/// What a policy asks for that needs a ledger.
fn needed_for(policy: &Delivery) -> Option<&'static str> {
    let ordered = policy.order_by.is_some().then_some("delivery.order_by");
    ordered.or_else(|| policy.dedupe.is_some().then_some("delivery.dedupe"))
}
