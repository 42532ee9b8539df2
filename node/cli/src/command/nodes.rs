//! `trellis nodes`: the nodes of the lattice, as the asked node knows them.

use trellis_daemon::api::types::NodeStatus;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};

/// List the nodes of the lattice
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis nodes
  trellis nodes -o json")]
pub(crate) struct Nodes {
    #[command(flatten)]
    output: Output,
}

impl Nodes {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let nodes = connection.open().nodes().await?;
        Ok(self.output.print(&nodes, |nodes| render(nodes))?)
    }
}

fn render(nodes: &[NodeStatus]) -> String {
    let rows = nodes.iter().map(|node| {
        let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        [
            node.id.clone(),
            node.name.clone(),
            if node.leader { format!("{} (leads)", node.role) } else { node.role.clone() },
            node.state.clone(),
            node.running.map_or("?".into(), |running| running.to_string()),
            node.last_seen_ms.map_or("?".into(), |ms| format!("{:.1} s ago", ms as f64 / 1000.0)),
            node.version.clone(),
            labels.join(","),
        ]
    });
    table(["NODE", "NAME", "ROLE", "STATE", "RUNNING", "SEEN", "VERSION", "LABELS"], rows)
}
