//! Where the marks of timers are: a key-value store of the lattice's own, through whichever provider has it. JetStream
//! where there is one, else the node's own file.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use trellis_provider::delivery::Trouble;
use trellis_provider::{LinkError, Provider};
use trellis_wire::{Answer, Call, CallError, KeyValue, KeyValueAnswer, LinkId, frame};

/// Tries of a write that another one comes before.
const SWAP_TRIES_MAX: u32 = 20;

/// The ledger. Clones are the same.
#[derive(Clone)]
pub struct Ledger {
    provider: Arc<dyn Provider>,
    link: LinkId,
    opened: Arc<OnceCell<()>>,
    grant: Arc<Grant>,
}

/// Has the provider grant the link.
type Grant = dyn Fn() -> BoxFuture<'static, Result<(), LinkError>> + Send + Sync;

impl Ledger {
    /// The store of this link, which `grant` is called for with the first timer: a node without timers opens nothing.
    pub fn new(
        provider: Arc<dyn Provider>,
        link: LinkId,
        grant: impl Fn() -> BoxFuture<'static, Result<(), LinkError>> + Send + Sync + 'static,
    ) -> Self {
        Self { provider, link, opened: Arc::default(), grant: Arc::new(grant) }
    }

    /// Has the link granted, if it is not.
    pub(crate) async fn open(&self) -> Result<(), LinkError> {
        self.opened.get_or_try_init(|| (self.grant)()).await.copied()
    }

    /// Reads an entry, if there is one.
    pub(crate) async fn read<V: DeserializeOwned>(&self, key: &str) -> Result<Option<V>, Trouble> {
        self.stored(key).await?.map(|bytes| decoded(key, &bytes)).transpose()
    }

    /// Changes an entry, from what `begin` gives where there is none, and again from the beginning where another write
    /// came before: of two who write at the same time, both are heard. Gives what the entry is now, and what `change`
    /// came to.
    pub(crate) async fn change<V, T>(
        &self,
        key: &str,
        begin: impl Fn() -> V,
        change: impl Fn(&mut V) -> T,
    ) -> Result<(V, T), Trouble>
    where
        V: Serialize + DeserializeOwned + Clone + PartialEq,
    {
        for _ in 0..SWAP_TRIES_MAX {
            let stored = self.stored(key).await?;
            let before = stored.as_ref().map(|bytes| decoded(key, bytes)).transpose()?;
            let mut value = before.clone().unwrap_or_else(&begin);
            let came_to = change(&mut value);
            if before.as_ref() == Some(&value) || self.swap(key, stored, frame::encode(&value).into()).await? {
                return Ok((value, came_to));
            }
        }
        Err(format!("the ledger of timers: `{key}` was written by others {SWAP_TRIES_MAX} times"))
    }

    async fn stored(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        match self.call(KeyValue::Get(key.into())).await? {
            KeyValueAnswer::Value(value) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes `new` if the entry still is `old`. Whether it was.
    async fn swap(&self, key: &str, old: Option<Bytes>, new: Bytes) -> Result<bool, Trouble> {
        match self.call(KeyValue::Swap { key: key.into(), old, new }).await? {
            KeyValueAnswer::Swapped(done) => Ok(done.is_ok()),
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, operation: KeyValue) -> Result<KeyValueAnswer, Trouble> {
        let failed = |why: CallError| format!("the ledger of timers: {why}");
        match self.provider.call(&self.link, Call::KeyValue(operation)).await.map_err(failed)? {
            Answer::KeyValue(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ledger({})", self.link)
    }
}

fn decoded<V: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<V, Trouble> {
    frame::decode(bytes).map_err(|why| format!("the ledger of timers: `{key}`: {why}"))
}

fn unexpected(answer: &impl fmt::Debug) -> Trouble {
    format!("the ledger of timers gave an answer that does not fit: {answer:?}")
}
