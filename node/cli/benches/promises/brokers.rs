//! Redis, RabbitMQ and MQTT: message -> fresh sandbox -> acknowledged, beside a bare loop on the same server that takes as many
//! messages at a time, runs each in a sandbox of its own, and acknowledges it.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamReadOptions, StreamReadReply};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use trellis_mqtt::testing::Mosquitto;
use trellis_rabbitmq::testing::RabbitServer;
use trellis_redis::testing::RedisServer;

use crate::Scale;
use crate::admin::BODY;
use crate::bare::Handler;
use crate::node::Node;
use crate::queue::{drained, taking};
use crate::table::{Figures, Table, count, times};

/// How many messages are at work at a time.
const AT_ONCE: &[usize] = &[1, 64];

/// What a queue is called on each server.
const QUEUE: &str = "bench";

/// A kind of server, and what is done with one by hand.
struct Broker {
    name: &'static str,
    /// As a manifest names it: `trellis://redis`.
    tech: &'static str,
    /// Its address, and what runs for as long as it is kept.
    start: fn() -> (String, Box<dyn Any>),
    /// Makes the queue.
    prepare: for<'a> fn(&'a str) -> BoxFuture<'a, ()>,
    /// Puts so many messages there.
    fill: for<'a> fn(&'a str, usize) -> BoxFuture<'a, ()>,
    /// Empties it, so many at a time.
    bare: for<'a> fn(&'a str, Running, usize, usize) -> BoxFuture<'a, ()>,
}

const BROKERS: &[Broker] = &[
    Broker {
        name: "Redis Streams",
        tech: "redis",
        start: || {
            let server = RedisServer::start();
            (server.url.clone(), Box::new(server))
        },
        prepare: |url| prepare_redis(url).boxed(),
        fill: |url, messages| fill_redis(url, messages).boxed(),
        bare: |url, running, at_once, messages| bare_redis(url, running, at_once, messages).boxed(),
    },
    Broker {
        name: "RabbitMQ, a quorum queue",
        tech: "rabbitmq",
        start: || {
            let server = RabbitServer::start();
            (server.url.clone(), Box::new(server))
        },
        prepare: |url| prepare_rabbitmq(url).boxed(),
        fill: |url, messages| fill_rabbitmq(url, messages).boxed(),
        bare: |url, running, at_once, messages| bare_rabbitmq(url, running, at_once, messages).boxed(),
    },
    Broker {
        name: "MQTT 5, mosquitto",
        tech: "mqtt",
        start: || {
            let server = Mosquitto::start_with("allow_anonymous true\nmax_queued_messages 0");
            (server.url.clone(), Box::new(server))
        },
        prepare: |url| prepare_mqtt(url).boxed(),
        fill: |url, messages| fill_mqtt(url, messages).boxed(),
        bare: |url, running, at_once, messages| bare_mqtt(url, running, at_once, messages).boxed(),
    },
];

pub(crate) fn bench(scale: Scale) -> String {
    let messages = scale.or(5_000, 64);
    let rounds = scale.rounds(3);
    let mut table = Table::new(&[
        "broker",
        "at a time, or permits",
        "bare loop, per second",
        "Trellis, per second",
        "beside the bare loop",
    ]);
    let runtime = Runtime::new().unwrap();
    let handler = Arc::new(Handler::load("test_ack"));
    for broker in BROKERS {
        for &at_once in AT_ONCE {
            let (mut peer, mut trellis) = (Figures::default(), Figures::default());
            for _ in 0..rounds {
                let (url, server) = (broker.start)();
                peer.push(runtime.block_on(async {
                    (broker.prepare)(&url).await;
                    (broker.fill)(&url, messages).await;
                    let began = Instant::now();
                    (broker.bare)(&url, Running::new(&handler, at_once), at_once, messages).await;
                    messages as f64 / began.elapsed().as_secs_f64()
                }));
                drop(server);
                let (url, server) = (broker.start)();
                trellis.push(ours(broker, &url, at_once, messages, &runtime));
                drop(server);
            }
            table.row(&[
                broker.name.into(),
                at_once.to_string(),
                peer.shown(count),
                trellis.shown(count),
                times(trellis.median() / peer.median()),
            ]);
        }
    }
    format!(
        "{messages} messages of {} bytes wait on the server as it is installed; {rounds} rounds in turn. The bare loop has as \
         many at work, and acknowledges each when its sandbox is done: it has no retries, dead letters, limits or counts.\n\n{}",
        BODY.len(),
        table.finish()
    )
}

/// The app is there, and pauses, while its queue is filled.
fn ours(broker: &Broker, url: &str, permits: usize, messages: usize, runtime: &Runtime) -> f64 {
    let node = Node::start(&[]);
    let server = format!("url: '{url}'");
    node.deploy(&taking(broker.tech, &server, permits, &format!("{{queue: {QUEUE}, create: 'true'}}")));
    node.trellis(&["pause", "bench/taker"]).ok();
    runtime.block_on((broker.fill)(url, messages));
    drained(&node, messages, || drop(node.trellis(&["resume", "bench/taker"]).ok()))
}

/// Messages, each in a sandbox of its own, at most so many together.
struct Running {
    handler: Arc<Handler>,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Running {
    fn new(handler: &Arc<Handler>, at_once: usize) -> Self {
        Self { handler: handler.clone(), room: Arc::new(Semaphore::new(at_once)), tasks: JoinSet::new() }
    }

    /// Runs one, and then this. Returns when there was room for it.
    async fn run(&mut self, body: Vec<u8>, acknowledge: impl Future<Output = ()> + Send + 'static) {
        let (handler, permit) = (self.handler.clone(), self.room.clone().acquire_owned().await.unwrap());
        self.tasks.spawn(async move {
            handler.handle(QUEUE, &body).await;
            acknowledge.await;
            drop(permit);
        });
        while let Some(ran) = self.tasks.try_join_next() {
            ran.unwrap();
        }
    }

    /// Returns when all are done.
    async fn end(mut self) {
        while let Some(ran) = self.tasks.join_next().await {
            ran.unwrap();
        }
    }
}

async fn redis(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn prepare_redis(url: &str) {
    let () = redis(url).await.xgroup_create_mkstream(QUEUE, "bare", "0").await.unwrap();
}

async fn fill_redis(url: &str, messages: usize) {
    let mut connection = redis(url).await;
    let mut all = redis::pipe();
    for _ in 0..messages {
        all.xadd(QUEUE, "*", &[("body", BODY)]).ignore();
    }
    let () = all.query_async(&mut connection).await.unwrap();
}

async fn bare_redis(url: &str, mut running: Running, at_once: usize, messages: usize) {
    let mut connection = redis(url).await;
    let options = StreamReadOptions::default().group("bare", "one").count(at_once);
    let mut left = messages;
    while left > 0 {
        let read: StreamReadReply = connection.xread_options(&[QUEUE], &[">"], &options).await.unwrap();
        for entry in read.keys.into_iter().flat_map(|stream| stream.ids) {
            left -= 1;
            let (body, mut connection) = (entry.get("body").unwrap(), connection.clone());
            let acknowledge = async move {
                let _: usize = connection.xack(QUEUE, "bare", &[entry.id]).await.unwrap();
            };
            running.run(body, acknowledge).await;
        }
    }
    running.end().await;
}

async fn rabbitmq(url: &str) -> lapin::Channel {
    let connection = lapin::Connection::connect(url, Default::default()).await.unwrap();
    connection.create_channel().await.unwrap()
}

async fn prepare_rabbitmq(url: &str) {
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    rabbitmq(url).await.queue_declare(QUEUE.into(), options, quorum).await.unwrap();
}

async fn fill_rabbitmq(url: &str, messages: usize) {
    let channel = rabbitmq(url).await;
    channel.confirm_select(Default::default()).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..messages {
        let on_disk = lapin::BasicProperties::default().with_delivery_mode(2);
        sent.push(channel.basic_publish("".into(), QUEUE.into(), Default::default(), BODY, on_disk).await.unwrap());
    }
    for one in sent {
        one.await.unwrap();
    }
}

async fn bare_rabbitmq(url: &str, mut running: Running, at_once: usize, messages: usize) {
    let channel = rabbitmq(url).await;
    channel.basic_qos(u16::try_from(at_once).unwrap(), Default::default()).await.unwrap();
    let given = channel.basic_consume(QUEUE.into(), "bare".into(), Default::default(), Default::default());
    let mut given = given.await.unwrap().take(messages);
    while let Some(delivery) = given.next().await {
        let delivery = delivery.unwrap();
        let acknowledge = async move { assert!(delivery.acker.ack(Default::default()).await.unwrap()) };
        running.run(delivery.data, acknowledge).await;
    }
    running.end().await;
}

/// A client that holds up to so many messages, and what it does.
fn mqtt(url: &str, id: &str, at_once: u16) -> (AsyncClient, EventLoop) {
    let (host, port) = url.rsplit_once("//").unwrap().1.rsplit_once(':').unwrap();
    let mut options = MqttOptions::new(id, host, port.parse().unwrap());
    options.set_clean_start(false).set_manual_acks(true).set_receive_maximum(Some(at_once));
    options.set_session_expiry_interval(Some(3_600));
    AsyncClient::new(options, 1_024)
}

/// What it is told next.
async fn told(events: &mut EventLoop) -> Packet {
    loop {
        if let Event::Incoming(packet) = events.poll().await.unwrap() {
            return packet;
        }
    }
}

async fn prepare_mqtt(url: &str) {
    let (client, mut events) = mqtt(url, "bare", 1);
    client.subscribe(QUEUE, QoS::AtLeastOnce).await.unwrap();
    while !matches!(told(&mut events).await, Packet::SubAck(_)) {}
}

async fn fill_mqtt(url: &str, messages: usize) {
    let (client, mut events) = mqtt(url, "publisher", 1);
    let publishing = tokio::spawn(async move {
        for _ in 0..messages {
            client.publish(QUEUE, QoS::AtLeastOnce, false, BODY).await.unwrap();
        }
        client
    });
    let mut left = messages;
    while left > 0 {
        left -= usize::from(matches!(told(&mut events).await, Packet::PubAck(_)));
    }
    publishing.await.unwrap();
}

async fn bare_mqtt(url: &str, mut running: Running, at_once: usize, messages: usize) {
    let (client, mut events) = mqtt(url, "bare", u16::try_from(at_once).unwrap());
    let (give, mut given) = mpsc::unbounded_channel();
    // Whoever reads the connection writes the acknowledgements, too.
    let reading = tokio::spawn(async move {
        loop {
            if let Packet::Publish(message) = told(&mut events).await
                && give.send(message).is_err()
            {
                return;
            }
        }
    });
    for _ in 0..messages {
        let (message, client) = (given.recv().await.unwrap(), client.clone());
        let body = message.payload.to_vec();
        running.run(body, async move { client.ack(&message).await.unwrap() }).await;
    }
    running.end().await;
    reading.abort();
}
