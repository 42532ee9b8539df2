//! Queues: message -> fresh sandbox -> settled, beside a bare loop in one process that pulls a batch, runs each message of
//! it in a sandbox of its own, and acknowledges.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer, stream};
use futures::StreamExt as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use trellis_bus::testing::NatsServer;

use crate::Scale;
use crate::admin::BODY;
use crate::apps::{app, component, link_from, waking_at};
use crate::bare::Handler;
use crate::node::Node;
use crate::table::{Figures, Table, Times, count, ms, times};

/// How many messages are given out at a time. For Trellis: as many permits as that, and up to 64 or as many more are being
/// settled. `BENCH_BATCHES="1 64"` takes others.
const BATCHES: &[usize] = &[1, 4, 16, 64, 256];

/// So many messages wait, or so many batches: what a process does once is to count for little.
const MESSAGES_MIN: usize = 20_000;
const BATCHES_MIN: usize = 200;

/// How often the node is asked how many it has done: often enough to be exact, seldom enough to cost it nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// And whether they are off the queue, once all have begun.
const SETTLED_LOOK_EVERY: Duration = Duration::from_millis(2);

const JETSTREAM: &str = "JetStream";

pub(crate) fn bench(scale: Scale) -> String {
    let rounds = scale.rounds(3);
    let mut table = Table::new(&[
        "queue",
        "batch, or permits",
        "bare loop, per second",
        "Trellis, per second",
        "beside the bare loop",
        "pull and acknowledge alone",
    ]);
    let runtime = Runtime::new().unwrap();
    let handler = Arc::new(Handler::load("test_ack"));
    let given = std::env::var("BENCH_BATCHES").ok();
    let given = given.map(|text| text.split(' ').map(|batch| batch.parse().unwrap()).collect::<Vec<usize>>());
    let batches = given.unwrap_or_else(|| BATCHES.to_vec());
    for &batch in batches.iter().take(scale.or(batches.len(), 1)) {
        let messages = scale.or(MESSAGES_MIN.max(batch * BATCHES_MIN), 320);
        for (name, bare, ours) in [
            (
                "embedded (redb, fsync)",
                bare_redb as fn(&Arc<Handler>, usize, usize, &Runtime) -> f64,
                embedded as fn(usize, usize, &Runtime) -> f64,
            ),
            (JETSTREAM, bare_jetstream, on_jetstream),
        ] {
            let (mut peer, mut trellis, mut alone) = (Figures::default(), Figures::default(), Figures::default());
            for _ in 0..rounds {
                if name == JETSTREAM {
                    alone.push(pulled(None, batch, messages, &runtime));
                }
                peer.push(bare(&handler, batch, messages, &runtime));
                trellis.push(ours(batch, messages, &runtime));
            }
            table.row(&[
                name.into(),
                batch.to_string(),
                peer.shown(count),
                trellis.shown(count),
                times(trellis.median() / peer.median()),
                alone.shown(count),
            ]);
        }
    }
    format!(
        "{MESSAGES_MIN} messages of {} bytes wait, or {BATCHES_MIN} batches of them where that is more; {rounds} rounds in \
         turn. The bare loop runs the messages of a batch at once, then commits the batch or acknowledges each of them; it has \
         no retries, limits, deadlines or counts. Trellis runs at most as many at a time, and settles what has run beside that, \
         up to 64 messages or as many as run; what counts is that all are acknowledged and off the queue.\n\n{}\n{}",
        BODY.len(),
        table.finish(),
        latency(scale, &handler, &runtime)
    )
}

/// What one message takes that finds nothing else to do, as the server sees it.
fn latency(scale: Scale, handler: &Arc<Handler>, runtime: &Runtime) -> String {
    let messages = scale.or(2_000, 20);
    let mut table = Table::new(&["one at a time, on JetStream", "p50", "p99", "p50, added to the bare loop"]);
    let bare = |handler| one_by_one(messages, runtime, |server| bare_taker(server, handler, runtime));
    let rows = [
        ("pull and acknowledge alone", bare(None)),
        ("bare loop: pull, sandbox, acknowledge", bare(Some(handler.clone()))),
        ("Trellis", one_by_one(messages, runtime, our_taker)),
    ];
    let peer = rows[1].1.quantile_ms(0.5);
    for (name, took) in &rows {
        let [p50, p99] = [0.5, 0.99].map(|of| took.quantile_ms(of));
        let added = if *name == "Trellis" { ms(p50 - peer) } else { String::new() };
        table.row(&[(*name).into(), ms(p50), ms(p99), added]);
    }
    format!(
        "{messages} messages, each published when the one before was acknowledged; from then until the server has the \
         acknowledgement.\n\n{}",
        table.finish()
    )
}

/// Publishes messages to a taker that waits for them, each when the one before was acknowledged.
fn one_by_one<T>(messages: usize, runtime: &Runtime, start: impl FnOnce(&NatsServer) -> T) -> Times {
    let server = NatsServer::start(true);
    runtime.block_on(filled(&server, 1));
    let taker = start(&server);
    let times = runtime.block_on(async {
        let client = async_nats::connect(&server.url).await.unwrap();
        // What is sent to the server as an acknowledgement reaches whoever listens, too.
        let mut heard = client.subscribe("$JS.ACK.BENCH.>").await.unwrap();
        client.flush().await.unwrap();
        let mut times = Times::default();
        for _ in 0..messages {
            let began = Instant::now();
            client.publish("bench", BODY.into()).await.unwrap();
            heard.next().await.unwrap();
            times.push(began.elapsed());
        }
        times
    });
    drop(taker);
    times
}

/// A bare loop. Returns when it has taken the first message.
fn bare_taker(server: &NatsServer, handler: Option<Arc<Handler>>, runtime: &Runtime) -> AbortOnDrop {
    let (url, (began, begins)) = (server.url.clone(), oneshot::channel());
    let taking = runtime.spawn(async move {
        let context = jetstream::new(async_nats::connect(url).await.unwrap());
        let stream = context.get_stream("BENCH").await.unwrap();
        let consumer = stream.create_consumer(bare_consumer()).await.unwrap();
        let (mut messages, mut began) = (consumer.messages().await.unwrap(), Some(began));
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            if let Some(handler) = &handler {
                handler.handle("bench", &message.payload).await;
            }
            match began.take() {
                // The first is off before anybody listens to what is said of the others.
                Some(began) => {
                    message.double_ack().await.unwrap();
                    began.send(()).unwrap();
                }
                None => message.ack().await.unwrap(),
            }
        }
    });
    runtime.block_on(begins).unwrap();
    AbortOnDrop(taking)
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn our_taker(server: &NatsServer) -> Node {
    let node = Node::start(&["--nats", &server.url, "--bootstrap"]);
    drained(&node, 1, || deploy(&node, &taking("nats", "", 1, "{stream: BENCH}")));
    node
}

/// Runs a batch, each message in its own sandbox, all at once.
async fn run_batch(handler: &Arc<Handler>, bodies: Vec<Vec<u8>>) {
    let mut running = JoinSet::new();
    for body in bodies {
        let handler = handler.clone();
        running.spawn(async move { handler.handle("bench", &body).await });
    }
    while let Some(ran) = running.join_next().await {
        ran.unwrap();
    }
}

const WAITING: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("waiting");

/// A file of messages: read a batch, run it, delete it, with a commit that is on disk when it returns.
fn bare_redb(handler: &Arc<Handler>, batch: usize, messages: usize, runtime: &Runtime) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::create(folder.path().join("queue.redb")).unwrap();
    let filling = database.begin_write().unwrap();
    {
        let mut waiting = filling.open_table(WAITING).unwrap();
        (0..messages as u64).for_each(|key| drop(waiting.insert(key, BODY).unwrap()));
    }
    filling.commit().unwrap();
    let began = Instant::now();
    runtime.block_on(async {
        loop {
            let (keys, bodies): (Vec<u64>, Vec<Vec<u8>>) = {
                let table = database.begin_read().unwrap().open_table(WAITING).unwrap();
                let rows = table.iter().unwrap().take(batch).map(|row| row.unwrap());
                rows.map(|(key, body)| (key.value(), body.value().to_vec())).unzip()
            };
            if keys.is_empty() {
                return;
            }
            run_batch(handler, bodies).await;
            let done = database.begin_write().unwrap();
            {
                let mut table = done.open_table(WAITING).unwrap();
                keys.iter().for_each(|key| drop(table.remove(key).unwrap()));
            }
            done.commit().unwrap();
        }
    });
    messages as f64 / began.elapsed().as_secs_f64()
}

fn bare_jetstream(handler: &Arc<Handler>, batch: usize, messages: usize, runtime: &Runtime) -> f64 {
    pulled(Some(handler), batch, messages, runtime)
}

/// Messages that are pulled, run where there is a handler, and acknowledged.
fn pulled(handler: Option<&Arc<Handler>>, batch: usize, messages: usize, runtime: &Runtime) -> f64 {
    let server = NatsServer::start(true);
    runtime.block_on(async {
        let stream = filled(&server, messages).await;
        let consumer = stream.create_consumer(bare_consumer()).await.unwrap();
        let began = Instant::now();
        let mut left = messages;
        while left > 0 {
            let pulled = consumer.fetch().max_messages(batch).messages().await.unwrap();
            let mut running = JoinSet::new();
            let mut pulled = std::pin::pin!(pulled);
            while let Some(message) = pulled.next().await {
                let (message, handler) = (message.unwrap(), handler.cloned());
                running.spawn(async move {
                    if let Some(handler) = handler {
                        handler.handle("bench", &message.payload).await;
                    }
                    message.ack().await.unwrap();
                });
                left -= 1;
            }
            while let Some(ran) = running.join_next().await {
                ran.unwrap();
            }
        }
        messages as f64 / began.elapsed().as_secs_f64()
    })
}

fn bare_consumer() -> consumer::pull::Config {
    consumer::pull::Config { durable_name: Some("bare".into()), max_ack_pending: 100_000, ..Default::default() }
}

/// A stream with so many messages.
async fn filled(server: &NatsServer, messages: usize) -> stream::Stream {
    let context = jetstream::new(async_nats::connect(&server.url).await.unwrap());
    let config = stream::Config { name: "BENCH".into(), subjects: vec!["bench".into()], ..Default::default() };
    let stream = context.create_stream(config).await.unwrap();
    let mut stored = std::collections::VecDeque::new();
    for _ in 0..messages {
        stored.push_back(context.publish("bench", BODY.into()).await.unwrap());
        if stored.len() > 256 {
            stored.pop_front().unwrap().await.unwrap();
        }
    }
    for one in stored {
        one.await.unwrap();
    }
    stream
}

/// The app: one handler behind one queue, with as many permits as a batch has messages.
pub(crate) fn taking(tech: &str, server: &str, batch: usize, config: &str) -> String {
    let scaler = format!("{{type: spreadscaler, properties: {{instances: {batch}}}}}");
    let source = link_from("taker", "trellis:messaging/handler", "queue", config);
    app("bench", &[component("taker", "test_ack", "", &[scaler]), waking_at("queue", tech, server, &[source])])
}

fn embedded(batch: usize, messages: usize, _: &Runtime) -> f64 {
    let node = Node::start(&[]);
    let app = taking("embedded", "", batch, "{queue: bench}");
    // The queue is made by the first deploy, and takes messages while nobody pulls them.
    node.deploy(&app);
    node.trellis(&["undeploy", "bench"]).ok();
    node.publish_all("bench", messages);
    drained(&node, messages, || deploy(&node, &app))
}

fn on_jetstream(batch: usize, messages: usize, runtime: &Runtime) -> f64 {
    let server = NatsServer::start(true);
    runtime.block_on(filled(&server, messages));
    let node = Node::start(&["--nats", &server.url, "--bootstrap"]);
    let app = taking("nats", "", batch, "{stream: BENCH}");
    drained(&node, messages, || deploy(&node, &app))
}

fn deploy(node: &Node, app: &str) {
    node.deploy_with(app, &["--no-wait"]).ok();
}

/// How fast messages are acknowledged once `start` has them taken, from when the first had begun until the last is off the
/// queue.
pub(crate) fn drained(node: &Node, messages: usize, start: impl FnOnce()) -> f64 {
    start();
    let begun = || node.asked("bench")["components"][0]["holders"][0]["events"].as_u64().unwrap_or(0) as usize;
    let (mut first, mut began) = (0, Instant::now());
    loop {
        let now = begun();
        if first == 0 {
            (first, began) = (now, Instant::now());
        }
        if now >= messages {
            break;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    loop {
        let trigger = node.trigger();
        if [&trigger["waiting"], &trigger["claimed"]].iter().all(|left| **left == 0) {
            let took = began.elapsed();
            let acknowledged = [&trigger["attempts"], &trigger["outcomes"]["ack"]];
            assert!(acknowledged.iter().all(|done| **done == messages), "{trigger:#}");
            return (messages - first) as f64 / took.as_secs_f64();
        }
        std::thread::sleep(SETTLED_LOOK_EVERY);
    }
}
