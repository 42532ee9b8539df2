//! `trellis delete`: stops an app and forgets it, versions and all.

use trellis_wire::AppName;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Stop an app and forget it with all its versions
///
/// Queues, streams and data that it used are not touched.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis delete orders")]
pub(crate) struct Delete {
    /// The app
    app: AppName,
}

impl Delete {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        connection.open().delete(&self.app).await?;
        Ok(print(&format!("{} deleted", self.app))?)
    }
}
