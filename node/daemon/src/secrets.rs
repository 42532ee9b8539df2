//! Secrets: reads what manifests refer to, from where this node was told that it may. The lattice knows references
//! only; values stay in this process, and go to the providers and components whose links and entries name them.
//!
//! | backend | where a key is | opened by |
//! | --- | --- | --- |
//! | `env` | the variable `PREFIX` + key, in capitals and with `_` for what is neither letter nor digit | `--secrets-env-prefix` |
//! | `file`, a directory | the file `KEY`; with `field` the file `KEY/FIELD`, or a field of the mapping in `KEY` | `--secrets` |
//! | `file`, a file | the entry `KEY` of the YAML or JSON mapping in it; with `field` a field of that entry | `--secrets` |
//!
//! Kubernetes mounts a secret as a directory with a file for each key, which is the second row.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use trellis_manifest::{SecretRef, SecretsBackend};
use trellis_placement::{AppShare, Assigned, Section};
use trellis_wire::Secret;

/// How often what is read already is read again. A changed secret is with what uses it after this and a moment.
pub(crate) const POLL: Duration = Duration::from_secs(5);
/// How long reading may take. A mount that hangs holds up nothing but what waits for its secrets.
const READ_WAIT: Duration = Duration::from_secs(5);
/// The largest file with a secret, or with a mapping of secrets: 1 MiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a node reads secrets. By default nowhere: a manifest reads nothing of a node that its operator did not open.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SecretSources {
    /// What the names of variables begin with that manifests may read, such as `TRELLIS_SECRET_`.
    pub env_prefix: Option<String>,
    /// A directory with secrets, or a file with a mapping of them.
    pub path: Option<PathBuf>,
}

/// The secrets of what this node runs.
pub(crate) struct Secrets {
    sources: SecretSources,
    /// This node's name, for messages.
    node: String,
    known: Mutex<BTreeMap<SecretRef, Known>>,
    /// Counts the changes of values.
    edition: AtomicU64,
    /// What was given last, for what is asked next.
    given: tokio::sync::Mutex<Given>,
    /// Held by whoever reads: what hangs is not begun again beside itself.
    turn: Arc<Semaphore>,
}

/// What is known of one secret.
#[derive(Default)]
struct Known {
    /// As it was last read. It stays when it cannot be read any more: what runs goes on.
    value: Option<Secret>,
    /// Why the last reading failed.
    problem: Option<String>,
}

impl Secrets {
    pub(crate) fn new(sources: SecretSources, node: String) -> Self {
        Self {
            sources,
            node,
            known: Mutex::default(),
            edition: AtomicU64::new(0),
            given: tokio::sync::Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Puts the secrets where a node's share refers to them. Those that are not known yet are read. A share without any is
    /// given back as it is, and what did not change as it was given before.
    pub(crate) async fn filled(&self, share: Arc<Assigned>) -> Arc<Assigned> {
        let mut given = self.given.lock().await;
        let given = &mut *given;
        let mut changed = BTreeSet::new();
        for (section, _, now) in given.share.apart(&share) {
            match refs_in(now) {
                refs if refs.is_empty() => drop(given.refs.remove(&section)),
                refs => drop(given.refs.insert(section.clone(), refs)),
            }
            changed.insert(section);
        }
        let wanted: BTreeSet<&SecretRef> = given.refs.values().flatten().collect();
        let unknown: Vec<SecretRef> = {
            let mut known = self.known();
            known.retain(|secret, _| wanted.contains(secret));
            let is_known = |secret: &&SecretRef| known.get(secret).is_some_and(|known| known.value.is_some());
            wanted.into_iter().filter(|secret| !is_known(secret)).cloned().collect()
        };
        self.read(unknown).await;
        given.share = share.clone();
        if given.refs.is_empty() {
            given.filled = share.clone();
            return share;
        }
        let mut filled = (*share).clone();
        let edition = self.edition.load(Ordering::Relaxed);
        for section in given.refs.keys().cloned() {
            if edition == given.edition && !changed.contains(&section) {
                filled.take(section, &given.filled);
            } else {
                filled.change(section, |share| self.put(share));
            }
        }
        given.edition = edition;
        // What is equal stays at its place in memory.
        filled.meet(&given.filled);
        given.filled = Arc::new(filled);
        given.filled.clone()
    }

    fn put(&self, share: &mut AppShare) {
        let known = self.known();
        let values = |refs: &[SecretRef]| -> trellis_wire::Secrets {
            let value = |secret: &SecretRef| Some((secret.name.clone(), known.get(secret)?.value.clone()?));
            refs.iter().filter_map(value).collect()
        };
        let beside = share.beside.values_mut().map(|beside| &mut beside.held);
        for held in share.components.values_mut().chain(beside) {
            held.secrets = values(&held.secret_refs);
        }
        for held in share.links.values_mut().filter(|held| !held.secret_refs.is_empty()) {
            Arc::make_mut(held).link.secrets = values(&held.secret_refs);
        }
    }

    /// Whether anything that runs or is to run here has secrets.
    pub(crate) fn are_used(&self) -> bool {
        !self.known().is_empty()
    }

    /// Reads everything again that was read before.
    pub(crate) async fn refresh(&self) {
        let all = self.known().keys().cloned().collect();
        self.read(all).await;
    }

    /// What is missing, where and why, if any of these is.
    pub(crate) fn missing(&self, refs: &[SecretRef]) -> Option<String> {
        let known = self.known();
        let without_value = |secret: &&SecretRef| known.get(secret).is_none_or(|known| known.value.is_none());
        let secret = refs.iter().find(without_value)?;
        let why = known.get(secret).and_then(|known| known.problem.as_deref()).unwrap_or("it was not read yet");
        Some(format!("waits for the secret `{}` on node {}: {why}", secret.name, self.node))
    }

    async fn read(&self, refs: Vec<SecretRef>) {
        if refs.is_empty() {
            return;
        }
        let read = match self.turn.clone().try_acquire_owned() {
            Err(_) => Err("reading has not come to an end for a while; is what holds it mounted?".to_owned()),
            Ok(turn) => {
                let (sources, refs) = (self.sources.clone(), refs.clone());
                let reading = tokio::task::spawn_blocking(move || {
                    let _turn = turn;
                    refs.into_iter().map(|secret| sources.read(&secret)).collect::<Vec<_>>()
                });
                match tokio::time::timeout(READ_WAIT, reading).await {
                    Ok(Ok(read)) => Ok(read),
                    Ok(Err(why)) => Err(format!("reading broke off: {why}")),
                    Err(_) => Err(format!("reading takes longer than {READ_WAIT:?}; is what holds it mounted?")),
                }
            }
        };
        let read = read.unwrap_or_else(|why| vec![Err(why); refs.len()]);
        let mut known = self.known();
        for (secret, read) in refs.into_iter().zip(read) {
            let name = secret.name.clone();
            let known = known.entry(secret).or_default();
            match read {
                Ok(value) => {
                    if known.value.as_ref() != Some(&value) {
                        self.edition.fetch_add(1, Ordering::Relaxed);
                    }
                    if known.value.as_ref().is_some_and(|before| *before != value) {
                        tracing::info!(secret = name, "a secret has changed");
                    }
                    *known = Known { value: Some(value), problem: None };
                }
                Err(why) => {
                    if known.value.is_some() && known.problem.is_none() {
                        tracing::warn!(
                            secret = name,
                            why,
                            "a secret cannot be read again; what runs keeps the one it has"
                        );
                    }
                    known.problem = Some(why);
                }
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<SecretRef, Known>> {
        self.known.lock().expect("no code panics while it holds this lock")
    }
}

/// The last share that was asked about.
#[derive(Default)]
struct Given {
    share: Arc<Assigned>,
    /// The same with its secrets.
    filled: Arc<Assigned>,
    /// Which edition of the values that was.
    edition: u64,
    /// What each section of it refers to, where it does.
    refs: BTreeMap<Section, BTreeSet<SecretRef>>,
}

/// Everything that a section of a share refers to.
fn refs_in(share: &AppShare) -> BTreeSet<SecretRef> {
    let beside = share.beside.values().map(|beside| &beside.held);
    let of_components = share.components.values().chain(beside).flat_map(|held| &held.secret_refs);
    let of_links = share.links.values().flat_map(|held| &held.secret_refs);
    of_components.chain(of_links).cloned().collect()
}

impl SecretSources {
    /// Reads one secret now. What is said of it on failure never holds any of it.
    fn read(&self, secret: &SecretRef) -> Result<Secret, String> {
        let text = match &secret.backend {
            SecretsBackend::Env => self.variable(&secret.key)?,
            SecretsBackend::File => self.file(&secret.key, secret.field.as_deref())?,
            SecretsBackend::NotBuilt(backend) => return Err(format!("the backend `{backend}` is not built")),
        };
        let read = Secret::new(&text);
        if read.expose().is_empty() { Err(format!("`{}` is empty", secret.key)) } else { Ok(read) }
    }

    fn variable(&self, key: &str) -> Result<String, String> {
        let Some(prefix) = &self.env_prefix else {
            return Err("the node opens no variables to manifests; start it with `--secrets-env-prefix PREFIX`".into());
        };
        let name = variable_name(prefix, key);
        match std::env::var(&name) {
            Ok(value) => Ok(value),
            Err(std::env::VarError::NotPresent) => Err(format!("the variable {name} is not set")),
            Err(std::env::VarError::NotUnicode(_)) => Err(format!("the variable {name} is no UTF-8")),
        }
    }

    fn file(&self, key: &str, field: Option<&str>) -> Result<String, String> {
        let Some(path) = &self.path else {
            return Err("the node opens no files to manifests; start it with `--secrets PATH`".into());
        };
        if let Some(wrong) = [Some(key), field].into_iter().flatten().find(|part| !is_inside(part)) {
            return Err(format!(
                "`{wrong}` is no name of a secret: it may go down with `/`, but not up or to hidden files"
            ));
        }
        if path.is_file() {
            return pick(&mapping(path)?, path, key, field);
        }
        let path = path.join(key);
        match field {
            None if path.is_dir() => Err(format!("{} is a directory: name a file in it as `field`", path.display())),
            None => read_text(&path),
            Some(field) if path.is_file() => pick(&mapping(&path)?, &path, field, None),
            Some(field) => read_text(&path.join(field)),
        }
    }
}

/// The variable of a key: `db-password` is `PREFIX` and `DB_PASSWORD`.
fn variable_name(prefix: &str, key: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    prefix.chars().chain(key.chars().map(letter)).collect()
}

/// Whether a path stays below the directory it is joined to.
fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\0'))
}

fn read_text(path: &Path) -> Result<String, String> {
    let failed = |why: std::io::Error| format!("{}: {}", path.display(), why.kind());
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display()));
    }
    String::from_utf8(bytes).map_err(|_| format!("{} is no UTF-8 text", path.display()))
}

/// A file's YAML or JSON mapping. A parser's own words would show some of it.
fn mapping(path: &Path) -> Result<BTreeMap<String, Value>, String> {
    serde_saphyr::from_str(&read_text(path)?).map_err(|_| format!("{} holds no YAML or JSON mapping", path.display()))
}

fn pick(entries: &BTreeMap<String, Value>, path: &Path, key: &str, field: Option<&str>) -> Result<String, String> {
    let value = entries.get(key).ok_or_else(|| format!("{} has no `{key}`", path.display()))?;
    let (value, name) = match field {
        None => (Some(value), key),
        Some(field) => (value.get(field), field),
    };
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{name}` in {} is no text: put it in quotes", path.display())),
        None => Err(format!("`{key}` in {} has no `{name}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(backend: SecretsBackend, key: &str, field: Option<&str>) -> SecretRef {
        let field = field.map(str::to_owned);
        SecretRef { name: "x".into(), policy: "p".into(), backend, key: key.into(), field, version: None }
    }

    fn in_files(path: &Path, key: &str, field: Option<&str>) -> Result<String, String> {
        let sources = SecretSources { path: Some(path.into()), ..SecretSources::default() };
        sources.read(&secret(SecretsBackend::File, key, field)).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn nothing_is_read_that_is_not_opened() {
        let closed = SecretSources::default();
        for (backend, opened_by) in
            [(SecretsBackend::Env, "--secrets-env-prefix"), (SecretsBackend::File, "--secrets PATH")]
        {
            let refused = closed.read(&secret(backend, "PATH", None)).unwrap_err();
            assert!(refused.contains(opened_by), "{refused}");
        }
        let prefixed = SecretSources { env_prefix: Some("TRELLIS_SECRET_".into()), ..closed };
        let refused = prefixed.read(&secret(SecretsBackend::Env, "path", None)).unwrap_err();
        assert_eq!(refused, "the variable TRELLIS_SECRET_PATH is not set", "PATH itself is set and is not read");
        assert_eq!(variable_name("APP_", "db/pass-word.1"), "APP_DB_PASS_WORD_1");
    }

    #[test]
    fn a_directory_holds_files_mounted_secrets_and_mappings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        fs::write(path.join("token"), "hunter2\n").unwrap();
        fs::create_dir_all(path.join("db/..2026")).unwrap();
        fs::write(path.join("db/..2026/password"), "hunter3").unwrap();
        // As Kubernetes mounts secrets: a link to the file of the current version.
        std::os::unix::fs::symlink("..2026/password", path.join("db/password")).unwrap();
        fs::write(path.join("api.json"), r#"{"key": "hunter4", "port": 1}"#).unwrap();
        assert_eq!(in_files(path, "token", None).unwrap(), "hunter2");
        assert_eq!(in_files(path, "db", Some("password")).unwrap(), "hunter3");
        assert_eq!(in_files(path, "db/password", None).unwrap(), "hunter3");
        assert_eq!(in_files(path, "api.json", Some("key")).unwrap(), "hunter4");
        for (key, field, why) in [
            ("none", None, "entity not found"),
            ("db", None, "is a directory"),
            ("api.json", Some("port"), "is no text"),
            ("token", Some("key"), "no YAML or JSON mapping"),
            ("../token", None, "is no name"),
            ("/etc/passwd", None, "is no name"),
            ("db", Some("../token"), "is no name"),
            ("db/..2026/password", None, "is no name"),
        ] {
            let refused = in_files(path, key, field).unwrap_err();
            assert!(refused.contains(why) && !refused.contains("hunter"), "{key}: {refused}");
        }
    }

    #[test]
    fn a_file_is_a_mapping_of_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.yaml");
        fs::write(&path, "token: hunter2\ndb: {password: hunter3}\nempty: ''\n").unwrap();
        assert_eq!(in_files(&path, "token", None).unwrap(), "hunter2");
        assert_eq!(in_files(&path, "db", Some("password")).unwrap(), "hunter3");
        assert_eq!(in_files(&path, "empty", None).unwrap_err(), "`empty` is empty");
        assert!(in_files(&path, "other", None).unwrap_err().contains("has no `other`"));
        fs::write(&path, "token: hunter2: x\n").unwrap();
        assert!(!in_files(&path, "token", None).unwrap_err().contains("hunter"));
    }

    #[tokio::test]
    async fn a_secret_that_cannot_be_read_again_keeps_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let sources = SecretSources { path: Some(dir.path().into()), ..SecretSources::default() };
        let secrets = Secrets::new(sources, "a".into());
        let token = secret(SecretsBackend::File, "token", None);
        secrets.read(vec![token.clone()]).await;
        let missing = secrets.missing(std::slice::from_ref(&token)).unwrap();
        assert!(missing.starts_with("waits for the secret `x` on node a: "), "{missing}");
        let value = || secrets.known()[&token].value.as_ref().map(|secret| secret.expose().to_owned());
        fs::write(dir.path().join("token"), "one").unwrap();
        secrets.refresh().await;
        assert_eq!((value().as_deref(), secrets.missing(std::slice::from_ref(&token))), (Some("one"), None));
        fs::remove_file(dir.path().join("token")).unwrap();
        secrets.refresh().await;
        assert_eq!(value().as_deref(), Some("one"));
        fs::write(dir.path().join("token"), "two").unwrap();
        secrets.refresh().await;
        assert_eq!(value().as_deref(), Some("two"));
    }
}
