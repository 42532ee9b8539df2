//! Density: thousands of apps on one node, each of its own component, each used once and then idle. Half are behind HTTP, a
//! quarter behind queues of their own that are embedded, a quarter behind JetStream; the server counts what goes through it.
//!
//! `BENCH_APPS` says how many (10,000 take most of an hour to compile and deploy), `BENCH_IDLE_S` how long they idle, and
//! `BENCH_DATA` names a folder that keeps the node's data from one run to the next, so that only the first one deploys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;

use crate::Scale;
use crate::apps::{app, examples, free_address, link_from, waking};
use crate::client::{get, send};
use crate::cold::{at_path, distinct};
use crate::node::{DataDir, Node};
use crate::table::{Table, Times, mib, ms};

/// Apps that share a stream: a server takes 1,000 consumers of one.
const APPS_OF_A_STREAM: usize = 2_000;

/// The manifest of the nth app: behind HTTP or behind an embedded queue, in turn.
pub(crate) fn manifest(nth: usize, address: SocketAddr) -> String {
    if nth.is_multiple_of(2) {
        return at_path(&format!("a{nth}"), address);
    }
    taking(nth, "embedded", &format!("{{queue: {}}}", subject(nth)))
}

/// The same, with every second queue on JetStream.
fn with_jetstream(nth: usize, address: SocketAddr) -> String {
    if nth % 4 != 3 {
        return manifest(nth, address);
    }
    let stream = format!("{{stream: S{}, subject: {}}}", nth / APPS_OF_A_STREAM, subject(nth));
    taking(nth, "nats", &stream)
}

fn taking(nth: usize, tech: &str, from: &str) -> String {
    let source = link_from("taker", "trellis:messaging/handler", "queue", from);
    let component = "\n    - name: taker\n      type: component\n      properties: {image: guest.wasm}\n".to_owned();
    app(&format!("a{nth}"), &[component, waking("queue", tech, &[source])])
        .replace("{name: a", "{annotations: {version: v1}, name: a")
}

/// What wakes the nth app.
fn subject(nth: usize) -> String {
    format!("s{}.q{nth}", nth / APPS_OF_A_STREAM)
}

pub(crate) fn bench(scale: Scale) -> String {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let apps = number("BENCH_APPS").unwrap_or(scale.or(10_000, 6)) as usize;
    let idle = Duration::from_secs(number("BENCH_IDLE_S").unwrap_or(scale.or(300, 1)).into());
    let kept = std::env::var_os("BENCH_DATA").map(PathBuf::from);
    let broker = Broker::start(apps);
    let (data, address, prepared) = prepare(apps, kept, &broker);

    let began = Instant::now();
    let node = Node::start_in(&data, &broker.args());
    while !get(node.api(), "/readyz").is_ok_and(|ready| ready.status == 200) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let started = began.elapsed();
    let fresh = node.memory_bytes();
    let cold = use_each(&node, apps, address);
    let first = handled(&node, apps / 2);
    let used = node.memory_bytes();
    let (cpu, traffic) = (node.cpu(), broker.traffic());
    std::thread::sleep(idle);
    let a_second = |what: f64| what / idle.as_secs_f64();
    let cpu = a_second((node.cpu() - cpu).as_secs_f64());
    let after = broker.traffic();
    let [messages, bytes] = [0, 1].map(|n| a_second(after[n] - traffic[n]));
    let idled = node.memory_bytes();
    let again = use_each(&node, apps.min(400), address);

    let mut table = Table::new(&["what", "figure", "goal"]);
    let mut row = |what: &str, figure: String, goal: &str| table.row(&[what.into(), figure, goal.into()]);
    row("from the start of the process until ready", ms(started.as_secs_f64() * 1e3), "10 s");
    row("memory (proportional) when ready", mib(fresh), "");
    row("first reply of each HTTP app, p50", ms(cold.quantile_ms(0.5)), "");
    row("first reply of each HTTP app, p99", ms(cold.quantile_ms(0.99)), "5 ms");
    row("first message of each queue, its wait and its run, p50", ms(first.quantile_ms(0.5)), "");
    row("first message of each queue, its wait and its run, p99", ms(first.quantile_ms(0.99)), "5 ms");
    row("memory when each was used once", mib(used), "");
    row(&format!("memory after {} s idle", idle.as_secs()), mib(idled), "1,024 MiB");
    row("processor while idle", format!("{:.2} %", cpu * 100.0), "1 %");
    row("broker traffic while idle, to and from it", format!("{messages:.1} messages/s, {:.1} kB/s", bytes / 1e3), "");
    row("reply after that, p99", ms(again.quantile_ms(0.99)), "5 ms");
    format!(
        "{apps} apps, half behind HTTP paths, a quarter behind embedded queues and a quarter behind JetStream. \
         {prepared}\n\n{}",
        table.finish()
    )
}

/// A server with the streams of all apps.
struct Broker {
    server: NatsServer,
    monitor: SocketAddr,
}

impl Broker {
    fn start(apps: usize) -> Self {
        let monitor = free_address();
        let server = NatsServer::start_with(true, &["--http_port", &monitor.port().to_string()]);
        let made = async {
            let context = jetstream::new(async_nats::connect(&server.url).await.unwrap());
            for nth in 0..apps.div_ceil(APPS_OF_A_STREAM) {
                let subjects = (0..apps).filter(|app| app % 4 == 3 && app / APPS_OF_A_STREAM == nth).map(subject);
                let (name, subjects) = (format!("S{nth}"), subjects.collect());
                context
                    .create_stream(jetstream::stream::Config { name, subjects, ..Default::default() })
                    .await
                    .unwrap();
            }
        };
        Runtime::new().unwrap().block_on(made);
        Self { server, monitor }
    }

    /// What a node is started with.
    fn args(&self) -> [&str; 3] {
        ["--nats", &self.server.url, "--bootstrap"]
    }

    /// Messages and bytes that went to and from it so far.
    fn traffic(&self) -> [f64; 2] {
        let said: Value = serde_json::from_str(&get(self.monitor, "/varz").unwrap().ok()).unwrap();
        ["msgs", "bytes"]
            .map(|what| ["in", "out"].iter().map(|way| said[format!("{way}_{what}")].as_f64().unwrap()).sum())
    }
}

/// A data directory with all apps in it, and where they listen.
fn prepare(apps: usize, kept: Option<PathBuf>, broker: &Broker) -> (DataDir, SocketAddr, String) {
    let said = kept.as_ref().map(|folder| folder.join("prepared.txt"));
    if let (Some(folder), Some(text)) = (&kept, said.as_ref().and_then(|said| std::fs::read_to_string(said).ok())) {
        let (address, prepared) = text.split_once('\n').unwrap();
        return (in_folder(Some(folder)), address.parse().unwrap(), prepared.trim().into());
    }
    let data = in_folder(kept.as_deref());
    let address = free_address();
    let read = |guest: &str| std::fs::read(examples().join(format!("build/{guest}.wasm"))).unwrap();
    let (http, queued) = (read("test_least"), read("test_ack"));
    let node = Node::start_in(&data, &broker.args());
    let began = Instant::now();
    for nth in 0..apps {
        let (wasm, name) = if nth.is_multiple_of(2) { (&http, "hello") } else { (&queued, "taker") };
        let digest = node.put(&distinct(wasm, nth));
        node.post(&with_jetstream(nth, address), &BTreeMap::from([(name, digest)]));
        if nth % 1_000 == 999 {
            eprintln!("{} of {apps} apps after {:?}", nth + 1, began.elapsed());
        }
    }
    node.ready(&format!("a{}", apps - 1), Duration::from_millis(50));
    let prepared = format!(
        "Each component was compiled on its own ({} KiB of Rust for HTTP, {} KiB for queues); compiling and deploying all of \
         them took {:.0} s.",
        http.len() >> 10,
        queued.len() >> 10,
        began.elapsed().as_secs_f64()
    );
    drop(node.kill());
    if let Some(said) = said {
        std::fs::write(said, format!("{address}\n{prepared}\n")).unwrap();
    }
    (data, address, prepared)
}

/// A data directory that lies in a folder which stays, or one of its own.
fn in_folder(kept: Option<&Path>) -> DataDir {
    let data = DataDir::new();
    if let Some(folder) = kept {
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::os::unix::fs::symlink(folder.join("data"), data.path()).unwrap();
    }
    data
}

/// Uses each app once: a request, or a message. How long the requests took.
fn use_each(node: &Node, apps: usize, address: SocketAddr) -> Times {
    let mut times = Times::default();
    for nth in 0..apps {
        if nth.is_multiple_of(2) {
            let began = Instant::now();
            let response = get(address, &format!("/a{nth}")).unwrap();
            times.push(began.elapsed());
            assert_eq!(response.status, 200, "{}", response.text());
            continue;
        }
        let body = base64::engine::general_purpose::STANDARD.encode("once");
        let request = json!({ "subject": subject(nth), "body_base64": body }).to_string();
        let headers = [("content-type", "application/json")];
        let reply = send(node.api(), "POST", "/v1/publish", &headers, request.as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    times
}

/// How long each queue's only message waited until it was pulled, to a millisecond, and then ran, as the node itself counted
/// it.
fn handled(node: &Node, queues: usize) -> Times {
    let started = Instant::now();
    loop {
        let page = get(node.api(), "/metrics").unwrap().ok();
        let (in_queue, run) = (
            by_app(&page, "trellis_trigger_in_queue_seconds_sum"),
            by_app(&page, "messaging_process_duration_seconds_sum"),
        );
        if run.len() == queues {
            let mut times = Times::default();
            run.iter().for_each(|(app, seconds)| times.push(Duration::from_secs_f64(seconds + in_queue[app])));
            return times;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{} of {queues} queues had their message handled",
            run.len()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One figure of the page of metrics, by app.
fn by_app<'a>(page: &'a str, name: &str) -> BTreeMap<&'a str, f64> {
    let of_app = |line: &'a str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix("{app=\"")?.split_once("} ")?;
        Some((labels.split_once('"')?.0, value.parse().ok()?))
    };
    page.lines().filter_map(of_app).collect()
}
