//! `trellis completions`: a script that teaches a shell the commands.

use clap::CommandFactory as _;

use super::Cli;
use crate::failure::Failure;
use crate::output::print;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis completions bash > ~/.local/share/bash-completion/completions/trellis
  trellis completions zsh > ~/.zfunc/_trellis")]
pub(crate) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "trellis", &mut script);
        Ok(print(&String::from_utf8_lossy(&script))?)
    }
}
