//! Ledgers of the lattice, for queues whose broker has no place for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trellis_bus::testing::NatsServer;
use trellis_nats::Ledgers;
use trellis_provider::Ledgers as _;
use trellis_provider::testing::lab::PATIENCE;
use trellis_provider::testing::ledger_contract;

use crate::{link, provider};

/// As one node of the lattice sees them.
fn ledgers(server: &NatsServer) -> Ledgers {
    let own = link("own", "keyvalue", &[("bucket", "TRELLIS_home_rabbitmq")]);
    Ledgers::new(Arc::new(provider(&server.url)), own)
}

/// Why they are missing, once that is known.
async fn missing(ledgers: &Ledgers) -> Option<String> {
    let began = Instant::now();
    loop {
        match ledgers.missing().await {
            Ok(missing) => return missing,
            Err(why) => assert!(began.elapsed() < PATIENCE, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn they_are_kept_by_jetstream_and_go_on_with_its_server() {
    let mut server = NatsServer::start(true);
    let (one, other) = (ledgers(&server), ledgers(&server));
    for ledgers in [&one, &other] {
        assert_eq!(missing(ledgers).await, None);
    }
    ledger_contract(&*one.ledger("a"), &*other.ledger("a")).await;
    let long = Duration::from_secs(600);
    assert_eq!(one.ledger("b").keys("marks/").await, Ok(vec![]), "names keep them apart");
    assert_eq!(one.ledger("b").swap("marks/1", None, Some(b"1"), long).await, Ok(true));
    server.kill();
    let away = one.ledger("b");
    let mut read = away.read("marks/1").await;
    while read.is_ok() {
        read = away.read("marks/1").await;
    }
    assert!(read.unwrap_err().contains("TRELLIS_home_rabbitmq"), "it is said which");
    server.restart();
    assert_eq!(missing(&one).await, None);
    assert_eq!(away.read("marks/1").await.unwrap().as_deref(), Some(b"1".as_slice()));
}

#[tokio::test]
async fn a_server_without_jetstream_has_none() {
    let server = NatsServer::start(false);
    assert!(missing(&ledgers(&server)).await.is_some_and(|why| why.contains("has no JetStream")));
}
