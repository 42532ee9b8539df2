//! One HTTP/1.1 exchange with a node, with TLS where the address says so: connect, send, await the head, read the body.
//! Each has a limit of its own.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{AdminError, Endpoint};

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// The largest answer that is held in memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The longest line of a stream of lines.
const LINE_BYTES_MAX: usize = 4 << 20;
/// An upload goes out in pieces of this size, and is counted by them.
const PIECE_BYTES: usize = 128 << 10;

/// Sends `request` and gives the response as soon as its head is here.
pub(super) async fn exchange(
    endpoint: &Endpoint,
    ca: Option<&Path>,
    request: Request<Upload>,
    head_within: Duration,
) -> Result<Response<Incoming>, AdminError> {
    let stream = connect(endpoint).await?;
    let mut sender = match endpoint.secure {
        true => speak(endpoint, secured(endpoint, ca, stream).await?).await?,
        false => speak(endpoint, stream).await?,
    };
    let what = format!("{} {}", request.method(), request.uri().path());
    match timeout(head_within, sender.send_request(request)).await {
        Ok(answered) => answered.map_err(broken(endpoint)),
        Err(_) => Err(AdminError::Slow { endpoint: endpoint.clone(), what, after: head_within }),
    }
}

/// Begins to speak HTTP on a connection.
async fn speak<S>(endpoint: &Endpoint, stream: S) -> Result<SendRequest<Upload>, AdminError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let spoken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = spoken.map_err(broken(endpoint))?;
    // It moves the bytes and ends with the exchange; an error of it reaches the exchange too.
    tokio::spawn(connection);
    Ok(sender)
}

/// Agrees on TLS: with whom the machine's roots vouch for, or those in `ca` alone.
async fn secured(
    endpoint: &Endpoint,
    ca: Option<&Path>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, AdminError> {
    let untrusted = |reason: String| AdminError::Untrusted { endpoint: endpoint.clone(), reason };
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let wrong = |why: &dyn std::fmt::Display| untrusted(format!("--admin-ca {}: {why}", file.display()));
            for certificate in CertificateDer::pem_file_iter(file).map_err(|why| wrong(&why))? {
                roots.add(certificate.map_err(|why| wrong(&why))?).map_err(|why| wrong(&why))?;
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(endpoint.host_and_port().0.to_owned()).map_err(|why| untrusted(why.to_string()))?;
    let agreed = timeout(CONNECT_MAX, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    agreed.map_err(|_| untrusted("it took too long".into()))?.map_err(|why| untrusted(why.to_string()))
}

/// The whole body, at most [`ANSWER_BYTES_MAX`].
pub(super) async fn read(endpoint: &Endpoint, body: Incoming) -> Result<Bytes, AdminError> {
    let read = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    read.map(|whole| whole.to_bytes()).map_err(|error| broken(endpoint)(error))
}

/// Writes the body to `out` as it comes. How many bytes it has.
pub(super) async fn save(
    endpoint: &Endpoint,
    mut body: Incoming,
    out: &mut impl std::io::Write,
) -> Result<u64, AdminError> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(broken(endpoint))?.into_data() {
            out.write_all(&data).map_err(|why| broken(endpoint)(format!("writing what comes: {why}")))?;
            bytes += data.len() as u64;
        }
    }
    Ok(bytes)
}

async fn connect(endpoint: &Endpoint) -> Result<TcpStream, AdminError> {
    let unreachable = |reason| AdminError::Unreachable { endpoint: endpoint.clone(), reason };
    let stream = match timeout(CONNECT_MAX, TcpStream::connect(endpoint.host_and_port())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.raw_os_error().is_some() => return Err(unreachable(error.kind().to_string())),
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no connection within {} s", CONNECT_MAX.as_secs()))),
    };
    stream.set_nodelay(true).map_err(broken(endpoint))?;
    Ok(stream)
}

fn broken<E: Into<Box<dyn std::error::Error + Send + Sync>>>(endpoint: &Endpoint) -> impl FnOnce(E) -> AdminError {
    let endpoint = endpoint.clone();
    move |error| AdminError::BrokenOff { endpoint, reason: error.into().to_string() }
}

/// A request's body: bytes in pieces, each told to `sent` as it is taken; or a file, read as it goes.
pub(super) struct Upload {
    left: Bytes,
    file: Option<std::fs::File>,
    sent: Option<Box<dyn FnMut(usize) + Send>>,
}

impl Upload {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { left: bytes, file: None, sent: None }
    }

    pub(super) fn file(file: std::fs::File) -> Self {
        Self { left: Bytes::new(), file: Some(file), sent: None }
    }

    pub(super) fn counted(bytes: Bytes, sent: impl FnMut(usize) + Send + 'static) -> Self {
        Self { left: bytes, file: None, sent: Some(Box::new(sent)) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let upload = self.get_mut();
        if let Some(file) = &mut upload.file {
            // One request at a time is all that this thread does, so that it may wait for the disk.
            let mut piece = vec![0; PIECE_BYTES];
            return match std::io::Read::read(file, &mut piece) {
                Ok(0) => Poll::Ready(None),
                Ok(bytes) => {
                    piece.truncate(bytes);
                    Poll::Ready(Some(Ok(Frame::data(piece.into()))))
                }
                Err(why) => Poll::Ready(Some(Err(why))),
            };
        }
        if upload.left.is_empty() {
            return Poll::Ready(None);
        }
        let piece = upload.left.split_to(upload.left.len().min(PIECE_BYTES));
        if let Some(sent) = &mut upload.sent {
            sent(piece.len());
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.file.is_none() && self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.file {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.left.len() as u64),
        }
    }
}

/// A body of lines that may go on for ever.
pub(crate) struct Lines {
    endpoint: Endpoint,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    pub(super) fn new(endpoint: Endpoint, body: Incoming) -> Self {
        Self { endpoint, body, buffer: BytesMut::new() }
    }

    /// The next line that is not empty, without its end; `None` when the node has ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, AdminError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(broken(&self.endpoint)(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(broken(&self.endpoint))?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(self.buffer.split().freeze())),
            }
        }
    }
}
