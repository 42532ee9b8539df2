//! HTTP in and out: the built-in server that wakes components, and the client through which they call.
//!
//! Read `server.rs` first: it is the way of a request. Around it, from the outside in: `listener` (sockets, shared by
//! links), `connection` and `pulse` (one connection and its clock), `routes` (whose request it is; pure), `body` (the
//! request's body, counted and paced), `refusal` (every response of ours). The other direction is `client`, which asks
//! `allow` (pure) first. `config`, `cors` and `tls` hold what links say.
//!
//! hyper and rustls are known here and, for its admin API, by the daemon; no other crate serves HTTP.

mod allow;
mod body;
mod client;
mod config;
mod connection;
mod cors;
mod limits;
mod listener;
mod pulse;
mod refusal;
mod routes;
mod server;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::future::join_all;
pub use limits::{Limits, Pace};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use trellis_provider::{LinkError, Permits, Provider};
use trellis_wire::{Answer, Call, CallError, Link, LinkId};

use crate::client::Client;
use crate::config::{ClientConfig, ServerConfig, TlsPem};
use crate::listener::Listener;
use crate::server::Route;

/// What a node chooses for all its links.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Replaces the host part of every address (`--listen-host`), so that several nodes fit one machine.
    pub listen_host: Option<IpAddr>,
    /// PEM certificates that outgoing HTTPS trusts beside the system's.
    pub outgoing_ca_file: Option<PathBuf>,
    /// The server's bounds.
    pub limits: Limits,
}

/// The HTTP provider of a node.
pub struct Http {
    options: Options,
    listeners: Mutex<Vec<Listener>>,
    /// Links that will be removed, with what answers for them.
    leaving: Mutex<HashMap<LinkId, Arc<Route>>>,
    grants: Mutex<HashMap<LinkId, Arc<ClientConfig>>>,
    /// Made at the first grant: reading the system's certificates takes a moment that many nodes never need.
    client: OnceCell<Client>,
}

impl Http {
    /// A provider without links.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            listeners: Mutex::default(),
            leaving: Mutex::default(),
            grants: Mutex::default(),
            client: OnceCell::new(),
        }
    }

    /// Where a link that wakes its component listens: the port is the one that was bound if the link said 0.
    pub fn bound(&self, link: &LinkId) -> Option<SocketAddr> {
        lock(&self.listeners).iter().find(|listener| listener.has(link)).map(Listener::bound)
    }

    /// The same as a URL: `https://` where its listener speaks TLS.
    pub fn url(&self, link: &LinkId) -> Option<String> {
        let listeners = lock(&self.listeners);
        let listener = listeners.iter().find(|listener| listener.has(link))?;
        Some(format!("{}://{}", listener.scheme(), listener.bound()))
    }

    /// Says that a link will be changed or removed. Until then it goes on answering, and a link that is applied in
    /// between may take its place, so that no request finds nobody there.
    pub fn leave(&self, link: &LinkId) {
        let route = lock(&self.listeners).iter().find_map(|listener| listener.route(link));
        if let Some(route) = route {
            lock(&self.leaving).insert(link.clone(), route);
        }
    }

    /// Puts a route on the listener at its address, which is bound if this is its first. What is given back is a
    /// listener that the link had before and nobody needs any more.
    fn listen(
        &self,
        link: &LinkId,
        config: &ServerConfig,
        tls: Option<(TlsPem, TlsAcceptor)>,
        route: Arc<Route>,
    ) -> Result<Option<Listener>, LinkError> {
        let mut listeners = lock(&self.listeners);
        let mut leaving = lock(&self.leaving);
        let before = listeners.iter().position(|listener| listener.has(link));
        if before.is_some() && !leaving.contains_key(link) {
            return Err(LinkError::Failed(format!("{link} is applied already")));
        }
        let (at, files) = (config.at.clone(), config.tls.as_ref());
        if let Some(listener) = listeners.iter().find(|listener| listener.bound() == config.address) {
            listener.add(link, at, files, route, |other| leaving.contains_key(other))?;
        } else {
            let bound = self.bind(&listeners, config, tls)?;
            listeners.push(bound);
            let listener = listeners.last().expect("it was pushed just now");
            listener.add(link, at, files, route, |_| false)?;
        }
        leaving.remove(link);
        let before = before.filter(|nth| listeners[*nth].bound() != config.address);
        let was_last = before.is_some_and(|nth| listeners[nth].take(link).is_some_and(|(_, was_last)| was_last));
        Ok(before.filter(|_| was_last).map(|nth| listeners.swap_remove(nth)))
    }

    fn bind(
        &self,
        listeners: &[Listener],
        config: &ServerConfig,
        tls: Option<(TlsPem, TlsAcceptor)>,
    ) -> Result<Listener, LinkError> {
        if let Some(listener) = listeners.iter().find(|listener| overlap(listener.bound(), config.address)) {
            let whose = listener.anyone().map_or_else(String::new, |component| format!(" by {component}"));
            let problem = format!("address {}: {} is in use{whose}", config.address, listener.bound());
            return Err(LinkError::Taken(problem));
        }
        Listener::bind(config.address, tls, self.options.limits.clone())
    }

    /// Stops routing to a link; what still answers for it, and its listener if that has no other link.
    fn take(&self, link: &LinkId) -> Option<(Arc<Route>, Option<Listener>)> {
        let mut listeners = lock(&self.listeners);
        let (nth, (route, was_last)) =
            listeners.iter().enumerate().find_map(|(nth, listener)| Some((nth, listener.take(link)?)))?;
        Some((route, was_last.then(|| listeners.swap_remove(nth))))
    }
}

#[async_trait]
impl Provider for Http {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        let config = ServerConfig::parse(&link.config, &link.secrets, self.options.listen_host)?;
        let tls = match &config.tls {
            Some(files) => Some((files.clone(), tls::acceptor(files).await?)),
            None => None,
        };
        let route = Arc::new(Route::new(config.clone(), permits, &self.options.limits));
        if let Some(former) = self.listen(&link.id, &config, tls, route)? {
            // The link is where it should be; what still answers at its former address may take its time.
            tokio::spawn(former.close());
        }
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        let config = ClientConfig::parse(&link.config)?;
        self.client.get_or_try_init(|| Client::new(self.options.outgoing_ca_file.as_deref())).await?;
        lock(&self.grants).insert(link.id, Arc::new(config));
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        lock(&self.grants).remove(link);
        let left = lock(&self.leaving).remove(link);
        let taken = self.take(link).or_else(|| left.map(|route| (route, None)));
        let Some((route, listener)) = taken else { return };
        let at_most = self.options.limits.drain_max;
        if let Some(listener) = listener {
            listener.close().await;
        }
        if timeout(at_most, route.ended()).await.is_err() {
            tracing::warn!(%link, "requests were still under way after {} s", at_most.as_secs());
        }
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        let Call::Http(call) = call else {
            return Err(CallError::Invalid("the HTTP provider answers HTTP requests only".into()));
        };
        let granted = lock(&self.grants).get(link).cloned();
        let (Some(config), Some(client)) = (granted, self.client.get()) else {
            return Err(CallError::Denied(format!("{link} is not applied on this node")));
        };
        client.call(&config.allowed, call).await.map(Answer::Http)
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        if lock(&self.grants).contains_key(link) {
            return Ok(());
        }
        match lock(&self.listeners).iter().find(|listener| listener.has(link)).map(Listener::trouble) {
            Some(None) => Ok(()),
            Some(Some(trouble)) => Err(trouble.to_string()),
            None => Err("not listening".into()),
        }
    }

    async fn drain(&self) {
        let listeners = std::mem::take(&mut *lock(&self.listeners));
        join_all(listeners.into_iter().map(Listener::close)).await;
    }
}

/// Whether two addresses claim the same port of the same host: the unspecified one is every host.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same_port = one.port() == other.port() && other.port() != 0;
    same_port && (one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// A panic elsewhere leaves these tables whole: every change to them is a single step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
