//! Messages are taken off together: all that were handled while others were on their way off are one script.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::delivery::Trouble;

use crate::ledger::{Claim, Ledger};

/// Messages of one script, and that wait for it.
const AT_ONCE: usize = 256;

/// What takes the messages of one link off.
#[derive(Debug)]
pub(crate) struct Off {
    handled: mpsc::Sender<Handled>,
    _taking: AbortOnDropHandle<()>,
}

/// A message that was handled, and who waits until it is off.
#[derive(Debug)]
struct Handled {
    claim: Claim,
    is_off: oneshot::Sender<Result<(), Trouble>>,
}

impl Off {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        let (handled, waiting) = mpsc::channel(AT_ONCE);
        Self { handled, _taking: AbortOnDropHandle::new(tokio::spawn(take(ledger, waiting))) }
    }

    /// Takes a message off. It is when this returns.
    pub(crate) async fn take(&self, claim: &Claim) -> Result<(), Trouble> {
        let (is_off, off) = oneshot::channel();
        let gone = |_| "the link has ended".to_owned();
        self.handled.send(Handled { claim: claim.clone(), is_off }).await.map_err(|_| gone(()))?;
        off.await.map_err(|_| gone(()))?
    }
}

async fn take(ledger: Arc<Ledger>, mut waiting: mpsc::Receiver<Handled>) {
    let mut handled = Vec::new();
    while waiting.recv_many(&mut handled, AT_ONCE).await > 0 {
        let off = ledger.take_off(handled.iter().map(|handled| &handled.claim)).await;
        let off = off.map_err(Trouble::from);
        for one in handled.drain(..) {
            // Who waited may be gone.
            let _ = one.is_off.send(off.clone());
        }
    }
}
