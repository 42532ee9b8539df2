//! A real nats-server that is down, comes back, keeps us out or is too old.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use trellis_bus::testing::NatsServer;
use trellis_bus::{Auth, Bus, BusError, Connection, Nats, Options};
use trellis_wire::Secret;

use crate::contract::{connected, next, until};

#[tokio::test]
async fn a_server_that_is_killed_and_restarted_is_found_again() {
    let mut server = NatsServer::start(false);
    let (a, b) = (connected(&server.url).await, connected(&server.url).await);
    let mut pings = b.subscribe("ping", None).await.unwrap();

    let asking = a.request("ping", &[], Bytes::new(), Duration::from_secs(60));
    let (under_way, ()) = tokio::join!(asking, async {
        next(&mut pings).await;
        server.kill();
    });
    assert!(matches!(under_way, Err(BusError::Disconnected(_))), "who waits is told at once: {under_way:?}");
    let said = until(&a, |now| matches!(now, Connection::Disconnected { reason } if reason.contains("refused"))).await;
    let Connection::Disconnected { reason } = said else { unreachable!() };
    assert!(reason.starts_with(&server.url), "{reason}");
    let published = Instant::now();
    let refused = a.publish("ping", &[], "lost".into()).await.unwrap_err();
    assert!(refused.is_retryable() && refused.to_string().contains(&server.url), "{refused}");
    assert!(published.elapsed() < Duration::from_secs(1), "an end that is cut off says so at once");

    server.restart();
    until(&a, Connection::is_connected).await;
    until(&b, Connection::is_connected).await;
    b.flush().await.unwrap();
    a.publish("ping", &[], "again".into()).await.unwrap();
    assert_eq!(next(&mut pings).await.payload, "again", "the subscription stands again, and nothing stale came");
}

#[tokio::test]
async fn who_listens_to_everything_delays_nobody() {
    let server = NatsServer::start(false);
    let client = async_nats::connect(&server.url).await.unwrap();
    let _everything = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    let bus = Bus::Nats(Nats::connect(&Options::urls([&server.url])).await.unwrap());
    until(&bus, Connection::is_connected).await;
    let begun = Instant::now();
    bus.flush().await.unwrap();
    let mut early = bus.subscribe("early", None).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "nothing waits until a request has found nobody");
    bus.publish("early", &[], "bird".into()).await.unwrap();
    assert_eq!(next(&mut early).await.payload, "bird");
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_no_error() {
    let mut server = NatsServer::start(false);
    server.kill();
    let bus = Bus::Nats(Nats::connect(&Options::urls([&server.url])).await.unwrap());
    let mut early = bus.subscribe("early", None).await.unwrap();
    assert!(matches!(bus.publish("early", &[], Bytes::new()).await, Err(BusError::Disconnected(_))));
    until(&bus, |now| matches!(now, Connection::Disconnected { reason } if reason.contains("refused"))).await;

    server.restart();
    let Connection::Connected { server } = until(&bus, Connection::is_connected).await else { unreachable!() };
    assert!(server.starts_with("2."), "{server}");
    bus.flush().await.unwrap();
    bus.publish("early", &[], "bird".into()).await.unwrap();
    assert_eq!(next(&mut early).await.payload, "bird");
}

#[tokio::test]
async fn a_server_that_keeps_us_out_is_named_without_the_secret() {
    let server = NatsServer::start_with(false, &["--user", "node", "--pass", "s3cret"]);
    let as_user = |password: &str| Options {
        auth: Auth::Password { user: "node".into(), password: Secret::new(password) },
        ..Options::urls([&server.url])
    };
    let out = Bus::Nats(Nats::connect(&as_user("wr0ng")).await.unwrap());
    let Connection::Refused(reason) = until(&out, |now| matches!(now, Connection::Refused(_))).await else {
        unreachable!()
    };
    assert!(reason.contains(&server.url) && reason.contains("credentials"), "{reason}");
    assert!(!format!("{out:?}").contains("wr0ng"));

    let within = Bus::Nats(Nats::connect(&as_user("s3cret")).await.unwrap());
    until(&within, Connection::is_connected).await;
}

#[tokio::test]
async fn an_nkey_seed_file_lets_us_in() {
    let key = nkeys::KeyPair::new_user();
    let files = tempfile::tempdir().unwrap();
    let (config, seed) = (files.path().join("nats.conf"), files.path().join("node.nk"));
    std::fs::write(&config, format!("authorization {{ users = [{{ nkey: {} }}] }}", key.public_key())).unwrap();
    std::fs::write(&seed, format!("{}\n", key.seed().unwrap())).unwrap();
    let server = NatsServer::start_with(false, &["--config", config.to_str().unwrap()]);
    let options = Options { auth: Auth::NkeySeed(seed), ..Options::urls([&server.url]) };
    until(&Bus::Nats(Nats::connect(&options).await.unwrap()), Connection::is_connected).await;
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_its_version() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let greeting = br#"INFO {"server_id":"x","version":"2.9.10","max_payload":1048576,"headers":true}"#;
        stream.write_all(&[&greeting[..], b"\r\n"].concat()).await.unwrap();
        let mut said = [0; 4096];
        while stream.read(&mut said).await.is_ok_and(|read| read > 0) {
            stream.write_all(b"PONG\r\n").await.unwrap();
        }
    });
    let bus = Bus::Nats(Nats::connect(&Options::urls([&url])).await.unwrap());
    let Connection::Refused(reason) = until(&bus, |now| matches!(now, Connection::Refused(_))).await else {
        unreachable!()
    };
    assert_eq!(reason, format!("{url}: its version is 2.9.10; 2.10 or later is needed"));
    let refused = bus.request("a", &[], Bytes::new(), Duration::from_secs(1)).await;
    assert_eq!(refused, Err(BusError::Disconnected(reason)));
    drop(bus);
    old.await.unwrap();
}
