//! The provider against a real redis-server, with permits that a test counts and events that a test handles.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod keyvalue;
mod stream;
mod tls;

use redis::aio::MultiplexedConnection;
use trellis_redis::testing::RedisServer;

/// A client that has nothing to do with Trellis.
async fn client(server: &RedisServer) -> MultiplexedConnection {
    redis::Client::open(server.url.as_str()).unwrap().get_multiplexed_async_connection().await.unwrap()
}
