//! What both ways to pull from a queue need: the queue as it is found on a connection, its ledger, its dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use trellis_provider::delivery::{DeadLetter, Fate, Ran, Reason, Trouble};
use trellis_provider::{Ledgers, LinkError, now_ms};
use trellis_wire::Link;
use uuid::Uuid;

use crate::Queues;
use crate::claims::{Claims, Settled};
use crate::config::Settings;
use crate::connection::{self, Connection, Connections, Line, Unanswered, within};
use crate::kept::Kept;
use crate::known::Known;
use crate::letters::{self, Letters};
use crate::wanted::Wanted;
use crate::young::Young;

/// A link's queue.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) connection: Arc<Connection>,
    pub(crate) wanted: Wanted,
    pub(crate) kept: Kept,
    pub(crate) queue: Arc<Common>,
    component: String,
    letters: Letters,
    /// Set once the queue was there: before, what is published to it would be lost.
    pub(crate) found: Arc<AtomicBool>,
}

/// What the links of this node to one queue share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) claims: Arc<Claims>,
    pub(crate) settled: Settled,
    young: Young,
}

impl Common {
    fn new() -> Self {
        Self { claims: Claims::new(), settled: Settled::default(), young: Young::default() }
    }
}

impl Base {
    /// Reads a link. Nothing is asked of the server yet.
    pub(crate) fn open(
        (connections, queues): (&Connections, &Queues),
        ledgers: &Arc<dyn Ledgers>,
        link: &Link,
    ) -> Result<Self, LinkError> {
        let (wanted, settings) = (Wanted::read(link)?, Settings::read(link)?);
        let component = link.component.to_string();
        Ok(Self {
            connection: connections.get(&settings)?,
            kept: Kept::new(ledgers, &settings, &wanted.queue, link),
            queue: queues.get(&(settings, wanted.queue.clone()), || Ok::<_, LinkError>(Arc::new(Common::new())))?,
            letters: Letters::new(&wanted.dead, &component),
            component,
            wanted,
            found: Arc::default(),
        })
    }

    /// Makes sure that the queue is there, and all that belongs to it.
    pub(crate) async fn find(&self, line: &Line) -> Result<(), Trouble> {
        self.kept.find().await?;
        self.wanted.find(line, &self.queue.young).await?;
        self.queue.young.outgrown().await;
        self.found.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Puts a message into one of the link's queues. If someone deleted that, it is made again first.
    pub(crate) async fn put(
        &self,
        line: &Line,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Unanswered> {
        match publish(line, queue, body, properties.clone()).await {
            Err(Unanswered::Refused(connection::NOT_FOUND, _)) => {
                self.wanted.find(line, &self.queue.young).await.map_err(Unanswered::Away)?;
                self.queue.young.outgrown().await;
                publish(line, queue, body, properties).await
            }
            done => done,
        }
    }

    /// Puts a message among the dead letters, with what is known of it.
    pub(crate) async fn bury(
        &self,
        line: &Line,
        (properties, body): (&BasicProperties, &[u8]),
        known: &Known,
        (reason, ran): (&Reason, &Ran),
    ) -> Result<(), Unanswered> {
        let beside = letters::beside(&self.wanted.queue, &self.component, reason, ran, now_ms());
        self.put(line, &self.wanted.dead, body, known.write(properties, &beside)).await
    }

    /// How many dead letters there are.
    pub(crate) async fn dead(&self, line: &Line) -> Result<u64, Unanswered> {
        self.letters.count(line).await
    }

    pub(crate) async fn letters(
        &self,
        line: &Arc<Line>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, Trouble> {
        self.letters.list(line, after, max).await
    }

    pub(crate) async fn decide(&self, line: &Arc<Line>, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let back_to = self.wanted.replays.as_ref().unwrap_or(&self.wanted.queue);
        self.letters.decide(line, id, (fate, back_to)).await
    }
}

/// Puts a message into a queue.
pub(crate) async fn publish(
    line: &Line,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), Unanswered> {
    let published = line.publish("", queue, body, properties).await.map_err(|why| match why {
        Unanswered::Refused(code, why) => Unanswered::Refused(code, format!("queue `{queue}`: {why}")),
        Unanswered::Away(why) => Unanswered::Away(format!("queue `{queue}`: {why}")),
    });
    if published? {
        return Ok(());
    }
    Err(Unanswered::Refused(connection::NOT_FOUND, format!("queue `{queue}` does not exist")))
}

/// Takes a message off. An acknowledgement that is lost with its connection has the message given out again.
pub(crate) async fn acknowledge(delivery: &Delivery) {
    if let Err(why) = within(delivery.acker.ack(BasicAckOptions::default())).await {
        tracing::debug!(%why, "a claim had ended with its connection");
    }
}

/// Whether no copy of ours was made of it yet.
pub(crate) fn is_first(delivery: &Delivery) -> bool {
    crate::known::header(delivery.properties.headers().as_ref(), "attempts").is_none()
}

/// What names a message at every delivery. One that its publisher gave no id has a new one until there is a copy of it, so
/// that it never is another's. Messages with one id are told apart by their bodies.
pub(crate) fn key(known: &Known, body: &[u8]) -> String {
    let told_by: &[u8] = if known.is_named { body } else { &[] };
    let replay_of = known.replay_of.as_deref().unwrap_or_default();
    let of = [known.id.as_bytes(), replay_of.as_bytes(), told_by].join(&0);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &of).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_messages_share_a_key_but_those_with_one_id_and_body() {
        let named = |id: &str| Known { id: id.into(), is_named: true, ..Known::default() };
        assert_eq!(key(&named("a"), b"1"), key(&named("a"), b"1"));
        assert_ne!(key(&named("a"), b"1"), key(&named("a"), b"2"));
        let replay = Known { replay_of: Some("letter".into()), ..named("a") };
        assert_ne!(key(&named("a"), b"1"), key(&replay, b"1"));
        let [one, other] =
            ["letter/1", "letter/2"].map(|replay| Known { replay_of: Some(replay.into()), ..named("a") });
        assert_ne!(key(&one, b"1"), key(&other, b"1"));
        assert_eq!(
            (one.letter(), replay.letter()),
            (other.letter(), Some("letter".into())),
            "also by an earlier build"
        );
        let unnamed = || Known { id: Uuid::now_v7().to_string(), ..Known::default() };
        assert_ne!(key(&unnamed(), b"1"), key(&unnamed(), b"1"));
    }
}
