//! The JSON Schema of a manifest, for editors. It is generated from the types here, which nothing else uses: reading
//! wants places and leniency that derived types do not have. Tests hold the schema against `level` and the examples.

// The fields are read by the derive only.
#![expect(dead_code, reason = "these types are shapes for the schema; no value of them is made")]

use std::collections::BTreeMap;

use schemars::JsonSchema;

/// The JSON Schema of a manifest.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Manifest);
    schema.insert("$id".into(), "https://example.invalid/trellis/manifest.schema.json".into());
    schema.to_value()
}

/// A Trellis app: OAM as wadm has it.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Manifest {
    /// `core.oam.dev/v1beta1`.
    #[schemars(rename = "apiVersion", extend("const" = "core.oam.dev/v1beta1"))]
    api_version: String,
    /// `Application`.
    #[schemars(extend("const" = "Application"))]
    kind: String,
    /// The app's name and what is said about it.
    metadata: Metadata,
    /// What the app is made of.
    spec: Spec,
}

/// The app's name and what is said about it.
#[derive(JsonSchema)]
struct Metadata {
    /// Unique in the lattice: letters, digits, `-` and `_`.
    #[schemars(regex(pattern = r"^[-\w]+$"))]
    name: Scalar,
    /// `version` (absent: made at each deploy; never `latest`), `description`, `experimental.wasmcloud.dev/shared`, and
    /// any of your own.
    #[schemars(default)]
    annotations: Option<BTreeMap<String, Scalar>>,
    /// Labels of your own.
    #[schemars(default)]
    labels: Option<BTreeMap<String, Scalar>>,
}

/// What the app is made of.
#[derive(JsonSchema)]
struct Spec {
    /// Components and providers.
    components: Vec<Entry>,
    /// Policies; secrets name one.
    #[schemars(default)]
    policies: Option<Vec<Policy>>,
}

/// A policy.
#[derive(JsonSchema)]
struct Policy {
    /// What secrets call it.
    name: Scalar,
    /// `policy.secret.wasmcloud.dev/v1alpha1`; others are passed over.
    #[schemars(rename = "type")]
    kind: Scalar,
    /// `backend` and what the backend needs.
    properties: BTreeMap<String, Scalar>,
}

/// A component, or a provider.
#[derive(JsonSchema)]
struct Entry {
    /// Unique in the app.
    name: Scalar,
    /// `component` runs in a sandbox for one event; `capability` is a provider that keeps running.
    #[schemars(rename = "type")]
    kind: EntryType,
    /// What it is.
    properties: Properties,
    /// Links and a scaler.
    #[schemars(default)]
    traits: Option<Vec<Trait>>,
    /// What one sandbox may use.
    #[schemars(default)]
    limits: Option<Limits>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum EntryType {
    Component,
    Capability,
    /// Another word for `component`.
    Actor,
}

/// What a component or provider is. Exactly one of `image` and `application`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Properties {
    /// `file://` or a path relative to the manifest, an OCI reference, with `@sha256:` if you like; for a provider
    /// `trellis://embedded`, `trellis://nats`, `trellis://http` or the image of a known wasmCloud provider.
    #[schemars(default)]
    image: Option<Scalar>,
    /// A component that another app shares.
    #[schemars(default)]
    application: Option<Application>,
    /// Unique in the app; absent: `{app}-{component}`.
    #[schemars(default)]
    id: Option<Scalar>,
    /// Config, later ones over earlier ones.
    #[schemars(default)]
    config: Option<Vec<Config>>,
    /// Secrets it may read.
    #[schemars(default)]
    secrets: Option<Vec<Secret>>,
}

/// A component that another app shares.
#[derive(JsonSchema)]
struct Application {
    /// The app.
    name: Scalar,
    /// Its component.
    component: Scalar,
}

/// Config: given here, or named.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Config {
    /// With properties it is stored as `{app}-{name}`; without, it names config that the lattice has.
    name: Scalar,
    /// Keys and values.
    #[schemars(default)]
    properties: Option<BTreeMap<String, Scalar>>,
}

/// A secret.
#[derive(JsonSchema)]
struct Secret {
    /// What the component calls it.
    name: Scalar,
    /// Where it is.
    properties: SecretProperties,
}

/// Where a secret is.
#[derive(JsonSchema)]
struct SecretProperties {
    /// The policy, which names the backend.
    policy: Scalar,
    /// The key in the backend.
    key: Scalar,
    /// A field of the value.
    #[schemars(default)]
    field: Option<Scalar>,
    /// A version of the value; absent: the newest.
    #[schemars(default)]
    version: Option<Scalar>,
}

/// What one sandbox may use; absent: what the node allows.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Limits {
    /// Memory, such as `64MiB`.
    #[schemars(default, regex(pattern = r"^[0-9]+ *([KMG]i?B?|kB|B)?$"))]
    memory: Option<Scalar>,
    /// Wall-clock time for one event, such as `30s`.
    #[schemars(default)]
    timeout: Option<Duration>,
    /// Sandboxes of this component at one time, in the lattice.
    #[schemars(default, range(min = 1))]
    max_in_flight: Option<u32>,
    /// Stop when cut off from the lattice.
    #[schemars(default)]
    strict: Option<bool>,
}

/// A link or a scaler.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Trait {
    /// Who may use or wake whom.
    Link {
        /// The link.
        properties: Box<Link>,
    },
    /// So many instances in the lattice, divided over spreads.
    Spreadscaler {
        /// The scaler.
        properties: Scaler,
    },
    /// So many instances on every node that matches.
    Daemonscaler {
        /// The scaler.
        properties: Scaler,
    },
}

/// How many, and where.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Scaler {
    /// How many; absent: as many as the nodes allow.
    #[schemars(default)]
    instances: Option<u32>,
    /// Another word for `instances`.
    #[schemars(default)]
    replicas: Option<u32>,
    /// Which nodes, by label.
    #[schemars(default)]
    spread: Option<Vec<Spread>>,
}

/// A share of the nodes.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Spread {
    /// What it is called.
    name: Scalar,
    /// Labels that a node must have: `value`, `!value`, `a|b` or `*`.
    requirements: BTreeMap<String, Scalar>,
    /// Its share beside the others; absent: 100.
    #[schemars(default)]
    weight: Option<u32>,
}

/// Who may use or wake whom.
#[derive(JsonSchema)]
struct Link {
    /// WIT namespace, such as `wasi`.
    namespace: Scalar,
    /// WIT package, such as `keyvalue`.
    package: Scalar,
    /// WIT interfaces, such as `store`.
    interfaces: Vec<Scalar>,
    /// `default` unless a component has several links for one interface.
    #[schemars(default)]
    name: Option<Scalar>,
    /// The other end.
    target: TargetOrName,
    /// Config and secrets for this end.
    #[schemars(default)]
    source: Option<Source>,
    /// Deprecated: `source.config`.
    #[schemars(default, extend("deprecated" = true))]
    source_config: Option<Vec<Config>>,
    /// Deprecated: `target.config`.
    #[schemars(default, extend("deprecated" = true))]
    target_config: Option<Vec<Config>>,
    /// How messages are delivered, on a link that hands messages to a component.
    #[schemars(default)]
    delivery: Option<Delivery>,
}

/// The other end of a link: its name alone will do.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum TargetOrName {
    Name(String),
    Target(Target),
}

/// The other end of a link.
#[derive(JsonSchema)]
struct Target {
    /// A component or provider of this app.
    name: Scalar,
    /// Config for that end.
    #[schemars(default)]
    config: Option<Vec<Config>>,
    /// Secrets for that end.
    #[schemars(default)]
    secrets: Option<Vec<Secret>>,
}

/// This end of a link.
#[derive(JsonSchema)]
struct Source {
    /// Config for this end.
    #[schemars(default)]
    config: Option<Vec<Config>>,
    /// Secrets for this end.
    #[schemars(default)]
    secrets: Option<Vec<Secret>>,
}

/// How messages are delivered.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Delivery {
    /// Attempts before a message that the component refuses is dead-lettered. 20.
    #[schemars(default, range(min = 1))]
    max_attempts: Option<u32>,
    /// Attempts before a message on which the component faults is dead-lettered. 3.
    #[schemars(default, range(min = 1))]
    max_faults: Option<u32>,
    /// The wait between attempts.
    #[schemars(default)]
    backoff: Option<Backoff>,
    /// How long one attempt may take. 30s.
    #[schemars(default)]
    timeout: Option<Duration>,
    /// How old a message may get before it is dead-lettered instead of tried again.
    #[schemars(default)]
    max_age: Option<Duration>,
    /// Messages in work at one time, in the lattice.
    #[schemars(default, range(min = 1))]
    max_in_flight: Option<u32>,
    /// Messages begun per time, in the lattice: `100/s`.
    #[schemars(default)]
    rate_limit: Option<String>,
    /// What keeps its order: `subject` or `header:<name>`.
    #[schemars(default, regex(pattern = r"^(subject|header:.+)$"))]
    order_by: Option<String>,
    /// What an ordered link does after a dead letter. park.
    #[schemars(default)]
    on_dead_letter: Option<OnDeadLetter>,
    /// A subject or stream for dead letters.
    #[schemars(default)]
    dead_letter: Option<String>,
    /// What is handled only once.
    #[schemars(default)]
    dedupe: Option<Dedupe>,
}

/// The wait between attempts.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Backoff {
    /// After the first attempt. 1s.
    #[schemars(default)]
    initial: Option<Duration>,
    /// How much longer each wait is. 2.
    #[schemars(default, range(min = 1, max = 100))]
    factor: Option<f64>,
    /// The longest. 5m.
    #[schemars(default)]
    max: Option<Duration>,
    /// By how much of itself a wait is moved at random. 0.2.
    #[schemars(default, range(min = 0, max = 1))]
    jitter: Option<f64>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
enum OnDeadLetter {
    Park,
    Continue,
}

/// What is handled only once.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Dedupe {
    /// What makes two messages the same: `id` or `header:<name>`.
    #[schemars(regex(pattern = r"^(id|header:.+)$"))]
    key: String,
    /// For how long.
    window: Duration,
}

/// A number with a unit: `500ms`, `1s`, `5m`, `2h`, `1d`.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct Duration(#[schemars(regex(pattern = r"^[0-9]+ *(ms|s|m|h|d)$"))] String);

/// Text. Numbers and truth values are taken as they are written.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Scalar {
    Text(String),
    Number(f64),
    Truth(bool),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::level::{self, Level, Unknown};

    /// The keys that a definition knows.
    fn keys(definition: &serde_json::Value) -> BTreeSet<String> {
        definition["properties"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_schema_knows_the_same_keys_as_the_reader() {
        let schema = json_schema();
        let levels: [(&str, &Level); 15] = [
            ("Metadata", &level::METADATA),
            ("Spec", &level::SPEC),
            ("Policy", &level::POLICY),
            ("Entry", &level::ENTRY),
            ("Properties", &level::PROPERTIES),
            ("Application", &level::APPLICATION),
            ("Config", &level::CONFIG),
            ("Secret", &level::SECRET),
            ("SecretProperties", &level::SECRET_PROPERTIES),
            ("Limits", &level::LIMITS),
            ("Scaler", &level::SCALER),
            ("Spread", &level::SPREAD),
            ("Link", &level::LINK),
            ("Target", &level::TARGET),
            ("Source", &level::SOURCE),
        ];
        let manifest = [(&schema, &level::MANIFEST)];
        for (definition, level) in levels.iter().map(|(name, level)| (&schema["$defs"][name], *level)).chain(manifest) {
            let known = level.keys.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(keys(definition), known, "{}", level.what);
            let denied = definition.get("additionalProperties") == Some(&serde_json::Value::Bool(false));
            assert_eq!(denied, level.unknown == Unknown::Denied, "{}", level.what);
        }
        for variant in schema["$defs"]["Trait"]["oneOf"].as_array().unwrap() {
            assert_eq!(keys(variant), level::TRAIT.keys.iter().map(|key| (*key).to_owned()).collect());
        }
    }

    #[test]
    fn the_schema_knows_the_same_delivery_keys_as_the_reader() {
        let definitions = &json_schema()["$defs"];
        let mut known = BTreeSet::new();
        for key in keys(&definitions["Delivery"]) {
            let below = match key.as_str() {
                "backoff" => keys(&definitions["Backoff"]),
                "dedupe" => keys(&definitions["Dedupe"]),
                _ => BTreeSet::new(),
            };
            known.extend(below.iter().map(|below| format!("{key}.{below}")));
            if below.is_empty() {
                known.insert(key);
            }
        }
        assert_eq!(known, crate::delivery::KEYS.iter().map(|key| (*key).to_owned()).collect());
    }
}
