//! What is replayed of an ordered link. In its stream it would stand behind all that waits for it, and no consumer hands out
//! what stands last. So it has a stream of its own beside that, `TRELLIS_REPLAY_<stream>`, with one subject and one durable
//! consumer for each consumer of the stream, and is pulled first. What is handled is gone from there.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::{Context, stream};
use trellis_provider::delivery::{CLAIM, Trouble};

use crate::tail::{existing, made};

/// How often it is asked for while there is something else to pull.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The replays for one consumer.
pub(crate) struct Replays {
    context: Context,
    /// The stream that they are in.
    pub(crate) stream: String,
    consumer: String,
}

impl Replays {
    pub(crate) fn new(context: Context, stream: &str, consumer: &str) -> Self {
        Self { context, stream: format!("TRELLIS_REPLAY_{stream}"), consumer: consumer.into() }
    }

    /// Under which they are published there.
    pub(crate) fn subject(&self) -> String {
        format!("{}.{}", self.stream, self.consumer)
    }

    /// The stream, found or made.
    pub(crate) async fn found(&self) -> Result<stream::Stream, Trouble> {
        if let Some(stream) = existing(&self.context, &self.stream).await? {
            return Ok(stream);
        }
        let config = stream::Config {
            name: self.stream.clone(),
            subjects: vec![format!("{}.*", self.stream)],
            retention: stream::RetentionPolicy::WorkQueue,
            ..stream::Config::default()
        };
        made(&self.context, config).await.map_err(|why| self.failed(why))
    }

    /// What they are pulled with, found or made.
    pub(crate) async fn consumer(&self) -> Result<Consumer<pull::Config>, Trouble> {
        let config = pull::Config {
            durable_name: Some(self.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: CLAIM,
            max_deliver: -1,
            filter_subject: self.subject(),
            ..pull::Config::default()
        };
        let found = self.found().await?.get_or_create_consumer(&self.consumer, config).await;
        found.map_err(|why| self.failed(why))
    }

    fn failed(&self, why: impl std::fmt::Display) -> Trouble {
        format!("the stream of replays `{}`: {why}", self.stream)
    }
}
