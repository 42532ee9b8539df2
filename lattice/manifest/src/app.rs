//! What a manifest declares, once it is parsed and checked: plain data without spans, the form in which the lattice
//! keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trellis_wire::{AppName, ComponentName, Config, LinkName};

use crate::{Delivery, overlaid};

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// The `version` annotation, where there is one.
    pub version: Option<String>,
    /// The `description` annotation, where there is one.
    pub description: Option<String>,
    /// Whether other apps may link with its components: the annotation `experimental.wasmcloud.dev/shared`.
    pub shared: bool,
    /// Labels of the app.
    pub labels: BTreeMap<String, String>,
    /// Entries of `type: component`.
    pub components: BTreeMap<ComponentName, Component>,
    /// Entries of `type: capability`.
    pub providers: BTreeMap<ComponentName, Provider>,
    /// The links, in the order of the manifest.
    pub links: Vec<AppLink>,
    /// Config that the manifest gives properties for, under the name the lattice stores it: `{app}-{name}`.
    pub configs: BTreeMap<String, Config>,
    /// Secrets policies by name.
    pub policies: BTreeMap<String, Policy>,
}

impl App {
    /// An app that declares nothing yet.
    pub fn new(name: AppName) -> Self {
        Self {
            name,
            version: None,
            description: None,
            shared: false,
            labels: BTreeMap::new(),
            components: BTreeMap::new(),
            providers: BTreeMap::new(),
            links: Vec::new(),
            configs: BTreeMap::new(),
            policies: BTreeMap::new(),
        }
    }

    /// What this version of Trellis cannot run: `validate` warns of it, `deploy` is refused for it.
    pub fn not_built(&self) -> Vec<NotBuilt> {
        let providers = self.providers.iter().filter_map(|(entry, provider)| match &provider.served {
            Served::NotBuilt(name) => Some(NotBuilt::Provider { entry: entry.clone(), name: name.clone() }),
            Served::Builtin(_) | Served::Shared { .. } => None,
        });
        let backends = self.secrets().filter_map(|secret| match &secret.backend {
            SecretsBackend::NotBuilt(backend) => Some((secret.policy.clone(), backend.clone())),
            SecretsBackend::Env | SecretsBackend::File => None,
        });
        let backends: BTreeSet<_> = backends.collect();
        let backends = backends.into_iter().map(|(policy, backend)| NotBuilt::SecretsBackend { policy, backend });
        providers.chain(backends).collect()
    }

    /// The links by which queues hand messages to its components, each with its policy, as far as the manifest says them.
    pub fn queues(&self) -> impl Iterator<Item = (&AppLink, Delivery)> {
        self.links.iter().filter_map(|link| {
            let provider = self.providers.get(&link.source)?;
            let given = provider.configs.iter().chain(&link.source_configs).filter_map(|name| self.configs.get(name));
            let config = given.fold(Config::default(), |config, given| config.overlaid_with(given));
            let policy = overlaid(link.delivery.clone(), &config).ok()?;
            let has_queue = link.package == "messaging" && provider.tech()?.has_queue(&config, &policy);
            has_queue.then_some((link, policy))
        })
    }

    /// Every secret that anything of it names.
    fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        let components = self.components.values().flat_map(|component| &component.secrets);
        let providers = self.providers.values().flat_map(|provider| &provider.secrets);
        let links = self.links.iter().flat_map(|link| link.source_secrets.iter().chain(&link.target_secrets));
        components.chain(providers).chain(links)
    }
}

/// Something a manifest asks for that this version of Trellis does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotBuilt {
    /// A provider.
    Provider {
        /// The manifest entry.
        entry: ComponentName,
        /// The provider's name, or its image where that is not known either.
        name: String,
    },
    /// A secrets backend.
    SecretsBackend {
        /// The policy that names it and that a secret uses.
        policy: String,
        /// The backend.
        backend: String,
    },
}

impl fmt::Display for NotBuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provider { entry, name } => write!(f, "provider `{name}` of `{entry}`"),
            Self::SecretsBackend { policy, backend } => write!(f, "secrets backend `{backend}` of policy `{policy}`"),
        }
    }
}

/// A Wasm component of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// `id`, given or generated.
    pub id: String,
    /// Where its code comes from.
    pub image: Image,
    /// Names of config in the lattice, merged in this order.
    pub configs: Vec<String>,
    /// Secrets it may read.
    pub secrets: Vec<SecretRef>,
    /// Who holds it.
    pub scaler: Option<Scaler>,
    /// Limits of one sandbox.
    pub limits: Limits,
}

/// Where a component's code comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Image {
    /// `file://` or a bare path, relative to the manifest: uploaded before the deploy.
    File {
        /// The path as it was written, without `file://`.
        path: String,
        /// The `@sha256:` that it must have, where one was given.
        digest: Option<trellis_wire::Digest>,
    },
    /// An OCI reference, with its digest where one was given.
    Oci(String),
    /// A component of another app, `application: {name, component}`.
    Shared {
        /// The app.
        app: AppName,
        /// Its component.
        component: ComponentName,
    },
}

/// A capability provider of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// `id`, given or generated.
    pub id: String,
    /// The image as it was written; empty for one that another app shares.
    pub image: String,
    /// Who serves it.
    pub served: Served,
    /// Names of config in the lattice, merged in this order.
    pub configs: Vec<String>,
    /// Secrets it may read.
    pub secrets: Vec<SecretRef>,
    /// On which nodes it runs; `None`: where the components are that it is linked with.
    pub scaler: Option<Scaler>,
}

impl Provider {
    /// The technology behind it, where it is built in.
    pub fn tech(&self) -> Option<Tech> {
        match self.served {
            Served::Builtin(tech) => Some(tech),
            Served::NotBuilt(_) | Served::Shared { .. } => None,
        }
    }
}

/// Who serves a provider's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Served {
    /// A built-in provider.
    Builtin(Tech),
    /// Nobody: this version of Trellis has no such provider. Its name, or the image where that is not known.
    NotBuilt(String),
    /// A provider of another app, `application: {name, component}`.
    Shared {
        /// The app.
        app: AppName,
        /// Its provider.
        component: ComponentName,
    },
}

/// A built-in provider: the technology behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tech {
    /// HTTP server and client.
    Http,
    /// NATS: messaging and key-value buckets.
    Nats,
    /// The node's own store and messaging.
    Embedded,
    /// Redis: queues on streams, and keys.
    Redis,
    /// RabbitMQ: queues.
    Rabbitmq,
    /// MQTT: topics.
    Mqtt,
    /// Timers.
    Timer,
}

impl Tech {
    /// Every one of them.
    pub const ALL: [Self; 7] =
        [Self::Http, Self::Nats, Self::Embedded, Self::Redis, Self::Rabbitmq, Self::Mqtt, Self::Timer];

    /// Its name, as in `trellis://<name>`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Nats => "nats",
            Self::Embedded => "embedded",
            Self::Redis => "redis",
            Self::Rabbitmq => "rabbitmq",
            Self::Mqtt => "mqtt",
            Self::Timer => "timer",
        }
    }

    /// Whether a link of this config and policy has its messages from a queue, which can give one out again: the broker's, or
    /// the node's own.
    pub fn has_queue(self, config: &Config, policy: &Delivery) -> bool {
        match self {
            Self::Embedded | Self::Rabbitmq => config.get("queue").is_some(),
            Self::Redis => has_stream(config),
            Self::Nats => has_stream(config) || !policy.is_default(),
            Self::Mqtt => config.get("qos") != Some("0") || !policy.is_default(),
            Self::Http | Self::Timer => false,
        }
    }

    /// Whether each node that takes messages by such a link has a queue of its own, which no other sees: of embedded ones where
    /// the provider has a scaler.
    pub fn is_each_nodes_own(self, config: &Config, policy: &Delivery) -> bool {
        match self {
            Self::Embedded | Self::Mqtt => true,
            Self::Nats => !has_stream(config) && !policy.is_default(),
            Self::Http | Self::Redis | Self::Rabbitmq | Self::Timer => false,
        }
    }
}

/// Whether a link names a stream.
fn has_stream(config: &Config) -> bool {
    config.get("stream").or_else(|| config.get("queue")).is_some()
}

impl fmt::Display for Tech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A link of an app, both ends in its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLink {
    /// The entry that has the trait.
    pub source: ComponentName,
    /// The entry that it names.
    pub target: ComponentName,
    /// The link's name.
    pub name: LinkName,
    /// WIT namespace; `wrpc` is written as `wasi` here.
    pub namespace: String,
    /// WIT package.
    pub package: String,
    /// WIT interfaces.
    pub interfaces: Vec<String>,
    /// Config names for the source's end.
    pub source_configs: Vec<String>,
    /// Config names for the target's end.
    pub target_configs: Vec<String>,
    /// Secrets for the source's end.
    pub source_secrets: Vec<SecretRef>,
    /// Secrets for the target's end.
    pub target_secrets: Vec<SecretRef>,
    /// How messages are delivered, where the link is a message trigger.
    pub delivery: Delivery,
}

/// Where a secret is. The lattice stores this, never the value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretRef {
    /// The name that the component or provider knows it by.
    pub name: String,
    /// The policy, for messages.
    pub policy: String,
    /// Who holds it, as the policy says.
    pub backend: SecretsBackend,
    /// The key in the backend.
    pub key: String,
    /// A field of the value.
    pub field: Option<String>,
    /// A version of the value. The backends that are built in keep none.
    pub version: Option<String>,
}

/// Who holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SecretsBackend {
    /// `env`: variables of the node's environment, below the prefix that the node opens.
    Env,
    /// `file`: what the node finds at the path that it opens.
    File,
    /// One that this version of Trellis does not have.
    NotBuilt(String),
}

impl SecretsBackend {
    /// The backend of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "env" => Self::Env,
            "file" => Self::File,
            other => Self::NotBuilt(other.into()),
        }
    }
}

impl fmt::Display for SecretsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Env => "env",
            Self::File => "file",
            Self::NotBuilt(name) => name,
        })
    }
}

/// A secrets policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its type, such as `policy.secret.wasmcloud.dev/v1alpha1`.
    pub kind: String,
    /// Its properties; `backend` names the backend.
    pub properties: BTreeMap<String, String>,
}

impl Policy {
    /// The type of a secrets policy (wadm-types 0.8, `SECRET_POLICY_TYPE`). Policies of other types mean nothing.
    pub const SECRETS: &str = "policy.secret.wasmcloud.dev/v1alpha1";

    /// The backend that it names.
    pub fn backend(&self) -> Option<&str> {
        self.properties.get("backend").map(|backend| backend.trim()).filter(|backend| !backend.is_empty())
    }
}

/// Who holds a component or runs a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scaler {
    /// `spreadscaler`: so many in the lattice, divided over spreads.
    Spread {
        /// `instances`; `None`: as many as the nodes allow.
        instances: Option<u32>,
        /// The spreads, at least one; one without requirements where the manifest names none.
        spreads: Vec<Spread>,
    },
    /// `daemonscaler`: so many on every node that matches a spread.
    Daemon {
        /// `instances` on each node.
        instances: Option<u32>,
        /// As for `Spread`; the weights mean nothing.
        spreads: Vec<Spread>,
    },
}

impl Scaler {
    /// Whether it asks for nothing at all: `instances: 0`.
    pub const fn is_zero(&self) -> bool {
        let (Self::Spread { instances, .. } | Self::Daemon { instances, .. }) = self;
        matches!(instances, Some(0))
    }
}

/// A share of the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Its name.
    pub name: String,
    /// Labels that a node must have: `value`, `!value`, `a|b` or `*`.
    pub requirements: BTreeMap<String, String>,
    /// Its weight; 100 where the manifest names none.
    pub weight: u32,
}

/// `limits:`: what one sandbox may use. `None`: the node's default.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Linear memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Wall-clock time for one event.
    pub timeout: Option<Duration>,
    /// Sandboxes of this component at one time, in the lattice.
    pub max_in_flight: Option<u32>,
    /// Give up permits when cut off from the lattice.
    pub strict: bool,
}
