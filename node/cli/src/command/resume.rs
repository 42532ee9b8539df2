//! `trellis resume`: queues and timers wake a component again, whoever paused it.

use trellis_wire::ComponentKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Let queues and timers wake a component again
///
/// Ends a pause by `trellis pause`, and one that a trigger made by itself because most messages failed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis resume orders/invoice")]
pub(crate) struct Resume {
    /// The component
    #[arg(value_name = "APP/COMPONENT")]
    of: ComponentKey,
}

impl Resume {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        connection.open().pause(&self.of, false).await?;
        Ok(print(&format!("queues and timers wake {} again", self.of))?)
    }
}
