//! `trellis inspect`: what a component is, what wakes it, and the manifest entry that it needs, ready to paste.

mod entry;

use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use trellis_sandbox::{Engine, Inspection, Need, Options, Wake};
use trellis_wire::Digest;

use crate::failure::Failure;
use crate::output::{Output, size};

/// Say what a component imports, what wakes it, and which links it needs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis inspect target/wasm32-wasip2/release/api.wasm
  trellis inspect api.wasm -o json")]
pub(crate) struct Inspect {
    /// The component
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Inspected {
    file: String,
    digest: String,
    bytes: u64,
    imports: Vec<String>,
    exports: Vec<String>,
    /// `http`, `message`, `run` or `call INTERFACE`.
    woken_by: Vec<String>,
    /// Links without which a deploy is refused.
    links_needed: Vec<Link>,
    /// Links without which the component runs, but is denied what it asks for.
    links_wished: Vec<Link>,
    /// The entries of a manifest, in YAML.
    manifest: String,
}

#[derive(Debug, Serialize)]
struct Link {
    namespace: String,
    package: String,
    interfaces: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let shown = self.file.display();
        let wasm = std::fs::read(&self.file)
            .map_err(|error| Failure::Usage(format!("cannot read {shown}: {}", error.kind())))?;
        let inspection = engine()?.0.inspect(&wasm).map_err(|error| Failure::Failed(format!("{shown}: {error}")))?;
        let inspected = Inspected {
            file: shown.to_string(),
            digest: Digest::new(Sha256::digest(&wasm).into()).to_string(),
            bytes: wasm.len() as u64,
            imports: inspection.imports.iter().map(ToString::to_string).collect(),
            exports: inspection.exports.iter().map(ToString::to_string).collect(),
            woken_by: inspection.wakes.iter().map(woken_by).collect(),
            manifest: entry::of(&self.file, &inspection),
            links_needed: links(&inspection.needs),
            links_wished: links(&inspection.warns),
        };
        Ok(self.output.print(&inspected, |inspected| render(inspected, &inspection))?)
    }
}

/// An engine that runs nothing, with the directory that it asks for; both go when they are dropped.
fn engine() -> Result<(std::sync::Arc<Engine>, tempfile::TempDir), Failure> {
    let dir = tempfile::tempdir()
        .map_err(|error| Failure::Failed(format!("cannot make a temporary directory: {}", error.kind())))?;
    let options =
        Options { cache_dir: dir.path().join("cache"), sandboxes_max: 1, memory_bytes_max: 1 << 20, wasi_p3: true };
    let engine = Engine::new(options).map_err(|error| Failure::Failed(error.to_string()))?;
    Ok((engine, dir))
}

fn woken_by(wake: &Wake) -> String {
    match wake {
        Wake::HttpP2 | Wake::HttpP3 => "http".into(),
        Wake::MessageWasmcloud | Wake::MessageTrellis => "message".into(),
        Wake::RunP2 | Wake::RunP3 => "run".into(),
        Wake::Invoke(interface) => format!("call {interface}"),
    }
}

fn links(needs: &[Need]) -> Vec<Link> {
    let link = |need: &Need| Link {
        namespace: need.namespace.clone(),
        package: need.package.clone(),
        interfaces: need.interfaces.clone(),
    };
    needs.iter().map(link).collect()
}

fn render(inspected: &Inspected, inspection: &Inspection) -> String {
    let list = |title: &str, lines: Vec<String>| {
        let lines: String = lines.iter().map(|line| format!("\n  {line}")).collect();
        format!("\n{title}:{}\n", if lines.is_empty() { "\n  nothing".into() } else { lines })
    };
    let wakes = inspection.wakes.iter().map(|wake| match wake {
        Wake::HttpP2 => "an HTTP request (wasi:http/incoming-handler of WASI 0.2)".into(),
        Wake::HttpP3 => "an HTTP request (wasi:http/handler of WASI 0.3)".into(),
        Wake::MessageWasmcloud => "a message (wasmcloud:messaging/handler)".into(),
        Wake::MessageTrellis => "a message (trellis:messaging/handler)".into(),
        Wake::RunP2 | Wake::RunP3 => "`trellis invoke` (wasi:cli/run)".into(),
        Wake::Invoke(interface) => format!("a call of {interface} by another component"),
    });
    let link = |need: &Need| format!("{}:{}/{}", need.namespace, need.package, need.interfaces.join(","));
    let needed = inspection.needs.iter().map(|need| format!("{}  (without it, a deploy is refused)", link(need)));
    let wished = inspection.warns.iter().map(|need| format!("{}  (without it, calls are denied)", link(need)));
    [
        format!("{}  {}  {}\n", inspected.file, size(inspected.bytes), inspected.digest),
        list("imports", inspected.imports.clone()),
        list("exports", inspected.exports.clone()),
        list("woken by", wakes.collect()),
        list("links", needed.chain(wished).collect()),
        format!("\nin a manifest, under `spec.components`:\n\n{}", inspected.manifest),
    ]
    .concat()
}
