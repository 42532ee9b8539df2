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

use crate::config::TlsFiles;

/// What a client may ask for by ALPN, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Reads a listener's certificate chain and key.
///
/// # Errors
/// Names the key of the configuration and the file.
pub(crate) async fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, LinkError> {
    let chain = certificates("tls_cert_file", &files.certificate).await?;
    let pem = read("tls_priv_key_file", &files.key).await?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| wrong("tls_priv_key_file", &files.key, format!("holds no PEM private key: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong("tls_cert_file", &files.certificate, format!("does not fit its key: {error}")))?;
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
        for certificate in certificates("outgoing_ca_file", file).await? {
            roots.add(certificate).map_err(|error| wrong("outgoing_ca_file", file, format!("is no root: {error}")))?;
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

async fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let pem = read(key, file).await?;
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(key, file, format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(wrong(key, file, "holds no PEM certificate"));
    }
    Ok(chain)
}

async fn read(key: &str, file: &Path) -> Result<Vec<u8>, LinkError> {
    tokio::fs::read(file).await.map_err(|error| wrong(key, file, format!("cannot be read: {error}")))
}

fn wrong(key: &str, file: &Path, problem: impl std::fmt::Display) -> LinkError {
    LinkError::config(key, format!("{} {problem}", file.display()))
}
