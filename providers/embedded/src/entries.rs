//! Ledgers: small entries by key, beside a queue, or for a queue of another technology.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use trellis_provider::Ledgers;
use trellis_provider::delivery::{Ledger, Trouble};

use crate::Embedded;
use crate::queue::{self, Change, Changed};
use crate::store::Store;

/// Begins the name of a ledger that stands beside no queue of ours: no subject has a space, so that no queue is called so.
const MARK: char = ' ';

/// The ledger of this name.
pub(crate) struct Entries {
    store: Arc<Store>,
    of: Arc<str>,
}

impl Entries {
    pub(crate) fn new(store: &Arc<Store>, of: &Arc<str>) -> Self {
        Self { store: store.clone(), of: of.clone() }
    }
}

#[async_trait]
impl Ledger for Entries {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        let entry = self.store.look(|snapshot| queue::entry(snapshot, &self.of, key, self.store.now_ms()));
        entry.map_err(|why| why.to_string())
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        let change = Change::Swap {
            queue: self.of.clone(),
            key: key.into(),
            old: old.map(<[u8]>::to_vec),
            new: new.map(<[u8]>::to_vec),
            keep_ms: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
            now_ms: self.store.now_ms(),
        };
        match self.store.change(change).await.map_err(|why| why.to_string())? {
            Changed::Swapped(swapped) => Ok(swapped),
            other => Err(format!("a swap came to {other:?}")),
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let keys = self.store.look(|snapshot| queue::keys(snapshot, &self.of, prefix, self.store.now_ms()));
        keys.map_err(|why| why.to_string())
    }
}

#[async_trait]
impl Ledgers for Embedded {
    fn ledger(&self, name: &str) -> Arc<dyn Ledger> {
        Arc::new(Entries::new(&self.store, &format!("{MARK}{name}").into()))
    }

    async fn missing(&self) -> Result<Option<String>, Trouble> {
        Ok(None)
    }
}
