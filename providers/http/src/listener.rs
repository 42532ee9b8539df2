//! Listening sockets, each shared by the links that name its address. One bind per address, and never
//! `SO_REUSEPORT`: two nodes on one machine must not share a port by accident.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::uri::Scheme;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::LinkError;
use trellis_wire::{ComponentKey, LinkId};

use crate::config::{At, TlsPem};
use crate::connection::{self, Shared};
use crate::limits::Limits;
use crate::routes::Conflict;
use crate::server::{Route, Server};

/// How many connections the kernel may hold for us to accept.
const BACKLOG: u32 = 1_024;
/// The pause after a failed accept: doubled while it goes on failing.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// One bound address. Dropping it closes it without waiting.
pub(crate) struct Listener {
    bound: SocketAddr,
    tls: Option<TlsPem>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    trouble: Arc<ArcSwapOption<String>>,
}

impl Listener {
    /// Binds `address` and begins to accept. `tls` is what makes it speak TLS, with the files it was read from.
    pub(crate) fn bind(
        address: SocketAddr,
        tls: Option<(TlsPem, TlsAcceptor)>,
        limits: Limits,
    ) -> Result<Self, LinkError> {
        let socket = bind(address).map_err(|error| bind_error(address, &error))?;
        let bound = socket.local_addr().map_err(|error| bind_error(address, &error))?;
        let (tls, acceptor) = tls.unzip();
        let server = Server::new(bound, if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }, &limits);
        let shared = Arc::new(Shared { server, tls: acceptor, limits, stop: CancellationToken::new() });
        let listener = Self { bound, tls, shared, tasks: TaskTracker::new(), trouble: Arc::default() };
        listener.tasks.spawn(accept(socket, listener.shared.clone(), listener.tasks.clone(), listener.trouble.clone()));
        tracing::info!(address = %bound, tls = listener.tls.is_some(), "listening");
        Ok(listener)
    }

    pub(crate) const fn bound(&self) -> SocketAddr {
        self.bound
    }

    pub(crate) const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Lets one more link answer here, in the place of those in its way that are `leaving`.
    pub(crate) fn add(
        &self,
        link: &LinkId,
        at: At,
        tls: Option<&TlsPem>,
        route: Arc<Route>,
        leaving: impl Fn(&LinkId) -> bool,
    ) -> Result<(), LinkError> {
        let component = route.component().clone();
        let routes = self.shared.server.routes();
        if tls != self.tls.as_ref() {
            let other = routes.load().anyone().map_or_else(String::new, |other| format!(" by {other}"));
            let problem =
                format!("address {} is used{other} with other TLS files; use the same or another port", self.bound);
            return Err(LinkError::Taken(problem));
        }
        let more = routes.load().with(link, &component, at, route, leaving);
        routes.store(Arc::new(more.map_err(|conflict| self.taken(&conflict))?));
        Ok(())
    }

    /// Stops routing to a link. `None` if it is not here, else what still answers for it, and whether it was the last.
    pub(crate) fn take(&self, link: &LinkId) -> Option<(Arc<Route>, bool)> {
        let routes = self.shared.server.routes();
        let route = routes.load().of_link(link)?.clone();
        let fewer = routes.load().without(link);
        let was_last = fewer.is_empty();
        routes.store(Arc::new(fewer));
        Some((route, was_last))
    }

    pub(crate) fn has(&self, link: &LinkId) -> bool {
        self.route(link).is_some()
    }

    /// What answers for a link here.
    pub(crate) fn route(&self, link: &LinkId) -> Option<Arc<Route>> {
        self.shared.server.routes().load().of_link(link).cloned()
    }

    /// A component that is linked here, to name it.
    pub(crate) fn anyone(&self) -> Option<ComponentKey> {
        self.shared.server.routes().load().anyone().cloned()
    }

    /// What keeps it from accepting, if anything does.
    pub(crate) fn trouble(&self) -> Option<Arc<String>> {
        self.trouble.load_full()
    }

    /// Stops accepting at once, and returns when the requests under way have ended; those that have not by
    /// [`Limits::drain_max`] are dropped.
    pub(crate) async fn close(self) {
        self.shared.stop.cancel();
        self.tasks.close();
        // Each connection ends itself by then; the second half of the bound is for what its last poll takes.
        if timeout(self.shared.limits.drain_max * 2, self.tasks.wait()).await.is_err() {
            tracing::warn!(address = %self.bound, "connections were left behind");
        }
    }

    fn taken(&self, conflict: &Conflict) -> LinkError {
        LinkError::Taken(format!("address {}: {} belongs to {}", self.bound, conflict.what, conflict.component))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // So that connections of a former process that are still closing do not keep the port; not so on Windows, where
    // the option lets two processes listen.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_error(address: SocketAddr, error: &io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::AddrInUse => LinkError::Taken(format!("address {address}: in use by another process")),
        io::ErrorKind::PermissionDenied => LinkError::Failed(format!(
            "address {address}: permission denied; take a port from 1024 on, or give the node CAP_NET_BIND_SERVICE"
        )),
        io::ErrorKind::AddrNotAvailable => LinkError::config(
            "address",
            format!(
                "{address} is no address of this machine; write `0.0.0.0:{}`, or start with --listen-host",
                address.port()
            ),
        ),
        _ => LinkError::Failed(format!("address {address}: {error}")),
    }
}

/// Accepts until the listener stops. A failing accept is waited out: it is nearly always a lack of file descriptors,
/// which goes when connections end.
async fn accept(socket: TcpListener, shared: Arc<Shared>, tasks: TaskTracker, trouble: Arc<ArcSwapOption<String>>) {
    let places = Arc::new(Semaphore::new(shared.limits.connections_max));
    let mut pause = ACCEPT_PAUSE_MIN;
    loop {
        let next = tokio::select! {
            () = shared.stop.cancelled() => return,
            next = next(&socket, &places) => next,
        };
        match next {
            Ok((stream, place)) => {
                pause = ACCEPT_PAUSE_MIN;
                if trouble.load().is_some() {
                    trouble.store(None);
                }
                let serving = connection::serve(stream, shared.clone());
                tasks.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) if ended_before_it_began(&error) => {}
            Err(error) => {
                let problem =
                    format!("cannot accept connections: {error}; is the limit of open files (ulimit -n) too low?");
                if trouble.load().is_none() {
                    tracing::warn!("{problem}");
                }
                trouble.store(Some(Arc::new(problem)));
                sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
            }
        }
    }
}

/// The next connection, once there is a place for it.
async fn next(socket: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = socket.accept().await?;
    Ok((stream, place))
}

/// The error is the connection's own: the client was gone before it was accepted.
fn ended_before_it_began(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
