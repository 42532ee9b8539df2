//! A component publishes, requests and answers.

use std::time::Duration;

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
