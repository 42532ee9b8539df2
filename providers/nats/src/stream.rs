//! Messages of a JetStream stream wake a component, at least once, through a durable pull consumer.
//!
//! The server counts deliveries; what they came to it does not know. That is kept beside the stream, in a key-value
//! bucket (`TRELLIS_LEDGER_<stream>`, one entry per consumer and message), and only for messages that were not handled
//! at once:
//!
//! - a retry or a give-back is written there before the message is handed back, with the number of deliveries that it
//!   accounts for. A delivery that no entry accounts for ended without a settlement: a node died, or was cut off for
//!   longer than the claim. It counts as an attempt and as a kill;
//! - a message that is handled the first time is never looked up;
//! - a dead letter is stored in the stream `<stream>_DEAD` (or the one that `delivery.dead_letter` names) before the
//!   message is acknowledged, body and headers as they were, what is known of it in headers `Trellis-Dead-*`. It carries
//!   an id, so that a crash in between stores it once.
//!
//! What is replayed of an ordered link comes from a stream of its own, before all others: see `replays.rs`.
//!
//! A message whose headers are no UTF-8 becomes a dead letter without being run: see `unreadable.rs`. What a server that was
//! killed forgot of the consumer is known from `marks.rs` and from the ledger, which are read before the first pull from it.
//!
//! Limits of this: when the ledger cannot be read, a delivery counts as an attempt and earlier faults are not known.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::consumer::{self, AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::{self, AckKind, Context, ErrorCode, stream};
use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, timeout};
use trellis_provider::delivery::{
    CLAIM, Claimed, DeadLetter, Engine, Fate, PULL_MAX, Place, Queue, Ran, Reason, Record, Running, Settlement,
    Standing, Trigger, Trouble,
};
use trellis_provider::{LinkError, Permits, need_queue};
use trellis_wire::{CallError, ComponentKey, Delivery, Link, Message, pattern};

use crate::clock::ServerClock;
use crate::config::{self, Allowed};
use crate::connection::{Connection, Connections, REQUEST_MAX};
use crate::ledger::{Entry, KvLedger};
use crate::letters::{self, Letters};
use crate::marks::{Marks, made};
use crate::pulls::Pulls;
use crate::replays::{self, Replays};
use crate::tail::{self, existing};
use crate::unreadable::unreadable;

/// How long a new link waits to learn whether its consumer can be used.
const BIND_WAIT: Duration = Duration::from_secs(3);
/// How long the server keeps the question of an idle link whether there is something: twice as long each time that there was
/// nothing, so that thousands of idle links hardly ask.
const LOOK_MIN: Duration = Duration::from_secs(30);
const LOOK_MAX: Duration = Duration::from_secs(120);
/// Messages given out or waiting for their next try, in the whole consumer.
const ACK_PENDING_MAX: i64 = 100_000;

/// A link whose stream wakes a component.
#[derive(Debug)]
pub(crate) struct Streamed {
    connection: Arc<Connection>,
    running: Running,
}

impl Streamed {
    /// Begins to pull. What is not there yet is no error: it is said by `health`, and looked for again.
    pub(crate) async fn begin(connections: &Connections, link: Link, permits: Permits) -> Result<Self, LinkError> {
        let wanted = Wanted::read(&link)?;
        let connection = connections.get(&link).await?;
        let pulled = Pulled::new(connection.clone(), wanted, link.component.to_string());
        let engine = Engine::new(link.id, pulled, permits, link.delivery)?;
        match timeout(BIND_WAIT, engine.queue().consumer()).await {
            Ok(Ok(_)) => {}
            Ok(Err(Unbound::Differs(key, why))) => return Err(LinkError::config(key, why)),
            Ok(Err(Unbound::NotYet(why))) => engine.looks_for(why),
            Err(_) => engine.looks_for("its stream is being looked for"),
        }
        Ok(Self { connection, running: Running::begin(engine) })
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.running.progress().health()
    }

    pub(crate) fn trigger(&self) -> Arc<dyn Trigger> {
        self.running.trigger()
    }

    /// Pulls nothing more, and returns when what was pulled is settled.
    pub(crate) async fn end(&self) {
        self.running.end().await;
    }
}

/// Whether a link says rightly which stream it is. The server is not asked.
pub(crate) fn check(link: &Link) -> Result<(), LinkError> {
    Wanted::read(link).map(drop)
}

/// What a link's configuration asks for.
#[derive(Debug, Clone)]
struct Wanted {
    stream: String,
    subject: Option<String>,
    consumer: String,
    /// The consumer was named: it is made only with `create`.
    is_named: bool,
    create: bool,
    domain: Option<String>,
    dead_letter: String,
    policy: Delivery,
}

impl Wanted {
    fn read(link: &Link) -> Result<Self, LinkError> {
        let config = &link.config;
        let (key, stream) = need_queue(config, "stream")?;
        let stream = name(key, stream)?;
        if config.get("subscriptions").is_some() {
            let problem = format!("stands beside `{key}`; write `subject` for a part of the stream");
            return Err(LinkError::config("subscriptions", problem));
        }
        let subject = config.get("subject");
        if let Some(subject) = subject {
            pattern::check(subject).map_err(|why| LinkError::config("subject", why.to_string()))?;
            Allowed::read(config)?.check("subject", subject)?;
        }
        let named = config.get("consumer").map(|text| name("consumer", text)).transpose()?;
        let dead_letter = match &link.delivery.dead_letter {
            Some(stream) => name("delivery.dead_letter", stream)?,
            None => format!("{stream}_DEAD"),
        };
        if dead_letter == stream {
            return Err(LinkError::config("delivery.dead_letter", "is the stream itself: name another"));
        }
        Ok(Self {
            subject: subject.map(Into::into),
            is_named: named.is_some(),
            consumer: named.unwrap_or_else(|| consumer_of(&link.component)),
            create: config::flag(config, "create")?,
            domain: crate::keyvalue::domain(link)?,
            policy: link.delivery.clone(),
            dead_letter,
            stream,
        })
    }

    fn consumer_config(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(self.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: CLAIM,
            max_deliver: -1,
            max_ack_pending: ACK_PENDING_MAX,
            filter_subject: self.subject.clone().unwrap_or_default(),
            ..pull::Config::default()
        }
    }

    /// Why a consumer that is there cannot be used, with what it has and what is needed.
    fn differs(&self, found: &consumer::Config) -> Option<String> {
        let name = &self.consumer;
        let filter = self.subject.as_deref().unwrap_or_default();
        let differs = if found.ack_policy != AckPolicy::Explicit {
            format!("has the ack policy {:?}; Explicit is needed", found.ack_policy)
        } else if found.max_deliver > 0 {
            format!(
                "has max_deliver {}, after which the server gives a message to nobody; -1 is needed, as the link's own \
                 policy counts attempts",
                found.max_deliver
            )
        } else if found.headers_only {
            "gives out headers without bodies (headers_only); whole messages are needed".into()
        } else if found.ack_wait < CLAIM {
            format!("has ack_wait {:?}; at least {CLAIM:?} is needed", found.ack_wait)
        } else if found.backoff.iter().any(|wait| *wait < CLAIM) {
            format!("has the backoff {:?}, which replaces ack_wait; at least {CLAIM:?} is needed", found.backoff)
        } else if found.filter_subject != filter || !found.filter_subjects.is_empty() {
            let found = if found.filter_subjects.is_empty() {
                found.filter_subject.clone()
            } else {
                found.filter_subjects.join(",")
            };
            format!("filters `{found}`; the link's `subject` is `{filter}`")
        } else {
            return None;
        };
        Some(format!("the consumer `{name}` of stream `{}` {differs}: change it, or name another", self.stream))
    }
}

impl Wanted {
    /// Why messages of a stream that is there would go before they are handled, with what it has and what is needed.
    fn loses(&self, found: &stream::Config) -> Option<String> {
        let (name, lasts) = (&self.stream, self.policy.gives_up_after());
        if !found.max_age.is_zero() && found.max_age < lasts {
            let keeps = found.max_age;
            return Some(format!(
                "the stream `{name}` keeps messages for {keeps:?} (max_age), and the policy of the link tries for {lasts:?}: \
                 let it keep them for longer, or write a `delivery.max_age` or fewer `max_attempts`"
            ));
        }
        // Where what is handled stays, too, the oldest to go is handled.
        let holds_unhandled_only = found.retention != stream::RetentionPolicy::Limits;
        let is_bounded =
            [found.max_messages, found.max_bytes, found.max_messages_per_subject].iter().any(|max| *max > 0);
        (holds_unhandled_only && is_bounded && found.discard == stream::DiscardPolicy::Old).then(|| {
            format!(
                "the stream `{name}` drops its oldest messages when it is full, which nobody has handled (discard old): set \
                 it to discard new, or take its limits away"
            )
        })
    }
}

/// A stream or consumer of the user's own. The lattice's and the server's are kept from links.
fn name(key: &str, text: &str) -> Result<String, LinkError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if text.is_empty() || text.len() > 128 || !text.bytes().all(plain) {
        return Err(LinkError::config(key, format!("`{text}`: 1 to 128 of a-z, A-Z, 0-9, `-` and `_` are expected")));
    }
    if ["TRELLIS_", "KV_", "OBJ_"].iter().any(|reserved| text.starts_with(reserved)) {
        return Err(LinkError::config(
            key,
            format!("`{text}`: names that begin so belong to the lattice or to buckets"),
        ));
    }
    Ok(text.into())
}

/// The consumer of a component: the same on every node. `shop/worker` becomes `shop_worker`; what a name cannot hold,
/// and `_` itself, is escaped as `=XX`.
fn consumer_of(component: &ComponentKey) -> String {
    component.to_string().bytes().fold(String::new(), |mut name, byte| {
        match byte {
            b'/' => name.push('_'),
            byte if byte.is_ascii_alphanumeric() || byte == b'-' => name.push(byte.into()),
            byte => name.push_str(&format!("={byte:02X}")),
        }
        name
    })
}

/// Why there is no consumer to pull from.
#[derive(Debug)]
enum Unbound {
    /// It, or its stream, is not there or cannot be reached; that may mend itself.
    NotYet(String),
    /// What this key of the config names is there and must not be used.
    Differs(&'static str, String),
}

impl From<Unbound> for Trouble {
    fn from(unbound: Unbound) -> Self {
        match unbound {
            Unbound::NotYet(why) | Unbound::Differs(_, why) => why,
        }
    }
}

/// A consumer, and what is known of messages that it may give out as if nothing had been.
struct Bound {
    consumer: Consumer<pull::Config>,
    /// What is replayed of an ordered link.
    replays: Option<Consumer<pull::Config>>,
    /// How often the client had connected before it was found: a server that was killed is another afterwards.
    connects: u64,
    /// When it was made.
    made: i128,
    /// Messages that were taken off.
    settled: BTreeSet<u64>,
    /// Messages of which the ledger has something.
    noted: BTreeSet<u64>,
}

/// What is remembered of a consumer, for when someone deletes it.
#[derive(Clone, Copy)]
struct Seen {
    /// When its stream was made: the sequences of another one begin anew.
    stream: i128,
    /// When it was made.
    made: i128,
    /// Up to where all was taken off.
    floor: u64,
}

/// A stream as the engine of one link sees it.
struct Pulled {
    context: Context,
    connection: Arc<Connection>,
    wanted: Wanted,
    component: String,
    /// Forgotten whenever something fails, and found anew.
    bound: Mutex<Option<Arc<Bound>>>,
    /// How many messages were still to be given out, as the last one said that was.
    pending: AtomicUsize,
    /// How often the client had connected when it was last looked for what it cannot read, and what was found.
    looked_at: AtomicU64,
    set_aside: Mutex<BTreeSet<u64>>,
    /// The consumer as it was last seen.
    seen: Mutex<Option<Seen>>,
    ledger: KvLedger,
    marks: Marks,
    pulls: Pulls,
    clock: Arc<ServerClock>,
    /// Of an ordered link, and when they are asked for next.
    replays: Option<Replays>,
    replays_at: Mutex<Instant>,
}

/// A message that was given out.
pub(crate) struct Claim {
    pub(crate) message: jetstream::Message,
    /// What names it in the ledger.
    pub(crate) key: String,
    /// What it was published under.
    pub(crate) subject: String,
    is_replay: bool,
    sequence: u64,
    delivered: u64,
    /// When its consumer was made.
    made: i128,
    state: Mutex<Claiming>,
}

/// What changes about a claim while it lasts.
#[derive(Debug, Clone)]
struct Claiming {
    /// What was known of it before this delivery, and what was noted since.
    entry: Entry,
    attempt: u32,
    ends: Instant,
    /// Whether the ledger has something of it.
    is_kept: bool,
}

impl Pulled {
    fn new(connection: Arc<Connection>, wanted: Wanted, component: String) -> Self {
        let context = connection.jetstream(wanted.domain.as_deref());
        let clock = Arc::new(ServerClock::new(context.clone(), wanted.stream.clone()));
        let ledger = KvLedger::new(context.clone(), &wanted.stream, wanted.consumer.clone(), clock.clone());
        let is_ordered = wanted.policy.order_by.is_some();
        let marks = Marks::new(context.clone(), &wanted.stream, &wanted.consumer, is_ordered);
        let pulls = Pulls::new(context.clone(), connection.client.clone());
        let replays = is_ordered.then(|| Replays::new(context.clone(), &wanted.stream, &wanted.consumer));
        let (bound, pending, replays_at) = (Mutex::default(), AtomicUsize::new(0), Mutex::new(Instant::now()));
        let (looked_at, set_aside, seen) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        Self {
            context,
            connection,
            wanted,
            component,
            bound,
            pending,
            looked_at,
            set_aside,
            seen,
            ledger,
            marks,
            pulls,
            clock,
            replays,
            replays_at,
        }
    }

    /// The consumer, found or made.
    async fn consumer(&self) -> Result<Arc<Bound>, Unbound> {
        let bound = self.bound.lock().expect("nothing panics while it holds the consumer").clone();
        let connects = self.connects();
        if let Some(bound) = bound.filter(|bound| bound.connects == connects) {
            return Ok(bound);
        }
        let (stream, consumer) = self.find().await?;
        let info = consumer.cached_info();
        let not_yet = |why| Unbound::NotYet(format!("what was taken off lately cannot be read: {why}"));
        let mut settled = self.marks.read(info).await.map_err(not_yet)?;
        let now = Seen { stream, made: made(info), floor: info.ack_floor.stream_sequence };
        let before = *self.seen();
        if let Some(before) = before.filter(|seen| seen.stream == stream && seen.made != now.made) {
            settled.extend(self.marks.above(before.made, before.floor).await.map_err(not_yet)?);
        }
        *self.seen() = Some(now);
        let noted = self.ledger.noted(info).await.map_err(not_yet)?;
        self.clock.look().await.map_err(Unbound::NotYet)?;
        if let Err(why) = self.letters().fit().await {
            tracing::warn!(stream = self.wanted.dead_letter, "its dead letters keep their bound: {why}");
        }
        let replays = match &self.replays {
            Some(replays) => Some(replays.consumer().await.map_err(Unbound::NotYet)?),
            None => None,
        };
        let made = made(info);
        let found = Arc::new(Bound { consumer, replays, connects, made, settled, noted });
        *self.bound.lock().expect("nothing panics while it holds the consumer") = Some(found.clone());
        Ok(found)
    }

    /// How often the client has connected.
    fn connects(&self) -> u64 {
        self.connection.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// The consumer, and when its stream was made.
    async fn find(&self) -> Result<(i128, Consumer<pull::Config>), Unbound> {
        let (wanted, stream) = (&self.wanted, self.stream().await?);
        let stream_made = stream.cached_info().created.unix_timestamp_nanos();
        let seen = self.seen().filter(|seen| seen.stream == stream_made);
        if let Some(why) = wanted.loses(&stream.cached_info().config) {
            return Err(Unbound::Differs("stream", why));
        }
        let name = &wanted.consumer;
        let not_yet = |why: String| Unbound::NotYet(format!("consumer `{name}` of stream `{}`: {why}", wanted.stream));
        match stream.consumer_info(name).await {
            Ok(_) => {}
            Err(why) if why.kind() == ConsumerInfoErrorKind::NotFound || is_no_consumer(&why.kind()) => {
                if wanted.is_named && !wanted.create {
                    return Err(not_yet(
                        "does not exist; make it, or write `create: \"true\"` in the link's config".into(),
                    ));
                }
                let mut config = wanted.consumer_config();
                if let Some(seen) = seen {
                    let start_sequence = seen.floor + 1;
                    tracing::warn!(consumer = name, stream = wanted.stream, "somebody deleted it; it is made anew");
                    config.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence };
                }
                let made = stream.create_consumer(config).await;
                return Ok((stream_made, made.map_err(|why| not_yet(format!("cannot be made: {why}")))?));
            }
            Err(why) => return Err(not_yet(why.to_string())),
        }
        let found: Consumer<pull::Config> = stream.get_consumer(name).await.map_err(|why| not_yet(why.to_string()))?;
        let config = &found.cached_info().config;
        // Trust what the server says of it, not what was asked for.
        match wanted.differs(config) {
            None => Ok((stream_made, found)),
            Some(why) => Err(Unbound::Differs("consumer", why)),
        }
    }

    async fn stream(&self) -> Result<stream::Stream, Unbound> {
        let name = &self.wanted.stream;
        if let Some(stream) = existing(&self.context, name).await.map_err(Unbound::NotYet)? {
            return Ok(stream);
        }
        if !self.wanted.create {
            let problem = "does not exist; make it, or write `create: \"true\"` in the link's config";
            return Err(Unbound::NotYet(format!("stream `{name}` {problem}")));
        }
        let subjects = vec![self.wanted.subject.clone().unwrap_or_else(|| name.clone())];
        let config = stream::Config { name: name.clone(), subjects, ..stream::Config::default() };
        tail::made(&self.context, config).await.map_err(|why| Unbound::NotYet(format!("stream `{name}`: {why}")))
    }

    /// Something failed: whether the consumer is still there is looked up before it is used again.
    fn failed(&self, doing: &str, why: impl std::fmt::Display) -> Trouble {
        *self.bound.lock().expect("nothing panics while it holds the consumer") = None;
        format!("{doing} stream `{}`: {why}", self.wanted.stream)
    }

    /// Waits until there is a message for the consumer, new or due again, for so long at most. It is not given out: a pull of
    /// one byte is too small for any message, and the server says so as soon as there is one.
    async fn look(&self, consumer: &Consumer<pull::Config>, at_most: Duration) -> Result<bool, CallError> {
        let allowed = consumer.cached_info().config.max_expires;
        let at_most = if allowed.is_zero() { at_most } else { at_most.min(allowed) };
        let unavailable = |why: &dyn std::fmt::Display| CallError::Unavailable(why.to_string());
        let (client, inbox) = (&self.connection.client, self.connection.client.new_inbox());
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|why| unavailable(&why))?;
        let one_byte = pull::BatchConfig { batch: 1, max_bytes: 1, expires: Some(at_most), ..Default::default() };
        consumer.request_batch(one_byte, inbox.into()).await.map_err(|why| unavailable(&why))?;
        let answer = timeout(at_most + REQUEST_MAX, answers.next()).await;
        let Ok(Some(answer)) = answer else { return Err(unavailable(&"the server does not answer")) };
        match (answer.status, answer.description.as_deref().unwrap_or_default()) {
            (Some(StatusCode::REQUEST_TERMINATED), "Message Size Exceeds MaxBytes") => Ok(true),
            (Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND), _) => Ok(false),
            (status, said) => Err(unavailable(&format!("{} {said}", status.map_or(0, |status| status.as_u16())))),
        }
    }

    /// The same for a link, whose replays may come instead.
    async fn look_for_any(&self, bound: &Bound, at_most: Duration) -> Result<bool, CallError> {
        let Some(replays) = &bound.replays else { return self.look(&bound.consumer, at_most).await };
        tokio::select! {
            is_there = self.look(&bound.consumer, at_most) => is_there,
            is_there = self.look(replays, at_most) => {
                *self.replays_at() = Instant::now();
                is_there
            }
        }
    }

    /// Messages that were given out after `asked`, first those that came back.
    async fn claimed(
        &self,
        bound: &Bound,
        messages: Vec<jetstream::Message>,
        asked: Instant,
    ) -> Result<Vec<Claimed<Claim>>, Trouble> {
        let (mut new, mut again) = (Vec::with_capacity(messages.len()), Vec::new());
        for message in messages {
            let info = message.info().map_err(|why| why.to_string())?;
            match info.delivered > 1 || self.is_replay(&message) || bound.noted.contains(&info.stream_sequence) {
                true => again.push(self.claimed_again(bound, message, asked)),
                false => new.push(self.claim(bound, message, None, asked)?),
            }
        }
        let mut claimed = futures::future::try_join_all(again).await?;
        claimed.append(&mut new);
        Ok(claimed)
    }

    /// One that was given out before.
    async fn claimed_again(
        &self,
        bound: &Bound,
        message: jetstream::Message,
        asked: Instant,
    ) -> Result<Claimed<Claim>, Trouble> {
        let (sequence, delivered) = message.info().map(numbers).map_err(|why| why.to_string())?;
        let entry = self.ledger.entry(&key(self.is_replay(&message), sequence), delivered).await;
        self.claim(bound, message, Some(entry), asked)
    }

    fn is_replay(&self, message: &jetstream::Message) -> bool {
        let from = |replays: &Replays| message.info().is_ok_and(|info| info.stream == replays.stream);
        self.replays.as_ref().is_some_and(from)
    }

    /// A message of which this is in the ledger, if it may have something.
    fn claim(
        &self,
        bound: &Bound,
        message: jetstream::Message,
        entry: Option<Entry>,
        asked: Instant,
    ) -> Result<Claimed<Claim>, Trouble> {
        let info = message.info().map_err(|why| why.to_string())?;
        let published_ms = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).ok();
        let (sequence, delivered) = numbers(info);
        let is_replay = self.is_replay(&message);
        let key = key(is_replay, sequence);
        let (again, entry) = (entry.is_some(), entry.unwrap_or_default());
        let unaccounted = u32::try_from((delivered - 1).saturating_sub(entry.settled)).unwrap_or(u32::MAX);
        let attempt = entry.attempts.saturating_add(unaccounted).saturating_add(1);
        let entry = Entry { kills: entry.kills.saturating_add(unaccounted), ..entry };
        let age_ms =
            published_ms.zip(self.clock.known_ms()).map_or(0, |(published, now)| now.saturating_sub(published));
        let record = Record { attempt, faults: entry.faults, kills: entry.kills, age: Duration::from_millis(age_ms) };
        let replayed = |name: &str| message.headers.as_ref()?.get(name).map(ToString::to_string);
        let subject = replayed(letters::REPLAY_SUBJECT).unwrap_or_else(|| message.subject.to_string());
        let replay_of = replayed(letters::REPLAY_OF);
        let once = replay_of.as_ref().and_then(|_| replayed(crate::publish::ID_HEADER));
        let published = letters::published(message.headers.as_ref());
        let name = published.get(crate::publish::ID_HEADER).map(ToString::to_string);
        let received = Message {
            subject: subject.clone(),
            body: message.payload.clone(),
            reply_to: None,
            headers: crate::publish::read_headers(Some(&*published)),
            id: format!("{}-{key}", self.wanted.stream),
            attempt,
            published_ms,
        };
        // What is replayed was published last.
        let position = Some(u128::from(sequence) | u128::from(is_replay) << 64);
        let place = Place { key: key.clone(), has_twins: false, position, again, name, replay_of, once };
        let state = Mutex::new(Claiming { is_kept: again, entry, attempt, ends: asked + CLAIM });
        let claim = Claim { message, key, subject, is_replay, sequence, delivered, made: bound.made, state };
        Ok(Claimed { claim, message: received, record, place })
    }

    /// The server takes what comes over one connection in its order: where the mark is stored, the acknowledgement is known
    /// too. One that got lost on its way to another server of a cluster shows in that the message comes again: see
    /// [`Self::without_taken_off`].
    ///
    /// Of what is replayed the ledger says it before.
    async fn taken_off(&self, claim: &Claim) -> Result<(), Trouble> {
        if claim.is_replay {
            self.ledger.put(&claim.key, &Entry::done()).await?;
        }
        let acknowledged = claim.message.ack().await;
        acknowledged.map_err(|why| format!("acknowledging to stream `{}`: {why}", self.wanted.stream))?;
        if claim.is_replay {
            return Ok(());
        }
        self.marks.set(claim.made, claim.sequence).await?;
        if claim.state().is_kept {
            self.ledger.forget(&claim.key).await;
        }
        Ok(())
    }

    /// Takes off, unseen, what comes again though it is marked: its acknowledgement was lost. Only what ended without a
    /// settlement, as far as the ledger knows, can be such a message.
    async fn without_taken_off(&self, bound: &Bound, mut claimed: Vec<Claimed<Claim>>) -> Vec<Claimed<Claim>> {
        for done in claimed.extract_if(.., |claimed| claimed.claim.state().entry.is_done()) {
            take_off_unseen(&done.claim.message).await;
        }
        if claimed.iter().all(|claimed| claimed.record.kills == 0) {
            return claimed;
        }
        let marked = self.marks.read(bound.consumer.cached_info()).await.unwrap_or_else(|why| {
            tracing::warn!(stream = self.wanted.stream, "messages may be handled again that were taken off: {why}");
            BTreeSet::new()
        });
        let is_marked = |claim: &Claim| !claim.is_replay && marked.contains(&claim.sequence);
        for again in claimed.extract_if(.., |claimed| is_marked(&claimed.claim)) {
            tracing::warn!(
                stream = self.wanted.stream,
                sequence = again.claim.sequence,
                "an acknowledgement was lost; if this is said again and again, see that the account may publish to $JS.ACK.>"
            );
            take_off_unseen(&again.claim.message).await;
        }
        claimed
    }

    async fn handed_back(&self, claim: &Claim, entry: &Entry, after: Option<Duration>) -> Result<(), Trouble> {
        self.ledger.put(&claim.key, entry).await?;
        let handed = claim.message.ack_with(AckKind::Nak(after)).await;
        handed.map_err(|why| format!("handing back to stream `{}`: {why}", self.wanted.stream))
    }

    /// Where the client connected anew since the last time: what it broke the connection over becomes dead letters.
    async fn set_aside_unreadable(&self) -> Result<(), Trouble> {
        let connects = self.connects();
        if self.looked_at.load(Ordering::Relaxed) == connects {
            return Ok(());
        }
        let bound = self.consumer().await?;
        let info = bound.consumer.get_info().await.map_err(|why| self.failed("looking at", why))?;
        let found = unreadable(&self.context, &info).await?;
        for Claimed { claim, .. } in self.claimed(&bound, found, Instant::now()).await? {
            if self.set_aside().contains(&claim.sequence) {
                continue;
            }
            let reason = Reason::Refused("its headers are no UTF-8, and were never shown to the component".into());
            let settlement = Settlement::DeadLetter { reason, fault: None, ran: Ran::default() };
            self.settle(&claim, &settlement).await?;
            self.set_aside().insert(claim.sequence);
        }
        self.set_aside().retain(|sequence| *sequence > info.ack_floor.stream_sequence);
        self.looked_at.store(connects, Ordering::Relaxed);
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().expect("nothing panics while it holds it")
    }

    fn replays_at(&self) -> MutexGuard<'_, Instant> {
        self.replays_at.lock().expect("nothing panics while it holds it")
    }

    fn set_aside(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.set_aside.lock().expect("nothing panics while it holds them")
    }

    /// Whether a message is taken off unseen: it was before, and the server forgot it; or it is replayed, and is for the
    /// component that gave it up.
    async fn is_done(&self, bound: &Bound, message: &jetstream::Message) -> bool {
        let wanted = message.headers.as_ref().and_then(|headers| headers.get(letters::REPLAY_FOR));
        let another = wanted.is_some_and(|wanted| wanted.as_str() != self.wanted.consumer);
        let forgotten = |info: jetstream::message::Info<'_>| {
            info.stream == self.wanted.stream && bound.settled.contains(&info.stream_sequence)
        };
        let settled = !bound.settled.is_empty() && message.info().is_ok_and(forgotten);
        let is_done = another || settled;
        if is_done {
            take_off_unseen(message).await;
        }
        is_done
    }

    /// Takes what the server gives out now: what is replayed, then what is in the stream.
    async fn fetch(&self, max: usize) -> Result<Vec<jetstream::Message>, Trouble> {
        let (bound, mut fetched) = (self.consumer().await?, Vec::with_capacity(max));
        if let Some(replays) = bound.replays.as_ref().filter(|_| *self.replays_at() <= Instant::now()) {
            self.fetch_from(replays, max, &mut fetched).await?;
            if fetched.is_empty() {
                *self.replays_at() = Instant::now() + replays::LOOK_EVERY;
            }
        }
        let replayed = fetched.len();
        if replayed == max {
            return Ok(fetched);
        }
        self.fetch_from(&bound.consumer, max, &mut fetched).await?;
        if let Some(Ok(info)) = fetched[replayed..].last().map(jetstream::Message::info) {
            self.pending.store(usize::try_from(info.pending).unwrap_or(PULL_MAX), Ordering::Relaxed);
        }
        Ok(fetched)
    }

    /// Adds what one consumer has, up to `max` in all.
    async fn fetch_from(
        &self,
        consumer: &Consumer<pull::Config>,
        max: usize,
        fetched: &mut Vec<jetstream::Message>,
    ) -> Result<(), Trouble> {
        match self.pulls.take(consumer, max, fetched).await {
            Err(why) if fetched.is_empty() => Err(self.failed("pulling from", why)),
            Err(why) => {
                // What came before it is run; what is wrong shows at the next pull.
                self.failed("pulling from", why);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Claim {
    fn state(&self) -> Claiming {
        self.state.lock().expect("nothing panics while it holds the claim").clone()
    }

    fn change(&self, change: impl FnOnce(&mut Claiming)) {
        change(&mut self.state.lock().expect("nothing panics while it holds the claim"));
    }

    /// The entry after an attempt, and how many attempts it was in all.
    fn noted(&self, fault: Option<&str>) -> (Entry, u32) {
        let Claiming { entry, attempt, .. } = self.state();
        (entry.after(attempt, self.delivered, fault), attempt)
    }

    /// Whether the server gives the message out again: then it is no longer this claim's to hand back.
    fn is_over(&self) -> bool {
        self.state().ends <= Instant::now()
    }
}

#[async_trait]
impl Queue for Pulled {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        self.set_aside_unreadable().await?;
        // Said once by each pull, so that a stream that is busy is not asked before each of them.
        let pending = self.pending.swap(0, Ordering::Relaxed);
        if pending > 0 {
            return Ok(pending);
        }
        let mut at_most = LOOK_MIN;
        loop {
            let bound = self.consumer().await?;
            let look = self.connection.during(self.look_for_any(&bound, at_most));
            if look.await.map_err(|why| self.failed("looking at", why))? {
                return Ok(1);
            }
            at_most = (at_most * 2).min(LOOK_MAX);
        }
    }

    fn mends(&self) -> Option<BoxFuture<'_, ()>> {
        Some(self.connection.mends().boxed())
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        self.set_aside_unreadable().await?;
        let asked = Instant::now();
        let fetched = self.fetch(max).await?;
        // Looked at after they came: the server may have died and come back while they were waited for.
        let bound = self.consumer().await?;
        let mut messages = Vec::with_capacity(fetched.len());
        for message in fetched {
            if !self.is_done(&bound, &message).await {
                messages.push(message);
            }
        }
        let claimed = self.claimed(&bound, messages, asked).await?;
        Ok(self.without_taken_off(&bound, claimed).await)
    }

    async fn settle(&self, claim: &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => self.taken_off(claim).await,
            // The key that it parks must not be taken for one that has a letter.
            Settlement::DeadLetter { .. } if claim.is_over() && self.replays.is_some() => Err(format!(
                "a claim in stream `{}` has ended before its message was a dead letter: it is given out again",
                self.wanted.stream
            )),
            _ if claim.is_over() => Ok(()),
            Settlement::Retry { after, fault } => {
                self.handed_back(claim, &claim.noted(fault.as_deref()).0, Some(*after)).await
            }
            Settlement::DeadLetter { reason, fault, ran } => {
                let (entry, attempts) = claim.noted(fault.as_deref());
                self.letters().bury(claim, &entry, attempts, (reason, ran)).await?;
                self.taken_off(claim).await
            }
            Settlement::GiveBack { after } => {
                let Claiming { entry, attempt, .. } = claim.state();
                let entry = Entry { attempts: attempt - 1, settled: claim.delivered, ..entry };
                self.handed_back(claim, &entry, Some(*after).filter(|after| !after.is_zero())).await
            }
        }
    }

    fn buries_in_two_steps(&self) -> bool {
        true
    }

    fn is_of_one(&self, why: &Trouble) -> bool {
        why.starts_with(letters::TOO_LARGE)
    }

    async fn extend(&self, claim: &Claim) -> Result<(), Trouble> {
        let ends = Instant::now() + CLAIM;
        claim.message.ack_with(AckKind::Progress).await.map_err(|why| why.to_string())?;
        claim.change(|state| state.ends = ends);
        Ok(())
    }

    async fn note(&self, claim: &Claim, fault: Option<&str>) -> Result<(), Trouble> {
        // If the claim ends without a settlement from here on, its delivery is the one that nothing accounts for.
        let entry = Entry { settled: claim.delivered - 1, ..claim.noted(fault).0 };
        self.ledger.put(&claim.key, &entry).await?;
        claim.change(|state| (state.entry, state.attempt, state.is_kept) = (entry, state.attempt + 1, true));
        Ok(())
    }

    async fn standing(&self) -> Result<Standing, Trouble> {
        let bound = self.consumer().await?;
        let info = bound.consumer.get_info().await.map_err(|why| self.failed("looking at", why))?;
        if let Some(seen) = self.seen().as_mut().filter(|seen| seen.made == bound.made) {
            seen.floor = info.ack_floor.stream_sequence;
        }
        let (mut waiting, mut claimed) = (info.num_pending, info.num_ack_pending as u64);
        let after = if claimed > 0 { info.ack_floor.stream_sequence } else { info.delivered.stream_sequence };
        let oldest_age = if claimed + info.num_pending > 0 { self.age_of_next(after).await } else { None };
        let dead = self.letters().count().await;
        if let Some(replays) = &bound.replays {
            let info = replays.get_info().await.map_err(|why| self.failed("looking at the replays of", why))?;
            (waiting, claimed) = (waiting + info.num_pending, claimed + info.num_ack_pending as u64);
        }
        Ok(Standing { waiting, claimed, oldest_age, dead })
    }

    async fn letters(&self, after: Option<&str>, max: usize) -> Result<Vec<DeadLetter>, Trouble> {
        self.letters().list(after, max).await
    }

    async fn decide(&self, id: &str, fate: Fate) -> Result<Option<DeadLetter>, Trouble> {
        let decided = self.letters().decide(id, fate).await;
        *self.replays_at() = Instant::now();
        decided
    }

    fn ledger(&self) -> Option<&dyn trellis_provider::delivery::Ledger> {
        Some(&self.ledger.entries)
    }

    fn keeps_order(&self) -> bool {
        true
    }
}

impl Pulled {
    fn letters(&self) -> Letters<'_> {
        Letters {
            context: &self.context,
            client: &self.connection.client,
            stream: &self.wanted.stream,
            consumer: &self.wanted.consumer,
            component: &self.component,
            replays: self.replays.as_ref(),
            to: &self.wanted.dead_letter,
            bytes_max: self.wanted.policy.dead_bytes_max,
        }
    }

    /// How old the next message of the link after this one is.
    async fn age_of_next(&self, after: u64) -> Option<Duration> {
        let stream = self.context.get_stream_no_info(&self.wanted.stream).await.ok()?;
        let subject = self.wanted.subject.as_deref().unwrap_or(">");
        let next = stream.get_first_raw_message_by_subject(subject, after + 1).await.ok()?;
        let at_ms = u64::try_from(next.time.unix_timestamp_nanos() / 1_000_000).ok()?;
        Some(Duration::from_millis(self.clock.known_ms()?.saturating_sub(at_ms)))
    }
}

/// What names a message in the ledger.
fn key(is_replay: bool, sequence: u64) -> String {
    if is_replay { format!("r{sequence}") } else { sequence.to_string() }
}

/// Where a message stands in its stream, and how often it was delivered.
fn numbers(info: jetstream::message::Info<'_>) -> (u64, u64) {
    (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1).max(1))
}

async fn take_off_unseen(message: &jetstream::Message) {
    if let Err(why) = message.ack().await {
        tracing::debug!(%why, "a message that is taken off unseen comes again");
    }
}

fn is_no_consumer(why: &ConsumerInfoErrorKind) -> bool {
    matches!(why, ConsumerInfoErrorKind::JetStream(refused) if refused.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

#[cfg(test)]
mod tests {
    use trellis_bus::testing::NatsServer;
    use trellis_provider::testing::lab::{Node, is_being_given_up, until_letters, until_settled};
    use trellis_provider::testing::{Broker, contract};
    use trellis_wire::{Config, LinkId, LinkName, OrderBy};

    use super::*;
    use crate::Options;

    /// A server with a stream for each queue.
    struct Served {
        server: NatsServer,
        connections: Connections,
    }

    impl Served {
        fn link(name: &str) -> Link {
            let (component, provider): (ComponentKey, ComponentKey) =
                ("shop/worker".parse().unwrap(), "shop/nats".parse().unwrap());
            let (link, interfaces) = (LinkName::default(), vec!["handler".to_owned()]);
            Link {
                id: LinkId::new(&provider, &component, &link, "trellis", "messaging", &interfaces),
                component,
                name: link,
                namespace: "trellis".into(),
                package: "messaging".into(),
                interfaces,
                config: Config::from_iter([("stream", name), ("create", "true")]),
                delivery: Delivery::default(),
                secrets: Default::default(),
                part: Default::default(),
            }
        }
    }

    #[async_trait]
    impl Broker for Served {
        type Queue = Pulled;

        async fn queue(&self, name: &str) -> Pulled {
            self.pulled(Self::link(name)).await
        }

        async fn ordered(&self, name: &str) -> Pulled {
            let mut link = Self::link(name);
            link.delivery.order_by = Some(OrderBy::Subject);
            self.pulled(link).await
        }

        async fn publish(&self, name: &str, message: Message) {
            let context = jetstream::new(async_nats::connect(&self.server.url).await.unwrap());
            let mut headers = async_nats::HeaderMap::new();
            message.headers.iter().for_each(|(name, value)| headers.append(name.as_str(), value.as_str()));
            let sent = context.publish_with_headers(name.to_owned(), headers, message.body).await;
            sent.unwrap().await.unwrap();
        }
    }

    impl Served {
        async fn pulled(&self, link: Link) -> Pulled {
            let connection = self.connections.get(&link).await.unwrap();
            let pulled = Pulled::new(connection, Wanted::read(&link).unwrap(), link.component.to_string());
            while pulled.consumer().await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            pulled
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract_of_brokers() {
        let server = NatsServer::start(true);
        let options = Options { default_url: Some(server.url.clone()), ..Options::default() };
        contract(&Served { server, connections: Connections::new(options) }).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_dead_letter_of_an_ordered_link_is_said_to_be_written_once_its_claim_has_ended() {
        let server = NatsServer::start(true);
        let options = Options { default_url: Some(server.url.clone()), ..Options::default() };
        let served = Served { server, connections: Connections::new(options) };
        let queue = served.ordered("mail").await;
        served.publish("mail", Message { body: "poison".into(), ..Message::default() }).await;
        queue.ready().await.unwrap();
        let claimed = queue.pull(1).await.unwrap().remove(0);
        let (reason, ran) = (Reason::Refused("no such order".into()), Ran::default());
        let dead = Settlement::DeadLetter { reason, fault: None, ran };
        claimed.claim.change(|state| state.ends = Instant::now());
        assert!(queue.settle(&claimed.claim, &dead).await.is_err());
        assert_eq!(Queue::letters(&queue, None, 9).await, Ok(Vec::new()));
        queue.extend(&claimed.claim).await.unwrap();
        queue.settle(&claimed.claim, &dead).await.unwrap();
        assert_eq!(Queue::letters(&queue, None, 9).await.unwrap().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_again_though_it_is_marked_is_taken_off_unseen() {
        let server = NatsServer::start(true);
        let options = Options { default_url: Some(server.url.clone()), ..Options::default() };
        let served = Served { server, connections: Connections::new(options) };
        let queue = served.queue("mail").await;
        for body in ["marked", "new"] {
            served.publish("mail", Message { body: body.into(), ..Message::default() }).await;
        }
        queue.ready().await.unwrap();
        let first = queue.pull(1).await.unwrap().remove(0);
        queue.marks.set(first.claim.made, first.claim.sequence).await.unwrap();
        // As if its acknowledgement had got lost.
        first.claim.message.ack_with(AckKind::Nak(None)).await.unwrap();
        let mut given = Vec::new();
        while queue.standing().await.unwrap().claimed > 0 || given.is_empty() {
            for claimed in queue.pull(2).await.unwrap() {
                queue.settle(&claimed.claim, &Settlement::Ack).await.unwrap();
                given.push(claimed.message.body);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(given, ["new"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_comes_again_though_its_dead_letter_is_stored_is_taken_off_unseen() {
        let server = NatsServer::start(true);
        let options = Options { default_url: Some(server.url.clone()), ..Options::default() };
        let served = Served { server, connections: Connections::new(options) };
        let (queue, node, link) = (served.queue("mail").await, Node::new(2), Served::link("mail"));
        for body in ["dead 1", "dead 2"] {
            served.publish("mail", Message { body: body.into(), ..Message::default() }).await;
        }
        let mut pulled = Vec::new();
        while pulled.len() < 2 {
            pulled.extend(queue.pull(2).await.unwrap());
        }
        let (reason, ran) = (Reason::Refused("no such order".into()), Ran::default());
        for claimed in pulled {
            // As if its node had died after that, with the first before its letter was stored.
            is_being_given_up(&queue, &claimed).await;
            if claimed.message.body == "dead 2" {
                let (entry, attempts) = claimed.claim.noted(None);
                queue.letters().bury(&claimed.claim, &entry, attempts, (&reason, &ran)).await.unwrap();
            }
            claimed.claim.message.ack_with(AckKind::Nak(None)).await.unwrap();
        }
        let other = served.queue("mail").await;
        let engine = Engine::new(link.id.clone(), other, node.permits(&link), Delivery::default()).unwrap();
        let running = Running::begin(engine);
        until_letters(&queue, 2).await;
        until_settled(&queue).await;
        let letters = Queue::letters(&queue, None, 9).await.unwrap();
        assert_eq!((node.bodies(), letters.len()), (vec!["dead 1".to_owned()], 2), "{letters:?}");
        running.end().await;
    }
}
