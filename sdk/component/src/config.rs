//! The component's configuration, as its manifest gives it: text keys, text values.
//!
//! ```yaml
//! - name: api
//!   type: component
//!   properties:
//!     image: file://./api.wasm
//!     config:
//!       - name: api-config
//!         properties: { currency: EUR }
//! ```
//!
//! ```
//! use trellis_component::config;
//!
//! fn currency() -> String {
//!     config::get("currency").unwrap_or_else(|| "EUR".into())
//! }
//! ```

use std::fmt;

use crate::bindings::config::store;

/// The trimmed value of `key`; `None` if it is absent or empty.
///
/// # Panics
/// When the host cannot read its configuration. Trellis always can: it is there before the component wakes.
pub fn get(key: &str) -> Option<String> {
    store::get(key).unwrap_or_else(|why| panic!("the configuration cannot be read: {why:?}"))
}

/// The value of a key without which the component cannot work.
///
/// # Errors
/// The key is absent or empty; the text says so.
pub fn required(key: &str) -> Result<String, Missing> {
    get(key).ok_or_else(|| Missing { key: key.into() })
}

/// Every key with its value.
///
/// # Panics
/// As for [`get`].
pub fn all() -> Vec<(String, String)> {
    store::get_all().unwrap_or_else(|why| panic!("the configuration cannot be read: {why:?}"))
}

/// A key of the configuration that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The key.
    pub key: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "config `{}` is missing; set it under the component's `config` in the manifest", self.key)
    }
}

impl std::error::Error for Missing {}
