//! The keys of a manifest, level by level, and what an unknown one means there.
//!
//! wadm denies unknown keys in some levels and passes over them in others (wadm-types 0.8, `deny_unknown_fields`). Where
//! it passes over them we warn, because most are typing errors. A test holds this file against the JSON Schema.

/// What an unknown key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    Denied,
    Warned,
}

/// A mapping of the manifest.
#[derive(Debug)]
pub(crate) struct Level {
    /// What it is called in messages.
    pub(crate) what: &'static str,
    pub(crate) keys: &'static [&'static str],
    pub(crate) unknown: Unknown,
}

macro_rules! levels {
    ($($name:ident = $what:literal, $unknown:ident, [$($key:literal),*];)*) => {
        $(pub(crate) const $name: Level = Level { what: $what, keys: &[$($key),*], unknown: Unknown::$unknown };)*
    };
}

levels! {
    MANIFEST = "the manifest", Denied, ["apiVersion", "kind", "metadata", "spec"];
    METADATA = "`metadata`", Warned, ["name", "annotations", "labels"];
    SPEC = "`spec`", Warned, ["components", "policies"];
    POLICY = "a policy", Warned, ["name", "type", "properties"];
    ENTRY = "a component", Warned, ["name", "type", "properties", "traits", "limits"];
    PROPERTIES = "the properties of a component", Denied, ["image", "application", "id", "config", "secrets"];
    APPLICATION = "`application`", Warned, ["name", "component"];
    CONFIG = "a config", Denied, ["name", "properties"];
    SECRET = "a secret", Warned, ["name", "properties"];
    SECRET_PROPERTIES = "the properties of a secret", Warned, ["policy", "key", "field", "version"];
    LIMITS = "`limits`", Denied, ["memory", "timeout", "max_in_flight", "strict"];
    TRAIT = "a trait", Denied, ["type", "properties"];
    SCALER = "the properties of a scaler", Denied, ["instances", "replicas", "spread"];
    SPREAD = "a spread", Denied, ["name", "requirements", "weight"];
    LINK = "the properties of a link", Warned,
        ["namespace", "package", "interfaces", "name", "target", "source", "source_config", "target_config", "delivery"];
    TARGET = "`target`", Warned, ["name", "config", "secrets"];
    SOURCE = "`source`", Warned, ["config", "secrets"];
}
