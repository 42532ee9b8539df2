//! The ledger of a stream: a JetStream key-value bucket beside it (`TRELLIS_LEDGER_<stream>`), in the same account and
//! domain. An entry of a consumer is one key: `<consumer>.<sequence>` holds what came of earlier deliveries of a message,
//! `<consumer>.x.<key>` what the engine keeps there. Nothing stays for longer than [`KEPT`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use trellis_provider::delivery::{Ledger, Trouble};

use crate::clock::ServerClock;
use crate::tail::tail;

/// How long ledger entries and dead letters are kept: 14 days.
pub(crate) const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Faults of one message whose text is kept, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
pub(crate) const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// Writings that are looked at for messages that a killed server may give out as if they were new: many times what it
/// forgets.
const NOTED_MAX: u64 = 10_000;
/// Keys in one list.
const KEYS_MAX: usize = 10_000;
/// The end of an entry before its value: milliseconds since 1970 by the server's clock, big-endian.
const END_BYTES: usize = 8;

/// The ledger of one consumer.
pub(crate) struct KvLedger {
    context: Context,
    stream: String,
    consumer: String,
    clock: Arc<ServerClock>,
    store: OnceCell<Store>,
}

/// What the ledger keeps of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) attempts: u32,
    pub(crate) faults: u32,
    pub(crate) kills: u32,
    /// Deliveries that are accounted for.
    pub(crate) settled: u64,
    pub(crate) fault_texts: Vec<String>,
}

impl Entry {
    /// The entry after an attempt that this delivery was for.
    pub(crate) fn after(self, attempt: u32, delivered: u64, fault: Option<&str>) -> Self {
        let mut entry = Self { attempts: attempt, settled: delivered, ..self };
        if let Some(fault) = fault {
            entry.faults = entry.faults.saturating_add(1);
            if entry.fault_texts.len() == FAULTS_KEPT_MAX {
                entry.fault_texts.remove(0);
            }
            entry.fault_texts.push(fault[..fault.floor_char_boundary(FAULT_BYTES_MAX)].to_owned());
        }
        entry
    }
}

impl KvLedger {
    pub(crate) fn new(context: Context, stream: String, consumer: String, clock: Arc<ServerClock>) -> Self {
        Self { context, stream, consumer, clock, store: OnceCell::new() }
    }

    async fn store(&self) -> Result<&Store, Trouble> {
        let make = async || {
            let bucket = format!("TRELLIS_LEDGER_{}", self.stream);
            if let Ok(store) = self.context.get_key_value(&bucket).await {
                return Ok(store);
            }
            let config = kv::Config { bucket: bucket.clone(), history: 1, max_age: KEPT, ..kv::Config::default() };
            self.context.create_key_value(config).await.map_err(|why| format!("the ledger `{bucket}`: {why}"))
        };
        self.store.get_or_try_init(make).await
    }

    fn key(&self, sequence: u64) -> String {
        format!("{}.{sequence}", self.consumer)
    }

    /// What is known of a message that was delivered before. Without a ledger: that it was.
    pub(crate) async fn entry(&self, sequence: u64, delivered: u64) -> Entry {
        let read = async {
            let store = self.store().await?;
            store.get(self.key(sequence)).await.map_err(|why| why.to_string())
        };
        match read.await {
            Ok(Some(bytes)) => postcard::from_bytes(&bytes).unwrap_or_default(),
            Ok(None) => Entry::default(),
            Err(why) => {
                tracing::warn!(stream = self.stream, why, "what became of earlier attempts cannot be read");
                let before = delivered.saturating_sub(1);
                Entry { attempts: u32::try_from(before).unwrap_or(u32::MAX), settled: before, ..Entry::default() }
            }
        }
    }

    /// The messages that were written of lately, of those that the consumer may still give out. What the ledger keeps of an
    /// earlier consumer of the name is of other messages.
    pub(crate) async fn noted(&self, consumer: &Info) -> Result<BTreeSet<u64>, Trouble> {
        let bucket = format!("TRELLIS_LEDGER_{}", self.stream);
        let filter = format!("$KV.{bucket}.{}.>", self.consumer);
        let mut noted = BTreeSet::new();
        for written in tail(&self.context, &format!("KV_{bucket}"), filter, NOTED_MAX).await? {
            let at = written.info().map_err(|why| self.failed(why))?.published;
            // A message's own entry is `<consumer>.<sequence>`, what the engine keeps of it has the sequence further on.
            let named = written.subject.split('.').skip(3).filter_map(|token| token.parse::<u64>().ok());
            noted.extend(
                named.filter(|sequence| at >= consumer.created && *sequence > consumer.ack_floor.stream_sequence),
            );
        }
        Ok(noted)
    }

    pub(crate) async fn put(&self, sequence: u64, entry: &Entry) -> Result<(), Trouble> {
        let bytes = postcard::to_stdvec(entry).expect("plain data can be written");
        let put = self.store().await?.put(self.key(sequence), bytes.into()).await;
        put.map(drop).map_err(|why| self.failed(why))
    }

    /// A message is gone, and with it what was known of it.
    pub(crate) async fn forget(&self, sequence: u64) {
        let Ok(store) = self.store().await else { return };
        if let Err(why) = store.purge(self.key(sequence)).await {
            // It goes by itself after `KEPT`.
            tracing::debug!(%why, "an entry of the ledger stays");
        }
    }

    fn failed(&self, why: impl std::fmt::Display) -> Trouble {
        format!("the ledger of stream `{}`: {why}", self.stream)
    }

    /// A key of the engine. Its segments are subject tokens, so that a prefix is a filter.
    fn own(&self, key: &str) -> String {
        format!("{}.x.{}", self.consumer, key.replace('/', "."))
    }

    /// What a key holds and which revision that is, whether or not it counts any more.
    async fn found(&self, key: &str) -> Result<Option<(u64, Option<Bytes>)>, Trouble> {
        let now_ms = self.clock.now_ms().await?;
        let entry = self.store().await?.entry(key).await.map_err(|why| self.failed(why))?;
        Ok(entry.map(|entry| match entry.operation {
            Operation::Put => (entry.revision, live(entry.value, now_ms)),
            Operation::Delete | Operation::Purge => (entry.revision, None),
        }))
    }
}

#[async_trait]
impl Ledger for KvLedger {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        Ok(self.found(&self.own(key)).await?.and_then(|(_, value)| value))
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        let (key, store) = (self.own(key), self.store().await?);
        let found = self.found(&key).await?;
        let (revision, value) = found.map_or((None, None), |(revision, value)| (Some(revision), value));
        if value.as_deref() != old {
            return Ok(false);
        }
        let (is_removed, new) = (new.is_none(), written(new, keep, self.clock.now_ms().await?));
        let Some(revision) = revision else {
            return match store.create(&key, new).await {
                Ok(_) => Ok(true),
                Err(why) if why.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(why) => Err(self.failed(why)),
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
            Err(why) => Err(self.failed(why)),
        }
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        let store = self.store().await?;
        let own = self.own("");
        let filter = format!("{}{}>", store.prefix, self.own(prefix));
        let mut listed = store.stream.info_with_subjects(filter).await.map_err(|why| self.failed(why))?;
        let mut keys = Vec::new();
        while let Some(subject) = listed.next().await {
            let (subject, _) = subject.map_err(|why| self.failed(why))?;
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
