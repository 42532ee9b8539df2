//! `trellis validate`: every finding of a manifest at once, without a node.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use trellis_daemon::api::types::Finding;
use trellis_manifest::{AppLink, Delivery, Severity};

use crate::failure::Failure;
use crate::output::{Output, json, print};
use crate::quantity;
use crate::source::{Source, told};

/// Check manifests without a node
///
/// The exit code is 0 when all are valid (warnings do not count), 1 when one is not, 2 when one cannot be read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis validate app.yaml
  kustomize build | trellis validate -
  trellis validate --schema > app.schema.json")]
pub(crate) struct Validate {
    /// Manifests; `-` reads one from standard input
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    files: Vec<PathBuf>,
    /// Print the JSON Schema of a manifest, for editors
    #[arg(long, conflicts_with = "files")]
    schema: bool,
    #[command(flatten)]
    output: Output,
}

/// What was found in one file, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    valid: bool,
    findings: Vec<Finding>,
    queues: Vec<Queue>,
}

/// A link by which a queue hands out messages, and when it gives one up that is refused at each attempt.
#[derive(Debug, Serialize)]
struct Queue {
    /// As `source -> target`, with the link's name.
    link: String,
    max_attempts: u32,
    /// From the first attempt on, the attempts themselves aside.
    gives_up_after_ms: u64,
}

impl Queue {
    fn of((link, policy): (&AppLink, Delivery)) -> Self {
        Self {
            link: format!("{} -> {} `{}`", link.source, link.target, link.name),
            max_attempts: policy.max_attempts,
            gives_up_after_ms: u64::try_from(policy.gives_up_after().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Validate {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if self.schema {
            return Ok(print(&json(&trellis_manifest::json_schema()))?);
        }
        let checked = self.files.iter().map(|file| Source::read(file).map(|source| check(&source)));
        let checked = checked.collect::<Result<Vec<_>, _>>()?;
        self.output.print(&checked, |checked| checked.iter().map(render).collect())?;
        if checked.iter().all(|file| file.valid) { Ok(()) } else { Err(Failure::Said) }
    }
}

fn check(source: &Source) -> Checked {
    let parsed = source.parse();
    let is_error = |finding: &trellis_manifest::Finding| finding.severity == Severity::Error;
    Checked {
        file: source.origin.clone(),
        valid: parsed.app.is_some() && !parsed.findings.iter().any(is_error),
        findings: parsed.findings.iter().map(told).collect(),
        queues: parsed.app.iter().flat_map(|app| app.queues()).map(Queue::of).collect(),
    }
}

fn render(checked: &Checked) -> String {
    let shown: String = checked.findings.iter().map(|finding| format!("{}\n\n", finding.rendered.trim_end())).collect();
    let errors = checked.findings.iter().filter(|finding| finding.severity == "error").count();
    let warnings = checked.findings.len() - errors;
    let verdict = if checked.valid { "valid" } else { "not valid" };
    let counts = match (errors, warnings) {
        (0, 0) => String::new(),
        (0, _) => format!(", {}", counted(warnings, "warning")),
        (_, 0) => format!(", {}", counted(errors, "error")),
        _ => format!(", {} and {}", counted(errors, "error"), counted(warnings, "warning")),
    };
    let queues: String = checked.queues.iter().map(|queue| format!("  {queue}\n")).collect();
    format!("{shown}{}: {verdict}{counts}\n{queues}", checked.file)
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, max_attempts, gives_up_after_ms } = self;
        match *gives_up_after_ms {
            0 => write!(f, "{link}: a message that is refused is given up at once"),
            ms => {
                let after = quantity::lasting(Duration::from_millis(ms));
                write!(
                    f,
                    "{link}: a message that is always refused is given up after {after} ({max_attempts} attempts at most)"
                )
            }
        }
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
