//! TLS by rustls with ring: a listener's certificate, and the roots that outgoing HTTPS trusts.
//!
//! The crypto provider is passed by hand and never installed for the process: another crate in the binary may bring its
//! own.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use trellis_provider::LinkError;

use crate::config::{Pem, TlsPem};

/// What a client may ask for by ALPN, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Reads a listener's certificate chain and key.
///
/// # Errors
/// Names the key of the configuration, and the file or secret.
pub(crate) async fn acceptor(tls: &TlsPem) -> Result<TlsAcceptor, LinkError> {
    let (certificate, key) = (Origin::of("tls_cert_file", &tls.certificate), Origin::of("tls_priv_key_file", &tls.key));
    let chain = certificates(&certificate).await?;
    let key = PrivateKeyDer::from_pem_slice(&key.read().await?)
        .map_err(|error| key.wrong(format!("holds no PEM private key: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| certificate.wrong(format!("does not fit its key: {error}")))?;
    config.alpn_protocols = PROTOCOLS.map(Vec::from).into();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The system's root certificates with those of `extra` beside them. ALPN is left to the connector.
pub(crate) async fn outgoing(extra: Option<&Path>) -> Result<rustls::ClientConfig, LinkError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a root certificate of the system cannot be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(file) = extra {
        let pem = Pem::File(file.into());
        let origin = Origin::of("outgoing_ca_file", &pem);
        for certificate in certificates(&origin).await? {
            roots.add(certificate).map_err(|error| origin.wrong(format!("is no root: {error}")))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!("no root certificates found, so outgoing HTTPS will fail; install the package ca-certificates");
    }
    Ok(rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth())
}

async fn certificates(origin: &Origin<'_>) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let chain = CertificateDer::pem_slice_iter(&origin.read().await?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| origin.wrong(format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(origin.wrong("holds no PEM certificate"));
    }
    Ok(chain)
}

/// A PEM text, and what is to be said where it does not fit.
struct Origin<'a> {
    key: &'static str,
    pem: &'a Pem,
}

impl<'a> Origin<'a> {
    const fn of(key: &'static str, pem: &'a Pem) -> Self {
        Self { key, pem }
    }

    async fn read(&self) -> Result<Vec<u8>, LinkError> {
        match self.pem {
            Pem::File(file) => {
                tokio::fs::read(file).await.map_err(|error| self.wrong(format!("cannot be read: {error}")))
            }
            Pem::Secret(_, secret) => Ok(secret.expose().into()),
        }
    }

    fn wrong(&self, problem: impl std::fmt::Display) -> LinkError {
        match self.pem {
            Pem::File(file) => LinkError::config(self.key, format!("{} {problem}", file.display())),
            Pem::Secret(name, _) => LinkError::Failed(format!("the secret `{name}` {problem}")),
        }
    }
}
