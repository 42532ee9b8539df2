//! `trellis explain`: why an app is placed as it is, what would change that, and where its events went.

use std::collections::BTreeMap;
use std::str::FromStr;

use trellis_daemon::api::types::{AppExplanation, ComponentExplanation, RoutedEvent};
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
        let rows = folded(&explained.routed).into_iter().map(|(one, events)| {
            [time(one.at_ms), events.to_string(), one.component.clone(), one.to.clone(), one.why.clone()]
        });
        text += &format!("\n{}\n", table(["LAST EVENT AT", "EVENTS", "COMPONENT", "RAN ON", "BECAUSE"], rows));
    }
    text
}

/// The last of those events that went the same way for the same reason, and how many there are; by the time of the last.
fn folded(routed: &[RoutedEvent]) -> Vec<(&RoutedEvent, usize)> {
    let mut by_way = BTreeMap::new();
    for one in routed {
        let (last, events) = by_way.entry((&one.component, &one.to, &one.why)).or_insert((one, 0));
        (*last, *events) = (if one.at_ms < last.at_ms { *last } else { one }, *events + 1);
    }
    let mut folded: Vec<_> = by_way.into_values().collect();
    folded.sort_by_key(|(last, _)| last.at_ms);
    folded
}

fn of_component(component: &ComponentExplanation) -> String {
    let rows = component
        .nodes
        .iter()
        .map(|node| [node.node.clone(), node.name.clone(), node.why.clone(), node.change.clone().unwrap_or_default()]);
    let unplaced: String = component.unplaced.iter().map(|why| format!("{why}\n")).collect();
    format!("\n{}\n{unplaced}{}\n", component.name, table(["NODE", "NAME", "WHY", "WHAT WOULD CHANGE IT"], rows))
}
