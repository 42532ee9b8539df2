//! `trellis publish`: sends one message, to wake what subscribes to its subject.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use trellis_daemon::api::types::{PUBLISH_BYTES_MAX, PublishReply, PublishRequest};

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::Output;
use crate::quantity::Pair;

/// Publish one message
///
/// It goes out on the lattice's NATS where there is one, and to the links of `trellis://embedded` that take the subject.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis publish orders.placed '{\"id\": 7}' --header content-type=application/json
  cat order.json | trellis publish orders.placed -")]
pub(crate) struct Publish {
    /// The subject
    subject: String,
    /// The body; `-` reads it from standard input
    #[arg(allow_hyphen_values = true)]
    body: String,
    /// A header; may be given several times
    #[arg(long = "header", value_name = "KEY=VALUE")]
    headers: Vec<Pair>,
    #[command(flatten)]
    output: Output,
}

impl Publish {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let body = if self.body == "-" { standard_input()? } else { self.body.into_bytes() };
        let request = PublishRequest {
            subject: self.subject.clone(),
            body_base64: BASE64.encode(body),
            headers: self.headers.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        };
        let reply = connection.open().publish(&request).await?;
        Ok(self.output.print(&reply, |reply| render(&self.subject, reply))?)
    }
}

fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let read = std::io::stdin().lock().take(PUBLISH_BYTES_MAX as u64 + 1).read_to_end(&mut body);
    read.map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?;
    if body.len() > PUBLISH_BYTES_MAX {
        return Err(Failure::Usage(format!("the body on standard input is larger than {PUBLISH_BYTES_MAX} bytes")));
    }
    Ok(body)
}

fn render(subject: &str, reply: &PublishReply) -> String {
    match reply.receivers {
        Some(0) => format!("published to {subject} via {}; no link subscribes to it", reply.via),
        Some(1) => format!("published to {subject} via {}, to 1 subscription", reply.via),
        Some(receivers) => format!("published to {subject} via {}, to {receivers} subscriptions", reply.via),
        None => format!("published to {subject} via {}", reply.via),
    }
}
