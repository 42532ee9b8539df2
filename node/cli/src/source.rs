//! A manifest as it was written: its text, the name to use for it in messages, and the folder that its paths start in.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use trellis_daemon::api::types;
use trellis_daemon::manifest;
use trellis_manifest::{Finding, Parsed, Severity};

use crate::failure::Failure;

/// The largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// A manifest, read but not yet parsed.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) origin: String,
    pub(crate) folder: PathBuf,
}

impl Source {
    /// Reads a file, or standard input for `-`.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let text = read_text(std::io::stdin().lock(), "standard input")?;
            return Ok(Self { text, origin: "<stdin>".into(), folder: PathBuf::from(".") });
        }
        let origin = path.display().to_string();
        let file = std::fs::File::open(path)
            .map_err(|error| Failure::Usage(format!("cannot read {origin}: {}", error.kind())))?;
        let text = read_text(file, &origin)?;
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self { text, origin, folder })
    }

    /// Parses and validates it.
    pub(crate) fn parse(&self) -> Parsed {
        manifest::parse(&self.text, &self.origin, Default::default())
    }
}

/// A finding in the words of the admin API, so that local and remote findings print alike.
pub(crate) fn told(finding: &Finding) -> types::Finding {
    types::Finding {
        severity: match finding.severity {
            Severity::Error => "error".into(),
            Severity::Warning => "warning".into(),
        },
        line: finding.line as u64,
        column: finding.column as u64,
        message: finding.message.clone(),
        rendered: finding.to_string(),
    }
}

fn read_text(from: impl std::io::Read, origin: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = from.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("cannot read {origin}: {error}")))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(Failure::Usage(format!("{origin} is no manifest: it is larger than {MANIFEST_BYTES_MAX} bytes")));
    }
    Ok(text)
}
