//! The provider contract, as a node sees it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod queue;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_embedded::{BUFFER_BYTES_MAX, BUFFER_MESSAGES_MAX, Embedded, MESSAGE_BYTES_MAX, OpenError, Options};
use trellis_provider::{LinkError, Permit, PermitSource, Permits, Provider, Run, Want};
use trellis_wire::{
    Answer, Call, CallError, ComponentKey, Config, Delivery, Error, Event, Fault, KeyValue, KeyValueAnswer, Link,
    LinkId, LinkName, Message, Outcome, Reply, Settle,
};

fn open(dir: &Path) -> Arc<Embedded> {
    Arc::new(Embedded::open(Options { data_dir: dir.into() }).unwrap())
}

fn link(app: &str, component: &str, package: &str, config: &[(&str, &str)]) -> Link {
    let key = |name: &str| ComponentKey { app: app.parse().unwrap(), name: name.parse().unwrap() };
    let (component, provider, name) = (key(component), key("embedded"), LinkName::default());
    Link {
        id: LinkId::new(&component, &provider, &name, "wasi", package, &[]),
        component,
        name,
        namespace: "wasi".into(),
        package: package.into(),
        interfaces: vec![],
        config: Config::from_iter(config.iter().copied()),
        delivery: Delivery::default(),
        secrets: Default::default(),
        part: Default::default(),
    }
}

async fn granted(provider: &Embedded, link: Link) -> LinkId {
    provider.grant(link.clone()).await.unwrap();
    link.id
}

async fn kv(provider: &Embedded, link: &LinkId, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
    match provider.call(link, Call::KeyValue(operation)).await? {
        Answer::KeyValue(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

fn message(subject: &str, body: &str) -> Message {
    Message { subject: subject.into(), body: Bytes::copy_from_slice(body.as_bytes()), ..Message::default() }
}

async fn publish(provider: &Embedded, link: &LinkId, message: Message) -> Result<(), CallError> {
    match provider.call(link, Call::Publish(message)).await? {
        Answer::Published => Ok(()),
        other => panic!("{other:?}"),
    }
}

/// A node of so many permits, which notes what it ran and settles as it is told.
struct Node {
    permits: Arc<Semaphore>,
    /// Each run takes one; closed until a test opens it, or open from the start.
    gate: Arc<Semaphore>,
    ran: Arc<Mutex<Vec<(String, String)>>>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

impl Node {
    fn new(permits: usize, gate: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(permits)),
            gate: Arc::new(Semaphore::new(gate)),
            ran: Arc::default(),
            outcomes: Arc::default(),
        })
    }

    async fn wake(self: &Arc<Self>, provider: &Embedded, link: Link) {
        let permits = Permits::new(link.component.clone(), self.clone());
        provider.wake(link, permits).await.unwrap();
    }

    /// What ran, once there are at least `n`.
    async fn ran(&self, n: usize) -> Vec<(String, String)> {
        let enough = async {
            while self.ran.lock().unwrap().len() < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), enough).await;
        let ran = self.ran.lock().unwrap().clone();
        assert!(ran.len() >= n, "waited for {n} runs, had {ran:?}");
        ran
    }

    fn bodies_by_component(&self) -> BTreeMap<String, Vec<String>> {
        let mut bodies: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (component, body) in self.ran.lock().unwrap().iter() {
            bodies.entry(component.clone()).or_default().push(body.clone());
        }
        bodies
    }
}

#[async_trait]
impl PermitSource for Node {
    async fn acquire(&self, component: &ComponentKey, want: Want) -> Result<Permit, Error> {
        assert_eq!(want, Want::Pull, "a message waits as long as it takes");
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        let (gate, ran, outcomes) = (self.gate.clone(), self.ran.clone(), self.outcomes.clone());
        Ok(Permit::new(Sandbox { _permit: permit, component: component.to_string(), gate, ran, outcomes }))
    }
}

struct Sandbox {
    _permit: OwnedSemaphorePermit,
    component: String,
    gate: Arc<Semaphore>,
    ran: Arc<Mutex<Vec<(String, String)>>>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

#[async_trait]
impl Run for Sandbox {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let Event::Message(message) = event else { panic!("{event:?}") };
        assert_eq!(message.attempt, 1);
        assert!(message.published_ms.is_some());
        self.gate.acquire().await.unwrap().forget();
        let body = String::from_utf8(message.body.to_vec()).unwrap();
        self.ran.lock().unwrap().push((self.component, body));
        self.outcomes.lock().unwrap().pop().unwrap_or(Ok(Reply::Settle(Settle::Ack)))
    }
}

const OPEN: usize = 1 << 20;

#[tokio::test]
async fn a_store_keeps_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let orders = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let get = |key: &str| kv(&provider, &orders, KeyValue::Get(key.into()));

    assert_eq!(get("a").await, Ok(KeyValueAnswer::Value(None)));
    assert_eq!(kv(&provider, &orders, KeyValue::Open).await, Ok(KeyValueAnswer::Done));
    assert_eq!(kv(&provider, &orders, KeyValue::Set("a".into(), "1".into())).await, Ok(KeyValueAnswer::Done));
    assert_eq!(get("a").await, Ok(KeyValueAnswer::Value(Some("1".into()))));
    assert_eq!(kv(&provider, &orders, KeyValue::Exists("a".into())).await, Ok(KeyValueAnswer::Exists(true)));
    assert_eq!(kv(&provider, &orders, KeyValue::Delete("a".into())).await, Ok(KeyValueAnswer::Done));
    assert_eq!(kv(&provider, &orders, KeyValue::Delete("a".into())).await, Ok(KeyValueAnswer::Done));
    assert_eq!(kv(&provider, &orders, KeyValue::Exists("a".into())).await, Ok(KeyValueAnswer::Exists(false)));

    let pairs = vec![("x".into(), "10".into()), ("y".into(), "".into())];
    assert_eq!(kv(&provider, &orders, KeyValue::SetMany(pairs)).await, Ok(KeyValueAnswer::Done));
    let asked = vec!["y".into(), "none".into(), "x".into()];
    let values = vec![("y".into(), Some("".into())), ("none".into(), None), ("x".into(), Some("10".into()))];
    assert_eq!(kv(&provider, &orders, KeyValue::GetMany(asked)).await, Ok(KeyValueAnswer::Values(values)));
    let gone = vec!["x".into(), "y".into()];
    assert_eq!(kv(&provider, &orders, KeyValue::DeleteMany(gone)).await, Ok(KeyValueAnswer::Done));
    assert_eq!(get("x").await, Ok(KeyValueAnswer::Value(None)));
    assert_eq!(provider.health(&orders), Ok(()));
}

#[tokio::test]
async fn increment_and_swap_are_atomic_and_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let orders = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let add = |key: &str, delta| kv(&provider, &orders, KeyValue::Increment(key.into(), delta));
    assert_eq!(add("n", 2).await, Ok(KeyValueAnswer::Number(2)));
    assert_eq!(add("n", -5).await, Ok(KeyValueAnswer::Number(-3)));
    // Decimal text, which other clients can read.
    let held = kv(&provider, &orders, KeyValue::Get("n".into())).await;
    assert_eq!(held, Ok(KeyValueAnswer::Value(Some("-3".into()))));
    kv(&provider, &orders, KeyValue::Set("text".into(), "abc".into())).await.unwrap();
    kv(&provider, &orders, KeyValue::Set("top".into(), i64::MAX.to_string().into())).await.unwrap();
    for key in ["text", "top"] {
        assert!(matches!(add(key, 1).await, Err(CallError::Invalid(why)) if why.contains(key)));
    }

    let swap = |old: Option<&'static str>, new: &'static str| {
        kv(&provider, &orders, KeyValue::Swap { key: "s".into(), old: old.map(Bytes::from), new: new.into() })
    };
    assert_eq!(swap(Some("x"), "y").await, Ok(KeyValueAnswer::Swapped(Err(None))));
    assert_eq!(swap(None, "a").await, Ok(KeyValueAnswer::Swapped(Ok(()))));
    assert_eq!(swap(None, "b").await, Ok(KeyValueAnswer::Swapped(Err(Some("a".into())))));
    assert_eq!(swap(Some("a"), "b").await, Ok(KeyValueAnswer::Swapped(Ok(()))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_tasks_of_two_hundred_increments_make_sixteen_hundred() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let orders = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let tasks = (0..8).map(|_| {
        let (provider, orders) = (provider.clone(), orders.clone());
        tokio::spawn(async move {
            for _ in 0..200 {
                kv(&provider, &orders, KeyValue::Increment("n".into(), 1)).await.unwrap();
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
    let held = kv(&provider, &orders, KeyValue::Get("n".into())).await;
    assert_eq!(held, Ok(KeyValueAnswer::Value(Some("1600".into()))));
}

#[tokio::test]
async fn keys_come_in_pages_of_one_thousand() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let orders = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let other = granted(&provider, link("orders2", "api", "keyvalue", &[])).await;
    let expected: Vec<String> = (0..2_000).map(|i| format!("k{i:04}")).collect();
    for keys in expected.chunks(1_000) {
        let pairs = keys.iter().map(|key| (key.clone(), Bytes::new())).collect();
        kv(&provider, &orders, KeyValue::SetMany(pairs)).await.unwrap();
    }
    kv(&provider, &other, KeyValue::Set("theirs".into(), "".into())).await.unwrap();

    let (mut all, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let KeyValueAnswer::Keys { keys, cursor: next } =
            kv(&provider, &orders, KeyValue::Keys { cursor }).await.unwrap()
        else {
            panic!("keys are answered by keys");
        };
        pages += 1;
        all.extend(keys);
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    assert_eq!((all, pages), (expected, 2), "a full last page has no cursor");
    let theirs = kv(&provider, &other, KeyValue::Keys { cursor: None }).await;
    assert_eq!(theirs, Ok(KeyValueAnswer::Keys { keys: vec!["theirs".into()], cursor: None }));
}

#[tokio::test]
async fn a_store_is_the_apps_own_unless_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let api = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let invoice = granted(&provider, link("orders", "invoice", "keyvalue", &[])).await;
    let stranger = granted(&provider, link("other", "api", "keyvalue", &[])).await;
    let guest = granted(&provider, link("third", "api", "keyvalue", &[("store", " orders ")])).await;
    kv(&provider, &api, KeyValue::Set("a".into(), "1".into())).await.unwrap();
    for (link, there) in [(&invoice, true), (&stranger, false), (&guest, true)] {
        let answer = kv(&provider, link, KeyValue::Exists("a".into())).await;
        assert_eq!(answer, Ok(KeyValueAnswer::Exists(there)), "{link}");
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart_and_only_its_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = link("orders", "api", "keyvalue", &[]);
    {
        let provider = open(dir.path());
        let orders = granted(&provider, store.clone()).await;
        let writes = (0..300).map(|i| kv(&provider, &orders, KeyValue::Set(format!("k{i}"), i.to_string().into())));
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        let again = Embedded::open(Options { data_dir: dir.path().into() });
        assert!(matches!(again, Err(OpenError::InUse { path }) if path.ends_with("embedded.redb")));
    }
    let provider = open(dir.path());
    let orders = granted(&provider, store).await;
    for i in 0..300 {
        let held = kv(&provider, &orders, KeyValue::Get(format!("k{i}"))).await;
        assert_eq!(held, Ok(KeyValueAnswer::Value(Some(i.to_string().into()))));
    }
    let mode = std::fs::metadata(dir.path().join("embedded.redb")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn each_matching_link_is_woken_once_and_a_group_once() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(8, OPEN);
    for (component, config) in [
        ("exact", ("subject", "orders.placed")),
        ("star", ("subject", "orders.*")),
        ("twice", ("subscriptions", "orders.>, orders.placed")),
        ("group-a", ("subscriptions", "orders.*|billing")),
        ("group-b", ("subscriptions", "orders.placed|billing")),
        ("other", ("subject", "returns.>")),
    ] {
        node.wake(&provider, link("orders", component, "messaging", &[config])).await;
    }
    let api = granted(&provider, link("orders", "api", "messaging", &[])).await;
    for body in ["1", "2"] {
        publish(&provider, &api, message("orders.placed", body)).await.unwrap();
    }
    node.ran(8).await;
    let mut bodies = node.bodies_by_component();
    bodies.values_mut().for_each(|bodies| bodies.sort());
    for component in ["orders/exact", "orders/star", "orders/twice"] {
        assert_eq!(bodies[component], ["1", "2"], "{component}");
    }
    assert_eq!(bodies["orders/group-a"].len() + bodies["orders/group-b"].len(), 2, "the group shares");
    assert_eq!(bodies["orders/group-a"].len(), 1, "and takes turns");
    assert!(!bodies.contains_key("orders/other"));

    // A person publishes by the same rules, and hears how many were woken.
    assert_eq!(provider.publish(message("returns.a.b", "3")).await, Ok(1));
    assert_eq!(provider.publish(message("nobody.listens", "4")).await, Ok(0));
    assert!(matches!(provider.publish(message("$SYS.x", "")).await, Err(CallError::Denied(_))));
    assert!(matches!(provider.publish(message("orders.*", "")).await, Err(CallError::Invalid(_))));
}

#[tokio::test]
async fn no_message_is_taken_without_a_permit_and_a_full_buffer_refuses_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let (busy, free) = (Node::new(0, OPEN), Node::new(1, OPEN));
    let full = link("orders", "busy", "messaging", &[("subject", "orders.*")]);
    busy.wake(&provider, full.clone()).await;
    free.wake(&provider, link("orders", "free", "messaging", &[("subject", "orders.late")])).await;
    for i in 0..BUFFER_MESSAGES_MAX {
        assert_eq!(provider.publish(message("orders.placed", &i.to_string())).await, Ok(1));
    }
    let refused = provider.publish(message("orders.late", "x")).await;
    assert!(matches!(&refused, Err(CallError::Unavailable(why)) if why.contains("is full")), "{refused:?}");
    assert!(free.ran.lock().unwrap().is_empty(), "the free link did not get it either");

    busy.permits.add_permits(1);
    let ran = busy.ran(BUFFER_MESSAGES_MAX).await;
    let bodies: Vec<String> = ran.into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies, (0..BUFFER_MESSAGES_MAX).map(|i| i.to_string()).collect::<Vec<_>>(), "in order");
    assert_eq!(provider.publish(message("orders.late", "x")).await, Ok(2));
}

#[tokio::test]
async fn a_buffer_is_bounded_in_bytes_and_a_message_too() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(0, OPEN);
    node.wake(&provider, link("orders", "busy", "messaging", &[("subject", "big")])).await;
    let body = "x".repeat(MESSAGE_BYTES_MAX - "big".len());
    let fit = BUFFER_BYTES_MAX / MESSAGE_BYTES_MAX;
    for _ in 0..fit {
        assert_eq!(provider.publish(message("big", &body)).await, Ok(1));
    }
    assert!(matches!(provider.publish(message("big", "x")).await, Err(CallError::Unavailable(_))));
    let too_large = message("big", &format!("{body}x"));
    assert!(matches!(provider.publish(too_large).await, Err(CallError::Invalid(_))));
}

#[tokio::test]
async fn a_full_member_of_a_group_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let (stuck, free) = (Node::new(0, OPEN), Node::new(4, OPEN));
    stuck.wake(&provider, link("orders", "a", "messaging", &[("subscriptions", "jobs|g")])).await;
    free.wake(&provider, link("orders", "b", "messaging", &[("subscriptions", "jobs|g")])).await;
    let published = 2 * BUFFER_MESSAGES_MAX + 10;
    for i in 0..published {
        let message = message("jobs", &i.to_string());
        assert_eq!(provider.publish(message).await, Ok(1));
        tokio::task::yield_now().await;
        if i % 256 == 0 {
            free.ran(i / 2).await;
        }
    }
    free.ran(published - BUFFER_MESSAGES_MAX).await;
}

#[tokio::test]
async fn a_request_gets_the_first_answer() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let api = granted(&provider, link("orders", "api", "messaging", &[])).await;
    let request = |timeout| Call::Request { message: message("price.of", "tea"), timeout };

    let nobody = provider.call(&api, request(Duration::from_secs(5))).await;
    assert!(matches!(&nobody, Err(CallError::Unavailable(why)) if why.contains("price.of")), "{nobody:?}");

    // The component that is asked: it answers by publishing to `reply_to`, twice.
    let asked = Arc::new(Asked { provider: provider.clone(), link: api.clone(), replies: Arc::default() });
    let price = link("prices", "price", "messaging", &[("subject", "price.*")]);
    let permits = Permits::new(price.component.clone(), asked.clone());
    provider.wake(price.clone(), permits).await.unwrap();
    match provider.call(&api, request(Duration::from_secs(5))).await {
        Ok(Answer::Message(answer)) => assert_eq!(answer.body, "3 for tea"),
        other => panic!("{other:?}"),
    }
    provider.remove(&price.id).await;
    let replies = asked.replies.lock().unwrap();
    assert_eq!(replies[0], Ok(()));
    assert!(matches!(&replies[1], Err(CallError::NoSuch(_))), "nobody waits for the second");
}

struct Asked {
    provider: Arc<Embedded>,
    link: LinkId,
    replies: Arc<Mutex<Vec<Result<(), CallError>>>>,
}

#[async_trait]
impl PermitSource for Asked {
    async fn acquire(&self, _: &ComponentKey, _: Want) -> Result<Permit, Error> {
        let (provider, link, replies) = (self.provider.clone(), self.link.clone(), self.replies.clone());
        Ok(Permit::new(Answering(Asked { provider, link, replies })))
    }
}

struct Answering(Asked);

#[async_trait]
impl Run for Answering {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let Event::Message(asked) = event else { panic!("{event:?}") };
        let inbox = asked.reply_to.expect("a request names its inbox");
        let answer = format!("3 for {}", str::from_utf8(&asked.body).unwrap());
        for _ in 0..2 {
            let published = publish(&self.0.provider, &self.0.link, message(&inbox, &answer)).await;
            self.0.replies.lock().unwrap().push(published);
        }
        Ok(Reply::Settle(Settle::Ack))
    }
}

#[tokio::test]
async fn a_request_that_nobody_answers_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let api = granted(&provider, link("orders", "api", "messaging", &[])).await;
    let node = Node::new(1, OPEN);
    node.wake(&provider, link("orders", "silent", "messaging", &[("subject", "price.of")])).await;
    let timeout = Duration::from_millis(50);
    let answer = provider.call(&api, Call::Request { message: message("price.of", ""), timeout }).await;
    assert!(matches!(&answer, Err(CallError::TimedOut(why)) if why.contains("price.of")), "{answer:?}");
}

#[tokio::test]
async fn what_our_side_is_short_of_is_tried_again_and_what_the_guest_refuses_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(1, OPEN);
    // Popped from the end: first short, then fine, then a fault.
    *node.outcomes.lock().unwrap() = vec![
        Err(Fault::Trap("unreachable".into()).into()),
        Ok(Reply::Settle(Settle::Ack)),
        Err(Error::Busy("no sandbox is free".into()).into()),
    ];
    let trigger = link("orders", "a", "messaging", &[("subject", "jobs")]);
    node.wake(&provider, trigger.clone()).await;
    provider.publish(message("jobs", "1")).await.unwrap();
    provider.publish(message("jobs", "2")).await.unwrap();
    node.ran(1).await;
    let said = async {
        loop {
            match provider.health(&trigger.id) {
                Err(why) => return why,
                Ok(()) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(5), said).await.unwrap();
    assert!(said.contains("no sandbox is free"), "{said}");
    let ran = node.ran(3).await;
    let bodies: Vec<&str> = ran.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(bodies, ["1", "1", "2"]);
    provider.remove(&trigger.id).await;
    assert_eq!(node.ran(3).await.len(), 3, "the fault was not tried again");
}

#[tokio::test(start_paused = true)]
async fn what_our_side_is_always_short_of_is_given_up_for_those_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(1, OPEN);
    let busy = || Err(Error::Busy("no sandbox is free".into()).into());
    *node.outcomes.lock().unwrap() = (0..6).map(|_| busy()).collect();
    let trigger = link("orders", "a", "messaging", &[("subject", "jobs")]);
    node.wake(&provider, trigger.clone()).await;
    provider.publish(message("jobs", "1")).await.unwrap();
    provider.publish(message("jobs", "2")).await.unwrap();
    let ran = node.ran(7).await;
    let bodies: Vec<&str> = ran.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(bodies, ["1", "1", "1", "1", "1", "1", "2"]);
}

#[tokio::test]
async fn remove_waits_for_what_came_and_takes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(1, 0);
    let trigger = link("orders", "a", "messaging", &[("subject", "jobs")]);
    node.wake(&provider, trigger.clone()).await;
    for body in ["runs", "waits"] {
        provider.publish(message("jobs", body)).await.unwrap();
    }
    while node.permits.available_permits() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut removed = tokio::spawn({
        let (provider, id) = (provider.clone(), trigger.id.clone());
        async move { provider.remove(&id).await }
    });
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut removed).await.is_err(), "one still runs");
    assert_eq!(provider.publish(message("jobs", "late")).await, Ok(0), "the link is gone at once");
    node.gate.add_permits(OPEN);
    removed.await.unwrap();
    let ran = node.ran(2).await;
    assert_eq!(ran.iter().map(|(_, body)| body.as_str()).collect::<Vec<_>>(), ["runs", "waits"], "what waited ran too");
    assert!(provider.health(&trigger.id).is_err());
    provider.remove(&trigger.id).await;
}

#[tokio::test]
async fn drain_works_off_what_waits_and_takes_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(1, 0);
    node.wake(&provider, link("orders", "a", "messaging", &[("subject", "jobs")])).await;
    for body in ["1", "2", "3"] {
        provider.publish(message("jobs", body)).await.unwrap();
    }
    let drained = tokio::spawn({
        let provider = provider.clone();
        async move { provider.drain().await }
    });
    while provider.publish(message("jobs", "late")).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.gate.add_permits(OPEN);
    drained.await.unwrap();
    let ran = node.ran(3).await;
    assert_eq!(ran.iter().take(3).map(|(_, body)| body.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
}

#[tokio::test]
async fn drain_ends_when_the_node_gives_no_more_permits() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let node = Node::new(0, OPEN);
    node.wake(&provider, link("orders", "a", "messaging", &[("subject", "jobs")])).await;
    provider.publish(message("jobs", "1")).await.unwrap();
    node.permits.close();
    tokio::time::timeout(Duration::from_secs(5), provider.drain()).await.unwrap();
    assert!(node.ran.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_link_grants_what_it_names_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let store = granted(&provider, link("orders", "api", "keyvalue", &[])).await;
    let limited = granted(&provider, link("orders", "api", "messaging", &[("allowed_subjects", "orders.>")])).await;
    assert!(matches!(publish(&provider, &store, message("a", "")).await, Err(CallError::Denied(_))));
    assert!(matches!(kv(&provider, &limited, KeyValue::Open).await, Err(CallError::Denied(_))));
    assert_eq!(publish(&provider, &limited, message("orders.placed", "")).await, Ok(()));
    let denied = publish(&provider, &limited, message("returns", "")).await;
    assert!(matches!(&denied, Err(CallError::Denied(why)) if why.contains("allowed_subjects")), "{denied:?}");

    provider.remove(&store).await;
    assert!(matches!(kv(&provider, &store, KeyValue::Open).await, Err(CallError::Unavailable(_))));
}

#[tokio::test]
async fn what_is_not_offered_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    let refused = |link: Link| async {
        let permits = Permits::new(link.component.clone(), Node::new(1, OPEN));
        provider.wake(link, permits).await.unwrap_err()
    };
    let queue = refused(link("orders", "a", "messaging", &[("queue", "orders.*")])).await;
    assert!(matches!(&queue, LinkError::Config { key, .. } if key == "queue"), "{queue:?}");
    let http = refused(link("orders", "a", "http", &[])).await;
    assert!(matches!(&http, LinkError::Unsupported(why) if why.contains("wasi:http")), "{http:?}");
    let nothing = refused(link("orders", "a", "messaging", &[])).await;
    assert!(matches!(&nothing, LinkError::Config { key, .. } if key == "subject"), "{nothing:?}");
    let own = provider.grant(link("orders", "a", "keyvalue", &[("store", "trellis/timers")])).await.unwrap_err();
    assert!(matches!(&own, LinkError::Config { key, .. } if key == "store"), "the node's own stores: {own:?}");
    let blobs = provider.grant(link("orders", "a", "blobstore", &[])).await.unwrap_err();
    assert!(matches!(&blobs, LinkError::Unsupported(why) if why.contains("wasi:blobstore")), "{blobs:?}");
}
