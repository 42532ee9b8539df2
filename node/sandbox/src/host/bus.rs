//! `wasmcloud:bus/lattice@1.0.0`: how a guest of wasmCloud 1.x chooses between two links of one interface.

use wasmtime::component::{HasSelf, Linker, Resource};

use self::wit::wasmcloud::bus::lattice;
use crate::state::State;

mod wit {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world host { import wasmcloud:bus/lattice@1.0.0; }",
        world: "trellis:sandbox/host",
        imports: { default: trappable },
        with: { "wasmcloud:bus/lattice.call-target-interface": super::Interface },
    });
}

/// The interface whose calls go out as HTTP requests, in either WASI.
const OUTGOING: [&str; 2] = ["wasi:http/outgoing-handler", "wasi:http/client"];

/// The name of an interface, without its version.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Interface(String);

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    lattice::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

impl lattice::Host for State {
    fn set_link_name(&mut self, name: String, interfaces: Vec<Resource<Interface>>) -> wasmtime::Result<()> {
        for interface in interfaces {
            let Interface(interface) = self.table.delete(interface)?;
            if OUTGOING.contains(&interface.as_str()) {
                self.outgoing.choose(&name);
            }
            self.links.choose(interface, name.clone());
        }
        Ok(())
    }
}

impl lattice::HostCallTargetInterface for State {
    fn new(&mut self, namespace: String, package: String, interface: String) -> wasmtime::Result<Resource<Interface>> {
        Ok(self.table.push(Interface(format!("{namespace}:{package}/{interface}")))?)
    }

    fn drop(&mut self, interface: Resource<Interface>) -> wasmtime::Result<()> {
        self.table.delete(interface)?;
        Ok(())
    }
}
