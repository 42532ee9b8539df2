//! TLS to a server that asks for the client's certificate.

use trellis_bus::testing::NatsServer;
use trellis_nats::{Nats, Options};
use trellis_provider::Provider as _;
use trellis_provider::testing::certificates::{CA, Certificates, PASSWORD, USER};
use trellis_provider::testing::lab::{Node, until};
use trellis_wire::{Call, Delivery, KeyValue, Secret};

use crate::{message, publish};

#[tokio::test]
async fn a_message_passes_with_the_secrets_of_its_link_and_what_is_wrong_is_said() {
    let made = Certificates::make();
    let [ca, certificate, key] = [CA, "server.pem", "server.key"].map(|name| made.path(name));
    let tls = ["--tlscert", &certificate, "--tlskey", &key, "--tlscacert", &ca, "--tlsverify"];
    let server = NatsServer::start_with(true, &[&tls[..], &["--user", USER, "--pass", PASSWORD]].concat());
    let (nats, node) = (Nats::new(Options::default()), Node::new(2));
    let config = [("url", server.url.as_str())];
    let grants = made.link("messaging", &config, CA, true);
    nats.grant(grants.clone()).await.unwrap();
    until("the publisher is connected", || nats.health(&grants.id).is_ok()).await;
    for (key, queue) in [("subscriptions", "core"), ("stream", "orders")] {
        let mut wakes = made.link("messaging", &[&config[..], &[(key, queue), ("create", "true")]].concat(), CA, true);
        if key == "subscriptions" {
            wakes.delivery = Delivery::default();
        }
        nats.wake(wakes.clone(), node.permits(&wakes)).await.unwrap();
        until("the link stands", || nats.health(&wakes.id).is_ok()).await;
        publish(&nats, &grants.id, message(queue, queue)).await.unwrap();
        until("it is handled", || node.bodies().contains(&queue.to_owned())).await;
    }
    made.are_asked_for(&nats, &config).await;
}

#[tokio::test]
async fn the_domain_of_a_bucket_is_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nats.conf");
    std::fs::write(&config, "jetstream { domain: hub }").unwrap();
    let server = NatsServer::start_with(true, &["--config", config.to_str().unwrap()]);
    let nats = Nats::new(Options::default());
    let opens = async |domain: &str| {
        let bucket = [("url", server.url.as_str()), ("bucket", "kept"), ("create", "true"), ("for", domain)];
        let mut link = crate::link("shop", "keyvalue", &bucket);
        link.secrets.set("js_domain", Secret::new(domain));
        nats.grant(link.clone()).await.unwrap();
        until("the bucket was looked for", || !nats.health(&link.id).is_err_and(|why| why.contains("connecting")))
            .await;
        nats.call(&link.id, Call::KeyValue(KeyValue::Exists("a".into()))).await
    };
    opens("hub").await.unwrap();
    let why = opens("spoke").await.unwrap_err().to_string();
    assert!(!why.contains("spoke"), "{why}");
}
