//! A connection to a server that may be down: made when it is needed, kept for ever, and made anew when it breaks. That the
//! server is away is a state that `health` shows, not an error; every attempt has an end.

use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::context::TokioContext;
use tokio_util::task::AbortOnDropHandle;

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

/// A connection that is kept.
#[derive(Debug)]
pub struct Dialed<D: Dial> {
    dial: D,
    slot: Mutex<Slot<D::Connection>>,
    /// Where it lives, whoever asks for it first.
    threads: Handle,
    /// What is not well, for people.
    trouble: StdMutex<Option<String>>,
    _keeper: AbortOnDropHandle<()>,
}

/// What stands, if anything does.
struct Slot<C> {
    stands: Option<C>,
    /// Counts connections, so that a late failure of an old one does not end a new one.
    number: u64,
    not_before: Instant,
    pause: Duration,
}

impl<C> fmt::Debug for Slot<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("stands", &self.stands.is_some()).field("number", &self.number).finish()
    }
}

impl<D: Dial> Dialed<D> {
    /// A connection that makes itself, from now on.
    pub fn new(dial: D) -> Arc<Self> {
        let trouble = format!("not connected to {}: connecting", dial.shown());
        let slot = Slot { stands: None, number: 0, not_before: Instant::now(), pause: PAUSE_MIN };
        Arc::new_cyclic(|this| Self {
            dial,
            slot: Mutex::new(slot),
            threads: Handle::current(),
            trouble: StdMutex::new(Some(trouble)),
            _keeper: AbortOnDropHandle::new(tokio::spawn(keep(this.clone()))),
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
    pub async fn get(&self) -> Result<(u64, D::Connection), String> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = &slot.stands {
            return Ok((slot.number, connection.clone()));
        }
        if Instant::now() < slot.not_before {
            return Err(self.health().err().unwrap_or_else(|| self.away("connecting")));
        }
        let made = TokioContext::new(timeout(CONNECT_MAX, self.dial.dial()), self.threads.clone()).await;
        match made.unwrap_or_else(|_| Err(format!("no answer within {CONNECT_MAX:?}"))) {
            Ok(connection) => {
                slot.stands = Some(connection.clone());
                slot.number += 1;
                slot.pause = PAUSE_MIN;
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
                tracing::info!(server = self.dial.shown(), "connected");
                Ok((slot.number, connection))
            }
            Err(why) => {
                slot.not_before = Instant::now() + slot.pause;
                slot.pause = (slot.pause * 2).min(PAUSE_MAX);
                Err(self.away(&why))
            }
        }
    }

    /// Gives up a connection that broke, unless there is a newer one already. Says so for people.
    pub async fn broke(&self, number: u64, why: &str) -> String {
        let mut slot = self.slot.lock().await;
        if slot.number != number {
            return format!("not connected to {}: {why}", self.dial.shown());
        }
        slot.stands = None;
        self.away(why)
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
                Err(why) => drop(kept.broke(number, &why).await),
            }
        }
    }
}
