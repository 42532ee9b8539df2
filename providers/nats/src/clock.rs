//! The server's clock. What is kept beside a stream ends by it, and messages age by it: the clocks of nodes may differ, and
//! may be set.

use std::sync::Mutex;

use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use serde::Deserialize;
use tokio::time::Instant;
use trellis_provider::delivery::Trouble;

/// What a server says about a stream, as far as it is asked for here.
#[derive(Deserialize)]
struct Said {
    ts: String,
}

/// The clock of the server that has a stream.
pub(crate) struct ServerClock {
    context: Context,
    stream: String,
    /// What it was, in milliseconds since 1970, and when: between two looks no clock that someone sets moves it.
    known: Mutex<Option<(u64, Instant)>>,
}

impl ServerClock {
    pub(crate) fn new(context: Context, stream: String) -> Self {
        Self { context, stream, known: Mutex::default() }
    }

    /// Asks the server, and says its milliseconds since 1970.
    pub(crate) async fn look(&self) -> Result<u64, Trouble> {
        let failed =
            |why: &dyn std::fmt::Display| format!("asking the server of stream `{}` for its time: {why}", self.stream);
        let said = self.context.request::<_, _, Response<Said>>(format!("STREAM.INFO.{}", self.stream), &()).await;
        let said = match said.map_err(|why| failed(&why))? {
            Response::Ok(said) => said,
            Response::Err { error } => return Err(failed(&error)),
        };
        let at = async_nats::datetime::parse_rfc3339(&said.ts).map_err(|why| failed(&why))?;
        let now_ms = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        *self.known.lock().expect("nothing panics while it holds the time") = Some((now_ms, Instant::now()));
        Ok(now_ms)
    }

    /// Milliseconds since 1970, as the server counts them.
    pub(crate) async fn now_ms(&self) -> Result<u64, Trouble> {
        match self.known_ms() {
            Some(now_ms) => Ok(now_ms),
            None => self.look().await,
        }
    }

    /// The same, once the server was asked.
    pub(crate) fn known_ms(&self) -> Option<u64> {
        let known = *self.known.lock().expect("nothing panics while it holds the time");
        known.map(|(ms, at)| ms.saturating_add(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }
}
