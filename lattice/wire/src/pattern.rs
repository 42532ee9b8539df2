//! The rules of subjects: tokens between dots, and patterns in which `*` stands for one token and a last `>` for all
//! that follow. Source: docs.nats.io, "Subject-Based Messaging".

/// Why a text is no subject or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no subject: {rule}")]
pub struct Malformed {
    /// The text as it was given.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// Checks a subject to publish to: tokens without wildcards.
///
/// # Errors
/// The rule that it breaks.
pub fn check_literal(subject: &str) -> Result<(), Malformed> {
    check(subject)?;
    if subject.split('.').any(|token| matches!(token, "*" | ">")) {
        return Err(malformed(subject, "`*` and `>` are wildcards, which only subscriptions take"));
    }
    Ok(())
}

/// Checks a subject to subscribe to: tokens, of which each may be `*` and the last may be `>`.
///
/// # Errors
/// The rule that it breaks.
pub fn check(pattern: &str) -> Result<(), Malformed> {
    if pattern.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(malformed(pattern, "spaces and control characters are not allowed in it"));
    }
    if pattern.split('.').any(str::is_empty) {
        return Err(malformed(pattern, "it has an empty token; tokens stand between dots"));
    }
    if pattern.split('.').rev().skip(1).any(|token| token == ">") {
        return Err(malformed(pattern, "`>` stands for all that follows, so it must be the last token"));
    }
    Ok(())
}

/// Whether `pattern` holds a wildcard.
pub fn is_wild(pattern: &str) -> bool {
    pattern.split('.').any(|token| matches!(token, "*" | ">"))
}

/// Whether `pattern` matches all that `other` matches; a literal matches itself alone.
pub fn covers(pattern: &str, other: &str) -> bool {
    let (mut pattern, mut other) = (pattern.split('.'), other.split('.'));
    loop {
        match (pattern.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

fn malformed(text: &str, rule: &'static str) -> Malformed {
    Malformed { text: text.into(), rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_whole_tokens() {
        for (pattern, other, expected) in [
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
            ("a.*", "a.*", true),
            ("a.b", "a.*", false),
            ("a.*", "a.>", false),
            ("a.>", "a.*.c", true),
            ("a.>", "a.>", true),
        ] {
            assert_eq!(covers(pattern, other), expected, "{pattern} over {other}");
        }
    }

    #[test]
    fn malformed_subjects_are_refused_with_the_rule() {
        assert!(check_literal("a.b").is_ok());
        assert!(check("a.*.>").is_ok() && is_wild("a.*.>") && !is_wild("a*.b"));
        for literal in ["", "a..b", ".a", "a.", "a b", "a.*", ">", "a\r\nPUB x 0"] {
            assert!(check_literal(literal).is_err(), "{literal:?}");
        }
        assert!(check("a.>.b").unwrap_err().to_string().contains("last token"));
    }
}
