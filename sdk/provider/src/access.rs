//! What lets a link into its server: who it is there, and what secures the connection. The same words for every broker.
//!
//! | config or secret | holds |
//! | --- | --- |
//! | `user`, `password` | the login; a password inside a URL is refused |
//! | `tls_ca` | PEM of the CA to trust instead of the machine's: the text itself or a path |
//! | `tls_cert`, `tls_key` | PEM of the client's own certificate and key: the text itself or a path |

use trellis_wire::credentials::{self, Held};
use trellis_wire::{Config, Link, Secret};

use crate::{LinkError, Tls};

/// Login and TLS material of a link. Nothing secret in it is shown by `Debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Who the link is there. It may come from a secret, so it is not shown either.
    pub user: Option<Secret>,
    /// What proves it.
    pub password: Option<Secret>,
    /// What secures the connection.
    pub tls: Tls,
}

impl Access {
    /// Reads what a link brings.
    ///
    /// # Errors
    /// As of [`Tls::read`].
    pub fn read(link: &Link) -> Result<Self, LinkError> {
        Ok(Self { user: link.secret("user"), password: link.secret("password"), tls: Tls::read(link)? })
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
    use super::*;
    use crate::testing::lab::link;

    #[test]
    fn the_login_comes_from_config_or_secrets_and_is_not_shown() {
        let secrets = |named: &[(&str, &str)]| named.iter().map(|(name, text)| (*name, Secret::new(text))).collect();
        let read = |config: &[(&str, &str)], named: &[(&str, &str)]| {
            Access::read(&Link { secrets: secrets(named), ..link("messaging", config) }).unwrap()
        };
        let access = read(&[("user", "me")], &[("password", "s3cret")]);
        assert_eq!(
            (access.user.clone(), access.password.clone()),
            (Some(Secret::new("me")), Some(Secret::new("s3cret")))
        );
        assert!(!format!("{access:?}").contains("s3cret"), "{access:?}");
        let access = read(&[("user", "me")], &[("user", "hunter2")]);
        assert_eq!(access.user, Some(Secret::new("hunter2")), "a secret comes first");
        assert!(!format!("{access:?}").contains("hunter2"), "{access:?}");
    }

    #[test]
    fn a_password_in_a_url_is_refused() {
        let why = check_url("url", "amqp://me:s3cret@host/v").unwrap_err().to_string();
        assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
        for hidden in ["me:s3cret@host", "mqtt://host?password=s3cret", "amqp://host/%2f?token=s3cret"] {
            let why = check_url("url", hidden).unwrap_err().to_string();
            assert!(why.contains("as a secret of the link") && !why.contains("s3cret"), "{why}");
        }
        assert_eq!(check_url("url", "mqtt://host:1883"), Ok(()));
    }
}
