//! What each key-value operation means, on an open table. Nothing here knows of files, threads or transactions.
//!
//! One table holds every store, ordered by (store, key), so that a store costs nothing until it has a key, and a page
//! of its keys is one range.

use std::ops::Bound;

use bytes::Bytes;
use redb::{ReadableTable, StorageError, Table, TableDefinition};
use trellis_wire::{CallError, KeyValue, KeyValueAnswer};

/// Longest key, in bytes. NATS and Redis take such keys too, so an app can move.
pub const KEY_BYTES_MAX: usize = 1_024;
/// Largest value, in bytes: 16 MiB. A store in NATS holds 1 MiB at most.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most keys in one batch call.
pub const BATCH_KEYS_MAX: usize = 1_000;
/// Most bytes of keys and values in one batch call, or in the answer to one.
pub const BATCH_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX;
/// Keys in one page.
const PAGE_KEYS: usize = 1_000;

/// (store, key) -> value.
pub(crate) const TABLE: TableDefinition<'static, (&str, &str), &[u8]> = TableDefinition::new("keyvalue");

/// An operation by what it needs: nothing, a read, or the writer.
#[derive(Debug, PartialEq)]
pub(crate) enum Operation {
    Open,
    Read(Read),
    Write(Write),
}

/// Runs on a snapshot, beside the writer.
#[derive(Debug, PartialEq)]
pub(crate) enum Read {
    Get(String),
    Exists(String),
    Keys { cursor: Option<String> },
    GetMany(Vec<String>),
}

/// Runs in the writer. Each checks everything before it changes anything, since its neighbours share its transaction.
#[derive(Debug, PartialEq)]
pub(crate) enum Write {
    Set(Vec<(String, Bytes)>),
    Delete(Vec<String>),
    Increment(String, i64),
    Swap { key: String, old: Option<Bytes>, new: Bytes },
}

impl Operation {
    /// Sorts an operation and checks its bounds.
    pub(crate) fn new(operation: KeyValue) -> Result<Self, CallError> {
        let sorted = match operation {
            KeyValue::Open => return Ok(Self::Open),
            KeyValue::Get(key) => Self::Read(Read::Get(key)),
            KeyValue::Exists(key) => Self::Read(Read::Exists(key)),
            KeyValue::Keys { cursor } => Self::Read(Read::Keys { cursor }),
            KeyValue::GetMany(keys) => Self::Read(Read::GetMany(keys)),
            KeyValue::Set(key, value) => Self::Write(Write::Set(vec![(key, value)])),
            KeyValue::SetMany(pairs) => Self::Write(Write::Set(pairs)),
            KeyValue::Delete(key) => Self::Write(Write::Delete(vec![key])),
            KeyValue::DeleteMany(keys) => Self::Write(Write::Delete(keys)),
            KeyValue::Increment(key, delta) => Self::Write(Write::Increment(key, delta)),
            KeyValue::Swap { key, old, new } => Self::Write(Write::Swap { key, old, new }),
        };
        sorted.check()?;
        Ok(sorted)
    }

    fn check(&self) -> Result<(), CallError> {
        match self {
            Self::Open | Self::Read(Read::Keys { .. }) => Ok(()),
            Self::Read(Read::Get(key) | Read::Exists(key)) | Self::Write(Write::Increment(key, _)) => check_key(key),
            Self::Read(Read::GetMany(keys)) | Self::Write(Write::Delete(keys)) => {
                check_batch(keys.len(), keys.iter().map(String::len).sum())?;
                keys.iter().try_for_each(|key| check_key(key))
            }
            Self::Write(Write::Set(pairs)) => {
                pairs.iter().try_for_each(|(key, value)| check_key(key).and_then(|()| check_value(key, value)))?;
                check_batch(pairs.len(), pairs.iter().map(|(key, value)| key.len() + value.len()).sum())
            }
            Self::Write(Write::Swap { key, old, new }) => {
                check_key(key)?;
                old.iter().chain([new]).try_for_each(|value| check_value(key, value))
            }
        }
    }
}

impl Write {
    /// What it holds in memory while it waits.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Set(pairs) => pairs.iter().map(|(key, value)| key.len() + value.len()).sum(),
            Self::Delete(keys) => keys.iter().map(String::len).sum(),
            Self::Increment(key, _) => key.len(),
            Self::Swap { key, old, new } => key.len() + old.as_ref().map_or(0, Bytes::len) + new.len(),
        }
    }
}

fn check_key(key: &str) -> Result<(), CallError> {
    match key.len() {
        0 => Err(CallError::Invalid("a key may not be empty".into())),
        1..=KEY_BYTES_MAX => Ok(()),
        long => {
            Err(CallError::Invalid(format!("a key of {long} bytes is too long; at most {KEY_BYTES_MAX} are taken")))
        }
    }
}

fn check_value(key: &str, value: &Bytes) -> Result<(), CallError> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    let bytes = value.len();
    Err(CallError::Invalid(format!(
        "the value of `{key}` has {bytes} bytes; at most {VALUE_BYTES_MAX} are taken: store it in pieces"
    )))
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

/// What an operation comes to: the answer or the caller's mistake, unless the storage fails.
pub(crate) type Answered = Result<Result<KeyValueAnswer, CallError>, StorageError>;

/// Carries out a read.
pub(crate) fn read(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    store: &str,
    read: Read,
) -> Answered {
    let get = |key: &str| -> Result<Option<Bytes>, StorageError> {
        Ok(table.get((store, key))?.map(|value| Bytes::copy_from_slice(value.value())))
    };
    Ok(match read {
        Read::Get(key) => Ok(KeyValueAnswer::Value(get(&key)?)),
        Read::Exists(key) => Ok(KeyValueAnswer::Exists(table.get((store, key.as_str()))?.is_some())),
        Read::Keys { cursor } => Ok(page(table, store, cursor.as_deref())?),
        Read::GetMany(keys) => {
            let (mut values, mut bytes) = (Vec::with_capacity(keys.len()), 0);
            for key in keys {
                let value = get(&key)?;
                bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                values.push((key, value));
                if let Err(too_large) = check_batch(values.len(), bytes) {
                    return Ok(Err(too_large));
                }
            }
            Ok(KeyValueAnswer::Values(values))
        }
    })
}

/// Up to [`PAGE_KEYS`] keys after `cursor`, which is the last key of the page before.
fn page(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    store: &str,
    cursor: Option<&str>,
) -> Result<KeyValueAnswer, StorageError> {
    // No key is empty, so the empty one is before all of a store's keys.
    let after = Bound::Excluded((store, cursor.unwrap_or_default()));
    let mut keys = Vec::new();
    for entry in table.range::<(&str, &str)>((after, Bound::Unbounded))? {
        let (at, _) = entry?;
        let (of, key) = at.value();
        if of != store {
            break;
        }
        if keys.len() == PAGE_KEYS {
            let cursor = keys.last().cloned();
            return Ok(KeyValueAnswer::Keys { keys, cursor });
        }
        keys.push(key.to_owned());
    }
    Ok(KeyValueAnswer::Keys { keys, cursor: None })
}

/// Carries out a write in the open transaction.
pub(crate) fn write(
    table: &mut Table<'_, (&'static str, &'static str), &'static [u8]>,
    store: &str,
    write: &Write,
) -> Answered {
    match write {
        Write::Set(pairs) => {
            for (key, value) in pairs {
                table.insert((store, key.as_str()), value.as_ref())?;
            }
            Ok(Ok(KeyValueAnswer::Done))
        }
        Write::Delete(keys) => {
            for key in keys {
                table.remove((store, key.as_str()))?;
            }
            Ok(Ok(KeyValueAnswer::Done))
        }
        Write::Increment(key, delta) => {
            let sum = table.get((store, key.as_str()))?.map_or(Ok(*delta), |held| add(key, held.value(), *delta));
            match sum {
                Ok(sum) => {
                    table.insert((store, key.as_str()), sum.to_string().as_bytes())?;
                    Ok(Ok(KeyValueAnswer::Number(sum)))
                }
                Err(why) => Ok(Err(why)),
            }
        }
        Write::Swap { key, old, new } => {
            let held = table.get((store, key.as_str()))?.map(|held| Bytes::copy_from_slice(held.value()));
            if held != *old {
                return Ok(Ok(KeyValueAnswer::Swapped(Err(held))));
            }
            table.insert((store, key.as_str()), new.as_ref())?;
            Ok(Ok(KeyValueAnswer::Swapped(Ok(()))))
        }
    }
}

/// Adds to a number in decimal text: that is what Redis and people read.
fn add(key: &str, held: &[u8], delta: i64) -> Result<i64, CallError> {
    let number: i64 = str::from_utf8(held).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        CallError::Invalid(format!(
            "`{key}` does not hold a decimal number within 64 bits, so it cannot be incremented"
        ))
    })?;
    number.checked_add(delta).ok_or_else(|| {
        CallError::Invalid(format!("`{key}` holds {number}; adding {delta} goes beyond a signed 64-bit number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_before_anything_is_stored() {
        let invalid = |operation| matches!(Operation::new(operation), Err(CallError::Invalid(_)));
        assert!(invalid(KeyValue::Get(String::new())));
        assert!(invalid(KeyValue::Delete("k".repeat(KEY_BYTES_MAX + 1))));
        assert!(invalid(KeyValue::Set("k".into(), vec![0; VALUE_BYTES_MAX + 1].into())));
        assert!(invalid(KeyValue::GetMany(vec!["k".into(); BATCH_KEYS_MAX + 1])));
        let large: Bytes = vec![0; VALUE_BYTES_MAX + 1].into();
        assert!(invalid(KeyValue::Swap { key: "k".into(), old: Some(large), new: "1".into() }));
        let swap = Write::Swap { key: "k".into(), old: Some("old".into()), new: "new".into() };
        assert_eq!(swap.bytes(), "koldnew".len());
        let half = Bytes::from(vec![0; VALUE_BYTES_MAX / 2 + KEY_BYTES_MAX]);
        assert!(invalid(KeyValue::SetMany(vec![("a".into(), half.clone()), ("b".into(), half)])));
        assert!(!invalid(KeyValue::Set("k".repeat(KEY_BYTES_MAX), vec![0; VALUE_BYTES_MAX].into())));
    }

    #[test]
    fn only_decimal_numbers_are_added_to() {
        assert_eq!(add("k", b"41", 1), Ok(42));
        assert_eq!(add("k", b"-1", -9), Ok(-10));
        for held in [&b"x"[..], b"", b"1.5", b"\xff", b"9223372036854775808"] {
            assert!(matches!(add("k", held, 1), Err(CallError::Invalid(_))), "{held:?}");
        }
        assert!(matches!(add("k", i64::MAX.to_string().as_bytes(), 1), Err(CallError::Invalid(_))));
    }
}
