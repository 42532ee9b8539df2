//! `trellis dead-letters`: messages that were given up, to look at, to handle after all, or to forget.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Subcommand;
use trellis_daemon::api::types::{DEAD_LETTERS_MAX, DeadLetterStatus, DeadLettersStatus};

use crate::admin::{AdminError, Connection};
use crate::failure::Failure;
use crate::output::{Output, print, table, time};
use crate::quantity::Time;
use crate::scope::Scope;

/// List, show, replay and drop messages that were given up
///
/// Wherever they are: any node asks those that run the app. They are kept for 14 days. Where a node does not answer that may
/// have some of its own, `list` shows those of the others, `replay` and `drop` do what they can; all name it on standard
/// error, and fail.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis dead-letters list orders
  trellis dead-letters show orders orders-in-17
  trellis dead-letters replay orders/invoice --reason max-faults --rate 10
  trellis dead-letters drop orders/invoice --older-than 24h")]
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
        #[arg(conflicts_with_all = ["reason", "older_than"])]
        ids: Vec<String>,
        #[command(flatten)]
        chosen: Chosen,
        /// At most so many each second
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
    },
    /// Forget those named, those that are chosen, or all
    #[command(after_help = "Examples:
  trellis dead-letters drop orders orders-in-17
  trellis dead-letters drop orders/invoice --reason refused --older-than 24h
  trellis dead-letters drop orders/invoice --all")]
    Drop {
        /// The app, or one component of it
        #[arg(value_name = "APP[/COMPONENT]")]
        of: Scope,
        /// Ids, as listed
        #[arg(conflicts_with_all = ["all", "reason", "older_than"])]
        ids: Vec<String>,
        #[command(flatten)]
        chosen: Chosen,
        /// Whatever there is
        #[arg(long, conflicts_with_all = ["reason", "older_than"])]
        all: bool,
    },
}

/// Which of them, where not all.
#[derive(Debug, Default, clap::Args)]
struct Chosen {
    /// Given up for this
    #[arg(long, value_name = "WORD", value_parser = REASONS)]
    reason: Option<String>,
    /// Given up at least so long ago, such as 1h
    #[arg(long, value_name = "TIME")]
    older_than: Option<Time>,
}

/// Why a message is given up.
const REASONS: [&str; 5] = ["refused", "max-attempts", "max-faults", "max-age", "killed-its-node"];

/// What becomes of dead letters.
#[derive(Clone, Copy)]
enum Fate {
    Replay,
    Drop,
}

impl Fate {
    const fn done(self) -> &'static str {
        match self {
            Self::Replay => "replayed",
            Self::Drop => "dropped",
        }
    }
}

impl Chosen {
    /// Those that were given up before the last `since`, where that is said.
    fn pairs(&self, since: Option<Duration>) -> Vec<(&'static str, String)> {
        let reason = self.reason.clone().map(|reason| ("reason", reason));
        let age = self.older_than.map(|Time(age)| age).into_iter().chain(since).reduce(|one, other| one + other);
        let age = age.map(|age| ("older_than_ms", age.as_millis().to_string()));
        reason.into_iter().chain(age).collect()
    }
}

/// The letters of these ids; a wrong id is said before anything is done.
async fn named(of: &Scope, ids: &[String], connection: &Connection) -> Result<Vec<DeadLetterStatus>, Failure> {
    let mut letters = Vec::with_capacity(ids.len());
    for id in ids {
        let DeadLettersStatus { dead_letters, problems } =
            connection.open().dead_letters(of, &[("id", id.clone())]).await?;
        match dead_letters.into_iter().next() {
            Some(letter) => letters.push(letter),
            None => {
                whole(&format!("no dead letter {id} of {of} was found"), &problems)?;
                return Err(Failure::Usage(format!("there is no dead letter {id} of {of}")));
            }
        }
    }
    Ok(letters)
}

/// How many may be refused before the rest is left as it is.
const REFUSED_MAX: usize = 10;

/// Decides on those of these ids, or on all that are chosen, as many as there are, and says how many that were: somebody
/// else may have decided on one meanwhile. One that is refused holds up no other.
async fn decide(
    (of, ids, chosen): (&Scope, &[String], &Chosen),
    (fate, rate): (Fate, Option<u32>),
    connection: &Connection,
) -> Result<(), Failure> {
    let (begun, mut since, mut decided, mut refused) = (Instant::now(), None, 0, BTreeMap::new());
    let problems = 'all: loop {
        let DeadLettersStatus { dead_letters, problems } = match ids.is_empty() {
            true => connection.open().dead_letters(of, &chosen.pairs(since)).await?,
            false => DeadLettersStatus { dead_letters: named(of, ids, connection).await?, problems: Vec::new() },
        };
        let (some, before) = (dead_letters.len(), decided);
        for letter in dead_letters {
            let pause = rate.map(|rate| tokio::time::sleep(Duration::from_secs(1) / rate));
            let done = match fate {
                Fate::Replay => connection.open().replay_dead_letter(&of.app, &letter.id).await,
                Fate::Drop => connection.open().drop_dead_letter(&of.app, &letter.id).await,
            };
            match done {
                Ok(done) => decided += usize::from(done),
                Err(why) => {
                    let goes_on = matches!(why, AdminError::Refused { .. });
                    refused.insert(letter.id.clone(), format!("{}: {why}", letter.id));
                    if !goes_on || refused.len() >= REFUSED_MAX {
                        break 'all problems;
                    }
                }
            }
            if let Some(pause) = pause {
                pause.await;
            }
        }
        if !ids.is_empty() || some < DEAD_LETTERS_MAX || decided == before {
            break problems;
        }
        // What was replayed may be given up anew meanwhile.
        since = Some(begun.elapsed());
    };
    print(&format!("{decided} {}", fate.done()))?;
    let what =
        if refused.is_empty() { "not all may have been found".into() } else { format!("not all were {}", fate.done()) };
    whole(&what, &refused.into_values().chain(problems).collect::<Vec<_>>())
}

/// Fails where a node did not say what it has.
fn whole(what: &str, problems: &[String]) -> Result<(), Failure> {
    match problems {
        [] => Ok(()),
        _ => Err(Failure::Failed(format!("{what}:\n{}", problems.join("\n")))),
    }
}

impl DeadLetters {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        match self.action {
            Action::List { of, chosen, output } => {
                let listed = connection.open().dead_letters(&of, &chosen.pairs(None)).await?;
                output.print(&listed, render)?;
                whole("there may be more", &listed.problems)
            }
            Action::Show { of, id, output } => {
                let letter = named(&of, &[id], connection).await?.remove(0);
                Ok(output.print(&letter, render_whole)?)
            }
            Action::Replay { of, ids, chosen, rate } => {
                decide((&of, &ids, &chosen), (Fate::Replay, rate), connection).await
            }
            Action::Drop { of, ids, chosen, all } => {
                if ids.is_empty() && !all && chosen.pairs(None).is_empty() {
                    return Err(Failure::Usage(format!(
                        "which of {of} are to be dropped is not said: name ids, as `trellis dead-letters list {of}` shows \
                         them, or give --reason WORD, --older-than TIME or --all"
                    )));
                }
                decide((&of, &ids, &chosen), (Fate::Drop, None), connection).await
            }
        }
    }
}

fn render(listed: &DeadLettersStatus) -> String {
    let letters = &listed.dead_letters;
    match (letters.is_empty(), listed.problems.is_empty()) {
        (true, true) => return "no dead letters".into(),
        // What is said on standard error is all there is to say.
        (true, false) => return String::new(),
        (false, _) => {}
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
    let mut text = table(["ID", "COMPONENT", "SUBJECT", "ATTEMPTS", "REASON", "GIVEN UP"], rows);
    if letters.len() == DEAD_LETTERS_MAX {
        text.push_str(&format!("\nThese are the first {DEAD_LETTERS_MAX} that were found; replay and drop reach all."));
    }
    text
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
