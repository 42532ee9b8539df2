//! What is wrong with a manifest, said so that a person can put it right: where, what, and what to write instead.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use trellis_wire::credentials;

/// More findings than this are counted, not kept: a manifest may be of any size, its report may not.
const FINDINGS_MAX: usize = 1_000;
/// A source line is shown up to here.
const LINE_CHARS_MAX: usize = 160;

/// Messages quote the manifest; they are cut here.
const MESSAGE_CHARS_MAX: usize = 500;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The manifest is refused.
    Error,
    /// The manifest is taken, but probably does not say what was meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong with a manifest. `Display` shows it with its source line, as compilers do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// The line, from 1; 0 where the finding is about the whole manifest.
    pub line: u32,
    /// The column, in characters from 1; 0 where the finding is about the whole manifest.
    pub column: u32,
    /// How many characters it is about, at least 1.
    pub length: u32,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// The name of the manifest's file.
    pub origin: String,
    /// The source line, without control characters, cut at 160 characters.
    pub source: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        if self.line == 0 {
            write!(f, "\n --> {}", self.origin)?;
        } else {
            write!(f, "\n{margin}--> {}:{}:{}\n{margin} |", self.origin, self.line, self.column)?;
            write!(f, "\n{number} | {}\n{margin} | {}", self.source, self.carets())?;
        }
        match &self.help {
            Some(help) => write!(f, "\n{margin} = help: {help}"),
            None => Ok(()),
        }
    }
}

impl Finding {
    /// Whether the manifest is refused for it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Carets under what it is about, as far as the shown line goes.
    fn carets(&self) -> String {
        let shown = self.source.chars().count();
        let before = (self.column as usize).saturating_sub(1).min(shown);
        let under = (self.length as usize).clamp(1, (shown - before).max(1));
        " ".repeat(before) + &"^".repeat(under)
    }
}

/// A place in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) length: u32,
}

impl At {
    /// The manifest as a whole.
    pub(crate) const WHOLE: Self = Self { line: 0, column: 0, length: 0 };
}

/// Gathers findings.
pub(crate) struct Report<'a> {
    origin: &'a str,
    lines: Vec<&'a str>,
    /// How many each line has.
    chars: Vec<usize>,
    findings: Vec<Finding>,
    errors: usize,
    left_out: usize,
    /// What is shown in the place of lines with a credential in them, by their number.
    hidden: BTreeMap<u32, String>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(source: &'a str, origin: &'a str) -> Self {
        let chars = source.lines().map(|line| line.chars().count()).collect();
        let lines = source.lines().collect();
        Self { origin, lines, chars, findings: Vec::new(), errors: 0, left_out: 0, hidden: BTreeMap::new() }
    }

    /// The manifest is refused for this. `help` says what to write instead; empty where the message does.
    pub(crate) fn error(&mut self, at: At, message: impl Into<String>, help: impl Into<String>) {
        self.errors += 1;
        self.add(Severity::Error, at, message.into(), help.into());
    }

    /// The manifest is taken in spite of this.
    pub(crate) fn warn(&mut self, at: At, message: impl Into<String>, help: impl Into<String>) {
        self.add(Severity::Warning, at, message.into(), help.into());
    }

    /// Has the credentials in the text that stands there shown by nothing. `hidden` puts stars for them; where it finds none, as
    /// the source writes the text in another way, all of it is hidden.
    pub(crate) fn hide(&mut self, at: At, hidden: impl for<'t> Fn(&'t str) -> Cow<'t, str>) {
        let pieces = self.pieces(at);
        let is_seen = pieces.iter().any(|(_, text)| hidden(text) != text.as_str());
        for ((line, column), text) in pieces {
            let piece = if is_seen { hidden(&text).into_owned() } else { stars(&text) };
            let source = self.lines.get(line as usize - 1).copied().unwrap_or_default();
            let before = self.hidden.entry(line).or_insert_with(|| source.chars().take(LINE_CHARS_MAX).collect());
            let (head, tail) = (before.chars().take(column), before.chars().skip(column + piece.chars().count()));
            *before = head.chain(piece.chars()).chain(tail).take(LINE_CHARS_MAX).collect();
        }
    }

    /// Has the line shown without what may be a credential, where nobody can say what it is, as it is no YAML.
    pub(crate) fn hide_unread(&mut self, line: u32) {
        let source = (line as usize).checked_sub(1).and_then(|index| self.lines.get(index));
        let Some(shown) = source.map(|source| credentials::hidden_in("url", source)) else { return };
        let is_between = |c: char| !c.is_alphanumeric() && c != '_';
        let mut end = 0;
        let names_one = shown.split_inclusive(is_between).any(|word| {
            end += word.len();
            credentials::held(word.trim_end_matches(is_between), "-----BEGIN").is_some()
        });
        let end = if names_one { end } else { shown.len() };
        self.hidden.insert(line, shown[..end].to_owned() + &stars(&shown[end..]));
    }

    /// The text that stands there, with the line and the column, from 0, of each of its lines; without what is shown nowhere, as
    /// it begins too far to the right: a manifest may be one long line, with very many credentials.
    fn pieces(&self, at: At) -> Vec<((u32, usize), String)> {
        let (mut left, mut column) = (at.length as usize, (at.column as usize).saturating_sub(1));
        let mut pieces = Vec::new();
        let before = at.line.saturating_sub(1) as usize;
        let (lines, chars) =
            (self.lines.get(before..).unwrap_or_default(), self.chars.get(before..).unwrap_or_default());
        for (line, (source, chars)) in (at.line.max(1)..).zip(lines.iter().zip(chars)) {
            if column < LINE_CHARS_MAX {
                pieces.push(((line, column), source.chars().skip(column).take(left).collect()));
            }
            // The end of a line counts as well.
            left = left.saturating_sub(chars.saturating_sub(column) + 1);
            column = 0;
            if left == 0 {
                break;
            }
        }
        pieces
    }

    /// Whether further findings are only counted: then nobody needs to look for what was meant.
    pub(crate) fn is_full(&self) -> bool {
        self.findings.len() >= FINDINGS_MAX
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Everything that was found, in the order of the source.
    pub(crate) fn finish(mut self) -> Vec<Finding> {
        self.findings.sort_by_key(|finding| (finding.line, finding.column));
        for finding in &mut self.findings {
            if let Some(line) = self.hidden.get(&finding.line) {
                finding.source = shown(line, LINE_CHARS_MAX);
            }
        }
        if self.left_out > 0 {
            let severity = if self.errors > 0 { Severity::Error } else { Severity::Warning };
            let message = format!("{} findings more are not shown", self.left_out);
            self.findings.push(self.finding(severity, At::WHOLE, message, String::new()));
        }
        self.findings
    }

    fn add(&mut self, severity: Severity, at: At, message: String, help: String) {
        if self.is_full() {
            self.left_out += 1;
        } else {
            self.findings.push(self.finding(severity, at, message, help));
        }
    }

    fn finding(&self, severity: Severity, at: At, message: String, help: String) -> Finding {
        let line = (at.line as usize).checked_sub(1).and_then(|index| self.lines.get(index));
        Finding {
            severity,
            line: at.line,
            column: at.column,
            length: at.length.max(1),
            message: shown(&message, MESSAGE_CHARS_MAX),
            help: (!help.is_empty()).then(|| shown(&help, MESSAGE_CHARS_MAX)),
            origin: self.origin.into(),
            source: line.map_or_else(String::new, |line| shown(line, LINE_CHARS_MAX)),
        }
    }
}

fn stars(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() { c } else { '*' }).collect()
}

/// A manifest may come from anybody, and what is shown goes to a terminal; and none of its passwords does.
fn shown(text: &str, chars_max: usize) -> String {
    let hidden = credentials::hidden(text);
    hidden.chars().take(chars_max).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded_in_lines_and_in_length_and_keeps_its_order() {
        let source = format!("a\n{}\u{1b}[31m", "x".repeat(500));
        let mut report = Report::new(&source, "app.yaml");
        for _ in 0..FINDINGS_MAX + 7 {
            report.warn(At { line: 2, column: 400, length: 900 }, "far\u{7}", "");
        }
        report.error(At { line: 1, column: 1, length: 1 }, "first", "");
        let findings = report.finish();
        assert_eq!(findings.len(), FINDINGS_MAX + 1);
        assert_eq!(findings.last().unwrap().message, "8 findings more are not shown");
        assert!(findings.last().unwrap().is_error(), "an error that is not shown still is one");
        assert!(findings[0].to_string().lines().all(|line| line.chars().count() < LINE_CHARS_MAX + 10));
        assert!(!findings[0].to_string().contains(['\u{1b}', '\u{7}']));
    }

    #[test]
    fn credentials_are_hidden_in_every_line_that_they_stand_in() {
        let source = "é: [u:p@h, x]\n  'a\\x62'\nafter";
        let mut report = Report::new(source, "app.yaml");
        report.error(At { line: 1, column: 4, length: 1 }, "before it was known", "");
        report.hide(At { line: 1, column: 5, length: 5 }, |text| text.replace(":p@", ":*@").into());
        report.hide(At { line: 1, column: 12, length: 13 }, credentials::hidden);
        report.error(At { line: 2, column: 1, length: 1 }, "and after", "");
        let lines: Vec<_> = report.finish().into_iter().map(|finding| finding.source).collect();
        assert_eq!(lines, ["é: [u:*@h, **", "  *******"]);
    }

    #[test]
    fn carets_stand_under_characters_not_bytes() {
        let mut report = Report::new("é: wrong", "app.yaml");
        report.error(At { line: 1, column: 4, length: 5 }, "no", "yes");
        let shown = report.finish()[0].to_string();
        assert_eq!(shown, "error: no\n --> app.yaml:1:4\n  |\n1 | é: wrong\n  |    ^^^^^\n  = help: yes");
    }
}
