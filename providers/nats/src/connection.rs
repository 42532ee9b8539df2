//! Connections to NATS systems, shared by links with equal settings and kept for ever: a server that is down is a state
//! that `health` shows, not an error.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::connection::State as ClientState;
use async_nats::jetstream::{self, Context};
use async_nats::{AuthError, Client, ClientError, ConnectOptions, Event, Server, ServerAddr};
use bytes::Bytes;
use futures::StreamExt as _;
use nkeys::KeyPair;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::context::TokioContext;
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::{LinkError, Threads, explained};
use trellis_wire::{CallError, Link, Secret, credentials};

use crate::Options;
use crate::config::{Auth, Inbox, Settings};

/// The oldest server that keeps the promises this provider builds on (major, minor).
const SERVER_MIN: (u64, u64) = (2, 10);
/// How many messages wait in the client's own buffer of one subscription, which counts no bytes. What wakes components
/// is taken out at once into a buffer that does (`subscribe.rs`).
const CLIENT_MESSAGES_MAX: usize = 1024;
/// The longest pause between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(4);
/// How long one attempt to connect may take, TLS and log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is checked; two missed answers break it.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a round trip may take before a new subscription counts as not known to stand.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(2);
/// How many events of the client may wait to be looked at. One that finds no room is dropped, and so may the library.
const EVENTS_MAX: usize = 128;
/// How often the client is asked how it is connected, whatever its events said.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one request to JetStream may take.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Every connection of this node's provider. One that no link uses any more is closed.
#[derive(Debug)]
pub(crate) struct Connections {
    options: Options,
    threads: Threads,
    open: Mutex<HashMap<Settings, Weak<Connection>>>,
}

impl Connections {
    pub(crate) fn new(options: Options) -> Self {
        Self { options, threads: Threads::default(), open: Mutex::default() }
    }

    /// The same on these threads.
    pub(crate) fn on(self, threads: Threads) -> Self {
        Self { threads, ..self }
    }

    /// The connection that a link's configuration asks for.
    pub(crate) async fn get(&self, link: &Link) -> Result<Arc<Connection>, LinkError> {
        self.to(Settings::read(link, &self.options)?).await
    }

    /// The connection to the lattice's own server, as the node itself.
    pub(crate) async fn own(&self) -> Result<Arc<Connection>, LinkError> {
        self.to(Settings::own(&self.options)).await
    }

    async fn to(&self, settings: Settings) -> Result<Arc<Connection>, LinkError> {
        let mut open = self.open.lock().await;
        if let Some(connection) = open.get(&settings).and_then(Weak::upgrade) {
            return Ok(connection);
        }
        open.retain(|_, connection| connection.strong_count() > 0);
        let opened = TokioContext::new(Connection::open(&settings), self.threads.handle()).await;
        let connection = Arc::new(opened?);
        open.insert(settings, Arc::downgrade(&connection));
        Ok(connection)
    }
}

/// `Err`: not connected, to what and why, for people.
type State = Result<(), String>;

/// A connection to one NATS system.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    state: watch::Receiver<State>,
    _watcher: AbortOnDropHandle<()>,
}

impl Connection {
    /// Waits until it stands, or has failed for so long.
    pub(crate) async fn stands(&self, at_most: Duration) {
        let mut state = self.state.clone();
        // What is wrong then, who uses it is told.
        let _ = tokio::time::timeout(at_most, state.wait_for(Result::is_ok)).await;
    }

    /// JetStream on this connection, in a domain if one is named.
    pub(crate) fn jetstream(&self, domain: Option<&str>) -> Context {
        let client = self.client.clone();
        let mut context = match domain {
            Some(domain) => jetstream::with_domain(client, domain),
            None => jetstream::new(client),
        };
        context.set_timeout(REQUEST_MAX);
        context
    }

    /// Begins to connect, and returns without waiting for it.
    async fn open(settings: &Settings) -> Result<Self, LinkError> {
        let servers = servers(settings)?;
        let urls = servers.iter().map(shown).collect::<Vec<_>>().join(", ");
        let (state, watched) = watch::channel(Err(format!("not connected to {urls}: connecting")));
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let attempts = state.clone();
        let (dropped, at) = (AtomicU64::new(0), urls.clone());
        let client = connect_options(settings)
            .await?
            .name("trellis provider")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(CLIENT_MESSAGES_MAX)
            .reconnect_to_server_callback(move |servers, _| {
                note_failures(&attempts, &servers);
                std::future::ready(None)
            })
            .event_callback(move |event| {
                match event {
                    Event::SlowConsumer(_) => note_dropped(&dropped, &at),
                    // Where the queue is full the watcher will find out by itself.
                    event => drop(events_in.try_send(event)),
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|why| LinkError::config(settings.urls_key, why.to_string()))?;
        let watcher = Watcher { client: client.clone(), urls, state };
        let watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run(events)));
        Ok(Self { client, state: watched, _watcher: watcher })
    }

    /// `not connected to URL: reason`, unless it is.
    pub(crate) fn health(&self) -> Result<(), String> {
        self.state.borrow().clone()
    }

    /// Waits until it stands again. Where nobody noticed yet that it is broken, that is waited for, too.
    pub(crate) async fn mends(&self) {
        let mut state = self.state.clone();
        for is_awaited in [Result::is_err, Result::is_ok] {
            if state.wait_for(is_awaited).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Awaits `done`, but no longer than the connection stands: who waits for an answer learns that none can come.
    pub(crate) async fn during<T>(&self, done: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let mut state = self.state.clone();
        state.borrow_and_update().clone().map_err(CallError::Unavailable)?;
        let broken = async {
            let why = state.wait_for(Result::is_err).await.ok().and_then(|state| state.clone().err());
            CallError::Unavailable(why.unwrap_or_else(|| "the connection to NATS is closed".into()))
        };
        tokio::select! {
            biased;
            outcome = done => outcome,
            why = broken => Err(why),
        }
    }

    /// Waits until the server has handled all that was sent before: a message to ourselves comes after it. What is not
    /// connected is not waited for.
    pub(crate) async fn round_trip(&self) {
        if self.health().is_err() {
            return;
        }
        let inbox = self.client.new_inbox();
        let round = async {
            let mut comes = self.client.subscribe(inbox.clone()).await.ok()?;
            self.client.publish(inbox, Bytes::new()).await.ok()?;
            comes.next().await
        };
        if !matches!(tokio::time::timeout(ROUND_TRIP_MAX, round).await, Ok(Some(_))) {
            tracing::debug!("not known yet whether the subscription stands");
        }
    }
}

async fn connect_options(settings: &Settings) -> Result<ConnectOptions, LinkError> {
    // By default an inbox that nobody can guess, apart from the bus's and from other connections'.
    let inbox = match &settings.inbox {
        Inbox::At(prefix) => prefix.clone(),
        Inbox::Below(prefix) => format!("{prefix}.{:016x}", rand::random::<u64>()),
    };
    let mut options = ConnectOptions::new().custom_inbox_prefix(inbox);
    options = match &settings.auth {
        Auth::None => options,
        Auth::Credentials(creds) => {
            let no_creds =
                |why: &dyn std::fmt::Display| LinkError::config("creds", format!("is no .creds file: {why}"));
            let text = String::from_utf8(creds.bytes()?).map_err(|_| no_creds(&"it is no text"))?;
            options.credentials(&text).map_err(|why| no_creds(&why))?
        }
        Auth::NkeySeed(path) => {
            let text = tokio::fs::read_to_string(path).await;
            let text =
                text.map_err(|why| LinkError::Failed(format!("the nkey seed file {}: {why}", path.display())))?;
            let seed = Secret::new(text.trim());
            KeyPair::from_seed(seed.expose())
                .map_err(|why| LinkError::Failed(format!("{} holds no nkey seed (SU...): {why}", path.display())))?;
            options.nkey(seed.expose().into())
        }
        Auth::Nkey(seed) => {
            key_pair(seed)?;
            options.nkey(seed.expose().into())
        }
        Auth::Jwt { jwt, seed } => {
            let key = Arc::new(key_pair(seed)?);
            options.jwt(jwt.expose().into(), move |nonce| {
                let key = key.clone();
                async move { key.sign(&nonce).map_err(AuthError::new) }
            })
        }
        Auth::Password { user, password } => options.user_and_password(user.expose().into(), password.expose().into()),
        Auth::Token(token) => options.token(token.expose().into()),
    };
    if settings.tls.is_empty() {
        return Ok(options);
    }
    Ok(options.tls_client_config(settings.tls.client()?).require_tls(settings.tls.ca.is_some()))
}

fn key_pair(seed: &Secret) -> Result<KeyPair, LinkError> {
    KeyPair::from_seed(seed.expose())
        .map_err(|why| LinkError::config("client_seed", format!("is no nkey seed (SU...): {why}")))
}

/// How the URL of a server may begin.
const SCHEMES: [&str; 4] = ["nats", "tls", "ws", "wss"];

/// The servers that a link names.
pub(crate) fn servers(settings: &Settings) -> Result<Vec<ServerAddr>, LinkError> {
    let key = settings.urls_key;
    let mut servers = Vec::new();
    for url in &settings.urls {
        // A user without a password is a token: secret, too. It is looked for first, so that no other message shows it.
        if url.contains('@') || credentials::held(key, url).is_some() {
            let problem = "holds a user, password or token, which `status` and logs would show: take it out, and give the \
                           link `secrets:` named `password` (beside config `user`), `token`, `creds`, or `client_seed` \
                           with or without `client_jwt`";
            return Err(LinkError::config(key, problem));
        }
        let server: ServerAddr = url.parse().map_err(|why| LinkError::config(key, format!("`{url}`: {why}")))?;
        if !SCHEMES.contains(&server.scheme()) {
            let problem = format!("`{url}` is no URL of NATS: write {}://HOST:PORT", SCHEMES.join("://, "));
            return Err(LinkError::config(key, problem));
        }
        servers.push(server);
    }
    if servers.is_empty() {
        return Err(LinkError::config(key, "names no server: give a URL such as nats://127.0.0.1:4222"));
    }
    Ok(servers)
}

/// A server as people see it. Its URL holds no credentials: those were refused.
fn shown(server: &ServerAddr) -> String {
    format!("{}://{}:{}", server.scheme(), server.host(), server.port())
}

/// Counts a message that found no room in the client's own buffer.
fn note_dropped(dropped: &AtomicU64, server: &str) {
    let dropped = dropped.fetch_add(1, Ordering::Relaxed) + 1;
    if dropped.is_power_of_two() {
        tracing::warn!(server, dropped, "a subscription's buffer is full: messages are lost");
    }
}

/// Turns what the client library tells into one [`State`]. Its events say why; as they may be dropped, whether the
/// connection stands is read from the client itself, at each event and every [`LOOK_INTERVAL`].
struct Watcher {
    client: Client,
    urls: String,
    state: watch::Sender<State>,
}

impl Watcher {
    async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.on(event).await,
                    None => return,
                },
                _ = look.tick() => {}
            }
            self.look().await;
        }
    }

    /// What is not known to stand though the client is connected is greeted, again and again until it answers.
    async fn look(&self) {
        let stands = self.client.connection_state() == ClientState::Connected;
        let known = self.state.borrow().is_ok();
        match (stands, known) {
            (true, false) => self.greet().await,
            (false, true) => self.disconnected("the connection broke"),
            (true, true) | (false, false) => {}
        }
    }

    async fn on(&self, event: Event) {
        match event {
            // It may be another server than before, and of another version.
            Event::Connected => self.greet().await,
            Event::Disconnected => self.disconnected("the connection broke"),
            Event::Closed => self.disconnected("the connection is closed"),
            Event::ServerError(why) => {
                let server = &self.urls;
                tracing::warn!(server, %why, "the NATS server reports an error");
            }
            // What the library calls an I/O or time-out error is told better by `note_failures`.
            Event::ClientError(ClientError::Other(why)) if !matches!(why.as_str(), "IO error" | "timed out") => {
                self.disconnected(&why);
            }
            Event::SlowConsumer(_) | Event::ClientError(_) | Event::LameDuckMode | Event::Draining => {}
        }
    }

    /// A server answered: whether it can be used, its version says.
    async fn greet(&self) {
        // The client works off its queue only when it knows the new server, so after this the version is the new one.
        let answered = matches!(tokio::time::timeout(ROUND_TRIP_MAX, self.client.flush()).await, Ok(Ok(())));
        // It may have gone meanwhile.
        if !answered || self.client.connection_state() != ClientState::Connected {
            return;
        }
        let Some(server) = self.client.try_server_info() else { return };
        if is_recent(&server.version) {
            let (server, version) = (&self.urls, server.version);
            tracing::info!(server, version, "connected to NATS");
            self.state.send_modify(|state| *state = Ok(()));
        } else {
            let (major, minor) = SERVER_MIN;
            self.disconnected(&format!("its version is {}; {major}.{minor} or later is needed", server.version));
        }
    }

    fn disconnected(&self, why: &str) {
        if self.state.send_replace(Err(format!("not connected to {}: {why}", self.urls))).is_ok() {
            let server = &self.urls;
            tracing::warn!(server, why, "not connected to NATS");
        }
    }
}

/// Before each attempt the library shows how the last ones failed, which no event of it says.
fn note_failures(state: &watch::Sender<State>, servers: &[Server]) {
    let failed: Vec<_> = servers.iter().filter(|server| server.last_error.is_some()).collect();
    let Some(why) = failed.first().and_then(|server| server.last_error.as_deref()) else { return };
    let urls = failed.iter().map(|server| shown(&server.addr)).collect::<Vec<_>>().join(", ");
    let why = format!("not connected to {urls}: {}", explained(why.trim_start_matches("IO error: ")));
    state.send_modify(|state| *state = Err(why));
}

/// 0, then from 100 ms doubling to [`RECONNECT_DELAY_MAX`].
fn reconnect_delay(attempts: usize) -> Duration {
    match u32::try_from(attempts).unwrap_or(u32::MAX) {
        0 | 1 => Duration::ZERO,
        attempts => Duration::from_millis(100).saturating_mul(1 << (attempts - 2).min(8)).min(RECONNECT_DELAY_MAX),
    }
}

/// Whether a version such as `2.10.25` is at least [`SERVER_MIN`].
fn is_recent(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u64>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= SERVER_MIN)
}

#[cfg(test)]
mod tests {
    use trellis_wire::Config;

    use super::*;
    use crate::testing::link;

    #[tokio::test]
    async fn links_with_equal_settings_share_a_connection() {
        let connections = Connections::new(Options::default());
        let get = async |url: &str, subject: &str| {
            let config = Config::from_iter([("url", url), ("subscriptions", subject)]);
            connections.get(&link(config)).await.unwrap()
        };
        let a = get("nats://127.0.0.1:1", "a").await;
        let (b, c) = (get("nats://127.0.0.1:1", "b").await, get("nats://127.0.0.1:2", "a").await);
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
        drop((a, b, c));
        drop(get("nats://127.0.0.1:3", "a").await);
        assert_eq!(connections.open.lock().await.len(), 1, "what no link uses is forgotten");
    }

    #[tokio::test]
    async fn the_state_is_right_though_every_event_was_dropped() {
        let mut server = trellis_bus::testing::NatsServer::start(false);
        let client = ConnectOptions::new().max_reconnects(None).connect(&server.url).await.unwrap();
        let (state, mut watched) = watch::channel(Err(String::new()));
        let (_no_events, events) = mpsc::channel(EVENTS_MAX);
        let watcher = Watcher { client, urls: server.url.clone(), state };
        let _watching = AbortOnDropHandle::new(tokio::spawn(watcher.run(events)));
        let mut until = async |ok: bool| {
            let so = watched.wait_for(|state| state.is_ok() == ok);
            tokio::time::timeout(Duration::from_secs(10), so).await.expect("the state is seen").unwrap().clone()
        };
        until(true).await.unwrap();
        server.kill();
        assert!(until(false).await.unwrap_err().contains("the connection broke"));
        server.restart();
        until(true).await.unwrap();
    }

    #[tokio::test]
    async fn a_secret_in_a_url_is_refused_and_never_shown() {
        for url in
            ["nats://user:hunter2@host:4222", "nats://hunter2@host", "http://x:hunter2@host", "nats://h?pass=hunter2"]
        {
            let config = Config::from_iter([("cluster_uris", url)]);
            let refused = Connections::new(Options::default()).get(&link(config)).await.unwrap_err().to_string();
            assert!(refused.starts_with("config `cluster_uris`: ") && refused.contains("client_seed"), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[tokio::test]
    async fn what_is_no_ca_or_seed_is_named_by_its_key() {
        for (key, value) in [("tls_ca", "-----BEGIN nothing"), ("tls_ca", "/nowhere/ca.pem"), ("client_seed", "SUX")] {
            let config = Config::from_iter([("url", "nats://127.0.0.1:1"), (key, value)]);
            let refused = Connections::new(Options::default()).get(&link(config)).await.unwrap_err();
            assert!(matches!(&refused, LinkError::Config { key: named, .. } if named == key), "{refused}");
        }
    }
}
