//! Where a node's admin API is: `http://host:port` or `https://host:port`, and the paths under it.

use std::fmt;
use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use http::uri::Authority;
use serde::Deserialize;

/// The port where none is named.
const PORT_DEFAULT: u16 = 7878;

/// A node's admin address. Written `http://host:port`, `https://host:port`, `host:port` or `host`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Endpoint {
    /// As it stands in a URL: an IPv6 address is in brackets.
    host: String,
    port: u16,
    /// Whether TLS is spoken there.
    pub(crate) secure: bool,
}

impl Endpoint {
    /// What the `Host` header says.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The host as a resolver takes it, and the port.
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (self.host.trim_start_matches('[').trim_end_matches(']'), self.port)
    }

    /// The address to listen on.
    pub(crate) fn resolve(&self) -> Result<SocketAddr, String> {
        let found =
            self.host_and_port().to_socket_addrs().map_err(|error| format!("cannot resolve {self}: {error}"))?;
        found.into_iter().next().ok_or_else(|| format!("{self} resolves to no address"))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("`{text}` is no address of a node: write host:port, http://host:port or https://host:port");
        let secure = text.strip_prefix("https://");
        let bare = secure.or(text.strip_prefix("http://")).unwrap_or(text).trim_end_matches('/');
        let authority: Authority = bare.parse().map_err(|_| refused())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(refused());
        }
        // `host:` and `host:99999` parse as authorities whose port is none.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => PORT_DEFAULT,
            _ => authority.port_u16().ok_or_else(refused)?,
        };
        Ok(Self { host: authority.host().into(), port, secure: secure.is_some() })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http{}://{}:{}", if self.secure { "s" } else { "" }, self.host, self.port)
    }
}

/// A name as one path segment or query value: everything but unreserved characters (RFC 3986, 2.3) is percent-encoded.
pub(crate) fn encoded(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte.into());
        } else {
            write!(text, "%{byte:02X}").expect("writing to a String cannot fail");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_or_host_and_port() {
        let shown = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(shown("127.0.0.1:9000").as_deref(), Ok("http://127.0.0.1:9000"));
        assert_eq!(shown("http://box.local:9000/").as_deref(), Ok("http://box.local:9000"));
        assert_eq!(shown("box").as_deref(), Ok("http://box:7878"));
        assert_eq!(shown("[::1]:80").as_deref(), Ok("http://[::1]:80"));
        assert_eq!(shown("https://box").as_deref(), Ok("https://box:7878"));
        for wrong in ["", "https://", "box:", "box:99999", "http://box/v1", "user@box:1", "a b"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_host_is_resolved_without_brackets() {
        let endpoint: Endpoint = "[::1]:80".parse().unwrap();
        assert_eq!(endpoint.host_and_port(), ("::1", 80));
        assert_eq!(endpoint.resolve(), Ok("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn names_are_encoded_as_one_segment() {
        assert_eq!(encoded("orders-2_b"), "orders-2_b");
        assert_eq!(encoded("a b?é"), "a%20b%3F%C3%A9");
    }
}
