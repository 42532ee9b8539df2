//! A node's Raft from opening to shutdown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openraft::error::{ClientWriteError, Fatal, InitializeError, RaftError as PeerError};
use openraft::{ChangeMembers, Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use trellis_bus::Sealed;
use trellis_placement::{Command, Entry, LogPoint, State};
use trellis_wire::{CommandId, LatticeId, LatticeName, NodeId};

use crate::chance::wall_clock_ms;
use crate::doubt::{Doubt, step_down};
use crate::follow::Follow;
use crate::held::Held;
use crate::log::Log;
use crate::machine::Machine;
use crate::network::{Network, StateBook};
use crate::progress::{Metrics, Progress};
use crate::serve::Server;
use crate::silence::Silences;
use crate::store::{Closed, Store};
use crate::types::{LogId, Member, Types, node, number, point};
use crate::{BATCH_BYTES_MAX, CHUNK_BYTES_MAX, PROPOSALS_WAITING_MAX, ProposeError, RaftError};

/// What a bus must carry at least: the longest request, and twice that to be sure of its head.
const BUS_BYTES_MIN: usize = 2 * if BATCH_BYTES_MAX > CHUNK_BYTES_MAX { BATCH_BYTES_MAX } else { CHUNK_BYTES_MAX };
/// How many entries go into one request at most.
const BATCH_ENTRIES_MAX: u64 = 64;
/// How many entries a learner may lack and still count as up to date.
const LAG_ENTRIES_MAX: u64 = 5000;
/// How long shutdown waits for the file to be closed.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What a node's Raft needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where `raft.redb` is, or will be made.
    pub data_dir: PathBuf,
    /// The host's name, which the membership shows.
    pub host: String,
    /// The lattice's id, where the node was told one: by the answer to its join. Another lattice's messages are then
    /// refused from the first on.
    pub lattice_id: Option<LatticeId>,
    /// What carries Raft's messages, sealed.
    pub sealed: Sealed,
    /// How long and how often.
    pub timing: Timing,
}

/// How long things take. The default suits nodes in several clouds; tests are faster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How often the leader is heard.
    pub heartbeat: Duration,
    /// How long the leader may be silent before a voter stands for election, at least.
    pub election_min: Duration,
    /// The same, at most. Each voter draws a time in between, so that two rarely stand at once.
    pub election_max: Duration,
    /// How long one chunk of a snapshot may take, and the installation with the last one.
    pub snapshot_chunk: Duration,
    /// How many entries lie between two snapshots.
    pub snapshot_entries: u64,
    /// How many entries are kept that the snapshot has too, so that a member that was away briefly needs no snapshot.
    pub kept_entries: u64,
    /// How long a command may take, elections included.
    pub propose_wait: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_millis(1500),
            election_max: Duration::from_millis(3000),
            snapshot_chunk: Duration::from_secs(10),
            snapshot_entries: 2000,
            kept_entries: 500,
            propose_wait: Duration::from_secs(10),
        }
    }
}

impl Timing {
    fn config(&self, lattice: &LatticeName) -> Result<Config, RaftError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: lattice.to_string(),
            heartbeat_interval: millis(self.heartbeat).max(1),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            install_snapshot_timeout: millis(self.snapshot_chunk).max(1),
            max_payload_entries: BATCH_ENTRIES_MAX,
            replication_lag_threshold: LAG_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries.max(1)),
            snapshot_max_chunk_size: CHUNK_BYTES_MAX as u64,
            max_in_snapshot_log_to_keep: self.kept_entries,
            // Only once it is known whether the log is what it was.
            enable_elect: false,
            ..Config::default()
        };
        config.validate().map_err(|why| RaftError::Timing(why.to_string()))
    }
}

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The term; it only grows.
    pub term: u64,
    /// Whether this node leads.
    pub me: bool,
}

/// Who belongs to the log. All other nodes follow from outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those whose votes and disks count.
    pub voters: BTreeMap<NodeId, Member>,
    /// Those who only listen.
    pub learners: BTreeMap<NodeId, Member>,
}

impl Members {
    /// Whether a node belongs to the log.
    pub fn has(&self, node: NodeId) -> bool {
        self.voters.contains_key(&node) || self.learners.contains_key(&node)
    }
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes it.
    #[error("this node does not lead; {}", .0.map_or("nobody is known to".into(), |leader| format!("node {leader} does")))]
    NotLeader(Option<NodeId>),
    /// Another change is under way, or the change makes no sense.
    #[error("{0}")]
    Refused(String),
    /// It was not committed in time, and may yet be.
    #[error("the change was not committed within {0:?}; it may or may not take effect")]
    Unanswered(Duration),
    /// This node's Raft has stopped.
    #[error("Raft has stopped on this node: {0}")]
    Stopped(String),
}

/// A node's Raft. Clones share it. It stops with [`Raft::shutdown`], or when the last clone is dropped.
///
/// It runs on the runtime on which [`open`] was called: give it one that busy guests cannot starve.
#[derive(Clone)]
pub struct Raft(Arc<Inner>);

struct Inner {
    options: Options,
    raft: openraft::Raft<Types>,
    network: Network,
    progress: Progress,
    missed: watch::Sender<Option<NodeId>>,
    told: Arc<AtomicU32>,
    leadership: watch::Receiver<Leadership>,
    acknowledged: watch::Receiver<Option<Instant>>,
    failed: watch::Receiver<Option<RaftError>>,
    proposals: Semaphore,
    tasks: TaskTracker,
    closed: Mutex<Option<Closed>>,
    stop: CancellationToken,
    _stops: DropGuard,
}

/// Opens the data directory, takes up the state where it was, and begins to answer peers.
///
/// A node that belongs to no lattice yet waits: for [`Raft::bootstrap`], or for a leader that adds it.
///
/// # Errors
/// The data directory is in use, damaged, or another node's or lattice's; the timing or the bus does not fit.
pub async fn open(options: Options) -> Result<Raft, RaftError> {
    let (store, closed) =
        Store::open(options.data_dir.clone(), options.sealed.node(), options.sealed.lattice().clone()).await?;
    run(options, store, closed).await
}

/// Runs Raft on an open file. When it cannot, the file is closed again.
pub(crate) async fn run(options: Options, store: Store, closed: Closed) -> Result<Raft, RaftError> {
    match begin(options, store).await {
        Ok(raft) => {
            *raft.0.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(closed);
            Ok(raft)
        }
        Err(why) => {
            close(closed).await;
            Err(why)
        }
    }
}

async fn begin(options: Options, store: Store) -> Result<Raft, RaftError> {
    let config = options.timing.config(options.sealed.lattice())?;
    let carried = options.sealed.bus().payload_bytes_max();
    if carried < BUS_BYTES_MIN {
        let why = format!("it takes messages of at most {carried} bytes; set `max_payload` to {BUS_BYTES_MIN} or more");
        return Err(RaftError::Bus(why));
    }
    let (mut machine, state) = Machine::restore(store.clone()).await?;
    let expected = options.lattice_id;
    let told = Arc::new(AtomicU32::new(0));
    options.sealed.seal().read(Arc::new(StateBook { expected, state: state.clone(), told: told.clone() }));
    let network = Network {
        sealed: options.sealed.clone(),
        expected,
        held: Held::new(state.clone()),
        state,
        pause: options.timing.heartbeat,
        silences: Silences::default(),
    };
    let (me, mut log) = (number(options.sealed.node()), Log::new(store.clone()));
    step_down(&mut log, &mut machine, me).await.map_err(|why| fatal(&store, &why.into()))?;
    let raft = openraft::Raft::new(me, Arc::new(config), network.clone(), log, machine)
        .await
        .map_err(|why| fatal(&store, &why))?;
    let started = start(options, raft.clone(), network, store, told).await;
    if started.is_err() {
        stop(&raft).await;
    }
    started
}

/// Checks that the state is this lattice's before anyone can reach the node, then lets them.
async fn start(
    options: Options,
    raft: openraft::Raft<Types>,
    network: Network,
    store: Store,
    told: Arc<AtomicU32>,
) -> Result<Raft, RaftError> {
    let state = network.state.borrow().clone();
    if let (Some(found), Some(wanted)) = (state.lattice_id(), options.lattice_id)
        && found != wanted
    {
        return Err(RaftError::OtherLatticeId { path: store.path().into(), found, wanted });
    }
    if let Some(name) = state.lattice_name()
        && name != options.sealed.lattice()
    {
        let (found, wanted) = (name.clone(), options.sealed.lattice().clone());
        return Err(RaftError::OtherLattice { path: store.path().into(), found, wanted });
    }
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let progress = Progress::new(raft.metrics());
    let (told_failed, failed) = watch::channel(None);
    let doubt = Doubt::begin(raft.clone(), network.clone(), store.clone(), told_failed.clone()).await;
    let follow = Follow {
        raft: raft.clone(),
        progress: progress.clone(),
        network: network.clone(),
        store: store.clone(),
        doubt: doubt.clone(),
        shelf: Arc::default(),
        missed: watch::Sender::new(None),
    };
    Server::listen(follow.clone(), &tasks, &stop).await.map_err(|why| RaftError::Bus(why.to_string()))?;
    let (told_leadership, leadership) = watch::channel(Leadership::default());
    let (told_acknowledged, acknowledged) = watch::channel(None);
    let watcher = Watcher {
        leadership: told_leadership,
        acknowledged: told_acknowledged,
        failed: told_failed,
        progress: progress.clone(),
        store,
    };
    tasks.spawn(watcher.run(raft.metrics()));
    tasks.spawn(doubt.settle(stop.clone()));
    tasks.spawn(follow.clone().tell(stop.clone()));
    tasks.spawn(follow.clone().listen(stop.clone()));
    tasks.close();
    Ok(Raft(Arc::new(Inner {
        options,
        raft,
        network,
        progress,
        missed: follow.missed,
        told,
        leadership,
        acknowledged,
        failed,
        proposals: Semaphore::new(PROPOSALS_WAITING_MAX),
        tasks,
        closed: Mutex::default(),
        stop: stop.clone(),
        _stops: stop.drop_guard(),
    })))
}

impl Raft {
    /// Whether this node's log was ever begun: by [`Raft::bootstrap`], or by a leader.
    ///
    /// # Errors
    /// Raft has stopped.
    pub async fn is_initialized(&self) -> Result<bool, RaftError> {
        self.0.raft.is_initialized().await.map_err(|why| self.stopped(&why))
    }

    /// Founds a lattice with this node as its only voter, and says what it is called from then on. Where the data
    /// directory has a lattice already, nothing happens and the answer is that lattice's id, so that a service's
    /// command line can keep `--bootstrap`.
    ///
    /// # Errors
    /// The founding command was not committed; calling this again goes on where it ended.
    pub async fn bootstrap(&self, id: LatticeId) -> Result<LatticeId, ProposeError> {
        if let Some(found) = self.state().borrow().lattice_id() {
            return Ok(found);
        }
        let me = Member { host: self.0.options.host.clone() };
        let members = BTreeMap::from([(number(self.node()), me)]);
        match self.0.raft.initialize(members).await {
            Ok(()) | Err(PeerError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(why) => return Err(ProposeError::Stopped(why.to_string())),
        }
        // A founder that was stopped in between has the command in its log and not yet in its state.
        self.read_barrier().await?;
        if let Some(found) = self.state().borrow().lattice_id() {
            return Ok(found);
        }
        let name = self.0.options.sealed.lattice().clone();
        let entry = Entry {
            // One lattice is founded once, however often its founder starts again.
            id: CommandId::new(id.uuid()),
            at_ms: wall_clock_ms(),
            command: Command::Found { lattice: id, name },
        };
        self.propose(entry).await?;
        self.read_barrier().await?;
        Ok(self.state().borrow().lattice_id().unwrap_or(id))
    }

    /// The state after the last entry that this node applied, now and from now on.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.0.network.state.clone()
    }

    /// Who leads, now and from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// When a quorum last acknowledged this node as leader, or a little earlier. `None` where it does not lead. Read before
    /// [`Raft::leadership`], it is never of a later term than that.
    pub fn acknowledged(&self) -> Option<Instant> {
        *self.0.acknowledged.borrow()
    }

    /// Becomes `Some` when Raft stops for good because of a fault: the disk failed, or a fault of its own. The node can
    /// only say so and end; what it acknowledged is safe, unless [`RaftError::is_parted`].
    pub fn failed(&self) -> watch::Receiver<Option<RaftError>> {
        self.0.failed.clone()
    }

    /// Who belongs to the log, as far as this node knows.
    pub fn members(&self) -> Members {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u128> = membership.voter_ids().collect();
        let mut members = Members::default();
        for (id, member) in membership.nodes() {
            let kind = if voters.contains(id) { &mut members.voters } else { &mut members.learners };
            kind.insert(node(*id), member.clone());
        }
        members
    }

    /// How many entries each other member lacks, where this node leads. `None` for one that has not answered yet.
    pub fn lag(&self) -> BTreeMap<NodeId, Option<u64>> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow();
        let last = metrics.last_log_index.unwrap_or_default();
        let replication = metrics.replication.iter().flatten();
        replication.map(|(id, upto)| (node(*id), upto.map(|upto| last.saturating_sub(upto.index)))).collect()
    }

    /// Asks a member for the log that this node lacks. One that the leader adds to the log needs no such asking; one that
    /// follows from outside begins with it.
    pub fn follow(&self, member: NodeId) {
        self.0.missed.send_replace(Some(member));
    }

    /// From now on this node takes words of this incarnation of its lattice, and of no earlier one: a member told it of it. Its
    /// state says so itself once it has the log.
    pub fn rise(&self, incarnation: u32) {
        self.0.told.fetch_max(incarnation, Ordering::Relaxed);
    }

    /// Up to where this node has applied the log.
    pub fn applied_point(&self) -> Option<LogPoint> {
        self.last_applied().map(|last| point(&last))
    }

    /// The index of the last entry that this node applied.
    pub fn applied(&self) -> u64 {
        self.last_applied().map_or(0, |last| last.index)
    }

    /// The last entry that this node applied, with the leader that it is of.
    pub(crate) fn last_applied(&self) -> Option<LogId> {
        self.0.raft.metrics().borrow().last_applied
    }

    /// Another node says that it has applied the log up to this index. It is told so if it comes back with less.
    pub fn heard(&self, other: NodeId, applied: u64) {
        self.0.network.held.heard(number(other), applied);
    }

    /// Adds a node that only listens. Returns before it has caught up; [`Raft::lag`] tells.
    ///
    /// # Errors
    /// This node does not lead, or another change is under way.
    pub async fn add_learner(&self, id: NodeId, member: Member) -> Result<(), MembershipError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(number(id), member)]))).await
    }

    /// Makes these the voters. Each must be a member already; who votes no more goes on listening.
    ///
    /// # Errors
    /// As for [`Raft::add_learner`].
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters.into_iter().map(number).collect())).await
    }

    /// Removes nodes that do not vote.
    ///
    /// # Errors
    /// As for [`Raft::add_learner`].
    pub async fn remove_learners(&self, learners: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        self.change(ChangeMembers::RemoveNodes(learners.into_iter().map(number).collect())).await
    }

    async fn change(&self, change: ChangeMembers<u128, Member>) -> Result<(), MembershipError> {
        let wait = self.timing().propose_wait;
        match tokio::time::timeout(wait, self.0.raft.change_membership(change, true)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(PeerError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(MembershipError::NotLeader(to.leader_id.map(node)))
            }
            Ok(Err(PeerError::APIError(ClientWriteError::ChangeMembershipError(why)))) => {
                Err(MembershipError::Refused(why.to_string()))
            }
            Ok(Err(PeerError::Fatal(why))) => Err(MembershipError::Stopped(why.to_string())),
            Err(_) => Err(MembershipError::Unanswered(wait)),
        }
    }

    /// Stops, and returns when the file is closed and the data directory free.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        stop(&self.0.raft).await;
        self.0.tasks.wait().await;
        let closed = self.0.closed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(closed) = closed {
            close(closed).await;
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.0.options.sealed.node()
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.0.options.timing
    }

    pub(crate) fn openraft(&self) -> &openraft::Raft<Types> {
        &self.0.raft
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.0.progress
    }

    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    pub(crate) fn proposals(&self) -> &Semaphore {
        &self.0.proposals
    }

    fn stopped(&self, why: &Fatal<u128>) -> RaftError {
        self.0.failed.borrow().clone().unwrap_or_else(|| RaftError::Stopped(why.to_string()))
    }
}

/// Tells from openraft's metrics who leads and whether it still runs.
struct Watcher {
    leadership: watch::Sender<Leadership>,
    acknowledged: watch::Sender<Option<Instant>>,
    failed: watch::Sender<Option<RaftError>>,
    progress: Progress,
    store: Store,
}

impl Watcher {
    /// The one task that waits for openraft's metrics.
    async fn run(self, mut metrics: watch::Receiver<Metrics>) {
        let mut looked = Instant::now();
        loop {
            let before = std::mem::replace(&mut looked, Instant::now());
            let ended = self.look(&metrics.borrow_and_update(), before);
            self.progress.moved();
            let ended = match ended {
                None => metrics.changed().await.is_err().then_some(Fatal::Panicked),
                ended => ended,
            };
            if let Some(why) = ended {
                self.end(&why);
                return self.progress.moved();
            }
        }
    }

    /// Passes on what the metrics tell, and says why openraft has ended if it has. They were made at some time after
    /// `before`, the last look: that the ages in them count from there errs on the safe side, even where this process
    /// was frozen in between.
    fn look(&self, metrics: &Metrics, before: Instant) -> Option<Fatal<u128>> {
        // Leadership first: whoever reads it after the acknowledgement reads none that is older.
        self.lead(Leadership {
            leader: metrics.current_leader.map(node),
            term: metrics.current_term,
            me: metrics.state == ServerState::Leader,
        });
        let acknowledged = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        self.acknowledged.send_replace(acknowledged.and_then(|ago| before.checked_sub(ago)));
        metrics.running_state.clone().err()
    }

    /// Openraft has ended: nobody leads from here, and if it was no shutdown, the node has to know.
    fn end(&self, why: &Fatal<u128>) {
        self.acknowledged.send_replace(None);
        let term = self.leadership.borrow().term;
        self.lead(Leadership { leader: None, term, me: false });
        if !matches!(why, Fatal::Stopped) {
            let why = fatal(&self.store, why);
            tracing::error!(%why, "Raft has stopped");
            self.failed.send_replace(Some(why));
        }
    }

    fn lead(&self, now: Leadership) {
        self.leadership.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

/// What stopped openraft, in our words: the disk's own if it was the disk.
fn fatal(store: &Store, why: &Fatal<u128>) -> RaftError {
    match why {
        Fatal::StorageError(why) => {
            store.failure().unwrap_or_else(|| RaftError::Storage { path: store.path().into(), why: why.to_string() })
        }
        Fatal::Panicked | Fatal::Stopped => RaftError::Stopped(why.to_string()),
    }
}

async fn stop(raft: &openraft::Raft<Types>) {
    if let Err(why) = raft.shutdown().await {
        tracing::warn!(%why, "stopping Raft");
    }
}

/// Waits until the file is closed, so that the data directory is free for whoever comes next.
async fn close(closed: Closed) {
    if tokio::time::timeout(CLOSE_WAIT, closed.wait()).await.is_err() {
        tracing::warn!("the Raft file was not closed within {CLOSE_WAIT:?}; something still uses it");
    }
}
