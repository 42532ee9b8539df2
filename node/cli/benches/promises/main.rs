//! The promised numbers, each measured beside its peer in one run: `make bench`, or `make bench BENCH="http cold"`.
//!
//! Every bench starts what it measures as people would (the built `trellis up`, `wasmtime serve`, `nats-server`), lets
//! the contestants take turns, and gives a table: medians, and in brackets the lowest and highest round. A reply that is
//! not 2xx never counts. `quick` makes each as short as it can be and still go through all of its steps, so that a test
//! can see that it has not rotted; its figures mean nothing. `write` puts the tables into BENCHMARKS.md.

#![expect(clippy::unwrap_used, reason = "a bench that cannot do a step has nothing to measure")]

#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/it/apps.rs"]
mod apps;
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/it/client.rs"]
mod client;
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/it/node.rs"]
mod node;
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/it/trellis.rs"]
mod trellis;

mod admin;
mod alive;
mod bare;
mod brokers;
mod call;
mod cold;
mod control;
mod count;
mod density;
mod http;
mod load;
mod machine;
mod overload;
mod paced;
mod page;
mod peers;
mod queue;
mod table;

/// The bare loops have what the node has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A bench: its name, and what makes its section of the page.
type Bench = (&'static str, fn(Scale) -> String);

/// In the order of the page.
const BENCHES: &[Bench] = &[
    ("http", http::bench),
    ("queue", queue::bench),
    ("brokers", brokers::bench),
    ("cold", cold::bench),
    ("density", density::bench),
    ("alive", alive::bench),
    ("call", call::bench),
    ("overload", overload::bench),
    ("control", control::bench),
    ("count", count::bench),
];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    quick: bool,
}

impl Scale {
    /// One figure for real, one for a run that only shows that all steps go.
    pub(crate) const fn or<T: Copy>(self, real: T, quick: T) -> T {
        if self.quick { quick } else { real }
    }

    /// How many rounds the contestants take turns for: `BENCH_ROUNDS`, or so many.
    pub(crate) fn rounds(self, real: u32) -> u32 {
        let given = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
        self.or(given.unwrap_or(real), 1)
    }
}

fn main() {
    // Cargo says `--bench` to whatever it runs as one.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let is = |word: &str| words.iter().any(|given| given == word);
    let unknown = words
        .iter()
        .find(|word| !matches!(word.as_str(), "quick" | "write") && !BENCHES.iter().any(|(name, _)| name == word));
    if let Some(unknown) = unknown {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        panic!("no bench is called {unknown}: {}, and the words quick and write", names.join(", "));
    }
    BENCHES.iter().for_each(|(name, _)| page::check(name));
    let any_named = BENCHES.iter().any(|(name, _)| is(name));
    let scale = Scale { quick: is("quick") };
    let machine = machine::described();
    println!("{machine}\n");
    for (name, bench) in BENCHES.iter().filter(|(name, _)| !any_named || is(name)) {
        let section = bench(scale);
        println!("{section}");
        if is("write") && !scale.quick {
            page::write(name, &format!("{machine}\n\n{section}"));
        }
    }
}
