//! How a node comes into its lattice: it starts one, goes on in the one its data directory belongs to, or asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trellis_bus::{Bus, BusError};
use trellis_placement::{Capacity, Command, NodeFacts};
use trellis_raft::{ProposeError, RaftError};
use trellis_wire::{LatticeId, LatticeName, NodeId, frame, subject};

use crate::node::{Node, Options};
use crate::proposal;

/// How long a lattice of the same name may take to say that it is there.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// The wait between two tries to record this node's facts.
const RETRY: Duration = Duration::from_secs(1);

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
    /// No `--bootstrap` on a new data directory with `--nats`.
    #[error(
        "this data directory belongs to no lattice yet, and joining one over NATS is not built in this version: \
         add --bootstrap to start the lattice {0} here"
    )]
    JoinNotBuilt(LatticeName),
    /// The log.
    #[error(transparent)]
    Raft(#[from] RaftError),
    /// The founding command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// What a member answers on the join subject: which lattice is here.
#[derive(Debug, Serialize, Deserialize)]
enum Here {
    Lattice(LatticeId),
}

/// Starts the lattice where there is none in the data directory.
pub(crate) async fn enter(node: &Node, options: &Options) -> Result<(), MembershipError> {
    if node.raft.is_initialized().await? {
        // A founder that was stopped in between goes on with founding; one that is founded is told its id.
        if node.raft.state().borrow().lattice_id().is_none() && options.nats.as_ref().is_none_or(|_| options.bootstrap)
        {
            node.raft.bootstrap(LatticeId::new(uuid::Uuid::now_v7())).await?;
        }
        return Ok(());
    }
    if options.nats.is_some() {
        if !options.bootstrap {
            return Err(MembershipError::JoinNotBuilt(options.lattice.clone()));
        }
        if let Some(id) = who_is_there(&node.bus, &options.lattice).await {
            return Err(MembershipError::Exists { name: options.lattice.clone(), id });
        }
    }
    node.raft.bootstrap(LatticeId::new(uuid::Uuid::now_v7())).await?;
    Ok(())
}

async fn who_is_there(bus: &Bus, lattice: &LatticeName) -> Option<LatticeId> {
    match bus.request(&subject::join(lattice), &[], Bytes::new(), ANSWER_WAIT).await {
        Ok(answer) => match frame::decode(&answer.payload) {
            Ok(Here::Lattice(id)) => Some(id),
            Err(why) => {
                tracing::warn!("something answers for lattice {lattice} that this build does not understand: {why}");
                None
            }
        },
        Err(BusError::NoResponders { .. } | BusError::TimedOut { .. }) => None,
        Err(why) => {
            tracing::warn!("whether a lattice {lattice} exists cannot be asked: {why}; this node starts it");
            None
        }
    }
}

/// Records this node's facts in the lattice, then answers those who ask which lattice is here, until shutdown.
pub(crate) async fn serve(node: Arc<Node>, facts: NodeFacts) {
    let work = async {
        record(&node, &facts).await;
        answer(&node).await;
    };
    tokio::select! {
        () = work => {}
        () = node.shutdown.cancelled() => {}
    }
}

async fn record(node: &Node, facts: &NodeFacts) {
    let mut states = node.raft.state();
    loop {
        let known = states.borrow_and_update().node(node.id).is_some_and(|known| known.facts == *facts);
        if known {
            return;
        }
        if let Err(why) = node.raft.propose(proposal::entry(Command::Join(facts.clone()))).await {
            tracing::warn!("this node is not recorded in the lattice yet: {why}");
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
                    let Some(reply) = question.reply else { continue };
                    let Some(id) = node.raft.state().borrow().lattice_id() else { continue };
                    let answer = frame::encode(&Here::Lattice(id));
                    if let Err(why) = node.bus.publish(&reply, &[], answer.into()).await {
                        tracing::warn!("a question on {subject} was not answered: {why}");
                    }
                }
            }
            Err(why) => tracing::warn!("not listening on {subject}: {why}"),
        }
        tokio::time::sleep(RETRY).await;
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
