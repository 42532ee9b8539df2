//! Manifests as a node reads them: also what its providers would refuse of their links is found before the deploy.

use std::collections::BTreeMap;

use trellis_manifest::{Options, Parsed, Tech, Unfit, Way};
use trellis_provider::LinkError;
use trellis_wire::Link;

/// Reads a manifest. `origin` is the file's name, for messages; aliases of images are as in [`Options`].
pub fn parse(yaml: &str, origin: &str, image_aliases: BTreeMap<String, String>) -> Parsed {
    trellis_manifest::parse_with(yaml, origin, &Options { image_aliases, check: Some(check) })
}

/// Whether a provider would take a link. What is not looked at here is when it is bound, and `trellis status` says what is
/// wrong.
fn check(tech: Tech, way: Way, link: &Link) -> Result<(), Unfit> {
    let looked = match (tech, way) {
        (Tech::Timer, Way::Wakes) => trellis_timer::check(link),
        (Tech::Nats, Way::Wakes) => trellis_nats::check_wake(link),
        (Tech::Nats, Way::Grants) => trellis_nats::check_grant(link),
        (Tech::Redis, Way::Wakes) => trellis_redis::check_wake(link),
        (Tech::Redis, Way::Grants) => trellis_redis::check_grant(link),
        (Tech::Rabbitmq, Way::Wakes) => trellis_rabbitmq::check_wake(link),
        (Tech::Rabbitmq, Way::Grants) => trellis_rabbitmq::check_grant(link),
        (Tech::Mqtt, Way::Wakes) => trellis_mqtt::check_wake(link),
        (Tech::Mqtt, Way::Grants) => trellis_mqtt::check_grant(link),
        (Tech::Embedded, Way::Wakes) => trellis_embedded::check_wake(link),
        (Tech::Embedded, Way::Grants) => trellis_embedded::check_grant(link),
        (Tech::Http, _) | (Tech::Timer, Way::Grants) => Ok(()),
    };
    looked.map_err(|why| Unfit {
        problem: why.to_string(),
        key: match why {
            LinkError::Config { key, .. } => Some(key),
            LinkError::Taken(_) | LinkError::Unsupported(_) | LinkError::Failed(_) => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest whose timer is configured so.
    fn timer(config: &str) -> String {
        let link = format!(
            "{{target: worker, namespace: trellis, package: messaging, interfaces: [handler],
            source: {{config: [{config}]}}}}"
        );
        format!(
            "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {{name: shop}}
spec:
  components:
    - {{name: worker, type: component, properties: {{image: worker.wasm}}}}
    - name: timer
      type: capability
      properties: {{image: 'trellis://timer'}}
      traits:
        - type: link
          properties: {link}
"
        )
    }

    fn found(config: &str) -> String {
        let parsed = parse(&timer(config), "shop.yaml", BTreeMap::new());
        parsed.findings.iter().map(|found| format!("{}:{} {}\n", found.line, found.column, found.message)).collect()
    }

    #[test]
    fn a_wrong_timer_is_found_where_it_stands() {
        // What is said of these properties, and whether it is said of the place where this text is.
        let said_at = |properties: &str, text: &str| {
            let config = format!("{{name: each, properties: {{{properties}}}}}");
            let manifest = timer(&config);
            let before = manifest.split(text).next().unwrap();
            let (line, column) = (before.lines().count(), before.lines().last().unwrap().chars().count() + 1);
            let said = found(&config);
            let message = said.strip_prefix(&format!("{line}:{column} "));
            message.unwrap_or_else(|| panic!("not at {line}:{column}: {said}")).to_owned()
        };
        let cron = said_at("cron: '61 * * * *'", "cron: ");
        assert!(cron.starts_with("config `cron`: `61 * * * *`: "), "{cron}");
        let zone = said_at("cron: '@daily', timezone: Mars", "timezone: ");
        assert_eq!(zone, "config `timezone`: `Mars` is no time zone; write one such as `Europe/Berlin`\n");
        let missing = said_at("missed: once", "worker, namespace");
        assert_eq!(missing, "config `cron`: is missing; write `cron: \"0 9 * * *\"` or `every: 10s`\n");
        assert_eq!(found("{name: each, properties: {every: 10s}}"), "");
        let ordered = said_at("every: 10s, delivery.order_by: subject", "delivery.order_by: ");
        assert!(ordered.starts_with("config `delivery.order_by`: a timer"), "{ordered}");
    }

    /// What is found in a manifest with these links of a provider of this technology, which has this config itself.
    fn found_in(tech: &str, own: &str, wakes: &str, grants: &str) -> String {
        let manifest = format!(
            "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {{name: shop}}
spec:
  policies:
    - {{name: files, type: policy.secret.wasmcloud.dev/v1alpha1, properties: {{backend: file}}}}
  components:
    - name: worker
      type: component
      properties: {{image: worker.wasm}}
      traits: [{grants}]
    - name: broker
      type: capability
      properties: {{image: 'trellis://{tech}', config: [{{name: own, properties: {{{own}}}}}],
        secrets: [{{name: password, properties: {{policy: files, key: password}}}}]}}
      traits: [{wakes}]
"
        );
        let parsed = parse(&manifest, "shop.yaml", BTreeMap::new());
        let shown = |found: &trellis_manifest::Finding| {
            let line = manifest.lines().nth(found.line as usize - 1).unwrap_or_default();
            let at = line.chars().skip(found.column as usize - 1).take(12).collect::<String>();
            format!("at `{at}`: {}\n", found.message)
        };
        parsed.findings.iter().map(shown).collect()
    }

    fn link(target: &str, interface: &str, end: &str, config: &str) -> String {
        let (package, interface) = interface.split_once('/').unwrap();
        let namespace = if package == "keyvalue" { "wasi" } else { "trellis" };
        let target = match end {
            "target" => format!("{{name: {target}, config: [{{name: granted, properties: {{{config}}}}}]}}"),
            _ => format!("{target}, source: {{config: [{{name: waking, properties: {{{config}}}}}]}}"),
        };
        format!(
            "{{type: link, properties: {{namespace: {namespace}, package: {package}, interfaces: [{interface}], target: \
             {target}}}}}"
        )
    }

    #[test]
    fn what_a_broker_would_refuse_is_found_where_it_stands() {
        let waking = |tech: &str, config: &str| {
            found_in(tech, "user: me", &link("worker", "messaging/handler", "source", config), "")
        };
        for (tech, config, at, said) in [
            ("rabbitmq", "queue: orders, create: maybe", "create: mayb", "`maybe` is neither `true` nor `false`"),
            ("rabbitmq", "queue: orders, url: 'http://mq'", "url: 'http:/", "write amqp://HOST:PORT/VHOST"),
            ("rabbitmq", "create: 'true'", "worker, sour", "config `queue`"),
            ("mqtt", "topic: 'a/#/b'", "topic: 'a/#/", "is no topic"),
            ("mqtt", "topic: orders, qos: '2'", "qos: '2'", "`0` (at most once) or `1`"),
            (
                "mqtt",
                "topic: orders, delivery.dead_letter: dead, qos: '0'",
                "delivery.dea",
                "dead letters stay on the disk",
            ),
            (
                "nats",
                "subscriptions: orders, delivery.order_by: subject",
                "delivery.ord",
                "write `stream: NAME` in the source config, or take `order_by` out",
            ),
            (
                "mqtt",
                "topic: orders, delivery.order_by: 'header:lane', protocol: 3.1.1",
                "delivery.ord",
                "messages of MQTT 3.1.1 have no headers",
            ),
            (
                "mqtt",
                "topic: orders, delivery.dedupe.key: 'header:k', delivery.dedupe.window: 1h, protocol: 3.1.1",
                "delivery.ded",
                "messages of MQTT 3.1.1 have no headers",
            ),
            (
                "mqtt",
                "topic: orders, delivery.dedupe.key: id, delivery.dedupe.window: 1h",
                "delivery.ded",
                "messages of MQTT have no ids",
            ),
            ("mqtt", "queue: orders, topic: orders", "queue: order", "stands beside `topic`"),
            ("redis", "stream: ''", "stream: ''", "config `stream`: is missing"),
            ("redis", "queue: orders, stream: orders", "queue: order", "stands beside `stream`"),
            ("nats", "queue: orders, stream: orders", "queue: order", "stands beside `stream`"),
            ("nats", "queue: orders, subscriptions: orders", "subscription", "stands beside `queue`"),
            ("nats", "topic: orders", "topic: order", "is a word of another broker; write `stream`, or `queue`"),
            ("rabbitmq", "stream: orders", "stream: orde", "is a word of another broker; write `queue`"),
            ("embedded", "stream: orders", "stream: orde", "is a word of another broker; write `queue`"),
            ("redis", "stream: a, url: 'redis://h/two'", "url: 'redis:", "no number as its database"),
            ("nats", "stream: 'a b'", "stream: 'a b", "config `stream`"),
            ("nats", "subscriptions: 'a..b'", "subscription", "config `subscriptions`"),
        ] {
            let found = waking(tech, config);
            let is_there = found.lines().any(|line| line.starts_with(&format!("at `{at}")) && line.contains(said));
            assert!(is_there, "{tech} {config}: {found}");
        }
        let granting = |tech: &str, interface: &str, config: &str| {
            found_in(tech, "user: me", "", &link("broker", interface, "target", config))
        };
        let bucket = granting("nats", "keyvalue/store", "bucket: 'a b'");
        assert!(bucket.starts_with("at `bucket: 'a b") && bucket.contains("config `bucket`"), "{bucket}");
        let url = granting("redis", "keyvalue/store", "url: 'http://h'");
        assert!(url.contains("redis://HOST:PORT/DATABASE"), "{url}");
        let qos = granting("mqtt", "messaging/producer", "qos: one");
        assert!(qos.contains("config `qos`"), "{qos}");
    }

    #[test]
    fn every_broker_takes_queue_for_its_own_word() {
        let wakes = link("worker", "messaging/handler", "source", "queue: orders");
        for tech in ["nats", "redis", "rabbitmq", "mqtt"] {
            assert_eq!(found_in(tech, "user: me", &wakes, ""), "", "{tech}");
        }
    }

    #[test]
    fn an_order_of_topics_is_kept_by_a_provider_without_a_scaler() {
        let ordered = link("worker", "messaging/handler", "source", "topic: orders, delivery.order_by: subject");
        assert_eq!(found_in("mqtt", "user: me", &ordered, ""), "");
        let scaled = format!("{ordered}, {{type: daemonscaler, properties: {{instances: 1}}}}");
        let found = found_in("mqtt", "user: me", &scaled, "");
        assert!(found.contains("`broker` has a scaler, so that no order of its topics can be kept"), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
        let loose = scaled.replace(", delivery.order_by: subject", "");
        assert_eq!(found_in("mqtt", "user: me", &loose, ""), "");
        let capped = scaled.replace("delivery.order_by: subject", "delivery.max_in_flight: '2'");
        assert_eq!(found_in("mqtt", "user: me", &capped, ""), "", "each of its nodes has caps of its own");
    }

    #[test]
    fn secrets_count_though_nobody_knows_them_yet_and_a_password_is_said_once() {
        let config = "queue: orders, url: 'amqps://mq', tls_cert: /cert.pem, tls_key: /key.pem";
        let wakes = link("worker", "messaging/handler", "source", config);
        assert_eq!(found_in("rabbitmq", "user: me", &wakes, ""), "");
        let wakes = link("worker", "messaging/handler", "source", "stream: ORDERS");
        assert_eq!(found_in("nats", "user: me", &wakes, ""), "");
        let wakes = link("worker", "messaging/handler", "source", "queue: orders, url: 'amqp://me:s3cret@mq'");
        assert_eq!(found_in("rabbitmq", "user: me", &wakes, "").lines().count(), 1);
    }

    #[test]
    fn what_the_lattice_keeps_is_not_judged_before_it_is_known() {
        assert_eq!(found("{name: shop-hours}"), "");
        let both = found("{name: a, properties: {every: 10s}}, {name: b, properties: {every: never}}");
        assert!(both.contains("config `every`: `never` is no time"), "the last one counts: {both}");
        assert_eq!(found("{name: a, properties: {every: never}}, {name: b, properties: {every: 10s}}"), "");
    }
}
