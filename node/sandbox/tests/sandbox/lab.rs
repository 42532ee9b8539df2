//! An engine, guests that are built once, and a stand-in for the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use sha2::{Digest as _, Sha256};
use trellis_sandbox::{Component, Engine, Level, Limits, Options, Outside, Setup};
use trellis_wire::{
    Answer, Body, Call, CallError, Config, Digest, Event, EventId, KeyValue, KeyValueAnswer, Message, Outcome, Reply,
    Secrets,
};

pub(crate) const MEBIBYTE: u64 = 1024 * 1024;

/// Where the guests are built and their compiled code is kept, from one run of the tests to the next.
fn target() -> PathBuf {
    let shared = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/trellis/target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(shared, PathBuf::from).join("guests")
}

/// Builds the guests, once in a process. Cargo does nothing when they are built already.
fn build_guests() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let guests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guests");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--target", "wasm32-wasip2", "--target-dir"]).arg(target()).current_dir(guests);
        // Flags for the host are none for a guest.
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        assert!(cargo.status().expect("cargo runs").success(), "do: rustup target add wasm32-wasip2");
        target().join("wasm32-wasip2/debug")
    };
    BUILT.get_or_init(build).clone()
}

/// The artifact of a guest: a component of `tests/guests` by name, or one in the text format.
pub(crate) fn artifact(guest: &str) -> Vec<u8> {
    if guest.starts_with('(') {
        return wat::parse_str(guest).expect("the guest's text parses");
    }
    let path = build_guests().join(format!("guest_{guest}.wasm"));
    std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

pub(crate) fn digest(wasm: &[u8]) -> Digest {
    Digest::new(Sha256::digest(wasm).into())
}

/// An engine and what its runs are set up with.
pub(crate) struct Lab {
    pub(crate) engine: Arc<Engine>,
    pub(crate) node: Arc<Node>,
    pub(crate) limits: Limits,
    pub(crate) config: Config,
    pub(crate) secrets: Secrets,
    held: Arc<AtomicU32>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(20, 1024 * MEBIBYTE)
    }

    pub(crate) fn with(sandboxes_max: u32, memory_bytes_max: u64) -> Self {
        let cache_dir = target().join("compiled");
        let options = Options { cache_dir, sandboxes_max, memory_bytes_max, wasi_p3: true };
        Self {
            engine: Engine::new(options).expect("the engine starts"),
            node: Arc::default(),
            limits: Limits {
                memory_bytes: 64 * MEBIBYTE,
                timeout: Duration::from_secs(20),
                reply: Some(Limits::REPLY_DEFAULT),
            },
            config: Config::default(),
            secrets: Secrets::default(),
            held: Arc::default(),
        }
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.limits.timeout = timeout;
        self
    }

    pub(crate) fn component(&self, guest: &str) -> Arc<Component> {
        let wasm = artifact(guest);
        self.engine.compile(digest(&wasm), &wasm).expect("the guest compiles");
        self.engine.load(digest(&wasm)).expect("the guest loads")
    }

    pub(crate) fn setup(&self) -> Setup {
        self.held.fetch_add(1, Ordering::SeqCst);
        Setup {
            event_id: EventId::new("018f0000-0000-7000-8000-000000000000".parse::<EventId>().unwrap().uuid()),
            component: "app/guest".parse().unwrap(),
            source: "default".into(),
            config: Arc::new(self.config.clone()),
            secrets: Arc::new(self.secrets.clone()),
            limits: self.limits,
            outside: self.node.clone(),
            held: Box::new(Held(self.held.clone())),
        }
    }

    pub(crate) async fn run(&self, guest: &str, event: Event) -> Outcome {
        self.component(guest).run(event, self.setup()).await
    }

    pub(crate) async fn get(&self, guest: &str, path: &str) -> Outcome {
        self.run(guest, get(path)).await
    }

    /// The whole answer to a request.
    pub(crate) async fn text(&self, guest: &str, path: &str) -> String {
        text(self.get(guest, path).await).await
    }

    pub(crate) async fn message(&self, guest: &str, subject: &str, body: &str) -> Outcome {
        let message = Message { subject: subject.into(), body: Bytes::copy_from_slice(body.as_bytes()), ..message() };
        self.run(guest, Event::Message(message)).await
    }

    /// Waits until no sandbox is left, and with it nothing of what it held.
    pub(crate) async fn all_gone(&self) {
        let begun = Instant::now();
        while self.held.load(Ordering::SeqCst) > 0 || self.engine.sandboxes() > 0 || self.engine.memory_bytes() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "{} sandboxes live on", self.engine.sandboxes());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn logged(&self, context: &str) -> Vec<String> {
        let lines = self.node.lines.lock().unwrap();
        lines.iter().filter(|(_, of, _)| of == context).map(|(.., line)| line.clone()).collect()
    }
}

struct Held(Arc<AtomicU32>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn get(path: &str) -> Event {
    Event::Http(http::Request::get(format!("http://test.local{path}")).body(Body::empty()).unwrap())
}

pub(crate) fn message() -> Message {
    Message { id: "7".into(), attempt: 2, published_ms: Some(5), reply_to: Some("back".into()), ..Message::default() }
}

pub(crate) fn response(outcome: Outcome) -> http::Response<Body> {
    match outcome {
        Ok(Reply::Http(response)) => response,
        other => panic!("a response was expected, not {other:?}"),
    }
}

pub(crate) async fn text(outcome: Outcome) -> String {
    let bytes = response(outcome).into_body().collect().await.expect("the body is whole").to_bytes();
    String::from_utf8(bytes.into()).unwrap()
}

/// A stand-in for the node: three stores (the default link's, `second`, `third`), a link with none, one web site, one mailbox.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) lines: Mutex<Vec<(Level, String, String)>>,
    pub(crate) published: Mutex<Vec<(String, Message)>>,
    pub(crate) stores: Mutex<BTreeMap<String, BTreeMap<String, Bytes>>>,
    /// When set, every call is denied.
    pub(crate) denies: std::sync::atomic::AtomicBool,
    /// What the next call of a function gets in place of its answer.
    pub(crate) invoked: Mutex<Option<Result<Answer, CallError>>>,
}

#[async_trait]
impl Outside for Node {
    async fn call(&self, link: &str, call: Call) -> Result<Answer, CallError> {
        tokio::task::yield_now().await;
        if self.denies.load(Ordering::SeqCst) {
            return Err(CallError::Denied("add a link".into()));
        }
        if let (Call::Invoke { .. }, Some(answer)) = (&call, self.invoked.lock().unwrap().take()) {
            return answer;
        }
        match call {
            Call::KeyValue(operation) => self.keyvalue(link, operation).map(Answer::KeyValue),
            Call::Publish(message) => {
                self.published.lock().unwrap().push((link.into(), message));
                Ok(Answer::Published)
            }
            Call::Request { message, timeout } => {
                let body = format!("{} asked for {timeout:?}", message.subject).into();
                Ok(Answer::Message(Message { body, subject: "answer".into(), ..Message::default() }))
            }
            Call::Http(call) => {
                let (head, body) = call.request.into_parts();
                let length = body.collect().await.map_err(|why| CallError::Other(why.to_string()))?.to_bytes().len();
                let answer = format!("{} {} with {length} bytes", head.method, head.uri);
                Ok(Answer::Http(http::Response::builder().status(203).body(Body::from(answer)).unwrap()))
            }
            Call::Invoke { interface, function, params } => match (interface.as_str(), function.as_str()) {
                ("shop:math/add@1.0.0", "add") => Ok(Answer::Values(Bytes::from(vec![params[0] + params[1]]))),
                _ => Err(CallError::NoSuch(interface)),
            },
        }
    }

    fn log(&self, level: Level, context: &str, message: &str) {
        self.lines.lock().unwrap().push((level, context.into(), message.into()));
    }
}

impl Node {
    fn keyvalue(&self, link: &str, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
        if link == "empty" {
            return Err(CallError::NoSuch("the store behind it".into()));
        }
        if !["", "second", "third"].contains(&link) {
            return Err(CallError::Denied(format!("no link `{link}`")));
        }
        let mut stores = self.stores.lock().unwrap();
        let store = stores.entry(link.into()).or_default();
        let answer = match operation {
            KeyValue::Open => KeyValueAnswer::Done,
            KeyValue::Get(key) => KeyValueAnswer::Value(store.get(&key).cloned()),
            KeyValue::Set(key, value) => {
                store.insert(key, value);
                KeyValueAnswer::Done
            }
            KeyValue::Delete(key) => {
                store.remove(&key);
                KeyValueAnswer::Done
            }
            KeyValue::Exists(key) => KeyValueAnswer::Exists(store.contains_key(&key)),
            KeyValue::Keys { cursor } => {
                let after = store.keys().filter(|key| cursor.as_ref().is_none_or(|cursor| *key > cursor));
                let keys: Vec<String> = after.take(2).cloned().collect();
                let cursor = keys.last().cloned().filter(|_| keys.len() == 2);
                KeyValueAnswer::Keys { keys, cursor }
            }
            KeyValue::Increment(key, _) if key == "text" => {
                return Err(CallError::Invalid(format!("`{key}` holds no number")));
            }
            KeyValue::Increment(key, delta) => {
                let old = store.get(&key).map_or(0, |n| String::from_utf8_lossy(n).parse().unwrap());
                store.insert(key, (old + delta).to_string().into());
                KeyValueAnswer::Number(old + delta)
            }
            KeyValue::GetMany(keys) => {
                KeyValueAnswer::Values(keys.into_iter().map(|key| (key.clone(), store.get(&key).cloned())).collect())
            }
            KeyValue::SetMany(pairs) => {
                store.extend(pairs);
                KeyValueAnswer::Done
            }
            KeyValue::DeleteMany(keys) => {
                store.retain(|key, _| !keys.contains(key));
                KeyValueAnswer::Done
            }
            KeyValue::Swap { .. } => return Err(CallError::Other("not asked for here".into())),
        };
        Ok(answer)
    }
}
