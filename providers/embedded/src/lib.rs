//! `trellis://embedded`: what a node offers with nothing installed. Key-value stores and durable queues live in one file,
//! other messages travel in memory.
//!
//! This crate is the one that knows redb, and the example of the provider contract: read it beside
//! [`trellis_provider::Provider`].
//!
//! | link | config | what it does |
//! | --- | --- | --- |
//! | component -> provider, `wasi:keyvalue` | `store` (else the app's name) | answers key-value calls |
//! | component -> provider, `wasmcloud:messaging` or `trellis:messaging` | `allowed_subjects` | publish, request |
//! | provider -> component, `handler` of those | `queue`, and `subject` for what else it takes | wakes it at least once |
//! | provider -> component, `handler` of those | `subject` or `subscriptions` | wakes it at most once |
//!
//! - `keyvalue`: what each operation means, on an open table;
//! - `store`: the file under it, with one writer that commits for many;
//! - `gathered`: what one commit writes;
//! - `head`: up to where each queue has given out what is new;
//! - `queue`: what each change of a durable queue means, on open tables;
//! - `durable`: durable queues, and the links that are woken by them;
//! - `depot`: queues for what sources of other technologies took over;
//! - `entries`: ledgers, beside queues and for brokers that have none;
//! - `messaging`: who is woken by a message, and the buffer in front of each;
//! - `subject`: subjects and their wildcards.

mod clock;
mod depot;
mod durable;
mod entries;
mod gathered;
mod head;
mod keyvalue;
mod messaging;
mod queue;
mod store;
mod subject;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
pub use durable::{Pulled, QUEUES_MAX};
pub use keyvalue::{BATCH_BYTES_MAX, BATCH_KEYS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use messaging::{BUFFER_BYTES_MAX, BUFFER_MESSAGES_MAX, INBOXES_MAX, MESSAGE_BYTES_MAX};
pub use queue::{
    DEAD_KEPT_MS, FAULT_BYTES_MAX, FAULTS_KEPT_MAX, PUBLISHED_KEPT_MS, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, Token,
};
pub use store::OpenError;
use trellis_provider::delivery::Trigger;
use trellis_provider::{LinkError, Permits, Provider};
use trellis_wire::{Answer, Call, CallError, Config, Link, LinkId, Message};

use crate::durable::Durable;
use crate::messaging::Messaging;
use crate::store::Store;
use crate::subject::Filter;

/// How to open the provider.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that holds, or will hold, `embedded.redb`. It must exist.
    pub data_dir: PathBuf,
}

/// The provider: one per node, for every link of `trellis://embedded`.
pub struct Embedded {
    store: Arc<Store>,
    durable: Durable,
    messaging: Messaging,
    grants: Mutex<BTreeMap<LinkId, Grant>>,
}

/// Stores of the node's own: no link may name one that begins so.
const OWN_STORES: &str = "trellis/";

/// What a granted link may use.
#[derive(Clone)]
enum Grant {
    /// The key-value store of this name.
    Store(Arc<str>),
    /// Publish and request: to the subjects that these filters match, or to any where there are none.
    Messaging(Arc<[Filter]>),
}

/// Whether a link says rightly which queue or subject wakes its component.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_wake(link: &Link) -> Result<(), LinkError> {
    if link.package != "messaging" {
        return Err(LinkError::Unsupported(format!(
            "trellis://embedded wakes components by messages (`wasmcloud:messaging`, `trellis:messaging`), not by \
             `{}:{}`",
            link.namespace, link.package
        )));
    }
    if Durable::is_meant(&link.config) { durable::check(link) } else { messaging::check_wake(link) }
}

/// Whether a link says rightly what it grants.
///
/// # Errors
/// What is wrong, and what to write.
pub fn check_grant(link: &Link) -> Result<(), LinkError> {
    Grant::read(link).map(drop)
}

impl Grant {
    fn read(link: &Link) -> Result<Self, LinkError> {
        match link.package.as_str() {
            "keyvalue" => Ok(Self::Store(store_name(link)?.into())),
            "messaging" => Ok(Self::Messaging(subject::filters(&link.config, "allowed_subjects")?.into())),
            _ => Err(LinkError::Unsupported(format!(
                "trellis://embedded offers `wasi:keyvalue`, `wasmcloud:messaging` and `trellis:messaging`, not `{}:{}`",
                link.namespace, link.package
            ))),
        }
    }
}

impl Embedded {
    /// Opens the file under `options.data_dir`, or makes it, readable by its owner only. Blocks; after a crash of the
    /// machine it also repairs the file, which takes as long as reading it once.
    ///
    /// # Errors
    /// Another process has the file open, or it cannot be opened or made.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let path = options.data_dir.join("embedded.redb");
        let store = Arc::new(Store::open(path.clone())?);
        let durable = Durable::open(store.clone()).map_err(|problem| OpenError::Failed { path, problem })?;
        Ok(Self { store, durable, messaging: Messaging::default(), grants: Mutex::default() })
    }

    /// Publishes on behalf of a person or the node: `trellis publish SUBJECT BODY`. Subjects belong to no app: every
    /// queue and every link that matches gets it. Returns how many took it; 0 is no error. What a queue took is on disk.
    ///
    /// # Errors
    /// As for a guest's publish: the subject is malformed or reserved, the message too large, a queue or a buffer full.
    pub async fn publish(&self, message: Message) -> Result<usize, CallError> {
        messaging::check(&message)?;
        let kept = self.durable.publish(&message).await?;
        match self.messaging.publish(message) {
            Ok(woken) => Ok(kept + woken),
            // Refused, the publisher would try again, and a queue would have it twice.
            Err(why) if kept > 0 => {
                tracing::warn!("a message is in {kept} queues, but links that deliver once missed it: {why}");
                Ok(kept)
            }
            Err(why) => Err(why),
        }
    }

    /// Lets the node itself use a store of its own, `trellis/<name>`, which no link may name.
    pub fn grant_own(&self, link: LinkId, name: &str) {
        self.grants().insert(link, Grant::Store(format!("{OWN_STORES}{name}").into()));
    }

    fn grants(&self) -> MutexGuard<'_, BTreeMap<LinkId, Grant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes or requests under a link that may name only `allowed` subjects.
    async fn message(&self, allowed: &[Filter], call: Call) -> Result<Answer, CallError> {
        match call {
            Call::Publish(message) => {
                self.check_allowed(allowed, &message.subject)?;
                self.publish(message).await.map(|_| Answer::Published)
            }
            Call::Request { message, timeout } => {
                self.check_allowed(allowed, &message.subject)?;
                self.messaging.request(message, timeout).await.map(Answer::Message)
            }
            other => Err(no_such_capability(&other)),
        }
    }

    /// An answer to whoever waits for one is always allowed: its inbox was given out by us, for this.
    fn check_allowed(&self, allowed: &[Filter], subject: &str) -> Result<(), CallError> {
        let may =
            allowed.is_empty() || subject::is_inbox(subject) || allowed.iter().any(|filter| filter.matches(subject));
        if may {
            return Ok(());
        }
        Err(CallError::Denied(format!("the link's `allowed_subjects` does not name `{subject}`; add it there")))
    }
}

#[async_trait]
impl Provider for Embedded {
    async fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_wake(&link)?;
        if Durable::is_meant(&link.config) {
            return self.durable.wake(link, permits).await;
        }
        self.messaging.wake(link, permits)
    }

    async fn grant(&self, link: Link) -> Result<(), LinkError> {
        let grant = Grant::read(&link)?;
        self.grants().insert(link.id, grant);
        Ok(())
    }

    async fn remove(&self, link: &LinkId) {
        self.grants().remove(link);
        self.durable.remove(link).await;
        self.messaging.remove(link).await;
    }

    async fn call(&self, link: &LinkId, call: Call) -> Result<Answer, CallError> {
        let grant = self.grants().get(link).cloned();
        match (grant, call) {
            (Some(Grant::Store(store)), Call::KeyValue(operation)) => {
                self.store.call(&store, operation).await.map(Answer::KeyValue)
            }
            (Some(Grant::Messaging(allowed)), call) => self.message(&allowed, call).await,
            (Some(Grant::Store(_)), call) => Err(no_such_capability(&call)),
            (None, _) => Err(CallError::Unavailable(format!("trellis://embedded does not hold the link {link}"))),
        }
    }

    fn check_publish(&self, link: &LinkId, message: &Message) -> Result<(), CallError> {
        let grant = self.grants().get(link).cloned();
        let Some(Grant::Messaging(allowed)) = grant else { return Ok(()) };
        self.check_allowed(&allowed, &message.subject)?;
        messaging::check(message)
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        self.durable.trigger(link)
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        let grant = self.grants().get(link).cloned();
        match grant {
            Some(Grant::Store(_)) => self.store.health(),
            Some(Grant::Messaging(_)) => Ok(()),
            None => self.durable.health(link).unwrap_or_else(|| self.messaging.health(link)),
        }
    }

    async fn drain(&self) {
        tokio::join!(self.durable.drain(), self.messaging.drain());
    }
}

/// Whether a link with this config is woken by a subject, or its queue takes it. Of a config that is wrong: no.
pub fn takes(config: &Config, subject: &str) -> bool {
    match Durable::is_meant(config) {
        true => durable::takes(config, subject),
        false => messaging::takes(config, subject),
    }
}

/// The store that a link uses: the one it names, else its app's.
fn store_name(link: &Link) -> Result<&str, LinkError> {
    let name = link.config.get("store").unwrap_or(link.component.app.as_str());
    if name.starts_with(OWN_STORES) {
        let problem = format!("`{name}`: names that begin with `{OWN_STORES}` are the node's own; choose another");
        return Err(LinkError::config("store", problem));
    }
    Ok(name)
}

fn no_such_capability(call: &Call) -> CallError {
    CallError::Denied(format!("this link does not grant {:?}", call.capability()))
}
