//! A connection to a server that may be down: made when it is needed, kept for ever, and made anew when it breaks. That the
//! server is away is a state that `health` shows, not an error; every attempt has an end.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::Threads;

/// How long one attempt to connect may take, with TLS, log-in and what is looked up then.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How often a connection is looked at that nobody uses.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The pauses between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How one technology connects.
#[async_trait]
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// What stands then: a handle that many may use at once.
    type Connection: Clone + Send + Sync + 'static;

    /// The server as people see it, without anything secret.
    fn shown(&self) -> &str;

    /// Connects, and makes sure that the server can be used.
    ///
    /// # Errors
    /// Why not, for people: with the fix where there is one.
    async fn dial(&self) -> Result<Self::Connection, String>;

    /// Whether the connection still stands. Has an end of its own.
    ///
    /// # Errors
    /// It does not: why, for people.
    async fn look(&self, connection: &Self::Connection) -> Result<(), String>;
}

/// A connection that is kept. It lives on threads that guests cannot hold up, and is made there whoever asks for it: who waits
/// for it there must not have to wait for a guest.
pub struct Dialed<D: Dial> {
    dial: D,
    stands: StdMutex<Standing<D::Connection>>,
    /// Had by who connects.
    pace: Mutex<Pace>,
    threads: Handle,
    /// What is not well, for people.
    trouble: StdMutex<Option<String>>,
    _keeper: AbortOnDropHandle<()>,
}

/// What stands, if anything does.
struct Standing<C> {
    connection: Option<C>,
    /// Counts connections, so that a late failure of an old one does not end a new one.
    number: u64,
}

/// When it is tried next to connect.
struct Pace {
    not_before: Instant,
    pause: Duration,
}

impl<D: Dial> fmt::Debug for Dialed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialed({:?})", self.dial)
    }
}

impl<D: Dial> Dialed<D> {
    /// A connection that makes itself, from now on.
    pub fn new(dial: D, threads: &Threads) -> Arc<Self> {
        let (trouble, threads) = (format!("not connected to {}: connecting", dial.shown()), threads.handle());
        Arc::new_cyclic(|this| Self {
            dial,
            stands: StdMutex::new(Standing { connection: None, number: 0 }),
            pace: Mutex::new(Pace { not_before: Instant::now(), pause: PAUSE_MIN }),
            trouble: StdMutex::new(Some(trouble)),
            _keeper: AbortOnDropHandle::new(threads.spawn(keep(this.clone()))),
            threads,
        })
    }

    /// Whether it stands.
    ///
    /// # Errors
    /// `not connected to URL: reason`.
    pub fn health(&self) -> Result<(), String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// The connection that stands, or is made now, with its number. Who comes too early after a failed attempt gets the
    /// same answer again.
    ///
    /// # Errors
    /// `not connected to URL: reason`.
    pub async fn get(self: &Arc<Self>) -> Result<(u64, D::Connection), String> {
        if let Some(standing) = self.standing() {
            return Ok(standing);
        }
        let connecting = self.threads.spawn(self.clone().connect());
        connecting.await.unwrap_or_else(|why| Err(self.away(&why.to_string())))
    }

    fn standing(&self) -> Option<(u64, D::Connection)> {
        let stands = self.stands();
        stands.connection.clone().map(|connection| (stands.number, connection))
    }

    async fn connect(self: Arc<Self>) -> Result<(u64, D::Connection), String> {
        let mut pace = self.pace.lock().await;
        if let Some(standing) = self.standing() {
            return Ok(standing);
        }
        if Instant::now() < pace.not_before {
            return Err(self.health().err().unwrap_or_else(|| self.away("connecting")));
        }
        let made = timeout(CONNECT_MAX, self.dial.dial()).await;
        match made.unwrap_or_else(|_| Err(format!("no answer within {CONNECT_MAX:?}"))) {
            Ok(connection) => {
                pace.pause = PAUSE_MIN;
                tracing::info!(server = self.dial.shown(), "connected");
                Ok((self.connected(connection.clone()), connection))
            }
            Err(why) => {
                pace.not_before = Instant::now() + pace.pause;
                pace.pause = (pace.pause * 2).min(PAUSE_MAX);
                Err(self.away(&why))
            }
        }
    }

    /// Keeps a connection, and returns its number.
    fn connected(&self, connection: D::Connection) -> u64 {
        let mut stands = self.stands();
        stands.connection = Some(connection);
        stands.number += 1;
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        stands.number
    }

    /// Gives up a connection that broke, unless there is a newer one already. Says so for people.
    pub fn broke(&self, number: u64, why: &str) -> String {
        let mut stands = self.stands();
        if stands.number != number {
            return format!("not connected to {}: {why}", self.dial.shown());
        }
        stands.connection = None;
        self.away(why)
    }

    fn stands(&self) -> MutexGuard<'_, Standing<D::Connection>> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes and words that there is no connection.
    fn away(&self, why: &str) -> String {
        let text = format!("not connected to {}: {why}", self.dial.shown());
        let before = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).replace(text.clone());
        if before.as_ref() != Some(&text) {
            tracing::warn!("{text}");
        }
        text
    }
}

/// Connects what is not connected, and finds out when it no longer is, for as long as anybody has the connection.
async fn keep<D: Dial>(kept: Weak<Dialed<D>>) {
    let mut pause = PAUSE_MIN;
    loop {
        tokio::time::sleep(pause).await;
        let Some(kept) = kept.upgrade() else { return };
        pause = PAUSE_MIN;
        if let Ok((number, connection)) = kept.get().await {
            match kept.dial.look(&connection).await {
                Ok(()) => pause = LOOK_EVERY,
                Err(why) => drop(kept.broke(number, &why)),
            }
        }
    }
}
