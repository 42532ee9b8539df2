//! The ledger of a stream: a JetStream key-value bucket beside it (`TRELLIS_LEDGER_<stream>`), in the same account and
//! domain. An entry of a consumer is one key: `<consumer>.<sequence>` holds what came of earlier deliveries of a message,
//! `<consumer>.r<sequence>` of one that is replayed to an ordered link (`replays.rs`), `<consumer>.x.<key>` what the engine
//! keeps there (`entries.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::Info;
use serde::{Deserialize, Serialize};
use trellis_provider::delivery::Trouble;

use crate::clock::ServerClock;
use crate::entries::{Bucket, Entries};
use crate::tail::tail;

/// Faults of one message whose text is kept, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
pub(crate) const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// Writings that are looked at for messages that a killed server may give out as if they were new: many times what it
/// forgets.
const NOTED_MAX: u64 = 10_000;

/// The ledger of one consumer.
pub(crate) struct KvLedger {
    bucket: Arc<Bucket>,
    consumer: String,
    /// What the engine keeps.
    pub(crate) entries: Entries,
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
    /// Of a message that was taken off: whatever is delivered of it is accounted for.
    pub(crate) fn done() -> Self {
        Self { settled: u64::MAX, ..Self::default() }
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.settled == u64::MAX
    }

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
    pub(crate) fn new(context: Context, stream: &str, consumer: String, clock: Arc<ServerClock>) -> Self {
        let bucket = Arc::new(Bucket::new(context, format!("TRELLIS_LEDGER_{stream}"), clock));
        let entries = Entries::new(&bucket, format!("{consumer}.x"));
        Self { bucket, consumer, entries }
    }

    fn key(&self, message: &str) -> String {
        format!("{}.{message}", self.consumer)
    }

    /// What is known of a message that was delivered before. Without a ledger: that it was.
    pub(crate) async fn entry(&self, message: &str, delivered: u64) -> Entry {
        let read = async {
            let store = self.bucket.store().await?;
            store.get(self.key(message)).await.map_err(|why| why.to_string())
        };
        match read.await {
            Ok(Some(bytes)) => postcard::from_bytes(&bytes).unwrap_or_default(),
            Ok(None) => Entry::default(),
            Err(why) => {
                tracing::warn!(bucket = self.bucket.name, why, "what became of earlier attempts cannot be read");
                let before = delivered.saturating_sub(1);
                Entry { attempts: u32::try_from(before).unwrap_or(u32::MAX), settled: before, ..Entry::default() }
            }
        }
    }

    /// The messages that were written of lately, of those that the consumer may still give out. What the ledger keeps of an
    /// earlier consumer of the name is of other messages.
    pub(crate) async fn noted(&self, consumer: &Info) -> Result<BTreeSet<u64>, Trouble> {
        let Bucket { context, name: bucket, .. } = &*self.bucket;
        let filter = format!("$KV.{bucket}.{}.>", self.consumer);
        let mut noted = BTreeSet::new();
        for written in tail(context, &format!("KV_{bucket}"), filter, NOTED_MAX).await? {
            let at = written.info().map_err(|why| self.bucket.failed(why))?.published;
            // A message's own entry is `<consumer>.<sequence>`, what the engine keeps of it has the sequence further on.
            let named = written.subject.split('.').skip(3).filter_map(|token| token.parse::<u64>().ok());
            noted.extend(
                named.filter(|sequence| at >= consumer.created && *sequence > consumer.ack_floor.stream_sequence),
            );
        }
        Ok(noted)
    }

    pub(crate) async fn put(&self, message: &str, entry: &Entry) -> Result<(), Trouble> {
        let bytes = postcard::to_stdvec(entry).expect("plain data can be written");
        let put = self.bucket.store().await?.put(self.key(message), bytes.into()).await;
        put.map(drop).map_err(|why| self.bucket.failed(why))
    }

    /// A message is gone, and with it what was known of it.
    pub(crate) async fn forget(&self, message: &str) {
        let Ok(store) = self.bucket.store().await else { return };
        if let Err(why) = store.purge(self.key(message)).await {
            // It goes by itself after `KEPT`.
            tracing::debug!(%why, "an entry of the ledger stays");
        }
    }
}
