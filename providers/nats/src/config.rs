//! What a link's configuration says. The keys and their meaning are those of wasmCloud's NATS providers, so that
//! manifests written for those go on working; `lattice/manifest/src/keys.rs` lists them with ours, such as `url` and `tls_cert`.

use std::path::{Path, PathBuf};

use trellis_provider::{LinkError, Pem, Tls, foreign_word};
use trellis_wire::{ComponentKey, Config, Link, Secret, pattern, subject};

use crate::Options;

/// Where a link that names no server goes when the lattice has no NATS either.
const URL_DEFAULT: &str = "nats://127.0.0.1:4222";
/// The first token of every inbox that nobody has moved elsewhere.
const INBOX_DEFAULT: &str = "_INBOX";

/// All that makes a connection what it is: links with equal settings share one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// The servers of one NATS system, without credentials.
    pub(crate) urls: Vec<String>,
    /// The key that named them, for messages.
    pub(crate) urls_key: &'static str,
    pub(crate) auth: Auth,
    /// TLS is used where the URL or the server asks for it, and always when a CA is given.
    pub(crate) tls: Tls,
    pub(crate) inbox: Inbox,
}

/// Who a connection is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Auth {
    /// Nobody: the server asks for nothing.
    #[default]
    None,
    /// A `.creds` file, or its text: a JWT and the seed that it was issued to.
    Credentials(Pem),
    /// A file with an nkey seed.
    NkeySeed(PathBuf),
    /// An nkey seed.
    Nkey(Secret),
    /// A JWT and the seed that it was issued to.
    Jwt {
        /// The user JWT.
        jwt: Secret,
        /// The nkey seed.
        seed: Secret,
    },
    /// A user with a password.
    Password {
        /// The user.
        user: Secret,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
}

/// Where a connection's answers come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Inbox {
    /// At this prefix, which the link names.
    At(String),
    /// Below this prefix, where others may have theirs as well.
    Below(String),
}

impl Auth {
    /// A `.creds` file of the node's.
    pub fn credentials_file(path: &Path) -> Self {
        Self::Credentials(Pem::file("creds", path))
    }
}

impl Settings {
    /// The lattice's own server, and the node itself.
    pub(crate) fn own(options: &Options) -> Self {
        Self {
            urls: list(options.default_url.as_deref().unwrap_or(URL_DEFAULT)).map(Into::into).collect(),
            urls_key: "url",
            auth: options.auth.clone(),
            tls: options.tls.clone(),
            inbox: Inbox::Below(options.inbox_prefix.clone().unwrap_or_else(|| INBOX_DEFAULT.into())),
        }
    }

    /// What the node has for the lattice's server goes nowhere else, and gives way to what the link brings.
    pub(crate) fn read(link: &Link, options: &Options) -> Result<Self, LinkError> {
        let config = &link.config;
        let named = ["url", "cluster_uris", "cluster_uri"].into_iter().find_map(|key| Some((key, config.get(key)?)));
        let (urls_key, urls) = named.unwrap_or(("url", options.default_url.as_deref().unwrap_or(URL_DEFAULT)));
        let elsewhere = Options::default();
        let node = if named.is_none() { options } else { &elsewhere };
        let inbox = match (inbox_prefix(config)?, &node.inbox_prefix) {
            (Some(prefix), _) => Inbox::At(prefix),
            (None, prefix) => Inbox::Below(prefix.clone().unwrap_or_else(|| INBOX_DEFAULT.into())),
        };
        Ok(Self {
            urls: list(urls).map(Into::into).collect(),
            urls_key,
            auth: match auth(link)? {
                Auth::None => node.auth.clone(),
                own => own,
            },
            tls: tls(link, &node.tls)?,
            inbox,
        })
    }
}

/// Of a `.creds` file's text the secret `creds` is the whole; its parts may also come alone, as wasmCloud has them.
fn auth(link: &Link) -> Result<Auth, LinkError> {
    match (link.secret("user"), link.secret("password"), link.secret("token"), Pem::read(link, "creds")) {
        (None, None, None, None) => nkey(link),
        (Some(user), Some(password), None, None) => Ok(Auth::Password { user, password }),
        (None, None, Some(token), None) => Ok(Auth::Token(token)),
        (None, None, None, Some(creds)) => Ok(Auth::Credentials(creds)),
        (Some(_), None, None, None) => Err(LinkError::config("password", "is needed beside `user`, as a secret")),
        (None, Some(_), None, None) => Err(LinkError::config("user", "is needed beside the secret `password`")),
        _ => Err(LinkError::config("user", "stands beside another way to log in: give `password`, `token` or `creds`")),
    }
}

fn nkey(link: &Link) -> Result<Auth, LinkError> {
    match (link.secret("client_jwt"), link.secret("client_seed")) {
        (None, None) => Ok(Auth::None),
        (Some(jwt), Some(seed)) => Ok(Auth::Jwt { jwt, seed }),
        (None, Some(seed)) => Ok(Auth::Nkey(seed)),
        (Some(_), None) => Err(LinkError::config("client_seed", "is needed beside `client_jwt`: the user's nkey seed")),
    }
}

/// What the link brings comes before what the node has. `tls_ca_file` is wasmCloud's word for a path.
fn tls(link: &Link, node: &Tls) -> Result<Tls, LinkError> {
    let own = Tls::read(link)?;
    let file = || Some(Pem::file("tls_ca_file", Path::new(link.config.get("tls_ca_file")?)));
    Ok(Tls {
        ca: own.ca.or_else(file).or_else(|| node.ca.clone()),
        identity: own.identity.or_else(|| node.identity.clone()),
    })
}

/// An inbox is subscribed to, so its prefix must not reach into the lattice or the server.
fn inbox_prefix(config: &Config) -> Result<Option<String>, LinkError> {
    const KEY: &str = "custom_inbox_prefix";
    let Some(prefix) = config.get(KEY).map(|prefix| prefix.trim_end_matches('.')) else { return Ok(None) };
    pattern::check_literal(prefix).map_err(|why| LinkError::config(KEY, why.to_string()))?;
    if !subject::is_free(prefix) && !is_inbox(prefix) {
        return Err(not_free(KEY, prefix));
    }
    Ok(Some(prefix.into()))
}

/// One subject that a link listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) subject: String,
    /// Never absent: without a group every node would get its own copy of each message.
    pub(crate) group: String,
}

/// Reads `subscriptions`: a comma list of `subject` or `subject|queue`.
pub(crate) fn subscriptions(config: &Config, component: &ComponentKey) -> Result<Vec<Wanted>, LinkError> {
    const KEY: &str = "subscriptions";
    let allowed = Allowed::read(config)?;
    let text = config.get(KEY).unwrap_or_default();
    let wanted = list(text).map(|entry| {
        let (subject, group) = entry.split_once('|').unwrap_or((entry, ""));
        let (subject, group) = (subject.trim(), group.trim());
        pattern::check(subject).map_err(|why| LinkError::config(KEY, why.to_string()))?;
        allowed.check(KEY, subject)?;
        if group.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(LinkError::config(KEY, format!("queue group `{group}` of `{subject}` holds a space")));
        }
        let group = if group.is_empty() { group_of(component) } else { group.into() };
        Ok(Wanted { subject: subject.into(), group })
    });
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    if wanted.is_empty() {
        let missing = LinkError::config(KEY, "is missing: a comma list of subjects, such as `orders.>|workers`");
        return Err(foreign_word(config, "stream").unwrap_or(missing));
    }
    Ok(wanted)
}

/// The queue group of a component: the same on every node. What a queue group cannot hold is escaped as `%XX`.
fn group_of(component: &ComponentKey) -> String {
    component.to_string().bytes().fold(String::new(), |mut group, byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            group.push(byte.into());
        } else {
            group.push_str(&format!("%{byte:02X}"));
        }
        group
    })
}

/// What `allowed_subjects` lets a link use; all that is free where it is absent.
#[derive(Debug, Clone)]
pub(crate) struct Allowed(Option<Vec<String>>);

impl Allowed {
    pub(crate) fn read(config: &Config) -> Result<Self, LinkError> {
        const KEY: &str = "allowed_subjects";
        let Some(text) = config.get(KEY) else { return Ok(Self(None)) };
        let patterns: Vec<String> = list(text).map(Into::into).collect();
        for allowed in &patterns {
            pattern::check(allowed).map_err(|why| LinkError::config(KEY, why.to_string()))?;
        }
        Ok(Self(Some(patterns)))
    }

    /// Checks what a link's configuration names.
    pub(crate) fn check(&self, key: &str, wanted: &str) -> Result<(), LinkError> {
        if !subject::is_free(wanted) {
            return Err(not_free(key, wanted));
        }
        if !self.covers(wanted) {
            return Err(LinkError::config(key, format!("`{wanted}` is outside `allowed_subjects` of this link")));
        }
        Ok(())
    }

    /// Whether a guest may publish to a subject. An answer to an inbox always may: inboxes cannot be guessed, so who
    /// knows one was asked.
    pub(crate) fn may_publish(&self, wanted: &str) -> bool {
        is_inbox(wanted) || (subject::is_free(wanted) && self.covers(wanted))
    }

    fn covers(&self, wanted: &str) -> bool {
        self.0.as_ref().is_none_or(|allowed| allowed.iter().any(|allowed| pattern::covers(allowed, wanted)))
    }
}

/// Whether `key` is set to yes.
pub(crate) fn flag(config: &Config, key: &str) -> Result<bool, LinkError> {
    match config.get(key).map(str::to_ascii_lowercase).as_deref() {
        None | Some("false" | "no" | "0") => Ok(false),
        Some("true" | "yes" | "1") => Ok(true),
        Some(other) => Err(LinkError::config(key, format!("`{other}` is neither `true` nor `false`"))),
    }
}

fn is_inbox(subject: &str) -> bool {
    subject.split('.').next() == Some(INBOX_DEFAULT)
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn not_free(key: &str, subject: &str) -> LinkError {
    let problem = format!(
        "`{subject}` is not for components: subjects of the lattice (`trellis.`), of the server (`$`), of others' \
         inboxes, and wildcards that match those are kept from links. Begin it with a token of your own"
    );
    LinkError::config(key, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::link;

    fn component() -> ComponentKey {
        "shop/order worker".parse().unwrap()
    }

    #[test]
    fn subscriptions_have_a_group_and_stay_off_the_lattice() {
        let read = |text: &str| subscriptions(&Config::from_iter([("subscriptions", text)]), &component());
        let wanted = |subject: &str, group: &str| Wanted { subject: subject.into(), group: group.into() };
        let group = "shop/order%20worker";
        assert_eq!(read("a.>|q, b"), Ok(vec![wanted("a.>", "q"), wanted("b", group)]));
        for refused in ["", "a..b", ">", "trellis.v1.home.>", "$KV.x.>", "_INBOX.>", "*.v1.home.join", "a|b c"] {
            let why = read(refused).unwrap_err().to_string();
            assert!(why.starts_with("config `subscriptions`"), "{refused}: {why}");
        }
    }

    #[test]
    fn allowed_subjects_bound_what_a_link_names_and_a_guest_publishes() {
        let config = Config::from_iter([("subscriptions", "shop.*"), ("allowed_subjects", "shop.>, mail")]);
        assert!(subscriptions(&config, &component()).is_ok());
        let wider = config.overlaid_with(&Config::from_iter([("subscriptions", "shops.*")]));
        let why = subscriptions(&wider, &component()).unwrap_err().to_string();
        assert!(why.contains("`shops.*` is outside `allowed_subjects`"), "{why}");
        let allowed = Allowed::read(&wider).unwrap();
        for (subject, may) in [
            ("shop.new", true),
            ("mail", true),
            ("bank", false),
            ("_INBOX.x.1", true),
            ("trellis.v1.home.join", false),
            ("$JS.API.STREAM.DELETE.x", false),
        ] {
            assert_eq!(allowed.may_publish(subject), may, "{subject}");
        }
    }

    #[test]
    fn settings_come_from_the_link_or_from_the_node() {
        let files = |ca: &str, name: &str| {
            let [certificate, key] = ["pem", "key"].map(|kind| PathBuf::from(format!("/{name}.{kind}")));
            Tls::files(Some(Path::new(ca)), Some((&certificate, &key)))
        };
        let node = Options {
            default_url: Some("nats://hub".into()),
            auth: Auth::Password { user: Secret::new("node"), password: Secret::new("s3cret") },
            tls: files("/ca.pem", "n"),
            inbox_prefix: Some("nodes.a".into()),
        };
        assert!(!format!("{node:?}").contains("s3cret"), "{node:?}");
        let own = Settings::read(&link(Config::default()), &node).unwrap();
        assert_eq!((own.urls, own.auth), (vec!["nats://hub".into()], node.auth.clone()));
        assert_eq!(own.tls, node.tls);
        assert_eq!(own.inbox, Inbox::Below("nodes.a".into()));
        let config = Config::from_iter([("cluster_uris", "nats://a, nats://b"), ("client_seed", "SUX")]);
        let named = Settings::read(&link(config), &node).unwrap();
        assert_eq!(named.urls, ["nats://a", "nats://b"]);
        assert!(!format!("{named:?}").contains("SUX"), "{named:?}");
        let elsewhere = Settings::read(&link(Config::from_iter([("url", "nats://a")])), &node).unwrap();
        let nothing = (Auth::None, Tls::default(), Inbox::Below("_INBOX".into()));
        assert_eq!((elsewhere.auth, elsewhere.tls, elsewhere.inbox), nothing, "the node's is for its own server alone");
        let given = [("tls_ca_file", "/own.pem"), ("tls_cert", "/l.pem"), ("tls_key", "/l.key")];
        let brought = Settings::read(&link(Config::from_iter(given)), &node).unwrap().tls;
        assert_eq!(brought.identity, files("/ca.pem", "l").identity, "what a link brings comes first");
        assert_eq!(brought.ca, Some(Pem::file("tls_ca_file", Path::new("/own.pem"))));
        let other = Settings::read(&link(Config::from_iter([("client_seed", "SUX")])), &node).unwrap();
        assert_eq!(other.auth, Auth::Nkey(Secret::new("SUX")), "a link's own login comes first");
        let alone = Settings::read(&link(Config::default()), &Options::default()).unwrap();
        assert_eq!(alone.urls, [URL_DEFAULT]);
        for (key, value) in [("client_jwt", "eyJ"), ("custom_inbox_prefix", "trellis.v1.home")] {
            assert!(Settings::read(&link(Config::from_iter([(key, value)])), &node).is_err(), "{key}");
        }
    }

    #[test]
    fn each_way_to_log_in_comes_from_secrets_and_two_are_refused() {
        let auth = |config: &[(&str, &str)], secrets: &[&str]| {
            let secrets = secrets.iter().map(|name| (*name, Secret::new("hunter2"))).collect();
            auth(&Link { secrets, ..link(config.iter().copied().collect()) })
        };
        let (user, secret) = ([("user", "shop")], Secret::new("hunter2"));
        assert_eq!(auth(&[], &["token"]), Ok(Auth::Token(secret.clone())));
        assert!(matches!(auth(&[], &["creds"]), Ok(Auth::Credentials(_))));
        let login = |user: &str| Ok(Auth::Password { user: Secret::new(user), password: secret.clone() });
        assert_eq!(auth(&user, &["password"]), login("shop"));
        assert_eq!(auth(&user, &["user", "password"]), login("hunter2"));
        assert_eq!(auth(&[("client_seed", "SUX")], &["client_seed"]), Ok(Auth::Nkey(secret)), "a secret comes first");
        for (config, secrets) in
            [(&user[..], &[][..]), (&[], &["password"]), (&user, &["password", "token"]), (&[], &["token", "creds"])]
        {
            let refused = auth(config, secrets).unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
