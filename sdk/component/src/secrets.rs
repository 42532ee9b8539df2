//! The component's secrets: what its manifest names under `secrets`, read by the node that runs it.
//!
//! ```yaml
//! spec:
//!   policies:
//!     - {name: files, type: policy.secret.wasmcloud.dev/v1alpha1, properties: {backend: file}}
//!   components:
//!     - name: api
//!       type: component
//!       properties:
//!         image: file://./api.wasm
//!         secrets:
//!           - name: api-key
//!             properties: {policy: files, key: payment/api-key}
//! ```
//!
//! ```
//! use trellis_component::secrets;
//!
//! fn authorization() -> Result<String, secrets::Error> {
//!     Ok(format!("Bearer {}", secrets::get("api-key")?.reveal()))
//! }
//! ```

use std::fmt;

use crate::bindings::secrets::reveal::reveal;
use crate::bindings::secrets::store::{self, SecretValue, SecretsError};

/// A secret. `Debug` does not show it.
pub struct Secret(store::Secret);

impl Secret {
    /// What it holds. Whoever sees this word in code knows that a secret is used there.
    pub fn reveal(&self) -> String {
        match reveal(&self.0) {
            SecretValue::String(text) => text,
            SecretValue::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The secret of that name.
///
/// # Errors
/// The manifest gives the component no such secret.
pub fn get(name: &str) -> Result<Secret, Error> {
    store::get(name).map(Secret).map_err(|why| Error {
        name: name.into(),
        problem: match why {
            SecretsError::NotFound => "is missing; add it under the component's `secrets` in the manifest".into(),
            SecretsError::Upstream(why) | SecretsError::Io(why) => format!("cannot be read: {why}"),
        },
    })
}

/// A secret that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Its name.
    pub name: String,
    problem: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret `{}` {}", self.name, self.problem)
    }
}

impl std::error::Error for Error {}
