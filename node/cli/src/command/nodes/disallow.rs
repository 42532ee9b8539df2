//! `trellis nodes disallow`: takes a key off the list of those that are let in.

use trellis_wire::NodeKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Let a node join no longer
///
/// A node that is a member stays one; `trellis nodes forget` gives up a lost one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis nodes disallow NCBWXQE7FHZJHJHVUUIPUO2NCFNIWCQTQNGPAOMB6PBD4UDBBXSHYEVM")]
pub(crate) struct Disallow {
    /// The node's public key, N...
    key: NodeKey,
}

impl Disallow {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let admin = connection.open();
        admin.disallow(self.key).await?;
        let trust = admin.lattice().await?.trust;
        let told = match trust.starts_with("open") {
            true => format!(
                "key {} is on no list, but the lattice is {trust}: `trellis nodes token FILE` or `nodes allow KEY` closes it",
                self.key
            ),
            false => format!("a node with key {} may no longer join by it", self.key),
        };
        Ok(print(&told)?)
    }
}
