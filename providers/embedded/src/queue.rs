//! What each change of a durable queue means, on open tables. Nothing here knows of files, threads or clocks.
//!
//! A new message is in `MESSAGES` alone, and stays so when it is given out for the first time, which writes nothing: up to
//! where that was done, `head.rs` knows. One that came back waits in `DUE`, ordered by when it may be given out; one that is
//! worked on again is in `CLAIMED`. What is known of such a message is apart from the message itself, so that another try
//! does not write its body anew. Whoever opens the file finds what was worked on when the process died: in `CLAIMED`, and
//! of what was given out for the first time all of which nothing more is known.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable as _, StorageError, Table, TableDefinition, TableError, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trellis_provider::delivery::{DeadLetter, Settlement, Standing};
use trellis_wire::{CallError, Message};

use crate::clock::KEPT_EVERY_MS;
use crate::head::{Noted, Stand};

/// Messages that one queue may hold.
pub const QUEUE_MESSAGES_MAX: u64 = 1_000_000;
/// Bytes that the messages of one queue may hold: 1 GiB.
pub const QUEUE_BYTES_MAX: u64 = 1 << 30;
/// How long a dead letter is kept, in milliseconds: 14 days.
pub const DEAD_KEPT_MS: u64 = 14 * 24 * 60 * 60 * 1_000;
/// Faults of one message whose text is kept, the newest.
pub const FAULTS_KEPT_MAX: usize = 10;
/// Longest text of one fault that is kept, in bytes.
pub const FAULT_BYTES_MAX: usize = 16 * 1_024;

/// queue -> [`Meta`].
const QUEUES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("queues");
/// (queue, sequence) -> message.
const MESSAGES: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("queue_messages");
/// (queue, sequence) -> [`Kept`]: of what was not simply published and, at most, given out once.
const RECORDS: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("queue_records");
/// (queue, milliseconds since 1970, sequence): what came back, and until when it waits. What is replayed comes before that.
const DUE: TableDefinition<'static, (&str, u64, u64), ()> = TableDefinition::new("queue_due");
/// (queue, sequence) -> attempt: what was given out again.
const CLAIMED: TableDefinition<'static, (&str, u64), u32> = TableDefinition::new("queue_claimed");
/// (queue, sequence) -> dead letter.
const DEAD: TableDefinition<'static, (&str, u64), &[u8]> = TableDefinition::new("queue_dead");
/// (queue, key) -> (milliseconds since 1970 until which it is kept, value): the ledger.
const LEDGER: TableDefinition<'static, (&str, &str), (u64, &[u8])> = TableDefinition::new("queue_ledger");
/// (milliseconds since 1970, queue, key): what of the ledger ends when.
const LEDGER_ENDS: TableDefinition<'static, (u64, &str, &str), ()> = TableDefinition::new("queue_ledger_ends");
/// queue -> what the source of its messages noted with the last of them.
const NOTES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("queue_notes");
/// What this store is called in the ids of its messages: drawn when it is made, since other stores count as it does.
const NAME: TableDefinition<'static, (), u64> = TableDefinition::new("queue_store");
/// The latest time that a change was made at.
const CLOCK: TableDefinition<'static, (), u64> = TableDefinition::new("queue_clock");
/// Ended entries that one swap removes besides its own: more than it adds, so that they go as they come.
const LEDGER_SWEEP: usize = 4;
/// How long the id of a message is known that a handler published, in milliseconds: a day. Where its node died before it
/// was settled, the same is published again.
pub const PUBLISHED_KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Keys of a ledger in one list.
const LEDGER_KEYS_MAX: usize = 10_000;

/// Bytes of messages that are given out at a time, but for the last: they are read on the thread that asks.
const NEW_BYTES_MAX: usize = 256 * 1_024;
/// When what is new was due for builds that had it in `DUE`.
const NEW_MS: u64 = 1 << 63;

/// What is known of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// What it takes besides the subject that is its own name.
    pub(crate) filters: Vec<String>,
    /// The last sequence that was given to a message.
    last: u64,
    messages: u64,
    bytes: u64,
    dead_bytes: u64,
    dead: u64,
    /// Up to where messages were given out, at the last commit. `None`: an earlier build wrote it.
    given: Option<u64>,
}

/// What is known of a message besides what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// How often it was given out, and not given back.
    pub(crate) attempts: u32,
    pub(crate) faults: u32,
    /// The newest of them.
    pub(crate) fault_texts: Vec<String>,
    pub(crate) kills: u32,
    /// Whether it was given out, whatever came of it.
    given: bool,
    /// The dead letter that it was.
    pub(crate) replay_of: Option<String>,
}

/// A claim on one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub(crate) queue: Arc<str>,
    pub(crate) sequence: u64,
    pub(crate) attempt: u32,
    /// The message is given out for the first time: the file knows nothing of that.
    pub(crate) is_first: bool,
}

/// A change, carried out whole or not at all. Times are in milliseconds since 1970.
#[derive(Debug)]
pub(crate) enum Change {
    /// Makes a queue, or changes what it takes.
    Create { queue: Arc<str>, filters: Vec<String> },
    /// Puts a message into each of these queues.
    Publish { queues: Vec<Arc<str>>, message: Message, now_ms: u64 },
    /// Puts messages into a queue, in this order, and a note in the place of its former one.
    Keep { queue: Arc<str>, messages: Vec<Message>, note: Bytes, now_ms: u64 },
    /// Ends the `expired` claims, then claims up to `max` messages of those that came back.
    Claim { queue: Arc<str>, max: usize, expired: Vec<Token>, now_ms: u64 },
    /// Settles a claimed message; `component` is named in its dead letter, for which there is room up to `dead_bytes_max`.
    Settle { token: Token, settlement: Settlement, component: Arc<str>, dead_bytes_max: u64, now_ms: u64 },
    /// Puts a dead letter back into its queue, as if it were new; `id` is what handlers know its message by.
    Replay { queue: Arc<str>, sequence: u64, id: String, now_ms: u64 },
    /// Forgets a dead letter.
    Forget { queue: Arc<str>, sequence: u64 },
    /// An attempt is over and the claim goes on.
    Note { token: Token, fault: Option<String> },
    /// Writes or removes an entry of the ledger if it is `old`.
    Swap { queue: Arc<str>, key: String, old: Option<Vec<u8>>, new: Option<Vec<u8>>, keep_ms: u64, now_ms: u64 },
}

impl Change {
    /// When it is made; 0 where that does not matter.
    const fn now_ms(&self) -> u64 {
        match self {
            Self::Publish { now_ms, .. }
            | Self::Keep { now_ms, .. }
            | Self::Claim { now_ms, .. }
            | Self::Settle { now_ms, .. }
            | Self::Replay { now_ms, .. }
            | Self::Swap { now_ms, .. } => *now_ms,
            Self::Create { .. } | Self::Forget { .. } | Self::Note { .. } => 0,
        }
    }

    /// What it holds in memory while it waits.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Publish { message, .. } => message.body.len() + 256,
            Self::Keep { messages, note, .. } => {
                messages.iter().map(|message| message.body.len() + 256).sum::<usize>() + note.len()
            }
            Self::Create { .. } | Self::Claim { .. } | Self::Replay { .. } | Self::Forget { .. } => 256,
            Self::Settle {
                settlement: Settlement::Retry { fault, .. } | Settlement::DeadLetter { fault, .. }, ..
            } => fault.as_ref().map_or(0, String::len) + 256,
            Self::Settle { .. } => 256,
            Self::Note { fault, .. } => fault.as_ref().map_or(0, String::len) + 256,
            Self::Swap { old, new, .. } => [old, new].into_iter().flatten().map(Vec::len).sum::<usize>() + 256,
        }
    }
}

/// What a change comes to.
#[derive(Debug)]
pub(crate) enum Changed {
    Done,
    Claimed(Vec<Given>),
    Swapped(bool),
}

/// A message that was claimed.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) token: Token,
    pub(crate) message: Message,
    pub(crate) kept: Kept,
    /// Whether it was given out before.
    pub(crate) again: bool,
}

/// The inner error is the caller's.
type Outcome<T> = Result<Result<T, CallError>, StorageError>;

/// The tables of all queues, open in one transaction.
pub(crate) struct Tables<'t> {
    /// What was read or changed of queues in this transaction; [`Tables::finish`] writes it.
    metas: HashMap<Arc<str>, Meta>,
    /// When the latest of its changes is made.
    latest_ms: u64,
    queues: Table<'t, &'static str, &'static [u8]>,
    messages: Table<'t, (&'static str, u64), &'static [u8]>,
    records: Table<'t, (&'static str, u64), &'static [u8]>,
    due: Table<'t, (&'static str, u64, u64), ()>,
    claimed: Table<'t, (&'static str, u64), u32>,
    dead: Table<'t, (&'static str, u64), &'static [u8]>,
    ledger: Table<'t, (&'static str, &'static str), (u64, &'static [u8])>,
    ledger_ends: Table<'t, (u64, &'static str, &'static str), ()>,
    notes: Table<'t, &'static str, &'static [u8]>,
    clock: Table<'t, (), u64>,
}

impl<'t> Tables<'t> {
    pub(crate) fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            metas: HashMap::new(),
            latest_ms: 0,
            queues: transaction.open_table(QUEUES)?,
            messages: transaction.open_table(MESSAGES)?,
            records: transaction.open_table(RECORDS)?,
            due: transaction.open_table(DUE)?,
            claimed: transaction.open_table(CLAIMED)?,
            dead: transaction.open_table(DEAD)?,
            ledger: transaction.open_table(LEDGER)?,
            ledger_ends: transaction.open_table(LEDGER_ENDS)?,
            notes: transaction.open_table(NOTES)?,
            clock: transaction.open_table(CLOCK)?,
        })
    }

    /// Writes what is known of the queues, and of the time, once for all changes; `given` says up to where messages of a
    /// queue were given out. Returns how those stand.
    pub(crate) fn finish(mut self, given: impl Fn(&str) -> Option<u64>) -> Result<Vec<Stand>, StorageError> {
        self.keep_clock()?;
        let mut stands = Vec::with_capacity(self.metas.len());
        for (queue, mut meta) in std::mem::take(&mut self.metas) {
            let given = given(&queue).or(meta.given).unwrap_or_default();
            meta.given = Some(given);
            self.queues.insert(&*queue, written(&meta).as_slice())?;
            let first = self.due.range::<(&str, u64, u64)>((&*queue, 0, 0)..=(&*queue, u64::MAX, u64::MAX))?.next();
            let back_ms = first.transpose()?.map(|(at, _)| at.value().1);
            stands.push(Stand { queue, last: meta.last, given, back_ms });
        }
        Ok(stands)
    }

    /// Carries out one change in the open transaction.
    pub(crate) fn carry_out(&mut self, change: &Change) -> Outcome<Changed> {
        let done = |()| Changed::Done;
        self.latest_ms = self.latest_ms.max(change.now_ms());
        match change {
            Change::Create { queue, filters } => {
                self.meta(queue)?.filters.clone_from(filters);
                Ok(Ok(Changed::Done))
            }
            Change::Publish { queues, message, now_ms } => Ok(self.publish(queues, message, None, *now_ms)?.map(done)),
            Change::Keep { queue, messages, note, .. } => Ok(self.keep(queue, messages, note)?.map(done)),
            Change::Claim { queue, max, expired, now_ms } => {
                // Where there is nothing to give out any more, that is to be known.
                self.meta(queue)?;
                for token in expired {
                    self.end_claim(token)?;
                }
                self.claim(queue, *max, *now_ms).map(Changed::Claimed).map(Ok)
            }
            Change::Settle { token, settlement, component, dead_bytes_max, now_ms } => {
                Ok(self.settle(token, settlement, (component, *dead_bytes_max), *now_ms)?.map(done))
            }
            Change::Replay { queue, sequence, id, now_ms } => {
                let letter = self.dead.get((&**queue, *sequence))?.map(|letter| read::<DeadLetter>(letter.value()));
                let Some(letter) = letter.transpose()? else { return Ok(Err(no_letter(queue, *sequence))) };
                let message = Message { id: id.clone(), published_ms: Some(*now_ms), attempt: 0, ..letter.message };
                // Published first: a queue that is full must not cost the letter.
                if let Err(why) = self.publish(std::slice::from_ref(queue), &message, Some(&letter.id), *now_ms)? {
                    return Ok(Err(why));
                }
                self.take_letter(queue, *sequence)?;
                Ok(Ok(Changed::Done))
            }
            Change::Note { token, fault } => self.note(token, fault.as_deref()).map(done).map(Ok),
            Change::Swap { queue, key, old, new, keep_ms, now_ms } => {
                self.sweep(*now_ms)?;
                // Who finds the entry when the machine has died must find that its message was given out.
                if self.queues.get(&**queue)?.is_some() {
                    self.meta(queue)?;
                }
                let new = new.as_deref().map(|value| (now_ms.saturating_add(*keep_ms), value));
                self.swap((queue, key), old.as_deref(), new, *now_ms).map(Changed::Swapped).map(Ok)
            }
            Change::Forget { queue, sequence } => Ok(self
                .take_letter(queue, *sequence)?
                .map(|_| Changed::Done)
                .ok_or_else(|| no_letter(queue, *sequence))),
        }
    }

    fn keep_clock(&mut self) -> Result<(), StorageError> {
        let kept_ms = self.clock.get(())?.map_or(0, |kept| kept.value());
        if self.latest_ms >= kept_ms.saturating_add(KEPT_EVERY_MS) {
            self.clock.insert((), self.latest_ms)?;
        }
        Ok(())
    }

    fn publish(&mut self, queues: &[Arc<str>], message: &Message, replay_of: Option<&str>, now_ms: u64) -> Outcome<()> {
        let bytes = written(message);
        let is_named = replay_of.is_none() && !message.id.is_empty();
        let mut metas = Vec::with_capacity(queues.len());
        for queue in queues {
            if is_named && self.is_known(queue, &message.id, now_ms)? {
                continue;
            }
            let mut meta = self.meta(queue)?.clone();
            meta.bytes += bytes.len() as u64;
            meta.messages += 1;
            meta.last += 1;
            if meta.messages > QUEUE_MESSAGES_MAX || meta.bytes > QUEUE_BYTES_MAX {
                return Ok(Err(full(queue, &meta)));
            }
            metas.push((queue, meta));
        }
        for (queue, meta) in metas {
            self.messages.insert((&**queue, meta.last), bytes.as_slice())?;
            if let Some(letter) = replay_of {
                self.put_kept(queue, meta.last, &Kept { replay_of: Some(letter.to_owned()), ..Kept::default() })?;
                // It goes before all others: of an ordered link it may be what they wait for.
                self.due.insert((&**queue, 0, meta.last), ())?;
            }
            *self.meta(queue)? = meta;
            if is_named {
                self.note_id(queue, &message.id, now_ms)?;
            }
        }
        Ok(Ok(()))
    }

    fn keep(&mut self, queue: &Arc<str>, messages: &[Message], note: &[u8]) -> Outcome<()> {
        let bodies: Vec<_> = messages.iter().map(written).collect();
        let mut meta = self.meta(queue)?.clone();
        meta.messages += bodies.len() as u64;
        meta.bytes += bodies.iter().map(|body| body.len() as u64).sum::<u64>();
        if meta.messages > QUEUE_MESSAGES_MAX || meta.bytes > QUEUE_BYTES_MAX {
            return Ok(Err(full(queue, &meta)));
        }
        for body in bodies {
            meta.last += 1;
            self.messages.insert((&**queue, meta.last), body.as_slice())?;
        }
        *self.meta(queue)? = meta;
        self.notes.insert(&**queue, note)?;
        Ok(Ok(()))
    }

    /// Whether a message of this id was published to the queue before.
    fn is_known(&self, queue: &str, id: &str, now_ms: u64) -> Result<bool, StorageError> {
        let known = self.ledger.get((queue, published_key(id).as_str()))?;
        Ok(known.is_some_and(|known| known.value().0 > now_ms))
    }

    /// From here on it was.
    fn note_id(&mut self, queue: &str, id: &str, now_ms: u64) -> Result<(), StorageError> {
        self.sweep(now_ms)?;
        let known = (now_ms.saturating_add(PUBLISHED_KEPT_MS), [].as_slice());
        self.swap((queue, &published_key(id)), None, Some(known), now_ms).map(drop)
    }

    fn claim(&mut self, queue: &Arc<str>, max: usize, now_ms: u64) -> Result<Vec<Given>, StorageError> {
        let name = &**queue;
        let mut next = Vec::with_capacity(max);
        for entry in self.due.range::<(&str, u64, u64)>((name, 0, 0)..=(name, now_ms, u64::MAX))?.take(max) {
            let (_, at, sequence) = entry?.0.value();
            next.push((at, sequence));
        }
        let mut given = Vec::with_capacity(next.len());
        for (at, sequence) in next {
            self.due.remove((name, at, sequence))?;
            let mut kept = self.record(name, sequence)?.unwrap_or_default();
            let again = std::mem::replace(&mut kept.given, true);
            kept.attempts = kept.attempts.saturating_add(1);
            self.put_kept(name, sequence, &kept)?;
            self.claimed.insert((name, sequence), kept.attempts)?;
            let message = self.message(name, sequence)?;
            let token = Token { queue: queue.clone(), sequence, attempt: kept.attempts, is_first: false };
            given.push(Given { token, message, kept, again });
        }
        Ok(given)
    }

    /// Counts an attempt whose claim goes on: the next one is under way then.
    fn note(&mut self, token: &Token, fault: Option<&str>) -> Result<(), StorageError> {
        // From here on the file knows of the claim.
        if !self.take_claim(token)? {
            return Ok(());
        }
        let (name, sequence) = (&*token.queue, token.sequence);
        self.claimed.insert((name, sequence), token.attempt)?;
        let mut kept = self.kept(token)?;
        note_fault(&mut kept, fault);
        kept.attempts = kept.attempts.saturating_add(1);
        self.put_kept(name, sequence, &kept)
    }

    fn swap(
        &mut self,
        (queue, key): (&str, &str),
        old: Option<&[u8]>,
        new: Option<(u64, &[u8])>,
        now_ms: u64,
    ) -> Result<bool, StorageError> {
        let ends = {
            let found = self.ledger.get((queue, key))?;
            let found = found.as_ref().map(|entry| entry.value());
            if found.filter(|(ends, _)| *ends > now_ms).map(|(_, value)| value) != old {
                return Ok(false);
            }
            found.map(|(ends, _)| ends)
        };
        if let Some(ends) = ends {
            self.ledger_ends.remove((ends, queue, key))?;
        }
        match new {
            Some((ends, value)) => {
                self.ledger.insert((queue, key), (ends, value))?;
                self.ledger_ends.insert((ends, queue, key), ())?;
            }
            None => drop(self.ledger.remove((queue, key))?),
        }
        Ok(true)
    }

    /// Removes some of what has ended.
    fn sweep(&mut self, now_ms: u64) -> Result<(), StorageError> {
        for _ in 0..LEDGER_SWEEP {
            let first = self.ledger_ends.first()?.map(|(at, _)| {
                let (ends, queue, key) = at.value();
                (ends, queue.to_owned(), key.to_owned())
            });
            let Some((ends, queue, key)) = first.filter(|(ends, ..)| *ends <= now_ms) else { return Ok(()) };
            self.ledger_ends.remove((ends, queue.as_str(), key.as_str()))?;
            self.ledger.remove((queue.as_str(), key.as_str()))?;
        }
        Ok(())
    }

    /// A claim that nobody settled: the message is given out again at once, and that is remembered.
    fn end_claim(&mut self, token: &Token) -> Result<(), StorageError> {
        let (name, sequence) = (&*token.queue, token.sequence);
        if !self.take_claim(token)? {
            return Ok(());
        }
        let mut kept = self.kept(token)?;
        kept.kills = kept.kills.saturating_add(1);
        self.put_kept(name, sequence, &kept)?;
        // Before all others: it was at the front when it was pulled.
        self.due.insert((name, 0, sequence), ()).map(drop)
    }

    /// Whether the claim stood. It is gone then.
    fn take_claim(&mut self, token: &Token) -> Result<bool, StorageError> {
        self.meta(&token.queue)?;
        let at = (&*token.queue, token.sequence);
        if token.is_first && self.records.get(at)?.is_none() {
            return Ok(self.messages.get(at)?.is_some());
        }
        let removed = self.claimed.remove(at)?.map(|attempt| attempt.value());
        match removed {
            // Another claim on the same message stands, and goes on.
            Some(attempt) if attempt != token.attempt => self.claimed.insert(at, attempt).map(|_| false),
            attempt => Ok(attempt.is_some()),
        }
    }

    /// A claim that has ended is no error: the message waits again, and will be given out again.
    fn settle(
        &mut self,
        token: &Token,
        settlement: &Settlement,
        (component, dead_bytes_max): (&str, u64),
        now_ms: u64,
    ) -> Outcome<()> {
        let (name, sequence) = (&*token.queue, token.sequence);
        if let Settlement::DeadLetter { reason, fault, ran } = settlement {
            let mut kept = self.kept(token)?;
            note_fault(&mut kept, fault.as_deref());
            let letter = DeadLetter {
                id: letter_id(name, sequence),
                queue: name.into(),
                component: component.into(),
                message: self.message(name, sequence)?,
                attempts: kept.attempts,
                faults: kept.fault_texts,
                kills: kept.kills,
                reason: reason.word().into(),
                detail: reason.to_string(),
                at_ms: now_ms,
                ran: ran.clone(),
            };
            return self.bury(token, &letter, dead_bytes_max);
        }
        if !self.take_claim(token)? {
            return Ok(Ok(()));
        }
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } | Settlement::DeadLetter { .. } => self.take_off(token)?,
            Settlement::Retry { after, fault } => {
                let mut kept = self.kept(token)?;
                note_fault(&mut kept, fault.as_deref());
                self.put_kept(name, sequence, &kept)?;
                self.due.insert((name, now_ms.saturating_add(millis(*after)), sequence), ())?;
            }
            Settlement::GiveBack { after } => {
                let mut kept = self.kept(token)?;
                kept.attempts = kept.attempts.saturating_sub(1);
                self.put_kept(name, sequence, &kept)?;
                // Before all others: it was at the front when it was pulled.
                let due_ms = if after.is_zero() { 0 } else { now_ms.saturating_add(millis(*after)) };
                self.due.insert((name, due_ms, sequence), ())?;
            }
        }
        Ok(Ok(()))
    }

    /// Writes a dead letter and takes the message off, unless there is no room for it: then the claim stands.
    fn bury(&mut self, token: &Token, letter: &DeadLetter, dead_bytes_max: u64) -> Outcome<()> {
        let (name, sequence) = (&*token.queue, token.sequence);
        let (forgotten, freed) = self.forget_old(name, letter.at_ms)?;
        let meta = self.meta(&token.queue)?;
        meta.dead_bytes = meta.dead_bytes.saturating_sub(freed);
        meta.dead = meta.dead.saturating_sub(forgotten);
        let bytes = written(letter);
        if meta.dead_bytes + bytes.len() as u64 > dead_bytes_max {
            return Ok(Err(CallError::Unavailable(format!(
                "the dead letters of queue `{name}` have {dead_bytes_max} bytes, their part of what those of its app may \
                 hold, and no more fit: look at them with `trellis dead-letters list`, then replay or drop them"
            ))));
        }
        if !self.take_claim(token)? {
            return Ok(Ok(()));
        }
        self.dead.insert((name, sequence), bytes.as_slice())?;
        let meta = self.meta(&token.queue)?;
        meta.dead_bytes += bytes.len() as u64;
        meta.dead += 1;
        self.take_off(token).map(Ok)
    }

    /// Forgets the dead letters that have been kept long enough. Returns how many that were and how many bytes they held.
    fn forget_old(&mut self, name: &str, now_ms: u64) -> Result<(u64, u64), StorageError> {
        let (mut forgotten, mut freed) = (0, 0);
        loop {
            let oldest = match self.dead.range::<(&str, u64)>((name, 0)..=(name, u64::MAX))?.next() {
                Some(entry) => {
                    let (at, bytes) = entry?;
                    let letter: DeadLetter = read(bytes.value())?;
                    (at.value().1, bytes.value().len() as u64, letter.at_ms)
                }
                None => return Ok((forgotten, freed)),
            };
            let (sequence, bytes, at_ms) = oldest;
            if at_ms.saturating_add(DEAD_KEPT_MS) > now_ms {
                return Ok((forgotten, freed));
            }
            self.dead.remove((name, sequence))?;
            forgotten += 1;
            freed += bytes;
        }
    }

    fn take_letter(&mut self, queue: &Arc<str>, sequence: u64) -> Result<Option<DeadLetter>, StorageError> {
        let (letter, bytes) = match self.dead.remove((&**queue, sequence))? {
            Some(bytes) => (read(bytes.value())?, bytes.value().len() as u64),
            None => return Ok(None),
        };
        let meta = self.meta(queue)?;
        meta.dead_bytes = meta.dead_bytes.saturating_sub(bytes);
        meta.dead = meta.dead.saturating_sub(1);
        Ok(Some(letter))
    }

    fn take_off(&mut self, token: &Token) -> Result<(), StorageError> {
        let at = (&*token.queue, token.sequence);
        let bytes = self.messages.remove(at)?.map_or(0, |message| message.value().len() as u64);
        self.records.remove(at)?;
        let meta = self.meta(&token.queue)?;
        meta.messages = meta.messages.saturating_sub(1);
        meta.bytes = meta.bytes.saturating_sub(bytes);
        Ok(())
    }

    /// What is known of a queue, to be written at the end.
    fn meta(&mut self, queue: &Arc<str>) -> Result<&mut Meta, StorageError> {
        match self.metas.entry(queue.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let meta = self.queues.get(&**queue)?.map(|meta| read_meta(meta.value()));
                Ok(new.insert(meta.transpose()?.unwrap_or_default()))
            }
        }
    }

    fn record(&self, name: &str, sequence: u64) -> Result<Option<Kept>, StorageError> {
        self.records.get((name, sequence))?.map(|kept| read(kept.value())).transpose()
    }

    /// What is known of a message that is claimed: without a record, that it was given out for the first time.
    fn kept(&self, token: &Token) -> Result<Kept, StorageError> {
        let first = || Kept { attempts: token.attempt, given: true, ..Kept::default() };
        Ok(self.record(&token.queue, token.sequence)?.unwrap_or_else(first))
    }

    fn put_kept(&mut self, name: &str, sequence: u64, kept: &Kept) -> Result<(), StorageError> {
        self.records.insert((name, sequence), written(kept).as_slice()).map(drop)
    }

    fn message(&self, name: &str, sequence: u64) -> Result<Message, StorageError> {
        match self.messages.get((name, sequence))? {
            Some(message) => read(message.value()),
            None => Err(StorageError::Corrupted(format!("message {sequence} of queue `{name}` is not there"))),
        }
    }

    /// Gives out again whatever was given out when the process died, which has noted so. How many that were.
    pub(crate) fn recover(&mut self, noted: &Noted) -> Result<usize, StorageError> {
        let mut claims = Vec::new();
        for entry in self.claimed.iter()? {
            let (at, attempt) = entry?;
            let (queue, sequence) = at.value();
            claims.push(Token { queue: queue.into(), sequence, attempt: attempt.value(), is_first: false });
        }
        for token in &claims {
            self.end_claim(token)?;
        }
        let names = self.queues.iter()?.map(|entry| Ok(entry?.0.value().into()));
        let mut recovered = claims.len();
        for queue in names.collect::<Result<Vec<Arc<str>>, StorageError>>()? {
            let listed = self.take_listed(&queue)?;
            let meta = self.meta(&queue)?;
            let given = meta.given.or(listed).unwrap_or(meta.last).max(noted.of(&queue)).min(meta.last);
            meta.given = Some(given);
            recovered += self.recover_first(&queue, given)?;
        }
        Ok(recovered)
    }

    /// The messages of a queue up to this one of which nothing is known, and that do not wait, were given out for the first
    /// time.
    fn recover_first(&mut self, queue: &Arc<str>, given: u64) -> Result<usize, StorageError> {
        let (name, mut first) = (&**queue, Vec::new());
        for entry in self.messages.range::<(&str, u64)>((name, 0)..=(name, given))? {
            let (_, sequence) = entry?.0.value();
            if self.records.get((name, sequence))?.is_none() {
                first.push(Token { queue: queue.clone(), sequence, attempt: 1, is_first: true });
            }
        }
        if !first.is_empty() {
            let waiting = self.due.range::<(&str, u64, u64)>((name, 0, 0)..=(name, u64::MAX, u64::MAX))?;
            let waiting = waiting.map(|entry| Ok(entry?.0.value().2)).collect::<Result<HashSet<_>, StorageError>>()?;
            first.retain(|token| !waiting.contains(&token.sequence));
        }
        first.iter().try_for_each(|token| self.end_claim(token))?;
        Ok(first.len())
    }

    /// Takes what is new out of `DUE`, where earlier builds had it, and says up to where messages were given out then;
    /// `None`: nothing new was there.
    fn take_listed(&mut self, queue: &Arc<str>) -> Result<Option<u64>, StorageError> {
        let listed = (&**queue, NEW_MS, 0)..=(&**queue, NEW_MS, u64::MAX);
        let mut sequences = Vec::new();
        for entry in self.due.extract_from_if::<(&str, u64, u64), _>(listed, |_, ()| true)? {
            sequences.push(entry?.0.value().2);
        }
        for sequence in &sequences {
            // What is replayed has a record already, and goes before what is new.
            if self.record(queue, *sequence)?.is_some() {
                self.due.insert((&**queue, 0, *sequence), ())?;
            }
        }
        Ok(sequences.first().map(|first| first - 1))
    }
}

/// The latest time that a change was made at, or a little earlier.
pub(crate) fn clock_ms(snapshot: &ReadTransaction) -> Result<u64, redb::Error> {
    let Some(table) = existing(snapshot.open_table(CLOCK))? else { return Ok(0) };
    Ok(table.get(())?.map_or(0, |kept| kept.value()))
}

/// What the store is called; `None`: it has no name yet.
pub(crate) fn store_name(snapshot: &ReadTransaction) -> Result<Option<u64>, redb::Error> {
    let Some(table) = existing(snapshot.open_table(NAME))? else { return Ok(None) };
    Ok(table.get(())?.map(|name| name.value()))
}

/// Gives the store its name.
pub(crate) fn name_store(transaction: &WriteTransaction, name: u64) -> Result<(), redb::Error> {
    transaction.open_table(NAME)?.insert((), name)?;
    Ok(())
}

/// What handlers know a message by: its own id, else one that no other message has, on no node.
pub(crate) fn known_by(own: String, queue: &str, store: u64, sequence: u64) -> String {
    if own.is_empty() { format!("{queue}-{store:016x}-{sequence}") } else { own }
}

/// What was never given out of a queue: what stands behind `given` up to `last`, `max` messages at most. With it, up to
/// where nothing else is new then.
pub(crate) fn new(
    snapshot: &ReadTransaction,
    queue: &Arc<str>,
    (given, last): (u64, u64),
    max: usize,
) -> Result<(Vec<Given>, u64), redb::Error> {
    let (Some(messages), Some(records)) =
        (existing(snapshot.open_table(MESSAGES))?, existing(snapshot.open_table(RECORDS))?)
    else {
        return Ok((Vec::new(), given));
    };
    let behind = (&**queue, given + 1)..=(&**queue, last);
    // What is replayed waits in `DUE`.
    let replayed = records.range::<(&str, u64)>(behind.clone())?.map(|entry| Ok(entry?.0.value().1));
    let replayed: HashSet<u64> = replayed.collect::<Result<_, StorageError>>()?;
    let (mut new, mut bytes) = (Vec::new(), 0);
    for entry in messages.range::<(&str, u64)>(behind)? {
        let (at, message) = entry?;
        let (_, sequence) = at.value();
        if replayed.contains(&sequence) {
            continue;
        }
        let token = Token { queue: queue.clone(), sequence, attempt: 1, is_first: true };
        new.push(Given { token, message: read(message.value())?, kept: Kept::default(), again: false });
        bytes += message.value().len();
        if new.len() == max || bytes >= NEW_BYTES_MAX {
            return Ok((new, sequence));
        }
    }
    Ok((new, last))
}

/// How many of the messages of a queue that came back may be given out now, up to `max`.
pub(crate) fn due(snapshot: &ReadTransaction, name: &str, now_ms: u64, max: usize) -> Result<usize, redb::Error> {
    let Some(table) = existing(snapshot.open_table(DUE))? else { return Ok(0) };
    Ok(table.range::<(&str, u64, u64)>((name, 0, 0)..=(name, now_ms, u64::MAX))?.take(max).count())
}

/// How a queue stands of which so many messages are claimed; ages are the caller's to work out: when the oldest was
/// published is what it gets.
pub(crate) fn standing(
    snapshot: &ReadTransaction,
    name: &str,
    claimed: u64,
) -> Result<(Standing, Option<u64>), redb::Error> {
    let Some(queues) = existing(snapshot.open_table(QUEUES))? else { return Ok(Default::default()) };
    let meta = queues.get(name)?.map(|meta| read_meta(meta.value())).transpose()?.unwrap_or_default();
    let oldest = match existing(snapshot.open_table(MESSAGES))? {
        Some(table) => {
            let first = table.range::<(&str, u64)>((name, 0)..=(name, u64::MAX))?.next().transpose()?;
            first.map(|(_, message)| read(message.value()))
        }
        None => None,
    };
    let oldest: Option<Message> = oldest.transpose()?;
    let waiting = meta.messages.saturating_sub(claimed);
    let standing = Standing { waiting, claimed, oldest_age: None, dead: Some(meta.dead) };
    Ok((standing, oldest.and_then(|message| message.published_ms)))
}

/// How many messages of a queue were given out before and are not `claimed`, and how many of those that came back wait for
/// a time to come.
pub(crate) fn out(
    snapshot: &ReadTransaction,
    name: &str,
    claimed: &HashSet<u64>,
    now_ms: u64,
) -> Result<(u64, u64), redb::Error> {
    let (Some(records), Some(due)) = (existing(snapshot.open_table(RECORDS))?, existing(snapshot.open_table(DUE))?)
    else {
        return Ok((0, 0));
    };
    let mut out = 0;
    for entry in records.range::<(&str, u64)>((name, 0)..=(name, u64::MAX))? {
        let (at, kept) = entry?;
        let kept: Kept = read(kept.value())?;
        out += u64::from(kept.given && !claimed.contains(&at.value().1));
    }
    let later = due.range::<(&str, u64, u64)>((name, now_ms + 1, 0)..=(name, u64::MAX, u64::MAX))?.count() as u64;
    Ok((out, later))
}

/// What was noted with the last messages of a queue.
pub(crate) fn note(snapshot: &ReadTransaction, name: &str) -> Result<Bytes, redb::Error> {
    let Some(table) = existing(snapshot.open_table(NOTES))? else { return Ok(Bytes::new()) };
    Ok(table.get(name)?.map_or_else(Bytes::new, |note| Bytes::copy_from_slice(note.value())))
}

/// An entry of the ledger.
pub(crate) fn entry(
    snapshot: &ReadTransaction,
    queue: &str,
    key: &str,
    now_ms: u64,
) -> Result<Option<Bytes>, redb::Error> {
    let Some(table) = existing(snapshot.open_table(LEDGER))? else { return Ok(None) };
    let entry = table.get((queue, key))?;
    let live = entry.as_ref().map(|entry| entry.value()).filter(|(ends, _)| *ends > now_ms);
    Ok(live.map(|(_, value)| Bytes::copy_from_slice(value)))
}

/// The keys of the ledger that begin so.
pub(crate) fn keys(
    snapshot: &ReadTransaction,
    queue: &str,
    prefix: &str,
    now_ms: u64,
) -> Result<Vec<String>, redb::Error> {
    let Some(table) = existing(snapshot.open_table(LEDGER))? else { return Ok(Vec::new()) };
    let mut keys = Vec::new();
    for entry in table.range::<(&str, &str)>((queue, prefix)..)? {
        let (at, value) = entry?;
        let (found, key) = at.value();
        if found != queue || !key.starts_with(prefix) || keys.len() == LEDGER_KEYS_MAX {
            break;
        }
        if value.value().0 > now_ms {
            keys.push(key.to_owned());
        }
    }
    Ok(keys)
}

/// Up to `max` dead letters of a component in one queue, after the one of this sequence.
pub(crate) fn letters_after(
    snapshot: &ReadTransaction,
    (name, component): (&str, &str),
    after: Option<u64>,
    max: usize,
) -> Result<Vec<DeadLetter>, redb::Error> {
    let Some(table) = existing(snapshot.open_table(DEAD))? else { return Ok(Vec::new()) };
    let from = after.map_or(0, |after| after.saturating_add(1));
    let mut letters = Vec::new();
    for entry in table.range::<(&str, u64)>((name, from)..=(name, u64::MAX))? {
        let letter: DeadLetter = read(entry?.1.value())?;
        if letter.component == component {
            letters.push(letter);
        }
        if letters.len() == max {
            break;
        }
    }
    Ok(letters)
}

/// Every queue with what it takes.
pub(crate) fn queues(snapshot: &ReadTransaction) -> Result<Vec<(String, Meta)>, redb::Error> {
    let Some(table) = existing(snapshot.open_table(QUEUES))? else { return Ok(Vec::new()) };
    let mut queues = Vec::new();
    for entry in table.iter()? {
        let (name, meta) = entry?;
        queues.push((name.value().to_owned(), read_meta(meta.value())?));
    }
    Ok(queues)
}

/// Nothing was ever written to a table that does not exist.
fn existing<T>(opened: Result<T, TableError>) -> Result<Option<T>, redb::Error> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(why) => Err(why.into()),
    }
}

fn letter_id(queue: &str, sequence: u64) -> String {
    format!("{queue}-{sequence}")
}

/// The queue and sequence that a dead letter's id names.
pub(crate) fn of_letter(id: &str) -> Option<(String, u64)> {
    let (queue, sequence) = id.rsplit_once('-')?;
    Some((queue.to_owned(), sequence.parse().ok()?))
}

fn published_key(id: &str) -> String {
    format!("published/{id}")
}

fn no_letter(queue: &str, sequence: u64) -> CallError {
    CallError::NoSuch(format!("the dead letter {}", letter_id(queue, sequence)))
}

fn full(queue: &str, meta: &Meta) -> CallError {
    let Meta { messages, bytes, .. } = meta;
    CallError::Unavailable(format!(
        "queue `{queue}` is full: it would hold {messages} messages of {bytes} bytes; nothing was published"
    ))
}

/// The newest faults are kept, each cut at its bound.
fn note_fault(kept: &mut Kept, fault: Option<&str>) {
    let Some(fault) = fault else { return };
    kept.faults = kept.faults.saturating_add(1);
    if kept.fault_texts.len() == FAULTS_KEPT_MAX {
        kept.fault_texts.remove(0);
    }
    let cut = fault.floor_char_boundary(FAULT_BYTES_MAX);
    kept.fault_texts.push(fault[..cut].to_owned());
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn written(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data can be written")
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(bytes).map_err(|why| StorageError::Corrupted(format!("an entry of a queue: {why}")))
}

/// What earlier builds wrote ends before `given`: a zero there says that it is not known.
fn read_meta(bytes: &[u8]) -> Result<Meta, StorageError> {
    read(&[bytes, &[0]].concat())
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;
    use redb::{Builder, ReadableDatabase as _};

    use super::*;

    /// What an earlier build knew of a queue.
    #[derive(Serialize)]
    struct Earlier {
        filters: Vec<String>,
        last: u64,
        messages: u64,
        bytes: u64,
        dead_bytes: u64,
        dead: u64,
    }

    #[test]
    fn a_file_of_an_earlier_build_is_taken_over() {
        let database = Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            let mut tables = Tables::open(&transaction).unwrap();
            let earlier = Earlier { filters: vec![], last: 5, messages: 4, bytes: 400, dead_bytes: 0, dead: 0 };
            tables.queues.insert("mail", written(&earlier).as_slice()).unwrap();
            for sequence in 2..=5 {
                let message = Message { body: format!("{sequence}").into(), ..Message::default() };
                tables.messages.insert(("mail", sequence), written(&message).as_slice()).unwrap();
            }
            // The second was worked on for the first time, the third waits for its next try, the fifth is replayed.
            tables.claimed.insert(("mail", 2), 1).unwrap();
            tables.put_kept("mail", 3, &Kept { attempts: 1, given: true, ..Kept::default() }).unwrap();
            tables.put_kept("mail", 5, &Kept { replay_of: Some("mail-1".into()), ..Kept::default() }).unwrap();
            for (due_ms, sequence) in [(1_000, 3), (NEW_MS, 4), (NEW_MS, 5)] {
                tables.due.insert(("mail", due_ms, sequence), ()).unwrap();
            }
        }
        let queue: Arc<str> = "mail".into();
        let mut tables = Tables::open(&transaction).unwrap();
        assert_eq!(tables.recover(&Noted::default()).unwrap(), 1);
        let back = tables.claim(&queue, 10, 2_000).unwrap();
        let told = |given: &Given| (given.token.sequence, given.token.attempt, given.kept.kills, given.again);
        let back: Vec<_> = back.iter().map(told).collect();
        assert_eq!(back, [(2, 2, 1, true), (5, 1, 0, false), (3, 2, 0, true)]);
        let stand = tables.finish(|_| None).unwrap().remove(0);
        assert_eq!((stand.last, stand.given, stand.back_ms), (5, 3, None));
        transaction.commit().unwrap();
        let (new, up_to) = new(&database.begin_read().unwrap(), &queue, (3, 5), 10).unwrap();
        assert_eq!((new.iter().map(told).collect::<Vec<_>>(), up_to), (vec![(4, 1, 0, false)], 5));
    }
}
