//! Passwords in URLs: found, so that they can be refused, and hidden, so that saying so does not show them.

use std::borrow::Cow;
use std::ops::Range;

/// Schemes whose servers take a user without a password for a token.
const TOKEN_SCHEMES: [&str; 4] = ["nats", "tls", "ws", "wss"];

/// Whether a text holds a URL with a password, or with the token of a NATS server.
pub fn has_password(text: &str) -> bool {
    next(text, 0).is_some()
}

/// The text with a star for each character of such a password or token: columns stay where they are.
pub fn hidden(text: &str) -> Cow<'_, str> {
    let (mut shown, mut from) = (String::new(), 0);
    while let Some(password) = next(text, from) {
        shown.push_str(&text[from..password.start]);
        shown.extend(text[password.clone()].chars().map(|_| '*'));
        from = password.end;
    }
    if from == 0 { Cow::Borrowed(text) } else { Cow::Owned(shown + &text[from..]) }
}

/// Where the next password from `from` on stands.
fn next(text: &str, from: usize) -> Option<Range<usize>> {
    let mut from = from;
    while let Some(colon) = text[from..].find("://").map(|at| from + at) {
        let begin = colon + "://".len();
        if let Some(at) = user_info_end(&text[begin..]) {
            let user_info = &text[begin..begin + at];
            let password = match user_info.find(':') {
                Some(divider) => begin + divider + 1..begin + at,
                None if TOKEN_SCHEMES.contains(&scheme(&text[..colon])) => begin..begin + at,
                None => begin..begin,
            };
            if !password.is_empty() {
                return Some(password);
            }
        }
        from = begin;
    }
    None
}

/// The name before `://`.
fn scheme(before: &str) -> &str {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    &before[before.trim_end_matches(is_name).len()..]
}

/// Where the `@` stands that ends a URL's user and password. A `/` in a password is against the rules of URLs and is
/// seen all the same: what precedes it is then no host with a port.
fn user_info_end(rest: &str) -> Option<usize> {
    let end = rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '<' | '>')).unwrap_or(rest.len());
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
}
