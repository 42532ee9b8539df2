//! The config keys and secrets that the built-in providers understand, so that a typing error does not go unnoticed.
//!
//! Only a warning hangs on this list; what a key means is decided by its provider.

use crate::{Tech, delivery};

/// For any provider's end of a link.
const ANY: &[&str] = &["max_in_flight"];
/// wadm-era keys of http-server and http-client, and ours.
const HTTP: &[&str] = &[
    "address",
    "default_address",
    "routing_mode",
    "path",
    "host",
    "header",
    "timeout_ms",
    "readonly_mode",
    "cache_control",
    "cors_allowed_origins",
    "cors_allowed_headers",
    "cors_allowed_methods",
    "cors_exposed_headers",
    "cors_max_age_secs",
    "tls_cert_file",
    "tls_priv_key_file",
    "allowed_hosts",
    "streaming",
    "max_body_bytes",
    "max_waiting",
    "port",
];
/// wadm-era keys of messaging-nats and keyvalue-nats, and ours.
const NATS: &[&str] = &[
    "subscriptions",
    "cluster_uris",
    "cluster_uri",
    "user",
    "client_jwt",
    "client_seed",
    "tls_ca",
    "tls_ca_file",
    "tls_cert",
    "tls_key",
    "custom_inbox_prefix",
    "bucket",
    "js_domain",
    "enable_bucket_auto_create",
    "url",
    "stream",
    "queue",
    "subject",
    "consumer",
    "create",
    "replicas",
    "allowed_subjects",
];
/// The wadm-era key of keyvalue-redis, and ours.
const REDIS: &[&str] = &[
    "URL",
    "url",
    "stream",
    "queue",
    "group",
    "create",
    "delete",
    "prefix",
    "allowed_subjects",
    "user",
    "tls_ca",
    "tls_cert",
    "tls_key",
];
const RABBITMQ: &[&str] =
    &["url", "queue", "exchange", "routing_key", "create", "allowed_subjects", "user", "tls_ca", "tls_cert", "tls_key"];
/// A topic needs no `create`, which a manifest has that came from another broker.
const MQTT: &[&str] = &[
    "url",
    "protocol",
    "topic",
    "queue",
    "qos",
    "create",
    "allowed_subjects",
    "user",
    "tls_ca",
    "tls_cert",
    "tls_key",
];
const EMBEDDED: &[&str] = &["queue", "subject", "subscriptions", "store", "create", "allowed_subjects"];
const TIMER: &[&str] =
    &["cron", "timezone", "every", "missed", "missed_max", "overlap", "jitter", "subject", "body", "args"];

/// The secrets of messaging-nats as wadm has them, and ours.
const NATS_SECRETS: &[&str] =
    &["user", "password", "token", "creds", "client_jwt", "client_seed", "tls_ca", "tls_cert", "tls_key", "js_domain"];
/// What lets a link into any other broker.
const BROKER_SECRETS: &[&str] = &["user", "password", "tls_ca", "tls_cert", "tls_key"];
const HTTP_SECRETS: &[&str] = &["tls_cert", "tls_priv_key"];

/// Every secret of a provider.
pub(crate) fn secrets_of(tech: Tech) -> &'static [&'static str] {
    match tech {
        Tech::Http => HTTP_SECRETS,
        Tech::Nats => NATS_SECRETS,
        Tech::Redis | Tech::Rabbitmq | Tech::Mqtt => BROKER_SECRETS,
        Tech::Embedded | Tech::Timer => &[],
    }
}

/// Those that no config may hold.
pub(crate) fn secrets_alone_of(tech: Tech) -> impl Iterator<Item = &'static str> {
    secrets_of(tech).iter().copied().filter(|secret| matches!(*secret, "password" | "token" | "creds"))
}

/// Every key of a provider that is not of the form `delivery.*`.
pub(crate) fn of(tech: Tech) -> impl Iterator<Item = &'static str> + Clone {
    let own = match tech {
        Tech::Http => HTTP,
        Tech::Nats => NATS,
        Tech::Embedded => EMBEDDED,
        Tech::Redis => REDIS,
        Tech::Rabbitmq => RABBITMQ,
        Tech::Mqtt => MQTT,
        Tech::Timer => TIMER,
    };
    own.iter().chain(ANY).copied()
}

/// Whether a provider understands a key. What no config may hold counts, as it is refused and no typing error.
pub(crate) fn is_known(tech: Tech, key: &str) -> bool {
    match key.strip_prefix("delivery.") {
        Some(key) => delivery::KEYS.contains(&key),
        None => {
            of(tech).chain(secrets_alone_of(tech)).any(|known| known == key)
                || (tech == Tech::Http && key.starts_with("cors_"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_a_queue_is_known_wherever_a_manifest_moves() {
        for tech in [Tech::Nats, Tech::Embedded, Tech::Redis, Tech::Rabbitmq, Tech::Mqtt] {
            assert!(["queue", "create"].iter().all(|key| is_known(tech, key)), "{tech:?}");
        }
    }
}
