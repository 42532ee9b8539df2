//! `trellis drain`: moves everything off a node, before it is stopped or mended.

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Move everything off a node
///
/// It goes on holding what no other node may hold until then; `trellis status APP` shows what moved where. What
/// trellis://embedded keeps is never moved: a node that is its home goes on answering for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis drain cellar")]
pub(crate) struct Drain {
    /// The node: its id, or its name where only one has it
    node: String,
}

impl Drain {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let admin = connection.open();
        admin.drain(&self.node, true).await?;
        print(&format!("{} is drained: it holds nothing until `trellis undrain {}`", self.node, self.node))?;
        if admin.is_home(&self.node).await? {
            print("it stays the home: what trellis://embedded keeps is unavailable while the node is not running")?;
        }
        Ok(())
    }
}
