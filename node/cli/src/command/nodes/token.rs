//! `trellis nodes token`: sets another join token.

use std::path::PathBuf;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Set another join token
///
/// From then on joining takes this one; members stay members. A lattice that was open is closed by this.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  openssl rand -hex 24 > join-token && trellis nodes token join-token")]
pub(crate) struct Token {
    /// The file that holds it
    file: PathBuf,
}

impl Token {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let unread =
            |error: std::io::Error| Failure::Usage(format!("cannot read {}: {}", self.file.display(), error.kind()));
        let token = std::fs::read_to_string(&self.file).map_err(unread)?;
        connection.open().set_join_token(token.trim().to_owned()).await?;
        Ok(print("the lattice has another join token")?)
    }
}
