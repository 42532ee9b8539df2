//! The bus within one process: one end of a [`Wire`].

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::wire::{Listener, Wire};
use crate::{BusError, Connection, Delivered};

/// One end of a [`Wire`]. A node that is alone has a wire of its own; in a simulation many nodes share one.
#[derive(Debug, Clone)]
pub struct Memory {
    wire: Wire,
    end: usize,
}

impl Memory {
    /// The only end of a perfect wire: what a node without NATS runs on.
    pub fn alone() -> Self {
        Wire::default().end("alone")
    }

    pub(crate) const fn new(wire: Wire, end: usize) -> Self {
        Self { wire, end }
    }

    pub(crate) fn publish(&self, subject: &str, headers: &[(&str, &str)], payload: Bytes) -> Result<(), BusError> {
        self.connection().borrow().usable()?;
        self.wire.send(self.end, delivered(subject, None, headers, payload));
        Ok(())
    }

    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Delivered, BusError> {
        self.connection().borrow().usable()?;
        let inbox = self.wire.inbox(self.end);
        let mut answers = self.wire.listen(self.end, &inbox, None);
        if self.wire.send(self.end, delivered(subject, Some(inbox), headers, payload)) == 0 {
            return Err(BusError::NoResponders { subject: subject.into() });
        }
        match tokio::time::timeout(timeout, answers.next()).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                self.connection().borrow().usable()?;
                Err(BusError::Disconnected("the bus was cut off meanwhile".into()))
            }
            Err(_) => Err(BusError::TimedOut { subject: subject.into(), after: timeout }),
        }
    }

    pub(crate) fn subscribe(&self, subject: &str, queue_group: Option<&str>) -> Listener {
        self.wire.listen(self.end, subject, queue_group)
    }

    pub(crate) fn connection(&self) -> watch::Receiver<Connection> {
        self.wire.connection(self.end)
    }

    pub(crate) fn overflowed(&self) -> u64 {
        self.wire.overflowed(self.end)
    }
}

fn delivered(subject: &str, reply: Option<String>, headers: &[(&str, &str)], payload: Bytes) -> Delivered {
    let mut headers: Vec<_> = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    headers.sort_by(|(a, _): &(String, String), (b, _)| a.cmp(b));
    Delivered { subject: subject.into(), reply, headers, payload }
}
