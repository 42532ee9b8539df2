//! Ledgers for queues whose broker has no place for one: the lattice's own.
//!
//! RabbitMQ keeps messages and nothing else. What must outlive a node of its links is kept by the lattice then: where all
//! nodes reach it, if there is such a place, else on this node's disk.

use std::sync::Arc;

use async_trait::async_trait;

use crate::delivery::{Ledger, Trouble};

/// Where the lattice keeps ledgers.
#[async_trait]
pub trait Ledgers: Send + Sync + 'static {
    /// The ledger of this name: one for all who name it so. Names are made of `a-z 0-9 -`. Nothing is asked yet.
    fn ledger(&self, name: &str) -> Arc<dyn Ledger>;

    /// Why no ledger can be kept, for people; `None`: they are.
    ///
    /// # Errors
    /// It is not known, since what keeps them is away.
    async fn missing(&self) -> Result<Option<String>, Trouble>;
}
