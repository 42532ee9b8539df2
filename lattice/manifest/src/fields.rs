//! Reads the tree level by level: a mapping's keys against its level, a value against what is wanted there.

use std::collections::BTreeMap;

use crate::finding::{At, Report};
use crate::level::{Level, Unknown};
use crate::nearest::{did_you_mean, nearest};
use crate::tree::{Node, Pair, Value};

/// So many unknown keys of a mapping are compared with one that is missing.
const UNKNOWN_MAX: usize = 10;

/// A mapping whose keys have been checked.
pub(crate) struct Fields<'t> {
    level: &'static Level,
    at: At,
    pairs: &'t [Pair],
}

impl<'t> Fields<'t> {
    /// Takes a mapping; whatever else stands there is an error.
    pub(crate) fn read(node: &'t Node, level: &'static Level, report: &mut Report<'_>) -> Option<Self> {
        let pairs = mapping(node, level.what, report)?;
        for pair in pairs.iter().filter(|pair| !level.keys.contains(&pair.key.as_str())) {
            let known = format!("known here: {}", level.keys.join(", "));
            let candidates = if report.is_full() { &[] } else { level.keys };
            let help = did_you_mean(&pair.key, candidates.iter().copied(), &known);
            let message = format!("unknown key `{}` in {}", pair.key, level.what);
            match level.unknown {
                Unknown::Denied => report.error(pair.key_at, message, help),
                Unknown::Warned => report.warn(pair.key_at, message + "; it is passed over", help),
            }
        }
        Some(Self { level, at: node.at, pairs })
    }

    /// The value of `key`, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'t Node> {
        self.pair(key).map(|pair| &pair.node)
    }

    /// The value of `key` with its key.
    pub(crate) fn pair(&self, key: &str) -> Option<&'t Pair> {
        debug_assert!(self.level.keys.contains(&key), "{key} is a key of {}", self.level.what);
        self.pairs.iter().find(|pair| pair.key == key && !matches!(pair.node.value, Value::Null))
    }

    /// The value of `key`; it is an error that it is absent. `example` is the line to write.
    pub(crate) fn need(&self, key: &str, example: &str, report: &mut Report<'_>) -> Option<&'t Node> {
        let node = self.get(key);
        if node.is_none() && !self.has_mistyped(key) {
            let at = self.pairs.iter().find(|pair| pair.key == key).map_or(self.at, |pair| pair.key_at);
            report.error(at, format!("`{key}` is missing in {}", self.level.what), format!("write `{example}`"));
        }
        node
    }

    /// Whether an unknown key here was refused with `key` as what was meant: it need not be missed too.
    pub(crate) fn has_mistyped(&self, key: &str) -> bool {
        let unknown = |pair: &&Pair| !self.level.keys.contains(&pair.key.as_str());
        let meant = |pair: &Pair| nearest(&pair.key, self.level.keys.iter().copied()) == Some(key);
        self.level.unknown == Unknown::Denied && self.pairs.iter().filter(unknown).take(UNKNOWN_MAX).any(meant)
    }

    /// The text of `key`, where it is there.
    pub(crate) fn text(&self, key: &str, report: &mut Report<'_>) -> Option<(&'t str, At)> {
        let node = self.get(key)?;
        Some((text(node, &format!("`{key}`"), report)?, node.at))
    }

    /// The text of `key`, which must be there.
    pub(crate) fn need_text(&self, key: &str, example: &str, report: &mut Report<'_>) -> Option<(&'t str, At)> {
        let node = self.need(key, example, report)?;
        Some((text(node, &format!("`{key}`"), report)?, node.at))
    }

    /// The items of the list `key`; none where it is absent.
    pub(crate) fn list(&self, key: &str, report: &mut Report<'_>) -> &'t [Node] {
        self.get(key).map_or(&[], |node| list(node, &format!("`{key}`"), report))
    }
}

/// A scalar's text. Numbers and truth values are taken as written: wadm does so in some places, and `port: 8080` says
/// what it means in all.
pub(crate) fn text<'t>(node: &'t Node, what: &str, report: &mut Report<'_>) -> Option<&'t str> {
    let text = node.text();
    if text.is_none() {
        let help = "write one value, in quotes if it has `: ` or ` #` in it";
        report.error(node.at, format!("{what} must be text, not {}", node.kind()), help);
    }
    text
}

/// A number from `min`, without quotes.
pub(crate) fn count(node: &Node, what: &str, min: u32, report: &mut Report<'_>) -> Option<u32> {
    let number = match &node.value {
        Value::Number(text) => text.parse().ok().filter(|number| *number >= min),
        _ => None,
    };
    if number.is_none() {
        let help = format!("write a number from {min} to {}, without quotes", u32::MAX);
        report.error(node.at, format!("{what} must be a whole number{}", found(node)), help);
    }
    number
}

/// `true` or `false`.
pub(crate) fn flag(node: &Node, what: &str, report: &mut Report<'_>) -> Option<bool> {
    match &node.value {
        Value::Bool(text) => Some(text.eq_ignore_ascii_case("true")),
        _ => {
            report.error(node.at, format!("{what} must be true or false{}", found(node)), "write `true` or `false`");
            None
        }
    }
}

/// The items of a list; an error and none where it is something else.
pub(crate) fn list<'t>(node: &'t Node, what: &str, report: &mut Report<'_>) -> &'t [Node] {
    match &node.value {
        Value::List(items) => items,
        _ => {
            let message = format!("{what} must be a list, not {}", node.kind());
            report.error(node.at, message, "begin each item with `- `");
            &[]
        }
    }
}

/// The pairs of a mapping, each key once.
pub(crate) fn mapping<'t>(node: &'t Node, what: &str, report: &mut Report<'_>) -> Option<&'t [Pair]> {
    let Value::Map(pairs) = &node.value else {
        report.error(node.at, format!("{what} must be a mapping, not {}", node.kind()), "write `key: value` lines");
        return None;
    };
    let mut seen = BTreeMap::new();
    for pair in pairs {
        if let Some(line) = seen.insert(pair.key.as_str(), pair.key_at.line) {
            let message = format!("`{}` comes twice in {what}", pair.key);
            report.error(pair.key_at, message, format!("it is there in line {line} already: keep one"));
        }
    }
    Some(pairs)
}

/// A mapping from text to text.
pub(crate) fn texts(node: &Node, what: &str, report: &mut Report<'_>) -> BTreeMap<String, String> {
    let pairs = mapping(node, what, report).unwrap_or_default();
    let read = |pair: &Pair| Some((pair.key.clone(), text(&pair.node, &format!("`{}`", pair.key), report)?.to_owned()));
    pairs.iter().filter_map(read).collect()
}

/// ", not ..." for a value that does not fit.
fn found(node: &Node) -> String {
    match &node.value {
        Value::Text(text) | Value::Number(text) | Value::Bool(text) => format!(", not `{text}`"),
        Value::Null | Value::List(_) | Value::Map(_) => format!(", not {}", node.kind()),
    }
}
