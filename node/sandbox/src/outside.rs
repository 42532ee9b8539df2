//! The one way out of a sandbox, and what a run is set up with. The node's side of both is in `node/daemon`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use trellis_wire::{Answer, Call, CallError, ComponentKey, Config, EventId, Secrets};

/// What one run needs.
pub struct Setup {
    /// The event, for logs.
    pub event_id: EventId,
    /// The component, for logs and as the name of the program it is to itself.
    pub component: ComponentKey,
    /// The name of the link that brought the event; empty if none did. The guest can read it.
    pub source: String,
    /// What `wasi:config` gives the guest.
    pub config: Arc<Config>,
    /// What `wasmcloud:secrets` gives the guest.
    pub secrets: Arc<Secrets>,
    /// What the run may use.
    pub limits: Limits,
    /// Where its calls and log lines go.
    pub outside: Arc<dyn Outside>,
    /// Dropped when the sandbox is truly gone, which for an HTTP reply is after its body. The permit, for instance.
    pub held: Box<dyn Send>,
}

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All linear memories and tables together, in bytes.
    pub memory_bytes: u64,
    /// How long until the reply; for HTTP, until its head.
    pub timeout: Duration,
    /// How long an HTTP reply may take from its head to its end; without one it may stream for ever, as event streams
    /// do. [`Limits::REPLY_DEFAULT`] where nothing else is asked for.
    pub reply: Option<Duration>,
}

impl Limits {
    /// How long a reply that is no stream of events may take from its head to its end.
    pub const REPLY_DEFAULT: Duration = Duration::from_secs(5 * 60);
}

/// What a sandbox can reach. One value serves one run.
#[async_trait]
pub trait Outside: Send + Sync {
    /// Uses a capability by the link of this name; `""` is the default link. Whether a link grants it is decided here.
    ///
    /// # Errors
    /// The guest sees them as its interface's own errors.
    async fn call(&self, link_name: &str, call: Call) -> Result<Answer, CallError>;

    /// Takes one line of the guest's log. `context` is the guest's own word, or `stdout` or `stderr`.
    fn log(&self, level: Level, context: &str, message: &str);

    /// Hears that the guest is there: code, memory and imports are in place, and its handler is called next.
    fn instantiated(&self) {}

    /// Hears that the guest failed after its reply had begun, when the outcome of the event was told already.
    fn failed_late(&self, why: &str) {
        self.log(Level::Error, "sandbox", why);
    }
}

/// How much a log line matters, as `wasi:logging` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A step on the way.
    Trace,
    /// For whoever debugs the component.
    Debug,
    /// For whoever runs it.
    Info,
    /// Something is odd.
    Warn,
    /// Something failed.
    Error,
    /// Something failed and nothing after it can go well.
    Critical,
}
