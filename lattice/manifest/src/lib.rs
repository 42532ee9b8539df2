//! Manifests: OAM YAML as wadm has it, to an [`App`].
//!
//! [`parse`] shows everything that is wrong with a manifest at once, each [`Finding`] with its place and what to write
//! instead; the app is there if none of them is an error. Nothing here reads a file, a clock or the network: whether an
//! image exists or a named config is in the lattice is found out by those who deploy.
//!
//! What wadm accepts is accepted with the same meaning; DIFFERENCES.md names the exceptions, and a test holds it against
//! wadm's own parser. Reading goes top-down: `tree` makes YAML into nodes with places, `level` names the keys, `reading`
//! begins at the top, `entry` and `links` go on, `rules` are those between entries.

mod app;
mod delivery;
mod entry;
mod fields;
mod finding;
mod images;
mod interfaces;
mod keys;
mod level;
mod limits;
mod links;
mod nearest;
mod quantity;
mod reading;
mod rules;
mod scaler;
mod schema;
mod settings;
mod spread;
mod tree;

use std::collections::BTreeMap;

pub use app::{
    App, AppLink, Component, Image, Limits, NotBuilt, Policy, Provider, Scaler, SecretRef, SecretsBackend, Served,
    Spread, Tech,
};
pub use delivery::{DeliveryError, overlaid};
pub use finding::{Finding, Severity};
pub use reading::{LABEL_KEY_HELP, is_label_key};
pub use schema::json_schema;
pub use spread::spread;
use trellis_wire::Link;
pub use trellis_wire::{Backoff, Dedupe, DedupeKey, Delivery, OnDeadLetter, OrderBy, Rate};

/// What a manifest is, and all that was found wrong with it.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The app; `None` if any finding is an error.
    pub app: Option<App>,
    /// Errors and warnings, in the order of the manifest.
    pub findings: Vec<Finding>,
}

/// How to read a manifest.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Images of providers that are to be read as others: `{"ghcr.io/acme/queue": "trellis://nats"}`. A key is a whole
    /// image, one without tag and digest, or a last path segment.
    pub image_aliases: BTreeMap<String, String>,
    /// Asked about each link of a built-in provider, where all its config is in the manifest. No link is refused without
    /// it.
    pub check: Option<CheckLink>,
}

/// Says whether a provider would take a link. Secrets are there by name; what they hold is not known.
pub type CheckLink = fn(Tech, Way, &Link) -> Result<(), Unfit>;

/// Which way a link goes between a provider and a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The provider wakes the component.
    Wakes,
    /// The component calls the provider.
    Grants,
}

/// Why a provider would not take a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The config key that is wrong or missing; `None`: it is the link as a whole.
    pub key: Option<String>,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// Reads a manifest. `origin` is the file's name, for messages.
pub fn parse(yaml: &str, origin: &str) -> Parsed {
    parse_with(yaml, origin, &Options::default())
}

/// Reads a manifest with options.
pub fn parse_with(yaml: &str, origin: &str, options: &Options) -> Parsed {
    let mut report = finding::Report::new(yaml, origin);
    let app = match tree::read(yaml, &mut report) {
        Some(node) if matches!(node.value, tree::Value::Null) => {
            let help = "begin with `apiVersion: core.oam.dev/v1beta1` and `kind: Application`";
            report.error(finding::At::WHOLE, "the manifest is empty", help);
            None
        }
        Some(node) => reading::read(&node, options, &mut report),
        None => None,
    };
    let app = app.filter(|_| !report.has_errors());
    Parsed { app, findings: report.finish() }
}
