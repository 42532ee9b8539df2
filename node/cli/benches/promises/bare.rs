//! What a bare loop of one's own would do to run a guest in a fresh sandbox: wasmtime, tuned by hand, WASI 0.2, and nothing
//! around it: no limits, no deadline, no permit, no link, no log, no count.

use std::path::Path;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::apps::image;

mod handling {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package bench:bare; world guest { export trellis:messaging/handler@0.1.0; }",
        world: "bench:bare/guest",
        exports: { default: async },
    });
}

mod calling {
    wasmtime::component::bindgen!({
        path: "../../examples/test-guests/ping/wit",
        world: "ping",
        exports: { default: async },
    });
}

/// A sandbox's host side.
struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

fn engine() -> Engine {
    let mut pool = PoolingAllocationConfig::new();
    pool.linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10)
        .decommit_batch_size(16)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    // What only guests of WASI 0.3 need, and others pay for.
    config.wasm_component_model_async(false).concurrency_support(false);
    Engine::new(&config).unwrap()
}

fn load(engine: &Engine, guest: &str) -> (Component, Linker<Host>) {
    let image = image(guest);
    let component = Component::from_file(engine, Path::new(image.strip_prefix("file://").unwrap())).unwrap();
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    (component, linker)
}

fn store(engine: &Engine) -> Store<Host> {
    Store::new(engine, Host { wasi: WasiCtx::builder().build(), table: ResourceTable::new() })
}

/// A guest that messages wake.
pub(crate) struct Handler {
    engine: Engine,
    pre: handling::GuestPre<Host>,
}

impl Handler {
    pub(crate) fn load(guest: &str) -> Self {
        let engine = engine();
        let (component, linker) = load(&engine, guest);
        let pre = handling::GuestPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
        Self { engine, pre }
    }

    /// One message, one sandbox.
    pub(crate) async fn handle(&self, subject: &str, body: &[u8]) {
        let message = handling::exports::trellis::messaging::handler::Message {
            subject: subject.into(),
            body: body.to_vec(),
            headers: Vec::new(),
            reply_to: None,
            id: "1".into(),
            attempt: 1,
            published_ms: None,
            source: String::new(),
        };
        let mut store = store(&self.engine);
        let guest = self.pre.instantiate_async(&mut store).await.unwrap();
        guest.trellis_messaging_handler().call_handle(&mut store, &message).await.unwrap().unwrap();
    }
}

/// A guest that others call.
pub(crate) struct Callee {
    engine: Engine,
    pre: calling::PingPre<Host>,
}

impl Callee {
    pub(crate) fn load(guest: &str) -> Self {
        let engine = engine();
        let (component, linker) = load(&engine, guest);
        let pre = calling::PingPre::new(linker.instantiate_pre(&component).unwrap()).unwrap();
        Self { engine, pre }
    }

    /// One call, one sandbox.
    pub(crate) async fn ping(&self, number: u32) -> u32 {
        let mut store = store(&self.engine);
        let guest = self.pre.instantiate_async(&mut store).await.unwrap();
        guest.test_calls_pinging().call_ping(&mut store, number).await.unwrap()
    }
}
