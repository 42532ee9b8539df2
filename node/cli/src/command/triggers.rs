//! `trellis triggers`: how the queues and timers go that wake components, once or as a live table.

use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use trellis_daemon::api::types::{TriggerStatus, TriggersStatus};
use trellis_wire::AppName;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print, table};

/// How often a live table is drawn anew.
const EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show the queues and timers that wake components
///
/// Waiting messages and the age of the oldest (`not told` where the broker shows none that waits, as RabbitMQ), messages in
/// handlers, outcomes since the nodes started, dead letters, and how long messages wait and handlers take on average.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis triggers
  trellis triggers orders
  trellis triggers -f
  trellis triggers -o json")]
pub(crate) struct Triggers {
    /// Only those of this app
    app: Option<AppName>,
    /// Go on showing them, anew each second
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: Output,
}

impl Triggers {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        loop {
            let status = self.ask(connection).await?;
            if self.follow && !self.output.is_json() && stdout().is_terminal() {
                print(CLEAR)?;
            }
            self.output.print(&status, |status| render(status, self.app.as_ref()))?;
            if !self.follow {
                return Ok(());
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn ask(&self, connection: &Connection) -> Result<TriggersStatus, Failure> {
        let mut status = connection.open().triggers().await?;
        let Some(app) = &self.app else { return Ok(status) };
        status.triggers.retain(|trigger| trigger.component.split('/').next() == Some(app.as_str()));
        if status.triggers.is_empty() {
            // Says so if there is no such app.
            connection.open().app(app).await?;
        }
        Ok(status)
    }
}

fn render(status: &TriggersStatus, app: Option<&AppName>) -> String {
    if status.triggers.is_empty() {
        let of = app.map_or_else(String::new, |app| format!(" of {app}"));
        return format!("no queue and no timer wakes a component{of}");
    }
    let heading = [
        "COMPONENT",
        "FROM",
        "STATE",
        "WAITING",
        "OLDEST",
        "IN FLIGHT",
        "ACK",
        "RETRY",
        "DEAD",
        "DROP",
        "LETTERS",
        "PERMIT",
        "QUEUED",
        "RUN",
    ];
    let mut text = table(heading, status.triggers.iter().map(row));
    let problems = status
        .triggers
        .iter()
        .flat_map(|trigger| trigger.problems.iter().map(move |problem| format!("\n{}: {problem}", trigger.component)));
    text.extend(problems);
    text.extend(status.problems.iter().map(|problem| format!("\n{problem}")));
    text
}

fn row(trigger: &TriggerStatus) -> [String; 14] {
    let count = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
    let outcome = |word: &str| count(trigger.outcomes.get(word).copied());
    [
        trigger.component.clone(),
        trigger.system.clone(),
        trigger.state.clone(),
        count(trigger.waiting),
        oldest(trigger.oldest_age_ms, trigger.waiting),
        trigger.in_flight.to_string(),
        outcome("ack"),
        outcome("retry"),
        outcome("dead-letter"),
        outcome("drop"),
        count(trigger.dead_letters),
        trigger.permit_wait_ms.map_or("-".into(), span),
        trigger.in_queue_ms.map_or("-".into(), span),
        trigger.run_ms.map_or("-".into(), span),
    ]
}

/// The age of the oldest message: a broker may have some and show none.
fn oldest(age_ms: Option<u64>, waiting: Option<u64>) -> String {
    match (age_ms, waiting) {
        (Some(ms), _) => span(ms as f64),
        (None, Some(1..)) => "not told".into(),
        (None, _) => "-".into(),
    }
}

/// A time in the unit that fits it.
fn span(ms: f64) -> String {
    match ms {
        ms if ms < 1_000.0 => format!("{ms:.1}ms"),
        ms if ms < 120_000.0 => format!("{:.1}s", ms / 1_000.0),
        ms => format!("{:.0}min", ms / 60_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_the_unit_that_fits() {
        assert_eq!([0.25, 999.0, 1_500.0, 600_000.0].map(span), ["0.2ms", "999.0ms", "1.5s", "10min"]);
    }

    #[test]
    fn a_broker_that_does_not_tell_how_old_the_oldest_is_looks_other_than_an_empty_queue() {
        let shown = [(Some(1_500), Some(3)), (None, Some(3)), (None, Some(0)), (None, None)];
        assert_eq!(shown.map(|(age_ms, waiting)| oldest(age_ms, waiting)), ["1.5s", "not told", "-", "-"]);
    }
}
