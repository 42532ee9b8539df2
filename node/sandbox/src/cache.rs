//! Compiled code on disk: one file per artifact and engine, which is mapped and run as it is.
//!
//! Whoever can write such a file can run native code in the node. So the directory is the node's own (0700), the files
//! are its own (0600), they are written whole or not at all, and none is ever taken from a peer or a registry.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use trellis_wire::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, OutOfMemory};

use crate::component::ComponentError;

/// The permission bits that let someone else in.
const OTHERS: u32 = 0o077;

/// Longer than any write takes: what is unfinished and older was interrupted.
const WRITE_MAX: Duration = Duration::from_secs(60 * 60);

/// The directory of compiled code.
pub(crate) struct Cache {
    dir: PathBuf,
    /// Ends every file name. Another wasmtime, or the same with other settings, has another one.
    suffix: String,
}

impl Cache {
    /// Opens the directory and makes it private.
    pub(crate) fn open(dir: PathBuf, engine: &Engine) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let mut hash = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hash);
        Ok(Self { dir, suffix: format!("-{:016x}.cwasm", hash.finish()) })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(format!("{}{}", digest.hex(), self.suffix))
    }

    /// Whether there is compiled code of the artifact.
    pub(crate) fn contains(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Writes compiled code. It is on disk before it has its name: a crash leaves all of it or nothing.
    pub(crate) fn put(&self, digest: Digest, code: &[u8]) -> Result<(), ComponentError> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let path = self.path(digest);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.dir.join(format!("{}-{}-{write}.tmp", digest.hex(), std::process::id()));
        let written = write_private(&unfinished, code).and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|why| {
            // What matters is why it could not be written; a left-over goes at the next start.
            drop(fs::remove_file(&unfinished));
            ComponentError::Cache { path, why }
        })
    }

    /// Removes compiled code, if there is any.
    pub(crate) fn remove(&self, digest: Digest) -> Result<(), ComponentError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(ComponentError::Cache { path, why }),
            _ => Ok(()),
        }
    }

    /// Maps compiled code. A file that is not whole, not of this engine, or that others could have written is removed
    /// and counts as not compiled: the caller compiles the artifact again. Where it is the system that fails, for want of
    /// memory or of file descriptors, nothing is known against the file and it stays.
    pub(crate) fn load(&self, engine: &Engine, digest: Digest) -> Result<Component, ComponentError> {
        let path = self.path(digest);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Err(ComponentError::NotCompiled(digest)),
            Err(why) => return Err(ComponentError::Cache { path, why }),
        };
        let private = metadata.is_file() && metadata.permissions().mode() & OTHERS == 0;
        let loaded = if private { map(engine, &path) } else { Err(wasmtime::format_err!("others may write it")) };
        loaded.map_err(|why| self.unusable(digest, &why))
    }

    /// What becomes of compiled code that was not mapped.
    fn unusable(&self, digest: Digest, why: &wasmtime::Error) -> ComponentError {
        let path = self.path(digest);
        if let Some(why) = of_the_system(why) {
            return ComponentError::Cache { path, why };
        }
        tracing::warn!(path = %path.display(), why = %format_args!("{why:#}"), "compiled code is not usable: removed");
        self.remove(digest).err().unwrap_or(ComponentError::NotCompiled(digest))
    }
}

/// Removes what other engines than those of `kept`, or interrupted writes, left in the directory.
pub(crate) fn tidy(dir: &Path, kept: &[&Cache]) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let other_engines = name.ends_with(".cwasm") && !kept.iter().any(|cache| name.ends_with(&cache.suffix));
        if other_engines || (name.ends_with(".tmp") && is_old(&entry)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "running ahead-of-time compiled code is what this cache is for")]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file is private to this user, in a directory private to this user (checked by the caller), and was
    // written there whole by `Cache::put` from what this very engine compiled. wasmtime checks the engine's version and
    // settings again, and the ELF structure, whose section table is at the end, so a file cut short does not parse.
    unsafe { Component::deserialize_file(engine, path) }
}

/// The system's own error, if it is that which kept a file from being mapped. An invalid argument is none: the system
/// was given what the file says, or an empty file.
fn of_the_system(why: &wasmtime::Error) -> Option<io::Error> {
    let errno = why.downcast_ref::<Errno>().map(|errno| io::Error::from(*errno));
    let opening = || why.downcast_ref::<io::Error>().map(|why| io::Error::new(why.kind(), why.to_string()));
    let memory = || why.is::<OutOfMemory>().then(|| io::ErrorKind::OutOfMemory.into());
    errno.or_else(opening).or_else(memory).filter(|why: &io::Error| why.kind() != io::ErrorKind::InvalidInput)
}

/// Whether no write can be under way any more.
fn is_old(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|metadata| metadata.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age > WRITE_MAX))
}

fn write_private(path: &Path, code: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(code)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_system_lacks_leaves_the_file_alone() {
        let of =
            |why: wasmtime::Error| of_the_system(&why.context("failed to create file mapping")).map(|why| why.kind());
        assert_eq!(of(Errno::NOMEM.into()), Some(io::ErrorKind::OutOfMemory));
        assert!(of(Errno::MFILE.into()).is_some());
        assert!(of(io::Error::from(Errno::MFILE).into()).is_some());
        assert_eq!(of(Errno::INVAL.into()), None, "an empty file cannot be mapped");
        assert_eq!(of(wasmtime::format_err!("Module was compiled with incompatible settings")), None);
    }

    #[test]
    fn code_that_cannot_be_mapped_now_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().to_owned(), &Engine::default()).unwrap();
        let digest = Digest::new([1; 32]);
        cache.put(digest, b"code").unwrap();
        let later = cache.unusable(digest, &Errno::MFILE.into());
        assert!(matches!(later, ComponentError::Cache { .. }) && later.is_retryable(), "{later}");
        assert!(cache.contains(digest));
        let again = cache.unusable(digest, &wasmtime::format_err!("it is cut short"));
        assert!(matches!(again, ComponentError::NotCompiled(_)), "{again}");
        assert!(!cache.contains(digest));
    }
}
