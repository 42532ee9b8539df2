//! `trellis nodes allow`: puts a key on the list of those that are let in.

use trellis_wire::NodeKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Let a node join without the join token
///
/// A node that is refused names its key, and `trellis up` prints it. A lattice that was open is closed by this: from then
/// on joining takes a key on the list, or the token if there is one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis nodes allow NCBWXQE7FHZJHJHVUUIPUO2NCFNIWCQTQNGPAOMB6PBD4UDBBXSHYEVM")]
pub(crate) struct Allow {
    /// The node's public key, N...
    key: NodeKey,
}

impl Allow {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        connection.open().allow(self.key).await?;
        Ok(print(&format!("a node with key {} may join", self.key))?)
    }
}
