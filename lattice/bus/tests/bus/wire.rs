//! The simulated wire: what a seed makes of it, and who reaches whom.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trellis_bus::{Bus, BusError, Connection, Faults, SUBSCRIPTION_MESSAGES_MAX, Wire};

use crate::contract::next;

const MS: Duration = Duration::from_millis(1);

/// Two ends talk at once to a third over a bad wire. The transcript says what arrives when.
async fn transcript(seed: u64) -> String {
    let wire = Wire::new(Faults { seed, delay: MS * 5..=MS * 50, loss: 0.2, duplication: 0.1 });
    let [a, b, c] = ["a", "b", "c"].map(|name| Bus::Memory(wire.end(name)));
    let mut heard = c.subscribe("news.*", None).await.unwrap();
    let started = Instant::now();
    for (name, bus) in [("a", a), ("b", b)] {
        tokio::spawn(async move {
            for n in 0..50 {
                bus.publish(&format!("news.{name}"), &[], n.to_string().into()).await.unwrap();
                tokio::time::sleep(MS * 3).await;
            }
        });
    }
    let mut transcript = String::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(1), heard.next()).await {
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        writeln!(transcript, "{:?} {} {payload}", started.elapsed(), message.subject).unwrap();
    }
    transcript
}

#[tokio::test(start_paused = true)]
async fn a_seed_replays_exactly() {
    let (first, again, other) = (transcript(7).await, transcript(7).await, transcript(8).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    // 100 are sent, a fifth is lost, a tenth of the rest comes twice.
    assert!((70..=105).contains(&first.lines().count()), "{first}");
}

#[tokio::test(start_paused = true)]
async fn messages_from_one_end_never_overtake_each_other() {
    let wire = Wire::new(Faults { seed: 1, delay: MS..=MS * 500, ..Faults::default() });
    let (a, b) = (Bus::Memory(wire.end("a")), Bus::Memory(wire.end("b")));
    let mut heard = b.subscribe("n", None).await.unwrap();
    for n in 0..100_u8 {
        a.publish("n", &[], vec![n].into()).await.unwrap();
    }
    for n in 0..100_u8 {
        assert_eq!(next(&mut heard).await.payload, vec![n]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_separates_and_heals() {
    let wire = Wire::default();
    let [a, b, c] = ["a", "b", "c"].map(|name| Bus::Memory(wire.end(name)));
    let (mut at_b, mut at_c) = (b.subscribe("x", None).await.unwrap(), c.subscribe("x", None).await.unwrap());

    wire.partition(&[&["a", "b"], &["c"]]);
    a.publish("x", &[], "1".into()).await.unwrap();
    assert_eq!(next(&mut at_b).await.payload, "1");
    assert!(c.connection().borrow().is_connected(), "a partition is not seen from within");
    let unheard = c.request("x", &[], Bytes::new(), MS).await;
    assert!(matches!(unheard, Err(BusError::TimedOut { .. })), "only its own subscription hears it: {unheard:?}");
    assert_eq!(next(&mut at_c).await.payload, "");

    wire.heal();
    a.publish("x", &[], "2".into()).await.unwrap();
    assert_eq!(next(&mut at_c).await.payload, "2");
    drop((at_b, at_c));
    assert!(matches!(c.request("x", &[], Bytes::new(), MS).await, Err(BusError::NoResponders { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_a_partition_begins_is_lost() {
    let wire = Wire::new(Faults { delay: MS * 10..=MS * 10, ..Faults::default() });
    let (a, b) = (Bus::Memory(wire.end("a")), Bus::Memory(wire.end("b")));
    let mut heard = b.subscribe("x", None).await.unwrap();
    a.publish("x", &[], "lost".into()).await.unwrap();
    wire.partition(&[&["a"]]);
    tokio::time::sleep(MS * 20).await;
    wire.heal();
    a.publish("x", &[], "heard".into()).await.unwrap();
    assert_eq!(next(&mut heard).await.payload, "heard");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_cut_off_knows_it() {
    let wire = Wire::default();
    let (a, b) = (Bus::Memory(wire.end("a")), Bus::Memory(wire.end("b")));
    let mut heard = b.subscribe("x", None).await.unwrap();
    let asking = b.request("x", &[], Bytes::new(), Duration::from_secs(60));
    let (waiting, ()) = tokio::join!(asking, async {
        next(&mut heard).await;
        wire.cut("b");
    });
    assert_eq!(waiting, Err(BusError::Disconnected("`b` was cut off the wire".into())), "and does not wait on");
    assert!(matches!(&*b.connection().borrow(), Connection::Disconnected { .. }));
    assert!(matches!(b.publish("x", &[], Bytes::new()).await, Err(BusError::Disconnected(_))));
    assert!(a.connection().borrow().is_connected());
    a.publish("x", &[], "unheard".into()).await.unwrap();
    wire.mend("b");
    a.publish("x", &[], "heard".into()).await.unwrap();
    assert_eq!(next(&mut heard).await.payload, "heard");
}

#[tokio::test]
async fn a_full_subscription_drops_the_newest_and_counts_them() {
    let wire = Wire::default();
    let (a, b) = (Bus::Memory(wire.end("a")), Bus::Memory(wire.end("b")));
    let mut heard = b.subscribe("x", None).await.unwrap();
    for n in 0..SUBSCRIPTION_MESSAGES_MAX + 3 {
        a.publish("x", &[], n.to_string().into()).await.unwrap();
    }
    assert_eq!((a.overflowed(), b.overflowed()), (0, 3));
    for n in 0..SUBSCRIPTION_MESSAGES_MAX {
        assert_eq!(next(&mut heard).await.payload, n.to_string());
    }
}
