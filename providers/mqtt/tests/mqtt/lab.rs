//! A node's provider and its disk, and a server beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use trellis_embedded::{Embedded, OpenError, Pulled};
use trellis_mqtt::testing::Mosquitto;
use trellis_mqtt::{Mqtt, Options};
use trellis_provider::Provider as _;
use trellis_provider::delivery::DeadLetter;
use trellis_provider::testing::Broker;
use trellis_provider::testing::lab::{self, Node, PATIENCE, until};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message, OrderBy, Part};

/// A node's disk.
pub(crate) struct Home(tempfile::TempDir);

/// A process of a node on its disk.
pub(crate) struct Process {
    pub(crate) mqtt: Mqtt,
    pub(crate) embedded: Arc<Embedded>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn open(&self) -> Process {
        self.try_open().unwrap()
    }

    /// The next process, once the tasks of the one before, which was dropped, have let go of the disk.
    pub(crate) async fn open_again(&self) -> Process {
        let mut opened = None;
        until("the disk is free", || {
            opened = self.try_open().ok();
            opened.is_some()
        })
        .await;
        opened.unwrap()
    }

    fn try_open(&self) -> Result<Process, OpenError> {
        let embedded = Arc::new(Embedded::open(trellis_embedded::Options { data_dir: self.0.path().into() })?);
        let node = self.0.path().display().to_string();
        let options = Options { node, lattice: "lattice".into(), depot: embedded.clone() };
        Ok(Process { mqtt: Mqtt::new(options), embedded })
    }
}

impl Process {
    /// What holds a link's messages.
    pub(crate) fn queue(&self, link: &Link) -> Pulled {
        self.find(link).unwrap()
    }

    fn find(&self, link: &Link) -> Option<Pulled> {
        self.embedded.kept(&self.mqtt.queue(&link.id, &link.component), &link.component)
    }

    /// Wakes the node's component, and waits until the subscription stands.
    pub(crate) async fn wake(&self, link: &Link, node: &Node) {
        self.mqtt.wake(link.clone(), node.permits(link)).await.unwrap();
        until("the subscription stands", || self.mqtt.health(&link.id).is_ok()).await;
    }

    pub(crate) async fn until_letters(&self, link: &Link, count: usize) -> Vec<DeadLetter> {
        lab::until_letters(&self.queue(link), count).await
    }

    pub(crate) async fn until_settled(&self, link: &Link) {
        lab::until_settled(&self.queue(link)).await;
    }
}

/// Publishes to a server, from a node of its own.
pub(crate) struct Publisher {
    process: Process,
    link: LinkId,
    _home: Home,
}

impl Publisher {
    pub(crate) async fn start(url: &str, protocol: &str) -> Self {
        let home = Home::new();
        let process = home.open();
        let link = lab::link("messaging", &[("url", url), ("protocol", protocol), ("for", "the test")]);
        process.mqtt.grant(link.clone()).await.unwrap();
        until("the publisher is connected", || process.mqtt.health(&link.id).is_ok()).await;
        Self { process, link: link.id, _home: home }
    }

    pub(crate) async fn send(&self, message: Message) -> Result<(), CallError> {
        let answer = self.process.mqtt.call(&self.link, Call::Publish(message)).await?;
        assert!(matches!(answer, Answer::Published));
        Ok(())
    }

    /// Publishes, again while the server does not say that it has the message.
    pub(crate) async fn publish(&self, topic: &str, body: &str) {
        let message = Message { subject: topic.into(), body: body.to_owned().into(), ..Message::default() };
        let began = Instant::now();
        while let Err(why) = self.send(message.clone()).await {
            assert!(began.elapsed() < PATIENCE, "{why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A server, a publisher of it, and a node.
pub(crate) struct Lab {
    pub(crate) server: Mosquitto,
    pub(crate) process: Process,
    pub(crate) publisher: Publisher,
    protocol: &'static str,
    /// What its links ask for.
    asks: fn(&mut Link),
    _home: Home,
}

impl Lab {
    pub(crate) async fn start(protocol: &'static str) -> Self {
        let (server, home) = (Mosquitto::start(true), Home::new());
        let publisher = Publisher::start(&server.url, protocol).await;
        Self { server, process: home.open(), publisher, protocol, asks: |_| {}, _home: home }
    }

    /// Whose links keep the order of each topic.
    pub(crate) async fn in_order(protocol: &'static str) -> Self {
        let asks = |link: &mut Link| {
            link.delivery.order_by = Some(OrderBy::Subject);
            link.part = Part::All;
        };
        Self { asks, ..Self::start(protocol).await }
    }

    /// Whose links the server gives each message once.
    pub(crate) async fn once(protocol: &'static str) -> Self {
        let asks = |link: &mut Link| link.config.set("qos", "0");
        Self { asks, ..Self::start(protocol).await }
    }

    /// Whose links are capped for the lattice, at its home.
    pub(crate) async fn capped(protocol: &'static str) -> Self {
        let asks = |link: &mut Link| {
            link.delivery.max_in_flight = Some(2);
            link.part = Part::All;
        };
        Self { asks, ..Self::start(protocol).await }
    }

    pub(crate) fn link(&self, config: &[(&str, &str)]) -> Link {
        let server = [("url", self.server.url.as_str()), ("protocol", self.protocol)];
        let mut link = lab::link("messaging", &[&server, config].concat());
        (self.asks)(&mut link);
        link
    }
}

#[async_trait]
impl Broker for Lab {
    type Queue = Pulled;

    async fn queue(&self, name: &str) -> Pulled {
        let link = self.link(&[("topic", name)]);
        if let Some(queue) = self.process.find(&link) {
            return queue;
        }
        // Whose component gets no permit: what comes waits for the test.
        self.process.wake(&link, &Node::new(0)).await;
        if link.delivery.order_by.is_some() {
            // It would hold some without one, too. What comes is stored all the same.
            self.process.mqtt.remove(&link.id).await;
        }
        self.process.queue(&link)
    }

    async fn publish(&self, name: &str, message: Message) {
        self.publisher.send(Message { subject: name.into(), ..message }).await.unwrap();
    }

    fn has_headers(&self) -> bool {
        self.protocol == "5"
    }
}
