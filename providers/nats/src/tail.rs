//! Streams of ours: whether there is one, how it is made, and what was stored last in it.

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::{Context, ErrorCode, Message, stream};
use futures::StreamExt as _;
use tokio::time::timeout;
use trellis_provider::delivery::Trouble;

use crate::connection::REQUEST_MAX;
use crate::entries::REPLICAS;

/// Messages that are asked for at a time.
const AT_ONCE: usize = 1_000;
/// How long the server keeps the consumer that reads, after the last read.
pub(crate) const READER_KEPT: std::time::Duration = std::time::Duration::from_secs(10);

/// A stream, if there is one of this name.
pub(crate) async fn existing(context: &Context, name: &str) -> Result<Option<stream::Stream>, Trouble> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(why)
            if matches!(why.kind(), GetStreamErrorKind::JetStream(refused)
                if refused.error_code() == ErrorCode::STREAM_NOT_FOUND) =>
        {
            Ok(None)
        }
        Err(why) => Err(format!("stream `{name}`: {why}")),
    }
}

/// Makes a stream on as many servers as keep what must not be lost.
pub(crate) async fn made(context: &Context, config: stream::Config) -> Result<stream::Stream, Trouble> {
    let too_few =
        [ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED, ErrorCode::CLUSTER_NO_PEERS, ErrorCode::INSUFFICIENT_RESOURCES];
    let mut refused = String::new();
    for &num_replicas in REPLICAS {
        match context.create_stream(stream::Config { num_replicas, ..config.clone() }).await {
            Ok(stream) => return Ok(stream),
            Err(why) => {
                refused = why.to_string();
                match why.kind() {
                    CreateStreamErrorKind::JetStream(why) if too_few.contains(&why.error_code()) => {}
                    _ => break,
                }
            }
        }
    }
    Err(refused)
}

/// Those of the last `max` messages of a stream that are of this subject, from the oldest on. None where there is no such
/// stream.
pub(crate) async fn tail(context: &Context, name: &str, filter: String, max: u64) -> Result<Vec<Message>, Trouble> {
    let Some(stream) = existing(context, name).await? else { return Ok(Vec::new()) };
    let failed = |why: &dyn std::fmt::Display| format!("reading stream `{name}`: {why}");
    let from = stream.cached_info().state.last_sequence.saturating_sub(max) + 1;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        filter_subject: filter,
        inactive_threshold: READER_KEPT,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let reader = stream.create_consumer(config).await.map_err(|why| failed(&why))?;
    let (mut read, mut left) = (Vec::new(), reader.cached_info().num_pending);
    while left > 0 {
        let fetched = reader.fetch().max_messages(AT_ONCE).messages().await;
        let (mut messages, before) = (fetched.map_err(|why| failed(&why))?, read.len());
        let silent = || failed(&"the server does not answer");
        while let Some(message) = timeout(REQUEST_MAX, messages.next()).await.map_err(|_| silent())? {
            let message = message.map_err(|why| failed(&why))?;
            left = message.info().map_err(|why| failed(&why))?.pending;
            read.push(message);
        }
        if read.len() == before {
            return Err(silent());
        }
    }
    Ok(read)
}
