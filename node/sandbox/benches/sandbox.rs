//! What a fresh sandbox costs: the whole of it (make, instantiate, call, drop) for an HTTP hello of WASI 0.2, and what a
//! cold component costs on top. Guests: `tests/guests`; build them once with `cargo test -p trellis-sandbox`.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use trellis_sandbox::{Component, Engine, Level, Limits, Options, Outside, Setup};
use trellis_wire::{Answer, Body, Call, CallError, Config, Digest, Event, EventId, Outcome};

struct Nothing;

#[async_trait::async_trait]
impl Outside for Nothing {
    async fn call(&self, _: &str, _: Call) -> Result<Answer, CallError> {
        Err(CallError::Denied("nothing is granted here".into()))
    }

    fn log(&self, _: Level, _: &str, _: &str) {}
}

fn hello(component: &Component, config: &Arc<Config>) -> impl Future<Output = Outcome> {
    let setup = Setup {
        event_id: "018f0000-0000-7000-8000-000000000000".parse::<EventId>().expect("a UUID"),
        component: "bench/hello".parse().expect("a key"),
        source: String::new(),
        config: config.clone(),
        secrets: Arc::default(),
        limits: Limits { memory_bytes: 64 << 20, timeout: Duration::from_secs(10), reply: None },
        outside: Arc::new(Nothing),
        held: Box::new(()),
    };
    let request = http::Request::get("http://bench.local/hello").body(Body::empty()).expect("a request");
    component.run(Event::Http(request), setup)
}

fn sandbox(criterion: &mut Criterion) {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/trellis/target");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(home, PathBuf::from);
    let cache = tempfile::tempdir().expect("a directory");
    let cache_dir = cache.path().join("compiled");
    let options = Options { cache_dir, sandboxes_max: 100, memory_bytes_max: 1 << 30, wasi_p3: true };
    let engine = Engine::new(options).expect("the engine starts");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let config = Arc::new(Config::default());
    for guest in ["classic", "modern"] {
        let path = target.join(format!("guests/wasm32-wasip2/debug/guest_{guest}.wasm"));
        let wasm = std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let digest = Digest::new([guest.len() as u8; 32]);
        engine.compile(digest, &wasm).expect("it compiles");
        let component = engine.load(digest).expect("it loads");
        criterion.bench_function(&format!("hello, fresh sandbox, {guest}"), |bench| {
            bench.to_async(&runtime).iter(|| async { black_box(hello(&component, &config).await.expect("hello")) });
        });
        criterion.bench_function(&format!("load, then hello, {guest}"), |bench| {
            bench.to_async(&runtime).iter(|| async {
                let component = engine.load(digest).expect("it loads");
                black_box(hello(&component, &config).await.expect("hello"))
            });
        });
    }
}

criterion_group!(benches, sandbox);
criterion_main!(benches);
