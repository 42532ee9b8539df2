//! `trellis invoke`: runs a component's `wasi:cli/run` once, as if it ran here.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use trellis_daemon::api::types::{InvokeReply, InvokeRequest};
use trellis_wire::ComponentKey;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, json, print};

/// Run a component once and print what it wrote
///
/// The exit code is 0 when the component ended in ok, else 1. Options stand before APP/COMPONENT: what follows it is
/// the component's own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis invoke orders/report
  trellis invoke orders/report --since 2026-11-01")]
pub(crate) struct Invoke {
    /// The component, which exports wasi:cli/run
    #[arg(value_name = "APP/COMPONENT")]
    component: ComponentKey,
    /// Arguments for it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl Invoke {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let reply = connection.open().invoke(&self.component, &InvokeRequest { args: self.args }).await?;
        if self.output.is_json() {
            print(&json(&reply))?;
        } else {
            pass_on(&reply)?;
        }
        if reply.ok { Ok(()) } else { Err(Failure::Said) }
    }
}

/// Writes the bytes as they are: they may be no text at all.
fn pass_on(reply: &InvokeReply) -> Result<(), Failure> {
    let decoded = |what: &str, text: &str| {
        BASE64.decode(text).map_err(|error| Failure::Failed(format!("the node's {what} is no base64: {error}")))
    };
    let (stdout, stderr) = (decoded("stdout", &reply.stdout_base64)?, decoded("stderr", &reply.stderr_base64)?);
    std::io::stderr().write_all(&stderr)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&stdout)?;
    Ok(out.flush()?)
}
