//! A node: the parts of the daemon, put together. It is started, it runs until it is told to stop, it drains.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_bus::{Bus, Memory, Sealed};
use trellis_manifest::Parsed;
use trellis_placement::{Care, GivenTimings, Life, NodeFacts, Patience};
use trellis_raft::{Raft, RaftError};
use trellis_sandbox::{Engine, EngineError};
use trellis_trust::Seal;
use trellis_wire::{LatticeName, NodeId, NodeKey, Secret};

use crate::api::{self, Door, Front, TlsFiles, TlsListener, Tokens};
use crate::artifacts::Artifacts;
use crate::board::Board;
use crate::caps::Caps;
use crate::dispatch::Dispatch;
use crate::events::Events;
use crate::far::line::Lines;
use crate::far::places::Places;
use crate::far::send::Elsewhere;
use crate::far::serve::Service;
use crate::fetch::Fetch;
use crate::identity::{Identity, IdentityError};
use crate::leases::Leases;
use crate::liveness::{Liveness, Pages, Pulse};
use crate::logs::Logs;
use crate::manifest;
use crate::membership::{self, MembershipError};
use crate::planner;
use crate::providers::Providers;
use crate::reconcile::Reconcile;
use crate::risen::Parting;
use crate::rollouts::Rollouts;
use crate::secrets::{SecretSources, Secrets};
use crate::shares::Shares;
use crate::status;
use crate::telemetry::Traces;
use crate::triggers::Triggers;

/// How long events under way may take to end after a shutdown was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(30);
/// How long the messages of those that take longer may take to be given back.
const GIVE_BACK_MAX: Duration = Duration::from_secs(5);
/// How long others may take to be ready for what a node that leaves holds, and how often that is looked at. A holder that
/// is placed nowhere else is waited for in vain for as long.
pub(crate) const HANDOVER_MAX: Duration = Duration::from_secs(10);
const HANDOVER_LOOK: Duration = Duration::from_millis(100);
/// How long the node's own work may take to end after that.
const REST_MAX: Duration = Duration::from_secs(5);
/// How long the log's file and the last traces may take to be written after that.
const WRITTEN_MAX: Duration = Duration::from_secs(10);
/// How long a node takes at most from when it is asked to end until it has. Whoever asks should wait a little longer.
pub const STOP_MAX: Duration = HANDOVER_MAX
    .saturating_add(DRAIN_MAX)
    .saturating_add(GIVE_BACK_MAX)
    .saturating_add(REST_MAX)
    .saturating_add(WRITTEN_MAX);
/// How long a failed log may take to say why, after a part of the node ended because of it.
const REASON_MAX: Duration = Duration::from_secs(1);
/// How often a node looks whether a later start of its own was met.
const SUPERSEDED_LOOK: Duration = Duration::from_millis(200);
/// Threads for Raft and heartbeats alone, so that busy guests delay neither.
const CONTROL_THREADS: usize = 2;

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept. Made if it is missing.
    pub data_dir: PathBuf,
    /// Where the admin API listens. Beyond loopback only with tokens and TLS.
    pub admin: SocketAddr,
    /// The bearer tokens of the admin API.
    pub admin_tokens: Tokens,
    /// The certificate of the admin API, which then speaks TLS.
    pub admin_tls: Option<TlsFiles>,
    /// Whether it may listen beyond loopback without TLS: something else protects the way to it.
    pub admin_insecure: bool,
    /// The lattice's name.
    pub lattice: LatticeName,
    /// The lattice's NATS. `None`: this node alone.
    pub nats: Option<trellis_bus::Options>,
    /// Start the lattice. Ignored where the data directory belongs to one already.
    pub bootstrap: bool,
    /// The lattice's join token: what it is founded with, or what this node joins with.
    pub join_token: Option<Secret>,
    /// Whose nodes are let in without it, where the lattice is founded.
    pub allow_nodes: BTreeSet<NodeKey>,
    /// Replaces the host part of every address that a manifest names for an HTTP listener.
    pub listen_host: Option<IpAddr>,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Sandboxes alive at one time.
    pub sandboxes_max: u32,
    /// Linear memory of all sandboxes together, in bytes.
    pub sandbox_memory_bytes: u64,
    /// Whether WASI 0.3 is on.
    pub wasi_p3: bool,
    /// Registries (`host:port`) that are spoken to over plain HTTP, besides those on loopback.
    pub oci_insecure: Vec<String>,
    /// Only spreads that name an `edge` label come here.
    pub edge: bool,
    /// Further provider images: image -> `trellis://<tech>`.
    pub image_aliases: BTreeMap<String, String>,
    /// The timings that its operator gave it. A lattice is founded with them; in any other the node has the lattice's.
    pub timings: GivenTimings,
    /// How careful a roll-out is.
    pub care: Care,
    /// Where manifests may have secrets read.
    pub secrets: SecretSources,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address of the admin API.
    #[error("the admin API cannot listen on {address}: {source}; choose another with --admin")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin API would be open to others.
    #[error("--admin {0} is reachable from other machines and needs --admin-token")]
    OpenAdmin(SocketAddr),
    /// Tokens would cross the network in clear.
    #[error(
        "--admin {0} is reachable from other machines, and tokens would go there in clear: give --admin-tls-cert and \
         --admin-tls-key, or --admin-insecure if something else protects the way"
    )]
    ClearAdmin(SocketAddr),
    /// The sandboxes.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log and state of the lattice.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The lattice.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The disk, the bus, a provider.
    #[error("{0}")]
    Part(String),
}

/// Why a running node stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log of the lattice cannot be written any more.
    #[error("the node stops: {0}")]
    Storage(String),
    /// Its log is none that it can go on with in its lattice.
    #[error("the node stops: {0}")]
    Log(RaftError),
    /// A later start of this node is on the lattice's bus.
    #[error(
        "the node stops: another process runs with this node's identity (a copy of its data directory?), and started later. One \
         data directory is one node: stop one of the two for good, and start a copy with an empty --data-dir"
    )]
    Superseded,
    /// It is none of its lattice's any more.
    #[error("the node stops: {0}; start it with an empty --data-dir to join as a new node")]
    Parted(Parting),
    /// A part that runs for as long as the node does has ended: a defect of ours.
    #[error("the node stops, because a part of it ended by itself: {0}")]
    Ended(String),
}

/// The parts of a node that the admin API reaches.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) lattice: LatticeName,
    pub(crate) admin_tokens: Tokens,
    pub(crate) nats_url: Option<String>,
    pub(crate) oci_insecure: Vec<String>,
    pub(crate) image_aliases: BTreeMap<String, String>,
    pub(crate) join_token: Option<Secret>,
    /// For Raft, heartbeats and joining.
    pub(crate) control: Sealed,
    /// For events, calls, bodies, artifacts and what people publish.
    pub(crate) data: Sealed,
    pub(crate) lines: Lines,
    pub(crate) raft: Raft,
    pub(crate) shares: Arc<Shares>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) leases: Arc<Leases>,
    /// Links that are removed, and still have events under way.
    removals: TaskTracker,
    pub(crate) events: Arc<Events>,
    pub(crate) fetch: Arc<Fetch>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) artifacts: Artifacts,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) providers: Providers,
    pub(crate) triggers: Triggers,
    pub(crate) board: Arc<Board>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) started: Instant,
    /// Cancelled when the node says goodbye: what it holds goes to others while it still serves.
    pub(crate) leaving: CancellationToken,
    /// Why this node is none of the lattice's any more, once members say so.
    pub(crate) parted: watch::Sender<Option<Parting>>,
    pub(crate) shutdown: CancellationToken,
    /// Cancelled once events under way are done, here and for others.
    pub(crate) ended: CancellationToken,
    /// Events and calls of other nodes that may be under way here.
    pub(crate) places: Places,
}

/// A node that is bound and serves.
pub struct Running {
    node: Arc<Node>,
    admin: SocketAddr,
    /// Whether TLS is spoken there.
    secure: bool,
    tasks: JoinSet<()>,
    control: Control,
    /// The data directory is this process's until here.
    _identity: Identity,
}

/// Starts a node: everything is bound when this returns.
///
/// # Errors
/// What is wrong, where, and what to do.
pub async fn start(options: Options) -> Result<Running, StartError> {
    if !options.admin.ip().is_loopback() {
        if options.admin_tokens.is_empty() {
            return Err(StartError::OpenAdmin(options.admin));
        }
        if options.admin_tls.is_none() && !options.admin_insecure {
            return Err(StartError::ClearAdmin(options.admin));
        }
    }
    let identity = Identity::open(&options.data_dir)?;
    let listener = TcpListener::bind(options.admin).await;
    let listener = listener.map_err(|source| StartError::Admin { address: options.admin, source })?;
    let admin = listener.local_addr().map_err(|source| StartError::Admin { address: options.admin, source })?;
    let door = match &options.admin_tls {
        Some(files) => Door::Tls(TlsListener::new(listener, files).map_err(StartError::Part)?),
        None => Door::Clear(listener),
    };

    let control = Control::start()?;
    let facts = membership::facts(&options, identity.seal.node(), identity.seal.key());
    let (front, mut tasks) = (Front::new(options.admin_tokens.clone()), JoinSet::new());
    tasks.spawn(api::serve(front.clone(), door));
    let node = Arc::new(build(&options, &identity.seal, &facts, (&control, &front)).await?);
    tasks.spawn_on(pulse(&node).run(node.leaving.clone(), node.shutdown.clone()), control.handle());
    tasks.spawn_on(membership::serve(node.clone(), facts, options.timings), control.handle());
    tasks.spawn(service(&node).run(node.ended.clone()));
    tasks.spawn(node.fetch.clone().serve(node.shutdown.clone()));
    tasks.spawn(node.fetch.clone().keep_spares(node.shutdown.clone()));
    tasks.spawn_on(rollouts(&node, options.care).run(node.shutdown.clone()), control.handle());
    tasks.spawn(node.events.clone().run(node.raft.clone(), node.shutdown.clone()));
    let own = options.timings.over(Patience::default());
    tasks.spawn(planner::run(node.raft.clone(), own, node.shutdown.clone()));
    tasks.spawn(reconcile(&node, &options, &control).run(node.shutdown.clone()));
    tasks.spawn(caps(&node).run(node.shutdown.clone()));
    front.is_up(&node);
    Ok(Running { node, admin, secure: options.admin_tls.is_some(), tasks, control, _identity: identity })
}

/// The threads of Raft and heartbeats, where claims are extended too, over connections that live there. What runs on them ends
/// with the value.
struct Control(Option<Runtime>);

impl Control {
    fn start() -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("trellis-control")
            .enable_all()
            .build();
        runtime.map(|runtime| Self(Some(runtime))).map_err(|why| StartError::Part(format!("threads: {why}")))
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("it is taken when the value is dropped").handle()
    }

    /// Connects on these threads, or on those of the caller.
    async fn connect(&self, nats: &trellis_bus::Options, here: bool) -> Result<Bus, StartError> {
        let failed = |why: String| StartError::Part(format!("--nats: {why}"));
        let (handle, options) = (self.handle().clone(), nats.clone());
        let handle = if here { handle } else { tokio::runtime::Handle::current() };
        let connecting = handle.spawn(async move { trellis_bus::Nats::connect(&options).await });
        let connected = connecting.await.map_err(|why| failed(why.to_string()))?;
        connected.map(Bus::Nats).map_err(|why| failed(why.to_string()))
    }
}

impl Drop for Control {
    /// A runtime must not be dropped where others wait for it.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// One connection for the control plane and one for the data plane; alone, one bus within the process is both.
async fn buses(options: &Options, seal: &Arc<Seal>, control: &Control) -> Result<(Sealed, Sealed), StartError> {
    let sealed = |bus| Sealed::new(bus, options.lattice.clone(), seal.clone());
    let Some(nats) = &options.nats else {
        let alone = sealed(Bus::Memory(Memory::alone()));
        return Ok((alone.clone(), alone));
    };
    let data = trellis_bus::Options { name: format!("{} data", nats.name), ..nats.clone() };
    Ok((sealed(control.connect(nats, true).await?), sealed(control.connect(&data, false).await?)))
}

/// What the parts of a node are made of.
struct Ground {
    engine: Arc<Engine>,
    artifacts: Artifacts,
    control: Sealed,
    data: Sealed,
    raft: Raft,
    providers: Providers,
    shutdown: CancellationToken,
}

/// Opens what the node keeps, brings it into its lattice, and puts its parts together.
async fn build(
    options: &Options,
    seal: &Arc<Seal>,
    facts: &NodeFacts,
    (threads, front): (&Control, &Front),
) -> Result<Node, StartError> {
    let engine = Engine::new(trellis_sandbox::Options {
        cache_dir: options.data_dir.join("compiled"),
        sandboxes_max: options.sandboxes_max,
        memory_bytes_max: options.sandbox_memory_bytes,
        wasi_p3: options.wasi_p3,
    })?;
    let artifacts = Artifacts::open(&options.data_dir);
    let artifacts = artifacts.map_err(|why| StartError::Part(format!("artifacts: {why}")))?;
    let (control, data) = buses(options, seal, threads).await?;
    let raft = membership::enter(options, facts, &control, (threads.handle(), front)).await?;
    let lattice = membership::lattice_id(options, &raft)?;
    let lattice = lattice.ok_or_else(|| StartError::Part("the lattice: its id is not known".into()))?;
    let providers = Providers::open(options, facts.id, lattice, threads.handle());
    let providers = providers.await.map_err(StartError::Part)?;
    let shutdown = front.shutdown.clone();
    Ok(assemble(options, facts.id, Ground { engine, artifacts, control, data, raft, providers, shutdown }))
}

fn assemble(options: &Options, id: NodeId, ground: Ground) -> Node {
    let Ground { engine, artifacts, control, data, raft, providers, shutdown } = ground;
    let patience = options.timings.over(Patience::default());
    let (shares, liveness) = (Arc::new(Shares::new(raft.state())), Arc::new(Liveness::new(id, patience)));
    let (lines, logs) = (Lines::new(data.clone(), liveness.clone()), Arc::new(Logs::new()));
    let elsewhere = Elsewhere::new(data.clone(), shares.clone(), liveness.clone(), lines.clone());
    let dispatch = Dispatch::new(
        engine.clone(),
        artifacts.clone(),
        options.sandboxes_max,
        logs.clone(),
        Traces::from_environment(id),
        id.to_string(),
        Arc::new(elsewhere),
    );
    Node {
        id,
        lattice: options.lattice.clone(),
        admin_tokens: options.admin_tokens.clone(),
        nats_url: options.nats.as_ref().map(|nats| nats.urls.join(",")),
        oci_insecure: options.oci_insecure.clone(),
        image_aliases: options.image_aliases.clone(),
        join_token: options.join_token.clone(),
        leases: Arc::new(Leases::new(id, patience.lease, raft.clone())),
        removals: TaskTracker::new(),
        events: Arc::new(Events::new(id)),
        fetch: fetch(&data, &artifacts, &shares, &liveness),
        triggers: triggers(id, &providers, &shares, &liveness, &dispatch),
        board: Arc::default(),
        started: Instant::now(),
        leaving: CancellationToken::new(),
        parted: watch::Sender::new(None),
        shutdown,
        ended: CancellationToken::new(),
        places: Places::default(),
        control,
        data,
        lines,
        raft,
        shares,
        liveness,
        engine,
        artifacts,
        dispatch,
        providers,
        logs,
    }
}

fn fetch(data: &Sealed, artifacts: &Artifacts, shares: &Arc<Shares>, liveness: &Arc<Liveness>) -> Arc<Fetch> {
    Arc::new(Fetch {
        sealed: data.clone(),
        artifacts: artifacts.clone(),
        shares: shares.clone(),
        liveness: liveness.clone(),
        turns: Default::default(),
        kept: Default::default(),
    })
}

fn triggers(
    me: NodeId,
    providers: &Providers,
    shares: &Arc<Shares>,
    liveness: &Arc<Liveness>,
    dispatch: &Arc<Dispatch>,
) -> Triggers {
    Triggers {
        me,
        providers: providers.clone(),
        shares: shares.clone(),
        liveness: liveness.clone(),
        dispatch: dispatch.clone(),
    }
}

/// Waits until Raft cannot go on.
async fn failed(mut watch: watch::Receiver<Option<RaftError>>) -> RunError {
    match watch.wait_for(Option::is_some).await.map(|why| why.clone()) {
        Ok(Some(why)) if why.is_parted() => RunError::Log(why),
        Ok(why) => RunError::Storage(why.map(|why| why.to_string()).unwrap_or_default()),
        Err(_) => RunError::Storage("Raft ended".into()),
    }
}

/// Waits until another process is met that is this node, and started later.
async fn superseded(seal: &Seal) {
    while !seal.is_superseded() {
        tokio::time::sleep(SUPERSEDED_LOOK).await;
    }
}

/// Waits until the node is none of its lattice's any more.
async fn parting(mut watch: watch::Receiver<Option<Parting>>) -> Parting {
    let parting = watch.wait_for(Option::is_some).await.ok().and_then(|parting| *parting);
    match parting {
        Some(parting) => parting,
        None => std::future::pending().await,
    }
}

fn reconcile(node: &Node, options: &Options, threads: &Control) -> Reconcile {
    let name = format!("{} ({})", membership::hostname(), node.id);
    Reconcile {
        node: node.id,
        raft: node.raft.clone(),
        dispatch: node.dispatch.clone(),
        providers: node.providers.clone(),
        artifacts: node.artifacts.clone(),
        engine: node.engine.clone(),
        board: node.board.clone(),
        leases: node.leases.clone(),
        fetch: node.fetch.clone(),
        shares: node.shares.clone(),
        liveness: node.liveness.clone(),
        leaving: Default::default(),
        removals: node.removals.clone(),
        secrets: Secrets::new(options.secrets.clone(), name),
        threads: threads.handle().clone(),
    }
}

fn caps(node: &Node) -> Caps {
    Caps { me: node.id, shares: node.shares.clone(), liveness: node.liveness.clone(), dispatch: node.dispatch.clone() }
}

fn pulse(node: &Node) -> Pulse {
    Pulse {
        sealed: node.control.clone(),
        raft: node.raft.clone(),
        liveness: node.liveness.clone(),
        dispatch: node.dispatch.clone(),
        board: node.board.clone(),
        providers: node.providers.clone(),
        leases: node.leases.clone(),
        events: node.events.clone(),
        pages: Mutex::new(Arc::new(Pages::of(&node.board))),
    }
}

fn rollouts(node: &Node, care: Care) -> Rollouts {
    let (raft, shares, liveness) = (node.raft.clone(), node.shares.clone(), node.liveness.clone());
    Rollouts { raft, shares, liveness, fetch: node.fetch.clone(), care }
}

fn service(node: &Node) -> Service {
    Service {
        sealed: node.data.clone(),
        shares: node.shares.clone(),
        dispatch: node.dispatch.clone(),
        providers: node.providers.clone(),
        board: node.board.clone(),
        triggers: node.triggers.clone(),
        reserved: Default::default(),
        lines: node.lines.clone(),
        places: node.places.clone(),
        shutdown: node.shutdown.clone(),
    }
}

impl Node {
    /// Parses a manifest with this node's image aliases.
    pub(crate) fn parse_manifest(&self, yaml: &str, origin: &str) -> Parsed {
        manifest::parse(yaml, origin, self.image_aliases.clone())
    }
}

impl Running {
    /// Where the admin API listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("http{}://{}", if self.secure { "s" } else { "" }, self.admin)
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.node.id
    }

    /// The node's public key.
    pub fn key(&self) -> NodeKey {
        self.node.control.seal().key()
    }

    /// Whether every node that reaches the lattice's bus can join it.
    pub fn is_open(&self) -> bool {
        self.node.raft.state().borrow().trust().is_some_and(|trust| trust.open)
    }

    /// Who can join the lattice, in words.
    pub fn trust(&self) -> String {
        status::trust(&self.node)
    }

    /// Says goodbye, and goes on serving until what this node holds is ready on others, where there are any.
    async fn hand_over(&self) {
        let node = &self.node;
        let others = node.raft.state().borrow().nodes().keys().copied().collect::<Vec<_>>();
        let is_there = |other: &NodeId| *other != node.id && node.liveness.life(*other) == Life::Alive;
        if self.holds_nothing() || !others.iter().any(is_there) {
            return;
        }
        tracing::info!("leaving: what this node holds goes to others first");
        node.leaving.cancel();
        let handed = async {
            while !self.holds_nothing() {
                tokio::time::sleep(HANDOVER_LOOK).await;
            }
        };
        if tokio::time::timeout(HANDOVER_MAX, handed).await.is_err() {
            tracing::warn!("others were not ready within {HANDOVER_MAX:?} for all that this node holds");
        }
    }

    /// Whether nothing is to run here, nor does still: no component, and no provider with a scaler.
    fn holds_nothing(&self) -> bool {
        let state = self.node.raft.state().borrow().clone();
        let is_placed = state.plan().holdings().values().any(|holding| holding.contains_key(&self.node.id));
        self.node.dispatch.holdings().is_empty() && !is_placed && state.owes(self.node.id).is_none()
    }

    /// Waits until events under way have ended. Those that take too long are aborted, and their messages given back.
    async fn drain(&self) {
        let node = &self.node;
        node.removals.close();
        let mut drained =
            pin!(async { tokio::join!(node.providers.drain(), node.places.emptied(), node.removals.wait()) });
        if tokio::time::timeout(DRAIN_MAX, &mut drained).await.is_ok() {
            return;
        }
        tracing::warn!("events were still under way after {DRAIN_MAX:?} and are aborted");
        node.dispatch.abort();
        if tokio::time::timeout(GIVE_BACK_MAX, drained).await.is_err() {
            tracing::warn!(
                "some of them had not ended {GIVE_BACK_MAX:?} later: their messages may count an attempt more"
            );
        }
    }

    /// Runs until `shutdown` or until the node can no longer go on, then drains: what it holds is handed over, then no new
    /// events, those under way end, at most 30 s, and what takes longer is given back.
    ///
    /// # Errors
    /// Why the node could not go on.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let mut ended = tokio::select! {
            () = shutdown => Ok(()),
            why = failed(self.node.raft.failed()) => Err(why),
            () = superseded(self.node.control.seal()) => Err(RunError::Superseded),
            parting = parting(self.node.parted.subscribe()) => Err(RunError::Parted(parting)),
            why = self.tasks.join_next() => Err(RunError::Ended(format!("{why:?}"))),
        };
        // A part may end because of the log before that has said why it failed.
        if matches!(ended, Err(RunError::Ended(_)))
            && let Ok(why) = tokio::time::timeout(REASON_MAX, failed(self.node.raft.failed())).await
        {
            ended = Err(why);
        }
        // Nobody takes anything from a node that is no member.
        if !matches!(ended, Err(RunError::Parted(_) | RunError::Log(_) | RunError::Superseded)) {
            self.hand_over().await;
        }
        tracing::info!("shutting down: no new events, those under way end within {DRAIN_MAX:?}");
        // First the node's own work, so that nothing is held or linked anew; then the providers.
        self.node.shutdown.cancel();
        self.drain().await;
        self.node.ended.cancel();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(REST_MAX, rest).await.is_err() {
            tracing::warn!("some of the node's own work did not end within {REST_MAX:?}");
        }
        let written = async {
            self.node.raft.shutdown().await;
            self.node.dispatch.traces().end().await;
        };
        if tokio::time::timeout(WRITTEN_MAX, written).await.is_err() {
            tracing::warn!("the log's file and the last traces were not written within {WRITTEN_MAX:?}");
        }
        drop(self.control);
        ended
    }
}
