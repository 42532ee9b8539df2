//! Which hosts a component may call: the `allowed_hosts` of its link. Nothing is allowed that is not written there.
//!
//! Neither a wildcard nor a name alone reaches into the private network. Otherwise `allowed_hosts: "*"` would hand a
//! guest the node's own admin API and the cloud's metadata service, and so would a DNS name that its owner points at
//! 127.0.0.1. Whoever writes `db.internal:5432`, with the port, means what is there, private or not; `localhost` means
//! this machine; and link-local addresses, where metadata services live, are reached only by writing the address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far an allowed host may lead; the later ones further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// By a wildcard or a name: public addresses only.
    Public,
    /// By a name with its port, or as `localhost`: private addresses too, but none that is link-local.
    Private,
    /// By the address itself.
    Literal,
}

impl Reach {
    /// Whether a host that is allowed so may lead to this address.
    pub(crate) fn leads_to(self, address: IpAddr) -> bool {
        match self {
            Self::Public => is_public(address),
            Self::Private => !is_link_local(address),
            Self::Literal => true,
        }
    }
}

/// The parsed `allowed_hosts`: `host`, `host:port`, `*.example.com`, `*`, each optionally after `http://` or
/// `https://`. Without a port any port is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllowList(Vec<Pattern>);

impl AllowList {
    /// Parses a comma list. An empty one allows nothing.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(Pattern::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether nothing at all is allowed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether, and how far, `host` at `port` is allowed. `host` is as a URI has it, in brackets if it is IPv6.
    pub(crate) fn reach(&self, scheme: &str, host: &str, port: u16) -> Option<Reach> {
        let host = normal(host);
        let of = |pattern: &Pattern| pattern.reach(scheme, &host, port);
        // A host may fit a wildcard and be named as well: what reaches furthest counts.
        self.0.iter().filter_map(of).max()
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, pattern) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { ", " };
            write!(f, "{comma}{}", pattern.text)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    scheme: Option<&'static str>,
    host: Host,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    /// Every name that ends in this; the dot is part of it.
    Under(String),
    /// A name or an address.
    Is(String),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = |problem: &str| {
            format!(
                "`{text}` {problem}; write a comma list such as `api.example.com, *.example.org:443, localhost:8080`"
            )
        };
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some(("https", rest)) => (Some("https"), rest),
            Some(_) => return Err(wrong("has a scheme that is neither http nor https")),
            None => (None, text),
        };
        let (host, port) =
            split_port(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(|| wrong("has no such port"))?;
        if host.is_empty() || host.contains(['/', '@', ' ', '?', '#']) {
            return Err(wrong("is no host"));
        }
        let host = match host.strip_prefix('*') {
            Some("") => Host::Any,
            Some(suffix) if suffix.starts_with('.') && !suffix.contains('*') => Host::Under(normal(suffix)),
            None if !host.contains('*') => Host::Is(normal(host)),
            _ => return Err(wrong("has a `*` that is not all of it or its first label")),
        };
        Ok(Self { text: text.into(), scheme, host, port })
    }

    fn reach(&self, scheme: &str, host: &str, port: u16) -> Option<Reach> {
        if self.scheme.is_some_and(|only| only != scheme) || self.port.is_some_and(|only| only != port) {
            return None;
        }
        match &self.host {
            Host::Any => Some(Reach::Public),
            Host::Under(suffix) => host.ends_with(suffix.as_str()).then_some(Reach::Public),
            Host::Is(name) if name != host => None,
            Host::Is(name) if literal(name).is_some() => Some(Reach::Literal),
            Host::Is(name) if name == "localhost" || self.port.is_some() => Some(Reach::Private),
            Host::Is(_) => Some(Reach::Public),
        }
    }
}

/// Splits `host:port`, minding the colons of an IPv6 address. `None` if the port is none.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if text.parse::<Ipv6Addr>().is_ok() || text.ends_with(']') {
        return Some((text, None));
    }
    match text.rsplit_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

/// One spelling of each host: lower case, no trailing dot, no brackets.
fn normal(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The address that a URI's host is, if it is one.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    normal(host).parse().ok()
}

/// Whether an address is only of the machine's own wire: cloud metadata services are there.
fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => inner.is_link_local(),
            None => address.segments()[0] & 0xffc0 == 0xfe80,
        },
    }
}

/// Whether an address is out on the internet, where a wildcard may lead.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded_v4(address) {
            Some(inner) => is_public_v4(inner),
            // 2000::/3 is all that is given out; it leaves out loopback, link-local, unique local and multicast.
            None => address.segments()[0] & 0xe000 == 0x2000,
        },
    }
}

/// The special-purpose blocks of RFC 6890, less those that lead to the internet.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || a == 0                                   // this network
        || (a == 100 && b & 0xc0 == 64)             // shared address space, RFC 6598
        || (a == 192 && b == 0 && c == 0)           // protocol assignments
        || (a == 198 && b & 0xfe == 18)             // benchmarking, RFC 2544
        || a >= 224; // multicast, reserved and broadcast
    !special
}

/// The IPv4 address inside a NAT64 (64:ff9b::/96) or 6to4 (2002::/16) address: traffic to it ends there.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(list: &str, scheme: &str, host: &str, port: u16) -> Option<Reach> {
        AllowList::parse(list).unwrap().reach(scheme, host, port)
    }

    #[test]
    fn a_host_is_allowed_by_name_or_by_wildcard() {
        use Reach::{Literal, Private, Public};
        let cases = [
            ("", "api.example.com", 443, None),
            ("api.example.com", "api.example.com", 443, Some(Public)),
            ("api.example.com:443", "api.example.com", 443, Some(Private)),
            ("API.example.com.", "api.EXAMPLE.com", 1, Some(Public)),
            ("localhost", "localhost", 1, Some(Private)),
            ("api.example.com:443", "api.example.com", 80, None),
            ("*.example.com", "a.b.example.com", 443, Some(Public)),
            ("*.example.com", "example.com", 443, None),
            ("*.example.com", "evilexample.com", 443, None),
            ("*", "anything", 1, Some(Public)),
            ("*, db:5432", "db", 5432, Some(Private)),
            ("*, db:5432", "db", 22, Some(Public)),
            ("http://api.example.com", "api.example.com", 443, None),
            ("https://api.example.com/", "api.example.com", 443, Some(Public)),
            ("127.0.0.1:80", "127.0.0.1", 80, Some(Literal)),
            ("169.254.169.254", "169.254.169.254", 80, Some(Literal)),
            ("[::1]:80", "[::1]", 80, Some(Literal)),
            ("::1", "[::1]", 80, Some(Literal)),
        ];
        for (list, host, port, expected) in cases {
            assert_eq!(reach(list, "https", host, port), expected, "{list} for {host}:{port}");
        }
    }

    #[test]
    fn a_wrong_pattern_is_named_with_an_example() {
        for list in ["ftp://x", "a*b", "x:y", "*x", "a/b", "u@h", "*.*.com"] {
            let error = AllowList::parse(list).unwrap_err();
            assert!(error.contains(&format!("`{list}`")) && error.contains("`api.example.com, "), "{error}");
        }
    }

    #[test]
    fn a_name_with_its_port_leads_to_private_addresses_but_to_no_metadata_service() {
        for (address, private) in [
            ("10.0.0.1", true),
            ("127.0.0.1", true),
            ("fd12::1", true),
            ("1.1.1.1", true),
            ("169.254.169.254", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("::ffff:169.254.169.254", false),
            ("64:ff9b::a9fe:a9fe", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(Reach::Private.leads_to(address), private, "{address}");
            assert!(Reach::Literal.leads_to(address), "{address}");
        }
    }

    #[test]
    fn private_addresses_are_not_public_in_any_disguise() {
        let private = [
            "127.0.0.1",
            "127.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ];
        for address in private {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
