//! Permits: the right to run one sandbox now. A source asks for one before it pulls.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trellis_wire::{ComponentKey, Error, Event, Outcome};

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
}

/// The permits of one component.
#[derive(Clone)]
pub struct Permits {
    component: ComponentKey,
    source: Arc<dyn PermitSource>,
}

impl Permits {
    /// The permits of `component`, from `source`.
    pub fn new(component: ComponentKey, source: Arc<dyn PermitSource>) -> Self {
        Self { component, source }
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
}

/// The right to run one sandbox now. Dropping it unused gives it back.
pub struct Permit(Box<dyn Run>);

impl Permit {
    /// A permit that does `run` when it is used.
    pub fn new(run: impl Run + 'static) -> Self {
        Self(Box::new(run))
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
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
