//! Redis as a provider: queues on streams, and key-value. The only crate that knows Redis.
