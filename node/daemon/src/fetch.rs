//! Artifacts from other nodes: by digest, in chunks, from any node that has them. A fetch that broke off goes on where it
//! was, from another node if need be; nothing counts before its digest was checked.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use trellis_bus::{BusError, Heard, Sealed, SealedError};
use trellis_placement::{Life, Spare, State};
use trellis_provider::Shared;
use trellis_wire::{AppName, ComponentName, Digest, NodeId, frame, subject};

use crate::artifacts::{ARTIFACT_BYTES_MAX, ArtifactError, Artifacts};
use crate::liveness::Liveness;
use crate::shares::Shares;

/// The longest chunk, in bytes.
const CHUNK_BYTES_MAX: usize = 128 * 1024;
/// How long a node may take to give one.
const CHUNK_WAIT: Duration = Duration::from_secs(5);
/// How many chunks are read for others at one time.
const READS_MAX: usize = 16;
/// How long a node that was busy is left alone, how often in a row it may be so before the next one is asked, and how many
/// rounds are made of those who were.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_MAX: u32 = 3;
const BUSY_ROUNDS_MAX: u32 = 50;
/// How long after a fetch failed a node tries again to get what it keeps for others.
const SPARE_AGAIN: Duration = Duration::from_secs(2);
/// A node that looked what it keeps for others looks again after this many times as long, whatever changes: where there is
/// much of it, a look takes a while.
const SPARE_REST: u32 = 20;
/// How often a node looks whether it has what it keeps of past versions, which nobody waits for.
const PAST_LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long a node may take to say whether it keeps something.
const KEPT_WAIT: Duration = Duration::from_millis(500);
/// How many spares are remembered that said so. Beyond that they are asked again.
const KEPT_MAX: usize = 16_384;

/// A question on a node's artifact subject: a chunk from here on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Chunk(Digest, u64),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Chunk {
    /// The bytes from there on, and how many there are in all.
    Bytes(Bytes, u64),
    /// It has no such artifact.
    NotHere,
    /// Too many ask at once.
    Busy,
}

/// Why an artifact is not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no other node gave artifact {0}: {1}")]
    Nobody(Digest, String),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("storing artifact {0} broke off")]
    BrokenOff(Digest),
}

/// What a node gave of an artifact.
enum Given {
    /// The rest of it.
    Whole,
    /// Not all: too many asked it.
    Busy,
}

/// Brings artifacts here, and gives them to others.
pub(crate) struct Fetch {
    pub(crate) sealed: Sealed,
    pub(crate) artifacts: Artifacts,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    /// One fetch of an artifact at a time: two would do the work twice.
    pub(crate) turns: Shared<Digest, Mutex<()>>,
    /// Spares that said that they have what they keep.
    pub(crate) kept: std::sync::Mutex<HashSet<Spare>>,
}

impl Fetch {
    /// Returns once the artifact is on this node. It was checked when it came.
    pub(crate) async fn ensure(&self, digest: Digest) -> Result<(), FetchError> {
        let Ok(turn) = self.turns.get(&digest, || Ok::<_, Infallible>(Arc::default()));
        let _turn = turn.lock().await;
        if self.artifacts.has(digest) {
            return Ok(());
        }
        let (mut nodes, mut told) = (self.in_turn(digest), Vec::new());
        for _ in 0..BUSY_ROUNDS_MAX {
            let mut busy = Vec::new();
            for node in nodes {
                match self.fetch(digest, node).await {
                    Ok(Given::Whole) => {
                        tracing::info!(%digest, %node, "fetched an artifact");
                        return Ok(());
                    }
                    Ok(Given::Busy) => busy.push(node),
                    Err(why @ FetchError::Artifact(ArtifactError::Disk { .. })) => return Err(why),
                    Err(why) => told.push(format!("{node}: {why}")),
                }
            }
            nodes = busy;
            if nodes.is_empty() {
                break;
            }
        }
        told.extend(nodes.iter().map(|node| format!("{node}: it is busy")));
        let told = if told.is_empty() { "there is none".to_owned() } else { told.join("; ") };
        Err(FetchError::Nobody(digest, told))
    }

    /// The same, checked now: it may have been damaged since it came.
    pub(crate) async fn ensure_whole(&self, digest: Digest) -> Result<(), FetchError> {
        let artifacts = self.artifacts.clone();
        let checked = tokio::task::spawn_blocking(move || artifacts.check(digest)).await;
        match checked.map_err(|_| FetchError::BrokenOff(digest))? {
            Ok(()) => Ok(()),
            Err(why @ ArtifactError::Disk { .. }) => Err(why.into()),
            Err(ArtifactError::Missing(_) | ArtifactError::Mismatch { .. }) => self.ensure(digest).await,
        }
    }

    /// The other nodes, those that live first. Which of them comes first is another one for each node and artifact.
    fn in_turn(&self, digest: Digest) -> Vec<NodeId> {
        let (state, me) = (self.shares.state(), self.sealed.node());
        let mut nodes: Vec<NodeId> = state.nodes().keys().copied().filter(|node| *node != me).collect();
        nodes.sort_by_cached_key(|node| {
            let mut hash = DefaultHasher::new();
            (digest, me, node).hash(&mut hash);
            (self.liveness.life(*node) != Life::Alive, hash.finish())
        });
        nodes
    }

    /// Takes what is missing from one node.
    async fn fetch(&self, digest: Digest, node: NodeId) -> Result<Given, FetchError> {
        let subject = subject::artifact(self.sealed.lattice(), node);
        let nobody = |why: &str| FetchError::Nobody(digest, why.into());
        let (mut begun, mut busy) = (self.artifacts.begun(digest)?, 0);
        loop {
            let question = frame::encode(&Ask::Chunk(digest, begun));
            let answer = match self.sealed.ask(node, &subject, &question, CHUNK_WAIT).await {
                Ok(answer) => frame::decode(&answer).map_err(|why| nobody(&why.to_string()))?,
                Err(SealedError::Bus(BusError::NoResponders { .. })) => return Err(nobody("it is not there")),
                Err(why) => return Err(nobody(&why.to_string())),
            };
            match answer {
                Chunk::Bytes(_, total) if total > ARTIFACT_BYTES_MAX => return Err(nobody("it is too large")),
                Chunk::Bytes(bytes, total) => {
                    let (artifacts, last) = (self.artifacts.clone(), begun + bytes.len() as u64 >= total);
                    if bytes.is_empty() && !last {
                        return Err(nobody("it gave nothing"));
                    }
                    let stored = tokio::task::spawn_blocking(move || artifacts.add(digest, begun, &bytes, last));
                    begun = stored.await.map_err(|_| FetchError::BrokenOff(digest))??;
                    if last {
                        return Ok(Given::Whole);
                    }
                    busy = 0;
                }
                Chunk::NotHere => return Err(nobody("it does not have it")),
                Chunk::Busy => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                    busy += 1;
                    if busy == BUSY_MAX {
                        return Ok(Given::Busy);
                    }
                }
            }
        }
    }

    /// Gives chunks to others until `shutdown`.
    pub(crate) async fn serve(self: Arc<Self>, shutdown: CancellationToken) {
        let mut questions = self.sealed.words(subject::artifact(self.sealed.lattice(), self.sealed.node()));
        let reads = Arc::new(Semaphore::new(READS_MAX));
        let serving = async {
            loop {
                // Who sent what is not taken was told.
                if let Ok(question) = questions.next().await {
                    self.clone().give(question, &reads);
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Beside the others; there is a bound on how many.
    fn give(self: Arc<Self>, question: Heard, reads: &Arc<Semaphore>) {
        let Some(reply) = question.reply else { return };
        let place = reads.clone().try_acquire_owned();
        tokio::spawn(async move {
            let answer = match &place {
                Ok(_) => self.chunk(&question.body).await,
                Err(_) => Chunk::Busy,
            };
            if let Err(why) = self.sealed.answer(reply, &frame::encode(&answer)).await {
                tracing::debug!(%why, "a chunk was not given");
            }
        });
    }

    async fn chunk(&self, question: &[u8]) -> Chunk {
        let Ok(Ask::Chunk(digest, from)) = frame::decode(question) else { return Chunk::NotHere };
        let artifacts = self.artifacts.clone();
        let read = tokio::task::spawn_blocking(move || artifacts.piece(digest, from, CHUNK_BYTES_MAX)).await;
        match read {
            Ok(Ok((bytes, total))) => Chunk::Bytes(bytes.into(), total),
            Ok(Err(why @ ArtifactError::Disk { .. })) => {
                tracing::warn!(%digest, "{why}");
                Chunk::NotHere
            }
            _ => Chunk::NotHere,
        }
    }

    /// Keeps what this node is the spare for: a holder may die with the only other copy.
    pub(crate) async fn keep_spares(self: Arc<Self>, shutdown: CancellationToken) {
        let (mut looked_at_past, mut past_of) = (None, None::<Arc<State>>);
        loop {
            let began = Instant::now();
            let state = self.shares.state();
            let is_complete = self.keep(state.spares(self.sealed.node())).await;
            let is_due = looked_at_past.is_none_or(|looked: Instant| looked.elapsed() >= PAST_LOOK_EVERY);
            if is_due && !is_of(past_of.as_ref(), &state) {
                // What no node has any more is asked for in vain, and not sooner again for that.
                past_of = self.keep(state.past_spares(self.sealed.node())).await.then(|| state.clone());
                looked_at_past = Some(Instant::now());
            }
            let next = async {
                tokio::time::sleep(began.elapsed() * SPARE_REST).await;
                let again = match is_complete {
                    false => SPARE_AGAIN,
                    // All is here until something changes.
                    true if is_of(past_of.as_ref(), &state) => Duration::MAX,
                    true => PAST_LOOK_EVERY,
                };
                drop(timeout(again, self.shares.until(|now| !std::ptr::eq(now, &*state))).await);
            };
            if shutdown.run_until_cancelled(next).await.is_none() {
                return;
            }
        }
    }

    /// Whether all of it is here now.
    async fn keep(&self, spares: BTreeSet<Digest>) -> bool {
        let mut is_complete = true;
        for digest in spares.into_iter().filter(|digest| !self.artifacts.has(*digest)) {
            if let Err(why) = self.ensure(digest).await {
                is_complete = false;
                tracing::debug!("no spare yet: {why}");
            }
        }
        is_complete
    }

    /// The spares of an app that live and do not have what they keep: each is asked, until it said once that it has.
    pub(crate) async fn lacking(&self, state: &State, app: &AppName) -> Vec<(ComponentName, Spare)> {
        let spares = state.spares_of(app).into_iter();
        let live = spares.filter(|(_, spare)| self.liveness.life(spare.node) == Life::Alive);
        let asked = live.map(async |(name, spare)| (!self.is_kept(spare).await).then_some((name, spare)));
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn is_kept(&self, spare: Spare) -> bool {
        let Spare { digest, node } = spare;
        if node == self.sealed.node() {
            return self.artifacts.has(digest);
        }
        let kept = || self.kept.lock().expect("no code panics while it holds this lock");
        if kept().contains(&spare) {
            return true;
        }
        // A chunk from beyond its end: there is none of what is not there.
        let (subject, question) =
            (subject::artifact(self.sealed.lattice(), node), Ask::Chunk(digest, ARTIFACT_BYTES_MAX));
        let answer = self.sealed.ask(node, &subject, &frame::encode(&question), KEPT_WAIT).await;
        let is_there = answer.is_ok_and(|answer| matches!(frame::decode(&answer), Ok(Chunk::Bytes(..))));
        if is_there {
            let mut kept = kept();
            if kept.len() >= KEPT_MAX {
                kept.clear();
            }
            kept.insert(spare);
        }
        is_there
    }
}

/// Whether something was found of just this state.
fn is_of(found: Option<&Arc<State>>, state: &Arc<State>) -> bool {
    found.is_some_and(|found| Arc::ptr_eq(found, state))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::watch;
    use tokio::task::JoinHandle;
    use trellis_bus::{Bus, Memory, members};
    use trellis_placement::{Capacity, Command, Entry, NodeFacts, Patience};

    use super::*;

    fn id(n: u64) -> NodeId {
        format!("0a0de000-0000-7000-8000-{n:012x}").parse().unwrap()
    }

    /// A node with its data in a folder, and what answers those who greet it.
    pub(crate) struct Place {
        pub(crate) fetch: Arc<Fetch>,
        greets: JoinHandle<()>,
    }

    impl Place {
        /// A start of node `n` of three.
        pub(crate) async fn start(n: u64, bus: &Bus, folder: &std::path::Path) -> Self {
            let sealed = members::start(id(n), "test".parse().unwrap(), bus.clone());
            let lattice = "0a0de000-0000-7000-8000-0000000000ff".parse().unwrap();
            sealed.seal().read(Arc::new(members::Known::new(lattice, [id(0), id(1), id(2)])));
            let greets = tokio::spawn(sealed.be_greeted().await.unwrap());
            let fetch = Arc::new(Fetch {
                sealed,
                artifacts: Artifacts::open(folder).unwrap(),
                shares: Arc::new(Shares::new(watch::channel(state()).1)),
                liveness: Arc::new(Liveness::new(id(n), Patience::default())),
                turns: Shared::default(),
                kept: Default::default(),
            });
            Self { fetch, greets }
        }

        /// Answers who asks for an artifact with this, or not at all.
        async fn answers(&self, with: impl Fn(Digest) -> Option<Chunk> + Send + 'static) -> JoinHandle<()> {
            let fetch = self.fetch.clone();
            let subject = subject::artifact(fetch.sealed.lattice(), fetch.sealed.node());
            let mut questions = fetch.sealed.listen(&subject).await.unwrap();
            tokio::spawn(async move {
                while let Some(question) = questions.next().await {
                    let question = question.unwrap();
                    let Ok(Ask::Chunk(digest, _)) = frame::decode(&question.body) else { continue };
                    if let Some(answer) = with(digest) {
                        fetch.sealed.answer(question.reply.unwrap(), &frame::encode(&answer)).await.unwrap();
                    }
                }
            })
        }

        fn end(self) {
            self.greets.abort();
        }

        /// Gives an artifact as a node does, but only so many chunks; counts the bytes that it gave.
        pub(crate) async fn gives(&self, mut chunks: u64, given: Arc<AtomicU64>) -> JoinHandle<()> {
            let fetch = self.fetch.clone();
            let subject = subject::artifact(fetch.sealed.lattice(), fetch.sealed.node());
            let mut questions = fetch.sealed.listen(&subject).await.unwrap();
            tokio::spawn(async move {
                while chunks > 0
                    && let Some(question) = questions.next().await
                {
                    let question = question.unwrap();
                    let answer = fetch.chunk(&question.body).await;
                    if let Chunk::Bytes(bytes, _) = &answer {
                        given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        chunks -= 1;
                    }
                    fetch.sealed.answer(question.reply.unwrap(), &frame::encode(&answer)).await.unwrap();
                }
            })
        }
    }

    /// A state of three nodes.
    pub(crate) fn state() -> Arc<State> {
        let mut state = State::default();
        for n in 0..3 {
            let capacity = Capacity { permits: 1, memory_bytes: 0 };
            let (name, labels, version) = (format!("n{n}"), BTreeMap::new(), String::new());
            let key = members::secret(id(n)).key();
            let facts = NodeFacts { id: id(n), name, labels, version, capacity, edge: false, key };
            let command = format!("00000000-0000-0000-0000-{n:012x}").parse().unwrap();
            state.apply(&Entry { id: command, at_ms: 0, command: Command::Join(facts) });
        }
        Arc::new(state)
    }

    #[tokio::test]
    async fn a_fetch_holds_up_no_other_and_leaves_a_node_that_is_busy() {
        let (bus, folders) = (Bus::Memory(Memory::alone()), [0; 3].map(|_| tempfile::tempdir().unwrap()));
        let taker = Place::start(0, &bus, folders[0].path()).await;
        let first = Place::start(1, &bus, folders[1].path()).await;
        let second = Place::start(2, &bus, folders[2].path()).await;
        // Nobody says anything of the one artifact. Of the other one, the node that is asked first gives nothing for now.
        let codes = (0..).map(|n: u32| n.to_le_bytes());
        let mut codes = codes.filter(|code| taker.fetch.in_turn(Artifacts::digest(code))[0] == id(1));
        let (silent, code) = (Artifacts::digest(b"silent"), codes.next().unwrap());
        let busy = Artifacts::digest(&code);
        let one = first.answers(move |digest| (digest != silent).then_some(Chunk::Busy)).await;
        let gives = move |digest| (digest != silent).then(|| Chunk::Bytes(Bytes::from_owner(code), 4));
        let other = second.answers(gives).await;
        let fetched = async {
            tokio::select! {
                biased;
                _ = taker.fetch.ensure(silent) => panic!("nobody gives it"),
                done = taker.fetch.ensure(busy) => done,
            }
        };
        timeout(CHUNK_WAIT, fetched).await.unwrap().unwrap();
        assert_eq!(taker.fetch.artifacts.get(busy).unwrap(), code);
        one.abort();
        other.abort();
    }

    #[tokio::test]
    async fn a_fetch_goes_on_where_it_was_when_its_source_or_the_node_itself_ended() {
        let (bus, folders) = (Bus::Memory(Memory::alone()), [0; 3].map(|_| tempfile::tempdir().unwrap()));
        let taker = Place::start(0, &bus, folders[0].path()).await;
        let first = Place::start(1, &bus, folders[1].path()).await;
        let second = Place::start(2, &bus, folders[2].path()).await;
        let whole: Vec<u8> = (0..10 * CHUNK_BYTES_MAX as u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
        let digest = first.fetch.artifacts.put(&whole, None).unwrap();
        second.fetch.artifacts.put(&whole, None).unwrap();

        // The first source ends after three chunks, and nobody else is there.
        let given = Arc::new(AtomicU64::new(0));
        let source = first.gives(3, given.clone()).await;
        assert!(matches!(taker.fetch.ensure(digest).await, Err(FetchError::Nobody(..))));
        source.await.unwrap();
        assert!(!taker.fetch.artifacts.has(digest), "a part counts for nothing");

        // The node starts again, and another one has it.
        taker.end();
        let taker = Place::start(0, &bus, folders[0].path()).await;
        let source = second.gives(u64::MAX, given.clone()).await;
        taker.fetch.ensure(digest).await.unwrap();
        assert_eq!(taker.fetch.artifacts.get(digest).unwrap(), whole);
        assert_eq!(given.load(Ordering::Relaxed), whole.len() as u64, "nothing is fetched twice");

        // One that was damaged on the disk is found out when it is read, and fetched anew.
        std::fs::write(folders[0].path().join("artifacts").join(digest.hex()), b"").unwrap();
        assert!(taker.fetch.artifacts.get(digest).is_err());
        taker.fetch.ensure(digest).await.unwrap();
        assert_eq!(taker.fetch.artifacts.get(digest).unwrap(), whole);
        source.abort();

        // A part that is wrong is found out by the digest, and fetched anew.
        let other = first.fetch.artifacts.put(&whole[1..], None).unwrap();
        taker.fetch.artifacts.add(other, 0, b"not what it is", false).unwrap();
        let source = first.gives(u64::MAX, given).await;
        assert!(taker.fetch.ensure(other).await.is_err());
        taker.fetch.ensure(other).await.unwrap();
        assert_eq!(taker.fetch.artifacts.get(other).unwrap(), whole[1..]);
        source.abort();
    }
}
