//! Artifacts: what components and manifests are made of, by digest, in `<data-dir>/artifacts/<sha256>`.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use trellis_wire::Digest;

/// The largest artifact taken, in bytes.
pub(crate) const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The artifacts of this node.
#[derive(Clone)]
pub(crate) struct Artifacts {
    folder: PathBuf,
}

/// Why an artifact cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error(
        "the artifact's digest is {found}, not {expected}: the file changed on its way or the digest is of another file"
    )]
    Mismatch { expected: Digest, found: Digest },
    #[error("artifact {0} is not on this node")]
    Missing(Digest),
    #[error("{}: {source}", path.display())]
    Disk { path: PathBuf, source: std::io::Error },
}

impl Artifacts {
    /// Opens the store, and clears what an interrupted upload left.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, ArtifactError> {
        let folder = data_dir.join("artifacts");
        let failed = |source| ArtifactError::Disk { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                std::fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(Self { folder })
    }

    /// The SHA-256 of `bytes`.
    pub(crate) fn digest(bytes: &[u8]) -> Digest {
        Digest::new(Sha256::digest(bytes).into())
    }

    /// Whether the artifact is here.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.path(digest).exists()
    }

    /// Stores `bytes`, which must have the digest `expected` where one is given. Written whole or not at all.
    pub(crate) fn put(&self, bytes: &[u8], expected: Option<Digest>) -> Result<Digest, ArtifactError> {
        let found = Self::digest(bytes);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(ArtifactError::Mismatch { expected, found });
        }
        let path = self.path(found);
        if !path.exists() {
            self.write(&path, bytes).map_err(|source| ArtifactError::Disk { path, source })?;
        }
        Ok(found)
    }

    /// Reads an artifact and checks that it still is what its name says.
    pub(crate) fn get(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        let path = self.path(digest);
        match std::fs::read(&path) {
            Ok(bytes) => match Self::digest(&bytes) {
                found if found == digest => Ok(bytes),
                found => Err(ArtifactError::Mismatch { expected: digest, found }),
            },
            Err(gone) if gone.kind() == ErrorKind::NotFound => Err(ArtifactError::Missing(digest)),
            Err(source) => Err(ArtifactError::Disk { path, source }),
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        // A name of its own for each write: two uploads of one file may run at once.
        let part = self.folder.join(format!("{}.part", uuid::Uuid::now_v7().simple()));
        let written = (|| {
            let mut file = std::fs::File::create(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&part, path)?;
            std::fs::File::open(&self.folder)?.sync_all()
        })();
        if written.is_err() {
            // The first error is the one to tell; a part that stays is cleared at the next start.
            let _ = std::fs::remove_file(&part);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_what_its_digest_says() {
        let data_dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(data_dir.path()).unwrap();
        let digest = artifacts.put(b"wasm", None).unwrap();
        assert_eq!(artifacts.put(b"wasm", Some(digest)).unwrap(), digest);
        assert_eq!(artifacts.get(digest).unwrap(), b"wasm");
        assert!(matches!(artifacts.put(b"other", Some(digest)), Err(ArtifactError::Mismatch { .. })));
        std::fs::write(artifacts.path(digest), b"scribbled").unwrap();
        assert!(matches!(artifacts.get(digest), Err(ArtifactError::Mismatch { .. })));
    }
}
