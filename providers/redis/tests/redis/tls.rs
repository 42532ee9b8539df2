//! TLS to a server that asks for the client's certificate.

use trellis_provider::Provider as _;
use trellis_provider::testing::certificates::{CA, Certificates, PASSWORD, USER};
use trellis_provider::testing::lab::{Node, until};
use trellis_redis::Redis;
use trellis_redis::testing::RedisServer;
use trellis_wire::{Call, Message};

#[tokio::test]
async fn a_message_passes_with_the_secrets_of_its_link_and_what_is_wrong_is_said() {
    let made = Certificates::make();
    let [ca, certificate, key] = [CA, "server.pem", "server.key"].map(|name| made.path(name));
    let tls = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let password = format!(">{PASSWORD}");
    let login = ["--user", USER, "on", &password, "allkeys", "allchannels", "allcommands", "--user", "default", "off"];
    let server = RedisServer::start_tls(&[&tls[..], &login].concat());
    let url = server.tls_url.as_deref().unwrap();
    let (redis, node) = (Redis::new(), Node::new(1));
    let wakes = made.link("messaging", &[("url", url), ("stream", "orders"), ("create", "true")], CA, true);
    redis.wake(wakes.clone(), node.permits(&wakes)).await.unwrap();
    let grants = made.link("messaging", &[("url", url)], CA, true);
    redis.grant(grants.clone()).await.unwrap();
    let message = Message { subject: "orders".into(), body: "over TLS".into(), ..Message::default() };
    redis.call(&grants.id, Call::Publish(message)).await.unwrap();
    until("it is handled", || node.bodies() == ["over TLS"]).await;
    made.are_asked_for(&redis, &[("url", url)]).await;
}
