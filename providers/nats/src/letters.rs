//! Dead letters of a stream: the stream `<stream>_DEAD` beside it, or the one that `delivery.dead_letter` names. Body and
//! headers are as they were, what is known of it is in headers `Trellis-Dead-*`.
//!
//! A replay is published under the subject that the message had, with an id, by which the server, and later the engine, knows it
//! where a crash left its letter and it is published once more; a header says for which consumer it is, and other components that
//! read the stream take it off unseen. That of an ordered link goes to a stream of its own (`replays.rs`).

use std::borrow::Cow;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{self, RawMessageErrorKind};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use futures::StreamExt as _;
use trellis_provider::delivery::{DeadLetter, Fate, Ran, Reason, Trouble};
use trellis_wire::Message;

use crate::entries::KEPT;
use crate::ledger::{Entry, FAULT_BYTES_MAX};
use crate::publish::ID_HEADER;
use crate::replays::Replays;
use crate::stream::Claim;
use crate::tail::{READER_KEPT, existing, made};

/// The consumer that a replayed message is for.
pub(crate) const REPLAY_FOR: &str = "Trellis-Replay-For";
/// The dead letter that it was.
pub(crate) const REPLAY_OF: &str = "Trellis-Replay-Of";
/// The subject that it was published under, where it is replayed under another.
pub(crate) const REPLAY_SUBJECT: &str = "Trellis-Replay-Subject";
/// The id that its publisher gave it, if it did: the server knows the replay by another.
const REPLAY_ID: &str = "Trellis-Replay-Msg-Id";
/// What the headers of a dead letter begin with.
const DEAD: &str = "Trellis-Dead-";
/// How the trouble begins of a message that leaves no room for what a dead letter tells beside it.
pub(crate) const TOO_LARGE: &str = "too large to be a dead letter: ";
/// What headers take in bytes beside their names and values: in all, and each.
const HEADERS_BYTES: usize = "NATS/1.0\r\n\r\n".len();
const HEADER_BYTES: usize = ": \r\n".len();
/// What stands for a line break in a header.
const LINE_BREAK: &str = " | ";

/// The dead letters of one consumer.
pub(crate) struct Letters<'a> {
    pub(crate) context: &'a Context,
    pub(crate) client: &'a async_nats::Client,
    pub(crate) stream: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) component: &'a str,
    /// Where they are replayed to, if not to their stream.
    pub(crate) replays: Option<&'a Replays>,
    /// The stream that they are in, and their subject there.
    pub(crate) to: &'a str,
    /// Bytes that they may hold, in a stream made by us.
    pub(crate) bytes_max: u64,
}

impl Letters<'_> {
    /// Stores a dead letter; the message is still there then.
    pub(crate) async fn bury(
        &self,
        claim: &Claim,
        entry: &Entry,
        attempts: u32,
        (reason, ran): (&Reason, &Ran),
    ) -> Result<(), Trouble> {
        let headers = self.headers(claim, entry, attempts, (reason, ran))?;
        let message = (self.to.to_owned(), headers, claim.message.payload.clone());
        let sent = self.context.publish_with_headers(message.0.clone(), message.1.clone(), message.2.clone()).await;
        if let Ok(stored) = sent
            && stored.await.is_ok()
        {
            return Ok(());
        }
        // Most likely it is not there yet.
        if self.stream().await?.is_none() {
            made(self.context, self.config()).await.map_err(|why| self.failed(why))?;
        }
        let sent = self.context.publish_with_headers(message.0, message.1, message.2).await;
        sent.map_err(|why| self.failed(why))?.await.map(drop).map_err(|why| self.failed(why))
    }

    fn failed(&self, why: impl std::fmt::Display) -> Trouble {
        format!("the stream of dead letters `{}`: {why}", self.to)
    }

    /// What stands beside the body, as far as the server takes that: the message matters more than the texts.
    fn headers(
        &self,
        claim: &Claim,
        entry: &Entry,
        attempts: u32,
        (reason, ran): (&Reason, &Ran),
    ) -> Result<HeaderMap, Trouble> {
        let mut headers = published(claim.message.headers.as_ref()).into_owned();
        let id = headers.get(ID_HEADER).map(ToString::to_string);
        headers.insert(ID_HEADER, format!("{}.{}.{}", self.stream, self.consumer, claim.key).as_str());
        for (name, value) in [
            ("Reason", reason.word().to_owned()),
            ("Detail", reason.to_string()),
            ("Component", self.component.to_owned()),
            ("Stream", self.stream.to_owned()),
            ("Sequence", claim.key.clone()),
            ("Subject", claim.subject.clone()),
            ("Attempts", attempts.to_string()),
            ("Kills", entry.kills.to_string()),
            ("Digest", ran.digest.clone()),
            ("Generation", ran.generation.to_string()),
            ("Trace", ran.trace.clone()),
            ("Msg-Id", id.unwrap_or_default()),
        ] {
            headers.insert(format!("{DEAD}{name}").as_str(), header(&value, FAULT_BYTES_MAX / 4));
        }
        // The server bounds body and headers together.
        let room = self.client.max_payload().saturating_sub(claim.message.payload.len());
        fitted(headers, &entry.fault_texts, room).ok_or_else(|| {
            let (to, stream, key) = (self.to, self.stream, &claim.key);
            format!("{TOO_LARGE}message {key} of stream `{stream}` in `{to}`, for the max_payload of the server")
        })
    }

    /// How many there are, of whatever component.
    pub(crate) async fn count(&self) -> Option<u64> {
        match self.stream().await.ok()? {
            Some(stream) => Some(stream.cached_info().state.messages),
            None => Some(0),
        }
    }

    /// Gives a stream that was made by us its bound, which changes with the number of queues that the app has. What is
    /// there stays, also where it is more.
    pub(crate) async fn fit(&self) -> Result<(), Trouble> {
        let Some(stream) = self.stream().await? else { return Ok(()) };
        let (was, wanted) = (&stream.cached_info().config, self.config());
        let is_ours = (&was.subjects, was.max_age, was.discard) == (&wanted.subjects, wanted.max_age, wanted.discard);
        if !is_ours || was.max_bytes == wanted.max_bytes {
            return Ok(());
        }
        let fitted = stream::Config { max_bytes: wanted.max_bytes, ..was.clone() };
        self.context.update_stream(fitted).await.map(drop).map_err(|why| self.failed(why))
    }

    fn config(&self) -> stream::Config {
        stream::Config {
            name: self.to.to_owned(),
            subjects: vec![self.to.to_owned()],
            max_age: KEPT,
            max_bytes: self.bytes_max.cast_signed(),
            discard: stream::DiscardPolicy::New,
            ..stream::Config::default()
        }
    }

    /// The stream that they are in, once there is one.
    async fn stream(&self) -> Result<Option<stream::Stream>, Trouble> {
        existing(self.context, self.to).await.map_err(|why| self.failed(why))
    }

    /// Up to `max` of this component's, after the one of this id.
    pub(crate) async fn list(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let Some(stream) = self.stream().await? else { return Ok(Vec::new()) };
        let from = after.and_then(|id| self.sequence_of(id)).map_or(1, |sequence| sequence + 1);
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            inactive_threshold: READER_KEPT,
            memory_storage: true,
            ..pull::Config::default()
        };
        let reader = stream.create_consumer(config).await.map_err(|why| self.failed(why))?;
        let mut letters = Vec::new();
        while letters.len() < max {
            let fetched = reader.fetch().max_messages(max).messages().await;
            let mut messages = fetched.map_err(|why| self.failed(why))?;
            let mut came = 0;
            while let Some(message) = messages.next().await {
                let message = message.map_err(|why| self.failed(why))?;
                came += 1;
                let info = message.info().map_err(|why| self.failed(why))?;
                let (sequence, at) = (info.stream_sequence, info.published);
                let headers = message.headers.clone().unwrap_or_default();
                letters.extend(self.letter(sequence, at.unix_timestamp_nanos(), &headers, message.payload.clone()));
            }
            if came < max {
                break;
            }
        }
        letters.truncate(max);
        Ok(letters)
    }

    /// A message of that stream as a dead letter, if it is one of this component.
    fn letter(&self, sequence: u64, at_ns: i128, headers: &HeaderMap, body: Bytes) -> Option<DeadLetter> {
        let text = |name: &str| headers.get(format!("{DEAD}{name}").as_str()).map(ToString::to_string);
        let number = |name: &str| text(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let component = text("Component").filter(|component| component == self.component)?;
        let stream = text("Stream").filter(|stream| stream == self.stream)?;
        let faults = headers.get_all(format!("{DEAD}Fault").as_str());
        Some(DeadLetter {
            id: format!("{}-{sequence}", self.to),
            component,
            message: Message {
                subject: text("Subject").unwrap_or_default(),
                body,
                headers: crate::publish::read_headers(Some(&restored(headers))),
                id: format!("{stream}-{}", text("Sequence").unwrap_or_default()),
                ..Message::default()
            },
            queue: stream,
            attempts: number("Attempts"),
            faults: faults.map(|fault| fault.as_str().replace(LINE_BREAK, "\n")).collect(),
            kills: number("Kills"),
            reason: text("Reason").unwrap_or_default(),
            detail: text("Detail").unwrap_or_default(),
            at_ms: u64::try_from(at_ns / 1_000_000).unwrap_or(0),
            ran: Ran {
                digest: text("Digest").unwrap_or_default(),
                generation: text("Generation").and_then(|text| text.parse().ok()).unwrap_or(0),
                trace: text("Trace").unwrap_or_default(),
            },
        })
    }

    fn sequence_of(&self, id: &str) -> Option<u64> {
        let (stream, sequence) = id.rsplit_once('-')?;
        sequence.parse().ok().filter(|_| stream == self.to)
    }

    /// Decides on a letter of this component, if there is such a one.
    pub(crate) async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let (Some(sequence), Some(stream)) = (self.sequence_of(id), self.stream().await?) else { return Ok(None) };
        let Some(found) = self.found(&stream, sequence).await? else { return Ok(None) };
        let StreamMessage { headers, payload, time, .. } = found;
        let letter = self.letter(sequence, time.unix_timestamp_nanos(), &headers, payload.clone());
        let Some(letter) = letter else { return Ok(None) };
        if fate == Fate::Replay {
            self.replay(&letter, restored(&headers), payload).await?;
        }
        match stream.delete_message(sequence).await {
            Ok(deleted) => Ok(deleted.then_some(letter)),
            // Somebody else decided on it meanwhile. The server has one code for whatever keeps it from deleting.
            Err(_) if self.found(&stream, sequence).await?.is_none() => Ok(None),
            Err(why) => Err(self.failed(why)),
        }
    }

    /// A message of their stream, if it is there.
    async fn found(&self, stream: &stream::Stream, sequence: u64) -> Result<Option<StreamMessage>, Trouble> {
        let is_missing = |why: &RawMessageErrorKind| match why {
            RawMessageErrorKind::NoMessageFound => true,
            RawMessageErrorKind::JetStream(refused) => refused.error_code() == ErrorCode::NO_MESSAGE_FOUND,
            _ => false,
        };
        match stream.get_raw_message(sequence).await {
            Ok(found) => Ok(Some(found)),
            Err(why) if is_missing(&why.kind()) => Ok(None),
            Err(why) => Err(self.failed(why)),
        }
    }

    async fn replay(&self, letter: &DeadLetter, mut headers: HeaderMap, payload: Bytes) -> Result<(), Trouble> {
        if let Some(id) = headers.get(ID_HEADER).cloned() {
            headers.insert(REPLAY_ID, id);
        }
        headers.insert(REPLAY_FOR, self.consumer);
        headers.insert(REPLAY_OF, letter.id.as_str());
        // A stream that is made anew counts from one again.
        headers.insert(ID_HEADER, format!("{}.{}.replay", letter.id, letter.at_ms).as_str());
        let subject = match self.replays {
            None => letter.message.subject.clone(),
            Some(replays) => {
                replays.found().await?;
                headers.insert(REPLAY_SUBJECT, letter.message.subject.as_str());
                replays.subject()
            }
        };
        let sent = self.context.publish_with_headers(subject, headers, payload).await;
        let sent = sent.map_err(|why| why.to_string())?.await.map_err(|why| why.to_string());
        sent.map(drop).map_err(|why| format!("stream `{}` does not take it back: {why}", self.stream))
    }
}

/// The headers of a message as they were published, also where it is replayed.
pub(crate) fn published(headers: Option<&HeaderMap>) -> Cow<'_, HeaderMap> {
    let Some(headers) = headers else { return Cow::Owned(HeaderMap::new()) };
    if headers.get(REPLAY_OF).is_none() {
        return Cow::Borrowed(headers);
    }
    let mut published = HeaderMap::new();
    for (name, values) in headers.iter() {
        if ![ID_HEADER, REPLAY_FOR, REPLAY_OF, REPLAY_ID, REPLAY_SUBJECT].contains(&name.as_ref()) {
            values.iter().for_each(|value| published.append(name.clone(), value.clone()));
        }
    }
    if let Some(id) = headers.get(REPLAY_ID) {
        published.insert(ID_HEADER, id.clone());
    }
    Cow::Owned(published)
}

/// The headers as they were before the message was given up.
fn restored(headers: &HeaderMap) -> HeaderMap {
    let mut restored = HeaderMap::new();
    for (name, values) in headers.iter() {
        let text: &str = name.as_ref();
        if text.starts_with(DEAD) || text == ID_HEADER {
            continue;
        }
        values.iter().for_each(|value| restored.append(name.clone(), value.clone()));
    }
    let id = headers.get(format!("{DEAD}Msg-Id").as_str()).filter(|id| !id.as_str().is_empty());
    if let Some(id) = id {
        restored.insert(ID_HEADER, id.clone());
    }
    restored
}

/// The headers with the newest faults, or with less of what is told beside the message, so that they take no more bytes than
/// there is room for; `None`: they do not fit.
fn fitted(mut headers: HeaderMap, faults: &[String], room: usize) -> Option<HeaderMap> {
    for name in ["Detail", "Trace", "Generation", "Digest"] {
        if bytes(&headers) > room {
            headers = without(&headers, &format!("{DEAD}{name}"));
        }
    }
    let (name, mut room) = (format!("{DEAD}Fault"), room.checked_sub(bytes(&headers))?);
    let values = faults.iter().rev().map(|fault| header(fault, FAULT_BYTES_MAX));
    let fits = values.take_while(|value| {
        let left = room.checked_sub(header_bytes(&name, value));
        room = left.unwrap_or(room);
        left.is_some()
    });
    let newest_first: Vec<_> = fits.collect();
    newest_first.into_iter().rev().for_each(|value| headers.append(name.as_str(), value));
    Some(headers)
}

/// How many bytes headers take in a message.
fn bytes(headers: &HeaderMap) -> usize {
    let all = headers.iter().flat_map(|(name, values)| values.iter().map(|value| header_bytes(name.as_ref(), value)));
    HEADERS_BYTES + all.sum::<usize>()
}

fn header_bytes(name: &str, value: &HeaderValue) -> usize {
    name.len() + value.as_str().len() + HEADER_BYTES
}

/// Headers without those of a name.
fn without(headers: &HeaderMap, name: &str) -> HeaderMap {
    let mut others = HeaderMap::new();
    for (known, values) in headers.iter().filter(|(known, _)| known.as_ref() as &str != name) {
        values.iter().for_each(|value| others.append(known.clone(), value.clone()));
    }
    others
}

/// A header's value has no line breaks.
fn header(text: &str, bytes_max: usize) -> HeaderValue {
    let cut = &text[..text.floor_char_boundary(bytes_max)];
    let line: String = cut.split(['\r', '\n']).map(str::trim_end).collect::<Vec<_>>().join(LINE_BREAK);
    line.parse().expect("a text without line breaks is a header's value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_beside_a_message_gives_way_to_it() {
        let mut headers = HeaderMap::new();
        headers.insert("Kind", "k".repeat(5_000).as_str());
        for (name, length) in [("Reason", 10), ("Detail", 1_000), ("Digest", 70)] {
            headers.insert(format!("{DEAD}{name}").as_str(), "d".repeat(length).as_str());
        }
        let faults = ["old", "new\n  at helper"].map(str::to_owned);
        let mut told = Vec::new();
        for room in (5_000..6_300).rev() {
            let Some(fitted) = fitted(headers.clone(), &faults, room) else { break };
            assert!(bytes(&fitted) <= room, "{room}");
            assert_eq!(fitted.get("Kind"), headers.get("Kind"), "{room}");
            let one = |name: &str| fitted.get(format!("{DEAD}{name}").as_str()).is_some();
            let all: Vec<_> =
                fitted.get_all(format!("{DEAD}Fault").as_str()).map(|fault| fault.as_str().to_owned()).collect();
            told.push((one("Reason"), one("Detail"), one("Digest"), all.concat()));
        }
        told.dedup();
        let with = |detail, digest, faults: &str| (true, detail, digest, faults.to_owned());
        let new = "new |   at helper";
        assert_eq!(told[..3], [with(true, true, &format!("old{new}")), with(true, true, new), with(true, true, "")]);
        assert_eq!(told.last(), Some(&with(false, false, "")));
    }
}
