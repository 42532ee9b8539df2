//! Nodes as the lattice knows them: what they said when they joined, and what became of them since.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use trellis_manifest::{LABEL_KEY_HELP, is_label_key};
use trellis_wire::{NodeId, NodeKey};

/// The label that names the edge. A node that joined with `--edge` has it, and only spreads that name it go there.
pub(crate) const EDGE_LABEL: &str = "edge";

/// Labels that begin so are the node's own to set.
const OWN_LABELS: &str = "trellis.";

/// How long a label's value may be, in bytes.
const LABEL_VALUE_BYTES_MAX: usize = 253;

/// Why something is no label for a person to set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Its key.
    #[error("`{0}` is no label key: {LABEL_KEY_HELP}")]
    Key(String),
    /// It is not a person's.
    #[error("label `{0}` is the node's own: those that begin with `{OWN_LABELS}` cannot be set")]
    Own(String),
    /// Its value.
    #[error(
        "the value of label `{0}` is too long or has control characters: up to {LABEL_VALUE_BYTES_MAX} bytes of text are taken"
    )]
    Value(String),
}

/// Checks a label that a person sets.
///
/// # Errors
/// What is wrong with it.
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    match () {
        () if !is_label_key(key) => Err(LabelError::Key(key.into())),
        () if key.starts_with(OWN_LABELS) => Err(LabelError::Own(key.into())),
        () if value.len() > LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) => {
            Err(LabelError::Value(key.into()))
        }
        () => Ok(()),
    }
}

/// What a node says of itself when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its id.
    pub id: NodeId,
    /// Its name for people: the host name unless said otherwise. Two nodes may share one.
    pub name: String,
    /// Its labels, the automatic ones (`hostcore.os`, `arch`, ...) included.
    pub labels: BTreeMap<String, String>,
    /// The version of Trellis it runs.
    pub version: String,
    /// What it can hold.
    pub capacity: Capacity,
    /// Whether it joined with `--edge`.
    pub edge: bool,
    /// Its public key: who shows another one is not this node.
    pub key: NodeKey,
}

/// What a node can hold. It is declared, not measured: live load shows in `status` and moves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Sandboxes at one time. A node with 0 runs providers only.
    pub permits: u32,
    /// Memory for sandboxes, in bytes.
    pub memory_bytes: u64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What it said of itself.
    pub facts: NodeFacts,
    /// Since when it is lost, by the clock of whoever noticed, in milliseconds since 1970.
    pub lost_since_ms: Option<u64>,
    /// Whether it is drained.
    pub drained: bool,
    /// Labels set later; `None` hides one it joined with.
    pub overrides: BTreeMap<String, Option<String>>,
}

impl Node {
    pub(crate) fn new(facts: NodeFacts) -> Self {
        Self { facts, lost_since_ms: None, drained: false, overrides: BTreeMap::new() }
    }

    /// Whether it is lost.
    pub const fn is_lost(&self) -> bool {
        self.lost_since_ms.is_some()
    }

    /// Whether it may hold anything at all.
    pub const fn is_open(&self) -> bool {
        !self.is_lost() && !self.drained
    }

    /// A label's value now.
    pub fn label(&self, key: &str) -> Option<&str> {
        match self.overrides.get(key) {
            Some(set) => set.as_deref(),
            None => self
                .facts
                .labels
                .get(key)
                .map(String::as_str)
                .or((self.facts.edge && key == EDGE_LABEL).then_some("true")),
        }
    }

    /// Every label as it is now.
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let keys = self.facts.labels.keys().chain(self.overrides.keys()).map(String::as_str);
        let edge = self.facts.edge.then_some(EDGE_LABEL);
        keys.chain(edge).filter_map(|key| Some((key, self.label(key)?))).collect()
    }

    /// Whether something with these label requirements may be placed here; `sandboxes`: whether it needs any.
    ///
    /// # Errors
    /// The first reason why not.
    pub(crate) fn fits(&self, requirements: &BTreeMap<String, String>, sandboxes: bool) -> Result<(), Unfit> {
        self.away().map_or_else(|| self.suits(requirements, sandboxes), Err)
    }

    /// Why nothing at all may be placed here now, whatever it requires.
    pub(crate) fn away(&self) -> Option<Unfit> {
        match () {
            () if self.is_lost() => Some(Unfit::Lost),
            () if self.drained => Some(Unfit::Drained),
            () => None,
        }
    }

    /// The same of what does not come and go: labels, sandboxes, the edge.
    ///
    /// # Errors
    /// The first reason why not.
    pub(crate) fn suits(&self, requirements: &BTreeMap<String, String>, sandboxes: bool) -> Result<(), Unfit> {
        if sandboxes && self.facts.capacity.permits == 0 {
            return Err(Unfit::NoSandboxes);
        }
        if let Some((key, wanted)) = requirements.iter().find(|(key, wanted)| !matches(self.label(key), wanted)) {
            let found = self.label(key).map(str::to_owned);
            return Err(Unfit::Label { key: key.clone(), wanted: wanted.clone(), found });
        }
        if self.facts.edge && !requirements.contains_key(EDGE_LABEL) {
            return Err(Unfit::Edge);
        }
        Ok(())
    }
}

/// Whether a label has the value that a requirement asks for: `value`, `a|b` (one of them), `*` (any, but present), and
/// with `!` before it the opposite, which an absent label fulfils.
fn matches(label: Option<&str>, wanted: &str) -> bool {
    if let Some(unwanted) = wanted.strip_prefix('!') {
        return !matches(label, unwanted);
    }
    label.is_some_and(|label| wanted == "*" || wanted.split('|').any(|one| one.trim() == label))
}

/// Why a node cannot hold something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unfit {
    /// It is lost.
    Lost,
    /// It is drained.
    Drained,
    /// It runs no sandboxes.
    NoSandboxes,
    /// It is an edge node, and the spread names no edge label.
    Edge,
    /// A label is not as required.
    Label {
        /// The label.
        key: String,
        /// What the spread asks for.
        wanted: String,
        /// What the node has.
        found: Option<String>,
    },
}

impl Unfit {
    /// How far from fitting a node is that lacks this: its labels are right, or they are not.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Lost | Self::Drained => 0,
            Self::NoSandboxes | Self::Edge => 1,
            Self::Label { .. } => 2,
        }
    }

    /// What would change it on the node of this name or id, for people.
    pub fn remedy(&self, node: &str) -> String {
        match self {
            Self::Lost => format!("start it again, or give it up with `trellis nodes forget {node}`"),
            Self::Drained => format!("`trellis undrain {node}`"),
            Self::NoSandboxes => "start it with --max-sandboxes".into(),
            Self::Edge => format!("a spread with `requirements: {{{EDGE_LABEL}: '*'}}` goes there"),
            Self::Label { key, wanted, .. } if wanted.starts_with('!') => {
                format!("`trellis label {node} {key}-`, or a spread that takes it")
            }
            Self::Label { key, wanted, .. } => {
                let value = wanted.split('|').next().unwrap_or_default().trim();
                let value = if value == "*" { "VALUE" } else { value };
                format!("`trellis label {node} {key}={value}`")
            }
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("is lost"),
            Self::Drained => f.write_str("is drained"),
            Self::NoSandboxes => f.write_str("runs no sandboxes (--max-sandboxes 0)"),
            Self::Edge => write!(f, "is an edge node, and the spread names no `{EDGE_LABEL}` label"),
            Self::Label { key, wanted, found: Some(found) } => write!(f, "has label {key}={found}, not {key}={wanted}"),
            Self::Label { key, wanted, found: None } => write!(f, "has no label {key}, wanted is {key}={wanted}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_a_key_and_a_short_text_and_not_the_nodes_own() {
        for (key, value, said) in [
            ("zone", "eu", ""),
            ("zone", "", ""),
            ("example.com/zone", "a|b c", ""),
            ("a b", "c", "is no label key"),
            ("trellis.level", "99", "is the node's own"),
            ("zone", "e\nu", "has control characters"),
            ("zone", &"e".repeat(254), "is too long"),
        ] {
            let checked = check_label(key, value).err().map(|why| why.to_string()).unwrap_or_default();
            assert!(checked.contains(said) && checked.is_empty() == said.is_empty(), "{key}={value}: {checked}");
        }
    }

    #[test]
    fn requirements_take_values_choices_any_and_not() {
        for (label, wanted, fits) in [
            (Some("eu"), "eu", true),
            (Some("eu"), "us", false),
            (Some("eu"), "us|eu", true),
            (Some("eu"), "*", true),
            (Some("eu"), "!us", true),
            (Some("eu"), "!us|eu", false),
            (Some("eu"), "!*", false),
            (None, "eu", false),
            (None, "*", false),
            (None, "!eu", true),
            (None, "!*", true),
        ] {
            assert_eq!(matches(label, wanted), fits, "{label:?} for {wanted}");
        }
    }
}
