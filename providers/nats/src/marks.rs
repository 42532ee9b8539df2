//! Marks of what was taken off a stream lately.
//!
//! A server writes the state of a consumer to its disk about ten times a second, and confirms an acknowledgement before
//! that. Killed, it forgets those of its last moments, and gives their messages out again, as if they had been out when it
//! died or as if they were new; `tests/nats/forgetful.rs` counts them. What it says to have stored in a stream it does not
//! forget. So what is taken off is marked in a stream beside the ledger (`KV_TRELLIS_MARKS_<stream>`) as well, and whoever
//! begins to pull, or has lost the server meanwhile, reads the marks first.
//!
//! All that are set at one time are one message: their sequences, 8 bytes each, big-endian. Its subject ends in the time at
//! which the consumer was made, since the sequences of a stream that is made anew begin anew.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::{Context, stream};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::delivery::Trouble;

use crate::tail::{existing, tail};

/// Marks that are written at a time, and that wait for that.
const WRITTEN_AT_ONCE: usize = 256;
/// Where nobody waits for the next message of a key, for how many marks, and how long, a writing waits: each costs the server
/// as much as a publisher's message.
const GATHERED: usize = 16;
const GATHERED_WITHIN: Duration = Duration::from_millis(1);
/// Writings that are kept of one stream, for so long: many times what a server may forget.
const KEPT_MAX: u64 = 20_000;
const KEPT: Duration = Duration::from_secs(10 * 60);

/// A mark that is to be set, and who waits for it.
struct Mark {
    /// When its consumer was made.
    made: i128,
    sequence: u64,
    set: oneshot::Sender<Result<(), Trouble>>,
}

/// The marks of one consumer.
pub(crate) struct Marks {
    context: Context,
    bucket: String,
    /// What subjects of the consumer begin with.
    of: String,
    waiting: mpsc::Sender<Mark>,
    _writer: AbortOnDropHandle<()>,
}

impl Marks {
    /// Those of a consumer of this stream; `at_once`: none waits for others to be written with it.
    pub(crate) fn new(context: Context, stream: &str, consumer: &str, at_once: bool) -> Self {
        let (waiting, marks) = mpsc::channel(WRITTEN_AT_ONCE);
        let bucket = format!("TRELLIS_MARKS_{stream}");
        let of = format!("$KV.{bucket}.{consumer}");
        let gathered = if at_once { 1 } else { GATHERED };
        let stream = stream.into();
        let writer = Writer { context: context.clone(), bucket: bucket.clone(), of: of.clone(), stream, gathered };
        let writer = AbortOnDropHandle::new(tokio::spawn(writer.run(marks)));
        Self { context, bucket, of, waiting, _writer: writer }
    }

    /// Marks a message of the consumer that was made then as taken off. The mark is stored when this returns.
    pub(crate) async fn set(&self, made: i128, sequence: u64) -> Result<(), Trouble> {
        let (set, is_set) = oneshot::channel();
        let gone = |_| "the link has ended".to_owned();
        let mark = Mark { made, sequence, set };
        self.waiting.send(mark).await.map_err(|_| gone(()))?;
        is_set.await.map_err(|_| gone(()))?
    }

    /// What was marked lately of what the consumer may still give out.
    pub(crate) async fn read(&self, consumer: &Info) -> Result<BTreeSet<u64>, Trouble> {
        self.above(made(consumer), consumer.ack_floor.stream_sequence).await
    }

    /// What was marked lately, above this sequence, of the consumer that was made then.
    pub(crate) async fn above(&self, made: i128, floor: u64) -> Result<BTreeSet<u64>, Trouble> {
        let (stream, subject) = (format!("KV_{}", self.bucket), subject(&self.of, made));
        let written = tail(&self.context, &stream, subject, KEPT_MAX).await?;
        let sequences = written.iter().flat_map(|marks| sequences(&marks.payload));
        Ok(sequences.filter(|sequence| *sequence > floor).collect())
    }
}

/// When a consumer was made: no other of its name was at the same time.
pub(crate) fn made(consumer: &Info) -> i128 {
    consumer.created.unix_timestamp_nanos()
}

fn subject(of: &str, made: i128) -> String {
    format!("{of}.{made}")
}

fn sequences(written: &[u8]) -> impl Iterator<Item = u64> {
    written.chunks_exact(size_of::<u64>()).filter_map(|bytes| bytes.try_into().ok().map(u64::from_be_bytes))
}

/// Writes what was asked for while it wrote.
struct Writer {
    context: Context,
    bucket: String,
    of: String,
    /// The stream whose messages are marked.
    stream: String,
    /// How many marks a writing waits for.
    gathered: usize,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Mark>) {
        let mut marks = Vec::new();
        while waiting.recv_many(&mut marks, WRITTEN_AT_ONCE).await > 0 {
            self.gather(&mut waiting, &mut marks).await;
            // A link has one consumer, and another only after that was made anew.
            let made = marks[0].made;
            for mark in marks.extract_if(.., |mark| mark.made != made) {
                // Its delivery is tried again.
                let _ = mark.set.send(Err("the consumer was made anew".into()));
            }
            let bytes: Vec<u8> = marks.iter().flat_map(|mark| mark.sequence.to_be_bytes()).collect();
            let written = self.write(&subject(&self.of, made), bytes.into()).await;
            for mark in marks.drain(..) {
                // Who waited may be gone.
                let _ = mark.set.send(written.clone());
            }
        }
    }

    async fn gather(&self, waiting: &mut mpsc::Receiver<Mark>, marks: &mut Vec<Mark>) {
        let until = Instant::now() + GATHERED_WITHIN;
        while marks.len() < self.gathered {
            let more = waiting.recv_many(marks, WRITTEN_AT_ONCE);
            if !matches!(timeout_at(until, more).await, Ok(1..)) {
                return;
            }
        }
    }

    async fn write(&self, subject: &str, bytes: Bytes) -> Result<(), Trouble> {
        if self.store(subject, bytes.clone()).await.is_ok() {
            return Ok(());
        }
        // Most likely there is no stream for them yet.
        self.make().await.map_err(|why| self.failed(why))?;
        self.store(subject, bytes).await.map_err(|why| self.failed(why))
    }

    async fn store(&self, subject: &str, bytes: Bytes) -> Result<(), Trouble> {
        let sent = self.context.publish(subject.to_owned(), bytes).await.map_err(|why| why.to_string())?;
        sent.await.map(drop).map_err(|why| why.to_string())
    }

    /// As safe as the stream that they are of.
    async fn make(&self) -> Result<(), Trouble> {
        let of = existing(&self.context, &self.stream).await?;
        let config = stream::Config {
            name: format!("KV_{}", self.bucket),
            subjects: vec![format!("$KV.{}.>", self.bucket)],
            max_messages: i64::try_from(KEPT_MAX).unwrap_or(i64::MAX),
            max_age: KEPT,
            num_replicas: of.map_or(1, |stream| stream.cached_info().config.num_replicas),
            ..stream::Config::default()
        };
        self.context.get_or_create_stream(config).await.map(drop).map_err(|why| why.to_string())
    }

    fn failed(&self, why: Trouble) -> Trouble {
        format!("the marks of stream `{}`: {why}", self.stream)
    }
}
