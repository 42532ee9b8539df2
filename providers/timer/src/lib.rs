//! Timers as a provider: `cron` in a time zone, or `every`. A tick wakes its component through a handler of messages or
//! `wasi:cli/run`, by the engine that delivers messages, with the link's `delivery:` policy.
//!
//! | file | what is in it |
//! | --- | --- |
//! | `config.rs` | what a link may say |
//! | `schedule.rs` | when a timer ticks; pure |
//! | `cron.rs` | cron expressions, and what is wrong with one; pure |
//! | `marks.rs` | which ticks were seen and what became of them; pure |
//! | `ticks.rs` | a timer as a queue of ticks |
//! | `letters.rs` | ticks that were given up; pure |
//! | `ledger.rs` | where both are kept; what the engine keeps is in a ledger of the lattice's beside it |
//! | `run.rs` | a tick as a run |
//!
//! The promise: a tick has one start while the ledger answers, because it is claimed there before it starts, by the node
//! that has the lease of its link. Where a node dies while a tick runs, or the component refuses it or faults, it starts
//! again, as messages do. What becomes of ticks that came while no node was there says `missed`. Clocks of nodes may
//! differ by up to half the time a claim lasts (5 s).

mod config;
mod cron;
mod ledger;
mod letters;
mod marks;
mod run;
mod schedule;
mod ticks;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
pub use ledger::Ledger;
use trellis_provider::delivery::{Engine, Running, Trigger};
use trellis_provider::{Ledgers, LinkError, Links, Permits, Provider, no_such_call, no_such_package};
use trellis_wire::{Answer, Call, CallError, Link, LinkId};

use crate::config::{Wakes, Wanted};
use crate::ticks::{Health, Ticks};

/// The provider. One value serves every timer of a node.
pub struct Timer {
    ledger: Ledger,
    ledgers: Arc<dyn Ledgers>,
    links: Links<Bound>,
}

/// Whether a link says rightly how its timer ticks, and what it wakes.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check(link: &Link) -> Result<(), LinkError> {
    Wanted::read(link).map(drop)
}

/// What a link has become: a timer that ticks.
#[derive(Debug, Clone)]
struct Bound {
    running: Arc<Running>,
    health: Health,
}

#[async_trait]
impl trellis_provider::Bound for Bound {
    async fn end(&self) {
        self.running.end().await;
    }
}

impl Timer {
    /// A provider without timers, whose marks are kept in `ledger`, and what is known of their deliveries in `ledgers`, which
    /// must be as much of the lattice as that.
    pub fn new(ledger: Ledger, ledgers: Arc<dyn Ledgers>) -> Self {
        Self { ledger, ledgers, links: Links::default() }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timer({:?})", self.ledger)
    }
}

#[async_trait]
impl Provider for Timer {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        let wanted = Wanted::read(&link)?;
        let id = link.id.clone();
        self.remove(&id).await;
        self.ledger.open().await?;
        let permits = match &wanted.wakes {
            Wakes::Message { .. } => permits,
            Wakes::Run { args } => run::as_runs(permits, args.clone()),
        };
        let ticks = Ticks::new(self.ledger.clone(), &*self.ledgers, &link, wanted, permits.lease());
        let health = ticks.health();
        let engine = Engine::new(link.id, ticks, permits, link.delivery)?;
        self.links.bind(id, Bound { running: Arc::new(Running::begin(engine)), health }).await;
        Ok(())
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        Err(no_such_package(&link, "trellis://timer can wake components and grants nothing"))
    }

    async fn remove(&self, link: &LinkId) {
        self.links.remove(link).await;
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        Err(no_such_call(link, &call))
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.links.get(link).ok().map(|bound| bound.running.trigger())
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        let Bound { running, health } = self.links.get(link)?;
        health.lock().expect("nothing panics while it holds the health").clone()?;
        running.progress().health()
    }

    async fn drain(&self) {
        self.links.drain().await;
    }
}
