//! Cold: the code is compiled and on disk, this process has never loaded it, and a request comes. And how long a deploy of
//! what the node knows already takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Scale;
use crate::apps::{examples, free_address, hello};
use crate::client::get;
use crate::node::Node;
use crate::table::{Table, Times, ms};

/// A component of its own: the same code with another name in a custom section, so another digest.
pub(crate) fn distinct(wasm: &[u8], nth: usize) -> Vec<u8> {
    let payload = [&[5][..], b"bench", nth.to_string().as_bytes()].concat();
    let length = u8::try_from(payload.len()).unwrap();
    [wasm, &[0, length], &payload].concat()
}

/// An app behind a path of its own on a listener that all share.
pub(crate) fn at_path(name: &str, address: SocketAddr) -> String {
    hello(name, "v1", address, "guest.wasm")
        .replace("address: '", &format!("routing_mode: path, path: /{name}, address: '"))
}

pub(crate) fn bench(scale: Scale) -> String {
    let apps = scale.or(200, 3);
    let address = free_address();
    let wasm = std::fs::read(examples().join("build/hello.wasm")).unwrap();
    let node = Node::start(&[]);
    let began = Instant::now();
    let names: Vec<String> = (0..apps).map(|nth| format!("a{nth}")).collect();
    for (nth, name) in names.iter().enumerate() {
        let digest = node.put(&distinct(&wasm, nth));
        node.post(&at_path(name, address), &BTreeMap::from([("hello", digest)]));
    }
    let prepared = began.elapsed();
    all_ready(&node, &names);
    // Another process, which has loaded none of them.
    let node = Node::start_in(&node.kill(), &[]);
    all_ready(&node, &names);
    let (mut cold, mut warm) = (Times::default(), Times::default());
    for times in [&mut cold, &mut warm] {
        for name in &names {
            let began = Instant::now();
            let response = get(address, &format!("/{name}")).unwrap();
            times.push(began.elapsed());
            assert_eq!(response.status, 200, "{}", response.text());
        }
    }
    let deploys = deploys(&node, &wasm, address, scale);
    let mut table = Table::new(&["what", "how many", "p50", "p99", "goal"]);
    let mut row = |what: &str, times: &Times, goal: &str| {
        let (p50, p99) = (times.quantile_ms(0.5), times.quantile_ms(0.99));
        table.row(&[what.into(), times.len().to_string(), ms(p50), ms(p99), goal.into()]);
    };
    row("first reply, never loaded by this process", &cold, "p99 of 5 ms");
    row("second reply, loaded", &warm, "");
    row("deploy of a known artifact, until ready", &deploys, "50 ms");
    format!(
        "{apps} distinct components of {} KiB (the Rust hello), compiled and deployed in {:.0} s, then another process, for \
         which the files are in the page cache. A new connection for each request.\n\n{}",
        wasm.len() >> 10,
        prepared.as_secs_f64(),
        table.finish()
    )
}

/// From the request to deploy to the first answer that says ready.
fn deploys(node: &Node, wasm: &[u8], address: SocketAddr, scale: Scale) -> Times {
    let mut times = Times::default();
    let digest = node.put(&distinct(wasm, 0));
    for nth in 0..scale.or(50, 2) {
        let name = format!("d{nth}");
        let began = Instant::now();
        node.post(&at_path(&name, address), &BTreeMap::from([("hello", digest.clone())]));
        node.ready(&name, Duration::from_millis(1));
        times.push(began.elapsed());
    }
    times
}

fn all_ready(node: &Node, names: &[String]) {
    for name in names {
        node.ready(name, Duration::from_millis(20));
    }
}
