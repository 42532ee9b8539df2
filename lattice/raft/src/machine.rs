//! The state machine: the lattice's [`State`] in memory, its snapshots in the [`Store`].
//!
//! Applying writes nothing: after a restart the state is the last snapshot with the committed log applied again.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use trellis_placement::{Applied, State};

use crate::RaftError;
use crate::chance::unique_id;
use crate::log::failed;
use crate::store::{Store, Write, encode};
use crate::types::{LogEntry, LogId, Membership, Snapshot, SnapshotMeta, StorageError, Types};

/// How a snapshot is written: a byte that says so, then the state in postcard.
const SNAPSHOT_FORMAT: u8 = 2;
/// The same, then the commands that are half told. Only where there are any, so that older builds read all others.
const SNAPSHOT_FORMAT_HALF_TOLD: u8 = 3;
/// The same, then where the home is. Only once there is one, for the same reason: it takes that every member knows of it.
const SNAPSHOT_FORMAT_HOME: u8 = 4;
/// The same, then the timings. Only once they are agreed on.
const SNAPSHOT_FORMAT_TIMINGS: u8 = 5;
/// The same, the timings only where they are agreed on, then the incarnation. Only after the first.
const SNAPSHOT_FORMAT_INCARNATION: u8 = 6;

/// The state after an entry, and what openraft wants to know beside it.
#[derive(Clone, Default)]
struct Point {
    state: Arc<State>,
    applied: Option<LogId>,
    membership: Membership,
}

/// The state machine that openraft drives.
pub(crate) struct Machine {
    store: Store,
    now: Point,
    published: watch::Sender<Arc<State>>,
}

impl Machine {
    /// Takes up the last snapshot. openraft then applies again what was committed after it.
    pub(crate) async fn restore(store: Store) -> Result<(Self, watch::Receiver<Arc<State>>), RaftError> {
        let now = match read_snapshot(&store).await? {
            None => Point::default(),
            Some((meta, body)) => Point {
                state: Arc::new(decode_snapshot(&body).map_err(|why| store.damaged(why))?),
                applied: meta.last_log_id,
                membership: meta.last_membership,
            },
        };
        let (published, state) = watch::channel(now.state.clone());
        Ok((Self { store, now, published }, state))
    }

    /// Applies one entry. What has no command (a leader's first entry, a change of membership) has no outcome.
    fn apply_one(&mut self, entry: LogEntry) -> Option<Applied> {
        self.now.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(members) => {
                self.now.membership = Membership::new(Some(entry.log_id), members);
                None
            }
            // The state is shared with whoever watches it, so the first command of a batch copies it, and no other.
            EntryPayload::Normal(command) => Some(Arc::make_mut(&mut self.now.state).apply(&command)),
        }
    }

    fn publish(&self) {
        self.published.send_if_modified(|published| {
            let changed = !Arc::ptr_eq(published, &self.now.state);
            *published = self.now.state.clone();
            changed
        });
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.now.applied, self.now.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<Applied>>, StorageError>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = entries.into_iter().map(|entry| self.apply_one(entry)).collect();
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { store: self.store.clone(), point: self.now.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let body = snapshot.into_inner();
        let subject = || ErrorSubject::Snapshot(Some(meta.signature()));
        let state = decode_snapshot(&body)
            .map_err(|why| failed(subject(), ErrorVerb::Read, &self.store.damaged(format!("a snapshot: {why}"))))?;
        let (index, bytes) = (meta.last_log_id.map(|last| last.index), body.len());
        write_snapshot(&self.store, meta, body).await.map_err(|why| failed(subject(), ErrorVerb::Write, &why))?;
        tracing::info!(index, bytes, "began from a snapshot");
        self.now =
            Point { state: Arc::new(state), applied: meta.last_log_id, membership: meta.last_membership.clone() };
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let read = read_snapshot(&self.store).await;
        let read = read.map_err(|why| failed(ErrorSubject::Snapshot(None), ErrorVerb::Read, &why))?;
        Ok(read.map(|(meta, body)| Snapshot { meta, snapshot: Box::new(Cursor::new(body)) }))
    }
}

/// Makes a snapshot of one point while the machine goes on.
pub(crate) struct Builder {
    store: Store,
    point: Point,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let meta = SnapshotMeta {
            last_log_id: self.point.applied,
            last_membership: self.point.membership.clone(),
            // Two snapshots of one point may differ in bytes, and a transfer must not mix them.
            snapshot_id: unique_id().simple().to_string(),
        };
        let body = encode_snapshot(&self.point.state);
        let written = write_snapshot(&self.store, &meta, body.clone()).await;
        written.map_err(|why| failed(ErrorSubject::Snapshot(Some(meta.signature())), ErrorVerb::Write, &why))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(body)) })
    }
}

pub(crate) fn encode_snapshot(state: &State) -> Vec<u8> {
    let beside = (state.unfinished(), state.home());
    let written = match (beside, state.timings()) {
        ((some, home), timings) if state.incarnation().number > 0 => {
            let whole = (state, some, home, timings, state.incarnation());
            postcard::to_extend(&whole, vec![SNAPSHOT_FORMAT_INCARNATION])
        }
        ((some, home), Some(timings)) => {
            postcard::to_extend(&(state, some, home, timings), vec![SNAPSHOT_FORMAT_TIMINGS])
        }
        ((some, home), None) if home.is_settled() => {
            postcard::to_extend(&(state, some, home), vec![SNAPSHOT_FORMAT_HOME])
        }
        ((none, _), None) if none.is_empty() => postcard::to_extend(state, vec![SNAPSHOT_FORMAT]),
        ((some, _), None) => postcard::to_extend(&(state, some), vec![SNAPSHOT_FORMAT_HALF_TOLD]),
    };
    written.expect("the state is plain data, which postcard can always write")
}

/// Reads a snapshot, which may come from a peer.
pub(crate) fn decode_snapshot(body: &[u8]) -> Result<State, String> {
    match body.split_first() {
        Some((&SNAPSHOT_FORMAT, rest)) => decode(rest),
        Some((&SNAPSHOT_FORMAT_HALF_TOLD, rest)) => {
            decode(rest).map(|(state, unfinished): (State, _)| state.resuming(unfinished))
        }
        Some((&SNAPSHOT_FORMAT_HOME, rest)) => {
            let whole = decode::<(State, _, _)>(rest);
            whole.map(|(state, unfinished, home)| state.resuming(unfinished).at_home(home))
        }
        Some((&SNAPSHOT_FORMAT_TIMINGS, rest)) => {
            let whole = decode::<(State, _, _, _)>(rest);
            whole.map(|(state, unfinished, home, timings)| state.resuming(unfinished).at_home(home).timed(timings))
        }
        Some((&SNAPSHOT_FORMAT_INCARNATION, rest)) => {
            let (state, unfinished, home, timings, incarnation) = decode::<(State, _, _, Option<_>, _)>(rest)?;
            let state = state.resuming(unfinished).at_home(home).reborn(incarnation);
            Ok(match timings {
                Some(timings) => state.timed(timings),
                None => state,
            })
        }
        Some((format, _)) => {
            let known = SNAPSHOT_FORMAT_INCARNATION;
            Err(format!("the snapshot has format {format}; this build reads {SNAPSHOT_FORMAT} to {known}"))
        }
        None => Err("the snapshot is empty".into()),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((whole, [])) => Ok(whole),
        Ok((_, left)) => Err(format!("the snapshot has {} bytes too many", left.len())),
        Err(why) => Err(format!("the snapshot is malformed: {why}")),
    }
}

async fn write_snapshot(store: &Store, meta: &SnapshotMeta, body: Vec<u8>) -> Result<(), RaftError> {
    let index = meta.last_log_id.map(|last| last.index);
    store.write(Write::Snapshot { index, meta: encode(meta), body }).await
}

/// A snapshot may have some megabytes: too long a read for a thread that carries heartbeats.
async fn read_snapshot(store: &Store) -> Result<Option<(SnapshotMeta, Vec<u8>)>, RaftError> {
    store.apart(Store::snapshot).await
}
