//! `wasi:config`, under each of the names that components import it by. It is what the manifest gives the component.

use wasmtime::component::{HasSelf, Linker};

use crate::state::State;

mod release_candidate {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world host { import wasi:config/store@0.2.0-rc.1; }",
        world: "trellis:sandbox/host",
        imports: { default: trappable },
    });
}

mod draft {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox;
            world host { import wasi:config/store@0.2.0-draft; import wasi:config/runtime@0.2.0-draft; }",
        world: "trellis:sandbox/host",
        imports: { default: trappable },
    });
}

use self::draft::wasi::config0_2_0_draft as draft_config;
use self::release_candidate::wasi::config0_2_0_rc_1::store as rc_store;

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    rc_store::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    draft_config::store::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    draft_config::runtime::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

macro_rules! serve {
    ($($interface:path, $error:ty;)*) => {
        $(impl $interface for State {
            fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, $error>> {
                Ok(Ok(self.config.get(&key).map(Into::into)))
            }

            fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, $error>> {
                Ok(Ok(self.config.iter().map(|(key, value)| (key.into(), value.into())).collect()))
            }
        })*
    };
}

serve! {
    rc_store::Host, rc_store::Error;
    draft_config::store::Host, draft_config::store::Error;
    draft_config::runtime::Host, draft_config::runtime::ConfigError;
}
