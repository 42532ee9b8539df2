//! What every bus promises, whatever carries it. Two ends of one bus are put through the same script.

use std::time::Duration;

use bytes::Bytes;
use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, BusError, Connection, Delivered, Nats, Options, Subscription, Wire};

/// Long enough on a busy machine; nothing that goes well waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn memory_keeps_the_contract() {
    let wire = Wire::default();
    check(Bus::Memory(wire.end("a")), Bus::Memory(wire.end("b"))).await;
}

#[tokio::test]
async fn nats_keeps_the_contract() {
    let server = NatsServer::start(false);
    check(connected(&server.url).await, connected(&server.url).await).await;
}

/// A bus over NATS that is connected.
pub(crate) async fn connected(url: &str) -> Bus {
    let options = Options { name: "test".into(), ..Options::urls([url]) };
    let bus = Bus::Nats(Nats::connect(&options).await.unwrap());
    until(&bus, Connection::is_connected).await;
    bus
}

/// Waits until the connection is as expected, and returns it.
pub(crate) async fn until(bus: &Bus, expected: impl FnMut(&Connection) -> bool) -> Connection {
    let mut connection = bus.connection();
    let reached = tokio::time::timeout(PATIENCE, connection.wait_for(expected)).await;
    reached.unwrap_or_else(|_| panic!("still {:?}", bus.connection().borrow())).unwrap().clone()
}

/// The next message's subject and payload.
pub(crate) async fn next(subscription: &mut Subscription) -> Delivered {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("a message comes").expect("the bus is open")
}

async fn check(a: Bus, b: Bus) {
    wildcards_and_headers(&a, &b).await;
    order(&a, &b).await;
    queue_groups(&a, &b).await;
    requests(&a, &b).await;
    refusals(&a).await;
    dropping_unsubscribes(&a, &b).await;
    assert!(a.connection().borrow().is_connected());
    a.flush().await.unwrap();
}

async fn wildcards_and_headers(a: &Bus, b: &Bus) {
    let mut star = b.subscribe("orders.*", None).await.unwrap();
    let mut all = b.subscribe("orders.>", None).await.unwrap();
    let headers = [("zone", "eu"), ("item", "1"), ("item", "2")];
    a.publish("orders.new", &headers, "first".into()).await.unwrap();
    a.publish("orders.new.eu", &[], "second".into()).await.unwrap();
    a.publish("orders", &[], "nobody's".into()).await.unwrap();

    let first = next(&mut star).await;
    assert_eq!((first.subject.as_str(), &first.payload[..], &first.reply), ("orders.new", &b"first"[..], &None));
    let expected = [("item", "1"), ("item", "2"), ("zone", "eu")].map(|(name, value)| (name.into(), value.into()));
    assert_eq!(first.headers, expected, "sorted by name, the values of one name in order");
    assert_eq!(first.header("zone"), Some("eu"));
    assert_eq!(next(&mut all).await, first);
    assert_eq!(next(&mut all).await.subject, "orders.new.eu");
    assert!(tokio::time::timeout(SILENCE, star.next()).await.is_err(), "`*` is one token");
}

async fn order(a: &Bus, b: &Bus) {
    let mut numbers = b.subscribe("numbers", None).await.unwrap();
    for n in 0..500_u32 {
        a.publish("numbers", &[], Bytes::copy_from_slice(&n.to_be_bytes())).await.unwrap();
    }
    for n in 0..500_u32 {
        assert_eq!(next(&mut numbers).await.payload, n.to_be_bytes()[..]);
    }
}

async fn queue_groups(a: &Bus, b: &Bus) {
    let mut members = Vec::new();
    for bus in [a, b, b] {
        members.push(bus.subscribe("work.*", Some("workers")).await.unwrap());
    }
    let mut other_group = b.subscribe("work.>", Some("auditors")).await.unwrap();
    for _ in 0..300 {
        a.publish("work.item", &[], Bytes::new()).await.unwrap();
    }
    for _ in 0..300 {
        next(&mut other_group).await;
    }
    let mut shares = [0; 3];
    for (share, member) in shares.iter_mut().zip(&mut members) {
        while tokio::time::timeout(SILENCE, member.next()).await.is_ok() {
            *share += 1;
        }
    }
    assert_eq!(shares.iter().sum::<u32>(), 300, "each message goes to one member: {shares:?}");
    // NATS and the in-memory wire draw a member evenly: a share of 100 is below 20 less often than once in 10^20.
    assert!(shares.iter().all(|share| *share >= 20), "all take part: {shares:?}");
}

async fn requests(a: &Bus, b: &Bus) {
    let mut asked = b.subscribe("clock", Some("clocks")).await.unwrap();
    let answering = async {
        let request = next(&mut asked).await;
        let reply = request.reply.clone().expect("a request says where the answer goes");
        b.publish(&reply, &[("echo", request.header("ask").unwrap())], "noon".into()).await.unwrap();
    };
    let (answer, ()) = tokio::join!(a.request("clock", &[("ask", "time")], "?".into(), PATIENCE), answering);
    let answer = answer.unwrap();
    assert_eq!((&answer.payload[..], answer.header("echo")), (&b"noon"[..], Some("time")));

    let started = std::time::Instant::now();
    let nobody = a.request("nobody.here", &[], Bytes::new(), PATIENCE).await.unwrap_err();
    assert_eq!(nobody, BusError::NoResponders { subject: "nobody.here".into() });
    assert!(nobody.is_retryable() && started.elapsed() < PATIENCE / 2, "said at once, not after the time-out");

    let silent = a.request("clock", &[], Bytes::new(), SILENCE).await.unwrap_err();
    assert_eq!(silent, BusError::TimedOut { subject: "clock".into(), after: SILENCE });
    assert!(silent.is_retryable());
}

async fn refusals(a: &Bus) {
    assert_eq!(a.payload_bytes_max(), 1024 * 1024);
    let too_large = a.publish("big", &[], vec![0; 1024 * 1024 + 1].into()).await.unwrap_err();
    assert_eq!(too_large, BusError::TooLarge { bytes: 1024 * 1024 + 1, max: 1024 * 1024 });
    assert!(!too_large.is_retryable());
    let with_headers = a.request("big", &[("a", "b")], vec![0; 1024 * 1024].into(), PATIENCE).await;
    assert!(matches!(with_headers, Err(BusError::TooLarge { .. })), "headers count: {with_headers:?}");
    a.publish("big", &[], vec![0; 1024 * 1024].into()).await.unwrap();
    assert!(matches!(a.publish("a.*", &[], Bytes::new()).await, Err(BusError::Subject(_))));
    assert!(matches!(a.subscribe("a..b", None).await, Err(BusError::Subject(_))));
    assert!(matches!(a.subscribe("a", Some("b c")).await, Err(BusError::Subject(_))));
    assert!(matches!(a.publish("a", &[("b", "c\r\n")], Bytes::new()).await, Err(BusError::Header(_))));
}

async fn dropping_unsubscribes(a: &Bus, b: &Bus) {
    let listening = b.subscribe("door", None).await.unwrap();
    drop(listening);
    b.flush().await.unwrap();
    let closed = a.request("door", &[], Bytes::new(), PATIENCE).await;
    assert_eq!(closed, Err(BusError::NoResponders { subject: "door".into() }));
}
