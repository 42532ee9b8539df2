//! Backup and restore of what the lattice was told: the commands that make its apps and configs again, and the artifacts
//! that they name. Both are streamed; no artifact is held whole in memory on the way out.
//!
//! A backup is a line that says so, then blocks: a byte for the kind, eight bytes for the length (little-endian), and
//! the content. `c` is one command, as a frame; `a` is an artifact, its SHA-256 first; `e` is the end, the SHA-256 of all
//! that comes before the block. Nodes, the plan, leases and what providers store are not in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use trellis_placement::{Applied, Command, Entry, State};
use trellis_wire::{Digest, frame};

use crate::artifacts::{ARTIFACT_BYTES_MAX, Artifacts};
use crate::fetch::{Fetch, FetchError};
use crate::node::Node;
use crate::{cut_off, proposal};

/// The first line.
const MAGIC: &[u8] = b"trellis backup 1\n";
/// Kind and length.
const HEAD_BYTES: usize = 9;
const DIGEST_BYTES: usize = 32;
/// Artifacts are read in pieces of this size.
const PIECE_BYTES: usize = 128 * 1024;
/// The longest block that is no artifact, in bytes: an entry of the log, and room.
const BLOCK_BYTES_MAX: u64 = 1024 * 1024;
/// How many versions are named that a backup has not whole.
const LEFT_OUT_MAX: usize = 50;
/// How many commands a restore takes.
const COMMANDS_MAX: usize = 1_000_000;

/// Why a lattice cannot be backed up or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// The file is no backup, or not a whole one.
    #[error("the backup is not usable: {0}")]
    Unusable(String),
    /// The lattice has something already.
    #[error(
        "this lattice has apps or config already: restore onto a new, empty one, or `trellis delete` and \
         `trellis config del` what is there first"
    )]
    NotEmpty,
    /// Not all nodes know what is in it. Nothing of it is there.
    #[error("nothing was restored, because the backup is of a newer Trellis than this lattice: {0}")]
    TooNew(String),
    /// Something of it did not get through. What came before it is there.
    #[error("restored {done} of {all} commands, then: {why}; delete what is there and restore again")]
    Stopped {
        /// Commands that took effect.
        done: usize,
        /// Commands in the backup.
        all: usize,
        /// What was wrong with the next one.
        why: String,
    },
    /// The node cannot do it now.
    #[error("{0}")]
    Unavailable(String),
}

/// What a restore brought back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Restored {
    pub(crate) commands: usize,
    pub(crate) artifacts: usize,
}

/// A backup as a stream of bytes, and which past versions are not whole in it. Every artifact of it is on this node when this
/// returns, whole and checked. With `is_stale` it is of what this node knows, where the others cannot be asked.
pub(crate) async fn backup(
    node: &Arc<Node>,
    is_stale: bool,
) -> Result<(impl Stream<Item = std::io::Result<Bytes>> + use<>, Vec<String>), BackupError> {
    let unavailable = |why: String| BackupError::Unavailable(why);
    if !is_stale {
        node.raft.read_barrier().await.map_err(|why| unavailable(why.to_string()))?;
    }
    let state = node.raft.state().borrow().clone();
    let Gathered { digests, left_out } = gathered(&node.fetch, &state).await?;
    let commands = state.commands().into_iter().map(|command| {
        let frame = frame::encode(&command);
        Ok(Bytes::from([head(b'c', frame.len() as u64).as_slice(), &frame].concat()))
    });
    let head = futures::stream::iter([Ok(Bytes::from_static(MAGIC))]);
    let artifacts = node.artifacts.clone();
    let pieces = futures::stream::iter(digests).flat_map(move |digest| artifact(artifacts.clone(), digest));
    Ok((sealed(head.chain(futures::stream::iter(commands)).chain(pieces)), named(&state, &left_out)))
}

/// The artifacts of a backup.
struct Gathered {
    digests: Vec<Digest>,
    /// Those that nobody has.
    left_out: BTreeSet<Digest>,
}

/// The artifacts of all versions that are kept, once they are here. One that only past versions name, and that no node gives
/// any more, is left out: the rest is worth having.
async fn gathered(fetch: &Fetch, state: &State) -> Result<Gathered, BackupError> {
    let running: BTreeSet<Digest> = state.running().flat_map(|release| release.digests()).collect();
    let kept = state.apps().flat_map(|(_, versions)| versions.kept());
    let kept: BTreeSet<Digest> = kept.flat_map(|kept| kept.release.digests()).collect();
    let (mut digests, mut left_out) = (Vec::new(), BTreeSet::new());
    for digest in kept {
        match fetch.ensure_whole(digest).await {
            Ok(()) => digests.push(digest),
            Err(why @ FetchError::Nobody(..)) if !running.contains(&digest) => {
                tracing::warn!(
                    "the backup is without what only past versions name, which cannot be gone back to: {why}"
                );
                left_out.insert(digest);
            }
            Err(why) => return Err(BackupError::Unavailable(why.to_string())),
        }
    }
    Ok(Gathered { digests, left_out })
}

/// The versions that name one of these artifacts, and which.
fn named(state: &State, left_out: &BTreeSet<Digest>) -> Vec<String> {
    let kept = state.apps().flat_map(|(_, versions)| versions.kept());
    let lacking = kept.filter_map(|kept| {
        let digest = kept.release.digests().find(|digest| left_out.contains(digest))?;
        Some(format!("{} {}: {digest}", kept.release.app.name, kept.release.version))
    });
    let mut named: Vec<String> = lacking.collect();
    let more = named.len().saturating_sub(LEFT_OUT_MAX);
    named.truncate(LEFT_OUT_MAX);
    named.extend((more > 0).then(|| format!("{more} more")));
    named
}

fn head(kind: u8, bytes: u64) -> [u8; HEAD_BYTES] {
    let mut head = [kind; HEAD_BYTES];
    head[1..].copy_from_slice(&bytes.to_le_bytes());
    head
}

/// An artifact's block, piece by piece.
fn artifact(artifacts: Artifacts, digest: Digest) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures::stream::unfold(Some((artifacts, 0)), move |left| async move {
        let (artifacts, at) = left?;
        let reader = artifacts.clone();
        let read = tokio::task::spawn_blocking(move || reader.piece(digest, at, PIECE_BYTES)).await;
        let read = read.map_err(std::io::Error::other).and_then(|read| read.map_err(std::io::Error::other));
        let (piece, total) = match read {
            Ok(read) => read,
            Err(why) => return Some((Err(why), None)),
        };
        let mut bytes = Vec::with_capacity(piece.len() + HEAD_BYTES + DIGEST_BYTES);
        if at == 0 {
            bytes.extend_from_slice(&head(b'a', total + DIGEST_BYTES as u64));
            bytes.extend_from_slice(digest.bytes());
        }
        bytes.extend_from_slice(&piece);
        let upto = at + piece.len() as u64;
        Some((Ok(bytes.into()), (upto < total && !piece.is_empty()).then_some((artifacts, upto))))
    })
}

/// The same with its end.
fn sealed(blocks: impl Stream<Item = std::io::Result<Bytes>>) -> impl Stream<Item = std::io::Result<Bytes>> {
    futures::stream::unfold((Box::pin(blocks), Some(Sha256::new())), |(mut blocks, hash)| async move {
        let mut hash = hash?;
        match blocks.next().await {
            Some(Ok(bytes)) => {
                hash.update(&bytes);
                Some((Ok(bytes), (blocks, Some(hash))))
            }
            Some(Err(why)) => Some((Err(why), (blocks, None))),
            None => {
                let end = [head(b'e', DIGEST_BYTES as u64).as_slice(), &hash.finalize()].concat();
                Some((Ok(end.into()), (blocks, None)))
            }
        }
    })
}

/// Reads a backup, stores its artifacts, and once all of it is here and whole, makes its commands again.
pub(crate) async fn restore(
    node: &Node,
    body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
) -> Result<Restored, BackupError> {
    let check = || if node.raft.state().borrow().is_empty() { Ok(()) } else { Err(BackupError::NotEmpty) };
    check()?;
    cut_off::certainly(node).map_or(Ok(()), |why| Err(BackupError::Unavailable(why)))?;
    let mut reader = Reader { body, buffer: Vec::new(), hash: Sha256::new() };
    if reader.take(MAGIC.len()).await.ok().as_deref() != Some(MAGIC) {
        return Err(BackupError::Unusable("it does not begin as one: name what `trellis backup` wrote".into()));
    }
    let (mut commands, mut artifacts): (Vec<Command>, usize) = (Vec::new(), 0);
    loop {
        let whole = reader.hash.clone().finalize();
        let head = reader.take(HEAD_BYTES).await?;
        let bytes = u64::from_le_bytes(head[1..].try_into().expect("the head has nine bytes"));
        match head[0] {
            b'a' if (DIGEST_BYTES as u64..=ARTIFACT_BYTES_MAX + DIGEST_BYTES as u64).contains(&bytes) => {
                reader.artifact(&node.artifacts, bytes - DIGEST_BYTES as u64).await?;
                artifacts += 1;
            }
            b'c' if bytes <= BLOCK_BYTES_MAX && commands.len() < COMMANDS_MAX => {
                let block = reader.take(usize::try_from(bytes).unwrap_or(usize::MAX)).await?;
                commands.push(frame::decode(&block).map_err(|why| BackupError::Unusable(why.to_string()))?);
            }
            b'e' if bytes == DIGEST_BYTES as u64 => {
                if reader.take(DIGEST_BYTES).await? != whole.as_slice() {
                    return Err(BackupError::Unusable("its checksum is another: it changed since it was made".into()));
                }
                break;
            }
            kind => {
                return Err(BackupError::Unusable(format!("a block of kind {kind} and {bytes} bytes makes no sense")));
            }
        }
    }
    check()?;
    let entries: Vec<Entry> = commands.into_iter().map(proposal::entry).collect();
    let state = node.raft.state().borrow().clone();
    entries
        .iter()
        .try_for_each(|entry| state.check_level(entry))
        .map_err(|why| BackupError::TooNew(why.to_string()))?;
    let all = entries.len();
    for (done, entry) in entries.into_iter().enumerate() {
        let stopped = |why: String| BackupError::Stopped { done, all, why };
        match node.raft.propose(entry).await {
            Ok(Applied::Refused(why)) => return Err(stopped(why.to_string())),
            Ok(_) => {}
            Err(why) => return Err(stopped(why.to_string())),
        }
    }
    if let Err(why) = node.raft.read_barrier().await {
        tracing::debug!(%why, "what was restored is committed and not here yet");
    }
    Ok(Restored { commands: all, artifacts })
}

/// Takes so many bytes after the others, wherever the pieces of the body end.
struct Reader<S> {
    body: S,
    buffer: Vec<u8>,
    hash: Sha256,
}

impl<S: Stream<Item = Result<Bytes, axum::Error>> + Unpin> Reader<S> {
    async fn take(&mut self, bytes: usize) -> Result<Vec<u8>, BackupError> {
        while self.buffer.len() < bytes {
            let more = self.body.next().await;
            let more = more.ok_or_else(|| BackupError::Unusable("it ends too early: it is not whole".into()))?;
            self.buffer.extend_from_slice(&more.map_err(|why| BackupError::Unusable(why.to_string()))?);
        }
        let rest = self.buffer.split_off(bytes);
        let taken = std::mem::replace(&mut self.buffer, rest);
        self.hash.update(&taken);
        Ok(taken)
    }

    /// Stores an artifact. What is not what its digest says is refused.
    async fn artifact(&mut self, artifacts: &Artifacts, total: u64) -> Result<(), BackupError> {
        let digest = self.take(DIGEST_BYTES).await?;
        let digest = Digest::new(digest.try_into().expect("so many were taken"));
        let mut at = 0;
        loop {
            let left = usize::try_from(total - at).unwrap_or(usize::MAX);
            let piece = self.take(left.min(PIECE_BYTES)).await?;
            let (store, last) = (artifacts.clone(), at + piece.len() as u64 >= total);
            let stored = tokio::task::spawn_blocking(move || store.add(digest, at, &piece, last)).await;
            let stored = stored.map_err(|why| BackupError::Unavailable(why.to_string()))?;
            at = stored.map_err(|why| BackupError::Unusable(why.to_string()))?;
            if last {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trellis_bus::{Bus, Memory};
    use trellis_manifest::App;
    use trellis_placement::Release;

    use super::*;
    use crate::fetch::tests::{Place, state};

    /// A lattice in which one version runs, another takes its place, and a third was overtaken between them.
    fn deployed(manifests: [Digest; 3]) -> State {
        let mut state = (*state()).clone();
        for (n, manifest) in manifests.into_iter().enumerate() {
            let (app, version, artifacts) = (App::new("shop".parse().unwrap()), format!("v{n}"), BTreeMap::new());
            let app = App { description: Some(version.clone()), ..app };
            let release = Release { app, version, artifacts, manifest, replace: false };
            state.apply(&proposal::entry(Command::Deploy(Box::new(release))));
        }
        state
    }

    #[tokio::test]
    async fn what_was_damaged_is_fetched_and_what_only_a_past_version_names_may_be_gone() {
        let (bus, folders) = (Bus::Memory(Memory::alone()), [0; 2].map(|_| tempfile::tempdir().unwrap()));
        let here = Place::start(0, &bus, folders[0].path()).await;
        let [first, past, last] = [&b"first"[..], b"past", b"last"].map(Artifacts::digest);
        let state = deployed([first, past, last]);
        for bytes in [&b"first"[..], b"last"] {
            here.fetch.artifacts.put(bytes, None).unwrap();
        }
        let all = BTreeSet::from([first, last]);
        let gathered = async || {
            let gathered = gathered(&here.fetch, &state).await?;
            assert_eq!(named(&state, &gathered.left_out), [format!("shop v1: {past}")], "it is named");
            Ok::<_, BackupError>(gathered.digests.into_iter().collect::<BTreeSet<_>>())
        };
        assert_eq!(gathered().await.unwrap(), all);

        std::fs::write(folders[0].path().join("artifacts").join(last.hex()), b"lost").unwrap();
        let why = gathered().await.unwrap_err().to_string();
        assert!(why.contains("no other node gave artifact"), "{why}");
        let other = Place::start(1, &bus, folders[1].path()).await;
        other.fetch.artifacts.put(b"last", None).unwrap();
        let source = other.gives(u64::MAX, Default::default()).await;
        std::fs::write(folders[0].path().join("artifacts").join(last.hex()), b"lost").unwrap();
        assert_eq!(gathered().await.unwrap(), all);
        assert_eq!(here.fetch.artifacts.get(last).unwrap(), b"last");
        source.abort();
    }
}
