//! The file under the stores and queues: reads run beside each other on snapshots, writes go through one thread that
//! commits for many.
//!
//! A commit waits for the disk, and costs nearly the same for one write as for a hundred. So while one commit is under
//! way further writes gather, and the next commit takes them all: each caller is answered once its own write is on
//! disk.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase as _, StorageError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use trellis_wire::{CallError, KeyValue, KeyValueAnswer};
use uuid::Uuid;

use crate::clock::Clock;
use crate::gathered::{Asked, Gathered, Waiting};
use crate::head::{Head, Heads};
use crate::keyvalue::{self, Operation, Read, TABLE, Write};
use crate::queue::{self, Change, Changed, Given, Tables};

/// What the waiting writes may hold together, in KiB: 64 MiB. Further callers wait for room, for at most [`QUEUE_WAIT`].
const WAITING_KIB_MAX: u32 = 64 * 1_024;
/// How long a write waits for its place in the queue, and a read for its turn.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Reads that run at one time, each on a thread that may wait for the disk.
const READS_MAX: usize = 32;
/// What a write counts as at least, in KiB: so no more than 1,024 wait.
const WAITING_KIB_MIN: u32 = 64;
/// The ending of the file that notes up to where queues have given out what is new.
const GIVEN: &str = "given";
/// redb's page cache: 64 MiB.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{} is in use by another process: stop the other `trellis up` with this data directory, or give this one its \
         own with --data-dir",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened, made or read.
    #[error("cannot open {}: {problem}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// The store. Dropping it waits for the commit under way, then closes the file.
pub(crate) struct Store {
    file: Arc<File>,
    queue: Option<mpsc::Sender<Work>>,
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    writer: Option<JoinHandle<()>>,
    clock: Clock,
    name: u64,
    heads: Arc<Heads>,
}

/// What the writer is woken for.
enum Work {
    /// Commit this.
    Write(Waiting),
    /// Commit this as well.
    Change(Asked),
    /// A reader met a failure that lasts until the file is opened anew.
    Reopen { _room: OwnedSemaphorePermit },
}

impl Store {
    /// Opens or makes the file.
    pub(crate) fn open(path: PathBuf) -> Result<Self, OpenError> {
        let at = path.clone();
        Self::open_with(path, move || open_database(&at))
    }

    fn open_with(
        path: PathBuf,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        let database = open().map_err(|why| match why {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.clone() },
            why => OpenError::Failed { path: path.clone(), problem: why.to_string() },
        })?;
        let recovered = recover(&database, &path.with_extension(GIVEN));
        let (clock, name, heads) =
            recovered.map_err(|why| OpenError::Failed { path: path.clone(), problem: why.to_string() })?;
        let heads = Arc::new(heads);
        let file = Arc::new(File {
            path,
            open: Box::new(open),
            database: RwLock::new(Some(database)),
            problem: Mutex::new(None),
            heads: heads.clone(),
        });
        let (queue, work) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("embedded-writer".into())
            .spawn({
                let file = file.clone();
                move || file.write_all(work)
            })
            .map_err(|why| OpenError::Failed { path: file.path.clone(), problem: why.to_string() })?;
        let room = Arc::new(Semaphore::new(WAITING_KIB_MAX as usize));
        let turns = Arc::new(Semaphore::new(READS_MAX));
        Ok(Self { file, queue: Some(queue), room, turns, writer: Some(writer), clock, name, heads })
    }

    /// Carries out one operation on the store of this name.
    pub(crate) async fn call(&self, store: &Arc<str>, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
        match Operation::new(operation)? {
            // A store is there as soon as it is named.
            Operation::Open => Ok(KeyValueAnswer::Done),
            Operation::Read(read) => self.read(store.clone(), read).await,
            Operation::Write(write) => self.write(store.clone(), write).await,
        }
    }

    /// Reads on a thread of its own: a page of keys or a large value may wait for the disk often, and even whether a key
    /// exists is known only with its value in memory.
    async fn read(&self, store: Arc<str>, read: Read) -> Result<KeyValueAnswer, CallError> {
        let turn = match tokio::time::timeout(QUEUE_WAIT, self.turns.clone().acquire_owned()).await {
            Ok(turn) => turn.map_err(|_| self.file.closed())?,
            Err(_) => return Err(self.file.slow()),
        };
        let file = self.file.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            file.look(|snapshot| read_from(snapshot, &store, read))
        });
        self.reopened(reading.await.map_err(|_| self.file.closed())?)?
    }

    /// Looks at a snapshot on the calling thread, for what touches a page or two.
    pub(crate) fn look<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, CallError> {
        self.reopened(self.file.look(look))
    }

    /// Has the file opened anew after a failure.
    fn reopened<T>(&self, looked: Result<T, CallError>) -> Result<T, CallError> {
        // Where there is no room, something waits that wakes the writer as well.
        if looked.is_err()
            && let Some(queue) = &self.queue
            && let Ok(_room) = self.room.clone().try_acquire_many_owned(WAITING_KIB_MIN)
        {
            // A writer that died takes nothing, and `health` says so.
            let _ = queue.send(Work::Reopen { _room });
        }
        looked
    }

    /// Where a queue stands; `None`: there is none of this name on disk.
    pub(crate) fn head(&self, queue: &str) -> Option<Arc<Head>> {
        self.heads.of(queue)
    }

    /// Gives out up to `max` messages of a queue that were never given out. That is noted, for whoever opens the store after
    /// this process was killed.
    pub(crate) fn give_new(&self, head: &Head, max: usize) -> Result<Vec<Given>, CallError> {
        let _giving = head.giving();
        let (given, last) = (head.given(), head.last());
        if max == 0 || given >= last {
            return Ok(Vec::new());
        }
        let (new, up_to) = self.look(|snapshot| queue::new(snapshot, &head.queue, (given, last), max))?;
        self.heads.give(head, up_to).map_err(|why| CallError::Unavailable(self.file.text(&why.into())))?;
        Ok(new)
    }

    /// Has a change of a queue on disk.
    pub(crate) async fn change(&self, change: Change) -> Result<Changed, CallError> {
        let (answer, answered) = oneshot::channel();
        self.enqueue(change.bytes(), |_room| Work::Change(Asked { change, answer, _room })).await?;
        answered.await.map_err(|_| self.file.closed())?
    }

    async fn write(&self, store: Arc<str>, write: Write) -> Result<KeyValueAnswer, CallError> {
        let (answer, answered) = oneshot::channel();
        self.enqueue(write.bytes(), |_room| Work::Write(Waiting { store, write, answer, _room })).await?;
        // From here on the write may reach the disk, so it is not given up.
        answered.await.map_err(|_| self.file.closed())?
    }

    /// Gives the writer work that holds so many bytes, once there is room for it.
    async fn enqueue(&self, bytes: usize, work: impl FnOnce(OwnedSemaphorePermit) -> Work) -> Result<(), CallError> {
        let kib = u32::try_from(bytes / 1_024 + 1).unwrap_or(WAITING_KIB_MAX);
        let kib = kib.clamp(WAITING_KIB_MIN, WAITING_KIB_MAX);
        let queue = self.queue.as_ref().expect("the queue is there until the store is dropped");
        let room = tokio::time::timeout(QUEUE_WAIT, self.room.clone().acquire_many_owned(kib)).await;
        let room = room.map_err(|_| self.file.slow())?.map_err(|_| self.file.closed())?;
        queue.send(work(room)).map_err(|_| self.file.closed())
    }

    /// The time by which queues wait.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// What tells its messages from those of other stores.
    pub(crate) const fn name(&self) -> u64 {
        self.name
    }

    /// What is wrong with the file now.
    pub(crate) fn health(&self) -> Result<(), String> {
        if self.writer.as_ref().is_none_or(JoinHandle::is_finished) {
            let path = self.file.path.display();
            return Err(format!("the writer of {path} died, which is a defect of ours: start the node again to write"));
        }
        self.file.problem().map_or(Ok(()), Err)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(path = %self.file.path.display(), "the writer of the embedded store panicked");
        }
    }
}

/// The open file, shared by readers and the writer. After an I/O error redb refuses everything until it is opened
/// anew, which the writer does; readers never wait for that.
struct File {
    path: PathBuf,
    open: Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>,
    database: RwLock<Option<Database>>,
    problem: Mutex<Option<String>>,
    heads: Arc<Heads>,
}

impl File {
    fn look<T>(&self, look: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, CallError> {
        let database = match self.database.try_read() {
            Ok(database) => database,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(self.closed()),
        };
        let Some(database) = database.as_ref() else { return Err(self.closed()) };
        let looked = database.begin_read().map_err(redb::Error::from).and_then(|snapshot| look(&snapshot));
        looked.map_err(|why| self.failed(&why))
    }

    /// The writer: until the store is dropped.
    fn write_all(&self, work: mpsc::Receiver<Work>) {
        while let Ok(first) = work.recv() {
            let gathered = gather(first, &work);
            self.reopen_if_failed();
            if !gathered.is_empty() {
                self.commit(gathered);
            }
        }
    }

    /// Commits what is gathered and answers each of its callers.
    fn commit(&self, gathered: Gathered) {
        let committed = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            match database.as_ref() {
                Some(database) => commit_to(database, &self.heads, &gathered).map_err(|why| self.failed(&why)),
                None => Err(self.closed()),
            }
        };
        match committed {
            Ok((answers, changed)) => {
                for (waiting, answer) in gathered.writes.into_iter().zip(answers) {
                    // The caller may be gone: a sandbox past its deadline.
                    let _ = waiting.answer.send(answer);
                }
                for (asked, answer) in gathered.changes.into_iter().zip(changed) {
                    let _ = asked.answer.send(answer);
                }
            }
            Err(why) => {
                for waiting in gathered.writes {
                    let _ = waiting.answer.send(Err(why.clone()));
                }
                for asked in gathered.changes {
                    let _ = asked.answer.send(Err(why.clone()));
                }
            }
        }
    }

    /// Opens the file anew after a failure.
    fn reopen_if_failed(&self) {
        if self.problem().is_none() {
            return;
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: the file is locked while it is open.
        *database = None;
        match (self.open)() {
            Ok(opened) => {
                *database = Some(opened);
                self.set_problem(None);
                tracing::info!(path = %self.path.display(), "opened the embedded store anew");
            }
            Err(why) => self.set_problem(Some(self.text(&why.into()))),
        }
    }

    /// Notes a storage failure and says it to the caller.
    fn failed(&self, why: &redb::Error) -> CallError {
        let text = self.text(why);
        // What follows a failure only points back to it.
        if !matches!(why, redb::Error::PreviousIo) || self.problem().is_none() {
            tracing::error!("{text}");
            self.set_problem(Some(text.clone()));
        }
        CallError::Unavailable(text)
    }

    fn text(&self, why: &redb::Error) -> String {
        let path = self.path.display();
        match why {
            redb::Error::Io(io) if matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                format!("the disk is full: nothing more can be written to {path}; free some space, then try again")
            }
            why => format!("{path}: {why}"),
        }
    }

    /// The file is not open now.
    fn closed(&self) -> CallError {
        let path = self.path.display();
        CallError::Unavailable(self.problem().unwrap_or_else(|| format!("{path} is being opened or closed")))
    }

    /// The queue did not move.
    fn slow(&self) -> CallError {
        let (path, seconds) = (self.path.display(), QUEUE_WAIT.as_secs());
        CallError::Unavailable(format!("{path} is too slow: what came before took longer than {seconds} s"))
    }

    fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// What waits for the writer.
fn gather(first: Work, work: &mpsc::Receiver<Work>) -> Gathered {
    let mut gathered = Gathered::default();
    let mut next = Some(first);
    while let Some(work_item) = next {
        match work_item {
            Work::Write(waiting) => gathered.write(waiting),
            Work::Change(asked) => gathered.change(asked),
            Work::Reopen { .. } => {}
        }
        next = if gathered.is_full() { None } else { work.try_recv().ok() };
    }
    gathered
}

/// Opens or makes a database of which its owner alone may read.
fn open_database(path: &PathBuf) -> Result<Database, DatabaseError> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
}

/// What was worked on when the last process died is given out again. The store's clock, its name in ids of messages, and
/// where its queues stand.
fn recover(database: &Database, given: &Path) -> Result<(Clock, u64, Heads), redb::Error> {
    let snapshot = database.begin_read()?;
    let (clock, known) = (Clock::after(queue::clock_ms(&snapshot)?), queue::store_name(&snapshot)?);
    let name = known.unwrap_or_else(|| Uuid::now_v7().as_u64_pair().1);
    let (heads, noted) = Heads::open(given, name)?;
    let transaction = database.begin_write()?;
    queue::name_store(&transaction, name)?;
    let mut tables = Tables::open(&transaction)?;
    let recovered = tables.recover(&noted)?;
    let stands = tables.finish(|_| None)?;
    transaction.commit()?;
    heads.begin(name, stands)?;
    if recovered > 0 {
        tracing::info!(recovered, "messages that were worked on when the node died are given out again");
    }
    Ok((clock, name, heads))
}

/// The outer error is the storage's, the inner one the caller's.
fn read_from(
    snapshot: &ReadTransaction,
    store: &str,
    read: Read,
) -> Result<Result<KeyValueAnswer, CallError>, redb::Error> {
    match snapshot.open_table(TABLE) {
        Ok(table) => Ok(keyvalue::read(&table, store, read)?),
        // Nothing was ever written.
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(Ok(read_nothing(read))),
        Err(why) => Err(why.into()),
    }
}

/// What a read finds where there is no table yet.
fn read_nothing(read: Read) -> KeyValueAnswer {
    match read {
        Read::Get(_) => KeyValueAnswer::Value(None),
        Read::Exists(_) => KeyValueAnswer::Exists(false),
        Read::Keys { .. } => KeyValueAnswer::Keys { keys: Vec::new(), cursor: None },
        Read::GetMany(keys) => KeyValueAnswer::Values(keys.into_iter().map(|key| (key, None)).collect()),
    }
}

/// What each of a batch came to, in their order.
type Committed = (Vec<Result<KeyValueAnswer, CallError>>, Vec<Result<Changed, CallError>>);

/// One transaction for all: when it returns, every write in it is on disk, or none is.
fn commit_to(database: &Database, heads: &Heads, gathered: &Gathered) -> Result<Committed, redb::Error> {
    let Gathered { writes, changes, .. } = gathered;
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let answers = if writes.is_empty() {
        Vec::new()
    } else {
        let mut table = transaction.open_table(TABLE)?;
        let each = writes.iter().map(|waiting| keyvalue::write(&mut table, &waiting.store, &waiting.write));
        each.collect::<Result<Vec<_>, StorageError>>()?
    };
    let (changed, stands) = if changes.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        let mut tables = Tables::open(&transaction)?;
        let each = changes.iter().map(|asked| tables.carry_out(&asked.change));
        let changed = each.collect::<Result<Vec<_>, StorageError>>()?;
        (changed, tables.finish(|queue| heads.of(queue).map(|head| head.given()))?)
    };
    transaction.commit()?;
    heads.committed(stands);
    Ok((answers, changed))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::StorageBackend;

    use super::*;

    /// A file on a disk that can be full.
    #[derive(Debug)]
    struct Disk {
        file: FileBackend,
        full: Arc<AtomicBool>,
    }

    impl Disk {
        fn room(&self) -> io::Result<()> {
            if self.full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.room().and_then(|()| self.file.set_len(len))
        }

        fn sync_data(&self) -> io::Result<()> {
            self.room().and_then(|()| self.file.sync_data())
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room().and_then(|()| self.file.write(offset, data))
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_named_and_the_store_goes_on_when_there_is_room_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("embedded.redb");
        let full = Arc::new(AtomicBool::new(false));
        let store = Store::open_with(path.clone(), {
            let full = full.clone();
            move || {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
                let file = FileBackend::new(file)?;
                Builder::new().create_with_backend(Disk { file, full: full.clone() })
            }
        })
        .unwrap();
        let name: Arc<str> = "orders".into();
        let set = |key: &str| store.call(&name, KeyValue::Set(key.into(), "1".into()));
        set("before").await.unwrap();
        assert_eq!(store.health(), Ok(()));

        full.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let Err(CallError::Unavailable(why)) = set("during").await else { panic!("the disk is full") };
            assert!(why.contains("the disk is full") && why.contains("embedded.redb"), "{why}");
        }
        assert!(store.health().unwrap_err().contains("the disk is full"));

        full.store(false, Ordering::Relaxed);
        set("after").await.unwrap();
        assert_eq!(store.health(), Ok(()));
        for (key, there) in [("before", true), ("during", false), ("after", true)] {
            let answer = store.call(&name, KeyValue::Exists(key.into())).await;
            assert_eq!(answer, Ok(KeyValueAnswer::Exists(there)), "{key}");
        }
    }

    #[tokio::test]
    async fn a_writer_that_died_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("embedded.redb");
        let full = Arc::new(AtomicBool::new(false));
        let store = Store::open_with(path.clone(), {
            let full = full.clone();
            move || {
                assert!(!full.load(Ordering::Relaxed), "this test's way to kill the writer");
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
                Builder::new().create_with_backend(Disk { file: FileBackend::new(file)?, full: full.clone() })
            }
        })
        .unwrap();
        let name: Arc<str> = "orders".into();
        full.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let set = store.call(&name, KeyValue::Set("a".into(), "1".into())).await;
            assert!(matches!(set, Err(CallError::Unavailable(_))), "{set:?}");
        }
        let died = async {
            while !store.health().is_err_and(|why| why.contains("died")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), died).await.unwrap();
    }

    /// Enough keys at once would have held up every other task of a node with one thread.
    #[test]
    fn a_read_leaves_the_calling_thread_free() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path().join("embedded.redb")).unwrap();
            // The only other thread there is has something to do.
            let (done, until_done) = mpsc::channel::<()>();
            let busy = tokio::task::spawn_blocking(move || until_done.recv().is_err());
            let name: Arc<str> = "orders".into();
            let reading = store.call(&name, KeyValue::Keys { cursor: None });
            assert!(futures::FutureExt::now_or_never(reading).is_none(), "it waits for another thread");
            drop(done);
            assert!(busy.await.unwrap());
        });
    }

    #[tokio::test]
    async fn writes_that_come_together_are_committed_together() {
        let dir = tempfile::tempdir().unwrap();
        let database = open_database(&dir.path().join("x.redb")).unwrap();
        let room = Arc::new(Semaphore::new(3));
        let (writes, mut answers): (Vec<_>, Vec<_>) = [("n", "1"), ("x", "no number"), ("n", "2")]
            .map(|(key, value)| {
                let (answer, answered) = oneshot::channel();
                let write = match value.parse() {
                    Ok(delta) => Write::Increment(key.into(), delta),
                    Err(_) => Write::Swap { key: key.into(), old: Some("other".into()), new: value.into() },
                };
                let _room = room.clone().try_acquire_owned().unwrap();
                (Waiting { store: "s".into(), write, answer, _room }, answered)
            })
            .into_iter()
            .unzip();
        // One that cannot be carried out takes nothing from its neighbours.
        let mut gathered = Gathered::default();
        writes.into_iter().for_each(|waiting| gathered.write(waiting));
        let (heads, _) = Heads::open(&dir.path().join("x.given"), 1).unwrap();
        let (committed, _) = commit_to(&database, &heads, &gathered).unwrap();
        assert_eq!(committed[0], Ok(KeyValueAnswer::Number(1)));
        assert_eq!(committed[1], Ok(KeyValueAnswer::Swapped(Err(None))));
        assert_eq!(committed[2], Ok(KeyValueAnswer::Number(3)));
        assert!(answers.iter_mut().all(|answer| answer.try_recv().is_err()), "answering is the writer's");
    }
}
