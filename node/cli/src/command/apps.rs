//! `trellis apps`: every app that the lattice knows, one line each.

use trellis_daemon::api::types::AppSummary;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};

/// What is said where there are none.
pub(super) const NO_APPS: &str = "no apps yet; deploy one with `trellis deploy FILE`";

/// List the apps
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis apps
  trellis apps -o json --admin http://10.0.0.5:7878")]
pub(crate) struct Apps {
    #[command(flatten)]
    output: Output,
}

impl Apps {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let apps = connection.open().apps().await?;
        Ok(self.output.print(&apps, |apps| render(apps))?)
    }
}

fn render(apps: &[AppSummary]) -> String {
    if apps.is_empty() {
        return NO_APPS.into();
    }
    let rows = apps.iter().map(|app| {
        [
            app.app.clone(),
            app.version.clone(),
            app.state.clone(),
            app.components.to_string(),
            app.providers.to_string(),
            app.description.clone().unwrap_or_default(),
        ]
    });
    table(["APP", "VERSION", "STATE", "COMPONENTS", "PROVIDERS", "DESCRIPTION"], rows)
}
