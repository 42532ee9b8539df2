//! Artifacts named by path in a manifest: found beside it, digested, and checked against the digest that it asks for.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use trellis_manifest::{App, Image};
use trellis_wire::{ComponentName, Digest};

use crate::failure::Failure;
use crate::source::Source;

/// A component's file.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) component: ComponentName,
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
}

/// Finds and digests every file that the app's components name. All that are missing are told at once.
pub(crate) fn collect(app: &App, source: &Source) -> Result<Vec<Artifact>, Failure> {
    let (mut artifacts, mut problems) = (Vec::new(), Vec::new());
    for (component, declared) in &app.components {
        let Image::File { path, digest } = &declared.image else { continue };
        match digested(&source.folder.join(path), *digest) {
            Ok((path, digest)) => artifacts.push(Artifact { component: component.clone(), path, digest }),
            Err(problem) => problems.push(format!("{}: component `{component}`: {problem}", source.origin)),
        }
    }
    if problems.is_empty() { Ok(artifacts) } else { Err(Failure::Failed(problems.join("\nerror: "))) }
}

/// Component name to digest, as the deploy request carries it.
pub(crate) fn digests(artifacts: &[Artifact]) -> BTreeMap<String, String> {
    artifacts.iter().map(|artifact| (artifact.component.to_string(), artifact.digest.to_string())).collect()
}

fn digested(path: &Path, expected: Option<Digest>) -> Result<(PathBuf, Digest), String> {
    let shown = path.display();
    let digest = digest_of(path).map_err(|error| {
        format!("cannot read its image {shown}: {}; build it first, or correct `image`", error.kind())
    })?;
    match expected {
        Some(expected) if expected != digest => {
            Err(format!("its image {shown} is {digest}, but the manifest asks for {expected}"))
        }
        _ => Ok((path.to_owned(), digest)),
    }
}

/// Reads a file once, in pieces, to digest it.
fn digest_of(path: &Path) -> std::io::Result<Digest> {
    let mut sha256 = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut sha256)?;
    Ok(Digest::new(sha256.finalize().into()))
}
