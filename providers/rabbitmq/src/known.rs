//! What is known of a message, in headers of our own that travel with it, and messages as AMQP has them.
//!
//! A message that was never given back has none of these headers. What is no UTF-8 in a header's value is replaced by
//! `U+FFFD` for the component; what is given back, and a dead letter, keep the bytes.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use trellis_wire::Message;

/// How headers of our own begin.
const OURS: &str = "x-trellis-";
/// Headers that the server adds.
const SERVERS: [&str; 5] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count"];
/// Bytes of all headers of a message that is given back: they come in one frame of 128 KiB.
pub(crate) const HEADERS_BYTES_MAX: usize = 100 * 1_024;
/// Faults of one message whose text is kept, the newest, and how long each may be, in bytes.
const FAULTS_KEPT_MAX: usize = 5;
const FAULT_BYTES_MAX: usize = 4 * 1_024;
/// Stored on disk.
const PERSISTENT: u8 = 2;

/// What is known of one message, before it is given out once more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: String,
    /// The publisher gave it its id.
    pub(crate) is_named: bool,
    pub(crate) attempts: u32,
    pub(crate) faults: u32,
    pub(crate) kills: u32,
    pub(crate) texts: Vec<String>,
    /// The routing key that it was published with.
    pub(crate) subject: String,
    /// When it was published, or first seen, in milliseconds since 1970.
    pub(crate) since_ms: u64,
    /// The dead letter that it was, and which replay of it this is: `<letter>/<replay>`.
    pub(crate) replay_of: Option<String>,
    /// How much longer it has to wait before it may be run.
    pub(crate) left_ms: u64,
}

impl Known {
    /// What a delivery brings. `now_ms` and `id` are for one that has no time and no id.
    pub(crate) fn read(delivery: &Delivery, now_ms: u64, id: impl FnOnce() -> String) -> Self {
        let headers = delivery.properties.headers().as_ref();
        let number = |name: &str| header(headers, name).and_then(|value| text(value).parse::<u64>().ok());
        let small = |name: &str| number(name).and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
        let words = |name: &str| header(headers, name).map(text);
        let named = delivery.properties.message_id().as_ref().map(ToString::to_string).filter(|id| !id.is_empty());
        let published_ms = delivery.properties.timestamp().map(|seconds| seconds.saturating_mul(1_000));
        Self {
            is_named: named.is_some(),
            id: named.or_else(|| words("id")).unwrap_or_else(id),
            attempts: small("attempts"),
            faults: small("faults"),
            kills: small("kills"),
            texts: match header(headers, "texts") {
                Some(AMQPValue::FieldArray(texts)) => texts.as_slice().iter().map(text).collect(),
                _ => Vec::new(),
            },
            subject: words("subject").unwrap_or_else(|| delivery.routing_key.to_string()),
            since_ms: number("since").or(published_ms).unwrap_or(now_ms),
            replay_of: words("replay-of"),
            left_ms: number("left").unwrap_or_default(),
        }
    }

    /// The dead letter that it was.
    pub(crate) fn letter(&self) -> Option<String> {
        self.replay_of.as_deref()?.split('/').next().map(str::to_owned)
    }

    /// So many claims ended without a settlement.
    pub(crate) fn killed(&mut self, times: u32) {
        self.attempts = self.attempts.saturating_add(times);
        self.kills = self.kills.saturating_add(times);
    }

    /// The same with one attempt more, that ended in this fault or none.
    pub(crate) fn tried(&self, fault: Option<&str>) -> Self {
        let mut tried = Self { attempts: self.attempts.saturating_add(1), ..self.clone() };
        tried.note(fault);
        tried
    }

    /// One fault more; the newest texts are kept, each cut at its bound.
    fn note(&mut self, fault: Option<&str>) {
        let Some(fault) = fault else { return };
        self.faults = self.faults.saturating_add(1);
        if self.texts.len() == FAULTS_KEPT_MAX {
            self.texts.remove(0);
        }
        self.texts.push(fault[..fault.floor_char_boundary(FAULT_BYTES_MAX)].to_owned());
    }

    /// The properties of a copy that knows this, with further headers of ours.
    pub(crate) fn write(&self, original: &BasicProperties, more: &[(&str, String)]) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in original.headers().iter().flat_map(|headers| headers.inner()) {
            if !is_internal(name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
        let mut set = |name: &str, value: AMQPValue| {
            headers.insert(format!("{OURS}{name}").into(), value);
        };
        for (name, value) in [
            ("id", self.id.clone()),
            ("attempts", self.attempts.to_string()),
            ("faults", self.faults.to_string()),
            ("kills", self.kills.to_string()),
            ("subject", self.subject.clone()),
            ("since", self.since_ms.to_string()),
        ] {
            set(name, long(&value));
        }
        if let Some(letter) = &self.replay_of {
            set("replay-of", long(letter));
        }
        if self.left_ms > 0 {
            set("left", long(&self.left_ms.to_string()));
        }
        for (name, value) in more {
            set(name, long(value));
        }
        let mut room = HEADERS_BYTES_MAX.saturating_sub(bytes(&headers));
        let mut kept = Vec::new();
        for text in self.texts.iter().rev() {
            let Some(left) = room.checked_sub(text.len() + 8) else { break };
            room = left;
            kept.push(long(text));
        }
        kept.reverse();
        if !kept.is_empty() {
            headers.insert(format!("{OURS}texts").into(), AMQPValue::FieldArray(FieldArray::from(kept)));
        }
        without_expiry(original).with_headers(headers)
    }

    /// The message for the component, of a delivery and its body.
    pub(crate) fn message(&self, delivery: &Delivery, body: Bytes, attempt: u32) -> Message {
        let mut headers = Vec::new();
        for (name, value) in delivery.properties.headers().iter().flat_map(|headers| headers.inner()) {
            match value {
                _ if is_internal(name.as_str()) => {}
                AMQPValue::FieldArray(values) => {
                    headers.extend(values.as_slice().iter().map(|value| (name.to_string(), text(value))));
                }
                value => headers.push((name.to_string(), text(value))),
            }
        }
        Message {
            subject: self.subject.clone(),
            body,
            reply_to: delivery.properties.reply_to().as_ref().map(ToString::to_string),
            headers,
            id: self.id.clone(),
            attempt,
            published_ms: Some(self.since_ms),
        }
    }
}

/// The properties of a message that a component publishes.
pub(crate) fn published(message: &Message, now_ms: u64) -> BasicProperties {
    let mut headers = std::collections::BTreeMap::<&str, Vec<AMQPValue>>::new();
    for (name, value) in &message.headers {
        headers.entry(name).or_default().push(long(value));
    }
    let mut table = FieldTable::default();
    for (name, mut values) in headers {
        let value = if values.len() == 1 { values.remove(0) } else { AMQPValue::FieldArray(values.into()) };
        table.insert(name.into(), value);
    }
    let mut properties =
        BasicProperties::default().with_delivery_mode(PERSISTENT).with_timestamp(now_ms / 1_000).with_headers(table);
    if !message.id.is_empty() {
        properties = properties.with_message_id(message.id.as_str().into());
    }
    match &message.reply_to {
        Some(reply_to) => properties.with_reply_to(reply_to.as_str().into()),
        None => properties,
    }
}

/// Tells a message from others that are not equal in all that its publisher and we made of it, also when it is given out again.
pub(crate) fn mark(delivery: &Delivery) -> u64 {
    let (mut hasher, properties) = (DefaultHasher::new(), &delivery.properties);
    let short = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
    (short(properties.message_id()), short(properties.correlation_id()), short(properties.reply_to()))
        .hash(&mut hasher);
    (properties.timestamp(), delivery.routing_key.as_str(), &delivery.data).hash(&mut hasher);
    for (name, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !is_servers(name.as_str()) {
            (name.as_str(), format!("{value:?}")).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// How often the server counted the message as given back, where it counts that.
pub(crate) fn returns(delivery: &Delivery) -> Option<u32> {
    let headers = delivery.properties.headers().as_ref()?;
    let counted = text(headers.inner().get("x-delivery-count")?).parse::<u32>();
    counted.ok()
}

/// A header of ours.
pub(crate) fn header<'a>(headers: Option<&'a FieldTable>, name: &str) -> Option<&'a AMQPValue> {
    headers?.inner().get(format!("{OURS}{name}").as_str())
}

pub(crate) fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::ShortString(value) => value.to_string(),
        AMQPValue::LongString(value) => value.to_string(),
        AMQPValue::ByteArray(value) => String::from_utf8_lossy(value.as_slice()).into_owned(),
        AMQPValue::DecimalValue(_) | AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => {
            String::new()
        }
    }
}

fn long(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Whether a header is ours or the server's, and not the publisher's.
fn is_internal(name: &str) -> bool {
    name.starts_with(OURS) || is_servers(name)
}

fn is_servers(name: &str) -> bool {
    SERVERS.iter().any(|start| name.starts_with(start))
}

/// About how many bytes headers have in their frame.
fn bytes(headers: &FieldTable) -> usize {
    headers.inner().iter().map(|(name, value)| name.as_str().len() + 8 + value_bytes(value)).sum()
}

fn value_bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::LongString(value) => value.len(),
        AMQPValue::ByteArray(value) => value.len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(|value| 8 + value_bytes(value)).sum(),
        AMQPValue::FieldTable(table) => bytes(table),
        AMQPValue::ShortString(value) => value.as_str().len(),
        _ => 8,
    }
}

/// The properties of a message without those that do not survive being published anew: its time to live, and the user,
/// which must be the one who publishes.
fn without_expiry(original: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT);
    macro_rules! keep {
        ($($get:ident => $with:ident),*) => {
            $(if let Some(value) = original.$get() { copy = copy.$with(Clone::clone(value)); })*
        };
    }
    keep!(content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
        correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id,
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id);
    copy
}
