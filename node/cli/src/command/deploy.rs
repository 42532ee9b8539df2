//! `trellis deploy`: checks a manifest here, gives the node the files that it lacks, deploys, and waits until it runs.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};
use trellis_daemon::api::types::{AppStatus, DeployReply, DeployRequest, Finding, VersionStatus};
use trellis_manifest::App;
use trellis_wire::AppName;

use super::status;
use crate::admin::{Admin, AdminError, Connection};
use crate::artifact::{self, Artifact};
use crate::failure::Failure;
use crate::output::{self, Output, print, size};
use crate::quantity::duration;
use crate::source::{Source, told};

/// A deploy that is ready sooner says nothing of what it waited for.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// Longer than a version has until it is rolled back for not being ready, so that this is told and not guessed.
pub(super) const WAIT_DEFAULT: &str = "150s";
/// How soon the status is asked for again while it is waited for: most deploys take only milliseconds. The pause doubles
/// up to the second.
const POLL_FIRST: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(200);

/// Deploy what a manifest declares, and wait until it runs
///
/// Images named by path are uploaded first, if the node lacks them. The exit code is 0 once everything is ready, and 1
/// with the reasons when it is not ready in time, or was rolled back. A new version takes the place of the one that runs
/// step by step once it is ready everywhere; it is rolled back by itself if it is not ready within two minutes, or if in
/// its first minute at least 5 and over 20 % of its events fault.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis deploy app.yaml
  trellis deploy app.yaml --dry-run
  trellis deploy app.yaml --wait 2m --admin http://10.0.0.5:7878")]
pub(crate) struct Deploy {
    /// The manifest; `-` reads it from standard input
    file: PathBuf,
    /// How long to wait until it is ready
    #[arg(long, value_name = "TIME", default_value = WAIT_DEFAULT, value_parser = duration)]
    wait: Duration,
    /// Do not wait at all
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Change nothing; say what would change and what would move
    #[arg(long)]
    dry_run: bool,
    /// Replace a version of the same name that has other content
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    output: Output,
}

impl Deploy {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        let source = Source::read(&self.file)?;
        let (app, local) = check(&source)?;
        let artifacts = artifact::collect(&app, &source)?;
        let admin = connection.open();
        if !self.dry_run {
            upload(&admin, &artifacts).await?;
        }
        let reply = admin.deploy(&self.request(source, &artifacts)).await?;
        for finding in reply.findings.iter().filter(|finding| !local.contains(finding)) {
            eprintln!("{}", finding.rendered.trim_end());
        }
        if !self.output.is_json() {
            print(&told_of(&reply))?;
        }
        let waits = !self.dry_run && !self.no_wait;
        let status = if waits { Some(ready(&admin, &app.name, &reply.version, self.wait).await?) } else { None };
        self.conclude(&reply, status.as_ref())
    }

    fn request(&self, source: Source, artifacts: &[Artifact]) -> DeployRequest {
        DeployRequest {
            manifest: source.text,
            origin: source.origin,
            artifacts: artifact::digests(artifacts),
            replace: self.replace,
            dry_run: self.dry_run,
        }
    }

    fn conclude(&self, reply: &DeployReply, status: Option<&AppStatus>) -> Result<(), Failure> {
        if self.output.is_json() {
            return Ok(print(&output::json(&json!({ "deploy": reply, "status": status })))?);
        }
        let Some(status) = status else { return Ok(()) };
        let reached: BTreeSet<_> = status.links.iter().filter_map(|link| link.at.as_deref()).collect();
        let reached: String =
            reached.iter().filter(|at| at.starts_with("http")).map(|at| format!("\nreach it at {at}")).collect();
        Ok(print(&format!("\n{}{reached}", status::render(status)))?)
    }
}

/// Parses and validates. Findings are printed; an error ends it here, before anything is sent.
fn check(source: &Source) -> Result<(App, Vec<Finding>), Failure> {
    let parsed = source.parse();
    let findings: Vec<_> = parsed.findings.iter().map(told).collect();
    for finding in &findings {
        eprintln!("{}", finding.rendered.trim_end());
    }
    let app = parsed.app.ok_or_else(|| Failure::Failed(format!("{} is not valid; nothing was sent", source.origin)))?;
    Ok((app, findings))
}

/// Uploads each artifact that the node lacks, once.
async fn upload(admin: &Admin, artifacts: &[Artifact]) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    for artifact in artifacts.iter().filter(|artifact| seen.insert(artifact.digest)) {
        if admin.has_artifact(artifact.digest).await? {
            continue;
        }
        let shown = artifact.path.display();
        let bytes = tokio::fs::read(&artifact.path).await;
        let bytes = bytes.map_err(|error| Failure::Failed(format!("cannot read {shown}: {}", error.kind())))?;
        let title = format!("uploading {} ({shown}, {})", artifact.component, size(bytes.len() as u64));
        let progress = progress(title.clone(), bytes.len());
        let put = admin.put_artifact(artifact.digest, bytes.into(), progress).await.map_err(|error| {
            eprintln!();
            match error {
                AdminError::Refused { status, mut problem } => {
                    problem.error = format!("component `{}`: {shown}: {}", artifact.component, problem.error);
                    AdminError::Refused { status, problem }
                }
                other => other,
            }
        })?;
        let compiled = if put.compiled { "compiled" } else { "stored" };
        eprintln!("{}{title}: {compiled}", if std::io::stderr().is_terminal() { "\r" } else { "" });
    }
    Ok(())
}

/// Redraws one line of standard error as bytes go out, where someone looks at it.
fn progress(title: String, bytes_total: usize) -> impl FnMut(usize) + Send + 'static {
    let watched = std::io::stderr().is_terminal();
    let mut bytes_sent = 0;
    move |bytes| {
        bytes_sent += bytes;
        if watched {
            let what = if bytes_sent == bytes_total {
                "compiling".into()
            } else {
                format!("{} sent", size(bytes_sent as u64))
            };
            // A line that cannot be drawn is no reason to stop uploading.
            let _ = write!(std::io::stderr(), "\r{title}: {what}    ");
        }
    }
}

/// The outcome and what changes, for people.
fn told_of(reply: &DeployReply) -> String {
    let (app, version) = (&reply.app, &reply.version);
    let outcome = match reply.outcome.as_str() {
        "deployed" => format!("{app} {version} deployed"),
        "rolling_out" => format!("{app} {version} is made ready and takes over step by step"),
        "unchanged" => format!("{app} {version} is deployed already; nothing changed"),
        "waiting" => format!("{app} {version} is accepted and waits for {}", reply.waits_for.join(", ")),
        "dry_run" => format!("{app} {version} would be deployed; nothing was changed"),
        other => format!("{app} {version}: {other}"),
    };
    let lines = |lines: &[String]| lines.iter().map(|line| format!("\n  {line}")).collect::<String>();
    format!("{outcome}{}{}", lines(&reply.changes), lines(&reply.moves))
}

/// Waits until the app is ready in this version. Why it is not is told as it changes, and at the end.
pub(super) async fn ready(admin: &Admin, app: &AppName, version: &str, wait: Duration) -> Result<AppStatus, Failure> {
    let began = Instant::now();
    let (mut told, mut is) = (Vec::<String>::new(), "deployed");
    let mut pause = POLL_FIRST;
    loop {
        let missing = match admin.app(app).await {
            Ok(status) if status.version == version && status.state == "ready" => return Ok(status),
            Ok(status) => {
                is = if status.state == "waiting" { "accepted" } else { "deployed" };
                missing(app, version, &status)?
            }
            Err(error) if error.is_retryable() => vec![error.to_string()],
            Err(error) => return Err(error.into()),
        };
        if began.elapsed() >= wait {
            let what = format!("{app} {version} is {is} but not ready after {wait:?}");
            return Err(not_ready(&what, &missing));
        }
        if began.elapsed() >= TELL_AFTER && missing != told {
            missing.iter().filter(|line| !told.contains(line)).for_each(|line| eprintln!("waiting: {line}"));
            told = missing;
        }
        sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// What stands between an app and this version; an error where nothing will come of waiting.
fn missing(app: &AppName, version: &str, status: &AppStatus) -> Result<Vec<String>, Failure> {
    let past = status.history.iter().find(|past| past.version == version);
    if let Some(ended) = past.and_then(|past| ended(past, &status.version)) {
        return Err(Failure::Failed(format!("{app} {version} {ended}")));
    }
    let missing = status::missing(status);
    if status.version == version && status.state == "failed" {
        return Err(not_ready(&format!("{app} {version} failed"), &missing));
    }
    if status.version == version || status.rollout.is_some() {
        return Ok(missing);
    }
    Ok([vec![format!("version {} is deployed now, not {version}", status.version)], missing].concat())
}

/// How a version's time ended, if it did: nothing comes of waiting for it.
fn ended(past: &VersionStatus, now: &str) -> Option<String> {
    let why = past.why.as_deref().unwrap_or("the node does not say why");
    match past.state.as_str() {
        "rolled-back" => Some(format!("was rolled back to {now}: {why}")),
        "replaced" | "overtaken" => Some(format!("was replaced {why} while it was waited for")),
        "undeployed" => Some("was undeployed while it was waited for".into()),
        "kept" => Some(format!("was overtaken before it began; version {now} is there now")),
        _ => None,
    }
}

fn not_ready(what: &str, missing: &[String]) -> Failure {
    let missing: String = missing.iter().map(|line| format!("\n  {line}")).collect();
    Failure::Failed(format!("{what}{}{missing}", if missing.is_empty() { "; the node does not say why" } else { ":" }))
}
