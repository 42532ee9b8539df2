//! Density: thousands of apps on one node, each of its own component, each used once and then idle.
//!
//! `BENCH_APPS` says how many (10,000 take about ten minutes to compile and deploy), `BENCH_IDLE_S` how long they idle, and
//! `BENCH_DATA` names a folder that keeps the node's data from one run to the next, so that only the first one deploys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::json;

use crate::Scale;
use crate::apps::{app, examples, free_address, link_from, waking};
use crate::client::{get, send};
use crate::cold::{at_path, distinct};
use crate::node::{DataDir, Node};
use crate::table::{Table, Times, mib, ms};

/// The manifest of the nth app: behind HTTP or behind a queue, in turn.
pub(crate) fn manifest(nth: usize, address: SocketAddr) -> String {
    if nth.is_multiple_of(2) {
        return at_path(&format!("a{nth}"), address);
    }
    let source = link_from("taker", "trellis:messaging/handler", "queue", &format!("{{queue: q{nth}}}"));
    let component = "\n    - name: taker\n      type: component\n      properties: {image: guest.wasm}\n".to_owned();
    app(&format!("a{nth}"), &[component, waking("queue", "embedded", &[source])])
        .replace("{name: a", "{annotations: {version: v1}, name: a")
}

pub(crate) fn bench(scale: Scale) -> String {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let apps = number("BENCH_APPS").unwrap_or(scale.or(10_000, 6)) as usize;
    let idle = Duration::from_secs(number("BENCH_IDLE_S").unwrap_or(scale.or(300, 1)).into());
    let kept = std::env::var_os("BENCH_DATA").map(PathBuf::from);
    let (data, address, prepared) = prepare(apps, kept);

    let began = Instant::now();
    let node = Node::start_in(&data, &[]);
    while get(node.api(), "/readyz").is_ok_and(|ready| ready.status != 200) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let started = began.elapsed();
    let fresh = node.memory_bytes();
    let cold = use_each(&node, apps, address);
    let used = node.memory_bytes();
    let cpu = node.cpu();
    std::thread::sleep(idle);
    let cpu = (node.cpu() - cpu).as_secs_f64() / idle.as_secs_f64();
    let idled = node.memory_bytes();
    let again = use_each(&node, apps.min(400), address);

    let mut table = Table::new(&["what", "figure", "goal"]);
    let mut row = |what: &str, figure: String, goal: &str| table.row(&[what.into(), figure, goal.into()]);
    row("from the start of the process until ready", ms(started.as_secs_f64() * 1e3), "10 s");
    row("memory (proportional) when ready", mib(fresh), "");
    row("first reply of each HTTP app, p50", ms(cold.quantile_ms(0.5)), "");
    row("first reply of each HTTP app, p99", ms(cold.quantile_ms(0.99)), "5 ms");
    row("memory when each was used once", mib(used), "");
    row(&format!("memory after {} s idle", idle.as_secs()), mib(idled), "1,024 MiB");
    row("processor while idle", format!("{:.2} %", cpu * 100.0), "1 %");
    row("reply after that, p99", ms(again.quantile_ms(0.99)), "5 ms");
    format!("{apps} apps, half behind HTTP paths and half behind queues of their own. {prepared}\n\n{}", table.finish())
}

/// A data directory with all apps in it, and where they listen.
fn prepare(apps: usize, kept: Option<PathBuf>) -> (DataDir, SocketAddr, String) {
    let said = kept.as_ref().map(|folder| folder.join("prepared.txt"));
    if let (Some(folder), Some(text)) = (&kept, said.as_ref().and_then(|said| std::fs::read_to_string(said).ok())) {
        let (address, prepared) = text.split_once('\n').unwrap();
        return (in_folder(Some(folder)), address.parse().unwrap(), prepared.trim().into());
    }
    let data = in_folder(kept.as_deref());
    let address = free_address();
    let read = |guest: &str| std::fs::read(examples().join(format!("build/{guest}.wasm"))).unwrap();
    let (http, queued) = (read("test_least"), read("test_ack"));
    let node = Node::start_in(&data, &[]);
    let began = Instant::now();
    for nth in 0..apps {
        let (wasm, name) = if nth.is_multiple_of(2) { (&http, "hello") } else { (&queued, "taker") };
        let digest = node.put(&distinct(wasm, nth));
        node.post(&manifest(nth, address), &BTreeMap::from([(name, digest)]));
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
        let request = json!({ "subject": format!("q{nth}"), "body_base64": body }).to_string();
        let headers = [("content-type", "application/json")];
        let reply = send(node.api(), "POST", "/v1/publish", &headers, request.as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    times
}
