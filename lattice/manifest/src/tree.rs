//! YAML as a tree in which every node knows its place.
//!
//! serde stops at the first thing that does not fit a type. A manifest is read into this tree instead, which fits
//! whatever is YAML, and is checked afterwards, so that all findings are shown at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, NonFiniteFloatPolicy, Options, Spanned};

use crate::finding::{At, Report};

/// A larger manifest is refused.
const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Lists and mappings within one another; a manifest needs 10.
const DEPTH_MAX: usize = 32;
/// Nodes of the tree, those that aliases repeat included.
const NODES_MAX: usize = 50_000;

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: At,
    /// Where its text stands: elsewhere, if an alias repeats it here.
    pub(crate) text_at: At,
}

/// What YAML can say.
#[derive(Debug)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// `true` or `false`, as written.
    Bool(String),
    /// A number, as written: `0.10` stays `0.10`.
    Number(String),
    /// Any other scalar.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Pair>),
}

/// One key of a mapping. A key may come twice here.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) key_at: At,
    pub(crate) node: Node,
}

impl Node {
    /// The pairs of a mapping; none for anything else.
    pub(crate) fn pairs(&self) -> &[Pair] {
        match &self.value {
            Value::Map(pairs) => pairs,
            _ => &[],
        }
    }

    /// The items of a list; none for anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar, as written.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Number(text) | Value::Bool(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What kind of value it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads the one document of `yaml`; `None` with an error where it is none.
pub(crate) fn read(yaml: &str, report: &mut Report<'_>) -> Option<Node> {
    if yaml.len() > MANIFEST_BYTES_MAX {
        let message = format!("the manifest has {} bytes, more than {MANIFEST_BYTES_MAX}", yaml.len());
        report.error(At::WHOLE, message, "split the app into several");
        return None;
    }
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(yaml, options()) {
        Ok(raw) => Some(node(raw, yaml)),
        Err(error) => {
            refuse(error.without_snippet(), report);
            None
        }
    }
}

/// As serde_yaml reads, which wadm uses: `yes` is text. Small budgets, so that no alias bomb goes off.
fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_recorded_anchor_events: 2 * NODES_MAX,
            max_recorded_anchor_bytes: 4 * MANIFEST_BYTES_MAX,
            max_total_scalar_bytes: 4 * MANIFEST_BYTES_MAX,
            max_anchors: 1_000,
            max_aliases: 1_000,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 2 * NODES_MAX },
    }
}

fn refuse(error: &Error, report: &mut Report<'_>) {
    let at = error.location().map_or(At::WHOLE, place);
    report.hide_unread(at.line);
    let error = match error {
        Error::AliasError { error, .. } => error.without_snippet(),
        error => error,
    };
    match error {
        Error::MultipleDocuments { .. } => {
            report.error(at, "a second document begins here: a manifest is one", "put each app into a file of its own");
        }
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => {
            let message =
                format!("the manifest is too large or too deep once its aliases are replaced: {}", text(error));
            report.error(at, message, format!("a manifest has at most {NODES_MAX} values, {DEPTH_MAX} deep"));
        }
        _ => {
            let help = "look at the indentation, the quotes and the brackets of this line and the one before";
            report.error(at, format!("this is not YAML: {}", text(error)), help);
        }
    }
}

/// The parser's message without its place, which the finding shows.
fn text(error: &Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().into()
}

fn place(location: Location) -> At {
    let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
    At { line: narrow(location.line()), column: narrow(location.column()), length: narrow(location.span().len()) }
}

/// A scalar as the parser infers it; the text of numbers is taken from the source, not from their value.
#[derive(Debug)]
enum Raw {
    Null,
    Bool,
    Number,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, yaml: &str) -> Node {
    let written = || {
        let span = raw.defined.span();
        let from = usize::try_from(span.byte_offset()?).ok()?;
        let length = usize::try_from(span.byte_len()?).ok()?;
        Some(yaml.get(from..from.checked_add(length)?)?.trim().to_owned())
    };
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool => Value::Bool(written().unwrap_or_default()),
        Raw::Number => Value::Number(written().unwrap_or_default()),
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, yaml)).collect()),
        Raw::Map(pairs) => Value::Map(pairs.into_iter().map(|(key, value)| pair(key, value, yaml)).collect()),
    };
    Node { value, at: place(raw.referenced), text_at: place(raw.defined) }
}

fn pair(key: Spanned<String>, value: Spanned<Raw>, yaml: &str) -> Pair {
    Pair { key: key.value, key_at: place(key.referenced), node: node(value, yaml) }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Bool)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Number)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(pair) = pairs.next_entry()? {
            map.push(pair);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(yaml: &str) -> String {
        let mut report = Report::new(yaml, "app.yaml");
        assert!(read(yaml, &mut report).is_none());
        let findings = report.finish();
        assert_eq!(findings.len(), 1, "one clear error");
        findings[0].message.clone()
    }

    fn map(yaml: &str) -> Vec<Pair> {
        let mut report = Report::new(yaml, "app.yaml");
        match read(yaml, &mut report).map(|node| node.value) {
            Some(Value::Map(pairs)) => pairs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_keep_their_text_and_aliases_the_place_where_they_are_used() {
        let pairs = map("a: 1.10\nb: &x 007\nc: *x\nd: yes\n");
        assert!(matches!(&pairs[0].node.value, Value::Number(text) if text == "1.10"));
        assert!(matches!(&pairs[2].node.value, Value::Number(text) if text == "007"));
        assert_eq!((pairs[2].node.at.line, pairs[2].node.at.column), (3, 4));
        assert!(matches!(&pairs[3].node.value, Value::Text(text) if text == "yes"));
    }

    #[test]
    fn a_key_that_comes_twice_is_there_twice() {
        assert_eq!(map("a: 1\na: 2\n").len(), 2);
    }

    #[test]
    fn bombs_and_towers_are_refused() {
        let bomb = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |yaml, i| {
            let alias = format!("*a{}", i - 1);
            yaml + &format!("a{i}: &a{i} [{alias}, {alias}, {alias}, {alias}]\n")
        });
        assert!(refused(&bomb).contains("too large or too deep"));
        let tower =
            (1..900).fold("a0: &a0 x\n".to_owned(), |yaml, i| yaml + &format!("a{i}: &a{i} [[[*a{}]]]\n", i - 1));
        assert!(refused(&tower).contains("too large or too deep"));
        // The scanner's own bound comes first here.
        assert!(refused(&"[".repeat(10_000)).starts_with("this is not YAML: "));
        assert!(refused(&"x".repeat(MANIFEST_BYTES_MAX + 1)).contains("more than 1048576"));
    }

    #[test]
    fn what_is_no_yaml_shows_no_credential() {
        for yaml in ["password: \"hunter2", "a: {token: hunter2, b: [", "url: [u:hunter2@h", "a: [redis://:hunter2@h"] {
            let mut report = Report::new(yaml, "app.yaml");
            assert!(read(yaml, &mut report).is_none());
            let shown = report.finish()[0].to_string();
            assert!(shown.contains("*******") && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn what_is_no_yaml_gives_one_error() {
        assert!(refused("a: [1, 2\n").starts_with("this is not YAML: "));
        assert!(refused("a: *nope").starts_with("this is not YAML: "));
        assert!(refused("a: 1\n---\nb: 2\n").starts_with("a second document"));
    }
}
