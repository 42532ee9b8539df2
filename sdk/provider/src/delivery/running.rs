//! An engine at work: what a provider keeps of a link whose queue wakes a component.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, Progress};
use super::queue::Queue;

/// An engine that runs until this is dropped or ended.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    tasks: TaskTracker,
    progress: Arc<Progress>,
}

impl Running {
    /// Begins to pull.
    pub fn begin<Q: Queue>(engine: Arc<Engine<Q>>) -> Self {
        let begun = Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), progress: engine.progress() };
        begun.tasks.spawn(engine.run(begun.stop.clone()));
        begun.tasks.close();
        begun
    }

    /// How it goes.
    pub fn progress(&self) -> &Progress {
        &self.progress
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

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
