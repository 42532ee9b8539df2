//! A component uses keys.

use std::collections::BTreeSet;

use bytes::Bytes;
use redis::AsyncCommands as _;
use trellis_provider::Provider as _;
use trellis_provider::testing::lab::{link, until};
use trellis_redis::Redis;
use trellis_redis::testing::RedisServer;
use trellis_wire::{Answer, Call, CallError, KeyValue, KeyValueAnswer, Link, LinkId};

use crate::client;

async fn call(redis: &Redis, link: &LinkId, operation: KeyValue) -> Result<KeyValueAnswer, CallError> {
    match redis.call(link, Call::KeyValue(operation)).await? {
        Answer::KeyValue(answer) => Ok(answer),
        other => panic!("{other:?}"),
    }
}

async fn keys(server: &RedisServer, config: &[(&str, &str)]) -> (Redis, Link) {
    let redis = Redis::new();
    let link = link("keyvalue", &[&[("URL", server.url.as_str())], config].concat());
    redis.grant(link.clone()).await.unwrap();
    (redis, link)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn other_clients_read_what_a_component_writes() {
    let server = RedisServer::start();
    let mut client = client(&server).await;
    let (redis, link) = keys(&server, &[("prefix", "shop[1]:")]).await;
    let ask = async |operation| call(&redis, &link.id, operation).await;
    assert_eq!(ask(KeyValue::Open).await, Ok(KeyValueAnswer::Done));
    assert_eq!(ask(KeyValue::Get("a".into())).await, Ok(KeyValueAnswer::Value(None)));
    assert_eq!(ask(KeyValue::Set("a".into(), bytes("1"))).await, Ok(KeyValueAnswer::Done));
    assert_eq!(client.get::<_, String>("shop[1]:a").await.unwrap(), "1");
    assert_eq!(ask(KeyValue::Increment("a".into(), 41)).await, Ok(KeyValueAnswer::Number(42)));
    assert_eq!(client.get::<_, String>("shop[1]:a").await.unwrap(), "42", "decimal text");
    assert_eq!(ask(KeyValue::Exists("a".into())).await, Ok(KeyValueAnswer::Exists(true)));
    let pairs = vec![("b".into(), bytes("x")), ("c".into(), bytes("y"))];
    assert_eq!(ask(KeyValue::SetMany(pairs)).await, Ok(KeyValueAnswer::Done));
    let many = ask(KeyValue::GetMany(vec!["c".into(), "none".into(), "b".into()])).await;
    let expected = vec![("c".into(), Some(bytes("y"))), ("none".into(), None), ("b".into(), Some(bytes("x")))];
    assert_eq!(many, Ok(KeyValueAnswer::Values(expected)), "in their order");
    let _: () = client.set("other", "not ours").await.unwrap();
    let KeyValueAnswer::Keys { keys, cursor } = ask(KeyValue::Keys { cursor: None }).await.unwrap() else { panic!() };
    assert_eq!((keys, cursor), (vec!["a".into(), "b".into(), "c".into()], None));
    assert_eq!(ask(KeyValue::DeleteMany(vec!["a".into(), "b".into(), "none".into()])).await, Ok(KeyValueAnswer::Done));
    assert_eq!(ask(KeyValue::Delete("c".into())).await, Ok(KeyValueAnswer::Done));
    assert_eq!(client.keys::<_, Vec<String>>("*").await.unwrap(), ["other"]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let server = RedisServer::start();
    let mut client = client(&server).await;
    let (redis, link) = keys(&server, &[]).await;
    let ask = async |operation| call(&redis, &link.id, operation).await;
    let _: () = client.set("text", "no number").await.unwrap();
    let _: () = client.set("most", i64::MAX.to_string()).await.unwrap();
    let _: usize = client.lpush("list", "1").await.unwrap();
    for (operation, says) in [
        (KeyValue::Increment("text".into(), 1), "holds no decimal number"),
        (KeyValue::Increment("most".into(), 1), "overflow"),
        (KeyValue::Get("list".into()), "WRONGTYPE"),
        (KeyValue::Get(String::new()), "1 to 1024 are taken"),
        (KeyValue::Set("a".into(), vec![0; 16 * 1024 * 1024 + 1].into()), "at most 16777216 are taken"),
        (KeyValue::GetMany(vec!["k".into(); 1_001]), "a batch of 1001 keys"),
        (KeyValue::Keys { cursor: Some("x".into()) }, "is no cursor"),
    ] {
        let why = ask(operation.clone()).await.unwrap_err();
        assert!(matches!(&why, CallError::Invalid(why) if why.contains(says)), "{operation:?}: {why:?}");
    }
    let ledger = ask(KeyValue::Get("trellis:orders:x:due".into())).await;
    assert!(matches!(ledger, Err(CallError::Denied(_))), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_atomic_stays_so_among_many() {
    let server = RedisServer::start();
    let (redis, link) = keys(&server, &[]).await;
    let (redis, id) = (std::sync::Arc::new(redis), link.id);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (redis, id) = (redis.clone(), id.clone());
            tokio::spawn(async move {
                for _ in 0..50 {
                    call(&redis, &id, KeyValue::Increment("sum".into(), 1)).await.unwrap();
                    // The same by compare-and-set.
                    loop {
                        let KeyValueAnswer::Value(old) = call(&redis, &id, KeyValue::Get("cas".into())).await.unwrap()
                        else {
                            panic!()
                        };
                        let number = old.as_ref().map_or(0, |old| std::str::from_utf8(old).unwrap().parse().unwrap());
                        let new = bytes(&(number + 1).to_string());
                        let swap = KeyValue::Swap { key: "cas".into(), old, new };
                        if call(&redis, &id, swap).await.unwrap() == KeyValueAnswer::Swapped(Ok(())) {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for key in ["sum", "cas"] {
        assert_eq!(call(&redis, &id, KeyValue::Get(key.into())).await, Ok(KeyValueAnswer::Value(Some(bytes("400")))));
    }
}

#[tokio::test]
async fn many_keys_come_in_pages_and_a_store_outlives_its_server() {
    let mut server = RedisServer::start();
    let (redis, link) = keys(&server, &[("prefix", "p:")]).await;
    let ask = async |operation| call(&redis, &link.id, operation).await;
    let all: BTreeSet<String> = (0..3_000).map(|n| format!("k{n}")).collect();
    for chunk in all.iter().collect::<Vec<_>>().chunks(1_000) {
        let pairs = chunk.iter().map(|key| ((*key).clone(), bytes("v"))).collect();
        ask(KeyValue::SetMany(pairs)).await.unwrap();
    }
    let (mut found, mut cursor) = (BTreeSet::new(), None);
    loop {
        let KeyValueAnswer::Keys { keys, cursor: next } = ask(KeyValue::Keys { cursor }).await.unwrap() else {
            panic!()
        };
        assert!(keys.len() <= 1_000, "{}", keys.len());
        found.extend(keys);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, all);
    server.kill();
    let why = ask(KeyValue::Get("k1".into())).await.unwrap_err();
    assert!(matches!(&why, CallError::Unavailable(_)), "{why:?}");
    assert!(redis.health(&link.id).unwrap_err().contains(&server.url));
    server.restart();
    until("it is connected again", || redis.health(&link.id).is_ok()).await;
    assert_eq!(ask(KeyValue::Get("k1".into())).await, Ok(KeyValueAnswer::Value(Some(bytes("v")))));
}
