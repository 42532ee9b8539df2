//! Artifacts: what components and manifests are made of, by digest, in `<data-dir>/artifacts/<sha256>`.

use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use trellis_sandbox::Engine;
use trellis_wire::Digest;

/// The largest artifact taken, in bytes.
pub(crate) const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How the name of what is being fetched ends.
const FETCHING: &str = ".fetch";

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

    /// The same for what is about to be named: no sweep takes it before that is known, however long it has been here.
    pub(crate) fn keep(&self, digest: Digest) -> bool {
        let path = self.path(digest);
        match touch(&path) {
            Ok(()) => true,
            Err(gone) if gone.kind() == ErrorKind::NotFound => false,
            Err(why) => {
                tracing::warn!(%digest, "an artifact that is asked for may be swept before a version names it: {why}");
                path.exists()
            }
        }
    }

    /// Stores `bytes`, which must have the digest `expected` where one is given. Written whole or not at all.
    pub(crate) fn put(&self, bytes: &[u8], expected: Option<Digest>) -> Result<Digest, ArtifactError> {
        let found = Self::digest(bytes);
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(ArtifactError::Mismatch { expected, found });
        }
        let path = self.path(found);
        // One that is here already is as young as a new one: its deploy is still to come.
        let is_kept = std::fs::read(&path).is_ok_and(|kept| kept == bytes) && touch(&path).is_ok();
        if !is_kept {
            self.write(&path, bytes).map_err(|source| ArtifactError::Disk { path, source })?;
        }
        Ok(found)
    }

    /// Reads an artifact and checks that it still is what its name says. One that is not is removed: another node may have it.
    pub(crate) fn get(&self, digest: Digest) -> Result<Vec<u8>, ArtifactError> {
        let path = self.path(digest);
        match std::fs::read(&path) {
            Ok(bytes) => match Self::digest(&bytes) {
                found if found == digest => Ok(bytes),
                found => Err(self.damaged(digest, found)),
            },
            Err(gone) if gone.kind() == ErrorKind::NotFound => Err(ArtifactError::Missing(digest)),
            Err(source) => Err(ArtifactError::Disk { path, source }),
        }
    }

    /// Checks the same without keeping it in memory.
    pub(crate) fn check(&self, digest: Digest) -> Result<(), ArtifactError> {
        let path = self.path(digest);
        let hashed = std::fs::File::open(&path).and_then(|mut file| {
            let mut hash = Sha256::new();
            std::io::copy(&mut file, &mut hash)?;
            Ok(Digest::new(hash.finalize().into()))
        });
        match hashed {
            Ok(found) if found == digest => Ok(()),
            Ok(found) => Err(self.damaged(digest, found)),
            Err(gone) if gone.kind() == ErrorKind::NotFound => Err(ArtifactError::Missing(digest)),
            Err(source) => Err(ArtifactError::Disk { path, source }),
        }
    }

    /// Removes what is not what its name says.
    fn damaged(&self, expected: Digest, found: Digest) -> ArtifactError {
        tracing::error!(digest = %expected, "an artifact was damaged on the disk; it is removed, to be fetched anew");
        let path = self.path(expected);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => ArtifactError::Disk { path, source },
            _ => ArtifactError::Mismatch { expected, found },
        }
    }

    /// Has the node's compiler make an artifact runnable, off the async threads.
    pub(crate) async fn compile(&self, engine: &Arc<Engine>, digest: Digest) -> Result<(), String> {
        let (artifacts, engine) = (self.clone(), engine.clone());
        let compiled = tokio::task::spawn_blocking(move || {
            let bytes = artifacts.get(digest).map_err(|why| why.to_string())?;
            engine.compile(digest, &bytes).map_err(|why| why.to_string())
        });
        compiled.await.map_err(|why| format!("compiling broke off: {why}"))?
    }

    /// Removes what `wanted` does not take and nobody touched for `age`, for an upload comes before its deploy; and what was
    /// fetched in part and is not wanted, or here by now.
    pub(crate) fn sweep(&self, age: Duration, wanted: impl Fn(Digest) -> bool) -> Result<Vec<Digest>, ArtifactError> {
        let failed = |source| ArtifactError::Disk { path: self.folder.clone(), source };
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let (name, in_part) = match name.to_string_lossy() {
                name if name.ends_with(FETCHING) => (name.trim_end_matches(FETCHING).to_owned(), true),
                name => (name.into_owned(), false),
            };
            let Ok(digest) = name.parse::<Digest>() else { continue };
            let is_done_with = !wanted(digest) || (in_part && self.has(digest));
            if !is_done_with {
                continue;
            }
            let touched = entry.metadata().and_then(|metadata| metadata.modified()).map_err(failed)?;
            if touched.elapsed().is_ok_and(|since| since > age) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
                removed.extend((!in_part).then_some(digest));
            }
        }
        Ok(removed)
    }

    /// At most `bytes_max` bytes of an artifact from `from` on, and how many it has in all.
    pub(crate) fn piece(&self, digest: Digest, from: u64, bytes_max: usize) -> Result<(Vec<u8>, u64), ArtifactError> {
        let path = self.path(digest);
        let read = || {
            let mut file = std::fs::File::open(&path)?;
            let total = file.metadata()?.len();
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(bytes_max as u64).read_to_end(&mut bytes)?;
            Ok((bytes, total))
        };
        read().map_err(|why: std::io::Error| match why.kind() {
            ErrorKind::NotFound => ArtifactError::Missing(digest),
            _ => ArtifactError::Disk { path: path.clone(), source: why },
        })
    }

    /// How much of an artifact was fetched before.
    pub(crate) fn begun(&self, digest: Digest) -> Result<u64, ArtifactError> {
        let path = self.fetching(digest);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(found.len()),
            Err(none) if none.kind() == ErrorKind::NotFound => Ok(0),
            Err(source) => Err(ArtifactError::Disk { path, source }),
        }
    }

    /// Adds a piece to what was fetched; with the last one, checks the whole and keeps it. How much there is now.
    pub(crate) fn add(&self, digest: Digest, at: u64, bytes: &[u8], last: bool) -> Result<u64, ArtifactError> {
        let path = self.fetching(digest);
        let disk = |source| ArtifactError::Disk { path: path.clone(), source };
        let write = || {
            let mut file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(at)?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)
        };
        write().map_err(disk)?;
        if last {
            let whole = std::fs::read(&path).map_err(disk)?;
            // Right or wrong, what was fetched is done with: a wrong one is fetched from its beginning.
            std::fs::remove_file(&path).map_err(disk)?;
            self.put(&whole, Some(digest))?;
        }
        Ok(at + bytes.len() as u64)
    }

    /// What is being fetched. It outlives the process, so that the rest is enough later.
    fn fetching(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{}{FETCHING}", digest.hex()))
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

/// Makes a file as young as one that is written now.
fn touch(path: &Path) -> std::io::Result<()> {
    std::fs::File::options().append(true).open(path)?.set_modified(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_an_artifact_only_if_the_whole_is_right() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (here, there) = (Artifacts::open(here.path()).unwrap(), Artifacts::open(there.path()).unwrap());
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let digest = there.put(&bytes, None).unwrap();
        while !here.has(digest) {
            let begun = here.begun(digest).unwrap();
            let (piece, total) = there.piece(digest, begun, 3_000).unwrap();
            here.add(digest, begun, &piece, begun + piece.len() as u64 == total).unwrap();
        }
        assert_eq!(here.get(digest).unwrap(), bytes);
        let other = Artifacts::digest(b"other");
        assert!(matches!(here.add(other, 0, b"wrong", true), Err(ArtifactError::Mismatch { .. })));
        assert_eq!(here.begun(other).unwrap(), 0, "what was wrong is not gone on with");
        assert!(matches!(here.piece(other, 0, 10), Err(ArtifactError::Missing(_))));
    }

    #[test]
    fn an_artifact_is_what_its_digest_says() {
        let data_dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(data_dir.path()).unwrap();
        let digest = artifacts.put(b"wasm", None).unwrap();
        assert_eq!(artifacts.put(b"wasm", Some(digest)).unwrap(), digest);
        assert_eq!(artifacts.get(digest).unwrap(), b"wasm");
        assert!(matches!(artifacts.put(b"other", Some(digest)), Err(ArtifactError::Mismatch { .. })));
        let unwanted = artifacts.put(b"unwanted", None).unwrap();
        assert_eq!(artifacts.sweep(Duration::from_secs(3600), |_| false).unwrap(), [], "too young");
        assert_eq!(artifacts.sweep(Duration::ZERO, |wanted| wanted == digest).unwrap(), [unwanted]);
        std::fs::write(artifacts.path(digest), b"scribbled").unwrap();
        assert!(matches!(artifacts.get(digest), Err(ArtifactError::Mismatch { .. })));
        assert!(!artifacts.has(digest), "what is damaged is as good as not there");
        std::fs::write(artifacts.path(digest), b"scribbled").unwrap();
        artifacts.put(b"wasm", None).unwrap();
        assert_eq!(artifacts.get(digest).unwrap(), b"wasm", "an upload mends it");
    }

    #[test]
    fn what_is_about_to_be_named_is_not_swept_however_long_it_was_there() {
        let data_dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(data_dir.path()).unwrap();
        let all = [&b"uploaded again"[..], b"found by a deploy", b"forgotten"];
        let [uploaded, found, forgotten] = all.map(|bytes| artifacts.put(bytes, None).unwrap());
        let (hour, long_ago) = (Duration::from_secs(3600), SystemTime::now() - Duration::from_secs(7200));
        for digest in [uploaded, found, forgotten] {
            let file = std::fs::File::options().append(true).open(artifacts.path(digest)).unwrap();
            file.set_modified(long_ago).unwrap();
        }
        artifacts.put(all[0], None).unwrap();
        assert!(artifacts.keep(found));
        assert_eq!(artifacts.sweep(hour, |_| false).unwrap(), [forgotten]);
        assert!(!artifacts.keep(forgotten));
    }

    #[test]
    fn what_is_damaged_is_found_without_being_kept_in_memory() {
        let data_dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(data_dir.path()).unwrap();
        let digest = artifacts.put(&vec![7; 300_000], None).unwrap();
        artifacts.check(digest).unwrap();
        std::fs::write(artifacts.path(digest), vec![7; 299_999]).unwrap();
        assert!(matches!(artifacts.check(digest), Err(ArtifactError::Mismatch { .. })));
        assert!(matches!(artifacts.check(digest), Err(ArtifactError::Missing(_))));
    }

    #[test]
    fn what_was_fetched_in_part_goes_when_nobody_wants_it_or_it_is_here() {
        let data_dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(data_dir.path()).unwrap();
        let [unwanted, here, coming] = [&b"unwanted"[..], b"here", b"coming"].map(Artifacts::digest);
        for digest in [unwanted, here, coming] {
            artifacts.add(digest, 0, b"a part", false).unwrap();
        }
        artifacts.put(b"here", None).unwrap();
        let sweep = |age| artifacts.sweep(age, |digest| digest != unwanted).unwrap();
        assert_eq!(sweep(Duration::from_secs(3600)), [], "too young");
        assert_eq!(artifacts.begun(unwanted).unwrap(), 6);
        assert_eq!(sweep(Duration::ZERO), []);
        assert_eq!([unwanted, here, coming].map(|digest| artifacts.begun(digest).unwrap()), [0, 0, 6]);
        assert!(artifacts.has(here));
    }
}
