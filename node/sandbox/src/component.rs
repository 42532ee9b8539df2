//! A loaded component: its code with all imports resolved, and the exports that events wake.

use std::path::PathBuf;
use std::sync::Arc;

use trellis_wire::Digest;
use wasmtime::component::{InstancePre, Linker};

use crate::engine::Engine;
use crate::guest::invoke::Functions;
use crate::guest::{Command, Http, Message};
use crate::host;
use crate::inspect::{InterfaceName, Wake};
use crate::state::State;

/// Why a component cannot be compiled or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The artifact is something else.
    #[error("the artifact {0}")]
    NotAComponent(String),
    /// It uses what this node does not serve.
    #[error("the component cannot run here: {0}")]
    Unsupported(String),
    /// It does not validate or compile.
    #[error("the component does not compile: {0}")]
    Invalid(String),
    /// There is no usable compiled code of it: compile it, again if need be.
    #[error("{0} is not compiled on this node")]
    NotCompiled(Digest),
    /// Compiled code cannot be read or written now: the system lacks memory, file descriptors or room. What was written
    /// is still there.
    #[error("{}: {why}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
}

impl ComponentError {
    /// Whether the artifact itself is at fault, so that no node will ever run it.
    pub const fn is_of_the_artifact(&self) -> bool {
        matches!(self, Self::NotAComponent(_) | Self::Unsupported(_) | Self::Invalid(_))
    }

    /// Whether the same may go well a moment later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Cache { .. })
    }
}

/// A component, ready to run. Runs of it share code and nothing else.
pub struct Component {
    pub(crate) engine: Arc<Engine>,
    /// What it was compiled for.
    pub(crate) wasmtime: wasmtime::Engine,
    pub(crate) http: Option<Http>,
    pub(crate) message: Option<Message>,
    pub(crate) command: Option<Command>,
    pub(crate) functions: Functions,
    digest: Digest,
    wakes: Vec<Wake>,
}

impl Component {
    /// Resolves the imports of loaded code and finds its exports.
    pub(crate) fn new(
        engine: Arc<Engine>,
        digest: Digest,
        code: &wasmtime::component::Component,
        linker: &Linker<State>,
    ) -> Result<Self, ComponentError> {
        let unsupported = |why: wasmtime::Error| ComponentError::Unsupported(format!("{why:#}"));
        let extended = host::custom::link(linker, code)?;
        let linker = extended.as_ref().unwrap_or(linker);
        let pre = linker.instantiate_pre(code).map_err(unsupported)?;
        let wakes = wakes(code);
        let functions = Functions::of(code, pre.clone());
        let mut component = Self {
            engine,
            wasmtime: code.engine().clone(),
            http: None,
            message: None,
            command: None,
            functions,
            digest,
            wakes,
        };
        component.find_exports(&pre).map_err(unsupported)?;
        Ok(component)
    }

    /// Where a component exports both of two, the older WASI goes first, for it is the one that is patched; and our
    /// message handler goes before wasmCloud's, for it can say more.
    fn find_exports(&mut self, pre: &InstancePre<State>) -> wasmtime::Result<()> {
        for wake in &self.wakes {
            match wake {
                Wake::HttpP2 => self.http = Some(Http::p2(pre)?),
                Wake::HttpP3 if !self.wakes.contains(&Wake::HttpP2) => self.http = Some(Http::p3(pre)?),
                Wake::MessageTrellis => self.message = Some(Message::trellis(pre)?),
                Wake::MessageWasmcloud if !self.wakes.contains(&Wake::MessageTrellis) => {
                    self.message = Some(Message::wasmcloud(pre)?);
                }
                Wake::RunP2 => self.command = Some(Command::p2(pre)?),
                Wake::RunP3 if !self.wakes.contains(&Wake::RunP2) => self.command = Some(Command::p3(pre)?),
                Wake::HttpP3 | Wake::MessageWasmcloud | Wake::RunP3 | Wake::Invoke(_) => {}
            }
        }
        Ok(())
    }

    /// The artifact that it was compiled from.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// What can wake it.
    pub fn wakes(&self) -> &[Wake] {
        &self.wakes
    }
}

fn wakes(code: &wasmtime::component::Component) -> Vec<Wake> {
    let ty = code.component_type();
    let exports = ty.exports(code.engine()).filter_map(|(name, _)| name.parse::<InterfaceName>().ok());
    exports.filter_map(|export| Wake::by(&export)).collect()
}
