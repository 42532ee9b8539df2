//! `trellis drain`: moves everything off a node, before it is stopped or mended.

use trellis_daemon::api::types::DrainReply;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Move everything off a node
///
/// What other nodes can hold ends here once it is ready there; `trellis status APP` shows what moved where. What no other
/// node can hold ends at once, and is named. What trellis://embedded keeps is never moved: a node that is its home goes on
/// answering for it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis drain cellar
  trellis drain ..67b1e9fc")]
pub(crate) struct Drain {
    /// The node: its name, its id, or the first or last digits of that, as tables show them
    node: String,
}

impl Drain {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let DrainReply { node, unplaced } = connection.open().drain(&self.node).await?;
        let word = if node.name.contains(' ') { &node.id } else { &node.name };
        print(&format!("{} is drained: it holds nothing until `trellis undrain {word}`", node.name))?;
        if node.home {
            print("it stays the home: what trellis://embedded keeps is unavailable while the node is not running")?;
        }
        for missing in unplaced {
            eprintln!("warning: no other node can hold all of {missing}");
        }
        Ok(())
    }
}
