//! Small entries by key in a JetStream key-value bucket: `<owner>.<key>`. Each says itself until when it counts, by the
//! server's clock; none stays for longer than [`KEPT`].

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::OnceCell;
use trellis_provider::delivery::{Ledger, Trouble};

use crate::clock::ServerClock;

/// How long ledger entries and dead letters are kept: 14 days.
pub(crate) const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Keys in one list.
const KEYS_MAX: usize = 10_000;
/// On how many servers is kept what must not be lost: the first of these that the system has.
pub(crate) const REPLICAS: &[usize] = &[3, 1];
/// The end of an entry before its value: milliseconds since 1970 by the server's clock, big-endian.
const END_BYTES: usize = 8;

/// A bucket for entries, which is made with the first.
pub(crate) struct Bucket {
    pub(crate) context: Context,
    pub(crate) name: String,
    clock: Arc<ServerClock>,
    store: OnceCell<Store>,
}

impl Bucket {
    /// One whose entries end by this clock.
    pub(crate) fn new(context: Context, name: String, clock: Arc<ServerClock>) -> Self {
        Self { context, name, clock, store: OnceCell::new() }
    }

    pub(crate) async fn store(&self) -> Result<&Store, Trouble> {
        self.store.get_or_try_init(|| self.find()).await
    }

    async fn find(&self) -> Result<Store, Trouble> {
        if let Ok(store) = self.context.get_key_value(&self.name).await {
            return Ok(store);
        }
        let config = kv::Config { bucket: self.name.clone(), history: 1, max_age: KEPT, ..kv::Config::default() };
        make(&self.context, config, REPLICAS).await.map_err(|why| self.failed(why))
    }

    pub(crate) fn failed(&self, why: impl std::fmt::Display) -> Trouble {
        format!("the ledger `{}`: {why}", self.name)
    }
}

/// Makes a bucket on the first of so many servers that the system has.
pub(crate) async fn make(context: &Context, config: kv::Config, replicas: &[usize]) -> Result<Store, String> {
    let mut refused = String::new();
    for &num_replicas in replicas {
        match context.create_key_value(kv::Config { num_replicas, ..config.clone() }).await {
            Ok(store) => return Ok(store),
            Err(why) => refused = why.to_string(),
        }
    }
    Err(refused)
}

/// The entries of one owner.
pub(crate) struct Entries {
    bucket: Arc<Bucket>,
    owner: String,
}

impl Entries {
    /// Those of the owner of this name, which is one subject token or several.
    pub(crate) fn new(bucket: &Arc<Bucket>, owner: String) -> Self {
        Self { bucket: bucket.clone(), owner }
    }

    /// A key in the bucket. Its segments are subject tokens, so that a prefix is a filter.
    fn own(&self, key: &str) -> String {
        format!("{}.{}", self.owner, key.replace('/', "."))
    }

    /// What a key holds and which revision that is, whether or not it counts any more.
    async fn found(&self, key: &str) -> Result<Option<(u64, Option<Bytes>)>, Trouble> {
        let store = self.bucket.store().await?;
        let now_ms = self.bucket.clock.now_ms().await?;
        let entry = store.entry(key).await.map_err(|why| self.bucket.failed(why))?;
        Ok(entry.map(|entry| match entry.operation {
            Operation::Put => (entry.revision, live(entry.value, now_ms)),
            Operation::Delete | Operation::Purge => (entry.revision, None),
        }))
    }
}

#[async_trait]
impl Ledger for Entries {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        Ok(self.found(&self.own(key)).await?.and_then(|(_, value)| value))
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        let (key, store) = (self.own(key), self.bucket.store().await?);
        let found = self.found(&key).await?;
        let (revision, value) = found.map_or((None, None), |(revision, value)| (Some(revision), value));
        if value.as_deref() != old {
            return Ok(false);
        }
        let (is_removed, new) = (new.is_none(), written(new, keep, self.bucket.clock.now_ms().await?));
        let Some(revision) = revision else {
            return match store.create(&key, new).await {
                Ok(_) => Ok(true),
                Err(why) if why.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(why) => Err(self.bucket.failed(why)),
            };
        };
        match store.update(&key, new, revision).await {
            Ok(revision) if is_removed => {
                // It counts no more as it is. Whoever writes it anew meanwhile is left alone.
                let _ = store.purge_expect_revision(&key, Some(revision)).await;
                Ok(true)
            }
            Ok(_) => Ok(true),
            Err(why) if why.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(why) => Err(self.bucket.failed(why)),
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let store = self.bucket.store().await?;
        let own = self.own("");
        let filter = format!("{}{}>", store.prefix, self.own(prefix));
        let mut listed = store.stream.info_with_subjects(filter).await.map_err(|why| self.bucket.failed(why))?;
        let mut keys = Vec::new();
        while let Some(subject) = listed.next().await {
            let (subject, _) = subject.map_err(|why| self.bucket.failed(why))?;
            let Some(key) = subject.strip_prefix(&store.prefix).and_then(|key| key.strip_prefix(&own)) else {
                continue;
            };
            let key = key.replace('.', "/");
            if self.read(&key).await?.is_some() {
                keys.push(key);
            }
            if keys.len() == KEYS_MAX {
                break;
            }
        }
        keys.sort();
        Ok(keys)
    }
}

/// The value of an entry that has not ended.
fn live(entry: Bytes, now_ms: u64) -> Option<Bytes> {
    let (ends, _) = entry.split_first_chunk::<END_BYTES>()?;
    (u64::from_be_bytes(*ends) > now_ms).then(|| entry.slice(END_BYTES..))
}

/// An entry as it is stored. One that is removed has ended.
fn written(value: Option<&[u8]>, keep: Duration, now_ms: u64) -> Bytes {
    let keep_ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
    let ends = if value.is_some() { now_ms.saturating_add(keep_ms) } else { 0 };
    [&ends.to_be_bytes(), value.unwrap_or_default()].concat().into()
}
