//! What lets a link into its server: who it is there, and what secures the connection. The same words for every broker.
//!
//! | config or secret | holds |
//! | --- | --- |
//! | `user`, `password` | the login; a password inside a URL is refused |
//! | `tls_ca` | PEM of the CA to trust instead of the machine's: the text itself or a path |
//! | `tls_cert`, `tls_key` | PEM of the client's own certificate and key: the text itself or a path |

use trellis_wire::credentials::{self, Held};
use trellis_wire::{Config, Link, Secret};

use crate::LinkError;

/// Login and TLS material of a link. Nothing secret in it is shown by `Debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Who the link is there.
    pub user: Option<String>,
    /// What proves it.
    pub password: Option<Secret>,
    /// The CA to trust instead of the machine's.
    pub ca: Option<Pem>,
    /// The client's own certificate and key.
    pub identity: Option<(Pem, Pem)>,
}

impl Access {
    /// Reads what a link brings.
    ///
    /// # Errors
    /// A key without the one it belongs to.
    pub fn read(link: &Link) -> Result<Self, LinkError> {
        let pem = |key| link.secret(key).map(|text| Pem { key, text });
        let identity = match (pem("tls_cert"), pem("tls_key")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => return Err(LinkError::config("tls_key", "is needed beside `tls_cert`")),
            (None, Some(_)) => return Err(LinkError::config("tls_cert", "is needed beside `tls_key`")),
        };
        let user = link.config.get("user").map(str::to_owned);
        Ok(Self { user, password: link.secret("password"), ca: pem("tls_ca"), identity })
    }

    /// Whether there is anything for TLS.
    pub const fn has_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }
}

/// Refuses an address that holds a password: status, logs and the lattice's state would show it. The message does not.
///
/// # Errors
/// With the fix.
pub fn check_url(key: &str, url: &str) -> Result<(), LinkError> {
    if credentials::held(key, url) == Some(Held::InAddress) {
        let problem = "holds a password, which `status` and logs would show: take it out of the URL, write `user`, and \
                       give `password` as a secret of the link";
        return Err(LinkError::config(key, problem));
    }
    Ok(())
}

/// PEM, as text or in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pem {
    key: &'static str,
    text: Secret,
}

impl Pem {
    /// The PEM text.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>, LinkError> {
        let text = self.text.expose();
        if text.contains("-----BEGIN") {
            return Ok(text.as_bytes().to_vec());
        }
        let path = text.trim();
        std::fs::read(path).map_err(|why| LinkError::config(self.key, format!("the file {path} cannot be read: {why}")))
    }
}

/// Whether `key` is set to yes.
///
/// # Errors
/// It is neither yes nor no.
pub fn flag(config: &Config, key: &str) -> Result<bool, LinkError> {
    match config.get(key).map(str::to_ascii_lowercase).as_deref() {
        None | Some("false" | "no" | "0") => Ok(false),
        Some("true" | "yes" | "1") => Ok(true),
        Some(other) => Err(LinkError::config(key, format!("`{other}` is neither `true` nor `false`"))),
    }
}

#[cfg(test)]
mod tests {
    use trellis_wire::{Delivery, LinkId, LinkName, Secrets};

    use super::*;

    fn access(config: &[(&str, &str)], secrets: &[(&str, &str)]) -> Result<Access, LinkError> {
        let (component, provider) = ("shop/worker".parse().unwrap(), "shop/broker".parse().unwrap());
        Access::read(&Link {
            id: LinkId::new(&component, &provider, &LinkName::default(), "wasmcloud", "messaging", &[]),
            component,
            name: LinkName::default(),
            namespace: "wasmcloud".into(),
            package: "messaging".into(),
            interfaces: Vec::new(),
            config: config.iter().copied().collect(),
            delivery: Delivery::default(),
            secrets: Secrets::from_iter(secrets.iter().map(|(name, text)| (*name, Secret::new(text)))),
            part: Default::default(),
        })
    }

    #[test]
    fn nothing_secret_is_shown() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4\n";
        let access =
            access(&[("user", "me"), ("tls_cert", "/c")], &[("password", "s3cret"), ("tls_key", pem)]).unwrap();
        let shown = format!("{access:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("MC4"), "{shown}");
        let (certificate, key) = access.identity.unwrap();
        assert_eq!(key.bytes().unwrap(), pem.trim_end().as_bytes());
        let why = certificate.bytes().unwrap_err().to_string();
        assert!(why.starts_with("config `tls_cert`: the file /c cannot be read"), "{why}");
    }

    #[test]
    fn half_an_identity_and_a_password_in_a_url_are_refused() {
        let alone = access(&[("tls_cert", "/c")], &[]).unwrap_err();
        assert_eq!(alone.to_string(), "config `tls_key`: is needed beside `tls_cert`");
        let why = check_url("url", "amqp://me:s3cret@host/v").unwrap_err().to_string();
        assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
        for hidden in ["me:s3cret@host", "mqtt://host?password=s3cret", "amqp://host/%2f?token=s3cret"] {
            let why = check_url("url", hidden).unwrap_err().to_string();
            assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
        }
        assert_eq!(check_url("url", "mqtt://host:1883"), Ok(()));
    }
}
