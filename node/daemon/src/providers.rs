//! The built-in providers of a node: one value for each technology, whatever the number of links.

use std::sync::Arc;

use trellis_embedded::Embedded;
use trellis_http::Http;
use trellis_manifest::Tech;
use trellis_mqtt::Mqtt;
use trellis_nats::Nats;
use trellis_provider::Provider;
use trellis_rabbitmq::Rabbitmq;
use trellis_redis::Redis;
use trellis_timer::Timer;

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
