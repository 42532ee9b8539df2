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
//! Limits of this: when the ledger cannot be read, a delivery counts as an attempt and earlier faults are not known.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{self, AckPolicy, Consumer, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::kv::{self, Store};
use async_nats::jetstream::{self, AckKind, Context, ErrorCode, stream};
use async_nats::{HeaderMap, HeaderValue};
use async_trait::async_trait;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::delivery::{
    CLAIM, Claimed, Engine, PULL_MAX, Progress, Queue, Reason, Record, Settlement, Trouble,
};
use trellis_provider::{LinkError, Permits};
use trellis_wire::{ComponentKey, Delivery, Link, Message, pattern};

use crate::config::{self, Allowed};
use crate::connection::{Connection, Connections};

/// How long one request to JetStream may take.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a new link waits to learn whether its consumer can be used.
const BIND_WAIT: Duration = Duration::from_secs(3);
/// How often an idle stream is asked for news. JetStream tells nobody that there is something, without giving it out.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Messages given out or waiting for their next try, in the whole consumer.
const ACK_PENDING_MAX: i64 = 100_000;
/// How long ledger entries and dead letters are kept: 14 days.
const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// Bytes that a stream of dead letters made by us may hold: 1 GiB.
const DEAD_BYTES_MAX: i64 = 1 << 30;
/// Faults of one message whose text is kept, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// What the headers of a dead letter take besides the faults, at most, in bytes.
const DEAD_HEADERS_BYTES: usize = 4 * 1_024;

/// A link whose stream wakes a component.
#[derive(Debug)]
pub(crate) struct Streamed {
    connection: Arc<Connection>,
    stop: CancellationToken,
    tasks: TaskTracker,
    progress: Arc<Progress>,
}

impl Streamed {
    /// Begins to pull. What is not there yet is no error: it is said by `health`, and looked for again.
    pub(crate) async fn begin(connections: &Connections, link: Link, permits: Permits) -> Result<Self, LinkError> {
        let wanted = Wanted::read(&link)?;
        let connection = connections.get(&link.config).await?;
        let pulled = Pulled::new(&connection, wanted, link.component.to_string());
        let engine = Engine::new(link.id, pulled, permits, link.delivery)?;
        if let Ok(Err(Unbound::Differs(why))) = tokio::time::timeout(BIND_WAIT, engine.queue().consumer()).await {
            return Err(LinkError::config("consumer", why));
        }
        let begun =
            Self { connection, stop: CancellationToken::new(), tasks: TaskTracker::new(), progress: engine.progress() };
        begun.tasks.spawn(engine.run(begun.stop.clone()));
        begun.tasks.close();
        Ok(begun)
    }

    pub(crate) fn health(&self) -> Result<(), String> {
        self.connection.health()?;
        self.progress.health()
    }

    /// Pulls nothing more, and returns when what was pulled is settled.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.stop.cancel();
    }
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
        let stream = name("stream", config.get("stream").unwrap_or_default())?;
        if config.get("subscriptions").is_some() {
            let problem = "stands beside `stream`; write `subject` for a part of the stream";
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
        Ok(Self {
            subject: subject.map(Into::into),
            is_named: named.is_some(),
            consumer: named.unwrap_or_else(|| consumer_of(&link.component)),
            create: config::flag(config, "create")?,
            domain: crate::keyvalue::domain(config)?,
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
        let needed = i64::from(self.policy.max_attempts).saturating_add(i64::from(self.policy.max_faults));
        let filter = self.subject.as_deref().unwrap_or_default();
        let differs = if found.ack_policy != AckPolicy::Explicit {
            format!("has the ack policy {:?}; Explicit is needed", found.ack_policy)
        } else if found.max_deliver > 0 && found.max_deliver < needed {
            format!(
                "has max_deliver {}; the policy of the link needs -1, or {needed} (max_attempts + max_faults)",
                found.max_deliver
            )
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
    /// It is there and must not be used.
    Differs(String),
}

impl From<Unbound> for Trouble {
    fn from(unbound: Unbound) -> Self {
        match unbound {
            Unbound::NotYet(why) | Unbound::Differs(why) => why,
        }
    }
}

type Bound = Arc<Consumer<pull::Config>>;

/// A stream as the engine of one link sees it.
struct Pulled {
    context: Context,
    client: async_nats::Client,
    wanted: Wanted,
    component: String,
    /// Forgotten whenever something fails, and found anew.
    bound: Mutex<Option<Bound>>,
    ledger: tokio::sync::OnceCell<Store>,
}

/// A message that was given out.
struct Claim {
    message: jetstream::Message,
    sequence: u64,
    delivered: u64,
    /// What was known of it before this delivery.
    entry: Entry,
    attempt: u32,
}

/// What the ledger keeps of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    attempts: u32,
    faults: u32,
    kills: u32,
    /// Deliveries that are accounted for.
    settled: u64,
    fault_texts: Vec<String>,
}

impl Pulled {
    fn new(connection: &Connection, wanted: Wanted, component: String) -> Self {
        let client = connection.client.clone();
        let mut context = match &wanted.domain {
            Some(domain) => jetstream::with_domain(client.clone(), domain),
            None => jetstream::new(client.clone()),
        };
        context.set_timeout(REQUEST_MAX);
        Self { context, client, wanted, component, bound: Mutex::default(), ledger: tokio::sync::OnceCell::new() }
    }

    /// The consumer, found or made.
    async fn consumer(&self) -> Result<Bound, Unbound> {
        let bound = self.bound.lock().expect("nothing panics while it holds the consumer").clone();
        if let Some(bound) = bound {
            return Ok(bound);
        }
        let found = Arc::new(self.find().await?);
        *self.bound.lock().expect("nothing panics while it holds the consumer") = Some(found.clone());
        Ok(found)
    }

    async fn find(&self) -> Result<Consumer<pull::Config>, Unbound> {
        let (wanted, stream) = (&self.wanted, self.stream().await?);
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
                let made = stream.create_consumer(wanted.consumer_config()).await;
                return made.map_err(|why| not_yet(format!("cannot be made: {why}")));
            }
            Err(why) => return Err(not_yet(why.to_string())),
        }
        let found: Consumer<pull::Config> = stream.get_consumer(name).await.map_err(|why| not_yet(why.to_string()))?;
        let config = &found.cached_info().config;
        // Trust what the server says of it, not what was asked for.
        match wanted.differs(config) {
            None => Ok(found),
            Some(why) => Err(Unbound::Differs(why)),
        }
    }

    async fn stream(&self) -> Result<stream::Stream, Unbound> {
        let name = &self.wanted.stream;
        let why = match self.context.get_stream(name).await {
            Ok(stream) => return Ok(stream),
            Err(why) => why,
        };
        let is_missing = matches!(why.kind(), GetStreamErrorKind::JetStream(refused)
            if refused.error_code() == ErrorCode::STREAM_NOT_FOUND);
        if !is_missing {
            return Err(Unbound::NotYet(format!("stream `{name}`: {why}")));
        }
        if !self.wanted.create {
            let problem = "does not exist; make it, or write `create: \"true\"` in the link's config";
            return Err(Unbound::NotYet(format!("stream `{name}` {problem}")));
        }
        let subjects = vec![self.wanted.subject.clone().unwrap_or_else(|| name.clone())];
        let config = stream::Config { name: name.clone(), subjects, ..stream::Config::default() };
        self.context.create_stream(config).await.map_err(|why| Unbound::NotYet(format!("stream `{name}`: {why}")))?;
        self.context.get_stream(name).await.map_err(|why| Unbound::NotYet(format!("stream `{name}`: {why}")))
    }

    /// Something failed: whether the consumer is still there is looked up before it is used again.
    fn failed(&self, doing: &str, why: impl std::fmt::Display) -> Trouble {
        *self.bound.lock().expect("nothing panics while it holds the consumer") = None;
        format!("{doing} stream `{}`: {why}", self.wanted.stream)
    }

    async fn ledger(&self) -> Result<&Store, Trouble> {
        let make = async || {
            let bucket = format!("TRELLIS_LEDGER_{}", self.wanted.stream);
            if let Ok(store) = self.context.get_key_value(&bucket).await {
                return Ok(store);
            }
            let config = kv::Config { bucket: bucket.clone(), history: 1, max_age: KEPT, ..kv::Config::default() };
            self.context.create_key_value(config).await.map_err(|why| format!("the ledger `{bucket}`: {why}"))
        };
        self.ledger.get_or_try_init(make).await
    }

    fn key(&self, sequence: u64) -> String {
        format!("{}.{sequence}", self.wanted.consumer)
    }

    /// What is known of a message that was delivered before. Without a ledger: that it was.
    async fn entry(&self, sequence: u64, delivered: u64) -> Entry {
        let read = async {
            let store = self.ledger().await?;
            store.get(self.key(sequence)).await.map_err(|why| why.to_string())
        };
        match read.await {
            Ok(Some(bytes)) => postcard::from_bytes(&bytes).unwrap_or_default(),
            Ok(None) => Entry::default(),
            Err(why) => {
                tracing::warn!(stream = self.wanted.stream, why, "what became of earlier attempts cannot be read");
                let before = delivered.saturating_sub(1);
                Entry { attempts: u32::try_from(before).unwrap_or(u32::MAX), settled: before, ..Entry::default() }
            }
        }
    }

    async fn put_entry(&self, claim: &Claim, entry: &Entry) -> Result<(), Trouble> {
        let bytes = postcard::to_stdvec(entry).expect("plain data can be written");
        let put = self.ledger().await?.put(self.key(claim.sequence), bytes.into()).await;
        put.map(drop).map_err(|why| format!("the ledger of stream `{}`: {why}", self.wanted.stream))
    }

    async fn claimed(&self, message: jetstream::Message) -> Result<Claimed<Claim>, Trouble> {
        let info = message.info().map_err(|why| why.to_string())?;
        let (sequence, delivered) = (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1).max(1));
        let published_ms = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).ok();
        let entry = if delivered == 1 { Entry::default() } else { self.entry(sequence, delivered).await };
        let unaccounted = u32::try_from((delivered - 1).saturating_sub(entry.settled)).unwrap_or(u32::MAX);
        let attempt = entry.attempts.saturating_add(unaccounted).saturating_add(1);
        let entry = Entry { kills: entry.kills.saturating_add(unaccounted), ..entry };
        let age_ms = published_ms.map_or(0, |published| now_ms().saturating_sub(published));
        let record = Record { attempt, faults: entry.faults, kills: entry.kills, age: Duration::from_millis(age_ms) };
        let received = Message {
            subject: message.subject.to_string(),
            body: message.payload.clone(),
            reply_to: None,
            headers: crate::publish::read_headers(message.headers.as_ref()),
            id: format!("{}-{sequence}", self.wanted.stream),
            attempt,
            published_ms,
        };
        Ok(Claimed { claim: Claim { message, sequence, delivered, entry, attempt }, message: received, record })
    }

    async fn taken_off(&self, claim: &Claim) -> Result<(), Trouble> {
        claim
            .message
            .double_ack()
            .await
            .map_err(|why| format!("acknowledging to stream `{}`: {why}", self.wanted.stream))?;
        if claim.delivered > 1
            && let Ok(ledger) = self.ledger().await
            && let Err(why) = ledger.purge(self.key(claim.sequence)).await
        {
            // It goes by itself after `KEPT`.
            tracing::debug!(%why, "an entry of the ledger stays");
        }
        Ok(())
    }

    async fn handed_back(&self, claim: &Claim, entry: &Entry, after: Option<Duration>) -> Result<(), Trouble> {
        self.put_entry(claim, entry).await?;
        let handed = claim.message.ack_with(AckKind::Nak(after)).await;
        handed.map_err(|why| format!("handing back to stream `{}`: {why}", self.wanted.stream))
    }

    /// Stores a dead letter; the message is still there then.
    async fn bury(&self, claim: &Claim, entry: &Entry, reason: &Reason) -> Result<(), Trouble> {
        let to = &self.wanted.dead_letter;
        let failed = |why: String| format!("the stream of dead letters `{to}`: {why}");
        let headers = self.dead_headers(claim, entry, reason);
        let message = (to.clone(), headers, claim.message.payload.clone());
        let sent = self.context.publish_with_headers(message.0.clone(), message.1.clone(), message.2.clone()).await;
        if let Ok(stored) = sent
            && stored.await.is_ok()
        {
            return Ok(());
        }
        // Most likely it is not there yet.
        let config = stream::Config {
            name: to.clone(),
            subjects: vec![to.clone()],
            max_age: KEPT,
            max_bytes: DEAD_BYTES_MAX,
            discard: stream::DiscardPolicy::New,
            ..stream::Config::default()
        };
        self.context.get_or_create_stream(config).await.map_err(|why| failed(why.to_string()))?;
        let sent = self.context.publish_with_headers(message.0, message.1, message.2).await;
        sent.map_err(|why| failed(why.to_string()))?.await.map(drop).map_err(|why| failed(why.to_string()))
    }

    fn dead_headers(&self, claim: &Claim, entry: &Entry, reason: &Reason) -> HeaderMap {
        let mut headers = claim.message.headers.clone().unwrap_or_default();
        let (stream, sequence) = (&self.wanted.stream, claim.sequence);
        headers.insert("Nats-Msg-Id", format!("{stream}.{}.{sequence}", self.wanted.consumer).as_str());
        for (name, value) in [
            ("Trellis-Dead-Reason", reason.word().to_owned()),
            ("Trellis-Dead-Detail", reason.to_string()),
            ("Trellis-Dead-Component", self.component.clone()),
            ("Trellis-Dead-Stream", stream.clone()),
            ("Trellis-Dead-Sequence", sequence.to_string()),
            ("Trellis-Dead-Subject", claim.message.subject.to_string()),
            ("Trellis-Dead-Attempts", claim.attempt.to_string()),
            ("Trellis-Dead-Kills", entry.kills.to_string()),
        ] {
            headers.insert(name, header(&value, FAULT_BYTES_MAX / 4));
        }
        // The server bounds body and headers together: the message matters more than the texts.
        let mut room = self.client.max_payload().saturating_sub(claim.message.payload.len() + DEAD_HEADERS_BYTES);
        for fault in entry.fault_texts.iter().rev() {
            if room < fault.len() + 64 {
                break;
            }
            room -= fault.len() + 64;
            headers.append("Trellis-Dead-Fault", header(fault, FAULT_BYTES_MAX));
        }
        headers
    }
}

#[async_trait]
impl Queue for Pulled {
    type Claim = Claim;

    async fn ready(&self) -> Result<usize, Trouble> {
        loop {
            let consumer = self.consumer().await?;
            let info = consumer.get_info().await.map_err(|why| self.failed("looking at", why))?;
            let pending = usize::try_from(info.num_pending).unwrap_or(PULL_MAX);
            if pending > 0 {
                return Ok(pending);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            // Among what was given out may be something that is due again, which the server does not tell.
            if info.num_ack_pending > 0 {
                return Ok(info.num_ack_pending.min(PULL_MAX));
            }
        }
    }

    async fn pull(&self, max: usize) -> Result<Vec<Claimed<Claim>>, Trouble> {
        let consumer = self.consumer().await?;
        let messages = consumer.fetch().max_messages(max).messages().await;
        let mut messages = messages.map_err(|why| self.failed("pulling from", why))?;
        let mut claimed = Vec::new();
        while let Some(next) = messages.next().await {
            match next {
                Ok(message) => claimed.push(self.claimed(message).await?),
                // What came before it is run; what is wrong shows at the next pull.
                Err(why) if claimed.is_empty() => return Err(self.failed("pulling from", why)),
                Err(_) => break,
            }
        }
        Ok(claimed)
    }

    async fn settle(&self, claim: &Claim, settlement: &Settlement) -> Result<(), Trouble> {
        let with = |fault: &Option<String>| noted(&claim.entry, claim, fault.as_deref());
        match settlement {
            Settlement::Ack | Settlement::Drop { .. } => self.taken_off(claim).await,
            Settlement::Retry { after, fault } => self.handed_back(claim, &with(fault), Some(*after)).await,
            Settlement::DeadLetter { reason, fault } => {
                self.bury(claim, &with(fault), reason).await?;
                self.taken_off(claim).await
            }
            Settlement::GiveBack => {
                let entry = Entry { attempts: claim.attempt - 1, settled: claim.delivered, ..claim.entry.clone() };
                self.handed_back(claim, &entry, None).await
            }
        }
    }

    async fn extend(&self, claim: &Claim) -> Result<(), Trouble> {
        claim.message.ack_with(AckKind::Progress).await.map_err(|why| why.to_string())
    }
}

/// The entry after a delivery that was one.
fn noted(entry: &Entry, claim: &Claim, fault: Option<&str>) -> Entry {
    let mut entry = Entry { attempts: claim.attempt, settled: claim.delivered, ..entry.clone() };
    if let Some(fault) = fault {
        entry.faults = entry.faults.saturating_add(1);
        if entry.fault_texts.len() == FAULTS_KEPT_MAX {
            entry.fault_texts.remove(0);
        }
        entry.fault_texts.push(fault[..fault.floor_char_boundary(FAULT_BYTES_MAX)].to_owned());
    }
    entry
}

/// A header's value has no line breaks.
fn header(text: &str, bytes_max: usize) -> HeaderValue {
    let cut = &text[..text.floor_char_boundary(bytes_max)];
    let line: String = cut.split(['\r', '\n']).map(str::trim_end).collect::<Vec<_>>().join(" | ");
    line.parse().expect("a text without line breaks is a header's value")
}

fn is_no_consumer(why: &ConsumerInfoErrorKind) -> bool {
    matches!(why, ConsumerInfoErrorKind::JetStream(refused) if refused.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
