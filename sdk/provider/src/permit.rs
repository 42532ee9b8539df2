//! Permits: the right to run one sandbox now. A source asks for one before it pulls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use trellis_wire::{CallError, ComponentKey, Error, Event, LinkId, Message, Outcome};

use crate::delivery::Ran;
use crate::{Caps, Lease, Share, Threads};

/// How many may wait for a permit of one component on a node. The next one is told that it is busy.
pub const WAITING_MAX: usize = 1_024;

/// Who asks for a permit. Someone who waits for an answer goes before the next pull from a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A request that has arrived and waits, at most this long. The queue of those who wait is bounded.
    Answer {
        /// How long it may wait for the permit.
        at_most: Duration,
    },
    /// A pull from a queue, which can wait for as long as it takes.
    Pull,
}

/// Where permits come from: the node. A test may implement it to hear what a source does.
#[async_trait]
pub trait PermitSource: Send + Sync + 'static {
    /// Waits for a permit to run `component` once.
    ///
    /// # Errors
    /// [`Error::Busy`] when the wait is over or the queue is full, [`Error::NotHeld`] when no node holds it,
    /// [`Error::ShuttingDown`].
    async fn acquire(&self, component: &ComponentKey, want: Want) -> Result<Permit, Error>;

    /// Sends what a handler of `component` published, once it has said ok and that cannot be forgotten any more.
    ///
    /// # Errors
    /// As for the guest's own publish.
    async fn send(&self, component: &ComponentKey, _outgoing: Outgoing) -> Result<(), CallError> {
        Err(CallError::Unavailable(format!("nothing is sent for {component} from here")))
    }

    /// The version of `component` that is new and may be taken back, if there is one and this may be its code.
    /// `code`: as [`Ran::digest`] says it; empty where that is not known.
    fn on_trial(&self, _component: &ComponentKey, _code: &str) -> Option<String> {
        None
    }

    /// Whether this version was taken back: what failed under it is not the failure of what it was to do.
    fn is_taken_back(&self, _component: &ComponentKey, _version: &str) -> bool {
        false
    }

    /// What this node may use of the caps of `link`, which the whole lattice shares. Alone, it is all of them.
    fn share(&self, _link: &LinkId, whole: Caps) -> Arc<Share> {
        Share::new(whole)
    }
}

/// The permits of one component.
#[derive(Clone)]
pub struct Permits {
    component: ComponentKey,
    source: Arc<dyn PermitSource>,
    lease: Option<Lease>,
    threads: Threads,
}

impl Permits {
    /// The permits of `component`, from `source`.
    pub fn new(component: ComponentKey, source: Arc<dyn PermitSource>) -> Self {
        Self { component, source, lease: None, threads: Threads::default() }
    }

    /// The same from another source.
    #[must_use]
    pub fn through(self, source: Arc<dyn PermitSource>) -> Self {
        Self { source, ..self }
    }

    /// The same on a node that has threads which its guests cannot hold up.
    #[must_use]
    pub fn extended_on(self, threads: Handle) -> Self {
        Self { threads: threads.into(), ..self }
    }

    /// Where the claims on what runs are extended.
    pub(crate) fn threads(&self) -> Handle {
        self.threads.handle()
    }

    /// The same for a link that may be at work on one node of the lattice only.
    #[must_use]
    pub fn leased(self, lease: Lease) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// The lease of a link that may be at work on one node of the lattice only: a timer's, an ordered queue's. The source
    /// does nothing unless it is held, and stops when it is lost; permits of another time run nothing. `None`: the link
    /// is at work on every node that applies it.
    pub fn lease(&self) -> Option<Lease> {
        self.lease.clone()
    }

    /// The component that they are for.
    pub const fn component(&self) -> &ComponentKey {
        &self.component
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// As for [`PermitSource::acquire`].
    pub async fn acquire(&self, want: Want) -> Result<Permit, Error> {
        self.source.acquire(&self.component, want).await
    }

    /// Sends what a handler published.
    ///
    /// # Errors
    /// As for [`PermitSource::send`].
    pub async fn send(&self, outgoing: Outgoing) -> Result<(), CallError> {
        self.source.send(&self.component, outgoing).await
    }

    /// The version on trial whose code this may be, as [`PermitSource::on_trial`] says it.
    pub fn on_trial(&self, code: &str) -> Option<String> {
        self.source.on_trial(&self.component, code)
    }

    /// Whether this version was taken back.
    pub fn is_taken_back(&self, version: &str) -> bool {
        self.source.is_taken_back(&self.component, version)
    }

    /// This node's share of the caps of a link.
    pub fn share(&self, link: &LinkId, whole: Caps) -> Arc<Share> {
        self.source.share(link, whole)
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permits({})", self.component)
    }
}

/// What a permit does when it is used. The node's side of [`Permit`].
#[async_trait]
pub trait Run: Send {
    /// Runs one event in one fresh sandbox.
    async fn run(self: Box<Self>, event: Event) -> Outcome;

    /// The same, with a limit of the source's own beside the component's: when it is over, the run ends as the guest's
    /// fault. What cannot end by itself is left to the source, which drops the future.
    async fn run_within(self: Box<Self>, event: Event, _at_most: Duration) -> Outcome {
        self.run(event).await
    }

    /// Hands an event to a handler that may be tried again: what it publishes for a message is not sent but given back.
    async fn deliver(self: Box<Self>, event: Event, at_most: Duration) -> Delivered {
        self.run_within(event, at_most).await.into()
    }

    /// Where it may still have to wait once it is used, it does so with a place of this queue, and ends as busy where that
    /// has none left.
    fn waits_in(&mut self, _queue: Arc<Semaphore>) {}
}

/// What a delivery came to.
#[derive(Debug)]
pub struct Delivered {
    /// How it ended.
    pub outcome: Outcome,
    /// What the handler published, in order, to be sent where it said ok. Each has an id that is made of its message's.
    pub sends: Vec<Outgoing>,
    /// What ran, where that is known: not of a run of `wasi:cli/run` on another node.
    pub ran: Ran,
    /// The node that ran it is gone: what comes of it is for the broker to say, once its claim has ended.
    pub lost: bool,
}

impl From<Outcome> for Delivered {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, sends: Vec::new(), ran: Ran::default(), lost: false }
    }
}

/// What a handler published: by which of its links, and what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// The link that grants it.
    pub link: LinkId,
    /// The message.
    pub message: Message,
}

/// The right to run one sandbox now. Dropping it unused gives it back.
pub struct Permit(Box<dyn Run>);

impl Permit {
    /// A permit that does `run` when it is used.
    pub fn new(run: impl Run + 'static) -> Self {
        Self(Box::new(run))
    }

    /// The queue in which it waits where that is not over yet: a permit may be one that another node is still to give.
    pub fn waits_in(&mut self, queue: Arc<Semaphore>) {
        self.0.waits_in(queue);
    }

    /// Runs `event` in a fresh sandbox and gives the permit back when the sandbox is gone: for an HTTP reply that is
    /// when its body has ended or was dropped. Dropping the future aborts the sandbox.
    ///
    /// # Errors
    /// A fault is the guest's, an error is ours.
    pub async fn run(self, event: Event) -> Outcome {
        self.0.run(event).await
    }

    /// Runs `event` as [`Permit::run`] does, for a source that waits at most this long for the reply: for HTTP, for its
    /// head. A guest that is not done by then has faulted, and is counted and logged as such, which it would not be if
    /// the source just dropped the future.
    ///
    /// # Errors
    /// As for [`Permit::run`].
    pub async fn run_within(self, event: Event, at_most: Duration) -> Outcome {
        self.0.run_within(event, at_most).await
    }

    /// Hands an event to a handler that may be tried again, as [`Permit::run_within`] runs it.
    pub async fn deliver(self, event: Event, at_most: Duration) -> Delivered {
        self.0.deliver(event, at_most).await
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
