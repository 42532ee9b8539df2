//! `trellis label`: changes labels of a node while it runs.

use std::collections::BTreeMap;

use trellis_daemon::api::types::LabelsRequest;
use trellis_daemon::is_automatic_label;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;

/// Change labels of a node while it runs
///
/// They lie over those it was started with and those it gives itself (os, arch, hostname, ...), and stay when it starts
/// again. What is placed by labels moves.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis label cellar zone=eu disk=ssd
  trellis label cellar zone-                takes a label away")]
pub(crate) struct Label {
    /// The node: its name, its id, or the first or last digits of that, as tables show them
    node: String,
    /// The labels
    #[arg(required = true, value_name = "KEY=VALUE|KEY-")]
    labels: Vec<String>,
}

impl Label {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mut labels = BTreeMap::new();
        for text in &self.labels {
            let (key, value) = parse(text)?;
            if labels.insert(key.clone(), value).is_some() {
                return Err(Failure::Usage(format!("label `{key}` is given twice")));
            }
        }
        let automatic: Vec<String> = labels.keys().filter(|key| is_automatic_label(key)).cloned().collect();
        let node = connection.open().label(&self.node, &LabelsRequest { labels }).await?;
        for key in automatic {
            let (name, given) = (&node.name, &self.node);
            eprintln!(
                "warning: `{key}` is a label that each node gives itself. What you said lies over it, also after {name} starts \
                 again, until `trellis label {given} {key}=VALUE` says something else"
            );
        }
        Ok(print(&format!("{} labelled: {}", node.name, self.labels.join(" ")))?)
    }
}

fn parse(text: &str) -> Result<(String, Option<String>), Failure> {
    let unclear = || Failure::Usage(format!("`{text}` is no label: write KEY=VALUE, or KEY- to take it away"));
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.into(), Some(value.into()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.into(), None)),
        _ => Err(unclear()),
    }
}
