//! `trellis nodes forget`: gives up a node that will not come back.

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Forget a node that will not come back
///
/// A node that still gives signs of life is not forgotten. By themselves lost nodes are forgotten after seven days; but not the
/// home: with it goes all that trellis://embedded keeps, and another node begins with nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis nodes forget 01890a5d-ac96-774b-bcce-b302099a8057")]
pub(crate) struct Forget {
    /// The node: its name, its id, or the first or last digits of that, as tables show them
    node: String,
}

impl Forget {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let node = connection.open().forget(&self.node).await?;
        print(&format!("{} is forgotten", node.name))?;
        if node.home {
            print("it was the home: what trellis://embedded kept went with it, and another node begins with nothing")?;
        }
        Ok(())
    }
}
