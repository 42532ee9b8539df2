//! The file under the data directory: log, vote, commit mark and last snapshot. The one module that knows redb.
//!
//! One thread writes, in the order in which it is asked, and answers when the write is on disk. Reads see every write
//! that was answered. What may be lost in a crash without harm (the commit mark, a purge) is not synced on its own; it
//! goes to disk with the next write that is, or a moment later.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use trellis_wire::{LatticeName, NodeId};

use crate::RaftError;

/// The file's name in the data directory.
const FILE: &str = "raft.redb";
/// What the file's layout is called in it.
const FORMAT: u8 = 2;
/// How long after a mark that is not synced on its own it is, at the latest.
const SYNC_AFTER: Duration = Duration::from_millis(200);
/// How many writes may wait for the thread. Raft waits for each of its own; only a snapshot comes beside them.
const WRITES_WAITING_MAX: usize = 16;
/// How long one piece of a stored snapshot is, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// How much of the file the database may keep in memory.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// Index -> entry.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Number of the piece -> piece of the last snapshot.
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");
/// Everything of which there is one.
const WORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("words");

/// The things of which there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Format,
    Node,
    Lattice,
    Vote,
    Committed,
    Purged,
    SnapshotMeta,
    SnapshotIndex,
}

impl Word {
    const fn key(self) -> &'static str {
        match self {
            Self::Format => "format",
            Self::Node => "node",
            Self::Lattice => "lattice",
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Purged => "purged",
            Self::SnapshotMeta => "snapshot meta",
            Self::SnapshotIndex => "snapshot index",
        }
    }
}

/// What the thread can be asked to write.
#[derive(Debug)]
pub(crate) enum Write {
    /// Entries by index.
    Append(Vec<(u64, Vec<u8>)>),
    /// Removes the entries from this index on.
    Truncate(u64),
    /// Removes the entries up to and with this index, and keeps the mark of the last one.
    Purge(u64, Vec<u8>),
    /// The vote.
    Vote(Vec<u8>),
    /// The commit mark.
    Committed(Vec<u8>),
    /// A snapshot of everything up to and with `index`, in place of an older one. A newer one stays.
    Snapshot { index: Option<u64>, meta: Vec<u8>, body: Vec<u8> },
    /// Nothing, but with it goes to disk what was not synced before.
    Sync,
}

impl Write {
    fn durability(&self) -> Durability {
        match self {
            Self::Append(_) | Self::Truncate(_) | Self::Vote(_) | Self::Snapshot { .. } | Self::Sync => {
                Durability::Immediate
            }
            Self::Purge(..) | Self::Committed(_) => Durability::None,
        }
    }
}

struct Job {
    write: Write,
    done: oneshot::Sender<Result<(), RaftError>>,
}

/// The open file. Cloning it shares it; the file is closed when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Store(Arc<Shared>);

struct Shared {
    // Before `jobs`: when the thread sees the queue closed, it has the last reference and closes the file.
    db: Arc<Database>,
    jobs: Jobs,
    path: Arc<Path>,
    failure: Arc<OnceLock<RaftError>>,
    /// Whether a sync is on its way.
    syncs: AtomicBool,
}

/// Who writes, and who reads what takes long.
enum Jobs {
    /// The thread.
    Thread(mpsc::Sender<Job>),
    /// Whoever asks, on the spot: in a simulation no other thread may decide what happens first.
    #[cfg(test)]
    OnTheSpot(std::sync::Mutex<Writer>),
}

/// Resolves when the file is closed and its lock is given back.
pub(crate) struct Closed(oneshot::Receiver<()>);

impl Closed {
    pub(crate) async fn wait(self) {
        // An error means that the thread is gone without a word, and with it the file.
        self.0.await.unwrap_or_default();
    }
}

impl Store {
    /// Opens or creates the file for this node of this lattice.
    ///
    /// # Errors
    /// It is in use, damaged, of another node or lattice, or the directory cannot be written.
    pub(crate) async fn open(dir: PathBuf, node: NodeId, lattice: LatticeName) -> Result<(Self, Closed), RaftError> {
        let path = dir.join(FILE);
        let opening = {
            let path = path.clone();
            move || {
                let backend = open_private(&dir, &path)?;
                Self::on(backend, &path, node, &lattice)
            }
        };
        // The database checks itself with assertions where a file is damaged: such a panic stays in this task.
        tokio::task::spawn_blocking(opening)
            .await
            .unwrap_or_else(|panic| Err(RaftError::Corrupted { path, why: panic.to_string() }))
    }

    /// Opens the database on any backend. `path` is only for messages.
    pub(crate) fn on(
        backend: impl StorageBackend,
        path: &Path,
        node: NodeId,
        lattice: &LatticeName,
    ) -> Result<(Self, Closed), RaftError> {
        let writer = Writer::new(backend, path, node, lattice)?;
        let Writer { db, path, failure } = writer.clone();
        let (jobs, queue) = mpsc::channel(WRITES_WAITING_MAX);
        let (closing, closed) = oneshot::channel();
        std::thread::Builder::new()
            .name("trellis-raft-log".into())
            .spawn(move || {
                writer.run(queue);
                // Nobody may be waiting for the end.
                closing.send(()).unwrap_or_default();
            })
            .map_err(|why| RaftError::Storage {
                path: path.to_path_buf(),
                why: format!("starting its thread: {why}"),
            })?;
        Ok((
            Self(Arc::new(Shared { db, jobs: Jobs::Thread(jobs), path, failure, syncs: AtomicBool::new(false) })),
            Closed(closed),
        ))
    }

    /// Opens the database without a thread: each write is done by whoever asks for it.
    #[cfg(test)]
    pub(crate) fn on_the_spot(
        backend: impl StorageBackend,
        path: &Path,
        node: NodeId,
        lattice: &LatticeName,
    ) -> Result<(Self, Closed), RaftError> {
        let writer = Writer::new(backend, path, node, lattice)?;
        let Writer { db, path, failure } = writer.clone();
        let jobs = Jobs::OnTheSpot(std::sync::Mutex::new(writer));
        Ok((
            Self(Arc::new(Shared { db, jobs, path, failure, syncs: AtomicBool::new(false) })),
            Closed(oneshot::channel().1),
        ))
    }

    /// Writes, and returns when it is written.
    ///
    /// # Errors
    /// The disk failed. Every later write fails too: what is in memory and what is on disk may differ from here on.
    pub(crate) async fn write(&self, write: Write) -> Result<(), RaftError> {
        let (done, written) = oneshot::channel();
        let gone = || self.broken("the thread that writes it is gone".into());
        match &self.0.jobs {
            Jobs::Thread(jobs) => jobs.send(Job { write, done }).await.map_err(|_| gone())?,
            #[cfg(test)]
            Jobs::OnTheSpot(writer) => {
                writer.lock().expect("nothing panics while it writes").perform(Job { write, done })
            }
        }
        written.await.map_err(|_| gone())?
    }

    /// Has synced a moment later what was written: nobody waits for it, and a node that loses its power long after finds
    /// it. One sync serves all that was written meanwhile.
    pub(crate) fn sync_soon(&self) {
        if self.0.syncs.swap(true, Ordering::Relaxed) {
            return;
        }
        let store = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(SYNC_AFTER).await;
            let Some(shared) = store.upgrade() else { return };
            shared.syncs.store(false, Ordering::Relaxed);
            // A disk that fails is told to whoever writes next.
            drop(Self(shared).write(Write::Sync).await);
        });
    }

    /// Reads one of the things of which there is one.
    pub(crate) fn word<T: DeserializeOwned>(&self, word: Word) -> Result<Option<T>, RaftError> {
        let bytes = self.read(|txn| Ok(txn.open_table(WORDS)?.get(word.key())?.map(|found| found.value().to_vec())))?;
        bytes.map(|bytes| self.decode(&bytes, word.key())).transpose()
    }

    /// Reads entries in order until the range ends or the next one would exceed `bytes_max`; always at least one.
    pub(crate) fn entries<T: DeserializeOwned>(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<T>, RaftError> {
        let stored = self.read(|txn| {
            let table = txn.open_table(LOG)?;
            let (mut stored, mut bytes): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
            for entry in table.range::<u64>(range)? {
                let (_, entry) = entry?;
                bytes = bytes.saturating_add(entry.value().len());
                if bytes > bytes_max && !stored.is_empty() {
                    break;
                }
                stored.push(entry.value().to_vec());
            }
            Ok(stored)
        })?;
        stored.iter().map(|bytes| self.decode(bytes, "log entry")).collect()
    }

    /// Reads the last entry.
    pub(crate) fn last_entry<T: DeserializeOwned>(&self) -> Result<Option<T>, RaftError> {
        let bytes = self.read(|txn| Ok(txn.open_table(LOG)?.last()?.map(|(_, last)| last.value().to_vec())))?;
        bytes.map(|bytes| self.decode(&bytes, "log entry")).transpose()
    }

    /// Reads the last snapshot: what describes it, and its bytes.
    pub(crate) fn snapshot<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<u8>)>, RaftError> {
        let stored = self.read(|txn| {
            let Some(meta) = txn.open_table(WORDS)?.get(Word::SnapshotMeta.key())?.map(|meta| meta.value().to_vec())
            else {
                return Ok(None);
            };
            let mut body = Vec::new();
            for piece in txn.open_table(SNAPSHOT)?.iter()? {
                body.extend_from_slice(piece?.1.value());
            }
            Ok(Some((meta, body)))
        })?;
        stored.map(|(meta, body)| Ok((self.decode(&meta, Word::SnapshotMeta.key())?, body))).transpose()
    }

    /// Reads what may take long where nobody waits for this thread.
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        read: fn(&Self) -> Result<T, RaftError>,
    ) -> Result<T, RaftError> {
        match &self.0.jobs {
            Jobs::Thread(_) => {
                let store = self.clone();
                tokio::task::spawn_blocking(move || read(&store))
                    .await
                    .unwrap_or_else(|panic| Err(self.damaged(format!("it cannot be read: {panic}"))))
            }
            #[cfg(test)]
            Jobs::OnTheSpot(_) => read(self),
        }
    }

    /// The first write that failed, if one did.
    pub(crate) fn failure(&self) -> Option<RaftError> {
        self.0.failure.get().cloned()
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The error for a file whose content makes no sense.
    pub(crate) fn damaged(&self, why: String) -> RaftError {
        RaftError::Corrupted { path: self.0.path.to_path_buf(), why }
    }

    fn broken(&self, why: String) -> RaftError {
        self.failure().unwrap_or_else(|| RaftError::Storage { path: self.0.path.to_path_buf(), why })
    }

    fn read<T>(&self, look: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, RaftError> {
        let read = || look(&self.0.db.begin_read()?);
        read().map_err(|why| explain(&self.0.path, why))
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8], what: &str) -> Result<T, RaftError> {
        let unknown = |why| format!("its {what}: {why}. Or a newer Trellis wrote it: then start that one again");
        postcard::from_bytes(bytes).map_err(|why| self.damaged(unknown(why)))
    }
}

/// Writes a value as it is stored.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("what is stored is plain data, which postcard can always write")
}

/// The writing side.
#[derive(Clone)]
struct Writer {
    db: Arc<Database>,
    path: Arc<Path>,
    failure: Arc<OnceLock<RaftError>>,
}

impl Writer {
    fn new(backend: impl StorageBackend, path: &Path, node: NodeId, lattice: &LatticeName) -> Result<Self, RaftError> {
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(|why| explain(path, why.into()))?;
        claim(&db, path, node, lattice)?;
        Ok(Self { db: Arc::new(db), path: path.into(), failure: Arc::default() })
    }

    fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            self.perform(job);
        }
        // The marks that were not synced on their own.
        if let Err(why) = self.commit(Durability::Immediate, |_| Ok(())) {
            tracing::warn!(%why, "closing the Raft file");
        }
        if let Some(Err(why)) = Arc::into_inner(self.db).map(Database::close) {
            tracing::warn!(path = %self.path.display(), %why, "closing the Raft file");
        }
    }

    fn perform(&self, Job { write, done }: Job) {
        let written = self.commit(write.durability(), |txn| perform(txn, write));
        // Whoever asked may have been cancelled; the write counts all the same.
        done.send(written).unwrap_or_default();
    }

    fn commit(
        &self,
        durability: Durability,
        write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), RaftError> {
        if let Some(first) = self.failure.get() {
            return Err(first.clone());
        }
        let committed = || {
            let mut txn = self.db.begin_write()?;
            txn.set_durability(durability)?;
            write(&txn)?;
            Ok(txn.commit()?)
        };
        committed().map_err(|why: redb::Error| {
            let why = explain(&self.path, why);
            tracing::error!(%why, "writing the Raft file");
            self.failure.get_or_init(|| why).clone()
        })
    }
}

fn perform(txn: &WriteTransaction, write: Write) -> Result<(), redb::Error> {
    match write {
        Write::Append(entries) => {
            let mut log = txn.open_table(LOG)?;
            for (index, entry) in &entries {
                log.insert(index, entry.as_slice())?;
            }
        }
        Write::Truncate(from) => txn.open_table(LOG)?.retain_in::<u64, _>(from.., |_, _| false)?,
        Write::Purge(upto, mark) => {
            txn.open_table(LOG)?.retain_in::<u64, _>(..=upto, |_, _| false)?;
            put(txn, Word::Purged, &mark)?;
        }
        Write::Vote(vote) => put(txn, Word::Vote, &vote)?,
        Write::Committed(mark) => put(txn, Word::Committed, &mark)?,
        Write::Snapshot { index, meta, body } => replace_snapshot(txn, index, &meta, &body)?,
        Write::Sync => {}
    }
    Ok(())
}

/// A snapshot that is built while a newer one is installed must not take its place: the log in between is gone.
fn replace_snapshot(txn: &WriteTransaction, index: Option<u64>, meta: &[u8], body: &[u8]) -> Result<(), redb::Error> {
    let stored = get(txn, Word::SnapshotIndex)?.and_then(|bytes| postcard::from_bytes::<Option<u64>>(&bytes).ok());
    if stored.is_some_and(|stored| stored > index) {
        return Ok(());
    }
    let mut table = txn.open_table(SNAPSHOT)?;
    table.retain(|_, _| false)?;
    for (number, piece) in (0u64..).zip(body.chunks(PIECE_BYTES)) {
        table.insert(number, piece)?;
    }
    put(txn, Word::SnapshotIndex, &encode(&index))?;
    put(txn, Word::SnapshotMeta, meta)
}

/// Marks a new file as this node's of this lattice, or checks that it is.
fn claim(db: &Database, path: &Path, node: NodeId, lattice: &LatticeName) -> Result<(), RaftError> {
    let owner = || {
        let txn = db.begin_write()?;
        txn.open_table(LOG)?;
        txn.open_table(SNAPSHOT)?;
        let owner = match get(&txn, Word::Format)? {
            Some(format) => Some((format, get(&txn, Word::Node)?, get(&txn, Word::Lattice)?)),
            None => {
                put(&txn, Word::Format, &[FORMAT])?;
                put(&txn, Word::Node, &encode(&node))?;
                put(&txn, Word::Lattice, &encode(lattice))?;
                None
            }
        };
        txn.commit()?;
        Ok(owner)
    };
    let Some((format, its_node, its_lattice)) = owner().map_err(|why: redb::Error| explain(path, why))? else {
        return Ok(());
    };
    if format != [FORMAT] {
        let found = format.first().copied().unwrap_or_default();
        return Err(RaftError::OtherFormat { path: path.into(), found, known: FORMAT });
    }
    let found: LatticeName = owned(path, Word::Lattice, its_lattice)?;
    if found != *lattice {
        return Err(RaftError::OtherLattice { path: path.into(), found, wanted: lattice.clone() });
    }
    let found: NodeId = owned(path, Word::Node, its_node)?;
    if found != node {
        return Err(RaftError::OtherNode { path: path.into(), found, wanted: node });
    }
    Ok(())
}

fn owned<T: DeserializeOwned>(path: &Path, word: Word, stored: Option<Vec<u8>>) -> Result<T, RaftError> {
    let damaged = |why: String| RaftError::Corrupted { path: path.into(), why: format!("its {}: {why}", word.key()) };
    let stored = stored.ok_or_else(|| damaged("it is missing".into()))?;
    postcard::from_bytes(&stored).map_err(|why| damaged(why.to_string()))
}

fn get(txn: &WriteTransaction, word: Word) -> Result<Option<Vec<u8>>, redb::Error> {
    Ok(txn.open_table(WORDS)?.get(word.key())?.map(|found| found.value().to_vec()))
}

fn put(txn: &WriteTransaction, word: Word, value: &[u8]) -> Result<(), redb::Error> {
    txn.open_table(WORDS)?.insert(word.key(), value)?;
    Ok(())
}

/// Opens the file for its owner only, and makes sure that its name outlives a crash too.
fn open_private(dir: &Path, path: &Path) -> Result<FileBackend, RaftError> {
    let failed = |doing: &str, why: io::Error| match io_error(path, &why) {
        Some(named) => named,
        None => RaftError::Storage { path: path.into(), why: format!("{doing}: {why}") },
    };
    fs::create_dir_all(dir).map_err(|why| failed("creating its directory", why))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path).map_err(|why| failed("opening it", why))?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(|why| failed("keeping it from others", why))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|why| failed("syncing its directory", why))?;
    FileBackend::new(file).map_err(|why| explain(path, why.into()))
}

/// Says what an error of the database means for people.
fn explain(path: &Path, why: redb::Error) -> RaftError {
    let named = match &why {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            Some(RaftError::DataDirInUse { path: path.into() })
        }
        redb::Error::Corrupted(why) => Some(RaftError::Corrupted { path: path.into(), why: why.clone() }),
        redb::Error::Io(why) => io_error(path, why),
        _ => None,
    };
    named.unwrap_or_else(|| RaftError::Storage { path: path.into(), why: why.to_string() })
}

fn io_error(path: &Path, why: &io::Error) -> Option<RaftError> {
    match why.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(RaftError::DiskFull { path: path.into() }),
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Some(RaftError::Corrupted { path: path.into(), why: why.to_string() })
        }
        _ => None,
    }
}
