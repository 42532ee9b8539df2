//! Torture: messages through each broker that can give one out again, from several publishers, while nodes are killed and
//! the broker is killed and started anew. At the end every message is accounted for: handled, a dead letter, or dropped.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use redis::Commands as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;
use trellis_mqtt::testing::{Mosquitto, publish};
use trellis_rabbitmq::testing::RabbitServer;
use trellis_redis::testing::RedisServer;

use crate::apps::{app, component, http, link, link_from, provider_at, waking_at};
use crate::client::send;
use crate::lattice::{id, lattice, node};
use crate::node::{DataDir, Node};

/// What handlers are asked for by turns. Few fail on their first attempt: else a trigger would pause by itself, also when
/// those that a broker's death cuts off come to that.
const WORDS: [&str; 24] = [
    "ok",
    "ok",
    "retry-twice",
    "ok",
    "ok",
    "drop",
    "ok",
    "ok",
    "ok",
    "dead-letter",
    "ok",
    "ok", //
    "ok",
    "retry-twice",
    "ok",
    "ok",
    "ok",
    "trap",
    "ok",
    "ok",
    "retry-twice",
    "ok",
    "ok",
    "ok",
];
/// Of so many messages one loops for ever and one sleeps beyond its time: those take long.
const SLOW_EVERY: usize = 400;
const MAX_FAULTS: usize = 3;
/// Sandboxes of one component that the lattice runs at a time: no more messages of a link are in flight at a death.
const PERMITS: usize = 12;
const PUBLISHERS: usize = 2;
/// Lanes of the ordered link, so few that they are full most of the time. Each is one publisher's.
const LANES: usize = PUBLISHERS;
/// After a message whose order is not kept, so that there is trouble while others are published.
const PACE: Duration = Duration::from_millis(10);
/// One round of trouble for so many messages, and how many rounds there are.
const ROUND_OF: usize = 2_000;
const ROUNDS: [usize; 2] = [2, 10];
/// How long nothing must be left to say that nothing is: longer than what waits for its next try can be out of sight.
const SETTLED: Duration = Duration::from_secs(3);
/// How long a publisher waits for RabbitMQ's answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Keys that are read at a time, and dead letters that one list has at most.
const READ_AT_ONCE: usize = 250;
const LISTED_MAX: usize = 1_000;

/// The queues that messages go to. In the second the order of each lane is kept.
const QUEUES: [&str; 2] = ["worker", "keeper"];

/// The queue of a message: a run of all words goes to the same.
fn queue(n: usize) -> &'static str {
    QUEUES[n / WORDS.len() % QUEUES.len()]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Handled,
    Dead,
    Dropped,
}

fn word(n: usize) -> &'static str {
    match n % SLOW_EVERY {
        7 => "loop",
        31 => "sleep",
        _ => WORDS[n % WORDS.len()],
    }
}

/// How a message must end, and after how many attempts.
fn end(n: usize) -> (End, usize) {
    match word(n) {
        "dead-letter" => (End::Dead, 1),
        "trap" | "loop" | "sleep" => (End::Dead, MAX_FAULTS),
        "drop" => (End::Dropped, 1),
        "retry-twice" => (End::Handled, 3),
        _ => (End::Handled, 1),
    }
}

/// 500 messages, or as many as `TRELLIS_TORTURE` says: `make torture`.
fn messages() -> usize {
    std::env::var("TRELLIS_TORTURE").ok().map_or(500, |count| count.parse().unwrap())
}

enum Broker {
    Embedded,
    Nats,
    Redis(RedisServer),
    Rabbit(RabbitServer),
    Mqtt(Mosquitto),
}

impl Broker {
    /// Its provider, the provider's config, and what names a queue.
    fn source(&self) -> (&'static str, String, &'static str) {
        match self {
            Self::Embedded => ("embedded", String::new(), "queue"),
            Self::Nats => ("nats", String::new(), "stream"),
            Self::Redis(server) => ("redis", format!("url: '{}'", server.url), "stream"),
            Self::Rabbit(server) => ("rabbitmq", format!("url: '{}'", server.url), "queue"),
            Self::Mqtt(server) => ("mqtt", format!("url: '{}'", server.url), "topic"),
        }
    }

    /// The provider of the store in which accounts are kept, and its config.
    fn store(&self) -> (&'static str, String) {
        match self {
            Self::Embedded | Self::Mqtt(_) => ("embedded", String::new()),
            Self::Nats | Self::Rabbit(_) => ("nats", "bucket: ACCOUNTS, create: 'true'".into()),
            Self::Redis(server) => ("redis", format!("url: '{}', prefix: 'accounts:'", server.url)),
        }
    }

    fn manifest(&self) -> String {
        let uses = || link("store", "wasi:keyvalue/store, atomics, batch");
        let worker = |name: &&str| {
            let scale = format!("{{type: spreadscaler, properties: {{instances: {PERMITS}}}}}");
            component(name, "test_account", "limits: {timeout: 3s}", &[uses(), scale])
        };
        let (tech, server, names) = self.source();
        let wakes = |name: &&str| {
            let order = if *name == "keeper" {
                ", delivery.order_by: 'header:lane', delivery.on_dead_letter: continue"
            } else {
                ""
            };
            let config = format!(
                "{{{names}: {name}, create: 'true', delivery.max_faults: '{MAX_FAULTS}', delivery.backoff.initial: 50ms, \
                 delivery.backoff.max: 1s{order}}}"
            );
            let link = link_from(name, "trellis:messaging/handler", name, &config);
            // Two links of one provider for the same interface differ by their names.
            link.replacen("properties: {", &format!("properties: {{name: {name}, "), 1)
        };
        let links: Vec<_> = QUEUES.iter().map(wakes).collect();
        let (store, config) = self.store();
        let here = "{type: spreadscaler, properties: {instances: 5, spread: [{name: here, requirements: {n: '1'}}]}}";
        let window = component("window", "test_kv", "", &[uses(), here.into()]);
        let fixed = [window, http("window", ""), provider_at("store", store, &config)];
        let workers = QUEUES.iter().map(worker);
        app("torture", &workers.chain(fixed).chain([waking_at("queue", tech, &server, &links)]).collect::<Vec<_>>())
    }
}

/// Publishes a body with a lane to a queue. Where it is not answered the message may be there or not.
type Publish = Box<dyn FnMut(&str, &str, &str) -> Result<(), String> + Send>;

fn said(why: impl fmt::Display) -> String {
    why.to_string()
}

fn by_http(admin: Arc<Mutex<SocketAddr>>) -> Publish {
    Box::new(move |queue, lane, body| {
        let request = json!({"subject": queue, "body_base64": BASE64.encode(body), "headers": [["lane", lane]]});
        let (at, json) = (*admin.lock().unwrap(), [("content-type", "application/json")]);
        let sent = send(at, "POST", "/v1/publish", &json, request.to_string().as_bytes()).map_err(said)?;
        let stored = sent.status == 200 && sent.text().contains("\"receivers\":1");
        if stored { Ok(()) } else { Err(sent.text()) }
    })
}

fn by_nats(url: &str) -> Publish {
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(async_nats::connect(url)).unwrap();
    let context = {
        let _within = runtime.enter();
        async_nats::jetstream::new(client)
    };
    Box::new(move |queue, lane, body| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("lane", lane);
        let (queue, body) = (queue.to_owned(), body.to_owned().into());
        runtime.block_on(async {
            let sent = context.publish_with_headers(queue, headers, body).await.map_err(said)?;
            sent.await.map(drop).map_err(said)
        })
    })
}

fn by_redis(url: &str) -> Publish {
    let client = redis::Client::open(url).unwrap();
    let mut open = None;
    Box::new(move |queue, lane, body| {
        let mut connection = open.take().map_or_else(|| client.get_connection(), Ok).map_err(said)?;
        let sent: Result<String, _> = connection.xadd(queue, "*", &[("body", body), ("lane", lane)]);
        sent.map_err(said)?;
        open = Some(connection);
        Ok(())
    })
}

fn by_rabbitmq(url: &str) -> Publish {
    let (runtime, url) = (Runtime::new().unwrap(), url.to_owned());
    let mut open: Option<lapin::Channel> = None;
    Box::new(move |queue, lane, body| {
        let published = async {
            let channel = match open.take() {
                Some(channel) => channel,
                None => {
                    let connection = lapin::Connection::connect(&url, Default::default()).await.map_err(said)?;
                    let channel = connection.create_channel().await.map_err(said)?;
                    channel.confirm_select(Default::default()).await.map_err(said)?;
                    channel
                }
            };
            let options = lapin::options::BasicPublishOptions { mandatory: true, ..Default::default() };
            let mut headers = lapin::types::FieldTable::default();
            headers.insert("lane".into(), lapin::types::AMQPValue::LongString(lane.into()));
            // Named: what is not cannot be told from its equals once its node or the server has died.
            let named = lapin::BasicProperties::default().with_message_id(body.into()).with_headers(headers);
            let on_disk = named.with_delivery_mode(2);
            let sent = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), on_disk).await;
            let confirmed = sent.map_err(said)?.await.map_err(said)?;
            if !matches!(confirmed, lapin::Confirmation::Ack(None)) {
                return Err(format!("{confirmed:?}"));
            }
            open = Some(channel);
            Ok(())
        };
        // The client may wait for ever where its connection breaks just as it is made.
        runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, published).await.map_err(said)? })
    })
}

fn by_mqtt(port: u16) -> Publish {
    Box::new(move |queue, lane, body| publish(port, (queue, &[("lane", lane)], body.as_bytes())).map_err(said))
}

/// The nodes, their NATS, and the broker.
struct Torture {
    broker: Broker,
    nats: Option<NatsServer>,
    nodes: Vec<Node>,
    /// The admin API of the first node.
    admin: Arc<Mutex<SocketAddr>>,
    /// How often a node or the broker was killed.
    deaths: usize,
}

impl Torture {
    fn start(broker: Broker, nodes: usize) -> Self {
        // A node alone needs none.
        let nats = (!matches!(broker, Broker::Embedded) || nodes > 1).then(|| NatsServer::start(true));
        let nodes = match &nats {
            Some(nats) => lattice(nats, nodes),
            None => vec![alone(&DataDir::new())],
        };
        let admin = Arc::new(Mutex::new(admin(&nodes[0])));
        // Returns when the app is ready. RabbitMQ may lose a queue that is seconds old when it is killed: a link to it is
        // ready only when all that it will ever use are older.
        nodes[0].deploy(&broker.manifest());
        Self { broker, nats, nodes, admin, deaths: 0 }
    }

    fn publisher(&self) -> Publish {
        match (&self.broker, &self.nats) {
            (Broker::Redis(server), _) => by_redis(&server.url),
            (Broker::Rabbit(server), _) => by_rabbitmq(&server.url),
            (Broker::Mqtt(server), _) => by_mqtt(server.port),
            (Broker::Nats, Some(nats)) => by_nats(&nats.url),
            _ => by_http(self.admin.clone()),
        }
    }

    /// Publishes these messages while the broker dies, then a node. How often each was published again since the broker
    /// had not answered.
    fn round(&mut self, number: usize, messages: Range<usize>) -> BTreeMap<usize, usize> {
        let publishers: Vec<_> = (0..PUBLISHERS).map(|_| self.publisher()).collect();
        let places: BTreeMap<_, _> = messages.map(|n| (n, queue(n))).collect();
        thread::scope(|scope| {
            let publishing: Vec<_> = publishers
                .into_iter()
                .enumerate()
                .map(|(me, publish)| {
                    let mine: Vec<_> = places.iter().filter(|(n, _)| *n % PUBLISHERS == me).collect();
                    scope.spawn(move || publish_all(publish, &mine))
                })
                .collect();
            self.trouble(number);
            publishing.into_iter().flat_map(|publishing| publishing.join().unwrap()).collect()
        })
    }

    fn trouble(&mut self, number: usize) {
        thread::sleep(20 * PACE);
        match (&mut self.broker, &mut self.nats) {
            (Broker::Redis(server), _) => server.restart(),
            (Broker::Rabbit(server), _) => server.restart(),
            (Broker::Nats, Some(nats)) => nats.restart(),
            // Killed, it would lose what it had said it has: it is told to end.
            (Broker::Mqtt(server), _) => {
                server.stop();
                server.restart();
            }
            _ => {}
        }
        thread::sleep(20 * PACE);
        // Who pulls what is ordered, and then whoever.
        let victim = self.puller().filter(|_| number.is_multiple_of(2)).unwrap_or(number % self.nodes.len());
        let data_dir = self.nodes.remove(victim).kill();
        let back = match &self.nats {
            Some(nats) => node(nats, &data_dir, victim + 1, &[]),
            None => alone(&data_dir),
        };
        self.nodes.insert(victim, back);
        *self.admin.lock().unwrap() = admin(&self.nodes[0]);
        self.deaths += 1 + usize::from(!matches!(self.broker, Broker::Embedded));
    }

    /// Which node has the lease of the ordered queue; none where it needs none.
    fn puller(&self) -> Option<usize> {
        let status = self.nodes[0].trellis(&["status", "torture", "-o", "json"]);
        let status: Value = serde_json::from_str(&status.stdout).ok()?;
        let lease = status["links"].as_array()?.iter().find_map(|link| link["lease"]["node"].as_str())?;
        self.nodes.iter().position(|node| id(node) == lease)
    }

    fn until_settled(&self, patience: Duration) {
        let (began, mut unsettled) = (Instant::now(), Instant::now());
        while unsettled.elapsed() < SETTLED {
            let asked = self.nodes[0].trellis(&["triggers", "-o", "json"]);
            let status: Value = serde_json::from_str(&asked.stdout).unwrap_or_default();
            let triggers = status["triggers"].as_array().cloned().unwrap_or_default();
            let none = |trigger: &Value| ["waiting", "claimed", "held"].iter().all(|what| trigger[what] == 0);
            if triggers.len() != QUEUES.len() || !triggers.iter().all(none) {
                unsettled = Instant::now();
            }
            assert!(began.elapsed() < patience, "still not settled: {status:#} {}", asked.stderr);
            thread::sleep(SETTLED / 10);
        }
    }

    /// The numbers that these keys hold.
    fn numbers(&self, keys: impl Iterator<Item = String>) -> Vec<usize> {
        let (at, keys) = (self.nodes[0].at("torture"), keys.collect::<Vec<_>>());
        let read = |keys: &[String]| send(at, "PATCH", "/", &[], keys.join("\n").as_bytes()).unwrap().ok();
        let texts = keys.chunks(READ_AT_ONCE).map(read).collect::<String>();
        texts.lines().map(|number| if number == "-" { 0 } else { number.parse().unwrap() }).collect()
    }

    /// How many dead letters there are of each message.
    fn letters(&self) -> BTreeMap<usize, usize> {
        let mut letters = BTreeMap::new();
        for component in QUEUES {
            for reason in ["refused", "max-attempts", "max-faults", "max-age", "killed-its-node"] {
                let of = format!("torture/{component}");
                let listed = self.nodes[0].dead_letters(&of, &["--reason", reason]);
                assert!(listed.len() < LISTED_MAX, "there are more than one list has");
                for letter in listed {
                    let (_, n) = letter["body_text"].as_str().unwrap().split_once(' ').unwrap();
                    *letters.entry(n.parse().unwrap()).or_default() += 1;
                }
            }
        }
        letters
    }
}

fn alone(data_dir: &DataDir) -> Node {
    Node::start_in(data_dir, &["--label", "n=1"])
}

fn admin(node: &Node) -> SocketAddr {
    node.admin.strip_prefix("http://").unwrap().parse().unwrap()
}

fn publish_all(mut publish: Publish, mine: &[(&usize, &&str)]) -> BTreeMap<usize, usize> {
    let mut again = BTreeMap::new();
    for (n, queue) in mine {
        // Only one queue keeps an order.
        let in_order = **queue == "keeper";
        let lane = if in_order { (**n % LANES).to_string() } else { String::new() };
        let body = format!("{} {n}", word(**n));
        while publish(queue, &lane, &body).is_err() {
            *again.entry(**n).or_default() += 1;
            thread::sleep(5 * PACE);
        }
        if !in_order {
            thread::sleep(PACE);
        }
    }
    again
}

/// What became of all messages.
#[derive(Default)]
struct Account {
    handled: usize,
    dead: usize,
    dropped: usize,
    /// Those that ended as they must not, or not at all.
    wrong: Vec<String>,
    /// Ends beyond the first of a message.
    twice: usize,
    /// Attempts beyond those that a message takes.
    more: usize,
    /// Times that a publisher was not answered, and published again.
    published_again: usize,
    /// Messages of a lane that were begun, or ended, after a later one had begun.
    late: usize,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handled, dead, dropped, wrong, twice, more, published_again, late } = self;
        write!(
            f,
            "{handled} handled, {dead} dead letters, {dropped} dropped, {} lost or wrong, {late} late; ",
            wrong.len()
        )?;
        write!(f, "{twice} ended twice, {more} attempts more than without deaths, {published_again} published again")
    }
}

impl Account {
    fn of(torture: &Torture, count: usize, again: &BTreeMap<usize, usize>) -> Self {
        let numbers = |what: &str| torture.numbers((0..count).map(|n| format!("{what}/{n}")));
        let (seen, done, letters) = (numbers("seen"), numbers("done"), torture.letters());
        let late = torture.numbers((0..LANES).map(|lane| format!("late/{lane}"))).iter().sum();
        let mut account = Self { late, published_again: again.values().sum(), ..Self::default() };
        for n in 0..count {
            let (seen, done, dead) = (seen[n], done[n], letters.get(&n).copied().unwrap_or_default());
            let was = match (seen > 0, done > 0, dead > 0) {
                (_, true, false) => Some(End::Handled),
                (_, false, true) => Some(End::Dead),
                (true, false, false) => Some(End::Dropped),
                _ => None,
            };
            let ((must, tries), copies) = (end(n), 1 + again.get(&n).copied().unwrap_or_default());
            match must {
                _ if was != Some(must) => {
                    account.wrong.push(format!("{} {n}: seen {seen}, done {done}, dead letters {dead}", word(n)));
                }
                End::Handled => account.handled += 1,
                End::Dead => account.dead += 1,
                End::Dropped => account.dropped += 1,
            }
            account.twice += (done + dead).saturating_sub(copies);
            account.more += seen.saturating_sub(tries * copies);
        }
        account
    }
}

#[track_caller]
fn torture(broker: Broker, nodes: usize) {
    let (count, mut torture) = (messages(), Torture::start(broker, nodes));
    let rounds = (count / ROUND_OF).clamp(ROUNDS[0], ROUNDS[1]);
    let part = |round: usize| round * count / rounds;
    let mut again = BTreeMap::new();
    for round in 0..rounds {
        again.append(&mut torture.round(round, part(round)..part(round + 1)));
    }
    torture.until_settled(Duration::from_secs(180 + count as u64 / 20));
    let account = Account::of(&torture, count, &again);
    println!("{}: {count} messages, {} deaths: {account}", torture.broker.source().0, torture.deaths);
    assert!(account.wrong.is_empty(), "not as they must: {:#?}", account.wrong);
    assert_eq!(account.late, 0, "the order of each lane is kept");
    let in_flight = torture.deaths * PERMITS * QUEUES.len();
    assert!(
        account.twice.max(account.more) <= in_flight,
        "only what was in flight at a death is tried again: {account}"
    );
}

#[test]
fn torture_embedded() {
    torture(Broker::Embedded, 1);
}

/// The queue is on one of the nodes, and handled on all.
#[test]
fn torture_embedded_at_home() {
    torture(Broker::Embedded, 3);
}

#[test]
fn torture_nats() {
    torture(Broker::Nats, 3);
}

#[test]
fn torture_redis() {
    torture(Broker::Redis(RedisServer::start()), 2);
}

#[test]
fn torture_rabbitmq() {
    torture(Broker::Rabbit(RabbitServer::start()), 3);
}

/// The home pulls what is ordered, each node its part of what is not.
#[test]
fn torture_mqtt() {
    // It drops what comes beyond 1,000 for a node that is away, unless told otherwise.
    torture(Broker::Mqtt(Mosquitto::start_with("allow_anonymous true\nmax_queued_messages 0")), 3);
}
