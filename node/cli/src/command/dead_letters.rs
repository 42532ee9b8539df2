//! `trellis dead-letters`: messages that were given up, to look at, to handle after all, or to forget.

use std::time::Duration;

use clap::Subcommand;
use trellis_daemon::api::types::DeadLetterStatus;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print, table, time};
use crate::quantity::Time;
use crate::scope::Scope;

/// List, show, replay and drop messages that were given up
///
/// Wherever they are: any node asks those that run the app. They are kept for 14 days.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis dead-letters list orders
  trellis dead-letters show orders orders-in-17
  trellis dead-letters replay orders/invoice --reason max-faults --rate 10")]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them, one line each
    #[command(after_help = "Example:
  trellis dead-letters list orders/invoice")]
    List {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        output: Output,
    },
    /// Show one whole: the message, and every fault with its backtrace
    #[command(after_help = "Example:
  trellis dead-letters show orders orders-in-17")]
    Show {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        /// Its id, as listed
        id: String,
        #[command(flatten)]
        output: Output,
    },
    /// Put them back into their queues, each once: those named, or all that are chosen
    ///
    /// Of an ordered link the oldest goes first, and its key goes on once it is handled.
    #[command(after_help = "Examples:
  trellis dead-letters replay orders orders-in-17
  trellis dead-letters replay orders/invoice --reason max-faults --older-than 1h --rate 10")]
    Replay {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        /// Ids, as listed
        ids: Vec<String>,
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many each second
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
    },
    /// Forget those named
    #[command(after_help = "Example:
  trellis dead-letters drop orders orders-in-17")]
    Drop {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        /// Ids, as listed
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Which of them, where not all.
#[derive(Debug, Default, clap::Args)]
struct Chosen {
    /// Given up for this: refused, max-attempts, max-faults, max-age, killed-its-node
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// Given up at least so long ago, such as 1h
    #[arg(long, value_name = "TIME")]
    older_than: Option<Time>,
}

impl Chosen {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let reason = self.reason.clone().map(|reason| ("reason", reason));
        let age = self.older_than.map(|Time(age)| ("older_than_ms", age.as_millis().to_string()));
        reason.into_iter().chain(age).collect()
    }
}

async fn letters(of: &Scope, chosen: &Chosen, connection: &Connection) -> Result<Vec<DeadLetterStatus>, Failure> {
    Ok(connection.open().dead_letters(of, &chosen.pairs()).await?)
}

/// The letters of these ids; a wrong id is said before anything is done.
async fn named(of: &Scope, ids: &[String], connection: &Connection) -> Result<Vec<DeadLetterStatus>, Failure> {
    let mut letters = Vec::with_capacity(ids.len());
    for id in ids {
        let found = connection.open().dead_letters(of, &[("id", id.clone())]).await?.into_iter().next();
        letters.push(found.ok_or_else(|| Failure::Usage(format!("there is no dead letter {id} of {of}")))?);
    }
    Ok(letters)
}

impl DeadLetters {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.action {
            Action::List { of, chosen, output } => {
                let letters = letters(&of, &chosen, connection).await?;
                Ok(output.print(&letters, |letters| render(letters))?)
            }
            Action::Show { of, id, output } => {
                let letter = named(&of, &[id], connection).await?.remove(0);
                Ok(output.print(&letter, render_whole)?)
            }
            Action::Replay { of, ids, chosen, rate } => {
                let letters = match ids.is_empty() {
                    true => letters(&of, &chosen, connection).await?,
                    false => named(&of, &ids, connection).await?,
                };
                for letter in &letters {
                    let pause = rate.map(|rate| tokio::time::sleep(Duration::from_secs(1) / rate));
                    connection.open().replay_dead_letter(&of.app, &letter.id).await?;
                    if let Some(pause) = pause {
                        pause.await;
                    }
                }
                Ok(print(&format!("{} replayed", letters.len()))?)
            }
            Action::Drop { of, ids } => {
                let letters = named(&of, &ids, connection).await?;
                for letter in &letters {
                    connection.open().drop_dead_letter(&of.app, &letter.id).await?;
                }
                Ok(print(&format!("{} dropped", letters.len()))?)
            }
        }
    }
}

fn render(letters: &[DeadLetterStatus]) -> String {
    if letters.is_empty() {
        return "no dead letters".into();
    }
    let rows = letters.iter().map(|letter| {
        [
            letter.id.clone(),
            letter.component.clone(),
            letter.subject.clone(),
            letter.attempts.to_string(),
            letter.reason.clone(),
            time(letter.at_ms),
        ]
    });
    table(["ID", "COMPONENT", "SUBJECT", "ATTEMPTS", "REASON", "GIVEN UP"], rows)
}

fn render_whole(letter: &DeadLetterStatus) -> String {
    let mut text = format!(
        "{} of {}, from queue {}, subject {}\n{} after {} attempts, {}: {}\ncode {}, generation {}, trace {}\n",
        letter.id,
        letter.component,
        letter.queue,
        letter.subject,
        time(letter.at_ms),
        letter.attempts,
        letter.reason,
        letter.detail,
        or_none(&letter.digest),
        letter.generation,
        or_none(&letter.trace),
    );
    for (name, value) in &letter.headers {
        text.push_str(&format!("header {name}: {value}\n"));
    }
    for (i, fault) in letter.faults.iter().enumerate() {
        text.push_str(&format!("fault {}: {}\n", i + 1, fault.trim_end().replace('\n', "\n    ")));
    }
    match &letter.body_text {
        Some(body) => text.push_str(&format!("body: {body}")),
        None => text.push_str(&format!("body, base64: {}", letter.body_base64)),
    }
    text
}

/// What is empty is none.
fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
