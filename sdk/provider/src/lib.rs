//! The contract between a node and its capability providers.
//!
//! A provider is long-running code outside every sandbox. It does one or both of two things:
//!
//! - it **wakes** components: a source (an HTTP server, a queue consumer) turns what happens outside into events. For
//!   each event it acquires a permit, pulls, runs the event, and settles by the outcome:
//!   `permits.acquire(want) -> Permit`, `permit.run(event) -> Outcome`. It never holds more than it has permits for;
//! - it **answers** calls that components make of a capability (key-value, publish, outgoing HTTP).
//!
//! Both come to it as links. A link is applied whole: when its configuration changes, the node removes the old one and
//! applies the new one. [`Provider`] is all a provider implements; `providers/embedded` is the shortest example.
//!
//! What must run once in the lattice (a timer, an ordered queue) is held by a [`Lease`]: where [`Permits::lease`] gives one,
//! the source works only while this node has it.
//!
//! A source that redelivers (a queue) does not write that loop itself: [`delivery`] has it, and asks of a broker only to
//! be a [`delivery::Queue`].
//!
//! Everything that crosses this contract can be serialised but [`Body`](trellis_wire::Body), which streams: a provider
//! may live in the node's process or, later, in one of its own.

mod access;
mod allowed;
mod clock;
pub mod delivery;
mod depot;
mod dialed;
mod histogram;
mod lease;
mod ledgers;
mod links;
mod permit;
mod queue;
mod share;
mod shared;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod threads;
mod tls;

use std::sync::Arc;

pub use access::{Access, check_url, flag};
pub use allowed::Allowed;
use async_trait::async_trait;
pub use clock::now_ms;
use delivery::Trigger;
pub use depot::{Depot, depot_queue, short};
pub use dialed::{Dial, Dialed};
pub use histogram::{Histogram, Snapshot};
pub use lease::{Lease, LeaseHolder, Token};
pub use ledgers::Ledgers;
pub use links::{Bound, Links, no_such_call, no_such_package, not_bound};
pub use permit::{Delivered, Outgoing, Permit, PermitSource, Permits, Run, WAITING_MAX, Want};
pub use queue::{foreign_word, need_queue, queue};
pub use share::{Begun, Caps, Share, Use};
pub use shared::Shared;
pub use threads::Threads;
pub use tls::{Pem, Tls, explained};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

/// A capability provider. One value serves every link of its technology on a node.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Begins to wake `link.component`, as the link's source configuration says. Returns once it is bound: the
    /// listener accepts, the subscription stands. What is only not reachable now (a broker that is down) is no error:
    /// the provider goes on trying and reports it through [`Provider::health`].
    ///
    /// # Errors
    /// The configuration is wrong or the address is taken; the text says which key and what to write.
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError>;

    /// Begins to answer calls of `link.component`, as the link's target configuration says.
    ///
    /// # Errors
    /// As for [`Provider::wake`].
    async fn grant(&self, link: Link) -> Result<(), LinkError>;

    /// Ends a link of either kind. Takes no more events at once; returns when those under way are settled or given
    /// back. Unknown ids are ignored.
    async fn remove(&self, link: &LinkId);

    /// Gives up what the broker keeps for this node alone under a link that was removed and is not placed here any more,
    /// such as a subscription that lasts. Follows [`Provider::remove`]; unknown ids are ignored.
    async fn forget(&self, _link: &LinkId) {}

    /// Answers one call under a granted link. The node has checked that the link grants it.
    ///
    /// # Errors
    /// The guest sees them as its interface's own errors.
    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError>;

    /// Says whether a publish would be refused whenever it is made: the node holds what a message handler publishes
    /// until the handler has said ok, and then the guest is not there any more to be told.
    ///
    /// # Errors
    /// As [`Provider::call`] would give for the publish, so far as they can be known without making it.
    fn check_publish(&self, _link: &LinkId, _message: &Message) -> Result<(), CallError> {
        Ok(())
    }

    /// The engine of a link that pulls from a queue; `None`: it does not, or is not applied here.
    fn trigger(&self, _link: &LinkId) -> Option<Arc<dyn Trigger>> {
        None
    }

    /// How a link is now. `Ok(())` where all is well.
    ///
    /// # Errors
    /// What is not well, for people: `not connected to nats://127.0.0.1:4222: connection refused`.
    fn health(&self, link: &LinkId) -> Result<(), String>;

    /// Takes no more events, and returns when those under way are done. The caller bounds the wait.
    async fn drain(&self);
}

/// Why a link cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A key of its configuration is missing or wrong.
    #[error("config `{key}`: {problem}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Something else has what it needs, such as an address.
    #[error("{0}")]
    Taken(String),
    /// The provider has no such capability or source.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else, such as a file that cannot be read.
    #[error("{0}")]
    Failed(String),
}

impl LinkError {
    /// A wrong or missing key.
    pub fn config(key: &str, problem: impl Into<String>) -> Self {
        Self::Config { key: key.into(), problem: problem.into() }
    }
}
