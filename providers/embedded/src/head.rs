//! Up to where each queue has given out what is new. Messages are numbered as they are published, and given out in that
//! order the first time: so one number says which are new, and to give some out writes nothing to the store.
//!
//! Who opens the store after its process was killed must know the number too: what was worked on then is given out again,
//! and that it was is counted. So it is noted in a small file beside the store before messages are given out. That is never
//! synced: what a process has written stays though it is killed. A machine that dies takes it along; then the number
//! counts that the last commit has written to the store, and what was given out after that comes as if it were new.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of an entry of the file: whose it is, and the number. The first is that of the store itself.
const ENTRY_BYTES: usize = 16;

/// What may be given out of one queue.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) queue: Arc<str>,
    /// The last message that is on disk.
    last: AtomicU64,
    /// The last that was given out.
    given: AtomicU64,
    /// When the first of those that came back may be given out again.
    back_ms: AtomicU64,
    /// Where its entry stands in the file.
    entry: u64,
    /// Held by who gives out what is new.
    giving: Mutex<()>,
}

/// Where a queue stands, as a commit leaves it.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) queue: Arc<str>,
    pub(crate) last: u64,
    pub(crate) given: u64,
    /// When the first of those that came back may be given out again, if there is one.
    pub(crate) back_ms: Option<u64>,
}

/// Those of all queues.
#[derive(Debug)]
pub(crate) struct Heads {
    file: File,
    all: Mutex<HashMap<Arc<str>, Arc<Head>>>,
}

/// What the process before has noted, by the hash of a queue's name.
#[derive(Debug, Default)]
pub(crate) struct Noted(HashMap<u64, u64>);

impl Heads {
    /// Opens the file of the store of this name, or makes it, and says what is noted there. What another store has noted
    /// is of no use.
    pub(crate) fn open(path: &Path, store: u64) -> io::Result<(Self, Noted)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes)?;
        let mut entries = bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(read);
        let noted = match entries.next() {
            Some((of, _)) if of == store => Noted(entries.collect()),
            _ => Noted::default(),
        };
        Ok((Self { file, all: Mutex::default() }, noted))
    }

    /// Begins anew: what was noted is in the store by now, and the queues stand so.
    pub(crate) fn begin(&self, store: u64, stands: Vec<Stand>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(&written(store, 0), 0)?;
        self.committed(stands);
        Ok(())
    }

    /// So the queues stand after a commit.
    pub(crate) fn committed(&self, stands: Vec<Stand>) {
        let mut all = self.all();
        for Stand { queue, last, given, back_ms } in stands {
            let entry = (all.len() as u64 + 1) * ENTRY_BYTES as u64;
            let head = all.entry(queue.clone()).or_insert_with(|| Head::new(queue, given, entry).into());
            head.back_ms.store(back_ms.unwrap_or(u64::MAX), Ordering::Release);
            head.last.store(last, Ordering::Release);
        }
    }

    /// That of a queue, once it was committed.
    pub(crate) fn of(&self, queue: &str) -> Option<Arc<Head>> {
        self.all().get(queue).cloned()
    }

    /// Notes that what is new is given out up to here, before it is.
    pub(crate) fn give(&self, head: &Head, up_to: u64) -> io::Result<()> {
        self.file.write_all_at(&written(hash(&head.queue), up_to), head.entry)?;
        head.given.store(up_to, Ordering::Release);
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Head>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Head {
    const fn new(queue: Arc<str>, given: u64, entry: u64) -> Self {
        let (last, given, back_ms) = (AtomicU64::new(0), AtomicU64::new(given), AtomicU64::new(u64::MAX));
        Self { queue, last, given, back_ms, entry, giving: Mutex::new(()) }
    }

    /// Keeps others from giving out what is new, until it is dropped.
    pub(crate) fn giving(&self) -> MutexGuard<'_, ()> {
        self.giving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were never given out.
    pub(crate) fn new_ones(&self) -> usize {
        usize::try_from(self.last().saturating_sub(self.given())).unwrap_or(usize::MAX)
    }

    /// The last message that is there.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// Up to where messages were given out.
    pub(crate) fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    /// When the first of those that came back may be given out again.
    pub(crate) fn back_ms(&self) -> u64 {
        self.back_ms.load(Ordering::Acquire)
    }
}

impl Noted {
    /// Up to where a queue had given out messages.
    pub(crate) fn of(&self, queue: &str) -> u64 {
        self.0.get(&hash(queue)).copied().unwrap_or_default()
    }
}

fn written(of: u64, number: u64) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..8].copy_from_slice(&of.to_le_bytes());
    entry[8..].copy_from_slice(&number.to_le_bytes());
    entry
}

fn read(entry: &[u8; ENTRY_BYTES]) -> (u64, u64) {
    let [of, number] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| entry[at + byte])));
    (of, number)
}

/// FNV-1a. Were two queues of one hash, what one has given out would count as given out of the other.
fn hash(queue: &str) -> u64 {
    queue.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_is_known_to_who_opens_the_same_store_until_it_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.given");
        let noted = |store: u64| {
            let (_, noted) = Heads::open(&path, store).unwrap();
            ["mail", "bills", "other"].map(|queue| noted.of(queue))
        };
        let (heads, _) = Heads::open(&path, 7).unwrap();
        let stand = |queue: &str| Stand { queue: queue.into(), last: 9, given: 2, back_ms: None };
        heads.begin(7, vec![stand("mail"), stand("bills")]).unwrap();
        let (mail, bills) = (heads.of("mail").unwrap(), heads.of("bills").unwrap());
        assert_eq!((mail.given(), mail.new_ones(), mail.back_ms()), (2, 7, u64::MAX));
        heads.give(&mail, 5).unwrap();
        heads.give(&bills, 3).unwrap();
        heads.give(&mail, 6).unwrap();
        heads.committed(vec![Stand { last: 10, back_ms: Some(4), ..stand("mail") }]);
        assert_eq!((mail.given(), mail.new_ones(), mail.back_ms()), (6, 4, 4), "a commit takes nothing back");
        assert_eq!(noted(7), [6, 3, 0]);
        assert_eq!(noted(8), [0, 0, 0], "another store's is of no use");
        heads.begin(7, vec![]).unwrap();
        assert_eq!(noted(7), [0, 0, 0]);
    }
}
