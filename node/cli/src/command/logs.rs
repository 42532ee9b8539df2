//! `trellis logs`: what guests said, printed, and how they failed.

use trellis_daemon::api::types::LogLine;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print, time};
use crate::scope::Scope;

/// Show what components logged, printed and failed with
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis logs orders
  trellis logs -f orders/invoice
  trellis logs orders -o json --lines 1000")]
pub(crate) struct Logs {
    /// The app, or one component of it; everything where none is named
    #[arg(value_name = "APP[/COMPONENT]")]
    of: Option<Scope>,
    /// Go on printing what comes
    #[arg(short, long)]
    follow: bool,
    /// How many past lines to begin with
    #[arg(long, default_value_t = 200, value_name = "N")]
    lines: u32,
    #[command(flatten)]
    output: Output,
}

impl Logs {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let app = self.of.as_ref().map(|of| &of.app);
        let component = self.of.as_ref().and_then(Scope::component);
        let mut lines = connection.open().logs(app, component, self.follow, self.lines).await?;
        while let Some(line) = lines.next().await? {
            let text = String::from_utf8_lossy(&line);
            match serde_json::from_slice::<LogLine>(&line) {
                Ok(line) if !self.output.is_json() => print(&render(&line))?,
                // A line of a newer node that this version cannot read is shown as it came.
                _ => print(&text)?,
            }
        }
        Ok(())
    }
}

fn render(line: &LogLine) -> String {
    let (at, level) = (time(line.at_ms), line.level.to_uppercase());
    let context = if line.context.is_empty() { String::new() } else { format!(" [{}]", line.context) };
    let message = line.message.trim_end().replace('\n', "\n    ");
    format!("{at} {level:<8} {}/{} {}{context} {message}", line.app, line.component, line.event)
}
