//! The provider against a real nats-server, with permits that a test counts and events that a test handles.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod forgetful;
mod kept;
mod keyvalue;
mod ledgers;
mod ordered;
mod publish;
mod stream;
mod subscribe;
mod tls;

use trellis_nats::{Nats, Options};
use trellis_provider::Provider;
use trellis_provider::testing::lab::until;
use trellis_wire::{Answer, Call, CallError, ComponentKey, Config, Link, LinkId, LinkName, Message};

fn provider(url: &str) -> Nats {
    Nats::new(Options { default_url: Some(url.into()), ..Options::default() })
}

/// A link of `shop/<component>` with this package and configuration.
fn link(component: &str, package: &str, config: &[(&str, &str)]) -> Link {
    let component: ComponentKey = format!("shop/{component}").parse().unwrap();
    let provider: ComponentKey = "shop/nats".parse().unwrap();
    let name = LinkName::default();
    let id = LinkId::new(&component, &provider, &name, "wasmcloud", package, &[format!("{config:?}")]);
    let config = Config::from_iter(config.iter().copied());
    Link {
        id,
        component,
        name,
        namespace: "wasmcloud".into(),
        package: package.into(),
        interfaces: vec![],
        config,
        delivery: trellis_wire::Delivery::default(),
        secrets: Default::default(),
        part: Default::default(),
    }
}

fn message(subject: &str, body: &str) -> Message {
    Message { subject: subject.into(), body: body.to_owned().into(), ..Message::default() }
}

/// A link through which the test itself publishes.
async fn publisher(nats: &Nats) -> LinkId {
    let link = link("test", "messaging", &[]);
    let id = link.id.clone();
    nats.grant(link).await.unwrap();
    until("the provider is connected", || nats.health(&id).is_ok()).await;
    id
}

async fn publish(nats: &Nats, link: &LinkId, message: Message) -> Result<(), CallError> {
    nats.call(link, Call::Publish(message)).await.map(|answer| assert!(matches!(answer, Answer::Published)))
}
