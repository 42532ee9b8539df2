//! An engine at work: what a provider keeps of a link whose queue wakes a component.

use std::fmt;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::Engine;
use super::progress::Progress;
use super::queue::Queue;
use super::trigger::Trigger;

/// An engine that runs until this is dropped or ended.
pub struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
    trigger: Arc<dyn Trigger>,
}

impl Running {
    /// Begins to pull.
    pub fn begin<Q: Queue>(engine: Arc<Engine<Q>>) -> Self {
        let begun = Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), trigger: engine.clone() };
        begun.tasks.spawn(engine.run(begun.stop.clone()));
        begun.tasks.close();
        begun
    }

    /// How it goes.
    pub fn progress(&self) -> &Progress {
        self.trigger.progress()
    }

    /// The engine as others see it.
    pub fn trigger(&self) -> Arc<dyn Trigger> {
        self.trigger.clone()
    }

    /// Pulls nothing more.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Pulls nothing more, and returns when what was pulled is settled.
    pub async fn end(&self) {
        self.stop();
        self.tasks.wait().await;
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
