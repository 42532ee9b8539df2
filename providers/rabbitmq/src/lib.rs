//! RabbitMQ as a provider: queues over AMQP 0.9.1. The only crate that knows AMQP.
