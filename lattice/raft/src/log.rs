//! Raft's log and vote, as openraft wants them, on the [`Store`].

use std::fmt::Debug;
use std::ops::RangeBounds;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageIOError, Vote};

use crate::store::{Store, Word, Write, encode};
use crate::types::{LogEntry, LogId, StorageError, Types};
use crate::{BATCH_BYTES_MAX, RaftError};

/// What is left of a batch for all that is not its entries: vote, log ids, ids of node and lattice.
pub(crate) const HEAD_BYTES: usize = 1024;

/// The log. Clones of it are the readers that replication uses.
#[derive(Clone)]
pub(crate) struct Log {
    store: Store,
}

impl Log {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, StorageError> {
        self.store.entries(range, usize::MAX).map_err(|why| failed(ErrorSubject::Logs, ErrorVerb::Read, &why))
    }

    /// What goes to a peer in one request: never more bytes than a batch may have.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, StorageError> {
        self.store
            .entries(start..end, BATCH_BYTES_MAX - HEAD_BYTES)
            .map_err(|why| failed(ErrorSubject::Logs, ErrorVerb::Read, &why))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let read = || {
            let last_purged_log_id: Option<LogId> = self.store.word(Word::Purged)?;
            let last: Option<LogEntry> = self.store.last_entry()?;
            Ok(LogState { last_purged_log_id, last_log_id: last.map(|last| last.log_id).or(last_purged_log_id) })
        };
        read().map_err(|why: RaftError| failed(ErrorSubject::Logs, ErrorVerb::Read, &why))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u128>) -> Result<(), StorageError> {
        self.write(Write::Vote(encode(vote)), ErrorSubject::Vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u128>>, StorageError> {
        self.store.word(Word::Vote).map_err(|why| failed(ErrorSubject::Vote, ErrorVerb::Read, &why))
    }

    /// Kept so that a restart finds the state where it was, not where the last snapshot was.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.write(Write::Committed(encode(&committed)), ErrorSubject::Store).await?;
        self.store.sync_soon();
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed: Option<Option<LogId>> =
            self.store.word(Word::Committed).map_err(|why| failed(ErrorSubject::Store, ErrorVerb::Read, &why))?;
        Ok(committed.flatten())
    }

    /// Returns, like the callback, when the entries are on disk: only then can a reader see them. openraft calls it for
    /// one batch after the other, so the callbacks come in the order of the log, as they must.
    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, encode(&entry))).collect();
        let written = self.store.write(Write::Append(entries)).await;
        callback.log_io_completed(written.clone().map_err(std::io::Error::other));
        written.map_err(|why| failed(ErrorSubject::Logs, ErrorVerb::Write, &why))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Write::Truncate(log_id.index), ErrorSubject::Logs).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Write::Purge(log_id.index, encode(&log_id)), ErrorSubject::Logs).await
    }
}

impl Log {
    async fn write(&self, write: Write, subject: ErrorSubject<u128>) -> Result<(), StorageError> {
        self.store.write(write).await.map_err(|why| failed(subject, ErrorVerb::Write, &why))
    }
}

/// An error of the store in openraft's words. openraft stops for good on any of them.
pub(crate) fn failed(subject: ErrorSubject<u128>, verb: ErrorVerb, why: &RaftError) -> StorageError {
    StorageIOError::new(subject, verb, AnyError::new(why)).into()
}
