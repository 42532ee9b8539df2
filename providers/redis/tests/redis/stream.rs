//! Messages of a stream wake a component, at least once.

use std::time::Duration;

use async_trait::async_trait;
use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use trellis_provider::Provider as _;
use trellis_provider::delivery::{DeadLetter, Fate, PULL_MAX, Queue as _, Settlement};
use trellis_provider::testing::lab::{
    self, Node, PATIENCE, a_claim_lasts_though_guests_hold_all_threads_of_their_own, link, silent, text, threads, until,
};
use trellis_provider::testing::{Broker, contract};
use trellis_redis::testing::RedisServer;
use trellis_redis::{Redis, Source};
use trellis_wire::{Answer, Call, CallError, Link, LinkId, Message};

use crate::client;

struct Lab {
    server: RedisServer,
    redis: Redis,
    publishes: LinkId,
}

impl Lab {
    async fn start() -> Self {
        Self::on(RedisServer::start()).await
    }

    async fn on(server: RedisServer) -> Self {
        let redis = Redis::new();
        let link = link("messaging", &[("url", &server.url), ("for", "the test")]);
        let publishes = link.id.clone();
        redis.grant(link).await.unwrap();
        Self { server, redis, publishes }
    }

    fn link(&self, config: &[(&str, &str)]) -> Link {
        link("messaging", &[&[("url", self.server.url.as_str())], config].concat())
    }

    async fn send(&self, message: Message) -> Result<(), CallError> {
        let answer = self.redis.call(&self.publishes, Call::Publish(message)).await?;
        assert!(matches!(answer, Answer::Published));
        Ok(())
    }

    async fn publish(&self, stream: &str, body: &str) {
        self.send(Message { subject: stream.into(), body: body.to_owned().into(), ..Message::default() })
            .await
            .unwrap();
    }

    async fn until_letters(&self, link: &Link, count: usize) -> Vec<DeadLetter> {
        lab::until_letters(&self.redis.source(link).unwrap(), count).await
    }

    async fn until_settled(&self, link: &Link) {
        lab::until_settled(&self.redis.source(link).unwrap()).await;
    }
}

#[async_trait]
impl Broker for Lab {
    type Queue = Source;

    async fn queue(&self, name: &str) -> Source {
        self.redis.source(&self.link(&[("stream", name), ("create", "true")])).unwrap()
    }

    async fn publish(&self, name: &str, message: Message) {
        self.send(Message { subject: name.into(), ..message }).await.unwrap();
    }
}

/// How many messages of the group's are not acknowledged, by Redis's own count.
async fn pending(client: &mut MultiplexedConnection, stream: &str) -> usize {
    client.xpending::<_, _, redis::streams::StreamPendingReply>(stream, "shop/worker").await.unwrap().count()
}

#[test]
fn claims_are_extended_beside_guests() {
    let lab_threads = threads(1);
    let lab = lab_threads.block_on(Lab::start());
    a_claim_lasts_though_guests_hold_all_threads_of_their_own(
        &lab.link(&[("stream", "orders"), ("create", "true")]),
        |threads| Redis::new().connected_on(threads),
        lab.publish("orders", "ok"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue() {
    contract(&Lab::start().await).await;
}

/// What one message costs the server is what bounds a backlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_takes_one_script_for_each_pull_and_few_to_take_it_off() {
    const ASKED: usize = 64;
    let lab = Lab::start().await;
    let (link, mut client) = (lab.link(&[("stream", "orders"), ("create", "true")]), client(&lab.server).await);
    let source = lab.redis.source(&link).unwrap();
    for i in 0..3 * ASKED {
        lab.publish("orders", &i.to_string()).await;
    }
    assert_eq!(source.ready().await.unwrap(), 3 * ASKED);
    let mut pulled = source.pull(ASKED).await.unwrap();
    let scripts = calls(&mut client, "evalsha").await;
    assert_eq!(source.ready().await.unwrap(), 2 * ASKED);
    pulled.extend(source.pull(ASKED).await.unwrap());
    assert_eq!((pulled.len(), calls(&mut client, "evalsha").await), (2 * ASKED, scripts + 1));
    // One that waits for another try has no claim any more.
    let waits = Settlement::GiveBack { after: PATIENCE };
    source.settle(&pulled[0].claim, &waits).await.unwrap();
    let off = pulled.iter().map(|claimed| source.settle(&claimed.claim, &Settlement::Ack));
    assert!(futures::future::join_all(off).await.iter().all(Result::is_ok));
    assert_eq!(pending(&mut client, "orders").await, 1, "what waits is not taken off");
    assert!(calls(&mut client, "xack").await < ASKED);
    assert_eq!(source.ready().await.unwrap(), ASKED);
    assert_eq!(source.pull(PULL_MAX).await.unwrap().len(), ASKED);
}

/// How often the server carried a command out.
async fn calls(client: &mut MultiplexedConnection, command: &str) -> usize {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(client).await.unwrap();
    let stands = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    stands.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn dead_letters_hold_no_more_than_the_links_part() {
    let lab = Lab::start().await;
    let (node, mut link) = (Node::new(1), lab.link(&[("stream", "orders"), ("create", "true")]));
    link.delivery.dead_bytes_max = 40_000;
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    for i in 0..6 {
        lab.publish("orders", &format!("dead {i} {}", "x".repeat(15_000))).await;
    }
    let is_said = || lab.redis.health(&link.id).is_err_and(|why| why.contains("40000 bytes"));
    until("that there is no room is said", is_said).await;
    // Redis counts its own structures too.
    let letters = lab.until_letters(&link, 1).await;
    assert!(letters.len() < 4, "{}", letters.len());
}

#[tokio::test]
async fn dead_letters_go_where_the_link_says() {
    let lab = Lab::start().await;
    let (node, mut link) = (Node::new(1), lab.link(&[("stream", "orders"), ("create", "true")]));
    link.delivery.dead_letter = Some("given-up".into());
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    lab.publish("orders", "dead").await;
    let letter = lab.until_letters(&link, 1).await.remove(0);
    assert_eq!((text(&letter.message).as_str(), letter.reason.as_str()), ("dead", "refused"));
    let mut client = client(&lab.server).await;
    let kept: redis::streams::StreamRangeReply = client.xrange_all("given-up").await.unwrap();
    assert_eq!(kept.ids.len(), 1, "{kept:?}");
    let has_body = |value: &redis::Value| matches!(value, redis::Value::BulkString(bytes) if bytes == b"dead");
    assert!(kept.ids[0].map.values().any(has_body), "{kept:?}");
    assert!(!client.exists::<_, bool>("orders:dead").await.unwrap(), "there is no other one");

    let trigger = lab.redis.trigger(&link.id).unwrap();
    assert_eq!(trigger.letters(None, 10).await.unwrap(), std::slice::from_ref(&letter));
    assert!(trigger.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    until("it came again", || node.attempts("dead") == [1, 1]).await;
    assert_ne!(lab.until_letters(&link, 1).await[0].id, letter.id);
}

#[tokio::test]
async fn each_word_of_a_handler_has_its_consequence() {
    let lab = Lab::start().await;
    let node = Node::new(8);
    let link = lab.link(&[("stream", "orders"), ("create", "true")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap"] {
        lab.publish("orders", body).await;
    }
    let letters = lab.until_letters(&link, 3).await;
    until("the third attempt came", || node.attempts("retry-twice") == [1, 2, 3]).await;
    assert_eq!(node.attempts("ok"), [1]);
    assert_eq!(node.attempts("drop"), [1]);
    assert_eq!(node.attempts("retry"), [1, 2, 3, 4], "max_attempts");
    assert_eq!(node.attempts("trap"), [1, 2, 3], "max_faults");
    assert!(letters.iter().all(|letter| letter.id.starts_with("orders:dead-")), "no other stream has one of these ids");
    let reason = |body: &str| letters.iter().find(|letter| text(&letter.message) == body).unwrap().reason.clone();
    assert_eq!([reason("retry"), reason("dead"), reason("trap")], ["max-attempts", "refused", "max-faults"]);
    lab.until_settled(&link).await;
    let mut client = client(&lab.server).await;
    assert_eq!(pending(&mut client, "orders").await, 0, "Redis itself has nothing left that is not acknowledged");
    assert_eq!(client.xlen::<_, usize>("orders").await.unwrap(), 6, "what was handled stays, unless `delete` is set");
}

#[tokio::test]
async fn what_is_missing_is_named_and_found_when_it_appears() {
    let lab = Lab::start().await;
    let node = Node::new(1);
    let link = lab.link(&[("stream", "orders"), ("group", "mine")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    let says = |what: &str| lab.redis.health(&link.id).is_err_and(|why| why.contains(what));
    until("the stream is named", || {
        assert!(lab.redis.health(&link.id).is_err(), "it is not there and seems ready");
        says("stream `orders` does not exist") && says("create: \"true\"")
    })
    .await;
    let mut client = client(&lab.server).await;
    let _: String = client.xadd("orders", "*", &[("data", "1")]).await.unwrap();
    until("the group is named", || says("group `mine` of stream `orders` does not exist")).await;
    let _: () = client.xgroup_create("orders", "mine", "0").await.unwrap();
    until("it is handled", || node.bodies() == ["1"]).await;
    until("all is well", || lab.redis.health(&link.id).is_ok()).await;
    // Someone deletes the stream, and makes a list of that name.
    let _: usize = client.del("orders").await.unwrap();
    let _: usize = client.lpush("orders", "1").await.unwrap();
    until("what it is instead is named", || says("is no stream but holds a list")).await;
    let _: usize = client.del("orders").await.unwrap();
    let _: () = client.xgroup_create_mkstream("orders", "mine", "0").await.unwrap();
    lab.publish("orders", "2").await;
    until("it is handled as well", || node.bodies() == ["1", "2"]).await;
    // Someone destroys the group alone.
    let _: bool = client.xgroup_destroy("orders", "mine").await.unwrap();
    until("the group is named again", || says("group `mine` of stream `orders` does not exist")).await;
    let _: () = client.xgroup_create("orders", "mine", "$").await.unwrap();
    lab.publish("orders", "3").await;
    until("it is handled too", || node.bodies() == ["1", "2", "3"]).await;
}

#[tokio::test]
async fn a_group_that_somebody_deletes_goes_on_where_it_was() {
    let lab = Lab::start().await;
    let mut client = client(&lab.server).await;
    let (node, link) = (Node::new(4), lab.link(&[("stream", "orders"), ("create", "true")]));
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    for body in ["1", "2", "retry-twice 3"] {
        lab.publish("orders", body).await;
    }
    until("they are handled", || node.attempts("retry-twice 3") == [1, 2, 3] && node.bodies().len() == 5).await;
    lab.until_settled(&link).await;
    let _: bool = client.xgroup_destroy("orders", "shop/worker").await.unwrap();
    lab.publish("orders", "4").await;
    until("it goes on", || node.attempts("4") == [1]).await;
    lab.until_settled(&link).await;
    assert_eq!(node.bodies().len(), 6, "what was handled before is not handled again: {:?}", node.bodies());
    // Another stream of the name, whose ids begin anew.
    let _: usize = client.del("orders").await.unwrap();
    let _: String = client.xadd("orders", "1-1", &[("body", "5")]).await.unwrap();
    until("it begins with the oldest", || node.attempts("5") == [1]).await;
}

#[tokio::test]
async fn what_others_publish_may_be_larger_than_what_a_component_may() {
    let lab = Lab::start().await;
    let mut client = client(&lab.server).await;
    let node = Node::new(2);
    let link = lab.link(&[("stream", "orders"), ("create", "true")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    let large = |word: &str| format!("{word} {}", "x".repeat(3 * trellis_redis::MESSAGE_BYTES_MAX));
    for word in ["retry-twice", "dead"] {
        let _: String = client.xadd("orders", "*", &[("body", large(word))]).await.unwrap();
    }
    until("it is tried as any other", || node.attempts(&large("retry-twice")) == [1, 2, 3]).await;
    assert_eq!(text(&lab.until_letters(&link, 1).await[0].message), large("dead"));
    lab.until_settled(&link).await;
}

#[tokio::test]
async fn what_others_left_unsettled_or_trimmed_is_handled_all_the_same() {
    let lab = Lab::start().await;
    let mut client = client(&lab.server).await;
    let _: () = client.xgroup_create_mkstream("orders", "shop/worker", "0").await.unwrap();
    lab.publish("orders", "left").await;
    // A consumer of another program, which never acknowledges.
    let options = redis::streams::StreamReadOptions::default().group("shop/worker", "other");
    let read: Option<redis::streams::StreamReadReply> =
        client.xread_options(&["orders"], &[">"], &options).await.unwrap();
    assert_eq!(read.unwrap().keys[0].ids.len(), 1);
    let node = Node::new(4);
    let link = lab.link(&[("stream", "orders"), ("delete", "true")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("what was left is handled", || node.attempts("left") == [2]).await;
    lab.publish("orders", "retry-twice 1").await;
    // Until it waits for another try, only the stream has it.
    while client.hlen::<_, usize>("trellis:orders:shop/worker:kept").await.unwrap() == 0 {
        assert!(node.attempts("retry-twice 1").len() < 3, "it was looked at too late");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A publisher trims the stream meanwhile.
    let _: usize = client.xtrim("orders", redis::streams::StreamMaxlen::Equals(0)).await.unwrap();
    until("it is handled from the copy", || node.attempts("retry-twice 1") == [1, 2, 3]).await;
    lab.publish("orders", "new").await;
    until("it is handled", || node.attempts("new") == [1]).await;
    lab.until_settled(&link).await;
    assert_eq!(pending(&mut client, "orders").await, 0);
    assert_eq!(client.xlen::<_, usize>("orders").await.unwrap(), 0, "what was handled is deleted");
}

#[tokio::test]
async fn headers_that_are_no_text_and_the_end_of_a_link_lose_nothing() {
    let lab = Lab::start().await;
    let mut client = client(&lab.server).await;
    let fields: [(&str, &[u8]); 2] = [("body", b"busy 1"), ("kind", b"\xff\xfe")];
    let _: String = client.xadd("orders", "*", &fields).await.unwrap();
    let busy = Node::new(1);
    let link = lab.link(&[("stream", "orders")]);
    lab.redis.wake(link.clone(), busy.permits(&link)).await.unwrap();
    until("it was given back a few times", || busy.done() >= 3).await;
    lab.redis.remove(&link.id).await;
    assert!(busy.attempts("busy 1").iter().all(|attempt| *attempt == 1), "{:?}", busy.attempts("busy 1"));
    let node = Node::saying(1, |_| Ok(trellis_wire::Reply::Settle(trellis_wire::Settle::DeadLetter("no".into()))));
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("it is handled", || node.attempts("busy 1") == [1]).await;
    assert_eq!(node.woken()[0].headers, [("kind".to_owned(), "\u{fffd}\u{fffd}".to_owned())]);
    lab.until_letters(&link, 1).await;
    let dead: redis::streams::StreamRangeReply = client.xrange_all("orders:dead").await.unwrap();
    let kind = dead.ids[0].map.get("kind");
    assert_eq!(kind, Some(&redis::Value::BulkString(b"\xff\xfe".to_vec())), "a dead letter keeps the bytes");
}

#[tokio::test]
async fn a_message_with_an_id_is_published_once_and_a_large_one_not_at_all() {
    let lab = Lab::start().await;
    let message = Message { subject: "orders".into(), id: "7".into(), ..Message::default() };
    for _ in 0..3 {
        lab.send(message.clone()).await.unwrap();
    }
    let mut client = client(&lab.server).await;
    assert_eq!(client.xlen::<_, usize>("orders").await.unwrap(), 1);
    let large = Message { body: vec![0; trellis_redis::MESSAGE_BYTES_MAX + 1].into(), ..message.clone() };
    let why = lab.send(large.clone()).await.unwrap_err().to_string();
    assert!(why.contains("is too large") && why.contains("1048576"), "{why}");
    assert!(lab.redis.check_publish(&lab.publishes, &large).is_err(), "and it is known beforehand");
    let ours = Message { subject: "trellis:orders:x:due".into(), ..message.clone() };
    assert!(matches!(lab.send(ours).await, Err(CallError::Invalid(_))));
    let _: () = client.set("text", "1").await.unwrap();
    let wrong = lab.send(Message { subject: "text".into(), id: String::new(), ..message }).await.unwrap_err();
    assert!(matches!(&wrong, CallError::Invalid(why) if why.contains("WRONGTYPE")), "{wrong:?}");
}

#[tokio::test]
async fn who_may_not_in_and_who_does_not_answer_is_said() {
    let server = RedisServer::start_with(&["--requirepass", "s3cret"]);
    let lab = Lab::on(server).await;
    let says = |link: &Link, what: &str| lab.redis.health(&link.id).is_err_and(|why| why.contains(what));
    let node = Node::new(1);
    let link = lab.link(&[("stream", "orders"), ("create", "true")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("a login is asked for", || says(&link, "give `password` in the link")).await;
    let with = |password: &str| {
        let mut link = link.clone();
        link.config.set("password", password);
        link
    };
    lab.redis.wake(with("wrong"), node.permits(&link)).await.unwrap();
    until("the login is refused", || says(&link, "the login is refused: check `user` and `password`")).await;
    assert!(!lab.redis.health(&link.id).unwrap_err().contains("wrong"));
    lab.redis.wake(with("s3cret"), node.permits(&link)).await.unwrap();
    until("it is let in", || lab.redis.health(&link.id).is_ok()).await;

    let silent = silent();
    let mute = lab::link("messaging", &[("url", &format!("redis://{silent}")), ("stream", "x")]);
    lab.redis.wake(mute.clone(), node.permits(&mute)).await.unwrap();
    until("that it does not answer is said", || says(&mute, "no answer within 5s")).await;
    let publishing = lab::link("messaging", &[("url", &format!("redis://{silent}"))]);
    lab.redis.grant(publishing.clone()).await.unwrap();
    let call = lab.redis.call(&publishing.id, Call::Publish(Message { subject: "x".into(), ..Message::default() }));
    let answered = tokio::time::timeout(PATIENCE, call).await.expect("every wait has an end");
    assert!(matches!(&answered, Err(CallError::Unavailable(_))), "{answered:?}");
    lab.redis.remove(&mute.id).await;
}

/// 500 messages; the server is killed, frozen and started again in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_accounted_for_across_deaths_of_the_server() {
    const MESSAGES: usize = 500;
    // Fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 8] = ["ok", "retry-twice", "ok", "dead", "ok", "drop", "ok", "trap"];
    let mut lab = Lab::start().await;
    let node = Node::new(16);
    let link = lab.link(&[("stream", "orders"), ("create", "true")]);
    lab.redis.wake(link.clone(), node.permits(&link)).await.unwrap();
    let body = |i: usize| format!("{} {i}", WORDS[i % WORDS.len()]);
    for i in 0..MESSAGES {
        let message =
            Message { subject: "orders".into(), body: body(i).into(), id: i.to_string(), ..Message::default() };
        // What it is not answered a publisher sends again, under the same id.
        while lab.send(message.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        match i {
            150 => lab.server.kill(),
            _ if i % 100 == 50 => lab.server.restart(),
            _ => {}
        }
        if i == 150 {
            until("that it is away is said", || lab.redis.health(&link.id).is_err()).await;
            lab.server.restart();
        }
    }
    let of = |words: &[&str]| (0..MESSAGES).filter(|i| words.contains(&WORDS[i % WORDS.len()])).count();
    let letters = lab.until_letters(&link, of(&["dead", "trap"])).await;
    lab.until_settled(&link).await;
    let mut bodies: Vec<_> = letters.iter().map(|letter| text(&letter.message)).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), of(&["dead", "trap"]), "each once");
    assert_eq!(letters.len(), bodies.len(), "and no double entry");
    assert!(bodies.iter().all(|body| body.starts_with("dead") || body.starts_with("trap")), "{bodies:?}");
    for i in 0..MESSAGES {
        let attempts = node.attempts(&body(i));
        assert!(!attempts.is_empty(), "{} never came", body(i));
        if body(i).starts_with("retry-twice") {
            assert!(attempts.iter().any(|attempt| *attempt >= 3), "{}: {attempts:?}", body(i));
        }
    }
    assert_eq!(lab.redis.health(&link.id), Ok(()));
}
