//! Messages of a JetStream stream wake a component, at least once.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Context, stream};
use futures::StreamExt as _;
use trellis_bus::testing::NatsServer;
use trellis_nats::Nats;
use trellis_provider::delivery::Fate;
use trellis_provider::testing::lab::{
    Node, a_claim_lasts_though_guests_hold_all_threads_of_their_own, silent, text, threads, until,
};
use trellis_provider::{LinkError, Provider as _};
use trellis_wire::{Backoff, Delivery, Error, Link, Reply, Settle};

use crate::{link, provider};

fn streamed(config: &[(&str, &str)]) -> Link {
    let backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(50), ..Backoff::default() };
    let delivery = Delivery { max_attempts: 4, backoff, ..Delivery::default() };
    Link { delivery, ..link("worker", "messaging", config) }
}

async fn jetstream(server: &NatsServer) -> Context {
    jetstream::new(async_nats::ConnectOptions::new().retry_on_initial_connect().connect(&server.url).await.unwrap())
}

async fn made(context: &Context, name: &str, subject: &str) {
    let config = stream::Config { name: name.into(), subjects: vec![subject.into()], ..stream::Config::default() };
    context.create_stream(config).await.unwrap();
}

async fn publish(context: &Context, subject: &str, body: &str) {
    context.publish(subject.to_owned(), body.to_owned().into()).await.unwrap().await.unwrap();
}

/// Every dead letter there is: body and headers.
async fn letters(context: &Context, name: &str) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    let Ok(stream) = context.get_stream(name).await else { return Vec::new() };
    let count = usize::try_from(stream.cached_info().state.messages).unwrap();
    if count == 0 {
        return Vec::new();
    }
    let consumer = stream.create_consumer(pull::Config::default()).await.unwrap();
    let mut messages = consumer.fetch().max_messages(count).messages().await.unwrap();
    let mut letters = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let headers =
            headers.map(|(name, values)| (name.to_string(), values.iter().map(ToString::to_string).collect()));
        letters.push((String::from_utf8(message.payload.to_vec()).unwrap(), headers.collect()));
    }
    letters
}

async fn until_letters(context: &Context, name: &str, count: usize) -> Vec<(String, BTreeMap<String, Vec<String>>)> {
    for _ in 0..400 {
        let letters = letters(context, name).await;
        if letters.len() >= count {
            return letters;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{count} dead letters were expected: {:?}", letters(context, name).await)
}

/// A stream `ORDERS` of the subject `orders`, and a component with four permits that it wakes.
async fn woken(server: &NatsServer) -> (Context, Nats, Node, Link) {
    let context = jetstream(server).await;
    made(&context, "ORDERS", "orders").await;
    let (nats, node) = (provider(&server.url), Node::new(4));
    let link = streamed(&[("stream", "ORDERS")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    (context, nats, node, link)
}

#[tokio::test]
async fn each_word_of_a_handler_has_its_consequence() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders.>").await;
    let nats = provider(&server.url);
    let node = Node::new(8);
    let link = streamed(&[("stream", "ORDERS"), ("subject", "orders.eu.*")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders.us.7", "not asked for").await;
    for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap"] {
        publish(&context, "orders.eu.7", body).await;
    }
    let letters = until_letters(&context, "ORDERS_DEAD", 3).await;
    until("the third attempt came", || node.attempts("retry-twice") == [1, 2, 3]).await;
    assert_eq!(node.attempts("ok"), [1]);
    assert_eq!(node.attempts("drop"), [1]);
    assert_eq!(node.attempts("retry"), [1, 2, 3, 4], "max_attempts");
    assert_eq!(node.attempts("trap"), [1, 2, 3], "max_faults");
    assert!(node.attempts("not asked for").is_empty());
    let letters: BTreeMap<_, _> = letters.into_iter().collect();
    let header = |body: &str, name: &str| letters[body][&format!("Trellis-Dead-{name}")].clone();
    assert_eq!(header("retry", "Reason"), ["max-attempts"]);
    assert_eq!(header("dead", "Reason"), ["refused"]);
    assert_eq!(header("trap", "Attempts"), ["3"]);
    assert_eq!(header("trap", "Fault").len(), 3, "{letters:?}");
    assert_eq!(header("trap", "Subject"), ["orders.eu.7"]);
    // All that was taken off stays off.
    until_settled(&context).await;
}

#[tokio::test]
async fn what_is_replayed_is_handled_once_though_it_is_put_back_again_when_the_server_has_forgotten_its_id() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    let duplicate_window = Duration::from_millis(100);
    let (name, subjects) = ("ORDERS".to_owned(), vec!["orders".to_owned()]);
    let config = stream::Config { name, subjects, duplicate_window, ..stream::Config::default() };
    let stream = context.create_stream(config).await.unwrap();
    let (nats, node, link) = (provider(&server.url), Node::new(4), streamed(&[("stream", "ORDERS")]));
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders", "dead 1").await;
    until_letters(&context, "ORDERS_DEAD", 1).await;
    let trigger = nats.trigger(&link.id).unwrap();
    let letter = trigger.letters(None, 10).await.unwrap().remove(0);
    assert!(trigger.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    // As if the letter were still there.
    let replay = stream.get_raw_message(2).await.unwrap();
    loop {
        let (headers, payload) = (replay.headers.clone(), replay.payload.clone());
        let sent = context.publish_with_headers("orders", headers, payload).await.unwrap().await.unwrap();
        if !sent.duplicate {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    publish(&context, "orders", "ok").await;
    until("what stands behind both is handled", || node.attempts("ok") == [1]).await;
    until_settled(&context).await;
    assert_eq!(node.attempts("dead 1"), [1, 1], "once more");
}

#[test]
fn claims_are_extended_beside_guests() {
    let (server, lab) = (NatsServer::start(true), threads(1));
    let context = lab.block_on(async {
        let context = jetstream(&server).await;
        made(&context, "ORDERS", "orders").await;
        context
    });
    a_claim_lasts_though_guests_hold_all_threads_of_their_own(
        &streamed(&[("stream", "ORDERS")]),
        |threads| provider(&server.url).connected_on(threads),
        publish(&context, "orders", "ok"),
    );
}

/// Waits until nothing waits and nothing is claimed.
async fn until_settled(context: &Context) {
    let stream = context.get_stream("ORDERS").await.unwrap();
    let consumer = stream.get_consumer::<pull::Config>("shop_worker").await.unwrap();
    let mut left = (1, 1);
    for _ in 0..400 {
        let info = consumer.get_info().await.unwrap();
        left = (info.num_pending, info.num_ack_pending);
        if left == (0, 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("(waiting, claimed) messages: {left:?}");
}

#[tokio::test]
async fn a_stream_that_is_missing_is_named_and_found_when_it_appears() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    let nats = provider(&server.url);
    let node = Node::new(1);
    let link = streamed(&[("stream", "ORDERS")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    let says = |what: &str| nats.health(&link.id).is_err_and(|why| why.contains(what));
    until("what is missing is named", || {
        assert!(nats.health(&link.id).is_err(), "it is not there and seems ready");
        says("stream `ORDERS` does not exist") && says("create: \"true\"")
    })
    .await;
    made(&context, "ORDERS", "orders").await;
    publish(&context, "orders", "1").await;
    until("it is handled", || node.bodies() == ["1"]).await;
    until("all is well", || nats.health(&link.id).is_ok()).await;
    // Someone deletes the consumer: it is ours, so it is made anew.
    context.get_stream("ORDERS").await.unwrap().delete_consumer("shop_worker").await.unwrap();
    publish(&context, "orders", "2").await;
    until("it is handled as well", || node.bodies().contains(&"2".to_owned())).await;
    assert_eq!(node.attempts("1"), [1], "what was handled before is not handled again");
    // Someone deletes the stream.
    context.delete_stream("ORDERS").await.unwrap();
    until("it is named again", || says("stream `ORDERS` does not exist")).await;
    made(&context, "ORDERS", "orders").await;
    publish(&context, "orders", "3").await;
    until("it is handled too", || node.bodies().contains(&"3".to_owned())).await;
}

#[tokio::test]
async fn who_may_not_in_and_who_does_not_answer_is_said() {
    let server = NatsServer::start_with(true, &["--user", "shop", "--pass", "s3cret"]);
    let (nats, node) = (provider(&server.url), Node::new(1));
    let login = |password: &str| {
        let secrets = [("password", trellis_wire::Secret::new(password))].into_iter().collect();
        Link { secrets, ..streamed(&[("stream", "ORDERS"), ("create", "true"), ("user", "shop")]) }
    };
    let link = login("wr0ng");
    let says = |link: &Link, what: &str| nats.health(&link.id).is_err_and(|why| why.contains(what));
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("it is kept out", || says(&link, "authorization")).await;
    assert!(!nats.health(&link.id).unwrap_err().contains("wr0ng"));
    nats.wake(login("s3cret"), node.permits(&link)).await.unwrap();
    until("it is let in", || nats.health(&link.id).is_ok()).await;

    let mute = streamed(&[("stream", "ORDERS"), ("url", &format!("nats://{}", silent()))]);
    nats.wake(mute.clone(), node.permits(&mute)).await.unwrap();
    until("that it does not answer is said", || says(&mute, "timed out")).await;
    nats.remove(&mute.id).await;
}

/// Has the server store a message whose header is no UTF-8, which no client library writes.
fn publish_raw(server: &NatsServer, subject: &str, body: &str) {
    let mut stream = std::net::TcpStream::connect(server.url.trim_start_matches("nats://")).unwrap();
    let headers = b"NATS/1.0\r\nKind: \xff\xfe\r\nBy: hand\r\n\r\n";
    let total = headers.len() + body.len();
    let connect = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";
    stream.write_all(format!("{connect}HPUB {subject} {} {total}\r\n", headers.len()).as_bytes()).unwrap();
    stream.write_all(&[&headers[..], body.as_bytes(), b"\r\nPING\r\n"].concat()).unwrap();
    let mut lines = std::io::BufReader::new(stream).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "PONG"), "the server has it");
}

#[tokio::test]
async fn headers_that_are_no_text_cost_no_other_message_anything() {
    let server = NatsServer::start(true);
    let (context, _nats, node, _) = woken(&server).await;
    publish(&context, "orders", "before").await;
    publish_raw(&server, "orders", "unreadable");
    publish(&context, "orders", "after").await;
    let letters = until_letters(&context, "ORDERS_DEAD", 1).await;
    until("the others are handled", || !node.attempts("before").is_empty() && !node.attempts("after").is_empty()).await;
    until_settled(&context).await;
    let (body, headers) = &letters[0];
    assert_eq!(
        (body.as_str(), &headers["Kind"][0], &headers["By"][0]),
        ("unreadable", &"\u{fffd}\u{fffd}".into(), &"hand".into())
    );
    assert!(headers["Trellis-Dead-Detail"][0].contains("headers are no UTF-8"), "{headers:?}");
    assert!(node.attempts("unreadable").is_empty());
    publish(&context, "orders", "later").await;
    until("the link goes on", || node.attempts("later") == [1]).await;
}

#[tokio::test]
async fn what_is_too_large_for_a_dead_letter_is_named_and_stays() {
    let server = NatsServer::start(true);
    let (context, nats, node, link) = woken(&server).await;
    // As large as the server takes: there is no room for what a dead letter tells beside it.
    let body = format!("dead {}", "x".repeat(1024 * 1024 - "dead ".len()));
    publish(&context, "orders", &body).await;
    until("it is named", || {
        nats.health(&link.id).is_err_and(|why| why.contains("ORDERS_DEAD") && why.contains("payload"))
    })
    .await;
    publish(&context, "orders", "ok").await;
    until("others are handled", || node.attempts("ok") == [1]).await;
    let stream = context.get_stream("ORDERS").await.unwrap();
    let info = stream.get_consumer::<pull::Config>("shop_worker").await.unwrap().get_info().await.unwrap();
    assert_eq!(info.num_ack_pending, 1, "it is not taken off");
}

#[tokio::test]
async fn dead_letters_hold_no_more_than_the_links_part_which_may_change() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let node = Node::new(1);
    let mut link = streamed(&[("stream", "ORDERS")]);
    // Each of them from another node: one that cannot settle takes its time to end.
    let [first, second, third] = [(); 3].map(|()| provider(&server.url));
    let full = "maximum bytes exceeded";
    link.delivery.dead_bytes_max = 5_000;
    first.wake(link.clone(), node.permits(&link)).await.unwrap();
    for i in 0..3 {
        publish(&context, "orders", &format!("dead {i} {}", "x".repeat(1_500))).await;
    }
    let is_said =
        |nats: &Nats| nats.health(&link.id).is_err_and(|why| why.contains("ORDERS_DEAD") && why.contains(full));
    until("that there is no room is said", || is_said(&first)).await;
    assert_eq!(until_letters(&context, "ORDERS_DEAD", 2).await.len(), 2);
    link.delivery.dead_bytes_max = 60_000;
    second.wake(link.clone(), node.permits(&link)).await.unwrap();
    until_letters(&context, "ORDERS_DEAD", 3).await;
    until("there is room", || !is_said(&first)).await;
    link.delivery.dead_bytes_max = 1_000;
    third.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders", "dead 3").await;
    until("there is less room", || [&first, &second, &third].into_iter().any(is_said)).await;
    assert_eq!(until_letters(&context, "ORDERS_DEAD", 3).await.len(), 3, "what was there stays");
}

#[tokio::test]
async fn dead_letters_go_where_the_link_says_and_stay_for_two_weeks() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let (nats, node) = (provider(&server.url), Node::new(1));
    let mut link = streamed(&[("stream", "ORDERS")]);
    (link.delivery.dead_letter, link.delivery.dead_bytes_max) = (Some("GIVEN_UP".into()), 1 << 20);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders", "dead").await;
    let (body, headers) = until_letters(&context, "GIVEN_UP", 1).await.remove(0);
    assert_eq!((body.as_str(), headers["Trellis-Dead-Reason"].clone()), ("dead", vec!["refused".to_owned()]));
    assert!(context.get_stream("ORDERS_DEAD").await.is_err(), "there is no other one");
    let bounds = context.get_stream("GIVEN_UP").await.unwrap().cached_info().config.clone();
    assert_eq!((bounds.max_age, bounds.max_bytes), (Duration::from_secs(14 * 24 * 60 * 60), 1 << 20));

    let trigger = nats.trigger(&link.id).unwrap();
    let listed = trigger.letters(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|letter| text(&letter.message)).collect::<Vec<_>>(), ["dead"]);
    assert!(trigger.decide(&listed[0].id, Fate::Replay).await.unwrap().is_some());
    until("it came again", || node.attempts("dead") == [1, 1]).await;
    for _ in 0..400 {
        let again = trigger.letters(None, 10).await.unwrap();
        if again.len() == 1 && again[0].id != listed[0].id {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it is no dead letter again: {:?}", trigger.letters(None, 10).await);
}

#[tokio::test]
async fn what_is_missing_is_made_where_the_link_says_so() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    let nats = provider(&server.url);
    let node = Node::new(1);
    let link = streamed(&[("stream", "ORDERS"), ("subject", "o.>"), ("consumer", "mine"), ("create", "true")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the stream is there", || nats.health(&link.id).is_ok()).await;
    for _ in 0..100 {
        if context.get_stream("ORDERS").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    publish(&context, "o.x", "1").await;
    until("it is handled", || node.bodies() == ["1"]).await;
    assert!(context.get_stream("ORDERS").await.unwrap().consumer_info("mine").await.is_ok());
}

#[tokio::test]
async fn a_consumer_that_differs_is_not_adopted_and_both_figures_are_named() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders.>").await;
    let stream = context.get_stream("ORDERS").await.unwrap();
    let seconds = Duration::from_secs;
    let with = |change: fn(&mut pull::Config)| {
        let mut config =
            pull::Config { ack_wait: seconds(60), filter_subject: "orders.eu".into(), ..pull::Config::default() };
        change(&mut config);
        config
    };
    let differing = [
        (with(|config| config.ack_policy = AckPolicy::None), ["ack policy None", "Explicit is needed"]),
        (with(|config| config.ack_policy = AckPolicy::All), ["ack policy All", "Explicit is needed"]),
        (with(|config| config.max_deliver = 20), ["max_deliver 20", "-1 is needed"]),
        (with(|config| config.headers_only = true), ["headers_only", "whole messages are needed"]),
        (with(|config| config.ack_wait = Duration::from_secs(5)), ["ack_wait 5s", "at least 10s is needed"]),
        (
            with(|config| config.backoff = vec![Duration::from_secs(15), Duration::from_secs(1)]),
            ["the backoff [15s, 1s]", "at least 10s is needed"],
        ),
        (
            with(|config| config.filter_subject = "orders.us".into()),
            ["filters `orders.us`", "`subject` is `orders.eu`"],
        ),
        (with(|config| config.filter_subject.clear()), ["filters ``", "`subject` is `orders.eu`"]),
        (
            with(|config| {
                config.filter_subject.clear();
                config.filter_subjects = vec!["orders.us".into(), "orders.uk".into()];
            }),
            ["filters `orders.us,orders.uk`", "`subject` is `orders.eu`"],
        ),
    ];
    let link = |name: &str| streamed(&[("stream", "ORDERS"), ("subject", "orders.eu"), ("consumer", name)]);
    let nats = provider(&server.url);
    for (number, (config, says)) in differing.into_iter().enumerate() {
        let name = format!("differs-{number}");
        stream.create_consumer(pull::Config { durable_name: Some(name.clone()), ..config }).await.unwrap();
        let (link, node) = (link(&name), Node::new(1));
        let refused = nats.wake(link.clone(), node.permits(&link)).await.unwrap_err();
        let LinkError::Config { key, problem } = &refused else { panic!("{refused:?}") };
        assert!(key == "consumer" && problem.contains(&name), "{refused}");
        assert!(says.iter().all(|says| problem.contains(says)), "{says:?} is not said: {refused}");
    }
    stream.create_consumer(pull::Config { durable_name: Some("fits".into()), ..with(|_| ()) }).await.unwrap();
    let (link, node) = (link("fits"), Node::new(1));
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders.eu", "1").await;
    until("it is handled", || node.bodies() == ["1"]).await;
}

#[tokio::test]
async fn a_stream_that_drops_what_nobody_handled_is_not_adopted() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    let named = |name: &str| stream::Config { name: name.into(), ..stream::Config::default() };
    let second = stream::Config { max_age: Duration::from_millis(100), ..named("YOUNG") };
    let retention = stream::RetentionPolicy::WorkQueue;
    let few = stream::Config { retention, max_messages: 5, ..named("FEW") };
    // Here the oldest to go are mostly handled.
    let log = stream::Config { max_messages: 5, ..named("LOG") };
    for config in [second, few, log] {
        context.create_stream(config).await.unwrap();
    }
    let (nats, node) = (provider(&server.url), Node::new(1));
    for (name, says) in [("YOUNG", Some("100ms (max_age)")), ("FEW", Some("discard old")), ("LOG", None)] {
        let link = streamed(&[("stream", name)]);
        let refused = nats.wake(link.clone(), node.permits(&link)).await.err().map(|why| why.to_string());
        assert_eq!(refused.is_some(), says.is_some(), "{refused:?}");
        assert!(says.is_none_or(|says| refused.unwrap().contains(says)));
    }
}

#[tokio::test]
async fn what_was_not_run_is_no_attempt_and_the_end_of_a_link_loses_nothing() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let nats = provider(&server.url);
    let busy = Node::saying(1, |_| Err(Error::Busy("no sandbox".into()).into()));
    let link = streamed(&[("stream", "ORDERS")]);
    nats.wake(link.clone(), busy.permits(&link)).await.unwrap();
    publish(&context, "orders", "1").await;
    until("it was given back a few times", || busy.done() >= 3).await;
    nats.remove(&link.id).await;
    assert!(busy.attempts("1").iter().all(|attempt| *attempt == 1), "{:?}", busy.attempts("1"));
    let node = Node::new(1);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("it is handled", || node.attempts("1") == [1]).await;
    assert!(letters(&context, "ORDERS_DEAD").await.is_empty());
}

/// 500 messages, the server killed and started again in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torture_every_message_is_accounted_for_across_a_server_restart() {
    const MESSAGES: usize = 500;
    // Fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 8] = ["ok", "retry-twice", "ok", "dead", "ok", "drop", "ok", "trap"];
    let mut server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let nats = provider(&server.url);
    let node = Node::new(16);
    let link = streamed(&[("stream", "ORDERS")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    let body = |i: usize| format!("{} {i}", WORDS[i % WORDS.len()]);
    for i in 0..MESSAGES {
        publish(&context, "orders", &body(i)).await;
        if i == MESSAGES / 2 {
            server.restart();
            // The publisher's own connection needs a moment; what it was not answered it would publish again.
            for _ in 0..200 {
                if context.get_stream("ORDERS").await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let of = |words: &[&str]| (0..MESSAGES).filter(|i| words.contains(&WORDS[i % WORDS.len()])).count();
    let letters = until_letters(&context, "ORDERS_DEAD", of(&["dead", "trap"])).await;
    let mut bodies: Vec<_> = letters.into_iter().map(|(body, _)| body).collect();
    bodies.sort();
    bodies.dedup();
    assert!(bodies.iter().all(|body| body.starts_with("dead") || body.starts_with("trap")), "{bodies:?}");
    assert_eq!(bodies.len(), of(&["dead", "trap"]));
    until_settled(&context).await;
    for i in 0..MESSAGES {
        assert!(!node.attempts(&body(i)).is_empty(), "{} never came", body(i));
        if body(i).starts_with("retry-twice") {
            assert!(node.attempts(&body(i)).iter().any(|attempt| *attempt >= 3), "{}", body(i));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_in_flight_when_the_server_is_killed_is_run_again() {
    const MESSAGES: usize = 3_000;
    const KILLS: usize = 4;
    let permits = 2;
    let mut server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    for some in (0..MESSAGES).collect::<Vec<_>>().chunks(500) {
        let sent = some.iter().map(|i| context.publish("orders", format!("ok {i}").into()));
        for stored in futures::future::join_all(sent).await {
            stored.unwrap().await.unwrap();
        }
    }
    let (nats, node) = (provider(&server.url), Node::new(permits));
    let link = streamed(&[("stream", "ORDERS")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    for kill in 1..=KILLS {
        until("some more are handled", || node.done() >= kill * MESSAGES / (KILLS + 1)).await;
        server.restart();
    }
    until("every one is handled", || node.done() >= MESSAGES).await;
    until_settled(&context).await;
    let mut bodies = node.bodies();
    let runs = bodies.len();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), MESSAGES);
    // Those that run, and as many that are being settled.
    assert!(runs - MESSAGES <= KILLS * permits * 2, "{} ran again", runs - MESSAGES);
}

/// What a kill at the wrong moment does now and then: what the server wrote of the consumer is older than what it said.
#[tokio::test]
async fn a_server_that_forgets_what_it_gave_out_is_told_what_came_of_it() {
    let mut server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let node = Node::saying(4, |message| match (text(message).as_str(), message.attempt) {
        ("later", 1) => {
            Ok(Reply::Settle(Settle::Retry { after: Some(Duration::from_secs(600)), reason: "not yet".into() }))
        }
        _ => Ok(Reply::Settle(Settle::Ack)),
    });
    let (nats, link) = (provider(&server.url), streamed(&[("stream", "ORDERS")]));
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders", "before").await;
    until("it is handled", || node.done() == 1).await;
    until_settled(&context).await;
    let state = server.stream_dir("ORDERS").join("obs/shop_worker/o.dat");
    until("the server has written something of the consumer", || state.exists()).await;
    server.restart();
    let older = std::fs::read(&state).unwrap();
    let context = jetstream(&server).await;
    until("it is connected again", || nats.health(&link.id).is_ok()).await;
    publish(&context, "orders", "ok").await;
    publish(&context, "orders", "later").await;
    let kept = async || context.get_key_value("TRELLIS_LEDGER_ORDERS").await.ok()?.get("shop_worker.3").await.ok()?;
    for _ in 0..400 {
        if kept().await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until("both are handled", || node.done() == 3).await;
    let stream = context.get_stream("ORDERS").await.unwrap();
    while stream.consumer_info("shop_worker").await.unwrap().num_ack_pending > 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.kill();
    std::fs::write(&state, older).unwrap();
    server.restart();
    until("it goes on where it was", || node.attempts("later") == [1, 2]).await;
    until_settled(&jetstream(&server).await).await;
    assert_eq!((node.attempts("before"), node.attempts("ok")), (vec![1], vec![1]), "what was taken off stays so");
}

#[tokio::test]
async fn a_server_that_freezes_is_named_and_gone_on_with() {
    let server = NatsServer::start(true);
    let (context, nats, node, link) = woken(&server).await;
    publish(&context, "orders", "before").await;
    until("it is handled", || node.attempts("before") == [1]).await;
    server.signal("STOP");
    until("that it does not answer is said", || nats.health(&link.id).is_err()).await;
    server.signal("CONT");
    until("it goes on", || nats.health(&link.id).is_ok()).await;
    let context = jetstream(&server).await;
    publish(&context, "orders", "after").await;
    until("it is handled", || node.attempts("after") == [1]).await;
    assert_eq!(node.attempts("before"), [1]);
}

#[tokio::test]
async fn a_consumer_that_was_named_and_is_deleted_is_asked_for_and_a_stream_made_anew_is_another() {
    let server = NatsServer::start(true);
    let context = jetstream(&server).await;
    made(&context, "ORDERS", "orders").await;
    let config = || pull::Config { durable_name: Some("mine".into()), ..pull::Config::default() };
    let stream = context.get_stream("ORDERS").await.unwrap();
    stream.create_consumer(config()).await.unwrap();
    let (nats, node) = (provider(&server.url), Node::new(4));
    let link = streamed(&[("stream", "ORDERS"), ("consumer", "mine")]);
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    publish(&context, "orders", "1").await;
    until("it is handled", || node.bodies() == ["1"]).await;
    stream.delete_consumer("mine").await.unwrap();
    let says = |what: &str| nats.health(&link.id).is_err_and(|why| why.contains(what));
    until("it is asked for", || says("consumer `mine`") && says("does not exist") && says("create: \"true\"")).await;
    // What is marked as taken off has the sequence of another message then.
    context.delete_stream("ORDERS").await.unwrap();
    made(&context, "ORDERS", "orders").await;
    context.get_stream("ORDERS").await.unwrap().create_consumer(config()).await.unwrap();
    publish(&context, "orders", "2").await;
    until("it is handled too", || node.bodies() == ["1", "2"]).await;
}
