//! What a store holds: all that the host keeps for one run.

use std::collections::BTreeMap;
use std::sync::Arc;

use trellis_wire::{Config, Secrets};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::host::http::Outgoing;
use crate::host::wasi::World;
use crate::limits::Memory;
use crate::outside::Outside;

/// The host's side of one run.
pub(crate) struct State {
    pub(crate) table: ResourceTable,
    pub(crate) world: World,
    pub(crate) http: WasiHttpCtx,
    pub(crate) outgoing: Outgoing,
    pub(crate) memory: Memory,
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) config: Arc<Config>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) links: Links,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: self.world.wasi(), table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

/// The link names that the guest chose through `wasmcloud:bus/lattice`, by interface.
#[derive(Debug, Default)]
pub(crate) struct Links(BTreeMap<String, String>);

impl Links {
    /// Chooses a link for `namespace:package/interface`.
    pub(crate) fn choose(&mut self, interface: String, link: String) {
        self.0.insert(interface, link);
    }

    /// The link chosen for an interface, or `""` for the default one.
    pub(crate) fn chosen(&self, interface: &str) -> &str {
        self.0.get(interface).map_or("", String::as_str)
    }
}
