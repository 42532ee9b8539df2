//! `trellis undeploy`: stops an app and keeps its versions.

use trellis_wire::AppName;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Stop an app and keep its versions
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis undeploy orders")]
pub(crate) struct Undeploy {
    /// The app
    app: AppName,
}

impl Undeploy {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        connection.open().undeploy(&self.app).await?;
        Ok(print(&format!("{} undeployed; its versions are kept until `trellis delete {}`", self.app, self.app))?)
    }
}
