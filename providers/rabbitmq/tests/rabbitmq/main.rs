//! The provider against a real rabbitmq-server, with permits that a test counts and events that a test handles.
//!
//! A server takes seconds to start, so each test here does much with one.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod ordered;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use trellis_embedded::Embedded;
use trellis_provider::delivery::{Claimed, DeadLetter, Fate, Ledger, Queue as _, Ran, Reason, Settlement, Trouble};
use trellis_provider::testing::lab::{
    self, Node, PATIENCE, a_claim_lasts_though_guests_hold_all_threads_of_their_own, is_being_given_up, link, silent,
    text, threads, until,
};
use trellis_provider::testing::{Broker, contract};
use trellis_provider::{LeaseHolder, Ledgers, Provider as _};
use trellis_rabbitmq::testing::RabbitServer;
use trellis_rabbitmq::{Claim, MESSAGE_BYTES_MAX, Rabbitmq, Source};
use trellis_wire::{Answer, Call, CallError, Dedupe, DedupeKey, Link, LinkId, Message, OrderBy};

struct Lab {
    server: RabbitServer,
    rabbit: Rabbitmq,
    publishes: LinkId,
    /// One for all nodes, as a lattice has them.
    ledgers: Arc<dyn Ledgers>,
    _disk: tempfile::TempDir,
}

impl Lab {
    async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further arguments for the server.
    async fn start_with(arguments: &'static str) -> Self {
        let server = tokio::task::spawn_blocking(move || RabbitServer::start_with(arguments)).await.unwrap();
        let disk = tempfile::tempdir().unwrap();
        let options = trellis_embedded::Options { data_dir: disk.path().into() };
        let ledgers: Arc<dyn Ledgers> = Arc::new(Embedded::open(options).unwrap());
        let rabbit = Rabbitmq::new(ledgers.clone());
        let link = link("messaging", &[("url", &server.url), ("for", "the test")]);
        let publishes = link.id.clone();
        rabbit.grant(link).await.unwrap();
        Self { server, rabbit, publishes, ledgers, _disk: disk }
    }

    fn link(&self, config: &[(&str, &str)]) -> Link {
        link("messaging", &[&[("url", self.server.url.as_str())], config].concat())
    }

    async fn send(&self, message: Message) -> Result<(), CallError> {
        let answer = self.rabbit.call(&self.publishes, Call::Publish(message)).await?;
        assert!(matches!(answer, Answer::Published));
        Ok(())
    }

    async fn publish(&self, queue: &str, body: &str) {
        self.publish_to(queue, Message { body: body.to_owned().into(), ..Message::default() }).await;
    }

    /// Publishes as long as the server is away.
    async fn publish_to(&self, queue: &str, message: Message) {
        let message = Message { subject: queue.into(), ..message };
        let mut sent = self.send(message.clone()).await;
        for _ in 0..PATIENCE.as_millis() / 50 {
            if sent.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            sent = self.send(message.clone()).await;
        }
        panic!("{sent:?}");
    }

    async fn until_letters(&self, link: &Link, count: usize) -> Vec<DeadLetter> {
        lab::until_letters(&self.rabbit.source(link).unwrap(), count).await
    }

    async fn until_settled(&self, link: &Link) {
        lab::until_settled(&self.rabbit.source(link).unwrap()).await;
    }

    /// A channel that has nothing to do with Trellis.
    async fn channel(&self) -> lapin::Channel {
        let connection = lapin::Connection::connect(&self.server.url, Default::default()).await.unwrap();
        connection.create_channel().await.unwrap()
    }
}

#[async_trait]
impl Broker for Lab {
    type Queue = Source;

    async fn queue(&self, name: &str) -> Source {
        let source = self.rabbit.source(&self.link(&[("queue", name), ("create", "true")])).unwrap();
        source.standing().await.unwrap();
        source
    }

    async fn publish(&self, name: &str, message: Message) {
        self.send(Message { subject: name.into(), ..message }).await.unwrap();
    }

    fn tells_ages(&self) -> bool {
        false
    }
}

#[test]
fn claims_outlive_what_guests_hold_up() {
    let lab_threads = threads(2);
    let lab = lab_threads.block_on(Lab::start());
    a_claim_lasts_though_guests_hold_all_threads_of_their_own(
        &lab.link(&[("queue", "orders"), ("create", "true")]),
        |threads| Rabbitmq::new(lab.ledgers.clone()).connected_on(threads),
        lab.publish("orders", "ok"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue() {
    contract(&Lab::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_have_their_consequences_and_what_is_wrong_is_named() {
    let lab = Lab::start().await;
    each_word_of_a_handler_has_its_consequence(&lab).await;
    dead_letters_go_where_the_link_says_and_stay_for_two_weeks(&lab).await;
    what_is_missing_is_named_and_found_when_it_appears(&lab).await;
    what_others_publish_may_be_larger_than_what_a_component_may(&lab).await;
    of_a_backlog_just_so_many_are_taken_as_are_asked_for(&lab).await;
    a_queue_that_would_lose_messages_is_not_adopted(&lab).await;
    a_classic_queue_counts_kills_and_headers_may_be_no_text(&lab).await;
    what_is_left_of_a_wait_is_waited_and_a_delay_queue_that_was_deleted_is_made_again(&lab).await;
    what_cannot_be_published_is_refused(&lab).await;
    who_may_not_in_and_who_does_not_answer_is_said(&lab).await;
}

async fn each_word_of_a_handler_has_its_consequence(lab: &Lab) {
    let node = Node::new(8);
    let config = [("queue", "orders"), ("exchange", "shop"), ("routing_key", "orders.*"), ("create", "true")];
    let link = lab.link(&config);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap"] {
        lab.publish("orders", body).await;
    }
    let channel = lab.channel().await;
    let options = BasicPublishOptions::default();
    let by_key = channel.basic_publish("shop".into(), "orders.eu".into(), options, b"bound", Default::default()).await;
    by_key.unwrap();
    let letters = lab.until_letters(&link, 3).await;
    until("the third attempt came", || node.attempts("retry-twice") == [1, 2, 3]).await;
    until("what the exchange brought is handled", || node.attempts("bound") == [1]).await;
    assert_eq!((node.attempts("ok"), node.attempts("drop")), (vec![1], vec![1]));
    assert_eq!(node.attempts("retry"), [1, 2, 3, 4], "max_attempts");
    assert_eq!(node.attempts("trap"), [1, 2, 3], "max_faults");
    let reason = |body: &str| letters.iter().find(|letter| text(&letter.message) == body).unwrap().reason.clone();
    assert_eq!([reason("retry"), reason("dead"), reason("trap")], ["max-attempts", "refused", "max-faults"]);
    let subject = |body: &str| node.woken().iter().find(|woken| text(woken) == body).unwrap().subject.clone();
    assert_eq!([subject("ok"), subject("bound")], ["orders", "orders.eu"]);
    lab.until_settled(&link).await;
    lab.rabbit.remove(&link.id).await;
}

async fn dead_letters_go_where_the_link_says_and_stay_for_two_weeks(lab: &Lab) {
    let (node, mut link) = (Node::new(1), lab.link(&[("queue", "mail"), ("create", "true")]));
    (link.delivery.dead_letter, link.delivery.dead_bytes_max) = (Some("given-up".into()), 1 << 20);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    lab.publish("mail", "dead").await;
    let letter = lab.until_letters(&link, 1).await.remove(0);
    assert_eq!((text(&letter.message).as_str(), letter.reason.as_str()), ("dead", "refused"));
    // What the server itself has there.
    let channel = lab.channel().await;
    let mut kept = None;
    for _ in 0..PATIENCE.as_millis() / 50 {
        kept = channel.basic_get("given-up".into(), Default::default()).await.unwrap();
        if kept.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = kept.unwrap();
    assert_eq!(kept.data, b"dead");
    kept.nack(lapin::options::BasicNackOptions { requeue: true, ..Default::default() }).await.unwrap();
    let missing = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let other = channel.queue_declare("mail.dead".into(), missing, FieldTable::default()).await;
    assert!(other.unwrap_err().to_string().contains("NOT_FOUND"), "there is no other one");
    let arguments = arguments_of(lab, "given-up").await;
    let bounds = ["x-message-ttl", "x-max-length-bytes"].map(|name| arguments[name].as_str());
    assert_eq!(bounds, ["1209600000", "1048576"], "14 days, and the link's part");

    let trigger = lab.rabbit.trigger(&link.id).unwrap();
    assert!(trigger.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    until("it came again", || node.attempts("dead") == [1, 1]).await;
    assert_ne!(lab.until_letters(&link, 1).await[0].id, letter.id);
    lab.rabbit.remove(&link.id).await;
}

/// With which arguments a quorum queue was made. The server tells them one by one, to who asks for it with others.
async fn arguments_of(lab: &Lab, queue: &str) -> BTreeMap<String, String> {
    let (mut table, mut told) = (FieldTable::default(), BTreeMap::new());
    table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    loop {
        let options = QueueDeclareOptions::durable();
        let Err(why) = lab.channel().await.queue_declare(queue.into(), options, table.clone()).await else {
            return told;
        };
        // inequivalent arg 'NAME' for queue 'q' in vhost '/': received none but current is the value 'VALUE' of type 'T'
        let why = why.to_string();
        let [_, name, _, _, _, _, _, value, ..] = why.split('\'').collect::<Vec<_>>()[..] else { panic!("{why}") };
        assert_eq!(told.insert(name.into(), value.into()), None, "{why}");
        let value = value.parse().map_or_else(|_| AMQPValue::LongString(value.into()), AMQPValue::LongLongInt);
        table.insert(name.into(), value);
    }
}

async fn what_is_missing_is_named_and_found_when_it_appears(lab: &Lab) {
    let node = Node::new(1);
    let link = lab.link(&[("queue", "later")]);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    let says = |what: &str| lab.rabbit.health(&link.id).is_err_and(|why| why.contains(what));
    until("the queue is named", || says("queue `later` does not exist") && says("create: \"true\"")).await;
    let channel = lab.channel().await;
    channel.queue_declare("later".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    lab.publish("later", "1").await;
    until("it is handled", || node.bodies() == ["1"]).await;
    until("all is well", || lab.rabbit.health(&link.id).is_ok()).await;
    // Someone deletes the queue, and makes it again.
    channel.queue_delete("later".into(), Default::default()).await.unwrap();
    until("the queue is named again", || says("queue `later` does not exist")).await;
    channel.queue_declare("later".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    lab.publish("later", "2").await;
    until("it is handled as well", || node.bodies() == ["1", "2"]).await;
    lab.rabbit.remove(&link.id).await;
}

async fn what_others_publish_may_be_larger_than_what_a_component_may(lab: &Lab) {
    let node = Node::new(2);
    let link = lab.link(&[("queue", "large"), ("create", "true")]);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    let channel = lab.channel().await;
    let large = |word: &str| format!("{word} {}", "x".repeat(3 * MESSAGE_BYTES_MAX));
    for word in ["retry-twice", "dead"] {
        let (options, body) = (BasicPublishOptions::default(), large(word));
        channel.basic_publish("".into(), "large".into(), options, body.as_bytes(), Default::default()).await.unwrap();
    }
    until("it is tried as any other", || node.attempts(&large("retry-twice")) == [1, 2, 3]).await;
    assert_eq!(text(&lab.until_letters(&link, 1).await[0].message), large("dead"));
    lab.until_settled(&link).await;
    lab.rabbit.remove(&link.id).await;
}

/// Also once they are settled: nothing is given to a consumer for which nobody has a permit.
async fn of_a_backlog_just_so_many_are_taken_as_are_asked_for(lab: &Lab) {
    const ALL: usize = 300;
    const ASKED: usize = 48;
    let link = lab.link(&[("queue", "backlog"), ("create", "true")]);
    let (one, other) = (lab.rabbit.source(&link).unwrap(), lab.rabbit.source(&link).unwrap());
    one.standing().await.unwrap();
    for i in 0..ALL {
        lab.publish("backlog", &i.to_string()).await;
    }
    lab::until_waiting(&one, ALL as u64).await;
    let take = async |source: &Source| {
        assert!(source.ready().await.unwrap() >= ASKED);
        let taken = source.pull(ASKED).await.unwrap();
        assert_eq!(taken.len(), ASKED);
        taken
    };
    let taken = take(&one).await;
    for claimed in &taken {
        one.settle(&claimed.claim, &Settlement::Ack).await.unwrap();
    }
    let mut bodies: Vec<_> = taken.iter().map(|claimed| text(&claimed.message)).collect();
    let both = tokio::join!(take(&one), take(&other));
    for claimed in both.0.iter().chain(&both.1) {
        assert_eq!((claimed.record.attempt, claimed.record.kills), (1, 0));
        one.settle(&claimed.claim, &Settlement::Ack).await.unwrap();
        bodies.push(text(&claimed.message));
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let left = ALL - 3 * ASKED;
    let looked = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = lab.channel().await.queue_declare("backlog".into(), looked, FieldTable::default()).await.unwrap();
    assert_eq!((queue.message_count() as usize, queue.consumer_count()), (left, 0));
    while bodies.len() < ALL {
        for claimed in one.pull(ASKED).await.unwrap() {
            one.settle(&claimed.claim, &Settlement::Ack).await.unwrap();
            bodies.push(text(&claimed.message));
        }
    }
    bodies.sort_by_key(|body| body.parse::<usize>().unwrap());
    assert!(bodies.into_iter().eq((0..ALL).map(|i| i.to_string())), "each once");
    lab.until_settled(&link).await;
}

async fn a_queue_that_would_lose_messages_is_not_adopted(lab: &Lab) {
    let node = Node::new(1);
    let channel = lab.channel().await;
    for (name, argument, value, both) in [
        ("short", "x-message-ttl", 1_000, ["after 1000 ms (x-message-ttl)", "the policy of the link tries for"]),
        ("small", "x-max-length", 5, ["at 5 (x-max-length)", "no limit"]),
        ("gone", "x-expires", 600_000, ["after 600000 ms", "none is needed"]),
    ] {
        let mut arguments = FieldTable::default();
        // Beside one that does no harm.
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("dlx".into()));
        arguments.insert(argument.into(), AMQPValue::LongInt(value));
        channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        let link = Link {
            // Long enough that a second is too short.
            delivery: trellis_wire::Delivery::default(),
            ..lab.link(&[("queue", name)])
        };
        lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
        let says = |what: &str| lab.rabbit.health(&link.id).is_err_and(|why| why.contains(what));
        until(both[0], || both.iter().all(|figure| says(figure))).await;
        lab.rabbit.remove(&link.id).await;
    }
}

async fn a_classic_queue_counts_kills_and_headers_may_be_no_text(lab: &Lab) {
    let channel = lab.channel().await;
    channel.queue_declare("classic".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("kind".into(), AMQPValue::LongString(vec![0xff, 0xfe].into()));
    let properties = lapin::BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), "classic".into(), options, b"poison", properties).await.unwrap();
    let link = lab.link(&[("queue", "classic")]);
    let source = lab.rabbit.source(&link).unwrap();
    for kills in 0..3 {
        let pulled = pull(&source).await;
        assert_eq!((pulled.record.attempt, pulled.record.kills), (kills + 1, kills));
        // Nobody settles or extends it.
    }
    let node = Node::new(1);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    let letter = lab.until_letters(&link, 1).await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.kills), ("killed-its-node", 3));
    assert_eq!(letter.message.headers, [("kind".to_owned(), "\u{fffd}\u{fffd}".to_owned())]);
    assert!(node.bodies().is_empty());
    lab.rabbit.remove(&link.id).await;
}

/// Pulls one message, whenever it comes.
async fn pull(source: &Source) -> Claimed<Claim> {
    loop {
        source.ready().await.unwrap();
        if let Some(claimed) = source.pull(1).await.unwrap().pop() {
            return claimed;
        }
    }
}

async fn what_is_left_of_a_wait_is_waited_and_a_delay_queue_that_was_deleted_is_made_again(lab: &Lab) {
    const WAIT: Duration = Duration::from_millis(700);
    let source = Broker::queue(lab, "waits").await;
    let channel = lab.channel().await;
    // As it comes back from the longest delay queue.
    let mut headers = FieldTable::default();
    headers.insert("x-trellis-left".into(), AMQPValue::LongString(WAIT.as_millis().to_string().into()));
    let (options, properties) =
        (BasicPublishOptions::default(), lapin::BasicProperties::default().with_headers(headers));
    let began = Instant::now();
    channel.basic_publish("".into(), "waits".into(), options, b"1", properties).await.unwrap();
    let claimed = pull(&source).await;
    assert!(began.elapsed() >= WAIT, "it came after {:?}", began.elapsed());
    assert_eq!((claimed.record.attempt, claimed.record.kills), (1, 0));
    channel.queue_delete("waits.trellis.wait.1024".into(), Default::default()).await.unwrap();
    let retry = Settlement::Retry { after: WAIT, fault: None };
    source.settle(&claimed.claim, &retry).await.unwrap();
    assert_eq!(source.standing().await.unwrap().waiting, 1, "what waits for another try is counted");
    assert_eq!(pull(&source).await.record.attempt, 2);
}

async fn what_cannot_be_published_is_refused(lab: &Lab) {
    let message = Message { subject: "nowhere".into(), ..Message::default() };
    assert_eq!(lab.send(message.clone()).await, Err(CallError::NoSuch("queue `nowhere`".into())));
    let large = Message { body: vec![0; MESSAGE_BYTES_MAX + 1].into(), ..message.clone() };
    let why = lab.send(large.clone()).await.unwrap_err().to_string();
    assert!(why.contains("is too large") && why.contains("1048576"), "{why}");
    assert!(lab.rabbit.check_publish(&lab.publishes, &large).is_err(), "and it is known beforehand");
    let named = Message { headers: vec![("x".repeat(300), "1".into())], ..message };
    assert!(matches!(lab.send(named).await, Err(CallError::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lattice_keeps_its_ledger() {
    let lab = Lab::start().await;
    twins_are_handled_once_and_never_beside_each_other(&lab).await;
    what_needs_a_ledger_is_refused_by_name_where_there_is_none(&lab).await;
    what_is_replayed_is_handled_once_though_its_letter_was_left(&lab).await;
    what_comes_again_though_its_dead_letter_is_stored_is_taken_off_unseen(&lab).await;
}

async fn what_comes_again_though_its_dead_letter_is_stored_is_taken_off_unseen(lab: &Lab) {
    let (node, other) = (Node::new(2), Rabbitmq::new(lab.ledgers.clone()));
    let link = lab.link(&[("queue", "buried"), ("create", "true")]);
    let send = async |id: &str| {
        let (subject, body, id) = ("buried".into(), "dead".into(), id.into());
        lab.send(Message { subject, body, id, ..Message::default() }).await.unwrap();
    };
    let source = Broker::queue(lab, "buried").await;
    let mut claims = Vec::new();
    for id in ["a", "b", "a"] {
        send(id).await;
        claims.push(pull(&source).await);
    }
    // As if their node died while it gave both up: the one has its letter, which is that of its twin here.
    for claimed in &claims[..2] {
        is_being_given_up(&source, claimed).await;
    }
    let (reason, ran) = (Reason::Refused("no such order".into()), Ran::default());
    let dead = Settlement::DeadLetter { reason, fault: None, ran };
    source.settle(&claims[2].claim, &dead).await.unwrap();
    // Their claims end.
    other.wake(link.clone(), node.permits(&link)).await.unwrap();
    let letters = lab.until_letters(&link, 2).await;
    lab.until_settled(&link).await;
    let ids: Vec<_> = letters.iter().map(|letter| letter.message.id.as_str()).collect();
    assert_eq!((ids, node.attempts("dead").len()), (vec!["a", "b"], 1), "what has a letter is not run");
    other.remove(&link.id).await;
}

async fn what_is_replayed_is_handled_once_though_its_letter_was_left(lab: &Lab) {
    let node = Node::new(2);
    let link = lab.link(&[("queue", "left"), ("create", "true")]);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("the queue is there", || lab.rabbit.health(&link.id).is_ok()).await;
    lab.publish("left", "dead 1").await;
    let letter = lab.until_letters(&link, 1).await.remove(0);
    // Who replays it first dies before it is off.
    let (channel, options) = (lab.channel().await, BasicPublishOptions::default());
    let left = channel.basic_get("left.dead".into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    for _ in 0..2 {
        let (body, properties) = (&left.delivery.data, left.delivery.properties.clone());
        channel.basic_publish("".into(), "left.dead".into(), options, body, properties).await.unwrap();
    }
    lab.until_letters(&link, 2).await;
    let source = lab.rabbit.source(&link).unwrap();
    for _ in 0..2 {
        assert!(source.decide(&letter.id, Fate::Replay).await.unwrap().is_some());
    }
    lab.publish("left", "ok").await;
    until("what stands behind both is handled", || node.attempts("ok") == [1]).await;
    lab.until_settled(&link).await;
    assert_eq!(node.attempts("dead 1"), [1, 1], "once more");
    let again = lab.until_letters(&link, 1).await;
    assert!(again.len() == 1 && again[0].id != letter.id, "{again:?}");
    lab.rabbit.remove(&link.id).await;
}

async fn twins_are_handled_once_and_never_beside_each_other(lab: &Lab) {
    let (node, other) = (Node::shut(8), Rabbitmq::new(lab.ledgers.clone()));
    let window = Duration::from_secs(600);
    let mut link = lab.link(&[("queue", "twins"), ("create", "true")]);
    link.delivery.dedupe = Some(Dedupe { key: DedupeKey::Id, window });
    for rabbit in [&lab.rabbit, &other] {
        rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
        until("the queue is there", || rabbit.health(&link.id).is_ok()).await;
    }
    let send = async |id: &str| {
        let (subject, body, id) = ("twins".into(), "same".into(), id.into());
        lab.send(Message { subject, body, id, ..Message::default() }).await.unwrap();
    };
    for id in ["a", "a", "a", "b", "", ""] {
        send(id).await;
    }
    // What has no id is nobody's twin. Twins come again each second, as copies, and wait.
    until("one of each is begun", || node.woken().len() == 4).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(node.woken().len(), 4, "a twin waits: {:?}", node.woken());
    node.open();
    lab.until_settled(&link).await;
    send("a").await;
    send("c").await;
    until("the next is handled", || node.done() == 5).await;
    lab.until_settled(&link).await;
    let ids = || node.woken().iter().map(|message| message.id.clone()).collect::<Vec<_>>();
    assert_eq!((ids().iter().filter(|id| *id == "a").count(), ids().len()), (1, 5), "{:?}", ids());
    for rabbit in [&lab.rabbit, &other] {
        rabbit.remove(&link.id).await;
    }
}

/// A lattice that has no place for ledgers.
struct Nowhere(Arc<dyn Ledgers>);

#[async_trait]
impl Ledgers for Nowhere {
    fn ledger(&self, name: &str) -> Arc<dyn Ledger> {
        self.0.ledger(name)
    }

    async fn missing(&self) -> Result<Option<String>, Trouble> {
        Ok(Some("there is none".into()))
    }
}

async fn what_needs_a_ledger_is_refused_by_name_where_there_is_none(lab: &Lab) {
    let (node, rabbit) = (Node::new(1), Rabbitmq::new(Arc::new(Nowhere(lab.ledgers.clone()))));
    let without = lab.link(&[("queue", "plain"), ("create", "true")]);
    rabbit.wake(without.clone(), node.permits(&without)).await.unwrap();
    until("the queue is there", || rabbit.health(&without.id).is_ok()).await;
    lab.publish("plain", "ok").await;
    until("it is handled", || node.bodies() == ["ok"]).await;
    assert!(rabbit.source(&without).unwrap().ledger().is_some(), "it is not known yet");
    let mut once = lab.link(&[("queue", "plain"), ("for", "dedupe")]);
    once.delivery.dedupe = Some(Dedupe { key: DedupeKey::Id, window: Duration::from_secs(60) });
    let mut ordered = lab.link(&[("queue", "plain"), ("for", "order")]);
    ordered.delivery.order_by = Some(OrderBy::Subject);
    let (_holder, lease) = LeaseHolder::new();
    for (link, key) in [(once, "dedupe"), (ordered, "order_by")] {
        rabbit.wake(link.clone(), node.permits(&link).leased(lease.clone())).await.unwrap();
        let named = format!("`delivery.{key}` needs a ledger, and there is none");
        until(&named, || rabbit.health(&link.id).is_err_and(|why| why.contains(&named))).await;
    }
    rabbit.drain().await;
}

/// Several pages of dead letters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_look_at_dead_letters_at_once_see_each_once() {
    const LETTERS: usize = 350;
    let lab = Lab::start().await;
    let source = Broker::queue(&lab, "orders").await;
    for i in 0..LETTERS {
        lab.publish("orders", &i.to_string()).await;
    }
    let mut given_up = 0;
    while given_up < LETTERS {
        source.ready().await.unwrap();
        for claimed in source.pull(64).await.unwrap() {
            let (reason, ran) = (Reason::Refused("as asked".into()), Ran::default());
            source.settle(&claimed.claim, &Settlement::DeadLetter { reason, fault: None, ran }).await.unwrap();
            given_up += 1;
        }
    }
    let others: Vec<_> = (0..2).map(|_| Rabbitmq::new(lab.ledgers.clone())).collect();
    let link = lab.link(&[("queue", "orders")]);
    let nodes: Vec<_> = others.iter().map(|node| node.source(&link).unwrap()).chain([source]).collect();
    let looks = futures::future::join_all(nodes.iter().map(every_letter)).await;
    for seen in &looks {
        let bodies: std::collections::BTreeSet<_> = seen.iter().map(|letter| text(&letter.message)).collect();
        assert_eq!((seen.len(), bodies.len()), (LETTERS, LETTERS), "each once, whoever else looks");
    }
    // One is decided on while others look: on one node only, and all others stay.
    let id = &looks[0][LETTERS / 2].id;
    let decided = futures::future::join_all(nodes.iter().map(|node| node.decide(id, Fate::Drop))).await;
    assert_eq!(decided.iter().filter(|decided| matches!(decided, Ok(Some(_)))).count(), 1, "{decided:?}");
    assert_eq!(every_letter(&nodes[1]).await.len(), LETTERS - 1);
    assert_eq!(nodes[2].standing().await.unwrap().dead, Some(LETTERS as u64 - 1));
}

/// All dead letters, page by page.
async fn every_letter(source: &Source) -> Vec<DeadLetter> {
    let mut all = Vec::<DeadLetter>::new();
    loop {
        let after = all.last().map(|letter| letter.id.clone());
        let page = source.letters(after.as_deref(), 100).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn who_may_not_in_and_who_does_not_answer_is_said(lab: &Lab) {
    let node = Node::new(1);
    let says = |link: &Link, what: &str| lab.rabbit.health(&link.id).is_err_and(|why| why.contains(what));
    let wrong = lab.link(&[("queue", "orders"), ("user", "guest"), ("password", "s3cret")]);
    lab.rabbit.wake(wrong.clone(), node.permits(&wrong)).await.unwrap();
    until("the login is refused", || says(&wrong, "the login is refused: check `user` and `password`")).await;
    assert!(!lab.rabbit.health(&wrong.id).unwrap_err().contains("s3cret"));
    let mute = link("messaging", &[("url", &format!("amqp://{}", silent())), ("queue", "x")]);
    lab.rabbit.wake(mute.clone(), node.permits(&mute)).await.unwrap();
    until("that it does not answer is said", || says(&mute, "no answer within 5s")).await;
    lab.rabbit.remove(&mute.id).await;
}

/// 500 messages; the server is killed and started again as soon as the link is ready, and in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_accounted_for_across_deaths_of_the_server() {
    const MESSAGES: usize = 500;
    // Fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 8] = ["ok", "retry-twice", "ok", "dead", "ok", "drop", "ok", "trap"];
    let mut lab = Lab::start().await;
    let node = Node::new(16);
    let link = lab.link(&[("queue", "orders"), ("create", "true")]);
    lab.rabbit.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("it is ready, and may be killed from now on", || lab.rabbit.health(&link.id).is_ok()).await;
    let body = |i: usize| format!("{} {i}", WORDS[i % WORDS.len()]);
    for i in 0..MESSAGES {
        // What it is not answered a publisher sends again.
        lab.publish("orders", &body(i)).await;
        if i == 0 || i == 250 {
            lab.server.kill();
            until("that it is away is said", || lab.rabbit.health(&link.id).is_err()).await;
            tokio::task::block_in_place(|| lab.server.restart());
        }
    }
    let of = |words: &[&str]| (0..MESSAGES).filter(|i| words.contains(&WORDS[i % WORDS.len()])).count();
    let letters = lab.until_letters(&link, of(&["dead", "trap"])).await;
    lab.until_settled(&link).await;
    let mut bodies: Vec<_> = letters.iter().map(|letter| text(&letter.message)).collect();
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), of(&["dead", "trap"]), "none is lost");
    assert!(letters.len() - bodies.len() <= 2 * 16, "twice only what was in flight at a kill: {}", letters.len());
    assert!(bodies.iter().all(|body| body.starts_with("dead") || body.starts_with("trap")), "{bodies:?}");
    for i in 0..MESSAGES {
        let attempts = node.attempts(&body(i));
        assert!(!attempts.is_empty(), "{} never came", body(i));
        if body(i).starts_with("retry-twice") {
            assert!(attempts.iter().any(|attempt| *attempt >= 3), "{}: {attempts:?}", body(i));
        }
    }
    assert_eq!(lab.rabbit.health(&link.id), Ok(()));
}
