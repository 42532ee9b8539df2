//! `wasi:logging@0.1.0-draft`.

use wasmtime::component::{HasSelf, Linker};

use self::wit::wasi::logging::logging;
use super::stdio::{LINE_BYTES_MAX, cut};
use crate::outside::Level;
use crate::state::State;

mod wit {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world host { import wasi:logging/logging@0.1.0-draft; }",
        world: "trellis:sandbox/host",
        imports: { default: trappable },
    });
}

/// The longest word for the part of a guest that speaks.
const CONTEXT_BYTES_MAX: usize = 256;

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    logging::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

impl logging::Host for State {
    fn log(&mut self, level: logging::Level, context: String, message: String) -> wasmtime::Result<()> {
        let level = match level {
            logging::Level::Trace => Level::Trace,
            logging::Level::Debug => Level::Debug,
            logging::Level::Info => Level::Info,
            logging::Level::Warn => Level::Warn,
            logging::Level::Error => Level::Error,
            logging::Level::Critical => Level::Critical,
        };
        self.outside.log(level, &cut(context, CONTEXT_BYTES_MAX), &cut(message, LINE_BYTES_MAX));
        Ok(())
    }
}
