//! How a node comes into its lattice: it starts one, goes on in the one its data directory belongs to, or asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use trellis_bus::{Bus, Connection, Subscription};
use trellis_placement::{Applied, Capacity, Command, MEMBERS_MAX, NodeFacts};
use trellis_raft::{ProposeError, Raft, RaftError, Timing};
use trellis_wire::{LatticeId, LatticeName, NodeId, frame, subject};

use crate::node::{Node, Options};
use crate::proposal;

/// How long members of a lattice may take to say that they are there.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// The wait between two tries to record this node's facts.
const RETRY: Duration = Duration::from_secs(1);
/// How often a node that waits says for what.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Keeps the id of the lattice that a node was told to belong to, before the log says it.
const LATTICE_ID: &str = "lattice-id";

/// Why a node cannot be in its lattice.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// `--bootstrap`, but there is one.
    #[error(
        "a lattice named {name} answers already (id {id}): join it without --bootstrap, or choose another --lattice"
    )]
    Exists {
        /// Its name.
        name: LatticeName,
        /// Its id.
        id: LatticeId,
    },
    /// More than one lattice of that name answers.
    #[error(
        "two lattices named {name} answer on this NATS (ids {ids}): give one of them another --lattice or another NATS \
         account, then start this node again"
    )]
    Two {
        /// Their name.
        name: LatticeName,
        /// Their ids.
        ids: String,
    },
    /// The data directory was given to another lattice of that name.
    #[error(
        "this data directory was to join lattice {name} with id {ours}, and the lattice that answers has id {theirs}: \
         give the node an empty --data-dir to join this one"
    )]
    Other {
        /// The name of both.
        name: LatticeName,
        /// What the data directory says.
        ours: LatticeId,
        /// What answers.
        theirs: LatticeId,
    },
    /// The lattice will not have it.
    #[error("lattice {0} does not admit this node: {1}")]
    NotAdmitted(LatticeName, String),
    /// The data directory.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The bus.
    #[error("the lattice cannot be asked: {0}")]
    Bus(#[from] trellis_bus::BusError),
    /// The log.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The founding command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// What comes on the join subject. Answers go to the asker's own subject.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// Which lattices of this name are here? Every member answers.
    Who(NodeId),
    /// Let this node in. The leader answers.
    Admit(Box<NodeFacts>, LatticeId),
}

/// What a member answers.
#[derive(Debug, Serialize, Deserialize)]
enum Here {
    /// This lattice is here.
    Lattice(LatticeId),
    /// The node is recorded; the log comes to it by itself.
    Admitted(LatticeId),
    /// It is not.
    Refused(LatticeId, String),
}

/// Opens the log and brings the node into its lattice: starts one, goes on in the one its data directory belongs to, or
/// asks to join and waits until somebody answers.
pub(crate) async fn enter(
    options: &Options,
    facts: &NodeFacts,
    bus: &Bus,
    control: &Handle,
) -> Result<Raft, MembershipError> {
    let told = read_lattice_id(&options.data_dir)?;
    let raft = open(options, facts.id, bus, told, control).await?;
    if raft.is_initialized().await? {
        // A founder that was stopped in between goes on with founding.
        if raft.state().borrow().lattice_id().is_none() && (options.nats.is_none() || options.bootstrap) {
            raft.bootstrap(LatticeId::new(uuid::Uuid::now_v7())).await?;
        }
        return Ok(raft);
    }
    if options.nats.is_some() {
        let lattice = &options.lattice;
        let mut answers = bus.subscribe(&subject::joining(lattice, facts.id), None).await?;
        if !options.bootstrap {
            connected(bus, lattice).await;
            return join(options, facts, bus, control, raft, told, &mut answers).await;
        }
        // Whoever founds a lattice while its NATS is down is told later if there is another one of its name.
        drop(timeout(ANSWER_WAIT, bus.connection().wait_for(Connection::is_connected)).await);
        match who_is_there(bus, lattice, facts.id, &mut answers).await {
            Ok(found) => {
                if let Some(id) = found.first() {
                    return Err(MembershipError::Exists { name: lattice.clone(), id: *id });
                }
            }
            Err(why) => {
                tracing::warn!("whether a lattice {lattice} exists cannot be asked ({why}): it is started here")
            }
        }
    }
    raft.bootstrap(LatticeId::new(uuid::Uuid::now_v7())).await?;
    Ok(raft)
}

/// On the threads that busy guests cannot starve.
async fn open(
    options: &Options,
    node: NodeId,
    bus: &Bus,
    lattice_id: Option<LatticeId>,
    control: &Handle,
) -> Result<Raft, MembershipError> {
    let opening = trellis_raft::open(trellis_raft::Options {
        data_dir: options.data_dir.clone(),
        node,
        host: hostname(),
        lattice: options.lattice.clone(),
        lattice_id,
        bus: bus.clone(),
        timing: Timing::default(),
    });
    let opened = control.spawn(opening).await;
    Ok(opened.map_err(|why| RaftError::Stopped(why.to_string()))??)
}

/// Waits for the lattice's NATS: without it nobody can be asked.
async fn connected(bus: &Bus, lattice: &LatticeName) {
    let mut connection = bus.connection();
    loop {
        if timeout(ANSWER_WAIT, connection.wait_for(Connection::is_connected)).await.is_ok() {
            return;
        }
        let why = match &*connection.borrow() {
            Connection::Connected { .. } => continue,
            Connection::Disconnected { reason } | Connection::Refused(reason) => reason.clone(),
        };
        tracing::warn!("waiting for the NATS of lattice {lattice}: {why}");
        drop(timeout(TELL_EVERY, connection.wait_for(Connection::is_connected)).await);
    }
}

/// Every lattice of this name that answers in time.
async fn who_is_there(
    bus: &Bus,
    lattice: &LatticeName,
    me: NodeId,
    answers: &mut Subscription,
) -> Result<BTreeSet<LatticeId>, MembershipError> {
    bus.publish(&subject::join(lattice), &[], frame::encode(&Question::Who(me)).into()).await?;
    let (deadline, mut found) = (Instant::now() + ANSWER_WAIT, BTreeSet::new());
    while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
        match frame::decode(&answer.payload) {
            Ok(Here::Lattice(id) | Here::Admitted(id) | Here::Refused(id, _)) => drop(found.insert(id)),
            Err(why) => tracing::warn!("something answers for lattice {lattice} that is not understood: {why}"),
        }
    }
    Ok(found)
}

async fn join(
    options: &Options,
    facts: &NodeFacts,
    bus: &Bus,
    control: &Handle,
    raft: Raft,
    told: Option<LatticeId>,
    answers: &mut Subscription,
) -> Result<Raft, MembershipError> {
    let name = &options.lattice;
    let found = find(bus, name, facts.id, answers).await?;
    let raft = match told {
        Some(ours) if ours == found => raft,
        Some(ours) => return Err(MembershipError::Other { name: name.clone(), ours, theirs: found }),
        None => {
            // From here on another lattice's messages are refused from the first on.
            raft.shutdown().await;
            write_lattice_id(&options.data_dir, found)?;
            open(options, facts.id, bus, Some(found), control).await?
        }
    };
    match admitted(name, facts, bus, &raft, found, answers).await {
        Ok(()) => Ok(raft),
        Err(why) => {
            raft.shutdown().await;
            Err(why)
        }
    }
}

/// Asks until exactly one lattice of this name answers.
async fn find(
    bus: &Bus,
    name: &LatticeName,
    me: NodeId,
    answers: &mut Subscription,
) -> Result<LatticeId, MembershipError> {
    let mut told: Option<Instant> = None;
    loop {
        match who_is_there(bus, name, me, answers).await {
            Ok(found) => {
                let mut ids = found.iter();
                match (ids.next(), ids.next()) {
                    (Some(id), None) => return Ok(*id),
                    (Some(_), Some(_)) => {
                        let ids = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                        return Err(MembershipError::Two { name: name.clone(), ids });
                    }
                    (None, _) if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) => {
                        told = Some(Instant::now());
                        tracing::warn!(
                            "waiting for lattice {name}: no member answers yet. Is one started with --bootstrap, on \
                             this NATS and in this account?"
                        );
                    }
                    (None, _) => {}
                }
            }
            Err(why) => {
                tracing::warn!("waiting for lattice {name}: {why}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Asks to be let in until this node's own log says that it is.
async fn admitted(
    name: &LatticeName,
    facts: &NodeFacts,
    bus: &Bus,
    raft: &Raft,
    lattice: LatticeId,
    answers: &mut Subscription,
) -> Result<(), MembershipError> {
    let question = frame::encode(&Question::Admit(Box::new(facts.clone()), lattice));
    let mut states = raft.state();
    tracing::info!("joining lattice {name} (id {lattice})");
    loop {
        if let Err(why) = bus.publish(&subject::join(name), &[], question.clone().into()).await {
            tracing::warn!("joining lattice {name}: {why}");
        }
        let deadline = Instant::now() + 2 * ANSWER_WAIT;
        loop {
            let seen = states.wait_for(|state| state.node(facts.id).is_some());
            tokio::select! {
                Ok(_) = seen => {
                    tracing::info!("joined lattice {name}");
                    return Ok(());
                }
                answer = timeout_at(deadline, answers.next()) => match answer {
                    Ok(Some(answer)) => match frame::decode(&answer.payload) {
                        Ok(Here::Refused(id, why)) if id == lattice => {
                            return Err(MembershipError::NotAdmitted(name.clone(), why));
                        }
                        Ok(Here::Admitted(id)) if id == lattice => tracing::info!("admitted; the log is on its way"),
                        _ => {}
                    },
                    _ => break,
                },
            }
        }
        tracing::warn!("waiting for lattice {name}: its leader has not let this node in yet; asking again");
    }
}

fn read_lattice_id(data_dir: &Path) -> Result<Option<LatticeId>, MembershipError> {
    let path = data_dir.join(LATTICE_ID);
    let damaged = |why: String| MembershipError::Disk { path: path.clone(), source: std::io::Error::other(why) };
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|why: trellis_wire::IdError| damaged(why.to_string())),
        Err(none) if none.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MembershipError::Disk { path, source }),
    }
}

fn write_lattice_id(data_dir: &Path, id: LatticeId) -> Result<(), MembershipError> {
    let (path, part) = (data_dir.join(LATTICE_ID), data_dir.join(format!("{LATTICE_ID}.part")));
    let written = || {
        std::fs::write(&part, id.to_string())?;
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(&part, &path)
    };
    written().map_err(|source| MembershipError::Disk { path: path.clone(), source })
}

/// Records this node's facts in the lattice, and answers those who ask which lattice is here or want to join, until
/// shutdown.
pub(crate) async fn serve(node: Arc<Node>, facts: NodeFacts) {
    tokio::select! {
        () = async { tokio::join!(record(&node, &facts), answer(&node)); } => {}
        () = node.shutdown.cancelled() => {}
    }
}

async fn record(node: &Node, facts: &NodeFacts) {
    let mut states = node.raft.state();
    loop {
        let state = states.borrow_and_update().clone();
        if state.node(node.id).is_some_and(|known| known.facts == *facts) {
            // A node that was forgotten while it was away, or is now, asks again.
            if states.changed().await.is_err() {
                return;
            }
            continue;
        }
        if let Err(why) = node.raft.propose(proposal::entry(Command::Join(facts.clone()))).await {
            tracing::warn!("this node is not recorded in the lattice yet: {why}");
            // Its own log may not reach the leader any more, if the lattice has forgotten it. Then the leader lets it in.
            if let Some(lattice) = state.lattice_id() {
                let question = frame::encode(&Question::Admit(Box::new(facts.clone()), lattice));
                if let Err(why) = node.bus.publish(&subject::join(&node.lattice), &[], question.into()).await {
                    tracing::debug!(%why, "asking to be let in again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn answer(node: &Node) {
    let subject = subject::join(&node.lattice);
    loop {
        match node.bus.subscribe(&subject, None).await {
            Ok(mut questions) => {
                while let Some(question) = questions.next().await {
                    let Some(ours) = node.raft.state().borrow().lattice_id() else { continue };
                    let (to, here) = match frame::decode(&question.payload) {
                        Ok(Question::Who(asker)) => (asker, Here::Lattice(ours)),
                        Ok(Question::Admit(facts, lattice)) if node.raft.leadership().borrow().me => {
                            (facts.id, admit(node, *facts, lattice, ours).await)
                        }
                        Ok(Question::Admit(..)) => continue,
                        Err(why) => {
                            tracing::warn!("a question on {subject} is not understood: {why}");
                            continue;
                        }
                    };
                    let to = subject::joining(&node.lattice, to);
                    if let Err(why) = node.bus.publish(&to, &[], frame::encode(&here).into()).await {
                        tracing::warn!("a question on {subject} was not answered: {why}");
                    }
                }
            }
            Err(why) => tracing::warn!("not listening on {subject}: {why}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Records a node. That it then listens to the log follows from the state, by `placement::Membership`.
async fn admit(node: &Node, facts: NodeFacts, wanted: LatticeId, ours: LatticeId) -> Here {
    if wanted != ours {
        return Here::Refused(ours, format!("this is the lattice with id {ours}, not {wanted}"));
    }
    let (state, name) = (node.raft.state().borrow().clone(), facts.name.clone());
    if state.node(facts.id).is_none() && state.nodes().len() >= MEMBERS_MAX {
        return Here::Refused(ours, format!("it has {MEMBERS_MAX} nodes, the most that this version takes"));
    }
    let id = facts.id;
    match node.raft.propose(proposal::entry(Command::Join(facts))).await {
        Ok(Applied::Refused(why)) => Here::Refused(ours, why.to_string()),
        Ok(_) => {
            tracing::info!(node = %id, name, "admitted a node");
            Here::Admitted(ours)
        }
        // It asks again.
        Err(why) => {
            tracing::warn!(node = %id, "a node is not admitted yet: {why}");
            Here::Lattice(ours)
        }
    }
}

/// This machine's name, or `node` where it tells none.
pub(crate) fn hostname() -> String {
    let known = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    known.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "node".into())
}

/// What the lattice is told of this node.
pub(crate) fn facts(options: &Options, id: NodeId) -> NodeFacts {
    let name = hostname();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let family = std::env::consts::FAMILY;
    let mut labels = BTreeMap::from([
        ("os".into(), std::env::consts::OS.into()),
        ("arch".into(), std::env::consts::ARCH.into()),
        ("hostname".into(), name.clone()),
        ("cpu".into(), cores.to_string()),
        ("memory".into(), format!("{}MiB", options.sandbox_memory_bytes / (1024 * 1024))),
        ("hostcore.os".into(), std::env::consts::OS.into()),
        ("hostcore.arch".into(), std::env::consts::ARCH.into()),
        ("hostcore.osfamily".into(), family.into()),
    ]);
    labels.extend(options.labels.clone());
    NodeFacts {
        id,
        name,
        labels,
        version: env!("CARGO_PKG_VERSION").into(),
        capacity: Capacity { permits: options.sandboxes_max, memory_bytes: options.sandbox_memory_bytes },
        edge: options.edge,
    }
}
