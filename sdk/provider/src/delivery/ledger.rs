//! What the engine keeps in a ledger, and under which keys:
//!
//! | key | value | for how long |
//! | --- | --- | --- |
//! | `outbox/<message>/<n>` | a part of what its handler published, until that is sent | 14 days |
//! | `buries/<hash>` | a message that is given up, until its dead letter is there and it is off; and since when | a day |
//! | `done/<hash>` | `run:<message>` while it is handled, `done` afterwards | `dedupe.window` |
//! | `begun/<message>` | runs that did not end, of a message that an ordered link held when a node died | 14 days |
//! | `tried/<message>` | its attempts by versions that may be taken back | 14 days |
//! | `window/<hash>` | how the last first attempts of a link ended, from when one failed on | an hour |
//! | `paused/<hash>` | that a link paused by itself: when the next probe is due, in ms since 1970, and which pause it is | 14 days |
//! | `left/<hash>` | that who pulled an ordered link last gave all of it back, and in how many ms that is due | 14 days |
//! | `opens/<hash>` | the replay that is about to be off, and to open a key | 14 days |
//! | `parked/<hash>` | the key that a dead letter parked | 14 days, as the letter |
//! | `replayed/<hash>` | the message that a dead letter is replayed as, where it may have been put back twice | 14 days |
//! | `replays/<hash>/<hash>` | a dead letter of a key that parks, from when it is about to be put back until that has ended | 14 days |
//! | `parks/<hash>` | the message that parks a key, until its dead letter is known to be there | 14 days |
//!
//! Pure: how they are written and read.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use trellis_wire::{Dedupe, DedupeKey, LinkId, Message, OrderBy};

use super::queue::{LEDGER_VALUE_BYTES_MAX, Place};
use crate::Outgoing;

/// How long what must not be forgotten is kept: 14 days.
pub(super) const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// How long it is kept that a message is given up: many times what it takes until one comes again whose node died.
pub(super) const BURYING_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// What a mark holds once its message is handled.
pub(super) const DONE: &[u8] = b"done";
/// Below it are the keys that are parked.
pub(super) const PARKED: &str = "parked/";
/// Below it is what is about to park a key.
pub(super) const PARKS: &str = "parks/";
/// The count of parts at the beginning of the first, big-endian.
const COUNT_BYTES: usize = 4;
/// Parts of one outbox: the largest that a run may have takes 32 MiB.
const PARTS_MAX: usize = 256;

/// An outbox in parts that a ledger takes. The first says how many there are, and is written last.
pub(super) fn outbox_parts(sends: &[Outgoing]) -> Vec<Bytes> {
    let all = postcard::to_stdvec(sends).expect("plain data can be written");
    let all = Bytes::from(all);
    let first = all.len().min(LEDGER_VALUE_BYTES_MAX - COUNT_BYTES);
    let rest: Vec<_> = all[first..].chunks(LEDGER_VALUE_BYTES_MAX).map(Bytes::copy_from_slice).collect();
    let count = u32::try_from(rest.len() + 1).unwrap_or(u32::MAX);
    let mut parts = vec![Bytes::from([&count.to_be_bytes(), &all[..first]].concat())];
    parts.extend(rest);
    parts
}

/// How many parts an outbox has, by its first.
pub(super) fn parts_of(first: &[u8]) -> Option<usize> {
    let (count, _) = first.split_first_chunk::<COUNT_BYTES>()?;
    usize::try_from(u32::from_be_bytes(*count)).ok().filter(|count| (1..=PARTS_MAX).contains(count))
}

/// The outbox that these parts are of.
pub(super) fn outbox(parts: &[Bytes]) -> Option<Vec<Outgoing>> {
    let first = parts.first()?.get(COUNT_BYTES..)?;
    let all: Vec<u8> = first.iter().chain(parts[1..].iter().flatten()).copied().collect();
    postcard::from_bytes(&all).ok()
}

/// The key of a part.
pub(super) fn outbox_key(place: &Place, part: usize) -> String {
    format!("outbox/{}/{part}", place.key)
}

/// The mark of a message, if it has what makes it the same as another.
pub(super) fn mark_key(dedupe: &Dedupe, message: &Message, place: &Place) -> Option<String> {
    let same = match &dedupe.key {
        DedupeKey::Id => place.name.as_deref().unwrap_or(&message.id),
        DedupeKey::Header(name) => header(message, name)?,
    };
    Some(format!("done/{}", hash(same)))
}

/// What a mark holds while this message is handled. It is the same at every delivery: after a node died, a message does
/// not wait for itself, unless that may be its twin.
pub(super) fn running(place: &Place) -> Vec<u8> {
    format!("run:{}", place.key).into_bytes()
}

/// Where it is counted how often a message was begun and did not end.
pub(super) fn begun_key(place: &Place) -> String {
    format!("begun/{}", place.key)
}

/// A count as it is kept, big-endian.
pub(super) fn count(kept: &[u8]) -> u32 {
    kept.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Attempts that one version made at a message, and how many of them it faulted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    pub(super) version: String,
    pub(super) attempts: u32,
    pub(super) faults: u32,
}

/// Where it is kept that a message of this id is about to be a dead letter.
pub(super) fn buries_key(id: &str) -> String {
    format!("buries/{}", hash(id))
}

/// A message that is given up as it is kept: since when, in milliseconds since 1970, big-endian, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Buries {
    pub(super) since_ms: u64,
    pub(super) message: Vec<u8>,
}

impl Buries {
    /// Its dead letter was there, and somebody decided on it.
    pub(super) const DECIDED: u64 = u64::MAX;

    pub(super) fn read(kept: &[u8]) -> Self {
        Self { since_ms: ms(kept), message: kept.get(8..).unwrap_or_default().to_vec() }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        [&self.since_ms.to_be_bytes()[..], &self.message].concat()
    }
}

/// Where it is kept which versions tried a message.
pub(super) fn tried_key(place: &Place) -> String {
    format!("tried/{}", place.key)
}

/// What is kept of that; nothing, where that cannot be read.
pub(super) fn tried(kept: Option<&[u8]>) -> Vec<Tried> {
    kept.and_then(|bytes| postcard::from_bytes(bytes).ok()).unwrap_or_default()
}

/// The same with one attempt more.
pub(super) fn tried_again(mut tried: Vec<Tried>, version: &str, faulted: bool) -> Vec<u8> {
    match tried.iter_mut().find(|known| known.version == version) {
        Some(known) => {
            known.attempts = known.attempts.saturating_add(1);
            known.faults = known.faults.saturating_add(u32::from(faulted));
        }
        None => tried.push(Tried { version: version.into(), attempts: 1, faults: u32::from(faulted) }),
    }
    postcard::to_stdvec(&tried).expect("plain data can be written")
}

/// What keeps the order of a message. Without the header it shares one key with all that have none.
pub(super) fn order_key(order: &OrderBy, message: &Message) -> String {
    match order {
        OrderBy::Subject => message.subject.clone(),
        OrderBy::Header(name) => header(message, name).unwrap_or_default().to_owned(),
    }
}

/// Where it is kept that a key is parked.
pub(super) fn parked_key(key: &str) -> String {
    format!("{PARKED}{}", hash(key))
}

/// Where it is kept which message parks a key whose dead letter may not be there.
pub(super) fn parks_key(key: &str) -> String {
    format!("{PARKS}{}", hash(key))
}

/// Where it is kept as which message a dead letter of this name is replayed.
pub(super) fn replayed_key(once: &str) -> String {
    format!("replayed/{}", hash(once))
}

/// Below it are the dead letters of a key that are replayed and have not ended again.
pub(super) fn replays_of(key: &str) -> String {
    format!("replays/{}/", hash(key))
}

/// Where it is kept that this one is.
pub(super) fn replays_key(key: &str, letter: &str) -> String {
    format!("{}{}", replays_of(key), hash(letter))
}

/// Where it is kept which replay opens a key.
pub(super) fn opens_key(key: &str) -> String {
    format!("opens/{}", hash(key))
}

/// Where it is kept how the last first attempts of a link ended.
pub(super) fn window_key(link: &LinkId) -> String {
    format!("window/{}", hash(&link.to_string()))
}

/// Where it is kept that a link pauses by itself.
pub(super) fn paused_key(link: &LinkId) -> String {
    format!("paused/{}", hash(&link.to_string()))
}

/// Where it is kept that an ordered link was left in good order.
pub(super) fn left_key(link: &LinkId) -> String {
    format!("left/{}", hash(&link.to_string()))
}

/// A pause as it is kept, both big-endian. What cannot be read is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    /// When the next probe is due, in milliseconds since 1970.
    pub(super) probe_ms: u64,
    /// Drawn by who paused: a node that did not hear of its end must not take the next one for it.
    pub(super) number: u64,
}

impl Pause {
    pub(super) fn read(kept: &[u8]) -> Self {
        Self { probe_ms: ms(kept), number: kept.get(8..).map_or(0, ms) }
    }

    pub(super) fn write(self) -> [u8; 16] {
        (u128::from(self.probe_ms) << 64 | u128::from(self.number)).to_be_bytes()
    }
}

/// Milliseconds as they are kept, big-endian: from 1970 to the next probe, or until all that was given back is due. What
/// cannot be read is 0.
pub(super) fn ms(kept: &[u8]) -> u64 {
    kept.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let found = message.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// Anything as what a key may hold.
fn hash(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(bytes: usize) -> Outgoing {
        let (component, link) = ("shop/mail".parse().unwrap(), "default".parse().unwrap());
        let link = LinkId::new(&component, &component, &link, "trellis", "messaging", &[]);
        Outgoing { link, message: Message { body: vec![7; bytes].into(), ..Message::default() } }
    }

    #[test]
    fn an_outbox_of_any_size_reads_back() {
        for sizes in [&[][..], &[1], &[10, 20], &[LEDGER_VALUE_BYTES_MAX * 3], &[1 << 20; 20]] {
            let sends: Vec<_> = sizes.iter().map(|bytes| outgoing(*bytes)).collect();
            let parts = outbox_parts(&sends);
            assert!(parts.iter().all(|part| part.len() <= LEDGER_VALUE_BYTES_MAX));
            assert_eq!(parts_of(&parts[0]), Some(parts.len()));
            assert_eq!(outbox(&parts), Some(sends));
        }
        assert_eq!((parts_of(b"x"), parts_of(&[0; 4]), outbox(&[])), (None, None, None));
    }

    #[test]
    fn a_pause_reads_back_also_one_of_an_earlier_build() {
        let pause = Pause { probe_ms: 1_700_000_000_000, number: u64::MAX - 7 };
        assert_eq!(Pause::read(&pause.write()), pause);
        assert_eq!(ms(&pause.write()), pause.probe_ms, "an earlier build reads this");
        assert_eq!(Pause::read(&7u64.to_be_bytes()), Pause { probe_ms: 7, number: 0 });
    }

    #[test]
    fn two_messages_are_the_same_by_their_publishers_name_or_by_a_header() {
        let by = |key, id: &str, name: Option<&str>, header: Option<&str>| {
            let headers = header.map(|value| ("X-Order".to_owned(), value.to_owned())).into_iter().collect();
            let place = Place { name: name.map(str::to_owned), ..Place::default() };
            let message = Message { id: id.into(), headers, ..Message::default() };
            mark_key(&Dedupe { key, window: KEPT }, &message, &place)
        };
        let order = || DedupeKey::Header("x-order".into());
        assert_eq!(by(DedupeKey::Id, "1", Some("a"), None), by(DedupeKey::Id, "2", Some("a"), None));
        assert_ne!(by(DedupeKey::Id, "1", None, None), by(DedupeKey::Id, "2", None, None));
        assert_eq!(by(order(), "1", None, Some("7")), by(order(), "2", None, Some("7")));
        assert_eq!(by(order(), "1", None, None), None, "what names nothing is the same as nothing");
    }
}
