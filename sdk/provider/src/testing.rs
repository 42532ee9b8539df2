//! What every broker must do, as a test: [`contract`] takes a real broker through each promise of
//! [`Queue`](crate::delivery::Queue) and each row of the settle table. Compiled with the feature `testing`.

pub mod certificates;
pub mod lab;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use trellis_wire::Message;

use crate::delivery::{
    CLAIM, Claimed, DeadLetter, EXTEND_EVERY, Fate, KILLS_MAX, Ledger, Queue, Ran, Reason, Settlement, Standing,
};

/// How long something may take that is to happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited for what must not happen.
const QUIET: Duration = Duration::from_millis(400);
/// A wait that is long enough to be told from none, also on a loaded machine.
const WAIT: Duration = Duration::from_millis(1_500);

/// A broker under test, with a server of its own.
#[async_trait]
pub trait Broker: Sync {
    /// Its queues.
    type Queue: Queue;

    /// The queue of this name (`a-z` and `-`), made if need be, as one more node sees it for `shop/worker`.
    async fn queue(&self, name: &str) -> Self::Queue;

    /// The same as an ordered link sees it.
    async fn ordered(&self, name: &str) -> Self::Queue {
        self.queue(name).await
    }

    /// Publishes to it, and returns when the broker has the message.
    async fn publish(&self, name: &str, message: Message);

    /// Whether its messages have headers.
    fn has_headers(&self) -> bool {
        true
    }

    /// Whether it says how old the oldest message is: not RabbitMQ, which shows a message only to who takes it.
    fn tells_ages(&self) -> bool {
        true
    }

    /// Whether an ordered link gets what is replayed before all that waits, rather than beside it and soon.
    fn replays_first(&self) -> bool {
        true
    }
}

/// Everything that a broker promises, one part beside the other. Takes about as long as three claims.
///
/// # Panics
/// Where a promise is not kept; the message says which.
pub async fn contract<B: Broker>(broker: &B) {
    tokio::join!(
        what_is_published_is_given_out_once(broker),
        the_oldest_that_waits_tells_its_age(broker),
        every_settlement_has_its_consequence(broker),
        what_is_given_back_was_no_attempt_and_comes_first(broker),
        what_was_given_back_for_later_is_out(broker),
        a_dead_letter_keeps_everything_and_is_decided_on_once(broker),
        of_two_who_decide_at_one_time_one_does(broker),
        what_is_replayed_comes_before_what_may_wait_for_it(broker),
        a_claim_ends_unless_it_is_extended(broker),
        a_claim_that_ends_is_a_kill_however_often(broker),
        what_is_noted_outlives_the_claim(broker),
        a_claim_that_ended_settles_nothing(broker),
        a_queue_has_a_ledger(broker),
    );
}

/// A message with a body and a header.
pub fn message(body: &str) -> Message {
    let headers = vec![("x-kind".into(), "test".into())];
    Message { body: Bytes::copy_from_slice(body.as_bytes()), headers, ..Message::default() }
}

fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.body).into_owned()
}

/// Pulls one message, waiting for it as long as may be.
async fn one<Q: Queue>(queue: &Q) -> Claimed<Q::Claim> {
    some(queue, 1).await.remove(0)
}

/// Pulls so many messages.
async fn some<Q: Queue>(queue: &Q, count: usize) -> Vec<Claimed<Q::Claim>> {
    let mut pulled = Vec::new();
    let pulling = async {
        while pulled.len() < count {
            queue.ready().await.expect("the queue is there");
            pulled.extend(queue.pull(count - pulled.len()).await.expect("the queue is there"));
        }
    };
    assert!(timeout(PATIENCE, pulling).await.is_ok(), "{count} messages did not come");
    pulled
}

/// Nothing comes for a while.
async fn none<Q: Queue>(queue: &Q) {
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        let pulled = queue.pull(1).await.expect("the queue is there");
        assert!(pulled.is_empty(), "nothing was to come: {}", text(&pulled[0].message));
        sleep(QUIET / 8).await;
    }
}

async fn settle<Q: Queue>(queue: &Q, claimed: &Claimed<Q::Claim>, settlement: Settlement) {
    queue.settle(&claimed.claim, &settlement).await.expect("the queue is there");
}

fn retry(after: Duration, fault: Option<&str>) -> Settlement {
    Settlement::Retry { after, fault: fault.map(str::to_owned) }
}

fn give_back(after: Duration) -> Settlement {
    Settlement::GiveBack { after }
}

fn dead(reason: Reason, fault: Option<&str>) -> Settlement {
    let ran = Ran { digest: "sha256:1".into(), generation: 7, trace: "abc".into() };
    Settlement::DeadLetter { reason, fault: fault.map(str::to_owned), ran }
}

/// Waits until the queue stands so.
async fn until<Q: Queue>(queue: &Q, what: &str, so: impl Fn(Standing) -> bool) {
    let waiting = async {
        while !so(queue.standing().await.expect("the queue is there")) {
            sleep(QUIET / 8).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "still not so: {what}: {:?}", queue.standing().await);
}

async fn letters<Q: Queue>(queue: &Q, count: usize) -> Vec<DeadLetter> {
    let mut letters = Vec::new();
    for _ in 0..PATIENCE.as_millis() / (QUIET / 8).as_millis() {
        letters = queue.letters(None, 100).await.expect("the queue is there");
        if letters.len() == count {
            return letters;
        }
        sleep(QUIET / 8).await;
    }
    panic!("{count} dead letters were expected: {letters:?}");
}

async fn what_is_published_is_given_out_once<B: Broker>(broker: &B) {
    let (queue, other) = (broker.queue("once").await, broker.queue("once").await);
    for body in ["1", "2", "3"] {
        broker.publish("once", message(body)).await;
    }
    until(&queue, "three wait", |standing| standing.waiting == 3).await;
    let mut pulled = some(&queue, 2).await;
    pulled.extend(some(&other, 1).await);
    let mut bodies: Vec<_> = pulled.iter().map(|claimed| text(&claimed.message)).collect();
    bodies.sort();
    assert_eq!(bodies, ["1", "2", "3"], "each to one of those who pull");
    none(&other).await;
    for claimed in &pulled {
        let Claimed { message, record, .. } = claimed;
        assert_eq!((record.attempt, record.faults, record.kills, message.attempt), (1, 0, 0, 1));
        assert!(record.age < PATIENCE, "{record:?}");
        let kind = message.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-kind"));
        assert_eq!(kind.map(|(_, value)| value.as_str()), broker.has_headers().then_some("test"), "{message:?}");
        assert!(!claimed.place.key.is_empty() && !message.id.is_empty());
        assert!(!claimed.place.again && claimed.place.replay_of.is_none(), "{:?}", claimed.place);
    }
    let keys: std::collections::BTreeSet<_> = pulled.iter().map(|claimed| &claimed.place.key).collect();
    assert_eq!(keys.len(), 3, "{keys:?}");
    if queue.keeps_order() {
        let position = |body: &str| {
            let claimed = pulled.iter().find(|claimed| text(&claimed.message) == body).expect("it was pulled");
            claimed.place.position.expect("a queue that keeps order says where a message stands")
        };
        assert!(position("1") < position("2") && position("2") < position("3"));
    }
    until(&queue, "three are claimed", |standing| (standing.waiting, standing.claimed) == (0, 3)).await;
    for claimed in &pulled {
        settle(&queue, claimed, Settlement::Ack).await;
    }
    until(&queue, "nothing is left", |standing| (standing.waiting, standing.claimed) == (0, 0)).await;
    none(&queue).await;
}

async fn the_oldest_that_waits_tells_its_age<B: Broker>(broker: &B) {
    let queue = broker.queue("ages").await;
    broker.publish("ages", message("old")).await;
    sleep(WAIT).await;
    broker.publish("ages", message("young")).await;
    let is_told = |standing: Standing| match standing.oldest_age {
        Some(age) => broker.tells_ages() && (WAIT * 9 / 10..PATIENCE).contains(&age),
        None => !broker.tells_ages(),
    };
    until(&queue, "the age is told", |standing| standing.waiting == 2 && is_told(standing)).await;
    for claimed in some(&queue, 2).await {
        settle(&queue, &claimed, Settlement::Ack).await;
    }
    until(&queue, "nothing has an age", |standing| standing.waiting == 0 && standing.oldest_age.is_none()).await;
}

async fn every_settlement_has_its_consequence<B: Broker>(broker: &B) {
    let queue = broker.queue("settle").await;
    broker.publish("settle", message("retry")).await;
    let first = one(&queue).await;
    let began = Instant::now();
    settle(&queue, &first, retry(WAIT, None)).await;
    let second = one(&queue).await;
    assert!(began.elapsed() >= WAIT * 9 / 10, "it came again after {:?}", began.elapsed());
    assert_eq!((second.record.attempt, second.record.faults, second.record.kills), (2, 0, 0));
    assert!(second.record.age >= WAIT * 9 / 10, "its age is what `max_age` goes by: {:?}", second.record);
    assert_eq!((first.place.key, first.message.id), (second.place.key.clone(), second.message.id.clone()));
    settle(&queue, &second, retry(Duration::ZERO, Some("unreachable"))).await;
    let third = one(&queue).await;
    assert_eq!((third.record.attempt, third.record.faults, third.record.kills), (3, 1, 0), "a fault is counted");
    assert_eq!(third.message.attempt, 3);
    assert_eq!((text(&third.message).as_str(), third.place.again), ("retry", true));
    settle(&queue, &third, Settlement::Drop { reason: "as asked".into() }).await;
    none(&queue).await;
    assert!(queue.letters(None, 10).await.expect("the queue is there").is_empty(), "what is dropped is gone");
}

async fn what_is_given_back_was_no_attempt_and_comes_first<B: Broker>(broker: &B) {
    let queue = broker.queue("back").await;
    for body in ["1", "2"] {
        broker.publish("back", message(body)).await;
    }
    let first = one(&queue).await;
    let began = Instant::now();
    settle(&queue, &first, give_back(WAIT)).await;
    let second = one(&queue).await;
    assert_ne!(text(&first.message), text(&second.message));
    settle(&queue, &second, Settlement::Ack).await;
    let again = one(&queue).await;
    assert!(began.elapsed() >= WAIT * 9 / 10, "it came again after {:?}", began.elapsed());
    assert_eq!((again.record.attempt, again.record.kills, again.message.attempt), (1, 0, 1));
    assert!(again.place.again);
    broker.publish("back", message("3")).await;
    settle(&queue, &again, give_back(Duration::ZERO)).await;
    let pulled = some(&queue, 2).await;
    if queue.keeps_order() {
        assert_eq!(pulled[0].place.key, again.place.key, "what comes back comes first");
    }
    for claimed in &pulled {
        assert_eq!(claimed.record.attempt, 1);
        settle(&queue, claimed, Settlement::Ack).await;
    }
    none(&queue).await;
}

/// By this a new holder of an ordered link knows that something old is still to come before what is new.
async fn what_was_given_back_for_later_is_out<B: Broker>(broker: &B) {
    let queue = broker.queue("later").await;
    if !queue.keeps_order() {
        return;
    }
    let out = async || queue.out().await.expect("the queue is there");
    for body in ["1", "2"] {
        broker.publish("later", message(body)).await;
    }
    assert_eq!(out().await.all, 0, "what is new was never given out");
    for claimed in some(&queue, 2).await {
        settle(&queue, &claimed, give_back(2 * WAIT)).await;
    }
    assert_eq!((out().await.all, out().await.later), (2, 2));
    let next = broker.queue("later").await;
    broker.publish("later", message("3")).await;
    sleep(2 * WAIT + QUIET).await;
    assert_eq!(out().await.all, 2, "they are due, and still go before what is new");
    let mut pulled = some(&next, 2).await;
    pulled.sort_by_key(|claimed| claimed.place.position);
    assert_eq!(pulled.iter().map(|claimed| text(&claimed.message)).collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((out().await.all, out().await.later), (2, 2), "they are claimed");
    for claimed in pulled.iter().chain(&some(&next, 1).await) {
        settle(&next, claimed, Settlement::Ack).await;
    }
    let waiting = async {
        while out().await.all > 0 {
            sleep(QUIET / 8).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "what is settled is not out: {:?}", out().await);
}

async fn a_dead_letter_keeps_everything_and_is_decided_on_once<B: Broker>(broker: &B) {
    let queue = broker.queue("dead").await;
    for body in ["trap", "bad", "bad too"] {
        broker.publish("dead", message(body)).await;
    }
    let mut claimed = some(&queue, 3).await;
    claimed.sort_by_key(|claimed| std::cmp::Reverse(text(&claimed.message)));
    settle(&queue, &claimed[0], retry(Duration::ZERO, Some("unreachable\n  at main"))).await;
    for refused in &claimed[1..] {
        settle(&queue, refused, dead(Reason::Refused("no such order".into()), None)).await;
    }
    let trapped = one(&queue).await;
    settle(&queue, &trapped, dead(Reason::MaxFaults { faults: 2 }, Some("unreachable\n  at helper"))).await;
    let all = letters(&queue, 3).await;
    let letter = all.iter().find(|letter| text(&letter.message) == "trap").expect("it is dead");
    let headers = trapped.message.headers.len();
    assert_eq!((letter.component.as_str(), letter.reason.as_str()), ("shop/worker", "max-faults"));
    assert_eq!((letter.attempts, letter.kills), (2, 0));
    assert_eq!(letter.faults.len(), 2, "every fault: {:?}", letter.faults);
    assert!(letter.faults[0].contains("at main") && letter.faults[1].contains("at helper"), "{:?}", letter.faults);
    assert_eq!(letter.ran, Ran { digest: "sha256:1".into(), generation: 7, trace: "abc".into() });
    let kinds = letter.message.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-kind"));
    assert_eq!(kinds.count(), usize::from(broker.has_headers()));
    assert!(letter.at_ms > 0 && !letter.queue.is_empty(), "{letter:?}");
    let refused = all.iter().find(|letter| text(&letter.message) == "bad").expect("it is dead");
    assert!(refused.detail.contains("no such order"), "{refused:?}");
    let rest = queue.letters(Some(&all[0].id), 1).await.expect("the queue is there");
    assert_eq!(rest, all[1..2], "they are read a page at a time");
    none(&queue).await;
    if let Some(dead) = queue.standing().await.expect("the queue is there").dead {
        assert_eq!(dead, 3);
    }
    decided(&queue, (&letter.id, headers), &refused.id).await;
}

async fn decided<Q: Queue>(queue: &Q, (trapped, headers): (&str, usize), refused: &str) {
    let decide = async |id: &str, fate| {
        let decided = queue.decide(id, fate).await.expect("the queue is there");
        decided.map(|letter| text(&letter.message))
    };
    assert_eq!(decide(trapped, Fate::Replay).await.as_deref(), Some("trap"));
    assert_eq!(decide(trapped, Fate::Replay).await, None, "once");
    let again = one(queue).await;
    assert_eq!((text(&again.message).as_str(), again.record.attempt, again.record.faults), ("trap", 1, 0));
    assert_eq!(again.place.replay_of.as_deref(), Some(trapped));
    let header =
        |name: &str| again.message.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).count();
    assert_eq!(
        (header("x-kind"), again.message.headers.len()),
        (headers.min(1), headers),
        "{:?}",
        again.message.headers
    );
    settle(queue, &again, Settlement::Ack).await;
    assert_eq!(decide(refused, Fate::Drop).await.as_deref(), Some("bad"));
    assert_eq!(decide(refused, Fate::Drop).await, None, "once");
    assert_eq!(decide("nothing", Fate::Drop).await, None);
    assert_eq!(letters(queue, 1).await.len(), 1);
    none(queue).await;
}

/// Neither fails, and nothing comes twice.
async fn of_two_who_decide_at_one_time_one_does<B: Broker>(broker: &B) {
    const COUNT: usize = 8;
    let (one, other) = (broker.queue("decided").await, broker.queue("decided").await);
    for i in 0..COUNT {
        broker.publish("decided", message(&i.to_string())).await;
    }
    for claimed in some(&one, COUNT).await {
        settle(&one, &claimed, dead(Reason::Refused("no".into()), None)).await;
    }
    for letter in letters(&one, COUNT).await {
        let (one, other) = tokio::join!(one.decide(&letter.id, Fate::Replay), other.decide(&letter.id, Fate::Replay));
        let did =
            [one, other].map(|decided| decided.expect("one of them is too late, and that is no trouble").is_some());
        assert_eq!(did.iter().filter(|did| **did).count(), 1, "{did:?}");
    }
    let mut again: Vec<_> = some(&other, COUNT).await.iter().map(|claimed| text(&claimed.message)).collect();
    again.sort();
    assert!(again.into_iter().eq((0..COUNT).map(|i| i.to_string())), "each once");
    none(&other).await;
}

/// By this a parked key opens, however much waits behind it.
async fn what_is_replayed_comes_before_what_may_wait_for_it<B: Broker>(broker: &B) {
    let queue = broker.ordered("replays").await;
    if !queue.keeps_order() || !broker.replays_first() {
        return;
    }
    for body in ["bad", "1", "2", "3"] {
        broker.publish("replays", message(body)).await;
    }
    let bad = one(&queue).await;
    settle(&queue, &bad, dead(Reason::Refused("no".into()), None)).await;
    for claimed in some(&queue, 2).await {
        settle(&queue, &claimed, give_back(Duration::from_millis(1))).await;
    }
    for (replay, end) in [dead(Reason::Refused("no".into()), None), Settlement::Ack].into_iter().enumerate() {
        let letter = letters(&queue, 1).await.remove(0);
        assert!(queue.decide(&letter.id, Fate::Replay).await.expect("the queue is there").is_some());
        let again = one(&queue).await;
        let found = (text(&again.message), again.message.subject.clone(), again.record.attempt);
        assert_eq!(found, ("bad".into(), bad.message.subject.clone(), 1), "at replay {replay}");
        assert_eq!(again.place.replay_of.as_deref(), Some(letter.id.as_str()));
        queue.note(&again.claim, Some("unreachable")).await.expect("the queue is there");
        settle(&queue, &again, end).await;
    }
    let mut rest: Vec<_> = some(&queue, 3).await.iter().map(|claimed| text(&claimed.message)).collect();
    rest.sort();
    assert_eq!(rest, ["1", "2", "3"]);
    none(&queue).await;
}

async fn a_claim_ends_unless_it_is_extended<B: Broker>(broker: &B) {
    let queue = broker.queue("claims").await;
    for body in ["kept", "lost"] {
        broker.publish("claims", message(body)).await;
    }
    let claimed = some(&queue, 2).await;
    let began = Instant::now();
    let kept = claimed.iter().find(|claimed| text(&claimed.message) == "kept").expect("both were pulled");
    let again = async { one(&queue).await };
    let extending = async {
        loop {
            sleep(EXTEND_EVERY).await;
            queue.extend(&kept.claim).await.expect("the queue is there");
        }
    };
    let again = tokio::select! { again = again => again, () = extending => unreachable!("it has no end") };
    assert!(began.elapsed() >= CLAIM * 9 / 10, "it came again after {:?}", began.elapsed());
    assert_eq!((text(&again.message).as_str(), again.record.attempt, again.record.kills), ("lost", 2, 1));
    settle(&queue, &again, Settlement::Ack).await;
    queue.extend(&kept.claim).await.expect("the queue is there");
    none(&queue).await;
    settle(&queue, kept, Settlement::Ack).await;
    until(&queue, "nothing is left", |standing| (standing.waiting, standing.claimed) == (0, 0)).await;
}

async fn a_claim_that_ends_is_a_kill_however_often<B: Broker>(broker: &B) {
    let queue = broker.queue("kills").await;
    broker.publish("kills", message("1")).await;
    for kills in 0..KILLS_MAX {
        let claimed = one(&queue).await;
        assert_eq!((claimed.record.attempt, claimed.record.kills), (kills + 1, kills));
    }
    let last = one(&queue).await;
    assert_eq!((last.record.kills, last.record.faults), (KILLS_MAX, 0));
    assert!(last.record.age >= CLAIM, "{:?}", last.record);
    settle(&queue, &last, dead(Reason::KilledItsNode { kills: KILLS_MAX }, None)).await;
    let letter = letters(&queue, 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.kills), ("killed-its-node", KILLS_MAX));
}

async fn what_is_noted_outlives_the_claim<B: Broker>(broker: &B) {
    let queue = broker.queue("notes").await;
    if !queue.keeps_order() {
        return;
    }
    broker.publish("notes", message("1")).await;
    let first = one(&queue).await;
    queue.note(&first.claim, Some("unreachable")).await.expect("the queue is there");
    queue.note(&first.claim, None).await.expect("the queue is there");
    let again = one(&queue).await;
    let Claimed { record, .. } = &again;
    assert_eq!((record.attempt, record.faults, record.kills), (4, 1, 1), "two were noted, the third was cut off");
    settle(&queue, &again, give_back(Duration::ZERO)).await;
    let back = one(&queue).await;
    assert_eq!((back.record.attempt, back.record.faults), (4, 1), "giving back takes none of them away");
    queue.note(&back.claim, Some("again")).await.expect("the queue is there");
    settle(&queue, &back, dead(Reason::MaxFaults { faults: 3 }, Some("at last"))).await;
    let letter = letters(&queue, 1).await.remove(0);
    assert_eq!((letter.attempts, letter.faults.len()), (5, 3), "{letter:?}");
}

async fn a_claim_that_ended_settles_nothing<B: Broker>(broker: &B) {
    let (queue, other) = (broker.queue("late").await, broker.queue("late").await);
    broker.publish("late", message("1")).await;
    let late = one(&queue).await;
    let again = one(&other).await;
    settle(&queue, &late, retry(Duration::ZERO, None)).await;
    none(&queue).await;
    settle(&other, &again, Settlement::Ack).await;
    none(&queue).await;
    until(&queue, "nothing is left", |standing| (standing.waiting, standing.claimed) == (0, 0)).await;
}

async fn a_queue_has_a_ledger<B: Broker>(broker: &B) {
    let (queue, other) = (broker.queue("ledger").await, broker.queue("ledger").await);
    let none = "a broker that has no place for a ledger uses the lattice's";
    ledger_contract(queue.ledger().expect(none), other.ledger().expect(none)).await;
}

/// Everything that a ledger promises, as two nodes see it, of which nobody has written to it.
///
/// # Panics
/// Where a promise is not kept; the message says which.
pub async fn ledger_contract(ledger: &dyn Ledger, far: &dyn Ledger) {
    let long = Duration::from_secs(600);
    let swap = async |ledger: &dyn Ledger, old: Option<&str>, new: Option<&str>| {
        let (old, new) = (old.map(str::as_bytes), new.map(str::as_bytes));
        ledger.swap("marks/a-1=", old, new, long).await.expect("the ledger is there")
    };
    let read = async |key: &str| ledger.read(key).await.expect("the ledger is there");
    assert_eq!(read("marks/a-1=").await, None);
    assert!(!swap(ledger, Some("x"), Some("y")).await, "there is none to replace");
    assert!(swap(ledger, None, Some("1")).await);
    assert!(!swap(far, None, Some("2")).await, "there is one");
    assert!(swap(far, Some("1"), Some("2")).await);
    assert_eq!(read("marks/a-1=").await.as_deref(), Some(b"2".as_slice()));
    assert!(ledger.swap("other", None, Some(b""), long).await.expect("the ledger is there"));
    assert_eq!(ledger.keys("marks/").await, Ok(vec!["marks/a-1=".to_owned()]));
    assert!(ledger.swap("others/0a/1", None, Some(b""), long).await.expect("the ledger is there"));
    assert!(ledger.swap("others/0ab/2", None, Some(b""), long).await.expect("the ledger is there"));
    assert_eq!(ledger.keys("others/0a/").await, Ok(vec!["others/0a/1".to_owned()]));
    assert!(!swap(ledger, Some("1"), None).await);
    assert!(swap(ledger, Some("2"), None).await);
    assert!(swap(ledger, None, Some("3")).await, "what was removed can be written anew");
    let both = tokio::join!(swap(ledger, Some("3"), Some("a")), swap(far, Some("3"), Some("b")));
    assert!(both.0 != both.1, "one of two: {both:?}");
    let large = vec![7; crate::delivery::LEDGER_VALUE_BYTES_MAX];
    assert!(ledger.swap("large", None, Some(&large), long).await.expect("the ledger is there"));
    assert_eq!(read("large").await.map(|value| value.len()), Some(large.len()));
    assert!(ledger.swap("short", None, Some(b"1"), WAIT).await.expect("the ledger is there"));
    assert!(!ledger.swap("short", None, Some(b"2"), WAIT).await.expect("the ledger is there"));
    sleep(WAIT + QUIET).await;
    assert_eq!(read("short").await, None, "its time is over");
    assert!(ledger.swap("short", None, Some(b"2"), WAIT).await.expect("the ledger is there"));
}
