//! Permits that are worth something until the node ends: what a queue's message runs on another node is broken off then.

use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use trellis_provider::{Delivered, Permit, Run};
use trellis_wire::{Error, Event, Message, Outcome};

/// A permit whose run ends with the node. Its message was not handled, which is no attempt.
pub(crate) struct Abortable {
    pub(crate) permit: Permit,
    pub(crate) aborted: CancellationToken,
}

impl Abortable {
    async fn unless_aborted<T: From<Outcome>>(self, run: impl AsyncFnOnce(Permit) -> T) -> T {
        tokio::select! {
            biased;
            () = self.aborted.cancelled() => Outcome::Err(Error::ShuttingDown.into()).into(),
            done = run(self.permit) => done,
        }
    }
}

#[async_trait]
impl Run for Abortable {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        self.unless_aborted(async |permit| permit.run(event).await).await
    }

    async fn run_within(self: Box<Self>, event: Event, at_most: Duration) -> Outcome {
        self.unless_aborted(async |permit| permit.run_within(event, at_most).await).await
    }

    async fn deliver(self: Box<Self>, message: Message, at_most: Duration) -> Delivered {
        self.unless_aborted(async |permit| permit.deliver(message, at_most).await).await
    }
}
