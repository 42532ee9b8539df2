//! How a command fails: what people read on standard error, and what scripts read from the exit code.

use std::io;
use std::process::ExitCode;

use crate::admin::AdminError;

/// Why a command did not do what it was asked. Exit code 2 means that it was asked wrongly, 1 everything else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The node was not reached, or it refused.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// It was tried and did not work; the text says what, where and what to do.
    #[error("{0}")]
    Failed(String),
    /// It was asked wrongly: a file that is not there, an option that does not fit.
    #[error("{0}")]
    Usage(String),
    /// The command has said why already.
    #[error("failed")]
    Said,
    /// Standard output cannot be written. A reader that has gone (`trellis logs | head`) is no failure.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Said => return ExitCode::FAILURE,
            Self::Admin(AdminError::Refused { problem, .. }) => {
                for finding in &problem.findings {
                    eprintln!("{}", finding.rendered.trim_end());
                }
            }
            Self::Admin(_) | Self::Failed(_) | Self::Usage(_) | Self::Output(_) => {}
        }
        eprintln!("error: {self}");
        match self {
            Self::Usage(_) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}
