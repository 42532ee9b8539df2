//! `trellis dead-letters`: messages that were given up, to look at, to handle after all, or to forget.

use clap::Subcommand;
use trellis_daemon::api::types::DeadLetterStatus;

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::{Output, print, table, time};
use crate::scope::Scope;

/// List, show, replay and drop messages that were given up
///
/// Those of queues of `trellis://embedded` on the node that is asked. On NATS they are in the stream <STREAM>_DEAD.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis dead-letters list orders
  trellis dead-letters show orders orders-in-17
  trellis dead-letters replay orders/invoice")]
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
    /// Put them back into their queues, each once: all that are listed, or those named
    #[command(after_help = "Example:
  trellis dead-letters replay orders orders-in-17")]
    Replay {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        /// Ids, as listed
        ids: Vec<String>,
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

async fn letters(of: &Scope, connection: &Connection) -> Result<Vec<DeadLetterStatus>, Failure> {
    Ok(connection.open().dead_letters(&of.app, of.component()).await?)
}

/// The letters of these ids; a wrong id is said before anything is done.
async fn named(of: &Scope, ids: &[String], connection: &Connection) -> Result<Vec<DeadLetterStatus>, Failure> {
    let letters = letters(of, connection).await?;
    let unknown = ids.iter().find(|id| !letters.iter().any(|letter| letter.id == **id));
    match unknown {
        Some(id) => Err(Failure::Usage(format!("there is no dead letter {id} of {}", of.app))),
        None => Ok(letters.into_iter().filter(|letter| ids.contains(&letter.id)).collect()),
    }
}

impl DeadLetters {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.action {
            Action::List { of, output } => {
                let letters = letters(&of, connection).await?;
                Ok(output.print(&letters, |letters| render(letters))?)
            }
            Action::Show { of, id, output } => {
                let letter = named(&of, &[id], connection).await?.remove(0);
                Ok(output.print(&letter, render_whole)?)
            }
            Action::Replay { of, ids } => {
                let letters =
                    if ids.is_empty() { letters(&of, connection).await? } else { named(&of, &ids, connection).await? };
                for letter in &letters {
                    connection.open().replay_dead_letter(&of.app, &letter.id).await?;
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
        "{} of {}, from queue {}, subject {}\n{} after {} attempts, {}: {}\n",
        letter.id,
        letter.component,
        letter.queue,
        letter.subject,
        time(letter.at_ms),
        letter.attempts,
        letter.reason,
        letter.detail
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
