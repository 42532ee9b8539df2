//! `trellis history`: the versions of an app that are kept, and what became of each.

use trellis_daemon::api::types::VersionStatus;
use trellis_wire::AppName;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table, time};

/// List the versions of an app that are kept, and what became of each
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis history orders
  trellis history orders -o json")]
pub(crate) struct History {
    /// The app
    app: AppName,
    #[command(flatten)]
    output: Output,
}

impl History {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let history = connection.open().app(&self.app).await?.history;
        Ok(self.output.print(&history, |history| render(history))?)
    }
}

fn render(history: &[VersionStatus]) -> String {
    let when = |ms: Option<u64>| ms.map(time).unwrap_or_default();
    let rows = history.iter().map(|one| {
        let why = one.why.clone().unwrap_or_default();
        [one.version.clone(), one.state.clone(), when(one.deployed_ms), when(one.ended_ms), why]
    });
    table(["VERSION", "STATE", "DEPLOYED", "ENDED", "WHY"], rows)
}
