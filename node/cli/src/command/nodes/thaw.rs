//! `trellis nodes thaw`: ends a freeze by hand.

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Place anew what nodes hold that vanished together
///
/// When over a third of the nodes vanish within a minute, what they hold stays theirs until they are back: so many at once
/// is the network or a mistake, and the few that are left could not carry it. Nodes at the edge are not counted. This gives
/// the others up for now; whichever comes back is taken in again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis nodes thaw")]
pub(super) struct Thaw {}

impl Thaw {
    pub(super) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let given_up = connection.open().thaw().await?.nodes;
        let told = match given_up.is_empty() {
            true => "nothing was frozen, and nothing is changed".into(),
            false => format!("what these nodes held is placed anew: {}", given_up.join(", ")),
        };
        Ok(print(&told)?)
    }
}
