//! Messages of a stream wake a component, at least once, through a consumer group.
//!
//! | key | means |
//! | --- | --- |
//! | `url` | the server; `redis://127.0.0.1:6379` by default |
//! | `stream` (or `queue`) | the stream |
//! | `group` | the group; made of app and component by default |
//! | `create` | `"true"` makes a stream, or a group that is named, where there is none |
//! | `delete` | `"true"` deletes from the stream what was handled: for a stream with one group |
//!
//! A group that is made begins with the oldest message; one that somebody deleted goes on behind what was given out, as long
//! as a node runs that pulled from it. Claims, waits and dead letters are in `ledger.rs`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;
use trellis_provider::delivery::{
    CLAIM, Claimed, DeadLetter, Engine, Fate, Out, PULL_MAX, Place, Queue, Ran, Record, Running, Settlement, Standing,
    Trouble,
};
use trellis_provider::{LinkError, Permits, flag, need_queue};
use trellis_wire::{ComponentKey, Link};

use crate::config::Settings;
use crate::connection::{Connection, Connections, Unanswered};
use crate::fields;
use crate::ledger::{Claim, End, Given, Ledger};
use crate::off::Off;

/// The longest time after which a stream is looked at anyway.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest name of a stream or group, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// A link whose stream wakes a component.
#[derive(Debug)]
pub(crate) struct Streamed {
    connection: Arc<Connection>,
    pub(crate) running: Running,
}

impl Streamed {
    /// Begins to pull. What is not there yet is no error: it is said by `health`, and looked for again.
    pub(crate) fn begin(connections: &Connections, link: Link, permits: Permits) -> Result<Self, LinkError> {
        let source = Source::open(connections, &link)?;
        let connection = source.connection.clone();
        let engine = Engine::new(link.id, source, permits, link.delivery)?;
        engine.looks_for("its stream is being looked for");
        Ok(Self { connection, running: Running::begin(engine) })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.running.progress().health()
    }
}

/// A stream as the engine of one link sees it.
#[derive(Debug)]
pub struct Source {
    connection: Arc<Connection>,
    /// Waits for new messages, which keeps all else on its connection waiting.
    waiting: Arc<Connection>,
    ledger: Arc<Ledger>,
    off: Off,
    /// About how many messages the last pull left.
    left: AtomicUsize,
    component: String,
    /// The group was named: it is made only with `create`.
    is_named: bool,
    create: bool,
    /// Stream and group were there when they were last looked for. Forgotten whenever something fails.
    found: Mutex<bool>,
    /// They were ever there.
    was_found: AtomicBool,
    /// When to look next for what others leave unsettled, and where to go on.
    adopting: tokio::sync::Mutex<(Instant, String)>,
    /// Told when a message of ours waits for another try.
    changed: Notify,
}

/// A message that was given out.
#[derive(Debug)]
pub struct Pulled(Claim);

/// What a link asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    settings: Settings,
    stream: String,
    /// The group, where one is named.
    named: Option<String>,
    letters: String,
    delete: bool,
    create: bool,
}

impl Wanted {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        let config = &link.config;
        let (key, stream) = need_queue(config, "stream")?;
        let stream = name(key, stream)?;
        let named = config.get("group").map(|group| name("group", group)).transpose()?;
        let letters = match &link.delivery.dead_letter {
            Some(letters) => name("delivery.dead_letter", letters)?,
            None => format!("{stream}:dead"),
        };
        if letters == stream {
            return Err(LinkError::config("delivery.dead_letter", "is the stream itself: name another"));
        }
        let (delete, create) = (flag(config, "delete")?, flag(config, "create")?);
        Ok(Self { settings: Settings::read(link)?, stream, named, letters, delete, create })
    }
}

impl Source {
    /// Reads a link. Nothing is asked of the server yet.
    pub(crate) fn open(connections: &Connections, link: &Link) -> Result<Self, LinkError> {
        let Wanted { settings, stream, named, letters, delete, create } = Wanted::read(link)?;
        let connection = connections.get(&settings)?;
        let group = named.clone().unwrap_or_else(|| group_of(&link.component));
        let dead = (letters.as_str(), link.delivery.dead_bytes_max);
        let ledger = Arc::new(Ledger::new(connection.clone(), &stream, &group, dead, delete));
        Ok(Self {
            off: Off::new(ledger.clone()),
            ledger,
            left: AtomicUsize::new(0),
            waiting: connections.own(&settings)?,
            connection,
            component: link.component.to_string(),
            is_named: named.is_some(),
            create,
            found: Mutex::default(),
            was_found: AtomicBool::new(false),
            adopting: tokio::sync::Mutex::new((Instant::now(), "0-0".into())),
            changed: Notify::new(),
        })
    }

    /// Makes sure that stream and group are there.
    async fn find(&self) -> Result<(), Trouble> {
        if *self.found.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(());
        }
        let Ledger { stream, group, .. } = &*self.ledger;
        let is: String = self.connection.send(redis::cmd("TYPE").arg(stream)).await?;
        match is.as_str() {
            "stream" => {}
            "none" if self.create => {}
            "none" => {
                let problem = "does not exist; make it, or write `create: \"true\"` in the link's config";
                return Err(format!("stream `{stream}` {problem}"));
            }
            other => return Err(format!("`{stream}` is no stream but holds a {other}: name another")),
        }
        if self.is_named && !self.create && !self.has_group().await? {
            return Err(format!(
                "group `{group}` of stream `{stream}` does not exist; make it, or write `create: \"true\"` in the \
                 link's config"
            ));
        }
        match self.ledger.make_group(self.create, self.was_found.load(Ordering::Relaxed)).await {
            Ok(true) => tracing::warn!(group, stream, "somebody deleted it; it is made anew and goes on where it was"),
            Ok(false) => {}
            Err(why) => return Err(format!("group `{group}` of stream `{stream}` cannot be made: {why}")),
        }
        self.was_found.store(true, Ordering::Relaxed);
        self.warn_of_loss().await;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Ok(())
    }

    async fn has_group(&self) -> Result<bool, Trouble> {
        let Ledger { stream, group, .. } = &*self.ledger;
        let groups: Vec<std::collections::HashMap<String, redis::Value>> =
            self.connection.send(redis::cmd("XINFO").arg("GROUPS").arg(stream)).await?;
        let is = |value: &redis::Value| matches!(value, redis::Value::BulkString(name) if *name == group.as_bytes());
        Ok(groups.iter().any(|found| found.get("name").is_some_and(is)))
    }

    /// Says what in the server's own settings loses messages. Who may not ask is not told.
    async fn warn_of_loss(&self) {
        let Ok(info) = self.connection.send::<String>(&redis::cmd("INFO")).await else { return };
        let says = |key: &str| info.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
        let stream = self.ledger.stream.as_str();
        if says("aof_enabled") == Some("0") {
            tracing::warn!(stream, "Redis has `appendonly no`: what came since its last snapshot is lost if it dies");
        }
        if let Some(policy) = says("maxmemory_policy").filter(|policy| policy.starts_with("allkeys")) {
            tracing::warn!(stream, policy, "Redis may throw streams and their ledgers away when its memory is full");
        }
    }

    /// Something failed: whether stream and group are still there is looked up before they are used again.
    fn failed(&self, doing: &str, why: impl std::fmt::Display) -> Trouble {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = false;
        format!("{doing} stream `{}`: {why}", self.ledger.stream)
    }

    /// From time to time takes over what others left unsettled.
    async fn adopt(&self) -> Result<(), Unanswered> {
        let mut adopting = self.adopting.lock().await;
        if Instant::now() < adopting.0 {
            return Ok(());
        }
        let (next, count) = self.ledger.adopt(&adopting.1).await?;
        if count > 0 {
            let (stream, group) = (&self.ledger.stream, &self.ledger.group);
            tracing::info!(stream, group, count, "messages that somebody left unsettled are given out again");
        }
        // The whole group once in a while, and without a pause as long as there is more.
        let pause = if next == "0-0" { CLAIM } else { Duration::ZERO };
        *adopting = (Instant::now() + pause, next);
        Ok(())
    }

    /// Waits until there is a message after `last`, or for this long.
    async fn news(&self, last: &str, at_most: Duration) -> Result<(), Unanswered> {
        let block = at_most.as_millis().max(1).to_string();
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(block).arg("STREAMS").arg(&self.ledger.stream).arg(last);
        self.waiting.send::<redis::Value>(&read).await.map(drop)
    }

    fn claimed(&self, now_ms: u64, given: Given) -> Claimed<Pulled> {
        let (id, fields, number, attempt, faults, kills) = given;
        let position = position(&id);
        let published_ms = u64::try_from(position >> 64).unwrap_or(u64::MAX);
        let mut message = fields::read(&self.ledger.stream, &fields);
        (message.attempt, message.published_ms) = (attempt, Some(published_ms));
        let name = (!message.id.is_empty()).then(|| message.id.clone());
        message.id = name.clone().unwrap_or_else(|| format!("{}-{id}", self.ledger.stream));
        let age = Duration::from_millis(now_ms.saturating_sub(published_ms));
        Claimed {
            message,
            record: Record { attempt, faults, kills, age },
            place: Place {
                key: id.clone(),
                has_twins: false,
                position: Some(position),
                again: number > 1,
                name,
                replay_of: replay_of(&id).map(|letter| self.letter_id(letter)),
                once: None,
            },
            claim: Pulled(Claim { id, number }),
        }
    }

    /// A dead letter's id among those of all streams.
    fn letter_id(&self, entry: &str) -> String {
        format!("{}-{entry}", self.ledger.letters)
    }

    /// The entry of a dead letter, if it is one of this stream's.
    fn entry_of<'a>(&self, letter: &'a str) -> Option<&'a str> {
        letter.strip_prefix(&self.ledger.letters)?.strip_prefix('-').filter(|entry| is_id(entry))
    }

    fn letter(&self, id: String, fields: &fields::Fields) -> DeadLetter {
        let one = |name| fields::dead(fields, name).next().unwrap_or_default();
        let number = |name| one(name).parse().unwrap_or_default();
        let mut message = fields::read(&self.ledger.stream, fields);
        let source = one("Id");
        message.published_ms = u64::try_from(position(&source) >> 64).ok();
        if message.id.is_empty() {
            message.id = format!("{}-{source}", self.ledger.stream);
        }
        DeadLetter {
            at_ms: u64::try_from(position(&id) >> 64).unwrap_or(u64::MAX),
            id: self.letter_id(&id),
            queue: one("Stream"),
            component: one("Component"),
            message,
            attempts: number("Attempts"),
            faults: fields::dead(fields, "Fault").collect(),
            kills: number("Kills"),
            reason: one("Reason"),
            detail: one("Detail"),
            ran: Ran {
                digest: one("Digest"),
                generation: one("Generation").parse().unwrap_or_default(),
                trace: one("Trace"),
            },
        }
    }
}

#[async_trait]
impl Queue for Source {
    type Claim = Pulled;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            self.find().await?;
            let changed = self.changed.notified();
            self.adopt().await.map_err(|why| self.failed("looking at", why))?;
            // Said once by each pull, so that a stream that is busy is not looked at before each of them.
            let left = self.left.swap(0, Ordering::Relaxed);
            if left > 0 {
                return Ok(left);
            }
            let looked = self.ledger.look(PULL_MAX).await.map_err(|why| self.failed("looking at", why))?;
            if looked.ready > 0 {
                return Ok(looked.ready);
            }
            let wait = looked.next.map_or(LOOK_EVERY, |next| next.min(LOOK_EVERY));
            tokio::select! {
                news = self.news(&looked.last, wait) => news.map_err(|why| self.failed("waiting at", why))?,
                () = changed => {}
            }
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Pulled>>, Trouble> {
        self.find().await?;
        let pulled = self.ledger.claim(max.min(PULL_MAX)).await.map_err(|why| self.failed("pulling from", why))?;
        self.left.store(pulled.left, Ordering::Relaxed);
        for id in &pulled.gone {
            let stream = &self.ledger.stream;
            tracing::warn!(stream, id, "a message was deleted from the stream before it was handled");
        }
        Ok(pulled.given.into_iter().map(|given| self.claimed(pulled.now_ms, given)).collect())
    }

    async fn settle(&self, Pulled(claim): &Pulled, settlement: &Settlement) -> Result<(), Trouble> {
        let end = match settlement {
            Settlement::Ack | Settlement::Drop { .. } => return self.off.take(claim).await,
            Settlement::Retry { after, fault } => End::Retry { after: *after, fault: fault.as_deref() },
            Settlement::GiveBack { after } => End::Back { after: *after },
            Settlement::DeadLetter { reason, fault, ran } => {
                let beside = [
                    ("Reason", reason.word().to_owned()),
                    ("Detail", reason.to_string()),
                    ("Component", self.component.clone()),
                    ("Stream", self.ledger.stream.clone()),
                    ("Id", claim.id.clone()),
                    ("Digest", ran.digest.clone()),
                    ("Generation", ran.generation.to_string()),
                    ("Trace", ran.trace.clone()),
                ];
                return self.ledger.bury(claim, fault.as_deref(), &beside).await;
            }
        };
        self.ledger.settle(claim, end).await?;
        self.changed.notify_one();
        Ok(())
    }

    async fn extend(&self, Pulled(claim): &Pulled) -> Result<(), Trouble> {
        Ok(self.ledger.extend(claim).await?)
    }

    async fn note(&self, Pulled(claim): &Pulled, fault: Option<&str>) -> Result<(), Trouble> {
        Ok(self.ledger.note(claim, fault).await?)
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        self.find().await?;
        let (now_ms, claimed, again, fresh, first, dead, waits) = self.ledger.standing().await?;
        let ids = waits.iter().chain((!first.is_empty()).then_some(&first));
        let oldest_ms = ids.filter_map(|id| u64::try_from(position(id) >> 64).ok()).min();
        Ok(Standing {
            // A server before 7.0 does not count; one at least is there then.
            waiting: again + u64::try_from(fresh).unwrap_or(1),
            claimed,
            oldest_age: oldest_ms.map(|ms| Duration::from_millis(now_ms.saturating_sub(ms))),
            dead: Some(dead),
        })
    }

    async fn out(&self) -> Result<Out, Trouble> {
        self.find().await?;
        let (all, later) = self.ledger.out().await?;
        Ok(Out { all, later })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        let (mut letters, mut after) = (Vec::new(), after.and_then(|after| self.entry_of(after)).map(str::to_owned));
        loop {
            let found = self.ledger.letters(after.as_deref(), max).await?;
            let more = found.len() == max;
            after = found.last().map(|(id, _)| id.clone()).or(after);
            let all = found.into_iter().map(|(id, fields)| self.letter(id, &fields));
            letters.extend(all.filter(|letter| letter.component == self.component));
            if letters.len() >= max || !more {
                letters.truncate(max);
                return Ok(letters);
            }
        }
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let Some(entry) = self.entry_of(id) else { return Ok(None) };
        let decided = self.ledger.decide(entry, &self.component, fate).await?;
        self.changed.notify_one();
        Ok(decided.map(|fields| self.letter(entry.into(), &fields)))
    }

    fn ledger(&self) -> Option<&dyn trellis_provider::delivery::Ledger> {
        Some(&*self.ledger)
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

/// A key of the user's own. The ledgers' are kept from links.
pub(crate) fn name(key: &str, text: &str) -> Result<String, LinkError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(LinkError::config(
            key,
            format!("`{text}`: 1 to {NAME_BYTES_MAX} printable characters are expected"),
        ));
    }
    if text.starts_with("trellis:") {
        return Err(LinkError::config(key, format!("`{text}`: keys that begin with `trellis:` hold the ledgers")));
    }
    Ok(text.into())
}

/// The group of a component: the same on every node.
fn group_of(component: &ComponentKey) -> String {
    component.to_string()
}

/// The id of an entry as a number, in the order of the stream: milliseconds, then the sequence. One that was replayed
/// (`r<ms>-<id of the dead letter>`) stands where its replay does.
fn position(id: &str) -> u128 {
    let mut parts = id.trim_start_matches('r').split('-').map(|part| part.parse::<u64>().unwrap_or_default());
    (u128::from(parts.next().unwrap_or_default()) << 64) | u128::from(parts.next_back().unwrap_or_default())
}

/// The entry of the dead letter that a message was, if it is replayed.
fn replay_of(id: &str) -> Option<&str> {
    id.strip_prefix('r')?.split_once('-').map(|(_, letter)| letter)
}

fn is_id(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(ms, sequence)| is_number(ms) && is_number(sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_published_later_stands_higher() {
        let order = ["5-0", "5-1", "6-0", "r7-1-3", "10-0"].map(position);
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!((replay_of("r7-1-3"), replay_of("5-0")), (Some("1-3"), None));
        assert!(is_id("5-0") && !is_id("5") && !is_id("r5-0-0") && !is_id("-") && !is_id("+"));
    }
}
