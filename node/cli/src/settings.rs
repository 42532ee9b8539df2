//! What `trellis up` can be told, and from where: flags lie over the environment, the environment over the `--config`
//! file, the file over the defaults. One struct is all three, so that a setting has one name everywhere.

mod yaml;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Deserialize;
use trellis_bus::{Auth, Options as NatsOptions, Tls};
use trellis_daemon::api::{Role, TlsFiles, Tokens};
use trellis_daemon::{Care, GivenTimings, Options, SecretSources};
use trellis_trust::TOKEN_CHARS_MIN;
use trellis_wire::{LatticeName, NodeKey, Secret};

use crate::admin::{ADMIN_DEFAULT, Connection, Endpoint, token};
use crate::failure::Failure;
use crate::machine;
use crate::quantity::{MemoryBytes, Pair, Time};

/// Sandboxes alive at one time, where nothing else is said.
const SANDBOXES_MAX_DEFAULT: u32 = 1_000;

/// Every setting; what is not set is `None` until [`Settings::options`] fills in the defaults.
#[derive(Debug, Default, Clone, PartialEq, clap::Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Where the node keeps everything [default: trellis/LATTICE under $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, env = "TRELLIS_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the admin API listens; port 0 takes a free one. As a flag it is every command's `--admin`.
    #[arg(skip)]
    admin: Option<Endpoint>,
    /// The bearer token of the admin API; needed beyond loopback.
    #[arg(skip)]
    admin_token: Option<String>,
    /// Further tokens with roles: read, deploy or admin, each with what those before it may. Better set in the
    /// environment or the config file; may be given several times
    #[arg(
        long,
        env = "TRELLIS_ADMIN_TOKEN_FOR",
        value_name = "ROLE=TOKEN",
        value_delimiter = ',',
        hide_env_values = true
    )]
    #[arg(help_heading = "Admin API")]
    #[serde(deserialize_with = "yaml::pairs")]
    admin_token_for: Option<Vec<Pair>>,
    /// PEM file of the admin API's certificate chain; needed beyond loopback
    #[arg(long, env = "TRELLIS_ADMIN_TLS_CERT", value_name = "FILE", help_heading = "Admin API")]
    admin_tls_cert: Option<PathBuf>,
    /// PEM file of that certificate's key
    #[arg(long, env = "TRELLIS_ADMIN_TLS_KEY", value_name = "FILE", help_heading = "Admin API")]
    admin_tls_key: Option<PathBuf>,
    /// Let the admin API listen beyond loopback without TLS: something else protects the way to it
    #[arg(long, env = "TRELLIS_ADMIN_INSECURE", value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", help_heading = "Admin API")]
    admin_insecure: Option<bool>,
    /// The lattice to start or join [default: default]
    #[arg(long, env = "TRELLIS_LATTICE", value_name = "NAME")]
    lattice: Option<LatticeName>,

    /// The lattice's NATS servers; without, this node is alone and needs nothing installed
    #[arg(long, env = "TRELLIS_NATS", value_name = "URL", value_delimiter = ',', help_heading = "NATS")]
    #[serde(deserialize_with = "yaml::one_or_many")]
    nats: Option<Vec<String>>,
    /// A .creds file
    #[arg(long, env = "TRELLIS_NATS_CREDS", value_name = "FILE", help_heading = "NATS")]
    nats_creds: Option<PathBuf>,
    /// A file with an nkey seed
    #[arg(long, env = "TRELLIS_NATS_NKEY_SEED_FILE", value_name = "FILE", help_heading = "NATS")]
    nats_nkey_seed_file: Option<PathBuf>,
    /// A user; the password is TRELLIS_NATS_PASSWORD, or in the config file
    #[arg(long, env = "TRELLIS_NATS_USER", value_name = "USER", help_heading = "NATS")]
    nats_user: Option<String>,
    /// The user's password. As a flag it would show in process lists
    #[arg(long, hide = true, env = "TRELLIS_NATS_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    nats_password: Option<String>,
    /// A token. As a flag it would show in process lists
    #[arg(long, hide = true, env = "TRELLIS_NATS_TOKEN", value_name = "TEXT", hide_env_values = true)]
    nats_token: Option<String>,
    /// PEM file of the CA to trust instead of the machine's
    #[arg(long, env = "TRELLIS_NATS_TLS_CA", value_name = "FILE", help_heading = "NATS")]
    nats_tls_ca: Option<PathBuf>,
    /// PEM file of the node's own certificate
    #[arg(long, env = "TRELLIS_NATS_TLS_CERT", value_name = "FILE", help_heading = "NATS")]
    nats_tls_cert: Option<PathBuf>,
    /// PEM file of that certificate's key
    #[arg(long, env = "TRELLIS_NATS_TLS_KEY", value_name = "FILE", help_heading = "NATS")]
    nats_tls_key: Option<PathBuf>,
    /// Start the lattice; ignored where the data directory belongs to one already
    #[arg(long, env = "TRELLIS_BOOTSTRAP", value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", help_heading = "NATS")]
    bootstrap: Option<bool>,
    /// The lattice's join token: founded with one, a lattice lets in only nodes that have it. Better in a file, or set in
    /// the environment, than as a flag, which shows in process lists
    #[arg(long, env = "TRELLIS_JOIN_TOKEN", value_name = "TEXT", hide_env_values = true, help_heading = "Lattice")]
    join_token: Option<String>,
    /// A file that holds the join token
    #[arg(long, env = "TRELLIS_JOIN_TOKEN_FILE", value_name = "FILE", help_heading = "Lattice")]
    join_token_file: Option<PathBuf>,
    /// With --bootstrap: a node with this key (N...) is let in without the token; may be given several times
    #[arg(long, env = "TRELLIS_ALLOW_NODE", value_name = "KEY", value_delimiter = ',', help_heading = "Lattice")]
    allow_node: Option<Vec<NodeKey>>,
    /// How often each node gives a sign of life. This and the next two are the lattice's, as is --lease: given with
    /// --bootstrap; elsewhere they can only say the same [default: 1s]
    #[arg(long, env = "TRELLIS_HEARTBEAT", value_name = "TIME", help_heading = "Lattice")]
    heartbeat: Option<Time>,
    /// After this long without a sign of life a node gets no new work [default: 3s]
    #[arg(long, env = "TRELLIS_SUSPECT_AFTER", value_name = "TIME", help_heading = "Lattice")]
    suspect_after: Option<Time>,
    /// After this long it is lost, and what it holds goes elsewhere [default: 6s]
    #[arg(long, env = "TRELLIS_LOST_AFTER", value_name = "TIME", help_heading = "Lattice")]
    lost_after: Option<Time>,
    /// A new version that is not ready by then is rolled back [default: 2m]
    #[arg(long, env = "TRELLIS_READY_WITHIN", value_name = "TIME", help_heading = "Lattice")]
    ready_within: Option<Time>,
    /// For so long a new version is rolled back if too many of its events fault [default: 1m]
    #[arg(long, env = "TRELLIS_WATCH_FOR", value_name = "TIME", help_heading = "Lattice")]
    watch_for: Option<Time>,
    /// For so long a node that is cut off goes on with what must run once in the lattice [default: 4s]
    #[arg(long, env = "TRELLIS_LEASE", value_name = "TIME", help_heading = "Lattice")]
    lease: Option<Time>,

    /// Replaces the host of every address that a manifest gives an HTTP listener
    #[arg(long, env = "TRELLIS_LISTEN_HOST", value_name = "IP", help_heading = "Placement")]
    listen_host: Option<IpAddr>,
    /// A label for placement; may be given several times
    #[arg(long, env = "TRELLIS_LABEL", value_name = "KEY=VALUE", value_delimiter = ',', help_heading = "Placement")]
    #[serde(deserialize_with = "yaml::pairs")]
    label: Option<Vec<Pair>>,
    /// Only components whose spread names an edge label come here
    #[arg(long, env = "TRELLIS_EDGE", value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", help_heading = "Placement")]
    edge: Option<bool>,

    /// Sandboxes alive at one time [default: 1000]
    #[arg(long, env = "TRELLIS_MAX_SANDBOXES", value_name = "N", help_heading = "Sandboxes")]
    max_sandboxes: Option<u32>,
    /// Memory of all sandboxes together, such as 2GiB [default: half of this machine's]
    #[arg(long, env = "TRELLIS_SANDBOX_MEMORY", value_name = "SIZE", help_heading = "Sandboxes")]
    sandbox_memory: Option<MemoryBytes>,
    /// Whether WASI 0.3 components run; wasmtime calls its support experimental [default: true]
    #[arg(long, env = "TRELLIS_WASI_P3", value_name = "BOOL", help_heading = "Sandboxes")]
    wasi_p3: Option<bool>,

    /// Registries, as host:port, that are spoken to over plain HTTP besides those on loopback
    #[arg(long, env = "TRELLIS_OCI_INSECURE", value_name = "HOST", value_delimiter = ',', help_heading = "Images")]
    #[serde(deserialize_with = "yaml::one_or_many")]
    oci_insecure: Option<Vec<String>>,
    /// YAML file of further provider images: `image: trellis://TECH`
    #[arg(long, env = "TRELLIS_IMAGE_ALIASES", value_name = "FILE", help_heading = "Images")]
    image_aliases: Option<PathBuf>,

    /// Variables that begin so may be read by manifests with the secrets backend `env`, such as TRELLIS_SECRET_
    #[arg(long, env = "TRELLIS_SECRETS_ENV_PREFIX", value_name = "PREFIX", help_heading = "Secrets")]
    secrets_env_prefix: Option<String>,
    /// A directory with secrets, or a YAML file of them, that manifests may read with the secrets backend `file`
    #[arg(long, env = "TRELLIS_SECRETS", value_name = "PATH", help_heading = "Secrets")]
    secrets: Option<PathBuf>,

    /// How log lines look [default: text]
    #[arg(long, env = "TRELLIS_LOG_FORMAT", value_name = "FORMAT", help_heading = "Logs")]
    log_format: Option<LogFormat>,
    /// What is logged, such as `info,trellis_raft=debug` [default: info]
    #[arg(long, env = "TRELLIS_LOG", value_name = "FILTER", help_heading = "Logs")]
    log: Option<String>,
}

/// `--log-format`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

impl Settings {
    /// Reads a config file. An unknown key is an error that shows its line.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("cannot read {}: {}", path.display(), error.kind())))?;
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
    }

    /// Takes what every command's `--admin` and `--admin-token` say.
    pub(crate) fn listening_at(self, connection: &Connection) -> Self {
        let Connection { admin, admin_token, admin_ca: _ } = connection;
        Self { admin: admin.clone().or(self.admin), admin_token: admin_token.clone().or(self.admin_token), ..self }
    }

    /// Lays these over `below`: what is set here wins, whole.
    pub(crate) fn over(self, below: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(below.data_dir),
            admin: self.admin.or(below.admin),
            admin_token: self.admin_token.or(below.admin_token),
            admin_token_for: self.admin_token_for.or(below.admin_token_for),
            admin_tls_cert: self.admin_tls_cert.or(below.admin_tls_cert),
            admin_tls_key: self.admin_tls_key.or(below.admin_tls_key),
            admin_insecure: self.admin_insecure.or(below.admin_insecure),
            lattice: self.lattice.or(below.lattice),
            nats: self.nats.or(below.nats),
            nats_creds: self.nats_creds.or(below.nats_creds),
            nats_nkey_seed_file: self.nats_nkey_seed_file.or(below.nats_nkey_seed_file),
            nats_user: self.nats_user.or(below.nats_user),
            nats_password: self.nats_password.or(below.nats_password),
            nats_token: self.nats_token.or(below.nats_token),
            nats_tls_ca: self.nats_tls_ca.or(below.nats_tls_ca),
            nats_tls_cert: self.nats_tls_cert.or(below.nats_tls_cert),
            nats_tls_key: self.nats_tls_key.or(below.nats_tls_key),
            bootstrap: self.bootstrap.or(below.bootstrap),
            join_token: self.join_token.or(below.join_token),
            join_token_file: self.join_token_file.or(below.join_token_file),
            allow_node: self.allow_node.or(below.allow_node),
            heartbeat: self.heartbeat.or(below.heartbeat),
            suspect_after: self.suspect_after.or(below.suspect_after),
            lost_after: self.lost_after.or(below.lost_after),
            ready_within: self.ready_within.or(below.ready_within),
            watch_for: self.watch_for.or(below.watch_for),
            lease: self.lease.or(below.lease),
            listen_host: self.listen_host.or(below.listen_host),
            label: self.label.or(below.label),
            edge: self.edge.or(below.edge),
            max_sandboxes: self.max_sandboxes.or(below.max_sandboxes),
            sandbox_memory: self.sandbox_memory.or(below.sandbox_memory),
            wasi_p3: self.wasi_p3.or(below.wasi_p3),
            oci_insecure: self.oci_insecure.or(below.oci_insecure),
            image_aliases: self.image_aliases.or(below.image_aliases),
            secrets_env_prefix: self.secrets_env_prefix.or(below.secrets_env_prefix),
            secrets: self.secrets.or(below.secrets),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
        }
    }

    /// How to log, and what.
    pub(crate) fn logging(&self) -> (LogFormat, Option<&str>) {
        (self.log_format.unwrap_or_default(), self.log.as_deref())
    }

    /// What the node is started with: the settings, and the defaults for the rest.
    pub(crate) fn options(self) -> Result<Options, Failure> {
        let lattice = self.lattice.clone().unwrap_or_else(|| "default".parse().expect("it is a valid lattice name"));
        let admin = self.admin.clone().unwrap_or_else(|| ADMIN_DEFAULT.parse().expect("it is a valid address"));
        Ok(Options {
            data_dir: match &self.data_dir {
                Some(data_dir) => data_dir.clone(),
                None => machine::data_dir(&lattice).map_err(Failure::Usage)?,
            },
            admin: admin.resolve().map_err(|problem| Failure::Usage(format!("--admin: {problem}")))?,
            admin_tokens: self.admin_tokens()?,
            admin_tls: self.admin_tls()?,
            admin_insecure: self.admin_insecure.unwrap_or(false),
            nats: self.nats(&lattice)?,
            bootstrap: self.bootstrap.unwrap_or(false),
            join_token: self.join_token()?,
            timings: self.timings(),
            care: self.care(),
            allow_nodes: self.allow_node.unwrap_or_default().into_iter().collect(),
            secrets: secret_sources(self.secrets_env_prefix, self.secrets)?,
            labels: labels(self.label.unwrap_or_default())?,
            sandboxes_max: at_least_one("--max-sandboxes", self.max_sandboxes.unwrap_or(SANDBOXES_MAX_DEFAULT))?,
            sandbox_memory_bytes: self.sandbox_memory.map_or_else(machine::half_of_memory_bytes, |memory| memory.0),
            wasi_p3: self.wasi_p3.unwrap_or(true),
            oci_insecure: self.oci_insecure.unwrap_or_default(),
            image_aliases: self.image_aliases.as_deref().map(image_aliases).transpose()?.unwrap_or_default(),
            edge: self.edge.unwrap_or(false),
            listen_host: self.listen_host,
            lattice,
        })
    }

    fn timings(&self) -> GivenTimings {
        let time = |set: Option<Time>| set.map(|time| time.0);
        GivenTimings {
            heartbeat: time(self.heartbeat),
            suspect: time(self.suspect_after),
            lost: time(self.lost_after),
            lease: time(self.lease),
        }
    }

    fn care(&self) -> Care {
        let default = Care::default();
        let or = |set: Option<Time>, default| set.map_or(default, |time| time.0);
        Care {
            ready_within: or(self.ready_within, default.ready_within),
            watch_for: or(self.watch_for, default.watch_for),
            ..default
        }
    }

    fn admin_tokens(&self) -> Result<Tokens, Failure> {
        let mut tokens = Tokens::default();
        if let Some(token) = &self.admin_token {
            tokens.add(Role::Admin, token);
        }
        for Pair { key, value } in self.admin_token_for.iter().flatten() {
            let wrong = |problem: String| Failure::Usage(format!("--admin-token-for: {problem}"));
            tokens.add(key.parse().map_err(wrong)?, &token(value).map_err(wrong)?);
        }
        Ok(tokens)
    }

    fn admin_tls(&self) -> Result<Option<TlsFiles>, Failure> {
        match (&self.admin_tls_cert, &self.admin_tls_key) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })),
            (None, None) => Ok(None),
            _ => Err(Failure::Usage("--admin-tls-cert and --admin-tls-key need each other".into())),
        }
    }

    fn join_token(&self) -> Result<Option<Secret>, Failure> {
        let token = match (&self.join_token, &self.join_token_file) {
            (Some(_), Some(_)) => return Err(Failure::Usage("give one of --join-token and --join-token-file".into())),
            (Some(text), None) => Secret::new(text),
            (None, Some(path)) => {
                let unread = |error: std::io::Error| {
                    Failure::Usage(format!("cannot read --join-token-file {}: {}", path.display(), error.kind()))
                };
                Secret::new(&std::fs::read_to_string(path).map_err(unread)?)
            }
            (None, None) => return Ok(None),
        };
        if token.expose().chars().count() < TOKEN_CHARS_MIN {
            return Err(Failure::Usage(format!(
                "a join token has at least {TOKEN_CHARS_MIN} characters; `openssl rand -hex 24` makes a good one"
            )));
        }
        Ok(Some(token))
    }

    fn nats(&self, lattice: &LatticeName) -> Result<Option<NatsOptions>, Failure> {
        let (auth, tls) = (self.nats_auth()?, self.nats_tls()?);
        match &self.nats {
            Some(urls) if !urls.is_empty() => {
                Ok(Some(NatsOptions { auth, tls, name: format!("trellis {lattice}"), ..NatsOptions::urls(urls) }))
            }
            _ if auth != Auth::None || tls != Tls::default() => {
                Err(Failure::Usage("--nats-... says how to reach NATS, but no --nats says where it is".into()))
            }
            _ => Ok(None),
        }
    }

    fn nats_auth(&self) -> Result<Auth, Failure> {
        let password = match (&self.nats_user, &self.nats_password) {
            (Some(user), Some(password)) => {
                Some(Auth::Password { user: user.clone(), password: Secret::new(password) })
            }
            (None, None) => None,
            (Some(_), None) => return Err(Failure::Usage("--nats-user needs TRELLIS_NATS_PASSWORD".into())),
            (None, Some(_)) => return Err(Failure::Usage("TRELLIS_NATS_PASSWORD needs --nats-user".into())),
        };
        let ways = [
            self.nats_creds.clone().map(Auth::Credentials),
            self.nats_nkey_seed_file.clone().map(Auth::NkeySeed),
            self.nats_token.as_deref().map(|token| Auth::Token(Secret::new(token))),
            password,
        ];
        let mut ways = ways.into_iter().flatten();
        match (ways.next(), ways.next()) {
            (None, _) => Ok(Auth::None),
            (Some(way), None) => Ok(way),
            _ => Err(Failure::Usage("give one of --nats-creds, --nats-nkey-seed-file, a user or a token".into())),
        }
    }

    fn nats_tls(&self) -> Result<Tls, Failure> {
        let identity = match (&self.nats_tls_cert, &self.nats_tls_key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(Failure::Usage("--nats-tls-cert and --nats-tls-key need each other".into())),
        };
        Ok(Tls { ca: self.nats_tls_ca.clone(), identity })
    }
}

fn labels(pairs: Vec<Pair>) -> Result<BTreeMap<String, String>, Failure> {
    let mut labels = BTreeMap::new();
    for Pair { key, value } in pairs {
        trellis_daemon::check_label(&key, &value).map_err(|why| Failure::Usage(format!("--label: {why}")))?;
        if labels.insert(key.clone(), value).is_some() {
            return Err(Failure::Usage(format!("label `{key}` is given twice")));
        }
    }
    Ok(labels)
}

/// Manifests must not read the node's own password or token by way of the prefix.
fn secret_sources(env_prefix: Option<String>, path: Option<PathBuf>) -> Result<SecretSources, Failure> {
    const OWN: &str = "TRELLIS_";
    const OPEN: &str = "TRELLIS_SECRET_";
    if let Some(prefix) = &env_prefix {
        let opens_own = (OWN.starts_with(prefix.as_str()) || prefix.starts_with(OWN)) && !prefix.starts_with(OPEN);
        let is_name = prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !prefix.is_empty();
        if opens_own || !is_name {
            return Err(Failure::Usage(format!(
                "--secrets-env-prefix `{prefix}`: take letters, digits and `_`, and none that opens the node's own \
                 variables, which begin with {OWN}; {OPEN} is a good one"
            )));
        }
    }
    if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
        return Err(Failure::Usage(format!("--secrets {}: there is no such directory or file", path.display())));
    }
    Ok(SecretSources { env_prefix, path })
}

fn at_least_one(flag: &str, number: u32) -> Result<u32, Failure> {
    if number == 0 { Err(Failure::Usage(format!("{flag} must be at least 1"))) } else { Ok(number) }
}

fn image_aliases(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {}", path.display(), error.kind())))?;
    serde_saphyr::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(yaml: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.yaml");
        std::fs::write(&path, yaml).unwrap();
        Settings::read(&path).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_file_takes_the_same_words_as_the_flags() {
        let settings = file(
            "# a laptop\nlattice: home\nadmin: 127.0.0.1:0\nnats: nats://a,nats://b\nlabel:\n  zone: cellar\n  \
             disk: ssd\nmax-sandboxes: 5\nsandbox-memory: 64MiB\nwasi-p3: false\nedge: true\nlog-format: json\n",
        );
        let settings = Settings { data_dir: Some("/d".into()), ..settings.unwrap() };
        assert_eq!(settings.logging().0, LogFormat::Json);
        let options = settings.options().unwrap();
        assert_eq!(options.lattice.as_str(), "home");
        assert_eq!(options.admin, "127.0.0.1:0".parse().unwrap());
        assert_eq!(options.nats.unwrap().urls, ["nats://a", "nats://b"]);
        assert_eq!(options.labels["zone"], "cellar");
        assert_eq!((options.sandboxes_max, options.sandbox_memory_bytes), (5, 64 << 20));
        assert_eq!((options.wasi_p3, options.edge, options.bootstrap), (false, true, false));
    }

    #[test]
    fn lists_are_lists_or_text() {
        let many = file("nats: [nats://a, nats://b]\nlabel: [zone=cellar]\n").unwrap();
        assert_eq!(many.nats.unwrap(), ["nats://a", "nats://b"]);
        assert_eq!(many.label.unwrap()[0].to_string(), "zone=cellar");
        assert_eq!(file("").unwrap(), Settings::default());
        assert_eq!(file("# nothing\n").unwrap(), Settings::default());
        assert_eq!(file("sandbox-memory: 1048576\n").unwrap().sandbox_memory, Some(MemoryBytes(1 << 20)));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let error = file("lattice: home\nlatice: x\n").unwrap_err();
        assert!(error.contains("node.yaml") && error.contains("latice") && error.contains("line 2"), "{error}");
        let error = file("max-sandboxes: many\n").unwrap_err();
        assert!(error.contains("line 1"), "{error}");
        let error = file("admin: no address\n").unwrap_err();
        assert!(error.contains("line 1") && error.contains("host:port"), "{error}");
    }

    #[test]
    fn what_lies_above_wins_whole() {
        let below = file("lattice: home\nlabel: {zone: cellar}\nmax-sandboxes: 5\n").unwrap();
        let above = Settings {
            lattice: Some("away".parse().unwrap()),
            label: Some(vec!["zone=roof".parse().unwrap()]),
            ..Settings::default()
        };
        let both = above.over(below);
        assert_eq!(both.lattice.unwrap().as_str(), "away");
        assert_eq!(both.label.unwrap()[0].value, "roof");
        assert_eq!(both.max_sandboxes, Some(5));
    }

    #[test]
    fn credentials_need_a_server_and_one_way_in() {
        let said = |yaml| file(yaml).unwrap().options().unwrap_err().to_string();
        assert!(said("nats-creds: /n.creds").contains("no --nats says where"));
        assert!(said("nats: nats://a\nnats-creds: /n.creds\nnats-token: x").contains("give one of"));
        assert!(said("nats: nats://a\nnats-tls-cert: /c").contains("need each other"));
        assert!(said("nats: nats://a\nnats-user: u").contains("TRELLIS_NATS_PASSWORD"));
        assert!(said("admin-tls-cert: /c").contains("need each other"));
        assert!(said("admin-token-for: {root: s3cret}").contains("there are read, deploy and admin"));
        assert!(said("join-token: short").contains("at least 16 characters"));
        assert!(said("join-token: 0123456789abcdef\njoin-token-file: /t").contains("give one of"));
        assert!(said("join-token-file: /nowhere/t").contains("/nowhere/t"));
    }

    #[test]
    fn a_label_twice_is_an_error() {
        let error = file("label: [zone=a, zone=b]").unwrap().options().unwrap_err();
        assert!(error.to_string().contains("label `zone` is given twice"), "{error}");
        let error = file("label: ['a b=c']").unwrap().options().unwrap_err();
        assert!(error.to_string().contains("--label: `a b` is no label key"), "{error}");
    }
}
