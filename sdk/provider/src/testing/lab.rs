//! A node as a provider's test needs one: it hands out permits that the test counts, and its component says what a message
//! asks for.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_wire::{
    Backoff, ComponentKey, Delivery, Error, Event, Fault, Link, LinkId, LinkName, Message, Outcome, Reply, Settle,
};

use crate::delivery::{CLAIM, Claimed, DeadLetter, Queue, burying};
use crate::{Lease, LeaseHolder, Permit, PermitSource, Permits, Provider, Run, Token, Want};

/// Long enough on a busy machine; nothing that goes well waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Dead letters that a test looks at.
const LETTERS_MAX: usize = 10_000;

/// A link of `shop/worker` with this configuration, whose messages are tried again soon and four times at most.
///
/// # Panics
/// Never: the names are fixed.
pub fn link(package: &str, config: &[(&str, &str)]) -> Link {
    let component: ComponentKey = "shop/worker".parse().expect("it is a key");
    let provider: ComponentKey = "shop/broker".parse().expect("it is a key");
    let name = LinkName::default();
    let backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(50), ..Backoff::default() };
    Link {
        id: LinkId::new(&component, &provider, &name, "wasmcloud", package, &[format!("{config:?}")]),
        component,
        name,
        namespace: "wasmcloud".into(),
        package: package.into(),
        interfaces: Vec::new(),
        config: config.iter().copied().collect(),
        delivery: Delivery { max_attempts: 4, backoff, ..Delivery::default() },
        secrets: Default::default(),
        part: Default::default(),
    }
}

/// Waits until something is so.
///
/// # Panics
/// It is still not so after [`PATIENCE`].
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a message is asked for by its first word: `retry`, `retry-twice`, `dead`, `drop`, `trap`, or else `ok`.
pub fn by_content(message: &Message) -> Outcome {
    let body = text(message);
    match body.split(' ').next().unwrap_or_default() {
        "retry" => Ok(Reply::Settle(Settle::Retry { after: None, reason: "as asked".into() })),
        "retry-twice" if message.attempt <= 2 => {
            Ok(Reply::Settle(Settle::Retry { after: Some(Duration::from_millis(30)), reason: "not yet".into() }))
        }
        "dead" => Ok(Reply::Settle(Settle::DeadLetter("as asked".into()))),
        "drop" => Ok(Reply::Settle(Settle::Drop("as asked".into()))),
        "trap" => Err(Fault::Trap(format!("unreachable\nat attempt {}", message.attempt)).into()),
        "busy" => Err(Error::Busy("no sandbox".into()).into()),
        _ => Ok(Reply::Settle(Settle::Ack)),
    }
}

/// The body of a message.
pub fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}

/// Hands out permits, and records what its component is woken with.
#[derive(Clone)]
pub struct Node {
    permits: Arc<Semaphore>,
    /// The component goes on only when this has a permit for it.
    gate: Arc<Semaphore>,
    woken: Arc<Mutex<Vec<Message>>>,
    done: Arc<AtomicUsize>,
    says: fn(&Message) -> Outcome,
}

impl Node {
    /// A node with so many permits, whose component answers [`by_content`].
    pub fn new(permits: usize) -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let permits = Arc::new(Semaphore::new(permits));
        Self { permits, gate, woken: Arc::default(), done: Arc::default(), says: by_content }
    }

    /// How many of its permits nobody has.
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// A node whose component does not come to an end until [`Node::open`].
    pub fn shut(permits: usize) -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::new(permits) }
    }

    /// A node whose component answers so.
    pub fn saying(permits: usize, says: fn(&Message) -> Outcome) -> Self {
        Self { says, ..Self::new(permits) }
    }

    /// Lets the component come to an end.
    pub fn open(&self) {
        self.gate.add_permits(1_000_000);
    }

    /// The permits for a link's component.
    pub fn permits(&self, link: &Link) -> Permits {
        Permits::new(link.component.clone(), Arc::new(self.clone()))
    }

    /// Every message that the component was woken with.
    pub fn woken(&self) -> MutexGuard<'_, Vec<Message>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their bodies.
    pub fn bodies(&self) -> Vec<String> {
        self.woken().iter().map(text).collect()
    }

    /// The attempts at the messages with this body.
    pub fn attempts(&self, body: &str) -> Vec<u32> {
        self.woken().iter().filter(|message| text(message) == body).map(|message| message.attempt).collect()
    }

    /// How many came to an end.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl PermitSource for Node {
    async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
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
        self.node.woken().push(message);
        if let Ok(passed) = self.node.gate.acquire().await {
            passed.forget();
        }
        self.node.done.fetch_add(1, Ordering::SeqCst);
        outcome
    }
}

/// Waits for so many dead letters.
///
/// # Panics
/// They do not come within [`PATIENCE`].
pub async fn until_letters<Q: Queue>(queue: &Q, count: usize) -> Vec<DeadLetter> {
    let started = Instant::now();
    loop {
        // A server that is away meanwhile is asked again.
        let letters = queue.letters(None, LETTERS_MAX).await;
        if let Ok(letters) = &letters
            && letters.len() >= count
        {
            return letters.clone();
        }
        assert!(started.elapsed() < PATIENCE, "{count} dead letters were expected: {letters:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until so many messages wait.
///
/// # Panics
/// It is still not so after [`PATIENCE`].
pub async fn until_waiting<Q: Queue>(queue: &Q, count: u64) {
    let started = Instant::now();
    loop {
        let standing = queue.standing().await;
        if standing.as_ref().is_ok_and(|standing| standing.waiting == count) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{count} were to wait: {standing:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// So many threads for tasks.
///
/// # Panics
/// They cannot be started.
pub fn threads(count: usize) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(count).enable_all().build();
    runtime.expect("threads can be started")
}

/// A guest holds the only thread of its node that is not kept from guests for longer than a claim lasts, and than a server
/// waits for a sign of life. Another node waits for what is given out again: nothing is.
///
/// `provider` makes a node's provider whose connections live on these threads; `publish` has one message wake `link`.
///
/// # Panics
/// The claim ended.
pub fn a_claim_lasts_though_guests_hold_all_threads_of_their_own<P: Provider>(
    link: &Link,
    provider: impl Fn(Handle) -> P,
    publish: impl Future<Output = ()>,
) {
    static IS_HELD: AtomicBool = AtomicBool::new(false);
    let hold = |message: &Message| {
        IS_HELD.store(true, Ordering::SeqCst);
        std::thread::sleep(CLAIM + Duration::from_secs(6));
        by_content(message)
    };
    let (guests, kept, others) = (threads(1), threads(1), threads(2));
    let wake = async |node: &Node, kept: &Runtime| {
        let provider = provider(kept.handle().clone());
        let permits = node.permits(link).extended_on(kept.handle().clone());
        provider.wake(link.clone(), permits).await.expect("the link is right");
        until("the link is well", || provider.health(&link.id).is_ok()).await;
        provider
    };
    let (node, other) = (Node::saying(1, hold), Node::new(1));
    let provider = guests.block_on(wake(&node, &kept));
    others.block_on(async {
        publish.await;
        until("the threads are held", || IS_HELD.load(Ordering::SeqCst)).await;
        let waits = wake(&other, &others).await;
        until("they are free again", || node.done() == 1).await;
        let trigger = waits.trigger(&link.id).expect("the link pulls");
        let is_off = async || matches!(trigger.standing().await, Ok(left) if (left.waiting, left.claimed) == (0, 0));
        let began = Instant::now();
        while !is_off().await && other.woken().is_empty() {
            assert!(began.elapsed() < PATIENCE, "it is still not off: {:?}", trigger.standing().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        waits.drain().await;
    });
    guests.block_on(provider.drain());
    assert_eq!((other.bodies(), node.done()), (Vec::<String>::new(), 1), "its claim ended");
}

/// Does something in a process that is dropped in the middle of what it does, as `kill -9` would end it.
///
/// # Panics
/// There are no threads for it.
pub fn in_a_process(work: impl Future<Output = ()>) {
    let runtime = threads(2);
    runtime.block_on(work);
    runtime.shutdown_background();
}

/// Waits until nothing waits and nothing is claimed.
///
/// # Panics
/// It is still not so after [`PATIENCE`].
pub async fn until_settled<Q: Queue>(queue: &Q) {
    let started = Instant::now();
    loop {
        let standing = queue.standing().await;
        if standing.as_ref().is_ok_and(|standing| (standing.waiting, standing.claimed) == (0, 0)) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "still not settled: {standing:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Has the ledger say what it says when a node dies that gives a message up.
///
/// # Panics
/// There is no ledger, or it does not take that.
pub async fn is_being_given_up<Q: Queue>(queue: &Q, of: &Claimed<Q::Claim>) {
    let ledger = queue.ledger().expect("the broker has a ledger");
    burying::note(ledger, &of.message.id, &of.place).await.expect("the ledger takes it");
}

/// A lease that is held from now on.
pub fn held() -> (LeaseHolder, Lease) {
    let (holder, lease) = LeaseHolder::new();
    holder.set(Some(Token(1)));
    (holder, lease)
}

/// A server that accepts and never answers, for as long as the test lasts. Its address.
///
/// # Panics
/// There is no free port.
pub fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    std::thread::spawn(move || {
        let accepted: Vec<_> = listener.incoming().collect();
        drop(accepted);
    });
    address
}
