//! TLS to a server, by rustls with ring: which CAs are trusted, who the client is, and what to do about a refusal.
//!
//! The crypto provider is passed by hand and never installed for the process: another crate in the binary may bring its
//! own.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use trellis_wire::{Link, Secret};

use crate::LinkError;

/// What a link has for TLS. Nothing secret in it is shown by `Debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The CA to trust instead of the machine's.
    pub ca: Option<Pem>,
    /// The client's own certificate and key.
    pub identity: Option<(Pem, Pem)>,
}

impl Tls {
    /// Reads what a link brings as `tls_ca`, `tls_cert` and `tls_key`.
    ///
    /// # Errors
    /// A key without the one it belongs to.
    pub fn read(link: &Link) -> Result<Self, LinkError> {
        let identity = match (Pem::read(link, "tls_cert"), Pem::read(link, "tls_key")) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (Some(_), None) => return Err(LinkError::config("tls_key", "is needed beside `tls_cert`")),
            (None, Some(_)) => return Err(LinkError::config("tls_cert", "is needed beside `tls_key`")),
        };
        Ok(Self { ca: Pem::read(link, "tls_ca"), identity })
    }

    /// The same from files: the CA's, and those of the client's own certificate and key.
    pub fn files(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Self {
        let file = Pem::file;
        let identity = identity.map(|(certificate, key)| (file("tls_cert", certificate), file("tls_key", key)));
        Self { ca: ca.map(|ca| file("tls_ca", ca)), identity }
    }

    /// Whether there is nothing for TLS.
    pub const fn is_empty(&self) -> bool {
        self.ca.is_none() && self.identity.is_none()
    }

    /// How a client speaks TLS with this.
    ///
    /// # Errors
    /// Names the key that holds something else than it should.
    pub fn client(&self) -> Result<ClientConfig, LinkError> {
        let roots = self.ca.as_ref().map_or_else(|| Ok(machine_roots()), roots)?;
        let trusting = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring speaks the default TLS versions")
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.identity else { return Ok(trusting.with_no_client_auth()) };
        let chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_slice(&key.bytes()?)
            .map_err(|_| LinkError::config(key.key, "holds no private key in PEM"))?;
        let fits = trusting.with_client_auth_cert(chain, private);
        fits.map_err(|why| LinkError::config(key.key, format!("does not fit `{}`: {why}", certificate.key)))
    }
}

/// PEM, as text or in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pem {
    key: &'static str,
    origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    Text(Secret),
    File(PathBuf),
    /// A secret that is no PEM. It may be a path, or anything else, so it is not shown.
    Secret(Secret),
}

impl Pem {
    /// What a link has under this name: a secret, or else config.
    pub fn read(link: &Link, key: &'static str) -> Option<Self> {
        let is_text = |text: &str| text.contains("-----BEGIN");
        let origin = match (link.secrets.get(key), link.config.get(key)) {
            (Some(secret), _) if is_text(secret.expose()) => Origin::Text(secret.clone()),
            (Some(secret), _) => Origin::Secret(secret.clone()),
            (None, Some(text)) if is_text(text) => Origin::Text(Secret::new(text)),
            (None, Some(path)) => Origin::File(path.trim().into()),
            (None, None) => return None,
        };
        Some(Self { key, origin })
    }

    /// What this file holds, which `key` names in messages.
    pub fn file(key: &'static str, path: &Path) -> Self {
        Self { key, origin: Origin::File(path.into()) }
    }

    /// The PEM text.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>, LinkError> {
        let refused = |problem: String| LinkError::config(self.key, problem);
        match &self.origin {
            Origin::Text(text) => Ok(text.expose().into()),
            Origin::File(path) => {
                std::fs::read(path).map_err(|why| refused(format!("the file {} cannot be read: {why}", path.display())))
            }
            Origin::Secret(path) => std::fs::read(path.expose().trim())
                .map_err(|why| refused(format!("the secret is neither PEM nor the path of a file with it: {why}"))),
        }
    }
}

fn machine_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a root certificate of the machine cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    roots
}

fn roots(ca: &Pem) -> Result<RootCertStore, LinkError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|why| LinkError::config(ca.key, format!("is no CA: {why}")))?;
    }
    Ok(roots)
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let read = CertificateDer::pem_slice_iter(&pem.bytes()?).collect::<Result<Vec<_>, _>>();
    // What the parser says may quote what it found.
    read.ok().filter(|found| !found.is_empty()).ok_or_else(|| LinkError::config(pem.key, "holds no certificate in PEM"))
}

/// Why a connection failed, with what to write where TLS or the login was refused. All client libraries pass on what rustls says.
pub fn explained(why: &str) -> Cow<'_, str> {
    let what = if why.contains("not valid for name") {
        "the server's certificate is for another host: write one that it names into `url`"
    } else if why.contains("certificate expired") {
        "the server's certificate has expired"
    } else if why.contains("invalid peer certificate") {
        "the server's certificate is not of a CA that is trusted: check `tls_ca` of the link"
    } else if why.contains("received fatal alert") {
        "the server does not take the client's certificate, or wants one: check `tls_cert` and `tls_key` of the link"
    } else if why.contains("InvalidContentType") {
        "the server speaks no TLS there: check scheme and port of `url`"
    } else if why.contains("authorization violation") {
        "the login is refused: check `user` and `password`, or what the link has in their place"
    } else {
        return why.into();
    };
    format!("{what} ({why})").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lab::link;

    fn of(config: &[(&str, &str)], secrets: &[(&str, &str)]) -> Result<Tls, LinkError> {
        let secrets = secrets.iter().map(|(name, text)| (*name, Secret::new(text))).collect();
        Tls::read(&Link { secrets, ..link("messaging", config) })
    }

    #[test]
    fn pem_is_text_or_a_path_and_nothing_secret_is_shown() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMC4\n";
        let tls = of(&[("tls_cert", "/c")], &[("tls_key", pem), ("tls_ca", "/hunter2")]).unwrap();
        let shown = format!("{tls:?}");
        assert!(!shown.contains("MC4") && !shown.contains("hunter2"), "{shown}");
        let (certificate, key) = tls.identity.clone().unwrap();
        assert_eq!(key.bytes().unwrap(), pem.trim_end().as_bytes());
        let why = certificate.bytes().unwrap_err().to_string();
        assert!(why.starts_with("config `tls_cert`: the file /c cannot be read"), "{why}");
        let why = tls.client().unwrap_err().to_string();
        assert!(why.starts_with("config `tls_ca`: the secret is neither PEM nor the path"), "{why}");
        assert!(!why.contains("hunter2"), "{why}");
    }

    #[test]
    fn half_an_identity_is_refused() {
        let alone = of(&[("tls_cert", "/c")], &[]).unwrap_err();
        assert_eq!(alone.to_string(), "config `tls_key`: is needed beside `tls_cert`");
        let alone = of(&[], &[("tls_key", "/k")]).unwrap_err();
        assert_eq!(alone.to_string(), "config `tls_cert`: is needed beside `tls_key`");
    }

    #[test]
    fn what_holds_something_else_is_named_and_not_shown() {
        for (key, text) in [("tls_ca", "-----BEGIN hunter2"), ("tls_ca", "-----BEGIN CERTIFICATE-----\nhunter2\n")] {
            let why = of(&[], &[(key, text)]).unwrap().client().unwrap_err().to_string();
            assert_eq!(why, format!("config `{key}`: holds no certificate in PEM"));
        }
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        for (why, what) in [
            ("I/O: invalid peer certificate: UnknownIssuer", "check `tls_ca`"),
            (
                "invalid peer certificate: certificate not valid for name \"a\"; certificate is only valid for b",
                "`url`",
            ),
            ("received fatal alert: CertificateRequired", "check `tls_cert` and `tls_key`"),
            ("IO error: received corrupt message of type InvalidContentType", "scheme and port of `url`"),
            ("authorization violation", "check `user` and `password`"),
        ] {
            let said = explained(why);
            assert!(said.contains(what) && said.ends_with(&format!("({why})")), "{said}");
        }
        assert_eq!(explained("Connection refused"), "Connection refused");
    }
}
