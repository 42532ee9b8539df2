//! The provider against a real mosquitto, with permits that a test counts and events that a test handles.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use trellis_mqtt::testing::Mosquitto;
use trellis_mqtt::{MESSAGE_BYTES_MAX, Mqtt};
use trellis_provider::testing::lab::{Node, link, silent, until};
use trellis_provider::{LinkError, Provider as _};
use trellis_wire::{Answer, Call, CallError, Delivery, Link, LinkId, Message};

/// A link with the delivery policy that is none.
fn plain(url: &str, config: &[(&str, &str)]) -> Link {
    Link { delivery: Delivery::default(), ..link("messaging", &[&[("url", url)], config].concat()) }
}

async fn publisher(mqtt: &Mqtt, url: &str) -> LinkId {
    let link = plain(url, &[("for", "the test")]);
    mqtt.grant(link.clone()).await.unwrap();
    until("it is connected", || mqtt.health(&link.id).is_ok()).await;
    link.id
}

async fn publish(mqtt: &Mqtt, link: &LinkId, subject: &str, body: &str) -> Result<(), CallError> {
    let headers = vec![("kind".into(), "test".into())];
    let message = Message { subject: subject.into(), body: body.to_owned().into(), headers, ..Message::default() };
    mqtt.call(link, Call::Publish(message)).await.map(|answer| assert!(matches!(answer, Answer::Published)))
}

#[tokio::test]
async fn each_message_wakes_a_component_on_one_node() {
    let server = Mosquitto::start(true);
    let (one, other) = (Mqtt::new(), Mqtt::new());
    let nodes = [Node::new(4), Node::new(4)];
    let link = plain(&server.url, &[("topic", "orders/+")]);
    for (mqtt, node) in [&one, &other].into_iter().zip(&nodes) {
        mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
        until("the subscription stands", || mqtt.health(&link.id).is_ok()).await;
    }
    let publishes = publisher(&one, &server.url).await;
    for n in 0..40 {
        publish(&one, &publishes, "orders/eu", &n.to_string()).await.unwrap();
        publish(&one, &publishes, "others/eu", "not asked for").await.unwrap();
    }
    let bodies = || nodes.iter().flat_map(Node::bodies).collect::<Vec<_>>();
    until("all came", || bodies().len() >= 40).await;
    let mut came: Vec<usize> = bodies().iter().map(|body| body.parse().unwrap()).collect();
    came.sort_unstable();
    assert_eq!(came, (0..40).collect::<Vec<_>>(), "each to one node");
    let first = nodes.iter().find_map(|node| node.woken().first().cloned()).unwrap();
    assert_eq!((first.subject.as_str(), first.attempt), ("orders/eu", 1));
    assert_eq!(first.headers, [("kind".to_owned(), "test".to_owned())]);
    one.remove(&link.id).await;
    other.drain().await;
}

#[tokio::test]
async fn it_outlives_its_server() {
    let mut server = Mosquitto::start(true);
    let (mqtt, node) = (Mqtt::new(), Node::new(1));
    let link = plain(&server.url, &[("topic", "orders")]);
    mqtt.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the subscription stands", || mqtt.health(&link.id).is_ok()).await;
    let publishes = publisher(&mqtt, &server.url).await;
    server.kill();
    let away =
        |id: &LinkId| mqtt.health(id).is_err_and(|why| why.contains(&format!("not connected to {}", server.url)));
    until("that it is away is said", || away(&link.id) && away(&publishes)).await;
    assert!(matches!(publish(&mqtt, &publishes, "orders", "lost").await, Err(CallError::Unavailable(_))));
    server.restart();
    until("all is well", || mqtt.health(&link.id).is_ok() && mqtt.health(&publishes).is_ok()).await;
    publish(&mqtt, &publishes, "orders", "kept").await.unwrap();
    until("it is handled", || node.bodies() == ["kept"]).await;
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = Mosquitto::start(false);
    let (mqtt, node) = (Mqtt::new(), Node::new(1));
    let refused = async |link: Link| mqtt.wake(link.clone(), node.permits(&link)).await.unwrap_err();
    let with_policy = link("messaging", &[("url", &server.url), ("topic", "orders")]);
    assert!(matches!(refused(with_policy).await, LinkError::Unsupported(why) if why.contains("at most once")));
    let twice = refused(plain(&server.url, &[("topic", "orders"), ("qos", "1")])).await.to_string();
    assert!(twice.contains("config `qos`") && twice.contains("at most once"), "{twice}");
    assert!(refused(plain(&server.url, &[("topic", "$SYS/#")])).await.to_string().contains("is no topic"));

    let says = |link: &Link, what: &str| mqtt.health(&link.id).is_err_and(|why| why.contains(what));
    let stranger = plain(&server.url, &[("topic", "orders"), ("user", "me"), ("password", "s3cret")]);
    mqtt.wake(stranger.clone(), node.permits(&stranger)).await.unwrap();
    until("the login is refused", || says(&stranger, "the login is refused: check `user` and `password`")).await;
    assert!(!mqtt.health(&stranger.id).unwrap_err().contains("s3cret"));
    let mute = plain(&format!("mqtt://{}", silent()), &[("topic", "orders")]);
    mqtt.wake(mute.clone(), node.permits(&mute)).await.unwrap();
    until("that it does not answer is said", || says(&mute, "no answer within 5s")).await;

    let publishes = plain(&server.url, &[("allowed_subjects", "shop.>")]);
    mqtt.grant(publishes.clone()).await.unwrap();
    let check = |subject: &str, bytes: usize| {
        let message = Message { subject: subject.into(), body: vec![0; bytes].into(), ..Message::default() };
        mqtt.check_publish(&publishes.id, &message)
    };
    assert_eq!(check("shop/new", 1), Ok(()));
    assert!(matches!(check("bank", 1), Err(CallError::Denied(_))));
    assert!(matches!(check("shop/+", 1), Err(CallError::Invalid(_))));
    assert!(matches!(check("shop/new", MESSAGE_BYTES_MAX + 1), Err(CallError::Invalid(_))));
}
