//! How a node reaches its NATS servers, and who it is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::{AuthError, ConnectOptions, ServerAddr};
use nkeys::KeyPair;
use trellis_wire::Secret;
use trellis_wire::pattern::{self, Malformed};

/// Where the NATS servers are and how to be let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The servers of one NATS system, as `nats://`, `tls://`, `ws://` or `wss://` URLs without credentials.
    pub urls: Vec<String>,
    /// Who this client is.
    pub auth: Auth,
    /// What secures the connection.
    pub tls: Tls,
    /// What the server's monitoring shows this client as.
    pub name: String,
    /// Where answers come in: a subject of which the account must allow all below. By default one below `_INBOX` that
    /// nobody can guess.
    pub inbox_prefix: Option<String>,
}

/// Who a client is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Nobody: the server asks for nothing.
    #[default]
    None,
    /// A `.creds` file: a JWT and the seed that it was issued to.
    Credentials(PathBuf),
    /// A file with an nkey seed.
    NkeySeed(PathBuf),
    /// A JWT and the seed that it was issued to.
    Jwt {
        /// The user JWT.
        jwt: Secret,
        /// The nkey seed.
        seed: Secret,
    },
    /// A user with a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
}

/// What secures the connection. TLS is used where the URL or the server asks for it, and always when a CA is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM file of the CA to trust instead of the machine's.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's own certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with [`Options`]. A server that is only not there is no error.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// No server is named.
    #[error("no NATS server is named: give at least one URL, such as nats://127.0.0.1:4222")]
    NoUrl,
    /// A text is no URL of a NATS server.
    #[error("`{url}` is no NATS server's URL: {problem}")]
    Url {
        /// The URL without credentials.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Process lists, shell histories and logs would show it.
    #[error(
        "the URL of NATS server {url} holds a user, password or token, which process lists and logs would show: \
         take it out, and name a credentials file or an nkey seed file, or set it in the environment"
    )]
    SecretInUrl {
        /// The URL without credentials.
        url: String,
    },
    /// A file cannot be read.
    #[error("{what} {}: {problem}", path.display())]
    File {
        /// What the file is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        problem: std::io::Error,
    },
    /// A seed or credentials that are none.
    #[error("{0}")]
    Credentials(String),
    /// The inbox prefix is no subject.
    #[error("inbox prefix {0}")]
    InboxPrefix(Malformed),
}

impl Options {
    /// Only URLs: no credentials, no TLS of its own.
    pub fn urls<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self { urls: urls.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The servers, in the order in which they were given.
    pub(crate) fn servers(&self) -> Result<Vec<ServerAddr>, OptionsError> {
        if self.urls.is_empty() {
            return Err(OptionsError::NoUrl);
        }
        self.urls.iter().map(|url| server(url)).collect()
    }

    /// What the client library is told of inboxes, credentials and TLS.
    pub(crate) async fn client(&self) -> Result<ConnectOptions, OptionsError> {
        let inbox = match &self.inbox_prefix {
            Some(prefix) => {
                pattern::check_literal(prefix).map_err(OptionsError::InboxPrefix)?;
                prefix.clone()
            }
            None => format!("_INBOX.{:016x}", rand::random::<u64>()),
        };
        let client = ConnectOptions::new().name(&self.name).custom_inbox_prefix(inbox);
        self.tls.apply(self.auth.apply(client).await?)
    }
}

impl Auth {
    async fn apply(&self, client: ConnectOptions) -> Result<ConnectOptions, OptionsError> {
        Ok(match self {
            Self::None => client,
            Self::Credentials(path) => {
                let text = read("the credentials file", path).await?;
                client
                    .credentials(&text)
                    .map_err(|_| OptionsError::Credentials(format!("{} is no .creds file of NATS", path.display())))?
            }
            Self::NkeySeed(path) => {
                let seed = Secret::new(read("the nkey seed file", path).await?.trim());
                key_pair(&seed, &path.display().to_string())?;
                client.nkey(seed.expose().into())
            }
            Self::Jwt { jwt, seed } => {
                let key = Arc::new(key_pair(seed, "the seed beside the JWT")?);
                client.jwt(jwt.expose().into(), move |nonce| {
                    let key = key.clone();
                    async move { key.sign(&nonce).map_err(AuthError::new) }
                })
            }
            Self::Password { user, password } => client.user_and_password(user.clone(), password.expose().into()),
            Self::Token(token) => client.token(token.expose().into()),
        })
    }
}

impl Tls {
    fn apply(&self, mut client: ConnectOptions) -> Result<ConnectOptions, OptionsError> {
        if let Some(ca) = &self.ca {
            exists("the CA file", ca)?;
            client = client.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let Some((certificate, key)) = &self.identity {
            exists("the certificate file", certificate)?;
            exists("the key file", key)?;
            client = client.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(client)
    }
}

/// A URL as people may see it: without what stands before an `@`.
pub(crate) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..authority_end].rsplit_once('@').map_or(rest, |(secret, _)| &rest[secret.len() + 1..]);
    format!("{scheme}://{host}")
}

fn server(url: &str) -> Result<ServerAddr, OptionsError> {
    let refused = |problem: String| OptionsError::Url { url: shown(url), problem };
    let server: ServerAddr = url.trim().parse().map_err(|why: std::io::Error| refused(why.to_string()))?;
    if server.has_user_pass() || server.password().is_some() || url.contains('@') {
        return Err(OptionsError::SecretInUrl { url: shown(url) });
    }
    if server.host().is_empty() {
        return Err(refused("it names no host".into()));
    }
    Ok(server)
}

fn key_pair(seed: &Secret, origin: &str) -> Result<KeyPair, OptionsError> {
    KeyPair::from_seed(seed.expose())
        .map_err(|why| OptionsError::Credentials(format!("{origin} is no nkey seed (SU..., one line): {why}")))
}

async fn read(what: &'static str, path: &Path) -> Result<String, OptionsError> {
    let refused = |problem| OptionsError::File { what, path: path.into(), problem };
    tokio::fs::read_to_string(path).await.map_err(refused)
}

fn exists(what: &'static str, path: &Path) -> Result<(), OptionsError> {
    std::fs::metadata(path).map(drop).map_err(|problem| OptionsError::File { what, path: path.into(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_url_is_refused_and_never_shown() {
        for url in ["nats://user:hunter2@host:4222", "nats://hunter2@host", "user:hunter2@host:4222"] {
            let refused = Options::urls([url]).servers().unwrap_err();
            assert!(matches!(refused, OptionsError::SecretInUrl { .. }), "{refused}");
            let text = format!("{refused} {refused:?}");
            assert!(!text.contains("hunter2") && text.contains("host") && text.contains("credentials file"), "{text}");
        }
        let malformed = Options::urls(["http://user:hunter2@host"]).servers().unwrap_err();
        assert!(!format!("{malformed} {malformed:?}").contains("hunter2"), "{malformed}");
    }

    #[test]
    fn secrets_are_not_debugged() {
        let (jwt, seed) = (Secret::new("eyJhunter2"), Secret::new("SUAhunter2"));
        let options = Options { auth: Auth::Jwt { jwt, seed }, ..Options::urls(["nats://host"]) };
        assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_named() {
        let missing = Auth::Credentials("/nowhere/node.creds".into());
        let refused = missing.apply(ConnectOptions::new()).await.unwrap_err();
        assert!(refused.to_string().starts_with("the credentials file /nowhere/node.creds: "), "{refused}");
        let seedless = Auth::Jwt { jwt: Secret::new("eyJ"), seed: Secret::new("SUAhunter2") };
        let refused = seedless.apply(ConnectOptions::new()).await.unwrap_err().to_string();
        assert!(refused.contains("no nkey seed") && !refused.contains("hunter2"), "{refused}");
        assert!(matches!(Options::default().servers(), Err(OptionsError::NoUrl)));
    }
}
