//! What a link says in its configuration, parsed once. The keys are those of wasmCloud's http-server and http-client;
//! ours beside them are `streaming`, `max_body_bytes` and `max_waiting`. Every error names the key and what to write.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use trellis_provider::{LinkError, WAITING_MAX};
use trellis_wire::{Config, Secret, Secrets};

use crate::allow::AllowList;
use crate::cors::Cors;

/// Where a link without an address listens, as in wasmCloud.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8000);
/// How long a request may wait for its permit and then for the head of its answer, unless `timeout_ms` says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest `timeout_ms`: a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);
/// The largest request body, unless `max_body_bytes` says otherwise: 100 MiB.
const DEFAULT_BODY_BYTES_MAX: u64 = 100 << 20;
/// How many requests of one link may wait for a permit, unless `max_waiting` says otherwise. Each holds up to 64 KiB.
const DEFAULT_WAITING_MAX: usize = 1_000;

/// Which requests at an address are a link's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    /// All of them.
    Address,
    /// Those under a path: `/shop` and whatever is below it, or a pattern such as `/shop/{id}`.
    Path(String),
    /// Those whose `header` (the host, usually) is `host`.
    Host {
        /// The header that is looked at.
        header: HeaderName,
        /// What it must say, in lower case.
        host: String,
    },
}

/// What makes a listener speak TLS, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsPem {
    /// The certificate chain.
    pub(crate) certificate: Pem,
    /// Its private key.
    pub(crate) key: Pem,
}

/// Where a PEM text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pem {
    /// In a file of the node.
    File(PathBuf),
    /// In a secret of that name.
    Secret(&'static str, Secret),
}

/// A link that wakes its component by HTTP.
#[derive(Debug, Clone)]
pub(crate) struct ServerConfig {
    pub(crate) address: SocketAddr,
    pub(crate) at: At,
    /// From the arrival of the request to the head of the answer.
    pub(crate) timeout: Duration,
    pub(crate) read_only: bool,
    pub(crate) cache_control: Option<HeaderValue>,
    pub(crate) cors: Option<Cors>,
    pub(crate) tls: Option<TlsPem>,
    /// Bodies may take as long as they like, and both may flow at once.
    pub(crate) streaming: bool,
    pub(crate) body_bytes_max: u64,
    pub(crate) waiting_max: usize,
}

impl ServerConfig {
    /// Parses `config`; the key and certificate of TLS may come as `secrets`. `listen_host` replaces the host part of the address.
    pub(crate) fn parse(config: &Config, secrets: &Secrets, listen_host: Option<IpAddr>) -> Result<Self, LinkError> {
        for key in ["config_json", "config_b64", "config_file"] {
            if config.get(key).is_some() {
                return Err(LinkError::config(
                    key,
                    "is not read; write its fields as keys of their own, `address: ...`",
                ));
            }
        }
        let mut address = address(config)?;
        if let Some(host) = listen_host {
            address.set_ip(host);
        }
        Ok(Self {
            address,
            at: at(config)?,
            timeout: timeout(config)?,
            read_only: flag(config, "readonly_mode")?,
            cache_control: cache_control(config)?,
            cors: Cors::parse(config)?,
            tls: tls(config, secrets)?,
            streaming: flag(config, "streaming")?,
            body_bytes_max: number(config, "max_body_bytes", "104857600")?.unwrap_or(DEFAULT_BODY_BYTES_MAX),
            waiting_max: waiting_max(config)?,
        })
    }
}

/// A link that lets its component call out by HTTP.
#[derive(Debug, Clone)]
pub(crate) struct ClientConfig {
    pub(crate) allowed: AllowList,
}

impl ClientConfig {
    /// Parses `config`. Without `allowed_hosts` nothing is allowed, and each call says so.
    pub(crate) fn parse(config: &Config) -> Result<Self, LinkError> {
        let text = config.get("allowed_hosts").unwrap_or_default();
        let allowed = AllowList::parse(text).map_err(|problem| LinkError::config("allowed_hosts", problem))?;
        Ok(Self { allowed })
    }
}

fn address(config: &Config) -> Result<SocketAddr, LinkError> {
    for key in ["address", "default_address"] {
        if let Some(text) = config.get(key) {
            return parse_address(text).ok_or_else(|| {
                LinkError::config(
                    key,
                    format!("`{text}` is no address; write an IP and a port, such as `0.0.0.0:8000`"),
                )
            });
        }
    }
    Ok(number(config, "port", "8000")?.map_or(DEFAULT_ADDRESS, |port| (Ipv4Addr::LOCALHOST, port).into()))
}

/// `0.0.0.0:8000`, `[::1]:8000`, `localhost:8000` or `:8000` (every interface). Other names are not looked up: a
/// listener must not depend on DNS.
fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.rsplit_once(':') {
        Some(("localhost", port)) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        Some(("", port)) => Some((Ipv4Addr::UNSPECIFIED, port.parse().ok()?).into()),
        _ => text.parse().ok(),
    }
}

/// A link that names a path or a host but no mode means the mode that uses it.
fn at(config: &Config) -> Result<At, LinkError> {
    let implied = match (config.get("path"), config.get("host")) {
        (Some(_), None) => "path",
        (None, Some(_)) => "host",
        (None, None) => "address",
        (Some(_), Some(_)) => {
            let problem = "is needed where both `path` and `host` are given; write `path` or `host`";
            return config
                .get("routing_mode")
                .map_or(Err(LinkError::config("routing_mode", problem)), |mode| at_in_mode(config, mode));
        }
    };
    at_in_mode(config, config.get("routing_mode").unwrap_or(implied))
}

fn at_in_mode(config: &Config, mode: &str) -> Result<At, LinkError> {
    match mode {
        "address" => Ok(At::Address),
        "path" => match config.get("path") {
            Some(path) if path.starts_with('/') => path_or_pattern(path),
            Some(path) => Err(LinkError::config("path", format!("`{path}` does not begin with `/`; write `/{path}`"))),
            None => Err(LinkError::config("path", "is missing: `routing_mode` is `path`; write `path: /shop`")),
        },
        "host" => {
            let header = parsed(config, "header", "x-tenant")?.unwrap_or(header::HOST);
            let Some(host) = config.get("host") else {
                let problem = "is missing: `routing_mode` is `host`; write `host: shop.example.com`";
                return Err(LinkError::config("host", problem));
            };
            Ok(At::Host { header, host: host.to_ascii_lowercase() })
        }
        other => {
            let problem = format!("`{other}` is no mode; write `address`, `path` or `host`");
            Err(LinkError::config("routing_mode", problem))
        }
    }
}

/// A pattern is proved here, so that in the table only another pattern can be in its way.
fn path_or_pattern(path: &str) -> Result<At, LinkError> {
    if path.contains(['{', '}']) && matchit::Router::new().insert(path, ()).is_err() {
        return Err(LinkError::config("path", format!("`{path}` is no pattern; write one such as `/shop/{{id}}`")));
    }
    Ok(At::Path(path.into()))
}

fn timeout(config: &Config) -> Result<Duration, LinkError> {
    let timeout = number(config, "timeout_ms", "30000")?.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        let problem = format!("{} ms is not from 1 to {}; write `30000`", timeout.as_millis(), TIMEOUT_MAX.as_millis());
        return Err(LinkError::config("timeout_ms", problem));
    }
    Ok(timeout)
}

fn waiting_max(config: &Config) -> Result<usize, LinkError> {
    let most = number(config, "max_waiting", "1000")?.unwrap_or(DEFAULT_WAITING_MAX);
    if most > WAITING_MAX {
        let problem = format!("{most} is more than the {WAITING_MAX} that may wait for one component; write `1000`");
        return Err(LinkError::config("max_waiting", problem));
    }
    Ok(most)
}

fn cache_control(config: &Config) -> Result<Option<HeaderValue>, LinkError> {
    parsed(config, "cache_control", "max-age=60")
}

fn tls(config: &Config, secrets: &Secrets) -> Result<Option<TlsPem>, LinkError> {
    let pem = |file: &str, name: &'static str| match (config.get(file), secrets.get(name)) {
        (Some(_), Some(_)) => {
            Err(LinkError::config(file, format!("stands beside the secret `{name}`; give one of them")))
        }
        (file, secret) => {
            let secret = secret.map(|secret| Pem::Secret(name, secret.clone()));
            Ok(secret.or_else(|| file.map(|path| Pem::File(path.into()))))
        }
    };
    match (pem("tls_cert_file", "tls_cert")?, pem("tls_priv_key_file", "tls_priv_key")?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(TlsPem { certificate, key })),
        (Some(_), None) => {
            let problem = "is missing beside the certificate; write the key's path, or give the secret `tls_priv_key`";
            Err(LinkError::config("tls_priv_key_file", problem))
        }
        (None, Some(_)) => {
            let problem = "is missing beside the key; write the chain's path, or give the secret `tls_cert`";
            Err(LinkError::config("tls_cert_file", problem))
        }
    }
}

fn flag(config: &Config, key: &str) -> Result<bool, LinkError> {
    match config.get(key) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(LinkError::config(key, format!("`{other}` is neither; write `true` or `false`"))),
    }
}

fn number<N: FromStr>(config: &Config, key: &str, example: &str) -> Result<Option<N>, LinkError> {
    let Some(text) = config.get(key) else { return Ok(None) };
    let wrong = |_| LinkError::config(key, format!("`{text}` is no number that fits; write one such as `{example}`"));
    text.parse().map(Some).map_err(wrong)
}

fn parsed<T: FromStr>(config: &Config, key: &str, example: &str) -> Result<Option<T>, LinkError> {
    let Some(text) = config.get(key) else { return Ok(None) };
    let wrong = |_| LinkError::config(key, format!("`{text}` cannot be a header; write one such as `{example}`"));
    text.parse().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<const N: usize>(pairs: [(&str, &str); N]) -> Result<ServerConfig, String> {
        ServerConfig::parse(&Config::from_iter(pairs), &Secrets::default(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_wasmcloud() {
        let config = parse([]).unwrap();
        assert_eq!(config.address, "0.0.0.0:8000".parse().unwrap());
        assert_eq!(config.at, At::Address);
        assert_eq!(config.timeout, Duration::from_secs(30));
        assert!(config.cors.is_none() && config.tls.is_none() && !config.read_only && !config.streaming);
    }

    #[test]
    fn the_links_address_wins_over_the_providers_and_listen_host_over_both() {
        let config = Config::from_iter([("default_address", "0.0.0.0:8080"), ("address", "10.0.0.1:9000")]);
        assert_eq!(
            ServerConfig::parse(&config, &Secrets::default(), None).unwrap().address.to_string(),
            "10.0.0.1:9000"
        );
        let host = Some("127.0.0.2".parse().unwrap());
        assert_eq!(
            ServerConfig::parse(&config, &Secrets::default(), host).unwrap().address.to_string(),
            "127.0.0.2:9000"
        );
        assert_eq!(parse([("address", "localhost:1")]).unwrap().address.to_string(), "127.0.0.1:1");
        assert_eq!(parse([("address", ":80")]).unwrap().address.to_string(), "0.0.0.0:80");
        assert_eq!(parse([("port", "81")]).unwrap().address.to_string(), "127.0.0.1:81");
    }

    #[test]
    fn a_path_or_a_host_alone_says_the_mode() {
        assert_eq!(parse([("path", "/shop")]).unwrap().at, At::Path("/shop".into()));
        let host = At::Host { header: header::HOST, host: "shop.example.com".into() };
        assert_eq!(parse([("host", "Shop.Example.com")]).unwrap().at, host);
        assert_eq!(parse([("routing_mode", "address"), ("path", "/shop")]).unwrap().at, At::Address);
    }

    #[test]
    fn every_error_names_the_key_and_what_to_write() {
        let cases = [
            (parse([("address", "web:8000")]), "config `address`: `web:8000` is no address", "`0.0.0.0:8000`"),
            (parse([("default_address", "x")]), "config `default_address`", "`0.0.0.0:8000`"),
            (parse([("routing_mode", "port")]), "config `routing_mode`: `port`", "`address`, `path` or `host`"),
            (parse([("routing_mode", "path")]), "config `path`: is missing", "`path: /shop`"),
            (parse([("path", "shop")]), "config `path`: `shop`", "`/shop`"),
            (parse([("path", "/shop/{id")]), "config `path`: `/shop/{id` is no pattern", "`/shop/{id}`"),
            (parse([("routing_mode", "host")]), "config `host`: is missing", "`host: shop.example.com`"),
            (parse([("host", "a"), ("path", "/a")]), "config `routing_mode`", "`path` or `host`"),
            (parse([("timeout_ms", "30s")]), "config `timeout_ms`: `30s`", "`30000`"),
            (parse([("timeout_ms", "0")]), "config `timeout_ms`: 0 ms", "`30000`"),
            (parse([("timeout_ms", "18446744073709551615")]), "config `timeout_ms`", "`30000`"),
            (parse([("max_waiting", "5000")]), "config `max_waiting`: 5000 is more than the 1024", "`1000`"),
            (parse([("readonly_mode", "yes")]), "config `readonly_mode`: `yes`", "`true` or `false`"),
            (parse([("tls_cert_file", "/a")]), "config `tls_priv_key_file`: is missing", "path"),
            (parse([("tls_priv_key_file", "/a")]), "config `tls_cert_file`: is missing", "path"),
            (parse([("cache_control", "a\nb")]), "config `cache_control`", "`max-age=60`"),
            (parse([("config_json", "{}")]), "config `config_json`", "`address: ...`"),
        ];
        for (result, beginning, example) in cases {
            let error = result.unwrap_err();
            assert!(error.starts_with(beginning), "{error}");
            assert!(error.contains(example), "{error}");
        }
    }
}
