//! TLS to a server that asks for the client's certificate.

use std::process::Command;

use trellis_mqtt::testing::Mosquitto;
use trellis_provider::Provider as _;
use trellis_provider::testing::certificates::{CA, Certificates, PASSWORD, USER};
use trellis_provider::testing::lab::{Node, until};
use trellis_wire::{Call, Message};

use crate::lab::Home;

/// A server that lets in who has the certificate and the login.
fn server(made: &Certificates) -> Mosquitto {
    let logins = made.path("logins");
    let written = Command::new("mosquitto_passwd").args(["-b", "-c", &logins, USER, PASSWORD]).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let [ca, certificate, key] = [CA, "server.pem", "server.key"].map(|name| made.path(name));
    Mosquitto::start_with(&format!(
        "allow_anonymous false\npassword_file {logins}\ncafile {ca}\ncertfile {certificate}\nkeyfile {key}\n\
         require_certificate true"
    ))
}

#[tokio::test]
async fn a_message_passes_with_the_secrets_of_its_link_and_what_is_wrong_is_said() {
    let made = Certificates::make();
    let (server, home, node) = (server(&made), Home::new(), Node::new(2));
    let (url, process) = (server.url.replace("mqtt://", "mqtts://"), home.open());
    for protocol in ["5", "3.1.1"] {
        let config = [("url", url.as_str()), ("protocol", protocol)];
        let topic = format!("orders/{protocol}");
        let wakes = made.link("messaging", &[&config[..], &[("topic", &topic)]].concat(), CA, true);
        process.wake(&wakes, &node).await;
        let grants = made.link("messaging", &config, CA, true);
        process.mqtt.grant(grants.clone()).await.unwrap();
        until("the publisher is connected", || process.mqtt.health(&grants.id).is_ok()).await;
        let message = Message { subject: topic, body: protocol.to_owned().into(), ..Message::default() };
        process.mqtt.call(&grants.id, Call::Publish(message)).await.unwrap();
        until("it is handled", || node.bodies().contains(&protocol.to_owned())).await;
        made.are_asked_for(&process.mqtt, &config).await;
    }
}
