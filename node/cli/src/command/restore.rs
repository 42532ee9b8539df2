//! `trellis restore`: brings back what `trellis backup` wrote.

use std::path::PathBuf;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Bring back apps and config from a backup, on a lattice that has none
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis restore lattice.backup")]
pub(crate) struct Restore {
    /// What `trellis backup` wrote
    file: PathBuf,
}

impl Restore {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let unread =
            |why: std::io::Error| Failure::Usage(format!("cannot read {}: {}", self.file.display(), why.kind()));
        let file = std::fs::File::open(&self.file).map_err(unread)?;
        if file.metadata().map_err(unread)?.is_dir() {
            return Err(unread(std::io::ErrorKind::IsADirectory.into()));
        }
        let restored = connection.open().restore(file).await?;
        let (commands, artifacts) = (restored.commands, restored.artifacts);
        Ok(print(&format!("restored {commands} commands and {artifacts} artifacts; `trellis apps` lists what runs"))?)
    }
}
