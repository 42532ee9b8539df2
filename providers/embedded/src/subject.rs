//! Subjects and filters: tokens between dots, `*` for one token, `>` at the end for one or more. NATS's rules, so that
//! a manifest moves to NATS unchanged.

use trellis_provider::LinkError;
use trellis_wire::{CallError, Config};

/// Longest subject, in bytes.
const SUBJECT_BYTES_MAX: usize = 1_024;

/// The first token of the subjects on which answers are awaited.
const INBOX: &str = "_INBOX.";

/// A subject with wildcards, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter(Box<str>);

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Filter {
    /// Checks and takes a filter.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        check_tokens(text)?;
        if let Some((head, _)) = text.split_once('>')
            && head.len() + 1 != text.len()
        {
            return Err(format!("`{text}` has `>` before its end; it stands for all further tokens and comes last"));
        }
        let mixed = |token: &str| token.len() > 1 && token.contains(['*', '>']);
        if let Some(token) = text.split('.').find(|token| mixed(token)) {
            return Err(format!("`{token}` mixes a wildcard with text; a wildcard is a token of its own"));
        }
        if !trellis_wire::subject::is_free(text) {
            return Err(format!("`{text}` would reach subjects of the lattice or of the server, which are reserved"));
        }
        Ok(Self(text.into()))
    }

    /// Whether a subject without wildcards fits.
    pub(crate) fn matches(&self, subject: &str) -> bool {
        let (mut filter, mut subject) = (self.0.split('.'), subject.split('.'));
        loop {
            match (filter.next(), subject.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(expected), Some(token)) if expected == "*" || expected == token => {}
                _ => return false,
            }
        }
    }
}

/// The comma-separated filters under `key`; none where the key is absent.
///
/// # Errors
/// Names the key and the filter that is wrong.
pub(crate) fn filters(config: &Config, key: &str) -> Result<Vec<Filter>, LinkError> {
    let Some(list) = config.get(key) else { return Ok(Vec::new()) };
    list.split(',').map(|text| Filter::parse(text.trim()).map_err(|why| LinkError::config(key, why))).collect()
}

/// Checks a subject to publish on.
///
/// # Errors
/// [`CallError::Invalid`] for a malformed one, [`CallError::Denied`] for a reserved one.
pub(crate) fn check_publish(subject: &str) -> Result<(), CallError> {
    check_tokens(subject).map_err(CallError::Invalid)?;
    if subject.contains(['*', '>']) {
        return Err(CallError::Invalid(format!("`{subject}` has a wildcard; a message goes to one subject")));
    }
    if !trellis_wire::subject::is_free(subject) {
        return Err(CallError::Denied(format!("`{subject}` is reserved for the lattice and the server")));
    }
    Ok(())
}

/// Whether it is a subject on which an answer is awaited.
pub(crate) fn is_inbox(subject: &str) -> bool {
    subject.starts_with(INBOX)
}

/// A fresh inbox. It carries 74 random bits, so that only who was given it can answer.
pub(crate) fn fresh_inbox() -> String {
    format!("{INBOX}{}", uuid::Uuid::now_v7().simple())
}

fn check_tokens(subject: &str) -> Result<(), String> {
    if subject.len() > SUBJECT_BYTES_MAX {
        return Err(format!("a subject of {} bytes is too long; at most {SUBJECT_BYTES_MAX} are taken", subject.len()));
    }
    if subject.split('.').any(str::is_empty) {
        return Err(format!("`{subject}` has an empty token; a subject looks like `orders.placed`"));
    }
    if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("{subject:?} has white space, which no subject may hold"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_on_nats() {
        let check = |filter: &str, yes: &[&str], no: &[&str]| {
            let filter = Filter::parse(filter).unwrap();
            yes.iter().for_each(|subject| assert!(filter.matches(subject), "{filter:?} {subject}"));
            no.iter().for_each(|subject| assert!(!filter.matches(subject), "{filter:?} {subject}"));
        };
        check("orders", &["orders"], &["orders.a", "order", "Orders"]);
        check("orders.*", &["orders.a"], &["orders", "orders.a.b"]);
        check("orders.*.paid", &["orders.7.paid"], &["orders.7.8.paid", "orders.7"]);
        check("orders.>", &["orders.a", "orders.a.b.c"], &["orders", "order.a"]);
    }

    #[test]
    fn a_filter_that_cannot_work_is_refused_with_a_reason() {
        for (filter, reason) in [
            ("", "empty token"),
            ("a..b", "empty token"),
            ("a b", "white space"),
            ("a.>.b", "comes last"),
            ("a.b*", "mixes a wildcard"),
            (">", "reserved"),
            ("$JS.API", "reserved"),
            ("trellis.v1.home.join", "reserved"),
        ] {
            let why = Filter::parse(filter).unwrap_err();
            assert!(why.contains(reason), "{filter}: {why}");
        }
    }

    #[test]
    fn only_plain_free_subjects_can_be_published_on() {
        assert_eq!(check_publish("orders.placed"), Ok(()));
        assert!(matches!(check_publish("orders.*"), Err(CallError::Invalid(_))));
        assert!(matches!(check_publish("a..b"), Err(CallError::Invalid(_))));
        assert!(matches!(check_publish("$SYS.x"), Err(CallError::Denied(_))));
    }
}
