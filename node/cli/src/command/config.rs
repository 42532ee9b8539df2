//! `trellis config`: named config that lives in the lattice, apart from any manifest.

use clap::Subcommand;
use trellis_daemon::api::types::ConfigBody;
use trellis_wire::credentials::{self, Held};

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print};
use crate::quantity::Pair;

/// Put, get, delete and list config that manifests name
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis config put redis-eu url=redis://10.0.0.7:6379 prefix=shop
  trellis config get redis-eu")]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write a config whole: what it held before is gone
    #[command(after_help = "Example:
  trellis config put redis-eu url=redis://10.0.0.7:6379 prefix=shop")]
    Put {
        /// Its name
        name: String,
        /// Its values
        #[arg(required = true, value_name = "KEY=VALUE")]
        pairs: Vec<Pair>,
    },
    /// Print a config
    #[command(after_help = "Example:
  trellis config get redis-eu -o json")]
    Get {
        /// Its name
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a config
    #[command(
        visible_alias = "delete",
        after_help = "Example:
  trellis config del redis-eu"
    )]
    Del {
        /// Its name
        name: String,
    },
    /// List the names of all config
    #[command(after_help = "Example:
  trellis config list")]
    List {
        #[command(flatten)]
        output: Output,
    },
}

impl ConfigCommand {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.action {
            Action::Put { name, pairs } => put(&name, pairs, connection).await,
            Action::Get { name, output } => {
                let body = connection.open().config(&name).await?;
                Ok(output.print(&body, render)?)
            }
            Action::Del { name } => {
                connection.open().delete_config(&name).await?;
                Ok(print(&format!("{name} deleted"))?)
            }
            Action::List { output } => {
                let names = connection.open().configs().await?;
                Ok(output.print(&names, |names| names.join("\n"))?)
            }
        }
    }
}

async fn put(name: &str, pairs: Vec<Pair>, connection: &Connection) -> Result<(), Failure> {
    let mut body = ConfigBody { values: Default::default() };
    for Pair { key, value } in pairs {
        if body.values.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("`{key}` is given twice")));
        }
    }
    for (key, _) in body.values.iter().filter(|(key, value)| credentials::held(key, value) == Some(Held::AsWasmcloud)) {
        eprintln!("`{key}` is a credential, which the lattice keeps and shows: name it in a manifest's `secrets`");
    }
    connection.open().put_config(name, &body).await?;
    Ok(print(&format!("{name} written"))?)
}

fn render(body: &ConfigBody) -> String {
    body.values.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
}
