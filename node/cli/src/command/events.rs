//! `trellis events`: what happens in the lattice.

use trellis_daemon::api::types::CloudEvent;
use trellis_wire::AppName;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print};

/// Show what happens in the lattice: nodes, apps, links, leases, components
///
/// Each event is a CloudEvent 1.0; -o json prints it as it is. Every node has the last two thousand since it started.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis events -f
  trellis events -f orders
  trellis events -o json | jq .type
  curl -N 'http://127.0.0.1:7878/v1/events?follow=true'")]
pub(crate) struct Events {
    /// Only what is about this app
    app: Option<AppName>,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    /// How many past events to begin with
    #[arg(long, default_value_t = 200, value_name = "N")]
    lines: u32,
    #[command(flatten)]
    output: Output,
}

impl Events {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mut lines = connection.open().events(self.app.as_ref(), self.follow, self.lines).await?;
        while let Some(line) = lines.next().await? {
            match serde_json::from_slice::<CloudEvent>(&line) {
                Ok(event) if !self.output.is_json() => print(&render(&event))?,
                // What a newer node says that this version cannot read is shown as it came.
                _ => print(&String::from_utf8_lossy(&line))?,
            }
        }
        Ok(())
    }
}

fn render(event: &CloudEvent) -> String {
    let kind = event.kind.strip_prefix("trellis.").unwrap_or(&event.kind);
    let data = event.data.as_object().into_iter().flatten();
    let told = data.filter(|(_, value)| !value.is_null() && value.as_str() != Some(&event.subject));
    let told: Vec<String> = told.map(|(key, value)| format!("{key}={}", plain(value))).collect();
    format!("{} {kind:<18} {} {}", event.time, event.subject, told.join(" ")).trim_end().into()
}

/// Text without its quotes.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
