//! HTTP: the same component behind Trellis and behind `wasmtime serve`, the same load on the same cores, in turn.

use crate::Scale;
use crate::apps::{hello, image};
use crate::load::{Ran, wrk};
use crate::node::Node;
use crate::peers::{POOLING, Serve, TUNED};
use crate::table::{Figures, Table, count, ms, times};

const CONNECTIONS: u32 = 32;

/// The guests, and whether they are of WASI 0.3, which `wasmtime serve` gives one sandbox for many requests.
const GUESTS: &[(&str, &str, bool)] = &[
    ("Rust, WASI 0.2", "hello", false),
    ("Rust, WASI 0.3", "test_hello_async", true),
    ("JavaScript", "js_hello", false),
    ("Python", "py_hello", false),
];

pub(crate) fn bench(scale: Scale) -> String {
    let mut section = format!(
        "`wrk -t1 -c{CONNECTIONS}` on the same cores, {} rounds of {} s each, contestants in turn. Fresh: each request has a \
         sandbox of its own. `wasmtime` is wasmtime-cli as `cargo install` builds it; Trellis is built as released, with thin \
         LTO and mimalloc.\n\n",
        scale.rounds(5),
        scale.or(4, 1)
    );
    let mut table =
        Table::new(&["guest", "who", "fresh", "2xx per second", "p50", "p99", "beside the first", "not 2xx"]);
    // `BENCH_GUESTS=Rust`: those whose name begins so.
    let named = std::env::var("BENCH_GUESTS").unwrap_or_default();
    let guests = GUESTS.iter().filter(|(name, ..)| name.starts_with(&named));
    for (name, guest, is_p3) in guests.take(scale.or(GUESTS.len(), 2)) {
        measure(name, guest, *is_p3, scale, &mut table);
    }
    section += &table.finish();
    section
}

/// Who takes part, with what it measured so far.
struct Contestant {
    name: &'static str,
    fresh: bool,
    at: std::net::SocketAddr,
    runs: Vec<Ran>,
}

impl Contestant {
    fn figures(&self, of: impl Fn(&Ran) -> f64) -> Figures {
        self.runs.iter().map(of).collect()
    }
}

fn measure(name: &str, guest: &str, is_p3: bool, scale: Scale, table: &mut Table) {
    let image = image(guest);
    let path = image.strip_prefix("file://").unwrap();
    let once: &[&str] = if is_p3 { &["--max-instance-reuse-count=1"] } else { &[] };
    let node = Node::start(&[]);
    node.deploy(&hello("bench", "v1", "127.0.0.1:0", &image));
    let pooling = Serve::start(path, &[POOLING, once].concat());
    let tuned = Serve::start(path, &[TUNED, once].concat());
    let contestant = |name, fresh, at| Contestant { name, fresh, at, runs: Vec::new() };
    let mut all = vec![
        contestant("`wasmtime serve -O pooling-allocator=y`", true, pooling.at),
        contestant("`wasmtime serve`, tuned by hand", true, tuned.at),
    ];
    let reusing = is_p3.then(|| Serve::start(path, POOLING));
    all.extend(reusing.as_ref().map(|reusing| contestant("`wasmtime serve`, its default", false, reusing.at)));
    all.push(contestant("Trellis", true, node.at("bench")));
    for one in &all {
        wrk(one.at, "/", CONNECTIONS, 1);
    }
    for _ in 0..scale.rounds(5) {
        for one in &mut all {
            one.runs.push(wrk(one.at, "/", CONNECTIONS, scale.or(4, 1)));
        }
    }
    let first = all[0].figures(|run| run.good_per_s).median();
    for one in &all {
        let rate = one.figures(|run| run.good_per_s);
        table.row(&[
            name.into(),
            one.name.into(),
            if one.fresh { "yes" } else { "no" }.into(),
            rate.shown(count),
            one.figures(|run| run.p50_ms).shown(ms),
            one.figures(|run| run.p99_ms).shown(ms),
            times(rate.median() / first),
            one.runs.iter().map(|run| run.bad).sum::<u64>().to_string(),
        ]);
    }
}
