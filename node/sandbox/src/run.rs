//! One event in one fresh sandbox.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::error::Elapsed;
use trellis_wire::{Error, Event, Failure, Fault, Outcome};
use wasmtime::Store;

use crate::component::Component;
use crate::guest::invoke::Invocation;
use crate::guest::{self, Command, Message};
use crate::host::wasi::World;
use crate::host::{self, stdio};
use crate::outside::{Limits, Setup};
use crate::{fault, state::State};

/// The most that one host call may make the host allocate for what the guest passes to it, in bytes.
const HOST_CALL_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The most handles to the host's things that a guest may have at once. What is behind them is outside of every memory
/// budget, so their number bounds it. An outgoing request takes about ten.
pub(crate) const HANDLES_MAX: usize = 1_000;

impl Component {
    /// Runs one event in a fresh sandbox. Dropping the future, or the body of an HTTP reply, aborts the sandbox.
    ///
    /// # Errors
    /// A fault is the guest's, an error is ours.
    pub async fn run(&self, event: Event, setup: Setup) -> Outcome {
        tracing::trace!(event = %setup.event_id, component = %setup.component, "an event in a fresh sandbox");
        // Each in a box of its own: one future with room for the largest of them would be moved about for every event.
        match (event, &self.http, &self.message, &self.command) {
            (Event::Http(request), Some(guest), ..) => {
                guest::http::handle(guest.clone(), request, self.sandbox(setup)?).await
            }
            (Event::Message(message), _, Some(Message::Trellis(guest)), _) => {
                Box::pin(guest::message::handle(guest, message, self.sandbox(setup)?)).await
            }
            (Event::Message(message), _, Some(Message::Wasmcloud(guest)), _) => {
                Box::pin(guest::message::handle_wasmcloud(guest, message, self.sandbox(setup)?)).await
            }
            (Event::Run(arguments), .., Some(Command::P2(guest))) => {
                Box::pin(guest::command::run(guest, self.command_sandbox(setup, &arguments)?)).await
            }
            (Event::Run(arguments), .., Some(Command::P3(guest))) => {
                Box::pin(guest::command::run_p3(guest, self.command_sandbox(setup, &arguments)?)).await
            }
            (Event::Invoke { interface, function, params }, ..) if !self.functions.is_empty() => {
                let invocation = Invocation { interface, function, params };
                Box::pin(guest::invoke::call(&self.functions, invocation, self.sandbox(setup)?)).await
            }
            (event, ..) => Err(self.cannot_be_woken_by(&event, &setup)),
        }
    }

    fn cannot_be_woken_by(&self, event: &Event, setup: &Setup) -> Failure {
        let needed = match event {
            Event::Http(_) => {
                "an HTTP request: it exports neither wasi:http/incoming-handler@0.2 nor wasi:http/handler@0.3"
            }
            Event::Message(_) => {
                "a message: it exports neither trellis:messaging/handler@0.1.0 nor wasmcloud:messaging/handler@0.2.0"
            }
            Event::Run(_) => "a run: it does not export wasi:cli/run",
            Event::Invoke { .. } => "a call: it exports no function on plain values in an interface of its own",
        };
        Error::Unusable(format!("{} cannot be woken by {needed}", setup.component)).into()
    }

    /// A sandbox whose standard output and error go to the log, line by line.
    fn sandbox(&self, setup: Setup) -> Result<Sandbox, Failure> {
        let world = World::new(Vec::new(), stdio::logged(&setup.outside));
        self.sandbox_in(world, setup)
    }

    /// A sandbox whose standard output and error are kept.
    fn command_sandbox(&self, setup: Setup, arguments: &[String]) -> Result<Sandbox, Failure> {
        let program = (!arguments.is_empty()).then(|| setup.component.name.to_string());
        let arguments = program.into_iter().chain(arguments.iter().cloned()).collect();
        self.sandbox_in(World::new(arguments, stdio::kept()), setup)
    }

    fn sandbox_in(&self, world: World, setup: Setup) -> Result<Sandbox, Failure> {
        let place = self.engine.sandbox()?;
        let state = State {
            table: host::wasi::table(),
            world,
            http: host::http::limits(),
            outgoing: host::http::Outgoing::new(setup.outside.clone()),
            memory: self.engine.memory(setup.limits.memory_bytes),
            outside: setup.outside,
            config: setup.config,
            secrets: setup.secrets,
            links: Default::default(),
        };
        let mut store = Store::new(&self.wasmtime, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(HOST_CALL_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        // At each tick of the engine's clock a guest that computes yields, so that it starves nobody and can be aborted.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(Sandbox { store, limits: setup.limits, source: setup.source, _place: place, _held: setup.held })
    }
}

/// A sandbox for one event. Fields are dropped in order: first the guest is gone, then its place is free.
pub(crate) struct Sandbox {
    pub(crate) store: Store<State>,
    pub(crate) limits: Limits,
    /// The link that brought the event.
    pub(crate) source: String,
    _place: OwnedSemaphorePermit,
    _held: Box<dyn Send>,
}

impl Sandbox {
    /// Says how a run ended that had the deadline around it.
    pub(crate) fn verdict<R>(&self, ended: Result<wasmtime::Result<R>, Elapsed>) -> Result<R, Failure> {
        match ended {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(fault::failure(&error, self.store.data())),
            Err(_) => Err(late(self.limits.timeout)),
        }
    }
}

/// The fault of a guest that was not done in time.
pub(crate) fn late(timeout: Duration) -> Failure {
    Fault::Deadline { limit_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) }.into()
}
