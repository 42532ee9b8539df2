//! `trellis rollback`: goes back to a version that is kept, and waits until it runs.

use std::time::Duration;

use trellis_daemon::api::types::RollbackReply;
use trellis_wire::AppName;

use super::{deploy, status};
use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print};
use crate::quantity::duration;

/// Go back to the version before, or to a named one that is kept, and wait until it runs
///
/// A version that is being rolled out, or is watched still, is taken back at once. One further back is rolled out as any
/// other: made ready first, then step by step.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis rollback orders
  trellis rollback orders v3")]
pub(crate) struct Rollback {
    /// The app
    app: AppName,
    /// The version; `trellis history` lists them [default: the one before]
    version: Option<String>,
    /// How long to wait until it is ready
    #[arg(long, value_name = "TIME", default_value = deploy::WAIT_DEFAULT, value_parser = duration)]
    wait: Duration,
    #[command(flatten)]
    output: Output,
}

impl Rollback {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let admin = connection.open();
        let reply = admin.rollback(&self.app, self.version).await?;
        if !self.output.is_json() {
            print(&told_of(&reply))?;
        }
        let status = deploy::ready(&admin, &self.app, &reply.version, self.wait).await?;
        Ok(self.output.print(&status, status::render)?)
    }
}

fn told_of(RollbackReply { app, version, outcome }: &RollbackReply) -> String {
    match outcome.as_str() {
        "runs" => format!("{app} {version} runs already; nothing changed"),
        "on_its_way" => format!("{app} {version} is on its way already; nothing changed"),
        _ => format!("{app} goes back to {version}"),
    }
}
