//! A component uses a JetStream key-value bucket.

use bytes::Bytes;
use trellis_bus::testing::NatsServer;
use trellis_nats::{Auth, Nats, Options};
use trellis_provider::Provider as _;
use trellis_provider::testing::lab::until;
use trellis_wire::{Answer, Call, CallError, KeyValue, KeyValueAnswer as A, Link, LinkId, Secret, Secrets};

use crate::{link, provider};

const BUCKET: [(&str, &str); 2] = [("bucket", "shop"), ("create", "true")];

async fn granted(nats: &Nats, config: &[(&str, &str)]) -> LinkId {
    let link = link("worker", "keyvalue", config);
    let id = link.id.clone();
    nats.grant(link).await.unwrap();
    until("the provider is connected", || nats.health(&id).map_or_else(|why| !why.contains("connect"), |()| true))
        .await;
    id
}

async fn kv(nats: &Nats, link: &LinkId, operation: KeyValue) -> Result<A, CallError> {
    match nats.call(link, Call::KeyValue(operation)).await? {
        Answer::KeyValue(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn every_operation_answers_as_it_should() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = granted(&nats, &BUCKET).await;
    let kv = async |operation| kv(&nats, &id, operation).await.unwrap();
    let swap = |old: Option<&'static str>, new| KeyValue::Swap { key: "s".into(), old: old.map(text), new: text(new) };

    assert_eq!(kv(KeyValue::Open).await, A::Done);
    assert_eq!(kv(KeyValue::Get("a.b".into())).await, A::Value(None));
    assert_eq!(kv(KeyValue::Set("a.b".into(), text("1"))).await, A::Done);
    assert_eq!(kv(KeyValue::Get("a.b".into())).await, A::Value(Some(text("1"))));
    assert_eq!(kv(KeyValue::Exists("a.b".into())).await, A::Exists(true));
    assert_eq!(kv(KeyValue::Increment("a.b".into(), 41)).await, A::Number(42));
    assert_eq!(kv(KeyValue::Get("a.b".into())).await, A::Value(Some(text("42"))), "decimal text");
    assert_eq!(kv(KeyValue::Delete("a.b".into())).await, A::Done);
    assert_eq!(kv(KeyValue::Delete("never/there".into())).await, A::Done);
    assert_eq!(kv(KeyValue::Exists("a.b".into())).await, A::Exists(false));
    assert_eq!(kv(KeyValue::Increment("a.b".into(), -3)).await, A::Number(-3), "a deleted key counts as 0");

    assert_eq!(kv(swap(Some("x"), "y")).await, A::Swapped(Err(None)));
    assert_eq!(kv(swap(None, "y")).await, A::Swapped(Ok(())));
    assert_eq!(kv(swap(None, "z")).await, A::Swapped(Err(Some(text("y")))));
    assert_eq!(kv(swap(Some("y"), "z")).await, A::Swapped(Ok(())));
    kv(KeyValue::Delete("s".into())).await;
    assert_eq!(kv(swap(None, "back")).await, A::Swapped(Ok(())));

    let pairs = vec![("m1".into(), text("x")), ("m2".into(), text("2")), ("m1".into(), text("1"))];
    assert_eq!(kv(KeyValue::SetMany(pairs)).await, A::Done);
    let keys = || vec!["m2".into(), "m3".into(), "m1".into()];
    let values = vec![("m2".into(), Some(text("2"))), ("m3".into(), None), ("m1".into(), Some(text("1")))];
    assert_eq!(kv(KeyValue::GetMany(keys())).await, A::Values(values), "in the order in which they were asked for");
    assert_eq!(kv(KeyValue::DeleteMany(keys())).await, A::Done);
    let left = vec!["a.b".into(), "s".into()];
    assert_eq!(kv(KeyValue::Keys { cursor: None }).await, A::Keys { keys: left, cursor: None });
}

#[tokio::test]
async fn keys_come_in_pages() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = granted(&nats, &BUCKET).await;
    let names: Vec<String> = (0..2100).map(|n| format!("key-{n:04}")).collect();
    for some in names.chunks(1_000) {
        let pairs = some.iter().map(|name| (name.clone(), text("v"))).collect();
        kv(&nats, &id, KeyValue::SetMany(pairs)).await.unwrap();
    }
    let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let answer = kv(&nats, &id, KeyValue::Keys { cursor }).await.unwrap();
        let A::Keys { keys, cursor: next } = answer else { panic!("{answer:?}") };
        (pages, cursor) = (pages + 1, next);
        seen.extend(keys);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((pages, seen == names), (3, true), "sorted, each once, 1,000 at a time");
}

#[tokio::test]
async fn a_batch_is_bounded_in_keys_and_bytes() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = granted(&nats, &BUCKET).await;
    let too_large = async |operation| {
        let refused = kv(&nats, &id, operation).await.unwrap_err();
        assert!(matches!(&refused, CallError::Invalid(why) if why.contains("use several")), "{refused}");
    };
    let keys = || (0..1_001).map(|n| format!("k{n}"));
    too_large(KeyValue::GetMany(keys().collect())).await;
    too_large(KeyValue::DeleteMany(keys().collect())).await;
    too_large(KeyValue::SetMany(keys().map(|key| (key, text("v"))).collect())).await;
    // One value that is asked for often fills the answer as it comes.
    kv(&nats, &id, KeyValue::Set("big".into(), vec![0; 1024 * 1024].into())).await.unwrap();
    too_large(KeyValue::GetMany(vec!["big".into(); 17])).await;
    let fits = kv(&nats, &id, KeyValue::GetMany(vec!["big".into(); 16])).await;
    assert!(matches!(&fits, Ok(A::Values(values)) if values.len() == 16));
}

#[tokio::test]
async fn a_node_that_logs_in_by_password_has_its_links_do_so_too() {
    let server = NatsServer::start_with(true, &["--user", "node", "--pass", "s3cret"]);
    let login = |password: &str| {
        let auth = Auth::Password { user: Secret::new("node"), password: Secret::new(password) };
        Nats::new(Options { default_url: Some(server.url.clone()), auth, ..Options::default() })
    };
    let nats = login("s3cret");
    let id = granted(&nats, &BUCKET).await;
    assert_eq!(kv(&nats, &id, KeyValue::Set("a".into(), text("1"))).await, Ok(A::Done));
    let out = login("wr0ng");
    let link = link("worker", "keyvalue", &BUCKET);
    out.grant(link.clone()).await.unwrap();
    until("it is kept out", || out.health(&link.id).is_err_and(|why| why.contains("authorization"))).await;
}

#[tokio::test]
async fn a_link_logs_in_by_its_secrets_and_shows_none_of_them() {
    let server = NatsServer::start_with(true, &["--user", "shop", "--pass", "hunter2"]);
    let nats = Nats::new(Options::default());
    let login = |password: &str| {
        let secrets = Secrets::from_iter([("password", Secret::new(password))]);
        let config = [&BUCKET[..], &[("url", server.url.as_str()), ("user", "shop")]].concat();
        Link { secrets, ..link("worker", "keyvalue", &config) }
    };
    let wrong = login("wr0ng-hunter");
    nats.grant(wrong.clone()).await.unwrap();
    until("it is kept out", || nats.health(&wrong.id).is_err_and(|why| why.contains("authorization"))).await;
    assert!(!format!("{:?} {wrong:?} {nats:?}", nats.health(&wrong.id)).contains("hunter"), "{nats:?}");
    nats.remove(&wrong.id).await;

    let right = login("hunter2");
    nats.grant(right.clone()).await.unwrap();
    until("it is let in", || nats.health(&right.id).is_ok()).await;
    assert_eq!(kv(&nats, &right.id, KeyValue::Set("a".into(), text("1"))).await, Ok(A::Done));
    assert!(!format!("{right:?} {nats:?}").contains("hunter"), "{nats:?}");
}

#[tokio::test]
async fn increments_of_two_nodes_are_all_counted() {
    let server = NatsServer::start(true);
    let (one, two) = (provider(&server.url), provider(&server.url));
    let (link_one, link_two) = (granted(&one, &BUCKET).await, granted(&two, &BUCKET).await);
    let counting = async |nats: &Nats, link: &LinkId| {
        let steps = (0..200).map(|_| kv(nats, link, KeyValue::Increment("hits".into(), 1)));
        futures::future::try_join_all(steps).await.unwrap()
    };
    let (mut sums, others) = tokio::join!(counting(&one, &link_one), counting(&two, &link_two));
    sums.extend(others);
    let mut sums: Vec<_> =
        sums.into_iter().map(|sum| if let A::Number(n) = sum { n } else { panic!("{sum:?}") }).collect();
    sums.sort_unstable();
    assert_eq!(sums, (1..=400).collect::<Vec<i64>>(), "each step has a sum of its own");
}

#[tokio::test]
async fn what_cannot_be_is_said_with_the_rule() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = granted(&nats, &BUCKET).await;
    let refused = kv(&nats, &id, KeyValue::Get("a b".into())).await.unwrap_err();
    assert!(matches!(&refused, CallError::Invalid(why) if why.contains("`a b` is no key")), "{refused}");
    kv(&nats, &id, KeyValue::Set("word".into(), text("apple"))).await.unwrap();
    let no_number = kv(&nats, &id, KeyValue::Increment("word".into(), 1)).await.unwrap_err();
    assert!(matches!(&no_number, CallError::Invalid(why) if why.contains("no decimal number")), "{no_number}");
    kv(&nats, &id, KeyValue::Set("big".into(), i64::MAX.to_string().into())).await.unwrap();
    assert!(matches!(kv(&nats, &id, KeyValue::Increment("big".into(), 1)).await, Err(CallError::Invalid(_))));
    let large = kv(&nats, &id, KeyValue::Set("large".into(), vec![0; 1024 * 1024 + 1].into())).await;
    assert!(matches!(large, Err(CallError::Invalid(_))), "{large:?}");

    let missing = granted(&nats, &[("bucket", "missing")]).await;
    let why = kv(&nats, &missing, KeyValue::Open).await.unwrap_err();
    assert!(matches!(&why, CallError::NoSuch(what) if what.contains("missing") && what.contains("create")), "{why}");
    assert!(nats.health(&missing).unwrap_err().contains("missing"));
}

#[tokio::test]
async fn a_bucket_is_found_again_when_its_server_is() {
    let mut server = NatsServer::start(true);
    server.kill();
    let nats = provider(&server.url);
    let link = link("worker", "keyvalue", &BUCKET);
    nats.grant(link.clone()).await.unwrap();
    let away = kv(&nats, &link.id, KeyValue::Open).await.unwrap_err();
    assert!(matches!(&away, CallError::Unavailable(why) if why.contains(&server.url)), "{away}");

    server.restart();
    until("it is connected", || nats.health(&link.id).is_ok()).await;
    kv(&nats, &link.id, KeyValue::Set("kept".into(), text("1"))).await.unwrap();
    server.kill();
    until("health says so", || nats.health(&link.id).is_err()).await;
    server.restart();
    until("it is connected again", || nats.health(&link.id).is_ok()).await;
    assert_eq!(kv(&nats, &link.id, KeyValue::Get("kept".into())).await, Ok(A::Value(Some(text("1")))));
}

#[tokio::test]
async fn a_server_without_jetstream_is_named() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = granted(&nats, &BUCKET).await;
    let why = kv(&nats, &id, KeyValue::Open).await.unwrap_err();
    assert!(matches!(&why, CallError::Unavailable(why) if why.contains("JetStream")), "{why}");
}
