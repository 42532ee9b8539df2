//! `trellis explain`: why each node holds a component or not.

use trellis_daemon::api::types::NodeVerdict;
use trellis_wire::ComponentKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};

/// Say of each node why it holds a component, or why not
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  trellis explain orders/api")]
pub(crate) struct Explain {
    /// The component or provider
    #[arg(value_name = "APP/COMPONENT")]
    component: ComponentKey,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let verdicts = connection.open().explain(&self.component).await?;
        Ok(self.output.print(&verdicts, |verdicts| render(verdicts))?)
    }
}

fn render(verdicts: &[NodeVerdict]) -> String {
    let rows = verdicts.iter().map(|verdict| [verdict.node.clone(), verdict.name.clone(), verdict.why.clone()]);
    table(["NODE", "NAME", "WHY"], rows)
}
