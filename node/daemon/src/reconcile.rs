//! Reconcile: carries out this node's share of the plan. What to do is decided by `placement::diff`; nothing is
//! decided here but when to try again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trellis_manifest::Tech;
use trellis_placement::{Assigned, Command, Direction, HeldComponent, HeldLink, State, Step, diff};
use trellis_provider::{LinkError, Permits};
use trellis_raft::Raft;
use trellis_sandbox::Engine;
use trellis_wire::{ComponentKey, LinkId, NodeId};

use crate::artifacts::Artifacts;
use crate::board::{Board, Health};
use crate::dispatch::{Dispatch, OfLink};
use crate::grants::Answers;
use crate::proposal;
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
    pub(crate) raft: Raft,
    pub(crate) dispatch: Arc<Dispatch>,
    pub(crate) providers: Providers,
    pub(crate) artifacts: Artifacts,
    pub(crate) engine: Arc<Engine>,
    pub(crate) board: Arc<Board>,
}

impl Reconcile {
    /// Runs until `shutdown`. Wakes when the state changes, when a failed step is due again, and when it is time to
    /// unload what is idle.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut states: watch::Receiver<Arc<State>> = self.raft.state();
        let mut running = Assigned::default();
        let mut retry = RETRY_FIRST;
        loop {
            let state = states.borrow_and_update().clone();
            let all_done = self.carry_out(&mut running, state.assigned(self.node)).await;
            self.acknowledge(&state, &running).await;
            retry = if all_done { RETRY_FIRST } else { (retry * 2).min(RETRY_MAX) };
            let changed = async {
                if states.changed().await.is_err() {
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
    ///
    /// What ends goes on until what takes its place is there, so that a new version finds no request without an answer.
    /// A link that could not begin is tried once more afterwards: what ended may have been in its way.
    async fn carry_out(&self, running: &mut Assigned, assigned: Assigned) -> bool {
        if assigned.generation < running.generation {
            tracing::warn!(older = %assigned.generation, newer = %running.generation, "an older plan is refused");
            return true;
        }
        let steps = diff(running, &assigned);
        let (late, steps): (Vec<_>, Vec<_>) = steps.into_iter().partition(|step| is_late(step, running, &assigned));
        for step in &late {
            if let Step::RemoveLink(id) = step {
                self.providers.http.leave(id);
            }
        }
        let (mut all_done, mut behind) = (true, Vec::new());
        for step in steps {
            let again = step.clone();
            match self.take(step, running).await {
                true => {}
                false if matches!(again, Step::AddLink(_)) && !late.is_empty() => behind.push(again),
                false => all_done = false,
            }
        }
        for step in late {
            let began_anew = matches!(&step, Step::RemoveLink(id) if running.links.get(id) == assigned.links.get(id));
            if !began_anew {
                self.take(step, running).await;
            }
        }
        for step in behind {
            all_done &= self.take(step, running).await;
        }
        running.generation = assigned.generation;
        all_done
    }

    /// Takes one step and notes it in `running` if it succeeded. Whether it did.
    async fn take(&self, step: Step, running: &mut Assigned) -> bool {
        match step {
            Step::RemoveLink(id) => {
                if let Some(held) = running.links.remove(&id) {
                    self.remove_link(&id, held).await;
                }
                true
            }
            Step::RemoveComponent(key) => {
                running.components.remove(&key);
                self.dispatch.release(&key);
                self.board.component(&key, None);
                true
            }
            Step::Hold(key, held) | Step::Adjust(key, held) => {
                let done = self.hold(&key, &held).await;
                let succeeded = self.note_component(&key, done);
                if succeeded {
                    running.components.insert(key, *held);
                }
                succeeded
            }
            Step::AddLink(held) => {
                let done = self.add_link(&held).await;
                let succeeded = self.note_link(&held.link.id, done);
                if succeeded {
                    running.links.insert(held.link.id.clone(), *held);
                }
                succeeded
            }
        }
    }

    /// Tells the lattice that permits which this node gave up are free, where others wait for them.
    async fn acknowledge(&self, state: &State, running: &Assigned) {
        let Some(generation) = state.owes(self.node).filter(|owed| *owed <= running.generation) else { return };
        let acked = Command::Acked { node: self.node, generation };
        if let Err(why) = self.raft.propose(proposal::entry(acked)).await {
            // Not lost: the state still says what is owed, and the next round says it again.
            tracing::warn!(%generation, "the lattice was not told that permits are free: {why}");
        }
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
        if let Some(why) = &held.refused {
            let problem = format!("`{}` does not fit: {} is expected", why.value, why.wanted);
            return Err(LinkError::config(&format!("delivery.{}", why.key), problem));
        }
        match &held.direction {
            Direction::Wakes { tech, .. } => {
                let source = OfLink { dispatch: self.dispatch.clone(), name: held.link.name.as_str().into() };
                let permits = Permits::new(held.link.component.clone(), Arc::new(source));
                self.providers.of(*tech).wake(held.link.clone(), permits).await
            }
            Direction::Grants { tech, .. } => {
                let provider = self.providers.of(*tech);
                provider.grant(held.link.clone()).await?;
                self.dispatch.grants().add(&held.link, Answers::Provider(provider))
            }
            Direction::Between { target } => self.dispatch.grants().add(&held.link, Answers::Component(target.clone())),
            Direction::GrantsElsewhere { provider, .. } => Err(LinkError::Unsupported(format!(
                "{provider} runs on other nodes, and calls across nodes are not built yet; take its scaler away, and \
                 it runs beside the component"
            ))),
        }
    }

    async fn remove_link(&self, id: &LinkId, held: HeldLink) {
        self.board.link(id, None);
        self.dispatch.grants().remove(&held.link.component, id);
        let tech = match held.direction {
            Direction::Wakes { tech, .. } | Direction::Grants { tech, .. } => tech,
            Direction::Between { .. } | Direction::GrantsElsewhere { .. } => return,
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

/// Whether a step waits until what takes its place is there. Subscriptions do not: a message that both the former and
/// the new one take would be handled twice.
fn is_late(step: &Step, running: &Assigned, assigned: &Assigned) -> bool {
    match step {
        Step::RemoveLink(id) => running.links.get(id).is_some_and(|held| {
            let next = assigned.links.get(id).map(|next| &next.direction);
            match (&held.direction, next) {
                (Direction::Wakes { tech, .. }, None) => *tech == Tech::Http,
                (Direction::Wakes { tech: Tech::Http, .. }, Some(Direction::Wakes { tech: Tech::Http, .. })) => true,
                (Direction::Grants { .. } | Direction::Between { .. }, None) => true,
                (Direction::Grants { tech: old, .. }, Some(Direction::Grants { tech: new, .. })) => old == new,
                (Direction::Between { .. }, Some(Direction::Between { .. })) => true,
                _ => false,
            }
        }),
        Step::RemoveComponent(_) => true,
        Step::Hold(..) | Step::Adjust(..) | Step::AddLink(_) => false,
    }
}
