//! A component uses the keys of a server, those that begin with `prefix` where the link has one.
//!
//! Values are strings of Redis as they are, so other clients read and write them; numbers are decimal text. What must be
//! atomic is one command or one script.

use std::sync::Arc;

use bytes::Bytes;
use redis::Script;
use trellis_provider::LinkError;
use trellis_wire::{CallError, KeyValue, KeyValueAnswer, Link};

use crate::config::Settings;
use crate::connection::{Connection, Connections};

/// Longest key, in bytes; as in `trellis://embedded`, like the bounds below, so that an app can move.
const KEY_BYTES_MAX: usize = 1_024;
/// Largest value, in bytes: 16 MiB.
const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most keys in one batch call.
const BATCH_KEYS_MAX: usize = 1_000;
/// Most bytes of keys and values in one batch call.
const BATCH_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX;
/// About how many keys the server looks at for one page.
const PAGE_KEYS: usize = 500;
/// How many pages without a key are looked at in one call.
const EMPTY_PAGES_MAX: usize = 1_000;

/// Writes a key if it holds what is expected. ARGV: `is` or `none`, what, what it becomes.
const SWAP: &str = "
local is = redis.call('GET', KEYS[1])
if ARGV[1] == 'is' and is ~= ARGV[2] or ARGV[1] == 'none' and is then return {0, is} end
redis.call('SET', KEYS[1], ARGV[3], 'KEEPTTL')
return {1, false}";

/// A link that lets a component use keys.
#[derive(Debug)]
pub(crate) struct Keys {
    connection: Arc<Connection>,
    prefix: String,
    swap: Script,
}

/// The server of a link, and what its keys begin with.
pub(crate) fn read(link: &Link) -> Result<(Settings, String), LinkError> {
    let prefix = link.config.get("prefix").unwrap_or_default().to_owned();
    if prefix.len() > KEY_BYTES_MAX {
        return Err(LinkError::config("prefix", format!("is longer than {KEY_BYTES_MAX} bytes")));
    }
    Ok((Settings::read(link)?, prefix))
}

impl Keys {
    pub(crate) fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let (settings, prefix) = read(link)?;
        let connection = connections.get(&settings)?;
        Ok(Self { connection, prefix, swap: Script::new(SWAP) })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()
    }

    pub(crate) async fn call(&self, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
        use KeyValueAnswer as A;
        Ok(match operation {
            KeyValue::Open => A::Done,
            KeyValue::Get(key) => A::Value(self.get(&key).await?),
            KeyValue::Exists(key) => A::Exists(self.send("EXISTS", [self.key(&key)?]).await?),
            KeyValue::Set(key, value) => self.set(vec![(key, value)]).await?,
            KeyValue::SetMany(pairs) => self.set(pairs).await?,
            KeyValue::Delete(key) => self.delete(vec![key]).await?,
            KeyValue::DeleteMany(keys) => self.delete(keys).await?,
            KeyValue::GetMany(keys) => A::Values(self.get_many(keys).await?),
            KeyValue::Keys { cursor } => self.keys(cursor).await?,
            KeyValue::Increment(key, delta) => A::Number(self.increment(&key, delta).await?),
            KeyValue::Swap { key, old, new } => A::Swapped(self.swap(&key, old, new).await?),
        })
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, CallError> {
        let value: Option<Vec<u8>> = self.send("GET", [self.key(key)?]).await?;
        Ok(value.map(Into::into))
    }

    async fn get_many(&self, keys: Vec<String>) -> Result<Vec<(String, Option<Bytes>)>, CallError> {
        check_batch(keys.len(), keys.iter().map(String::len).sum())?;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>, _>>()?;
        let values: Vec<Option<Vec<u8>>> = self.send("MGET", wanted).await?;
        let found: Vec<_> = keys.into_iter().zip(values.into_iter().map(|value| value.map(Bytes::from))).collect();
        let bytes = found.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum();
        check_batch(found.len(), bytes)?;
        Ok(found)
    }

    async fn set(&self, pairs: Vec<(String, Bytes)>) -> Result<KeyValueAnswer, CallError> {
        check_batch(pairs.len(), pairs.iter().map(|(key, value)| key.len() + value.len()).sum())?;
        let mut set = redis::cmd("MSET");
        for (key, value) in &pairs {
            check_value(key, value)?;
            set.arg(self.key(key)?).arg(&value[..]);
        }
        if !pairs.is_empty() {
            self.connection.send::<()>(&set).await?;
        }
        Ok(KeyValueAnswer::Done)
    }

    async fn delete(&self, keys: Vec<String>) -> Result<KeyValueAnswer, CallError> {
        check_batch(keys.len(), keys.iter().map(String::len).sum())?;
        let keys = keys.iter().map(|key| self.key(key)).collect::<Result<Vec<_>, _>>()?;
        if !keys.is_empty() {
            self.send::<i64>("DEL", keys).await?;
        }
        Ok(KeyValueAnswer::Done)
    }

    /// A page in the server's order. A key that is there all the while comes at least once, as SCAN promises.
    async fn keys(&self, cursor: Option<String>) -> Result<KeyValueAnswer, CallError> {
        let mut cursor = match &cursor {
            None => 0,
            Some(text) => text.parse::<u64>().map_err(|_| CallError::Invalid(format!("`{text}` is no cursor")))?,
        };
        let pattern = escaped(&self.prefix) + "*";
        for _ in 0..EMPTY_PAGES_MAX {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE_KEYS);
            let (next, found): (u64, Vec<Vec<u8>>) = self.connection.send(&scan).await?;
            cursor = next;
            // A key of another program that is no UTF-8 cannot be named by a component.
            let found = found.into_iter().filter_map(|key| String::from_utf8(key).ok());
            let mut keys: Vec<_> =
                found.filter(|key| !is_ours(key)).map(|key| key[self.prefix.len()..].to_owned()).collect();
            keys.sort();
            keys.dedup();
            if !keys.is_empty() || cursor == 0 {
                return Ok(KeyValueAnswer::Keys { keys, cursor: (cursor != 0).then(|| cursor.to_string()) });
            }
        }
        Ok(KeyValueAnswer::Keys { keys: Vec::new(), cursor: Some(cursor.to_string()) })
    }

    async fn increment(&self, key: &str, delta: i64) -> Result<i64, CallError> {
        let mut add = redis::cmd("INCRBY");
        add.arg(self.key(key)?).arg(delta);
        match self.connection.send(&add).await {
            Ok(sum) => Ok(sum),
            Err(why) if why.to_string().contains("not an integer") => {
                let problem = format!("key `{key}` holds no decimal number of 64 bits, so nothing can be added to it");
                Err(CallError::Invalid(problem))
            }
            Err(why) => Err(why.into()),
        }
    }

    async fn swap(&self, key: &str, old: Option<Bytes>, new: Bytes) -> Result<Result<(), Option<Bytes>>, CallError> {
        check_value(key, &new)?;
        let mut swap = self.swap.key(self.key(key)?);
        let old_is = if old.is_some() { "is" } else { "none" };
        swap.arg(old_is).arg(&old.unwrap_or_default()[..]).arg(&new[..]);
        let (swapped, is): (bool, Option<Vec<u8>>) = self.connection.run(&swap).await?;
        Ok(if swapped { Ok(()) } else { Err(is.map(Into::into)) })
    }

    async fn send<T: redis::FromRedisValue>(
        &self,
        command: &str,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<T, CallError> {
        let mut send = redis::cmd(command);
        for key in keys {
            send.arg(key);
        }
        Ok(self.connection.send(&send).await?)
    }

    /// A key as the server knows it.
    fn key(&self, key: &str) -> Result<String, CallError> {
        let whole = format!("{}{key}", self.prefix);
        if key.is_empty() || whole.len() > KEY_BYTES_MAX {
            let bytes = whole.len();
            let problem = format!("a key of {bytes} bytes with its prefix: 1 to {KEY_BYTES_MAX} are taken");
            return Err(CallError::Invalid(problem));
        }
        if is_ours(&whole) {
            return Err(CallError::Denied(format!("key `{whole}`: keys that begin with `trellis:` hold the ledgers")));
        }
        Ok(whole)
    }
}

/// Whether a key is a ledger's.
fn is_ours(key: &str) -> bool {
    key.starts_with("trellis:")
}

/// A text that stands for itself in a pattern.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, c| {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
        escaped
    })
}

fn check_value(key: &str, value: &Bytes) -> Result<(), CallError> {
    if value.len() > VALUE_BYTES_MAX {
        let bytes = value.len();
        let problem = format!("the value of key `{key}` has {bytes} bytes; at most {VALUE_BYTES_MAX} are taken");
        return Err(CallError::Invalid(problem));
    }
    Ok(())
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
