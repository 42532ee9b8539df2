//! `wasmcloud:secrets`: the secrets that the manifest gives the component, read by the node before the event. They need
//! no link, as config needs none.

use trellis_wire::Secret;
use wasmtime::component::{HasSelf, Linker, Resource};

use crate::state::State;

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox;
            world host { import wasmcloud:secrets/store@0.1.0-draft; import wasmcloud:secrets/reveal@0.1.0-draft; }",
        world: "trellis:sandbox/host",
        imports: { default: trappable },
        with: { "wasmcloud:secrets/store.secret": trellis_wire::Secret },
    });
}

use self::bindings::wasmcloud::secrets::{reveal, store};

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    reveal::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

impl store::Host for State {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Resource<Secret>, store::SecretsError>> {
        match self.secrets.get(&key).cloned() {
            Some(secret) => Ok(Ok(self.table.push(secret)?)),
            None => Ok(Err(store::SecretsError::NotFound)),
        }
    }
}

impl store::HostSecret for State {
    fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.table.delete(secret)?;
        Ok(())
    }
}

impl reveal::Host for State {
    fn reveal(&mut self, secret: Resource<Secret>) -> wasmtime::Result<store::SecretValue> {
        Ok(store::SecretValue::String(self.table.get(&secret)?.expose().into()))
    }
}
