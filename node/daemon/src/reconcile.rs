//! Reconcile: carries out this node's share of the plan. What to do is decided by `placement::diff`; nothing is
//! decided here but when to try again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trellis_placement::{Assigned, Far, HeldComponent, HeldLink, State, Step, diff};
use trellis_provider::{LinkError, PermitSource, Permits};
use trellis_sandbox::Engine;
use trellis_wire::{ComponentKey, LinkId, NodeId};

use crate::artifacts::Artifacts;
use crate::board::{Board, Health};
use crate::dispatch::Dispatch;
use crate::grants::Grant;
use crate::providers::Providers;

/// The first wait before a failed step is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a link that goes may hold up the steps after it. It goes on ending in the background.
const REMOVE_WAIT: Duration = Duration::from_secs(10);
/// Components without an event for so long leave memory.
const IDLE: Duration = Duration::from_secs(60);

/// What it needs to carry out steps.
pub(crate) struct Reconcile {
    pub(crate) node: NodeId,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) providers: Providers,
    pub(crate) artifacts: Artifacts,
    pub(crate) engine: Arc<Engine>,
    pub(crate) board: Arc<Board>,
}

impl Reconcile {
    /// Runs until `shutdown`. Wakes when the state changes, when a failed step is due again, and when it is time to
    /// unload what is idle.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut running = Assigned::default();
        let mut retry = RETRY_FIRST;
        loop {
            let assigned = self.state.borrow_and_update().assigned(self.node);
            let all_done = self.carry_out(&mut running, assigned).await;
            retry = if all_done { RETRY_FIRST } else { (retry * 2).min(RETRY_MAX) };
            let changed = async {
                if self.state.changed().await.is_err() {
                    // Raft is gone, and with it any further change: only shutdown is left.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = changed => {}
                () = tokio::time::sleep(retry), if !all_done => {}
                () = tokio::time::sleep(IDLE) => self.dispatch.unload_idle(IDLE),
            }
        }
    }

    /// Takes every step from `running` to `assigned` and notes in `running` those that succeeded. Whether all did.
    async fn carry_out(&self, running: &mut Assigned, assigned: Assigned) -> bool {
        if assigned.generation < running.generation {
            tracing::warn!(older = %assigned.generation, newer = %running.generation, "an older plan is refused");
            return true;
        }
        let mut all_done = true;
        for step in diff(running, &assigned) {
            match step {
                Step::RemoveLink(id) => {
                    if let Some(held) = running.links.remove(&id) {
                        self.remove_link(&id, held).await;
                    }
                }
                Step::RemoveComponent(key) => {
                    running.components.remove(&key);
                    self.dispatch.release(&key);
                    self.board.component(&key, None);
                }
                Step::HoldComponent(key, held) => {
                    let done = self.hold(&key, &held).await;
                    all_done &= self.note_component(&key, done);
                    running.components.insert(key.clone(), held);
                    if self.board.of_component(&key) != Health::Ready {
                        running.components.remove(&key);
                    }
                }
                Step::AddLink(id, held) => {
                    let done = self.add_link(&held).await;
                    let succeeded = self.note_link(&id, done);
                    all_done &= succeeded;
                    if succeeded {
                        running.links.insert(id, held);
                    }
                }
            }
        }
        running.generation = assigned.generation;
        all_done
    }

    /// Has the code compiled, then lets events in.
    async fn hold(&self, key: &ComponentKey, held: &HeldComponent) -> Result<(), String> {
        if !self.engine.is_compiled(held.digest) {
            let (artifacts, engine, digest) = (self.artifacts.clone(), self.engine.clone(), held.digest);
            let compiled = tokio::task::spawn_blocking(move || {
                let bytes = artifacts.get(digest).map_err(|why| why.to_string())?;
                engine.compile(digest, &bytes).map_err(|why| why.to_string())
            });
            compiled.await.map_err(|why| format!("compiling broke off: {why}"))??;
        }
        self.dispatch.hold(key.clone(), held.clone());
        Ok(())
    }

    async fn add_link(&self, held: &HeldLink) -> Result<(), LinkError> {
        match &held.far {
            Far::Wakes(tech) => {
                let source: Arc<dyn PermitSource> = self.dispatch.clone();
                let permits = Permits::new(held.link.component.clone(), source);
                self.providers.of(*tech).wake(held.link.clone(), permits).await
            }
            Far::Grants(tech) => {
                let provider = self.providers.of(*tech);
                provider.grant(held.link.clone()).await?;
                self.dispatch.grants().add(held, Grant::answers(held, || provider));
                Ok(())
            }
            Far::Component(_) => {
                self.dispatch.grants().add(held, Grant::answers(held, || unreachable!("a component answers")));
                Ok(())
            }
        }
    }

    async fn remove_link(&self, id: &LinkId, held: HeldLink) {
        self.board.link(id, None);
        self.dispatch.grants().remove(&held.link.component, id);
        let tech = match held.far {
            Far::Wakes(tech) | Far::Grants(tech) => tech,
            Far::Component(_) => return,
        };
        let (provider, gone) = (self.providers.of(tech), id.clone());
        let ending = tokio::spawn(async move { provider.remove(&gone).await });
        if tokio::time::timeout(REMOVE_WAIT, ending).await.is_err() {
            tracing::info!(link = %id, "events under way take longer than {REMOVE_WAIT:?}; the link ends when they do");
        }
    }

    fn note_component(&self, key: &ComponentKey, done: Result<(), String>) -> bool {
        if let Err(why) = &done {
            tracing::warn!(component = %key, "not held yet: {why}");
        }
        let succeeded = done.is_ok();
        self.board.component(key, Some(done.map_or_else(Health::Failed, |()| Health::Ready)));
        succeeded
    }

    fn note_link(&self, id: &LinkId, done: Result<(), LinkError>) -> bool {
        if let Err(why) = &done {
            tracing::warn!(link = %id, "not linked yet: {why}");
        }
        let succeeded = done.is_ok();
        let health = done.map_or_else(|why| Health::Failed(why.to_string()), |()| Health::Ready);
        self.board.link(id, Some(health));
        succeeded
    }
}
