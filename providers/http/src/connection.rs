//! One accepted connection, from its handshake to its end: TLS, HTTP/1 or HTTP/2, and the clock over both.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::limits::Limits;
use crate::pulse::{Heard, Pulse, Verdict};
use crate::server::Server;

/// How much of a request body an HTTP/2 client may send before the guest has read it: per request and per connection.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// How much of a reply is held for an HTTP/2 client that does not read.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Everything that the connections of one listener share.
pub(crate) struct Shared {
    pub(crate) server: Server,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) limits: Limits,
    /// Cancelled when the listener closes: finish what is under way.
    pub(crate) stop: CancellationToken,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    let Some(tls) = &shared.tls else { return serve_http(stream, &shared).await };
    let handshake = timeout(shared.limits.head_timeout, tls.accept(stream));
    tokio::select! {
        () = shared.stop.cancelled() => {}
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => serve_http(stream, &shared).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn serve_http<S>(socket: S, shared: &Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let pulse = Pulse::new();
    let io = TokioIo::new(Heard::new(socket, pulse.clone()));
    let service = service_fn(|request| {
        let (shared, pulse) = (shared.clone(), pulse.clone());
        async move { Ok::<_, Infallible>(shared.server.answer(request, &pulse).await) }
    });
    let protocol = protocol(&shared.limits);
    let mut connection = pin!(protocol.serve_connection(io, service));
    let mut stopped = pin!(shared.stop.cancelled());
    let mut alarm = pin!(sleep_until(Instant::now() + shared.limits.head_timeout));
    let mut closing = false;
    // It ends by itself, is told to end when the listener stops, or is judged when something falls due.
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection broke off");
                }
                return;
            }
            () = stopped.as_mut(), if !closing => {
                connection.as_mut().graceful_shutdown();
                closing = true;
                alarm.as_mut().reset(Instant::now() + shared.limits.drain_max);
            }
            () = alarm.as_mut() => match pulse.check(&shared.limits) {
                Verdict::Fine(next) if !closing => alarm.as_mut().reset(next),
                Verdict::Idle if !closing => {
                    connection.as_mut().graceful_shutdown();
                    closing = true;
                    alarm.as_mut().reset(Instant::now() + shared.limits.drain_max);
                }
                // Stuck, or it did not manage to close in the time it had.
                _ => return,
            },
        }
    }
}

/// How hyper speaks. The time for a head is ours to watch: hyper would count the pause between two requests as well.
fn protocol(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.head_timeout)
        .keep_alive_timeout(limits.head_timeout)
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    builder
}
