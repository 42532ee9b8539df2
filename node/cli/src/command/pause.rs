//! `trellis pause`: queues and timers wake a component no more, until `trellis resume`.

use trellis_wire::ComponentKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Let queues and timers wake a component no more
///
/// On every node of the lattice. Messages wait where they are, and ticks are missed; those in handlers end. A pause outlives
/// new versions.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis pause orders/invoice")]
pub(crate) struct Pause {
    /// The component
    #[arg(value_name = "APP/COMPONENT")]
    of: ComponentKey,
}

impl Pause {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        connection.open().pause(&self.of, true).await?;
        let of = &self.of;
        Ok(print(&format!("{of} is paused: queues and timers do not wake it until `trellis resume {of}`"))?)
    }
}
