//! `trellis undrain`: lets a drained node hold things again.

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Let a drained node hold things again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis undrain cellar")]
pub(crate) struct Undrain {
    /// The node: its name, its id, or the first or last digits of that, as tables show them
    node: String,
}

impl Undrain {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let node = connection.open().undrain(&self.node).await?;
        Ok(print(&format!("{} may hold things again", node.name))?)
    }
}
