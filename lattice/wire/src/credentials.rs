//! Credentials where everybody can read them, in config and in URLs: found, so that they can be refused, and hidden, so that
//! saying so does not show them.

use std::borrow::Cow;
use std::ops::Range;

/// Schemes whose servers take a user without a password for a token.
const TOKEN_SCHEMES: [&str; 4] = ["nats", "tls", "ws", "wss"];
/// How the last word of a key ends under which addresses stand.
const ADDRESSES: [&str; 9] = ["url", "uri", "dsn", "server", "host", "broker", "endpoint", "proxy", "address"];
/// How the name of a part of a query ends whose value is a credential.
const QUERIES: [&str; 5] = ["password", "passwd", "pwd", "token", "secret"];

/// How a config value comes to hold a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// An address in it holds a password or a token.
    InAddress,
    /// It is one, by its key, and belongs into a secret.
    Plain,
    /// It is one, which manifests written for wasmCloud have in config.
    AsWasmcloud,
}

/// Whether a provider would find a credential in a config value. A path to a private key is none.
pub fn held(key: &str, value: &str) -> Option<Held> {
    if !found(value, Place::of(key)).is_empty() {
        return Some(Held::InAddress);
    }
    match key {
        _ if value.trim().is_empty() => None,
        "password" | "token" | "creds" => Some(Held::Plain),
        "tls_key" | "tls_priv_key" if value.contains("-----BEGIN") => Some(Held::Plain),
        "client_seed" | "client_jwt" => Some(Held::AsWasmcloud),
        _ => None,
    }
}

/// Whether a text holds a URL with a password, or with the token of a NATS server.
pub fn has_password(text: &str) -> bool {
    !found(text, Place::Text).is_empty()
}

/// The text with a star for each character of such a password or token: columns stay where they are.
pub fn hidden(text: &str) -> Cow<'_, str> {
    starred(text, &found(text, Place::Text))
}

/// The same for a config value, of which more is known by its key.
pub fn hidden_in<'a>(key: &str, value: &'a str) -> Cow<'a, str> {
    starred(value, &found(value, Place::of(key)))
}

fn starred<'a>(text: &'a str, passwords: &[Range<usize>]) -> Cow<'a, str> {
    let (mut shown, mut from) = (String::new(), 0);
    for password in passwords {
        shown.push_str(&text[from..password.start]);
        shown.extend(text[password.clone()].chars().map(|_| '*'));
        from = password.end;
    }
    if from == 0 { Cow::Borrowed(text) } else { Cow::Owned(shown + &text[from..]) }
}

/// Where a text stands, which says what may be taken for an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Anywhere: only what has a scheme is one.
    Text,
    /// Under a key that holds addresses: they may lack a scheme.
    Address,
    /// Under a key of NATS servers: whoever stands before one without a password is a token.
    NatsServer,
}

impl Place {
    fn of(key: &str) -> Self {
        if matches!(key, "url" | "cluster_uri" | "cluster_uris") {
            return Self::NatsServer;
        }
        let key = key.to_ascii_lowercase();
        let word = key.strip_suffix('s').unwrap_or(&key);
        let is_address = ADDRESSES.iter().any(|address| word.ends_with(address) || key.ends_with(address));
        if is_address { Self::Address } else { Self::Text }
    }
}

/// Where passwords and tokens stand in a text, in their order and apart from each other.
fn found(text: &str, place: Place) -> Vec<Range<usize>> {
    let mut found: Vec<_> = in_urls(text).collect();
    if place != Place::Text {
        found.extend(in_bare_addresses(text, place));
        found.extend(in_queries(text));
    }
    found.sort_by_key(|password| password.start);
    let mut end = 0;
    found.retain(|password| {
        password.start >= end && {
            end = password.end;
            true
        }
    });
    found
}

/// Between `://` and `@`.
fn in_urls(text: &str) -> impl Iterator<Item = Range<usize>> {
    text.match_indices("://").filter_map(|(colon, mark)| {
        let takes_token = TOKEN_SCHEMES.contains(&scheme(&text[..colon]));
        in_user_info(text, colon + mark.len(), takes_token)
    })
}

/// Before the `@` of addresses without a scheme, such as `me:s3cret@host:4222`. The digest of an image is no host, and
/// `mailto:` no user.
fn in_bare_addresses(text: &str, place: Place) -> impl Iterator<Item = Range<usize>> {
    let is_between = |c: char| is_end(c) || c == ';';
    let mut end = 0;
    let parts = text.split_inclusive(is_between).map(move |part| {
        let begin = end;
        end += part.len();
        (begin, part.trim_end_matches(is_between))
    });
    parts.filter(|(_, part)| !part.contains("://") && !part.starts_with("mailto:")).filter_map(move |(begin, part)| {
        let host = &part[user_info_end(part)? + 1..];
        let is_digest = host.starts_with("sha256:") || host.starts_with("sha512:");
        if is_digest { None } else { in_user_info(text, begin, place == Place::NatsServer) }
    })
}

/// After `?password=` and what else is called so.
fn in_queries(text: &str) -> impl Iterator<Item = Range<usize>> {
    text.match_indices(['?', '&']).filter_map(|(mark, _)| {
        let begin = mark + 1;
        let part = text[begin..].split(|c: char| is_end(c) || matches!(c, '&' | ';' | '#')).next()?;
        let (name, value) = part.split_once('=')?;
        let name = name.to_ascii_lowercase();
        let is_one = !value.is_empty() && (name == "pass" || QUERIES.iter().any(|query| name.ends_with(query)));
        is_one.then(|| begin + part.len() - value.len()..begin + part.len())
    })
}

/// The password of an address that begins there, or what stands for one.
fn in_user_info(text: &str, begin: usize, takes_token: bool) -> Option<Range<usize>> {
    let at = begin + user_info_end(&text[begin..])?;
    let password = match text[begin..at].find(':') {
        Some(divider) => begin + divider + 1..at,
        None if takes_token => begin..at,
        None => return None,
    };
    (!password.is_empty()).then_some(password)
}

/// What no address has in it.
fn is_end(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '<' | '>')
}

/// The name before `://`.
fn scheme(before: &str) -> &str {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    &before[before.trim_end_matches(is_name).len()..]
}

/// Where the `@` stands that ends a URL's user and password. A `/` in a password is against the rules of URLs and is
/// seen all the same: what precedes it is then no host with a port.
fn user_info_end(rest: &str) -> Option<usize> {
    let end = rest.find(is_end).unwrap_or(rest.len());
    let rest = &rest[..end];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let is_host = authority.ends_with(']') || authority.rsplit_once(':').is_none_or(|(_, port)| is_port(port));
    if is_host { None } else { rest.find('@') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_found_and_hidden_wherever_it_stands() {
        for (text, shown) in [
            ("redis://:hunter2@db:6379/0", "redis://:*******@db:6379/0"),
            ("url: amqp://shop:a@b:c@mq/", "url: amqp://shop:*****@mq/"),
            ("nats://token@a, nats://u:p@b", "nats://*****@a, nats://u:*@b"),
            ("redis://:pa/ss@db", "redis://:*****@db"),
            ("tls://u:p@[::1]:4222", "tls://u:*@[::1]:4222"),
        ] {
            assert!(has_password(text), "{text}");
            assert_eq!(hidden(text), shown);
        }
    }

    #[test]
    fn what_is_no_password_is_left_alone() {
        for text in [
            "redis://db:6379/0",
            "amqp://shop@mq/",
            "amqp://shop:@mq/",
            "https://host/a@b",
            "http://[::1]:80/x@y",
            "https://host:8080/?mail=a@b",
            "no url, a@b: c",
            "a://",
        ] {
            assert!(!has_password(text), "{text}");
            assert_eq!(hidden(text), text);
        }
    }

    #[test]
    fn an_address_needs_no_scheme_where_a_key_says_that_it_is_one() {
        for (key, value, shown) in [
            ("url", "u:pw1234@h", "u:******@h"),
            ("url", "redis://h/?password=pw1234", "redis://h/?password=******"),
            ("url", "amqp://h/%2f?heartbeat=1&password=pw1234&x=y", "amqp://h/%2f?heartbeat=1&password=******&x=y"),
            ("cluster_uris", "nats://a, u:p@b:4222,t0ken@c", "nats://a, u:*@b:4222,*****@c"),
            ("DATABASE_URL", "shop:a/b@db:5432/shop", "shop:***@db:5432/shop"),
            ("hosts", "a:9092;me:s3cret@b:9092", "a:9092;me:******@b:9092"),
            ("address", "u:p@[::1]:80", "u:*@[::1]:80"),
            ("brokerUrls", "mqtt://u:p@h?Auth_Token=t", "mqtt://u:*@h?Auth_Token=*"),
        ] {
            assert_eq!(held(key, value), Some(Held::InAddress), "{key}: {value}");
            assert_eq!(hidden_in(key, value), shown);
        }
    }

    #[test]
    fn what_is_no_credential_is_no_credential_under_any_key() {
        for (key, value) in [
            ("url", "127.0.0.1:5844"),
            ("url", "localhost:5000/shop/api:1.0@sha256:0a1b"),
            ("url", "shop/api@sha256:0a1b"),
            ("url", "mailto:me@example.com"),
            ("contact_url", "me@example.com"),
            ("url", "https://h:80/?mail=a:b@c&pass="),
            ("image", "shop/api:1.0@sha256:0a1b"),
            ("from", "me@example.com"),
            ("header", "Authorization: Basic a:b@c"),
            ("queue", "u:p@h"),
            ("password", ""),
            ("token", " "),
            ("tls_key", "/run/key.pem"),
            ("tls_ca", "-----BEGIN CERTIFICATE-----"),
            ("user", "me"),
        ] {
            assert_eq!(held(key, value), None, "{key}: {value}");
            assert_eq!(hidden_in(key, value), value);
        }
    }

    #[test]
    fn a_key_may_say_that_its_value_is_one() {
        for key in ["password", "token", "creds"] {
            assert_eq!(held(key, "s3cret"), Some(Held::Plain), "{key}");
        }
        assert_eq!(held("tls_key", "-----BEGIN PRIVATE KEY-----"), Some(Held::Plain));
        assert_eq!(held("client_seed", "SUX"), Some(Held::AsWasmcloud));
    }
}
