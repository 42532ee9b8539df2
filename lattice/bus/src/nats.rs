//! The bus over NATS.
//!
//! The connection is kept for ever: a server that is down, at the start or later, is a state that people see and not
//! an error. What is published meanwhile fails at once; subscriptions stand again by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, Event, HeaderMap, PublishErrorKind, RequestErrorKind, ServerError};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use crate::options::shown;
use crate::{BusError, Connection, Delivered, Options, OptionsError, SUBSCRIPTION_MESSAGES_MAX, while_connected};

/// The oldest server that keeps every promise that Trellis builds on (major, minor).
const SERVER_MIN: (u64, u64) = (2, 10);
/// How often an idle connection is checked; two missed answers break it.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long one attempt to connect may take, TLS and log-in included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two attempts: shorter than the 6 s after which a silent node counts as lost.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);
/// How long a round trip to the server may take before a flush gives up.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// How many commands to the client, such as a publish, may wait for the socket.
const COMMANDS_MAX: usize = 2048;
/// How many events of the client may wait to be looked at. One that finds no room is dropped, and so may the library.
const EVENTS_MAX: usize = 128;
/// How often the client is asked how it is connected, whatever its events said.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A connection to NATS. Clones share it; the last one closes it.
#[derive(Debug, Clone)]
pub struct Nats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    connection: watch::Receiver<Connection>,
    overflowed: Arc<AtomicU64>,
    _watcher: AbortOnDropHandle<()>,
}

impl Nats {
    /// Begins to connect, and returns without waiting for it: [`Nats::connection`] says how it goes.
    ///
    /// # Errors
    /// Only what is wrong with the options themselves; a server that is down or refuses us is none.
    pub async fn connect(options: &Options) -> Result<Self, OptionsError> {
        let servers = options.servers()?;
        let urls = options.urls.iter().map(|url| shown(url)).collect::<Vec<_>>().join(", ");
        let reason = format!("{urls}: connecting");
        let (connection, watched) = watch::channel(Connection::Disconnected { reason });
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let attempts = connection.clone();
        let overflowed = Arc::<AtomicU64>::default();
        let counted = overflowed.clone();
        let client = options
            .client()
            .await?
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(COMMANDS_MAX)
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            .reconnect_to_server_callback(move |servers, _| {
                note_failures(&attempts, &servers);
                std::future::ready(None)
            })
            .event_callback(move |event| {
                match event {
                    Event::SlowConsumer(_) => note_overflow(&counted),
                    // Where the queue is full the watcher will find out by itself.
                    event => drop(events_in.try_send(event)),
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|why| OptionsError::Url { url: urls.clone(), problem: why.to_string() })?;
        let watcher = Watcher { client: client.clone(), urls, connection };
        let watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run(events)));
        Ok(Self(Arc::new(Inner { client, connection: watched, overflowed, _watcher: watcher })))
    }

    pub(crate) async fn publish(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: Bytes,
    ) -> Result<(), BusError> {
        let (size, headers) = (payload.len(), written(headers));
        let published = async {
            match headers {
                Some(headers) => self.0.client.publish_with_headers(subject.to_owned(), headers, payload).await,
                None => self.0.client.publish(subject.to_owned(), payload).await,
            }
            .map_err(|why| match why.kind() {
                PublishErrorKind::MaxPayloadExceeded => self.too_large(size),
                PublishErrorKind::InvalidSubject => BusError::Subject(why.to_string()),
                PublishErrorKind::Send => closed(),
            })
        };
        while_connected(self.connection(), published).await
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Delivered, BusError> {
        let size = payload.len();
        let mut request = async_nats::Request::new().payload(payload).timeout(Some(timeout));
        if let Some(headers) = written(headers) {
            request = request.headers(headers);
        }
        let answered = async {
            self.0.client.send_request(subject.to_owned(), request).await.map(delivered).map_err(|why| {
                match why.kind() {
                    RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.into() },
                    RequestErrorKind::TimedOut => BusError::TimedOut { subject: subject.into(), after: timeout },
                    RequestErrorKind::InvalidSubject => BusError::Subject(why.to_string()),
                    RequestErrorKind::MaxPayloadExceeded => self.too_large(size),
                    RequestErrorKind::Other => closed(),
                }
            })
        };
        while_connected(self.connection(), answered).await
    }

    pub(crate) async fn subscribe(
        &self,
        subject: &str,
        queue_group: Option<&str>,
    ) -> Result<async_nats::Subscriber, BusError> {
        let subscriber = match queue_group {
            Some(group) => self.0.client.queue_subscribe(subject.to_owned(), group.to_owned()).await,
            None => self.0.client.subscribe(subject.to_owned()).await,
        }
        .map_err(|why| match why.kind() {
            async_nats::client::SubscribeErrorKind::Other => closed(),
            _ => BusError::Subject(why.to_string()),
        })?;
        let connected = self.0.connection.borrow().is_connected();
        if connected && let Err(why) = self.flush().await {
            tracing::debug!(subject, %why, "not known yet whether the subscription stands");
        }
        Ok(subscriber)
    }

    /// A round trip: a message to ourselves. The server handles what one connection sends in order, so when it comes all
    /// before has been handled. A request that nobody answers would do, but for those who listen to everything.
    pub(crate) async fn flush(&self) -> Result<(), BusError> {
        let inbox = self.0.client.new_inbox();
        let round = async {
            let mut comes = self.0.client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
            self.0.client.publish(inbox, Bytes::new()).await.map_err(|_| closed())?;
            comes.next().await.ok_or_else(closed).map(drop)
        };
        let round = async {
            let late = || BusError::Disconnected(format!("the server did not answer within {FLUSH_TIMEOUT:?}"));
            tokio::time::timeout(FLUSH_TIMEOUT, round).await.unwrap_or_else(|_| Err(late()))
        };
        while_connected(self.connection(), round).await
    }

    pub(crate) fn payload_bytes_max(&self) -> usize {
        self.0.client.max_payload()
    }

    pub(crate) fn connection(&self) -> watch::Receiver<Connection> {
        self.0.connection.clone()
    }

    pub(crate) fn overflowed(&self) -> u64 {
        self.0.overflowed.load(Ordering::Relaxed)
    }

    fn too_large(&self, bytes: usize) -> BusError {
        BusError::TooLarge { bytes, max: self.payload_bytes_max() }
    }
}

/// A message of the client library as ours.
pub(crate) fn delivered(message: async_nats::Message) -> Delivered {
    let mut headers: Vec<(String, String)> = Vec::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        headers.extend(values.iter().map(|value| (name.to_string(), value.to_string())));
    }
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    Delivered {
        subject: message.subject.into_string(),
        reply: message.reply.map(async_nats::Subject::into_string),
        headers,
        payload: message.payload,
    }
}

/// Counts a message that found its subscription full.
fn note_overflow(overflowed: &AtomicU64) {
    let overflowed = overflowed.fetch_add(1, Ordering::Relaxed) + 1;
    if overflowed.is_power_of_two() {
        tracing::warn!(overflowed, "a subscription is full: its newest messages are dropped");
    }
}

/// Turns what the client library tells into one [`Connection`]. Its events say why; as they may be dropped, whether the
/// connection stands is read from the client itself, at each event and every [`LOOK_INTERVAL`].
struct Watcher {
    client: Client,
    urls: String,
    connection: watch::Sender<Connection>,
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
        let stands = self.client.connection_state() == State::Connected;
        let known = self.connection.borrow().is_connected();
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
            Event::ServerError(ServerError::AuthorizationViolation) => self.refused("the server does not let us in"),
            Event::ServerError(why) => tracing::warn!(server = self.urls, %why, "the NATS server reports an error"),
            Event::ClientError(ClientError::Other(why)) => self.failed(&why),
            Event::SlowConsumer(_) | Event::ClientError(_) | Event::LameDuckMode | Event::Draining => {}
        }
    }

    /// A server answered: whether it can be used, its version says.
    async fn greet(&self) {
        // The client works off its queue only when it knows the new server, so after this the version is the new one.
        let answered = matches!(tokio::time::timeout(FLUSH_TIMEOUT, self.client.flush()).await, Ok(Ok(())));
        // It may have gone meanwhile.
        if !answered || self.client.connection_state() != State::Connected {
            return;
        }
        let Some(server) = self.client.try_server_info() else { return };
        if is_recent(&server.version) {
            tracing::info!(server = self.urls, version = server.version, "connected to NATS");
            self.connection.send_replace(Connection::Connected { server: server.version });
        } else {
            let (major, minor) = SERVER_MIN;
            self.refused(&format!("its version is {}; {major}.{minor} or later is needed", server.version));
        }
    }

    /// An attempt failed. What the library calls an I/O or time-out error is told better by [`note_failures`].
    fn failed(&self, why: &str) {
        match why {
            "authorization violation" => self.refused("the server does not let us in: check the credentials"),
            "failed signing nonce" => self.refused("the credentials cannot sign what the server asks for"),
            "IO error" | "timed out" => {}
            why => self.disconnected(why),
        }
    }

    fn disconnected(&self, why: &str) {
        let reason = format!("{}: {why}", self.urls);
        if self.connection.send_replace(Connection::Disconnected { reason }).is_connected() {
            tracing::warn!(server = self.urls, why, "not connected to NATS");
        }
    }

    fn refused(&self, why: &str) {
        let refused = Connection::Refused(format!("{}: {why}", self.urls));
        if self.connection.send_replace(refused.clone()) != refused {
            tracing::error!(server = self.urls, why, "NATS cannot be used");
        }
    }
}

/// Before each attempt the library shows how the last ones failed, which no event of it says.
fn note_failures(connection: &watch::Sender<Connection>, servers: &[async_nats::Server]) {
    let failures = servers.iter().filter_map(|server| {
        let why = server.last_error.as_deref()?;
        Some(format!("{}: {}", shown(server.addr.as_url_str()), why.trim_start_matches("IO error: ")))
    });
    let reason = failures.collect::<Vec<_>>().join("; ");
    let refused = matches!(*connection.borrow(), Connection::Refused(_));
    if !reason.is_empty() && !refused {
        connection.send_replace(Connection::Disconnected { reason });
    }
}

/// 0, then from 100 ms doubling to [`RECONNECT_DELAY_MAX`].
fn reconnect_delay(attempts: usize) -> Duration {
    match u32::try_from(attempts).unwrap_or(u32::MAX) {
        0 | 1 => Duration::ZERO,
        attempts => Duration::from_millis(100).saturating_mul(1 << (attempts - 2).min(8)).min(RECONNECT_DELAY_MAX),
    }
}

/// Whether a version such as `2.10.25` or `2.12.0-RC.1` is at least [`SERVER_MIN`].
fn is_recent(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= SERVER_MIN,
        _ => false,
    }
}

/// `None` without headers, which saves the server from reading any. The caller has checked names and values.
fn written(headers: &[(&str, &str)]) -> Option<HeaderMap> {
    if headers.is_empty() {
        return None;
    }
    let mut written = HeaderMap::new();
    for (name, value) in headers {
        written.append(*name, *value);
    }
    Some(written)
}

fn closed() -> BusError {
    BusError::Disconnected("the connection is closed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_state_is_right_though_every_event_was_dropped() {
        let mut server = crate::testing::NatsServer::start(false);
        let client = async_nats::ConnectOptions::new().max_reconnects(None).connect(&server.url).await.unwrap();
        let (connection, mut watched) = watch::channel(Connection::Disconnected { reason: String::new() });
        let (_no_events, events) = mpsc::channel(EVENTS_MAX);
        let watcher = Watcher { client, urls: server.url.clone(), connection };
        let _watching = AbortOnDropHandle::new(tokio::spawn(watcher.run(events)));
        let mut until = async |connected: bool| {
            let so = watched.wait_for(|now| now.is_connected() == connected);
            tokio::time::timeout(Duration::from_secs(10), so).await.expect("the state is seen").unwrap();
        };
        until(true).await;
        server.kill();
        until(false).await;
        server.restart();
        until(true).await;
    }

    #[test]
    fn old_servers_are_told_from_recent_ones() {
        for (version, recent) in [("2.9.10", false), ("2.10.0", true), ("v2.15.1", true), ("3.0", true), ("", false)] {
            assert_eq!(is_recent(version), recent, "{version}");
        }
    }

    #[test]
    fn attempts_are_spread_and_bounded() {
        let delays: Vec<_> = [0, 1, 2, 3, 6, 7, 1000].map(reconnect_delay).into_iter().collect();
        let expected = [0, 0, 100, 200, 1600, 2000, 2000].map(Duration::from_millis);
        assert_eq!(delays, expected);
    }
}
