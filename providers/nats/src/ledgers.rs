//! Ledgers of the lattice, for queues whose broker has no place for one: entries in a bucket of the lattice's own NATS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::AccountErrorKind;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use trellis_provider::delivery::{Ledger, Trouble};
use trellis_wire::Link;

use crate::Nats;
use crate::clock::ServerClock;
use crate::connection::Connection;
use crate::entries::{Bucket, Entries};

/// The ledgers of the lattice.
pub struct Ledgers(Arc<Place>);

/// Where they are.
struct Place {
    nats: Arc<Nats>,
    link: Link,
    opened: OnceCell<Opened>,
}

/// The bucket, on a connection that is kept.
struct Opened {
    connection: Arc<Connection>,
    bucket: Arc<Bucket>,
    clock: Arc<ServerClock>,
    /// How often the client had connected when the clock was read: another server has another clock.
    connects: AtomicU64,
}

impl Ledgers {
    /// Ledgers in the bucket that `link` names, such as `TRELLIS_home_rabbitmq`: no link of an app may name such a one. It is
    /// made with the first entry, on three servers where there are so many.
    pub fn new(nats: Arc<Nats>, link: Link) -> Self {
        Self(Arc::new(Place { nats, link, opened: OnceCell::new() }))
    }
}

impl Place {
    async fn opened(&self) -> Result<&Opened, Trouble> {
        let open = async || {
            let connection = self.nats.connections.get(&self.link).await.map_err(|why| why.to_string())?;
            let (name, context) = (self.link.config.get("bucket").unwrap_or_default(), connection.jetstream(None));
            let clock = Arc::new(ServerClock::new(context.clone(), format!("KV_{name}")));
            let bucket = Arc::new(Bucket::new(context, name.into(), clock.clone()));
            Ok::<_, Trouble>(Opened { connection, bucket, clock, connects: AtomicU64::new(0) })
        };
        let opened = self.opened.get_or_try_init(open).await?;
        opened.connection.health().map_err(|why| opened.bucket.failed(why))?;
        Ok(opened)
    }

    /// The entries of the ledger of this name.
    async fn entries(&self, name: &str) -> Result<Entries, Trouble> {
        let Opened { connection, bucket, clock, connects } = self.opened().await?;
        bucket.store().await?;
        let now = connection.client.statistics().connects.load(Ordering::Relaxed);
        if connects.load(Ordering::Relaxed) != now {
            clock.look().await?;
            connects.store(now, Ordering::Relaxed);
        }
        Ok(Entries::new(bucket, name.into()))
    }
}

#[async_trait]
impl trellis_provider::Ledgers for Ledgers {
    fn ledger(&self, name: &str) -> Arc<dyn Ledger> {
        Arc::new(Named { place: self.0.clone(), name: name.into() })
    }

    async fn missing(&self) -> Result<Option<String>, Trouble> {
        let bucket = &self.0.opened().await?.bucket;
        let Err(why) = bucket.context.query_account().await else { return Ok(None) };
        let off = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];
        match why.kind() {
            AccountErrorKind::JetStreamUnavailable => {}
            AccountErrorKind::JetStream(refused) if off.contains(&refused.error_code()) => {}
            _ => return Err(bucket.failed(why)),
        }
        Ok(Some("the lattice's NATS server has no JetStream for this node".into()))
    }
}

/// A ledger by its name. The server is looked for with each use.
struct Named {
    place: Arc<Place>,
    name: String,
}

#[async_trait]
impl Ledger for Named {
    async fn read(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        self.place.entries(&self.name).await?.read(key).await
    }

    async fn swap(&self, key: &str, old: Option<&[u8]>, new: Option<&[u8]>, keep: Duration) -> Result<bool, Trouble> {
        self.place.entries(&self.name).await?.swap(key, old, new, keep).await
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, Trouble> {
        self.place.entries(&self.name).await?.keys(prefix).await
    }
}
