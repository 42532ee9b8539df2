//! The commands, one file each. Adding one is copying a file and adding its line three times below.

mod apps;
mod backup;
mod completions;
mod config;
mod dead_letters;
mod delete;
mod deploy;
mod drain;
mod events;
mod explain;
mod history;
mod inspect;
mod invoke;
mod label;
mod logs;
mod nodes;
mod pause;
mod publish;
mod recover;
mod restore;
mod resume;
mod rollback;
mod status;
mod triggers;
mod undeploy;
mod undrain;
mod up;
mod validate;

use clap::{Parser, Subcommand};

use crate::admin::Connection;
use crate::failure::Failure;

/// Runs WebAssembly components on events, on one machine or on many
#[derive(Debug, Parser)]
#[command(name = "trellis", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Examples:
  trellis up                              start a node on this machine
  trellis deploy app.yaml                 deploy what a manifest declares, and wait until it runs
  trellis status orders                   say what runs where, and why not")]
pub(crate) struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Deploy(deploy::Deploy),
    Undeploy(undeploy::Undeploy),
    Delete(delete::Delete),
    Validate(validate::Validate),
    Rollback(rollback::Rollback),
    History(history::History),
    Apps(apps::Apps),
    Status(status::Status),
    Nodes(nodes::Nodes),
    Drain(drain::Drain),
    Undrain(undrain::Undrain),
    Label(label::Label),
    Explain(explain::Explain),
    Publish(publish::Publish),
    #[command(visible_alias = "run")]
    Invoke(invoke::Invoke),
    Logs(logs::Logs),
    Events(events::Events),
    Config(config::ConfigCommand),
    DeadLetters(dead_letters::DeadLetters),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Recover(recover::Recover),
    Triggers(triggers::Triggers),
    Pause(pause::Pause),
    Resume(resume::Resume),
    Inspect(inspect::Inspect),
    Completions(completions::Completions),
}

impl Cli {
    /// Does the one command that was parsed.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let connection = &self.connection;
        match self.command {
            Command::Up(command) => on_all_cores(command.run(connection)),
            Command::Deploy(command) => on_one_thread(command.run(connection)),
            Command::Undeploy(command) => on_one_thread(command.run(connection)),
            Command::Delete(command) => on_one_thread(command.run(connection)),
            Command::Validate(command) => command.run(),
            Command::Rollback(command) => on_one_thread(command.run(connection)),
            Command::History(command) => on_one_thread(command.run(connection)),
            Command::Apps(command) => on_one_thread(command.run(connection)),
            Command::Status(command) => on_one_thread(command.run(connection)),
            Command::Nodes(command) => on_one_thread(command.run(connection)),
            Command::Drain(command) => on_one_thread(command.run(connection)),
            Command::Undrain(command) => on_one_thread(command.run(connection)),
            Command::Label(command) => on_one_thread(command.run(connection)),
            Command::Explain(command) => on_one_thread(command.run(connection)),
            Command::Publish(command) => on_one_thread(command.run(connection)),
            Command::Invoke(command) => on_one_thread(command.run(connection)),
            Command::Logs(command) => on_one_thread(command.run(connection)),
            Command::Events(command) => on_one_thread(command.run(connection)),
            Command::Config(command) => on_one_thread(command.run(connection)),
            Command::DeadLetters(command) => on_one_thread(command.run(connection)),
            Command::Backup(command) => on_one_thread(command.run(connection)),
            Command::Restore(command) => on_one_thread(command.run(connection)),
            Command::Recover(command) => on_one_thread(command.run()),
            Command::Triggers(command) => on_one_thread(command.run(connection)),
            Command::Pause(command) => on_one_thread(command.run(connection)),
            Command::Resume(command) => on_one_thread(command.run(connection)),
            Command::Inspect(command) => command.run(),
            Command::Completions(command) => command.run(),
        }
    }
}

/// A node uses every core.
fn on_all_cores(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on(tokio::runtime::Builder::new_multi_thread(), command)
}

/// A client sends one request at a time.
fn on_one_thread(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on(tokio::runtime::Builder::new_current_thread(), command)
}

fn block_on(
    mut builder: tokio::runtime::Builder,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let runtime = builder.enable_all().build();
    runtime.map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_says_what_it_does_and_shows_an_example() {
        let mut cli = Cli::command();
        cli.build();
        assert_is_told(&cli);
    }

    fn assert_is_told(parent: &clap::Command) {
        for command in parent.get_subcommands().filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("trellis "), "`{name} --help` has no example");
            assert!(command.get_about().is_some(), "`{name}` does not say what it does");
            assert_is_told(command);
        }
    }
}
