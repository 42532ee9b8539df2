//! Permits that are worth something until something happens: the lease of their link is lost, or the node ends.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use trellis_provider::{Delivered, Permit, Run};
use trellis_wire::{Error, Event, Outcome};

/// A permit that runs nothing once it is over, and whose run is broken off then: its event was not handled.
pub(crate) struct Abortable {
    permit: Permit,
    over: BoxFuture<'static, Error>,
}

impl Abortable {
    /// A permit until `over`, which says why.
    pub(crate) fn permit(permit: Permit, over: impl Future<Output = Error> + Send + 'static) -> Permit {
        Permit::new(Self { permit, over: over.boxed() })
    }

    async fn unless_over<T: From<Outcome>>(self, run: impl AsyncFnOnce(Permit) -> T) -> T {
        tokio::select! {
            biased;
            why = self.over => Outcome::Err(why.into()).into(),
            done = run(self.permit) => done,
        }
    }
}

#[async_trait]
impl Run for Abortable {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        self.unless_over(async |permit| permit.run(event).await).await
    }

    async fn run_within(self: Box<Self>, event: Event, at_most: Duration) -> Outcome {
        self.unless_over(async |permit| permit.run_within(event, at_most).await).await
    }

    async fn deliver(self: Box<Self>, event: Event, at_most: Duration) -> Delivered {
        self.unless_over(async |permit| permit.deliver(event, at_most).await).await
    }

    fn waits_in(&mut self, queue: Arc<Semaphore>) {
        self.permit.waits_in(queue);
    }
}
