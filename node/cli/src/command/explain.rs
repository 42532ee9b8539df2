//! `trellis explain`: why an app is placed as it is, what would change that, and where its events went.

use std::str::FromStr;

use trellis_daemon::api::types::{AppExplanation, ComponentExplanation};
use trellis_wire::{AppName, ComponentKey, IdError};

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, table, time};

/// Say why an app is placed as it is, what would change that, and where its events went
///
/// An event runs on the node where it arrives if that node holds the component and has a permit free; else on a node that
/// holds it, those with the most permits first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis explain orders
  trellis explain orders/api")]
pub(crate) struct Explain {
    /// The app, or one component or provider of it
    #[arg(value_name = "APP[/COMPONENT]")]
    what: What,
    #[command(flatten)]
    output: Output,
}

/// An app, or one of its entries.
#[derive(Debug, Clone)]
struct What {
    app: AppName,
    entry: Option<String>,
}

impl FromStr for What {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if !text.contains('/') {
            return Ok(Self { app: text.parse()?, entry: None });
        }
        let ComponentKey { app, name } = text.parse()?;
        Ok(Self { app, entry: Some(name.to_string()) })
    }
}

impl Explain {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let mut explained = connection.open().explain(&self.what.app).await?;
        if let Some(entry) = &self.what.entry {
            explained.components.retain(|component| component.name == *entry);
            explained.routed.retain(|routed| routed.component == *entry);
            if explained.components.is_empty() {
                let app = &self.what.app;
                return Err(Failure::Failed(format!(
                    "{app}/{entry} does not run; `trellis explain {app}` lists what does"
                )));
            }
        }
        Ok(self.output.print(&explained, render)?)
    }
}

fn render(explained: &AppExplanation) -> String {
    let mut text: String = explained.notes.iter().map(|note| format!("{note}\n")).collect();
    explained.components.iter().for_each(|component| text += &of_component(component));
    if !explained.routed.is_empty() {
        let rows = explained
            .routed
            .iter()
            .map(|one| [time(one.at_ms), one.component.clone(), one.to.clone(), one.why.clone()]);
        text += &format!("\n{}\n", table(["EVENT AT", "COMPONENT", "RAN ON", "BECAUSE"], rows));
    }
    text
}

fn of_component(component: &ComponentExplanation) -> String {
    let rows = component
        .nodes
        .iter()
        .map(|node| [node.node.clone(), node.name.clone(), node.why.clone(), node.change.clone().unwrap_or_default()]);
    let unplaced: String = component.unplaced.iter().map(|why| format!("{why}\n")).collect();
    format!("\n{}\n{unplaced}{}\n", component.name, table(["NODE", "NAME", "WHY", "WHAT WOULD CHANGE IT"], rows))
}
