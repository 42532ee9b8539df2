//! `trellis backup`: apps with their versions, config and artifacts, in one file.

use std::path::PathBuf;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{print, size};

/// Write apps, their versions and code, and config to a file
///
/// What providers store, nodes and leases are not in it. It holds config as it is: keep it from others.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis backup lattice.backup")]
pub(crate) struct Backup {
    /// The file. It is not there until all of it is
    file: PathBuf,
}

impl Backup {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let failed = |why: std::io::Error| {
            Failure::Failed(format!("the backup cannot be written to {}: {}", self.file.display(), why.kind()))
        };
        if self.file.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let part = tempfile::NamedTempFile::new_in(folder.unwrap_or_else(|| ".".as_ref())).map_err(failed)?;
        let mut out = std::io::BufWriter::new(part);
        let saved = connection.open().backup(&mut out).await?;
        let part = out.into_inner().map_err(|why| failed(why.into_error()))?;
        part.as_file().sync_all().map_err(failed)?;
        part.persist(&self.file).map_err(|why| failed(why.error))?;
        if saved.is_stale {
            eprintln!(
                "warning: the node is cut off from its lattice, and gave what it knew of it by then: `trellis status`"
            );
        }
        if !saved.left_out.is_empty() {
            eprintln!("warning: past versions are not whole in it, since no node has an artifact of theirs any more:");
            saved.left_out.iter().for_each(|version| eprintln!("  {version}"));
        }
        Ok(print(&format!("{}: {}", self.file.display(), size(saved.bytes)))?)
    }
}
