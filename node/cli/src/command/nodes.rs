//! `trellis nodes`: the nodes of the lattice, as the asked node knows them.

mod allow;
mod disallow;
mod forget;
mod thaw;
mod timings;
mod token;

use trellis_daemon::api::types::{LatticeStatus, NodeStatus};

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};

/// List the nodes of the lattice
///
/// One of them leads. One is the home: what trellis://embedded keeps is in its file, and others reach it over the bus.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis nodes
  trellis nodes -o json
  trellis nodes forget ID
  trellis nodes thaw
  trellis nodes timings --lease 8s --lost-after 12s
  trellis nodes allow KEY")]
pub(crate) struct Nodes {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    output: Output,
}

impl Nodes {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.action {
            Some(Action::Forget(forget)) => return forget.run(connection).await,
            Some(Action::Thaw(thaw)) => return thaw.run(connection).await,
            Some(Action::Timings(timings)) => return timings.run(connection).await,
            Some(Action::Allow(allow)) => return allow.run(connection).await,
            Some(Action::Disallow(disallow)) => return disallow.run(connection).await,
            Some(Action::Token(token)) => return token.run(connection).await,
            None => {}
        }
        let admin = connection.open();
        let nodes = admin.nodes().await?;
        if !self.output.is_json() {
            // First: where the node is cut off, it is said of the list.
            tell(&admin.lattice().await?);
        }
        Ok(self.output.print(&nodes, |nodes| render(nodes))?)
    }
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Forget(forget::Forget),
    Thaw(thaw::Thaw),
    Timings(timings::Timings),
    Allow(allow::Allow),
    Disallow(disallow::Disallow),
    Token(token::Token),
}

/// What is to be known of the lattice as a whole, beside the list.
fn tell(lattice: &LatticeStatus) {
    eprintln!("lattice {}: {}", lattice.name, lattice.trust);
    for problem in &lattice.problems {
        eprintln!("not well: {problem}");
    }
}

/// What a node is to the log, and what it alone does.
fn role(node: &NodeStatus) -> String {
    let alone: Vec<&str> =
        [(node.leader, "leads"), (node.home, "home")].iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    if alone.is_empty() { node.role.clone() } else { format!("{} ({})", node.role, alone.join(", ")) }
}

fn render(nodes: &[NodeStatus]) -> String {
    let rows = nodes.iter().map(|node| {
        let labels: Vec<_> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        [
            node.id.clone(),
            node.name.clone(),
            role(node),
            node.state.clone(),
            node.lag.map_or_else(String::new, |lag| lag.to_string()),
            node.running.map_or("?".into(), |running| running.to_string()),
            node.last_seen_ms.map_or("?".into(), |ms| format!("{:.1} s ago", ms as f64 / 1000.0)),
            node.version.clone(),
            labels.join(","),
        ]
    });
    table(["NODE", "NAME", "ROLE", "STATE", "LAG", "RUNNING", "SEEN", "VERSION", "LABELS"], rows)
}
