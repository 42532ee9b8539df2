//! The rules of NATS subjects and headers, checked before anything is sent, and the match of a pattern.
//!
//! Source: docs.nats.io, "Subject-Based Messaging"; ADR-4 for headers.

use crate::BusError;

/// A subject to publish to: tokens without wildcards.
pub(crate) fn check_literal(subject: &str) -> Result<(), BusError> {
    check_pattern(subject)?;
    match subject.split('.').find(|token| matches!(*token, "*" | ">")) {
        Some(wildcard) => Err(refused(subject, &format!("`{wildcard}` is a wildcard, which only subscriptions take"))),
        None => Ok(()),
    }
}

/// A subject to subscribe to: tokens, of which each may be `*` and the last may be `>`.
pub(crate) fn check_pattern(subject: &str) -> Result<(), BusError> {
    if let Some(odd) = subject.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(refused(subject, &format!("{odd:?} is not allowed in it")));
    }
    let mut tokens = subject.split('.').peekable();
    while let Some(token) = tokens.next() {
        if token.is_empty() {
            return Err(refused(subject, "a token between dots is empty"));
        }
        if token == ">" && tokens.peek().is_some() {
            return Err(refused(subject, "`>` stands for all that follows, so it must be the last token"));
        }
    }
    Ok(())
}

/// A queue group: any text without spaces.
pub(crate) fn check_group(group: &str) -> Result<(), BusError> {
    if group.is_empty() || group.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(BusError::Subject(format!("`{group}` is no queue group: text without spaces is expected")));
    }
    Ok(())
}

/// Headers that can be written: printable ASCII names without a colon, values without line breaks.
pub(crate) fn check_headers(headers: &[(&str, &str)]) -> Result<(), BusError> {
    for (name, value) in headers {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return Err(BusError::Header(format!("`{name}` is no header name: printable ASCII without `:` is expected")));
        }
        if value.contains(['\r', '\n']) {
            return Err(BusError::Header(format!("the value of header `{name}` holds a line break")));
        }
    }
    Ok(())
}

/// Whether a pattern holds a wildcard at all.
pub(crate) fn is_wild(pattern: &str) -> bool {
    pattern.split('.').any(|token| matches!(token, "*" | ">"))
}

/// Whether a literal subject matches a pattern.
pub(crate) fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

fn refused(subject: &str, why: &str) -> BusError {
    BusError::Subject(format!("`{subject}` is no subject: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_whole_tokens() {
        for (pattern, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a", false),
            ("a", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "a", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a.b", true),
            ("a*", "ab", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} on {subject}");
        }
    }

    #[test]
    fn malformed_subjects_are_refused_with_the_rule() {
        assert!(check_literal("a.b").is_ok());
        assert!(check_pattern("a.*.>").is_ok());
        for literal in ["", "a..b", ".a", "a.", "a b", "a.*", ">", "a\r\nPUB x 0"] {
            assert!(matches!(check_literal(literal), Err(BusError::Subject(_))), "{literal:?}");
        }
        assert!(check_pattern("a.>.b").unwrap_err().to_string().contains("last token"));
        assert!(check_group("a b").is_err());
        assert!(check_headers(&[("a:b", "c")]).is_err());
        assert!(check_headers(&[("a", "c\r\nd: e")]).is_err());
    }
}
