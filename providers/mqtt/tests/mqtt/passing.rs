//! Topics at most once, and what is wrong.

use std::io::{Read as _, Write as _};

use trellis_mqtt::testing::Mosquitto;
use trellis_mqtt::{MESSAGE_BYTES_MAX, Mqtt};
use trellis_provider::Provider as _;
use trellis_provider::testing::lab::{Node, link, silent, until};
use trellis_wire::{Answer, Call, CallError, Delivery, Link, LinkId, Message, OrderBy};

use crate::lab::Home;

/// A link with the delivery policy that is none.
fn plain(url: &str, config: &[(&str, &str)]) -> Link {
    Link { delivery: Delivery::default(), ..link("messaging", &[&[("url", url), ("qos", "0")], config].concat()) }
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
    let homes = [Home::new(), Home::new()];
    let [one, other] = homes.each_ref().map(|home| home.open().mqtt);
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
    let (home, node) = (Home::new(), Node::new(1));
    let mqtt = home.open().mqtt;
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
    let (home, node) = (Home::new(), Node::new(1));
    let mqtt = home.open().mqtt;
    let refused = async |link: Link| mqtt.wake(link.clone(), node.permits(&link)).await.unwrap_err();
    let mut elsewhere = link("messaging", &[("url", &server.url), ("topic", "orders"), ("qos", "0")]);
    elsewhere.delivery.dead_letter = Some("dead".into());
    let why = refused(elsewhere).await.to_string();
    assert!(why.starts_with("config `delivery.dead_letter`: dead letters stay on the disk"), "{why}");
    let by = |order: OrderBy, config: &[(&str, &str)]| {
        let delivery = Delivery { order_by: Some(order), ..Delivery::default() };
        Link { delivery, ..link("messaging", &[&[("url", &*server.url), ("topic", "orders")], config].concat()) }
    };
    let header = || OrderBy::Header("lane".into());
    let why = refused(by(header(), &[("protocol", "3.1.1")])).await.to_string();
    assert!(
        why.starts_with("config `delivery.order_by`: `header:lane`: messages of MQTT 3.1.1 have no headers"),
        "{why}"
    );
    for ordered in
        [by(header(), &[]), by(OrderBy::Subject, &[("qos", "0")]), by(OrderBy::Subject, &[("protocol", "3.1.1")])]
    {
        assert_eq!(trellis_mqtt::check_wake(&ordered), Ok(()));
    }
    let why = async |config: &[(&str, &str)]| refused(plain(&server.url, config)).await.to_string();
    assert!(why(&[("topic", "orders"), ("qos", "2")]).await.contains("config `qos`: `2`: `0` (at most once) or `1`"));
    assert!(why(&[("topic", "orders"), ("protocol", "4")]).await.contains("`5` or `3.1.1` is expected"));
    assert!(why(&[("topic", "$SYS/#")]).await.contains("is no topic"));

    let says = |link: &Link, what: &str| mqtt.health(&link.id).is_err_and(|why| why.contains(what));
    let (silent, old) = (format!("mqtt://{}", silent()), format!("mqtt://{}", speaks_3_1_1_only()));
    for (protocol, qos) in [("5", "0"), ("5", "1"), ("3.1.1", "0"), ("3.1.1", "1")] {
        let asks = |url: &str| {
            plain(
                url,
                &[("topic", "orders"), ("protocol", protocol), ("qos", qos), ("user", "me"), ("password", "s3cret")],
            )
        };
        let (stranger, mute, older) = (asks(&server.url), asks(&silent), asks(&old));
        for link in [&stranger, &mute, &older] {
            mqtt.wake(link.clone(), node.permits(link)).await.unwrap();
        }
        until("the login is refused", || says(&stranger, "the login is refused: check `user` and `password`")).await;
        assert!(!mqtt.health(&stranger.id).unwrap_err().contains("s3cret"));
        until("that it does not answer is said", || says(&mute, "no answer within 5s")).await;
        if protocol == "5" {
            until("what it speaks is said", || says(&older, "write `protocol: \"3.1.1\"`")).await;
        }
    }

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

/// The address of a server that lets nobody in who speaks another version, for as long as the test lasts.
fn speaks_3_1_1_only() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map(Result::unwrap) {
            let _ = client.read(&mut [0; 1024]).and_then(|_| client.write_all(&[0x20, 2, 0, 1]));
        }
    });
    address
}
