//! Key-value stores: what must outlive the event.
//!
//! ```
//! use trellis_component::keyvalue::{Error, Store};
//!
//! fn visits() -> Result<u64, Error> {
//!     let store = Store::open_default()?;
//!     store.set("last", b"today")?;
//!     store.increment("visits", 1)
//! }
//! ```
//!
//! The manifest links the component to a provider that has stores:
//!
//! ```yaml
//! - type: link
//!   properties:
//!     target: { name: store }       # an entry with `image: trellis://embedded` or `trellis://nats`
//!     namespace: wasi
//!     package: keyvalue
//!     interfaces: [store, atomics, batch]
//! ```

use std::collections::VecDeque;
use std::fmt;

use crate::bindings::keyvalue::{atomics, batch, store};

/// An open store.
#[derive(Debug)]
pub struct Store(store::Bucket);

impl Store {
    /// Opens the store of the link of this name.
    ///
    /// # Errors
    /// There is no such link, or its store is not there now.
    pub fn open(link: &str) -> Result<Self, Error> {
        Ok(Self(store::open(link)?))
    }

    /// Opens the store of the default link, the one without a name.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_default() -> Result<Self, Error> {
        Self::open("")
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// What the provider says.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(key)?)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// What the provider says, such as that the value is too large.
    pub fn set(&self, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        Ok(self.0.set(key, value.as_ref())?)
    }

    /// Removes a key. It need not exist.
    ///
    /// # Errors
    /// What the provider says.
    pub fn delete(&self, key: &str) -> Result<(), Error> {
        Ok(self.0.delete(key)?)
    }

    /// Whether a key exists.
    ///
    /// # Errors
    /// What the provider says.
    pub fn exists(&self, key: &str) -> Result<bool, Error> {
        Ok(self.0.exists(key)?)
    }

    /// All keys in the store's order, fetched a thousand at a time.
    pub fn keys(&self) -> Keys<'_> {
        Keys { store: self, page: VecDeque::new(), cursor: Next::First }
    }

    /// Adds to a number in one step, and gives the new one. An absent key counts as 0.
    ///
    /// # Errors
    /// The key holds no number or the sum is too large; what the provider says.
    pub fn increment(&self, key: &str, delta: u64) -> Result<u64, Error> {
        Ok(atomics::increment(&self.0, key, delta)?)
    }

    /// Several keys, each with its value if it has one, in their order.
    ///
    /// # Errors
    /// What the provider says.
    pub fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let found = batch::get_many(&self.0, &keys)?;
        Ok(found.into_iter().map(|pair| pair.map(|(_, value)| value)).collect())
    }

    /// Writes several keys. A failure may leave some of them written.
    ///
    /// # Errors
    /// What the provider says.
    pub fn set_many(&self, pairs: &[(&str, &[u8])]) -> Result<(), Error> {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
        Ok(batch::set_many(&self.0, &pairs)?)
    }

    /// Removes several keys. A failure may leave some of them there.
    ///
    /// # Errors
    /// What the provider says.
    pub fn delete_many(&self, keys: &[&str]) -> Result<(), Error> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        Ok(batch::delete_many(&self.0, &keys)?)
    }

    /// The value of a key, read from JSON.
    ///
    /// # Errors
    /// What the provider says, or that the value is no such JSON.
    #[cfg(feature = "json")]
    pub fn get_json<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        serde_json::from_slice(&value).map(Some).map_err(|why| Error::Other(format!("the value of `{key}`: {why}")))
    }

    /// Writes a key as JSON.
    ///
    /// # Errors
    /// What the provider says, or that the value cannot be JSON.
    #[cfg(feature = "json")]
    pub fn set_json<T: serde::Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), Error> {
        let json = serde_json::to_vec(value).map_err(|why| Error::Other(format!("the value of `{key}`: {why}")))?;
        self.set(key, json)
    }
}

/// The keys of a store.
#[derive(Debug)]
pub struct Keys<'a> {
    store: &'a Store,
    page: VecDeque<String>,
    cursor: Next,
}

/// Which page comes next.
#[derive(Debug)]
enum Next {
    First,
    After(u64),
    End,
}

impl Iterator for Keys<'_> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(key) = self.page.pop_front() {
                return Some(Ok(key));
            }
            let cursor = match self.cursor {
                Next::First => None,
                Next::After(cursor) => Some(cursor),
                Next::End => return None,
            };
            match self.store.0.list_keys(cursor) {
                Ok(page) => {
                    self.page = page.keys.into();
                    self.cursor = page.cursor.map_or(Next::End, Next::After);
                }
                Err(why) => {
                    self.cursor = Next::End;
                    return Some(Err(why.into()));
                }
            }
        }
    }
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// There is no store of that name.
    NoSuchStore,
    /// No link grants it.
    AccessDenied,
    /// Anything else, for people.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchStore => f.write_str("there is no such key-value store; a store's name is the name of a link"),
            Self::AccessDenied => f.write_str("no link grants this component a key-value store"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<store::Error> for Error {
    fn from(why: store::Error) -> Self {
        match why {
            store::Error::NoSuchStore => Self::NoSuchStore,
            store::Error::AccessDenied => Self::AccessDenied,
            store::Error::Other(why) => Self::Other(why),
        }
    }
}
