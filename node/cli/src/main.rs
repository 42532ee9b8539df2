//! `trellis`: the command line. It parses, does one command, and says how that ended. Each command is one file under
//! `command/`; `admin` is how they ask a node; `settings` is what `up` can be told, and from where.

mod admin;
mod artifact;
mod command;
mod failure;
mod machine;
mod output;
mod quantity;
mod scope;
mod settings;
mod source;

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;

/// An event makes and frees some hundred small things, on whichever thread has time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().expect("nothing installs a provider before main does");
    match command::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
