//! The built-in providers of a node: one value for each technology, whatever the number of links.

use std::future::ready;
use std::sync::Arc;

use futures::FutureExt as _;
use tokio::runtime::Handle;
use trellis_bus::Auth;
use trellis_embedded::Embedded;
use trellis_http::Http;
use trellis_manifest::Tech;
use trellis_mqtt::Mqtt;
use trellis_nats::Nats;
use trellis_provider::{Ledgers, Provider, Tls};
use trellis_rabbitmq::Rabbitmq;
use trellis_redis::Redis;
use trellis_timer::{Ledger, Timer};
use trellis_wire::{ComponentKey, Config, LatticeId, Link, LinkId, LinkName, NodeId, Secret};

use crate::node::Options;

/// Every built-in provider. Adding one is a field here, a variant of [`Tech`], and a crate under `providers/`.
#[derive(Clone)]
pub(crate) struct Providers {
    pub(crate) http: Arc<Http>,
    pub(crate) nats: Arc<Nats>,
    pub(crate) embedded: Arc<Embedded>,
    pub(crate) redis: Arc<Redis>,
    pub(crate) rabbitmq: Arc<Rabbitmq>,
    pub(crate) mqtt: Arc<Mqtt>,
    pub(crate) timer: Arc<Timer>,
}

impl Providers {
    /// Makes each of them for a node, and opens the file of what is embedded. `threads` are those that guests cannot hold up.
    ///
    /// # Errors
    /// That file cannot be used, and why.
    pub(crate) async fn open(
        options: &Options,
        node: NodeId,
        lattice: LatticeId,
        threads: &Handle,
    ) -> Result<Self, String> {
        let store = trellis_embedded::Options { data_dir: options.data_dir.clone() };
        let embedded = tokio::task::spawn_blocking(move || Embedded::open(store).map_err(|why| why.to_string())).await;
        let embedded = embedded.map_err(|why| why.to_string()).flatten();
        let embedded = Arc::new(embedded.map_err(|why| format!("embedded store: {why}"))?);
        let nats = Nats::new(options.nats.as_ref().map(as_in_the_lattice).unwrap_or_default());
        let nats = Arc::new(nats.storing_in(embedded.clone()).connected_on(threads.clone()));
        let rabbitmq = Rabbitmq::new(ledgers(options, &nats, &embedded, "rabbitmq"));
        let (node, lattice, depot) = (node.to_string(), lattice.to_string(), embedded.clone());
        let mqtt = trellis_mqtt::Options { node, lattice, depot };
        Ok(Self {
            http: Arc::new(Http::new(trellis_http::Options { listen_host: options.listen_host, ..Default::default() })),
            redis: Arc::new(Redis::new().connected_on(threads.clone())),
            rabbitmq: Arc::new(rabbitmq.connected_on(threads.clone())),
            mqtt: Arc::new(Mqtt::new(mqtt)),
            timer: Arc::new(Timer::new(timers(options, &nats, &embedded), ledgers(options, &nats, &embedded, "ticks"))),
            nats,
            embedded,
        })
    }

    /// The provider of a technology.
    pub(crate) fn of(&self, tech: Tech) -> Arc<dyn Provider> {
        match tech {
            Tech::Http => self.http.clone(),
            Tech::Nats => self.nats.clone(),
            Tech::Embedded => self.embedded.clone(),
            Tech::Redis => self.redis.clone(),
            Tech::Rabbitmq => self.rabbitmq.clone(),
            Tech::Mqtt => self.mqtt.clone(),
            Tech::Timer => self.timer.clone(),
        }
    }

    /// No new events; those under way end.
    pub(crate) async fn drain(&self) {
        tokio::join!(
            self.http.drain(),
            self.nats.drain(),
            self.embedded.drain(),
            self.redis.drain(),
            self.rabbitmq.drain(),
            self.mqtt.drain(),
            self.timer.drain()
        );
    }
}

/// How the NATS provider reaches the lattice's own server, for links that name none: as the node itself does.
fn as_in_the_lattice(nats: &trellis_bus::Options) -> trellis_nats::Options {
    use trellis_nats::Auth as As;
    trellis_nats::Options {
        default_url: Some(nats.urls.join(",")),
        auth: match &nats.auth {
            Auth::None => As::None,
            Auth::Credentials(path) => As::credentials_file(path),
            Auth::NkeySeed(path) => As::NkeySeed(path.clone()),
            Auth::Jwt { jwt, seed } => As::Jwt { jwt: jwt.clone(), seed: seed.clone() },
            Auth::Password { user, password } => As::Password { user: Secret::new(user), password: password.clone() },
            Auth::Token(token) => As::Token(token.clone()),
        },
        tls: Tls::files(nats.tls.ca.as_deref(), nats.tls.identity.as_ref().map(|(own, key)| (&**own, &**key))),
        inbox_prefix: nats.inbox_prefix.clone(),
    }
}

/// A bucket of the lattice's own in its NATS, as a link that only the node itself may have.
fn own_bucket(options: &Options, name: &str) -> Link {
    let owner: ComponentKey = format!("trellis/{name}").parse().expect("it is a valid key");
    let interfaces = vec!["store".to_owned()];
    Link {
        id: LinkId::new(&owner, &owner, &LinkName::default(), "wasi", "keyvalue", &interfaces),
        component: owner,
        name: LinkName::default(),
        namespace: "wasi".into(),
        package: "keyvalue".into(),
        interfaces,
        config: Config::from_iter([("bucket", format!("TRELLIS_{}_{name}", options.lattice))]),
        delivery: Default::default(),
        secrets: Default::default(),
        part: Default::default(),
    }
}

/// Where the marks of timers are: in the lattice's NATS where there is one, else in this node's own file.
fn timers(options: &Options, nats: &Arc<Nats>, embedded: &Arc<Embedded>) -> Ledger {
    let link = own_bucket(options, "timers");
    let id = link.id.clone();
    if options.nats.is_none() {
        embedded.grant_own(id.clone(), "timers");
        return Ledger::new(embedded.clone(), id, || ready(Ok(())).boxed());
    }
    let grants = nats.clone();
    let grant = move || {
        let (nats, link) = (grants.clone(), link.clone());
        async move { nats.grant_own(link).await }.boxed()
    };
    Ledger::new(nats.clone(), id, grant)
}

/// Where the ledgers of a technology's links are: there as well. Not in one bucket with the marks, since entries end.
fn ledgers(options: &Options, nats: &Arc<Nats>, embedded: &Arc<Embedded>, name: &str) -> Arc<dyn Ledgers> {
    match options.nats {
        Some(_) => Arc::new(trellis_nats::Ledgers::new(nats.clone(), own_bucket(options, name))),
        None => embedded.clone(),
    }
}
