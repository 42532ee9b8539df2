//! What unit tests of this crate share.

use trellis_wire::{Config, Link, LinkId, LinkName, Secrets};

/// A link with this config alone.
pub(crate) fn link(config: Config) -> Link {
    let (component, provider) = ("shop/worker".parse().unwrap(), "shop/nats".parse().unwrap());
    Link {
        id: LinkId::new(&component, &provider, &LinkName::default(), "wasmcloud", "messaging", &[]),
        component,
        name: LinkName::default(),
        namespace: "wasmcloud".into(),
        package: "messaging".into(),
        interfaces: Vec::new(),
        config,
        delivery: Default::default(),
        secrets: Secrets::default(),
        part: Default::default(),
    }
}
