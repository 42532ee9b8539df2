//! TLS to a server that asks for the client's certificate.

use std::sync::Arc;

use trellis_embedded::Embedded;
use trellis_provider::Provider as _;
use trellis_provider::testing::certificates::{CA, Certificates, PASSWORD, USER};
use trellis_provider::testing::lab::{Node, until};
use trellis_rabbitmq::Rabbitmq;
use trellis_rabbitmq::testing::RabbitServer;
use trellis_wire::{Call, Message};

/// A server that lets in who has the certificate and the login.
fn server(made: &Certificates) -> RabbitServer {
    let file = |option: &str, name: &str| format!("{{{option}, \"{}\"}}", made.path(name));
    let files = [file("cacertfile", CA), file("certfile", "server.pem"), file("keyfile", "server.key")].join(", ");
    let login = format!("{{default_user, <<\"{USER}\">>}}, {{default_pass, <<\"{PASSWORD}\">>}}");
    RabbitServer::start_tls(&format!("{files}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}"), &login)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_passes_with_the_secrets_of_its_link_and_what_is_wrong_is_said() {
    let made = Arc::new(Certificates::make());
    let asked = made.clone();
    let server = tokio::task::spawn_blocking(move || server(&asked)).await.unwrap();
    let (disk, url) = (tempfile::tempdir().unwrap(), server.tls_url.as_str());
    let options = trellis_embedded::Options { data_dir: disk.path().into() };
    let (rabbit, node) = (Rabbitmq::new(Arc::new(Embedded::open(options).unwrap())), Node::new(1));
    let wakes = made.link("messaging", &[("url", url), ("queue", "orders"), ("create", "true")], CA, true);
    rabbit.wake(wakes.clone(), node.permits(&wakes)).await.unwrap();
    let grants = made.link("messaging", &[("url", url)], CA, true);
    rabbit.grant(grants.clone()).await.unwrap();
    until("the queue is there", || rabbit.health(&wakes.id).is_ok() && rabbit.health(&grants.id).is_ok()).await;
    let message = Message { subject: "orders".into(), body: "over TLS".into(), ..Message::default() };
    rabbit.call(&grants.id, Call::Publish(message)).await.unwrap();
    until("it is handled", || node.bodies() == ["over TLS"]).await;
    made.are_asked_for(&rabbit, &[("url", url)]).await;
}
