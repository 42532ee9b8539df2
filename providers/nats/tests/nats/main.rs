//! The provider against a real nats-server, with permits that a test counts and events that a test handles.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod keyvalue;
mod publish;
mod stream;
mod subscribe;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_nats::{Nats, Options};
use trellis_provider::{Permit, PermitSource, Permits, Provider, Run, Want};
use trellis_wire::{
    Answer, Call, CallError, ComponentKey, Config, Error, Event, Link, LinkId, LinkName, Message, Outcome, Reply,
    Settle,
};

/// Long enough on a busy machine; nothing that goes well waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn provider(url: &str) -> Nats {
    Nats::new(Options { default_url: Some(url.into()), ..Options::default() })
}

/// A link of `shop/<component>` with this package and configuration.
fn link(component: &str, package: &str, config: &[(&str, &str)]) -> Link {
    let component: ComponentKey = format!("shop/{component}").parse().unwrap();
    let provider: ComponentKey = "shop/nats".parse().unwrap();
    let name = LinkName::default();
    let id = LinkId::new(&component, &provider, &name, "wasmcloud", package, &[format!("{config:?}")]);
    let config = Config::from_iter(config.iter().copied());
    Link {
        id,
        component,
        name,
        namespace: "wasmcloud".into(),
        package: package.into(),
        interfaces: vec![],
        config,
        delivery: trellis_wire::Delivery::default(),
        secrets: Default::default(),
    }
}

fn message(subject: &str, body: &str) -> Message {
    Message { subject: subject.into(), body: body.to_owned().into(), ..Message::default() }
}

/// A link through which the test itself publishes.
async fn publisher(nats: &Nats) -> LinkId {
    let link = link("test", "messaging", &[]);
    let id = link.id.clone();
    nats.grant(link).await.unwrap();
    until("the provider is connected", || nats.health(&id).is_ok()).await;
    id
}

async fn publish(nats: &Nats, link: &LinkId, message: Message) -> Result<(), CallError> {
    nats.call(link, Call::Publish(message)).await.map(|answer| assert!(matches!(answer, Answer::Published)))
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A node of the test: hands out permits, and records what its component is woken with.
#[derive(Clone)]
struct Node {
    permits: Arc<Semaphore>,
    /// The component goes on only when this has a permit for it.
    gate: Arc<Semaphore>,
    woken: Arc<Mutex<Vec<Message>>>,
    done: Arc<AtomicUsize>,
    says: fn(&Message) -> Outcome,
}

impl Node {
    fn new(permits: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            woken: Arc::default(),
            done: Arc::default(),
            says: |_| Ok(Reply::Settle(Settle::Ack)),
        }
    }

    /// A node whose component does not come to an end until [`Node::open`].
    fn shut(permits: usize) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::new(permits) }
    }

    fn open(&self) {
        self.gate.add_permits(1_000_000);
    }

    fn permits(&self, link: &Link) -> Permits {
        Permits::new(link.component.clone(), Arc::new(self.clone()))
    }

    fn bodies(&self) -> Vec<String> {
        let woken = self.woken.lock().unwrap();
        woken.iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect()
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl PermitSource for Node {
    async fn acquire(&self, _: &ComponentKey, want: Want) -> Result<Permit, Error> {
        assert_eq!(want, Want::Pull);
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        Ok(Permit::new(Sandbox { node: self.clone(), _permit: permit }))
    }
}

struct Sandbox {
    node: Node,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Run for Sandbox {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let Event::Message(message) = event else { panic!("{event:?}") };
        let outcome = (self.node.says)(&message);
        self.node.woken.lock().unwrap().push(message);
        self.node.gate.acquire().await.unwrap().forget();
        self.node.done.fetch_add(1, Ordering::SeqCst);
        outcome
    }
}
