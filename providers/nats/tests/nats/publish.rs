//! A component publishes, requests and answers.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures::StreamExt as _;
use trellis_bus::testing::NatsServer;
use trellis_provider::Provider as _;
use trellis_provider::testing::lab::{Node, until};
use trellis_wire::{Answer, Call, CallError, Message};

use crate::{link, message, provider, publish, publisher};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_request_is_answered_by_what_the_woken_component_publishes() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let node = Node::new(2);
    let clock = link("clock", "messaging", &[("subscriptions", "clock.*")]);
    nats.wake(clock.clone(), node.permits(&clock)).await.unwrap();

    let headers = vec![("a".into(), "1".into()), ("a".into(), "2".into()), ("b".into(), "3".into())];
    let asked = Message { headers: headers.clone(), id: "m-1".into(), ..message("clock.time", "?") };
    let asking = nats.call(&id, Call::Request { message: asked, timeout: Duration::from_secs(20) });
    let answering = async {
        until("the component is woken", || !node.bodies().is_empty()).await;
        let woken = node.woken()[0].clone();
        assert_eq!(woken.headers[1..], headers, "after the id's header");
        assert_eq!((woken.subject.as_str(), woken.id.as_str()), ("clock.time", "m-1"));
        let inbox = woken.reply_to.expect("a request says where the answer goes");
        publish(&nats, &id, message(&inbox, "noon")).await.unwrap();
    };
    let (answer, ()) = tokio::join!(asking, answering);
    let Ok(Answer::Message(answer)) = answer else { panic!("{answer:?}") };
    assert_eq!(answer.body, "noon");

    let silent = nats.call(&id, Call::Request { message: message("clock.time", "?"), timeout: SHORT }).await;
    assert_eq!(silent.unwrap_err(), CallError::TimedOut("no answer from `clock.time` within 200ms".into()));
    let nobody = nats.call(&id, Call::Request { message: message("nobody", "?"), timeout: SHORT * 100 }).await;
    assert_eq!(nobody.unwrap_err(), CallError::Unavailable("nobody listens to `nobody`".into()));
}

#[tokio::test]
async fn a_component_cannot_publish_where_the_lattice_talks_or_what_nats_does_not_take() {
    let server = NatsServer::start(false);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    for subject in ["trellis.v1.home.join", "$JS.API.STREAM.DELETE.x", "$KV.bucket.key"] {
        let denied = publish(&nats, &id, message(subject, "")).await.unwrap_err();
        assert!(matches!(&denied, CallError::Denied(why) if why.contains(subject)), "{denied}");
        let answer_there = Message { reply_to: Some(subject.into()), ..message("free", "") };
        assert!(matches!(publish(&nats, &id, answer_there).await, Err(CallError::Denied(_))));
    }
    for subject in ["", "a b", "a.*", "a\r\nPUB b 0"] {
        assert!(matches!(publish(&nats, &id, message(subject, "")).await, Err(CallError::Invalid(_))), "{subject:?}");
    }
    let too_large = publish(&nats, &id, message("free", &"x".repeat(1024 * 1024 + 1))).await.unwrap_err();
    assert!(matches!(&too_large, CallError::Invalid(why) if why.contains("1048577 bytes")), "{too_large}");
    let split = Message { headers: vec![("a".into(), "b\r\nc".into())], ..message("free", "") };
    assert!(matches!(publish(&nats, &id, split).await, Err(CallError::Invalid(_))));

    let bounded = link("bounded", "messaging", &[("allowed_subjects", "mail.>")]);
    nats.grant(bounded.clone()).await.unwrap();
    assert_eq!(publish(&nats, &bounded.id, message("mail.new", "")).await, Ok(()));
    assert!(matches!(publish(&nats, &bounded.id, message("bank", "")).await, Err(CallError::Denied(_))));
}

/// A stream, its configuration beyond name and subject by `with`.
async fn stream(server: &NatsServer, subject: &str, with: stream::Config) -> stream::Stream {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(&server.url).await.unwrap();
    let config = stream::Config { name: "ORDERS".into(), subjects: vec![subject.into()], ..with };
    jetstream::new(client).create_stream(config).await.unwrap()
}

async fn count(stream: &mut stream::Stream) -> u64 {
    stream.info().await.unwrap().state.messages
}

#[tokio::test]
async fn what_a_stream_takes_is_answered_when_it_is_stored_and_stored_once() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let mut orders = stream(&server, "orders.*", stream::Config::default()).await;
    for n in 1..=3 {
        let named = Message { id: "m-1".into(), headers: vec![("a".into(), "b".into())], ..message("orders.eu", "1") };
        publish(&nats, &id, named).await.unwrap();
        publish(&nats, &id, message("orders.us", "2")).await.unwrap();
        assert_eq!(count(&mut orders).await, n + 1, "one by its name, and one more each time");
    }
    let stored = orders.get_raw_message(1).await.unwrap();
    assert_eq!((stored.payload.as_ref(), stored.headers.get("a").unwrap().as_str()), (b"1".as_slice(), "b"));
    assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), "m-1");
}

#[tokio::test]
async fn what_a_stream_refuses_is_an_error_that_says_whether_trying_again_helps() {
    let server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let full = stream::Config {
        max_messages: 1,
        max_message_size: 100,
        discard: stream::DiscardPolicy::New,
        ..stream::Config::default()
    };
    let orders = stream(&server, "orders", full).await;
    publish(&nats, &id, message("orders", "1")).await.unwrap();
    let refused = publish(&nats, &id, message("orders", "2")).await.unwrap_err();
    assert!(
        matches!(&refused, CallError::Unavailable(why) if why.contains("`orders`") && why.contains("maximum messages"))
    );
    let refused = publish(&nats, &id, message("orders", &"x".repeat(200))).await.unwrap_err();
    assert!(matches!(&refused, CallError::Invalid(why) if why.contains("`orders`")), "{refused}");
    orders.purge().await.unwrap();
    publish(&nats, &id, message("orders", "3")).await.unwrap();
}

#[tokio::test]
async fn what_no_stream_takes_goes_to_who_listens_and_asks_for_no_answer() {
    for jetstream in [false, true] {
        let server = NatsServer::start(jetstream);
        let nats = provider(&server.url);
        let id = publisher(&nats).await;
        let other = async_nats::connect(&server.url).await.unwrap();
        let mut heard = other.subscribe("orders").await.unwrap();
        other.flush().await.unwrap();
        publish(&nats, &id, message("orders", "1")).await.unwrap();
        publish(&nats, &id, message("nobody", "1")).await.unwrap();
        let heard = tokio::time::timeout(SHORT * 100, heard.next()).await.unwrap().unwrap();
        assert_eq!((heard.payload.as_ref(), heard.reply), (b"1".as_slice(), None));
        if !jetstream {
            continue;
        }
        // A stream is noticed that is made meanwhile, and one that is gone.
        let mut orders = stream(&server, "orders", stream::Config::default()).await;
        let mut kept = 0;
        while kept == 0 {
            publish(&nats, &id, message("orders", "2")).await.unwrap();
            kept = count(&mut orders).await;
        }
        let answered = Message { reply_to: Some("answers".into()), ..message("orders", "3") };
        publish(&nats, &id, answered).await.unwrap();
        jetstream::new(other).delete_stream("ORDERS").await.unwrap();
        publish(&nats, &id, message("orders", "4")).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_error_and_nothing_is_said_to_be_stored() {
    let mut server = NatsServer::start(true);
    let nats = provider(&server.url);
    let id = publisher(&nats).await;
    let mut orders = stream(&server, "orders", stream::Config::default()).await;
    publish(&nats, &id, message("orders", "0")).await.unwrap();
    let mut said = 1;
    for _ in 0..3 {
        let publishing = async {
            while publish(&nats, &id, message("orders", "x")).await.is_ok() {
                said += 1;
            }
        };
        let killing = async {
            tokio::time::sleep(SHORT / 2).await;
            server.kill();
        };
        tokio::join!(publishing, killing);
        server.restart();
        until("it is connected again", || nats.health(&id).is_ok()).await;
    }
    let mut kept = 0;
    for _ in 0..100 {
        kept = orders.info().await.map_or(0, |info| info.state.messages);
        if kept > 0 {
            break;
        }
        tokio::time::sleep(SHORT).await;
    }
    assert!(kept >= said, "{said} were said to be stored, {kept} are");
}
