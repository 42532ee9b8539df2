//! A component uses a JetStream key-value bucket.
//!
//! What must be atomic (increment, swap) reads the revision and writes on the condition that it still is the last, so
//! it holds against every other client of the bucket. Numbers are decimal text, which other clients can read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, KeyValueError};
use async_nats::jetstream::kv::{self, CreateErrorKind, Entry, EntryErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::{Mutex, OnceCell};
use trellis_provider::LinkError;
use trellis_wire::{CallError, Config, KeyValue, KeyValueAnswer, Link, pattern};

use crate::config::flag;
use crate::connection::{Connection, Connections};
use crate::entries;

/// How long one call may take, with all its requests.
const CALL_MAX: Duration = Duration::from_secs(30);
/// How often an increment or swap is tried while other clients write the same key.
const CAS_TRIES_MAX: u32 = 64;
/// The longest pause between two such tries.
const CAS_PAUSE_MAX: Duration = Duration::from_millis(20);
/// How many keys one page has.
const PAGE_KEYS_MAX: usize = 1000;
/// How many requests of one call are under way at once.
const PARALLEL_MAX: usize = 16;
/// Longest key, in bytes; as in `trellis://embedded`, like the bounds of a batch below, so that an app can move.
const KEY_BYTES_MAX: usize = 1_024;
/// Most keys in one batch call.
const BATCH_KEYS_MAX: usize = 1_000;
/// Most bytes of keys and values in one batch call, or in the answer to one: 16 MiB and a key.
const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024 + KEY_BYTES_MAX;
/// Increments of one key on one node wait for each other here instead of making each other try again.
const STRIPES: usize = 64;

/// A link that lets a component use one bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    connection: Arc<Connection>,
    name: String,
    domain: Option<String>,
    /// On how many servers it is made where there is none: the first of these that the system has. Empty: it is not made.
    create: Vec<usize>,
    store: OnceCell<Store>,
    /// Why the bucket could not be opened when that was last tried.
    trouble: StdMutex<Option<String>>,
    stripes: [Mutex<()>; STRIPES],
}

impl Bucket {
    /// A bucket of the lattice's own, which is made where there is none.
    pub(crate) async fn own(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let name = link.config.get("bucket").unwrap_or_default().to_owned();
        Ok(Self::new(connections.get(link).await?, name, None, vec![3, 1]))
    }

    /// Reads the link. A bucket that cannot be opened now is no error: each call tries again, and `health` says why.
    pub(crate) async fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let config = &link.config;
        let creates = flag(config, "create")? || flag(config, "enable_bucket_auto_create")?;
        let (name, domain, replicas) = (name(config)?, domain(link)?, replicas(config)?);
        let create = if creates { vec![replicas] } else { vec![] };
        let bucket = Self::new(connections.get(link).await?, name, domain, create);
        if bucket.connection.health().is_ok() {
            // What is wrong is kept for `health`, which is where people look.
            drop(bucket.connection.during(bucket.store()).await);
        }
        Ok(bucket)
    }

    fn new(connection: Arc<Connection>, name: String, domain: Option<String>, create: Vec<usize>) -> Self {
        Self {
            connection,
            name,
            domain,
            create,
            store: OnceCell::new(),
            trouble: StdMutex::default(),
            stripes: std::array::from_fn(|_| Mutex::default()),
        }
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.trouble.lock().expect("nothing panics while it holds the trouble").clone().map_or(Ok(()), Err)
    }

    pub(crate) async fn call(&self, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
        let answered = async { self.answer(self.store().await?, operation).await };
        match tokio::time::timeout(CALL_MAX, self.connection.during(answered)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::TimedOut(format!("bucket `{}` did not answer within {CALL_MAX:?}", self.name))),
        }
    }

    async fn answer(&self, store: &Store, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
        use KeyValueAnswer as A;
        Ok(match operation {
            KeyValue::Open => A::Done,
            KeyValue::Get(key) => A::Value(self.get(store, &key).await?),
            KeyValue::Exists(key) => A::Exists(self.get(store, &key).await?.is_some()),
            KeyValue::Set(key, value) => self.set(store, &key, value).await.map(|()| A::Done)?,
            KeyValue::Delete(key) => self.delete(store, &key).await.map(|()| A::Done)?,
            KeyValue::Keys { cursor } => self.keys(store, cursor).await?,
            KeyValue::Increment(key, delta) => A::Number(self.increment(store, &key, delta).await?),
            KeyValue::Swap { key, old, new } => A::Swapped(self.swap(store, &key, old, new).await?),
            KeyValue::GetMany(keys) => A::Values(self.get_many(store, keys).await?),
            KeyValue::SetMany(pairs) => {
                check_batch(pairs.len(), pairs.iter().map(|(key, value)| key.len() + value.len()).sum())?;
                // A key that comes twice is written once, with its last value: writes that run at once have no order.
                let pairs: BTreeMap<_, _> = pairs.into_iter().collect();
                let sets = futures::stream::iter(pairs).map(Ok);
                let set = |(key, value): (String, _)| async move { self.set(store, &key, value).await };
                sets.try_for_each_concurrent(PARALLEL_MAX, set).await.map(|()| A::Done)?
            }
            KeyValue::DeleteMany(keys) => {
                check_batch(keys.len(), keys.iter().map(String::len).sum())?;
                let deletes = futures::stream::iter(keys).map(Ok);
                let delete = |key: String| async move { self.delete(store, &key).await };
                deletes.try_for_each_concurrent(PARALLEL_MAX, delete).await.map(|()| A::Done)?
            }
        })
    }

    async fn get(&self, store: &Store, key: &str) -> Result<Option<Bytes>, CallError> {
        Ok(self.entry(store, key).await?.filter(is_there).map(|entry| entry.value))
    }

    /// In the order of the keys. What has come is counted as it comes, so that no more is held than the bound and what
    /// is under way.
    async fn get_many(&self, store: &Store, keys: Vec<String>) -> Result<Vec<(String, Option<Bytes>)>, CallError> {
        check_batch(keys.len(), keys.iter().map(String::len).sum())?;
        let asked = futures::stream::iter(keys).map(|key| async move {
            let value = self.get(store, &key).await?;
            Ok::<_, CallError>((key, value))
        });
        let mut coming = asked.buffered(PARALLEL_MAX);
        let (mut values, mut bytes) = (Vec::new(), 0);
        while let Some((key, value)) = coming.try_next().await? {
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            values.push((key, value));
            check_batch(values.len(), bytes)?;
        }
        Ok(values)
    }

    async fn entry(&self, store: &Store, key: &str) -> Result<Option<Entry>, CallError> {
        check_key(key)?;
        store.entry(key).await.map_err(|why| match why.kind() {
            EntryErrorKind::TimedOut => self.timed_out("reading", key),
            EntryErrorKind::InvalidKey | EntryErrorKind::Other => self.failed("reading", key, why),
        })
    }

    async fn set(&self, store: &Store, key: &str, value: Bytes) -> Result<(), CallError> {
        check_key(key)?;
        self.check_value(key, &value)?;
        store.put(key, value).await.map(drop).map_err(|why| self.failed("writing", key, why))
    }

    async fn delete(&self, store: &Store, key: &str) -> Result<(), CallError> {
        check_key(key)?;
        store.delete(key).await.map_err(|why| match why.kind() {
            UpdateErrorKind::TimedOut => self.timed_out("deleting", key),
            _ => self.failed("deleting", key, why),
        })
    }

    /// A page of keys in their order. All keys are looked at, but no more than a page is held.
    async fn keys(&self, store: &Store, cursor: Option<String>) -> Result<KeyValueAnswer, CallError> {
        let unlisted = |why: &dyn Display| CallError::Unavailable(format!("listing bucket `{}`: {why}", self.name));
        let mut all = store.keys().await.map_err(|why| unlisted(&why))?;
        let mut page = BTreeSet::new();
        let mut more = false;
        while let Some(key) = all.next().await {
            let key = key.map_err(|why| unlisted(&why))?;
            if cursor.as_ref().is_some_and(|cursor| key <= *cursor) {
                continue;
            }
            page.insert(key);
            if page.len() > PAGE_KEYS_MAX {
                page.pop_last();
                more = true;
            }
        }
        let cursor = page.last().filter(|_| more).cloned();
        Ok(KeyValueAnswer::Keys { keys: page.into_iter().collect(), cursor })
    }

    async fn increment(&self, store: &Store, key: &str, delta: i64) -> Result<i64, CallError> {
        check_key(key)?;
        let _alone = self.stripe(key).lock().await;
        for tries in 0..CAS_TRIES_MAX {
            let before = self.entry(store, key).await?;
            let number = match before.as_ref().filter(|entry| is_there(entry)) {
                Some(entry) => number(key, &entry.value)?,
                None => 0,
            };
            let sum = number.checked_add(delta).ok_or_else(|| {
                CallError::Invalid(format!("key `{key}` holds {number}: adding {delta} does not fit 64 bits"))
            })?;
            if self.replace(store, key, before.as_ref(), sum.to_string().into()).await? {
                return Ok(sum);
            }
            pause(tries).await;
        }
        Err(self.contended(key))
    }

    async fn swap(
        &self,
        store: &Store,
        key: &str,
        old: Option<Bytes>,
        new: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, CallError> {
        self.check_value(key, &new)?;
        for tries in 0..CAS_TRIES_MAX {
            let before = self.entry(store, key).await?;
            let held = before.as_ref().filter(|entry| is_there(entry)).map(|entry| entry.value.clone());
            if held != old {
                return Ok(Err(held));
            }
            if self.replace(store, key, before.as_ref(), new.clone()).await? {
                return Ok(Ok(()));
            }
            pause(tries).await;
        }
        Err(self.contended(key))
    }

    /// Writes if `before` still is the key's last entry, and returns whether it was. A write whose confirmation does
    /// not come is not tried again, because it may have happened.
    async fn replace(&self, store: &Store, key: &str, before: Option<&Entry>, value: Bytes) -> Result<bool, CallError> {
        let Some(before) = before else {
            return match store.create(key, value).await {
                Ok(_) => Ok(true),
                Err(why) if why.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(why) => Err(self.failed("writing", key, why)),
            };
        };
        match store.update(key, value, before.revision).await {
            Ok(_) => Ok(true),
            Err(why) => match why.kind() {
                UpdateErrorKind::WrongLastRevision => Ok(false),
                UpdateErrorKind::TimedOut => Err(self.timed_out("writing", key)),
                _ => Err(self.failed("writing", key, why)),
            },
        }
    }

    /// The bucket, opened or made at the first call that finds a server.
    async fn store(&self) -> Result<&Store, CallError> {
        let opened = self.store.get_or_try_init(|| self.find()).await;
        let trouble = opened.as_ref().err().map(ToString::to_string);
        *self.trouble.lock().expect("nothing panics while it holds the trouble") = trouble;
        opened
    }

    async fn find(&self) -> Result<Store, CallError> {
        let context = self.connection.jetstream(self.domain.as_deref());
        let name = &self.name;
        match context.get_key_value(name).await {
            Ok(store) => Ok(store),
            Err(why) if !is_missing(&why) => Err(CallError::Unavailable(format!("bucket `{name}`: {why}"))),
            Err(_) if self.create.is_empty() => Err(CallError::NoSuch(format!(
                "bucket `{name}` (write `create: \"true\"` in the link's config to make it)"
            ))),
            Err(_) => self.make(&context).await,
        }
    }

    async fn make(&self, context: &jetstream::Context) -> Result<Store, CallError> {
        let name = &self.name;
        let config = kv::Config { bucket: name.clone(), history: 1, ..kv::Config::default() };
        let made = entries::make(context, config, &self.create).await;
        made.map_err(|why| CallError::Unavailable(format!("bucket `{name}` could not be made: {why}")))
    }

    fn stripe(&self, key: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        &self.stripes[(hasher.finish() % STRIPES as u64) as usize]
    }

    fn check_value(&self, key: &str, value: &Bytes) -> Result<(), CallError> {
        let max = self.connection.client.max_payload();
        if value.len() > max {
            let bytes = value.len();
            return Err(CallError::Invalid(format!("the value of key `{key}` has {bytes} bytes; NATS takes {max}")));
        }
        Ok(())
    }

    fn failed(&self, doing: &str, key: &str, why: impl Display) -> CallError {
        CallError::Unavailable(format!("{doing} key `{key}` of bucket `{}`: {why}", self.name))
    }

    fn timed_out(&self, doing: &str, key: &str) -> CallError {
        CallError::TimedOut(format!("{doing} key `{key}` of bucket `{}`", self.name))
    }

    fn contended(&self, key: &str) -> CallError {
        let name = &self.name;
        CallError::Unavailable(format!("key `{key}` of bucket `{name}` was written by others {CAS_TRIES_MAX} times"))
    }
}

/// Whether a link says rightly which bucket it is. The server is not asked.
pub(crate) fn check(link: &Link) -> Result<(), LinkError> {
    let config = &link.config;
    flag(config, "create")?;
    flag(config, "enable_bucket_auto_create")?;
    name(config)?;
    domain(link)?;
    replicas(config).map(drop)
}

fn name(config: &Config) -> Result<String, LinkError> {
    const KEY: &str = "bucket";
    let name = config.get(KEY).ok_or_else(|| LinkError::config(KEY, "is missing: the name of a key-value bucket"))?;
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(LinkError::config(KEY, format!("`{name}`: a-z, A-Z, 0-9, `-` and `_` are allowed")));
    }
    // The lattice's own ledger lives in buckets and streams of this name.
    if name.starts_with("TRELLIS_") {
        return Err(LinkError::config(KEY, format!("`{name}`: names that begin with `TRELLIS_` are the lattice's")));
    }
    Ok(name.into())
}

/// A domain becomes a token of JetStream's own subjects. It may be a secret, so it is not shown.
pub(crate) fn domain(link: &Link) -> Result<Option<String>, LinkError> {
    const KEY: &str = "js_domain";
    let Some(domain) = link.secret(KEY) else { return Ok(None) };
    let domain = domain.expose();
    if pattern::check_literal(domain).is_err() || domain.contains('.') {
        return Err(LinkError::config(KEY, "is no JetStream domain: one word is expected"));
    }
    Ok(Some(domain.into()))
}

fn replicas(config: &Config) -> Result<usize, LinkError> {
    const KEY: &str = "replicas";
    match config.get(KEY).map_or(Ok(1), str::parse) {
        Ok(replicas @ 1..=5) => Ok(replicas),
        _ => Err(LinkError::config(KEY, "1 to 5 is expected: on how many servers a bucket that is made is kept")),
    }
}

/// The rule of NATS for keys (ADR-8). They are passed as they are, so that other clients find them.
fn check_key(key: &str) -> Result<(), CallError> {
    if key.len() > KEY_BYTES_MAX {
        let bytes = key.len();
        return Err(CallError::Invalid(format!(
            "a key of {bytes} bytes is too long; at most {KEY_BYTES_MAX} are taken"
        )));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b'=' | b'.');
    if key.bytes().all(allowed) && pattern::check_literal(key).is_ok() {
        return Ok(());
    }
    let rule = "a-z, A-Z, 0-9, `-`, `/`, `_` and `=` are allowed, in one or more tokens with a `.` between them";
    Err(CallError::Invalid(format!("`{key}` is no key of a NATS bucket: {rule}")))
}

fn check_batch(keys: usize, bytes: usize) -> Result<(), CallError> {
    if keys <= BATCH_KEYS_MAX && bytes <= BATCH_BYTES_MAX {
        return Ok(());
    }
    Err(CallError::Invalid(format!(
        "a batch of {keys} keys and {bytes} bytes is too large; at most {BATCH_KEYS_MAX} keys and {BATCH_BYTES_MAX} \
         bytes are taken: use several"
    )))
}

fn number(key: &str, value: &Bytes) -> Result<i64, CallError> {
    let text = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
    text.ok_or_else(|| {
        CallError::Invalid(format!("key `{key}` holds no decimal number, so nothing can be added to it"))
    })
}

/// Whether an entry is a value: a deleted key leaves an entry that says so.
fn is_there(entry: &Entry) -> bool {
    entry.operation == Operation::Put
}

fn is_missing(why: &KeyValueError) -> bool {
    let source = std::error::Error::source(why).and_then(|source| source.downcast_ref::<GetStreamError>());
    let Some(GetStreamErrorKind::JetStream(refused)) = source.map(GetStreamError::kind) else { return false };
    refused.error_code() == ErrorCode::STREAM_NOT_FOUND
}

/// Longer after each failed try, and never the same for two clients.
async fn pause(tries: u32) {
    let longest = CAS_PAUSE_MAX.min(Duration::from_millis(1) * 2_u32.saturating_pow(tries.min(8)));
    tokio::time::sleep(longest.mul_f64(rand::random())).await;
}

#[cfg(test)]
mod tests {
    use trellis_wire::Secret;

    use super::*;
    use crate::testing::link;

    #[test]
    fn a_key_that_nats_would_not_take_is_refused_with_the_rule() {
        for key in ["a", "a.b", "a/b=c_d-1"] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in ["", ".a", "a.", "a..b", "a b", "a*", "ä", "a:b"] {
            let why = check_key(key).unwrap_err().to_string();
            assert!(why.contains("no key of a NATS bucket"), "{why}");
        }
    }

    #[test]
    fn names_cannot_reach_into_the_lattice_or_the_server() {
        let read = |key: &str, value: &str| {
            let config = Config::from_iter([(key, value)]);
            (name(&config), domain(&link(config)))
        };
        assert!(read("bucket", "orders").0.is_ok());
        assert!(read("bucket", "TRELLIS_home_retries").0.is_err());
        assert!(read("bucket", "a.b").0.is_err());
        assert!(read("js_domain", "hub").1.is_ok());
        assert!(read("js_domain", "hub.API.>").1.is_err());
        let secret = |text: &str| [("js_domain", Secret::new(text))].into_iter().collect();
        let hub = Link { secrets: secret("hub"), ..link(Config::from_iter([("js_domain", "spoke")])) };
        assert_eq!(domain(&hub), Ok(Some("hub".into())), "a secret comes first");
        let why = domain(&Link { secrets: secret("hunter2.>"), ..hub }).unwrap_err().to_string();
        assert!(why.starts_with("config `js_domain`") && !why.contains("hunter2"), "{why}");
        assert!(replicas(&Config::from_iter([("replicas", "7")])).is_err());
    }
}
