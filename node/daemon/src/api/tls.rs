//! TLS for the admin API, by rustls with ring.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a client may take to agree on TLS.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How many clients may be at it at one time.
const HANDSHAKES_MAX: usize = 64;
/// How many connections wait to be served.
const READY_MAX: usize = 16;
/// The wait after a connection could not be taken, such as for want of files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// PEM files of a certificate chain and of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// A listener whose connections have agreed on TLS. A client that is slow at that holds up no other.
pub(crate) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    accepting: tokio::task::JoinHandle<()>,
}

impl TlsListener {
    /// Takes a listener over.
    ///
    /// # Errors
    /// The file that is wrong, and how; or what the system says of the listener.
    pub(crate) fn new(listener: TcpListener, files: &TlsFiles) -> Result<Self, String> {
        let address = listener.local_addr().map_err(|why| why.to_string())?;
        let (sender, ready) = mpsc::channel(READY_MAX);
        let accepting = tokio::spawn(accept(listener, acceptor(files)?, sender));
        Ok(Self { address, ready, accepting })
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        match self.ready.recv().await {
            Some(ready) => ready,
            // Its other end is dropped with this value only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let (acceptor, ready) = (acceptor.clone(), ready.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
                        // Where nobody serves any more, the connection just ends.
                        Ok(Ok(stream)) => drop(ready.send((stream, from)).await),
                        Ok(Err(why)) => tracing::debug!(%from, %why, "no TLS on the admin API"),
                        Err(_) => tracing::debug!(%from, "no TLS on the admin API in time"),
                    }
                    drop(place);
                });
            }
            Err(why) => {
                tracing::warn!(%why, "the admin API takes no connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, String> {
    let wrong = |flag: &str, path: &Path, why: &dyn std::fmt::Display| format!("{flag} {}: {why}", path.display());
    let certificate = |why: &dyn std::fmt::Display| wrong("--admin-tls-cert", &files.certificate, why);
    let chain = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|why| certificate(&why))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|why| wrong("--admin-tls-key", &files.key, &why))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default TLS versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|why| certificate(&why))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
