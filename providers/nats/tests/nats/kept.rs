//! Core subjects with a policy: what has come is on the node's disk before it is handled.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use trellis_bus::testing::NatsServer;
use trellis_embedded::{Embedded, Pulled};
use trellis_nats::{Nats, Options};
use trellis_provider::delivery::{Fate, Queue as _, Trigger, Trouble};
use trellis_provider::testing::lab::{
    self, Node, in_a_process, text, until, until_letters, until_settled, until_waiting,
};
use trellis_provider::testing::{Broker, contract};
use trellis_provider::{Depot, LinkError, Permits, Provider as _};
use trellis_wire::{Call, Dedupe, DedupeKey, Delivery, Link, LinkId, Message, OrderBy, Rate};

use crate::{link, message, provider, publish, publisher};

/// A node's disk.
struct Home(tempfile::TempDir);

/// A process of a node on its disk.
struct Process {
    nats: Nats,
    embedded: Arc<Embedded>,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A process, once the tasks of the one before, which was dropped, have let go of the disk.
    async fn open(&self, server: &NatsServer) -> Process {
        let mut opened = None;
        until("the disk is free", || {
            opened = Embedded::open(trellis_embedded::Options { data_dir: self.0.path().into() }).ok();
            opened.is_some()
        })
        .await;
        let embedded = Arc::new(opened.unwrap());
        let options = Options { default_url: Some(server.url.clone()), ..Options::default() };
        Process { nats: Nats::new(options).storing_in(embedded.clone()), embedded }
    }
}

impl Process {
    fn find(&self, link: &Link) -> Option<Pulled> {
        self.embedded.kept(&self.nats.queue(&link.id, &link.component), &link.component)
    }

    /// What holds a link's messages.
    fn queue(&self, link: &Link) -> Pulled {
        self.find(link).unwrap()
    }

    async fn wake(&self, link: &Link, node: &Node) {
        // The connection stands before the subscription is asked for.
        publisher(&self.nats).await;
        self.nats.wake(link.clone(), node.permits(link)).await.unwrap();
        until("all is well", || self.nats.health(&link.id).is_ok()).await;
    }
}

/// What is tried again soon, and four times at most.
fn orders(subject: &str) -> Link {
    lab::link("messaging", &[("subscriptions", subject)])
}

/// A server, and a node with a publisher.
struct Lab {
    process: Process,
    publisher: LinkId,
    server: NatsServer,
    _home: Home,
}

impl Lab {
    async fn start() -> Self {
        let (server, home) = (NatsServer::start(false), Home::new());
        let process = home.open(&server).await;
        let publisher = publisher(&process.nats).await;
        Self { process, publisher, server, _home: home }
    }

    async fn publish(&self, subject: &str, body: &str) {
        publish(&self.process.nats, &self.publisher, message(subject, body)).await.unwrap();
    }
}

#[async_trait]
impl Broker for Lab {
    type Queue = Pulled;

    async fn queue(&self, name: &str) -> Pulled {
        let link = orders(name);
        if self.process.find(&link).is_none() {
            // Whose component gets no permit: what comes waits for the test.
            self.process.wake(&link, &Node::new(0)).await;
        }
        self.process.queue(&link)
    }

    async fn publish(&self, name: &str, message: Message) {
        let message = Message { subject: name.into(), ..message };
        publish(&self.process.nats, &self.publisher, message).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_queue() {
    contract(&Lab::start().await).await;
}

#[tokio::test]
async fn each_word_of_a_handler_has_its_consequence() {
    let (lab, node) = (Lab::start().await, Node::new(8));
    let link = orders("orders.*");
    lab.process.wake(&link, &node).await;
    for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap"] {
        lab.publish("orders.eu", body).await;
    }
    let queue = lab.process.queue(&link);
    let letters = until_letters(&queue, 3).await;
    until("the third attempt came", || node.attempts("retry-twice") == [1, 2, 3]).await;
    until("the others came", || node.attempts("ok") == [1] && node.attempts("drop") == [1]).await;
    assert_eq!(node.attempts("retry"), [1, 2, 3, 4], "max_attempts");
    assert_eq!(node.attempts("trap"), [1, 2, 3], "max_faults");
    let letter = |body: &str| letters.iter().find(|letter| text(&letter.message) == body).unwrap();
    let reason = |body: &str| letter(body).reason.as_str();
    assert_eq!([reason("retry"), reason("dead"), reason("trap")], ["max-attempts", "refused", "max-faults"]);
    assert_eq!(letter("trap").message.subject, "orders.eu");
    until_settled(&queue).await;

    let trigger = lab.process.nats.trigger(&link.id).unwrap();
    assert_eq!(trigger.letters(None, 10).await.unwrap().len(), 3);
    assert!(trigger.decide(&letter("trap").id, Fate::Replay).await.unwrap().is_some());
    until("it came again", || node.attempts("trap") == [1, 2, 3, 1, 2, 3]).await;
    assert_eq!(lab.process.nats.health(&link.id), Ok(()));
}

/// A process is dropped in the middle of what it does, as `kill -9` would end it.
#[test]
fn what_was_stored_is_handled_by_the_next_process() {
    let (server, home, link) = (NatsServer::start(false), Home::new(), orders("orders"));
    in_a_process(async {
        let (process, node) = (home.open(&server).await, Node::shut(1));
        process.wake(&link, &node).await;
        let publishes = publisher(&process.nats).await;
        for body in ["runs", "waits", "waits too"] {
            publish(&process.nats, &publishes, message("orders", body)).await.unwrap();
        }
        until("one is worked on", || node.bodies() == ["runs"]).await;
        until_waiting(&process.queue(&link), 2).await;
    });
    in_a_process(async {
        let (process, node) = (home.open(&server).await, Node::new(4));
        process.wake(&link, &node).await;
        until("all are handled", || node.done() == 3).await;
        until_settled(&process.queue(&link)).await;
        assert_eq!(node.attempts("runs"), [2], "it was worked on when the process died");
        assert_eq!((node.attempts("waits"), node.attempts("waits too")), (vec![1], vec![1]));
        process.nats.drain().await;
    });
}

#[tokio::test]
async fn what_came_before_a_link_ends_is_there_when_it_is_back_and_each_node_has_its_part() {
    let (lab, home, link) = (Lab::start().await, Home::new(), orders("orders"));
    let other = home.open(&lab.server).await;
    let nodes = [Node::new(0), Node::new(0)];
    for (process, node) in [&lab.process, &other].into_iter().zip(&nodes) {
        process.wake(&link, node).await;
    }
    for n in 0..100 {
        lab.publish("orders", &n.to_string()).await;
    }
    let (here, there) = (lab.process.queue(&link), other.queue(&link));
    let mut waiting = [0, 0];
    // Who publishes on core NATS does not hear when the server has it.
    while waiting.iter().sum::<u64>() < 100 {
        waiting = [here.standing().await.unwrap().waiting, there.standing().await.unwrap().waiting];
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for process in [&lab.process, &other] {
        process.nats.remove(&link.id).await;
    }
    assert!(waiting.iter().all(|count| *count > 5), "both take part: {waiting:?}");
    let node = Node::new(4);
    for process in [&lab.process, &other] {
        process.wake(&link, &node).await;
    }
    until("all are handled", || node.done() == 100).await;
    let mut bodies: Vec<usize> = node.bodies().iter().map(|body| body.parse().unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, (0..100).collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_message_that_awaits_an_answer_is_kept_with_where_it_goes() {
    let (lab, node) = (Lab::start().await, Node::shut(1));
    let link = orders("orders");
    lab.process.wake(&link, &node).await;
    let request = Call::Request { message: message("orders", "retry-twice"), timeout: Duration::from_secs(60) };
    let asking = lab.process.nats.call(&lab.publisher, request);
    let answering = async {
        until("it was asked", || !node.woken().is_empty()).await;
        node.open();
        until("it was asked again", || node.attempts("retry-twice") == [1, 2, 3]).await;
        let to: Vec<_> = node.woken().iter().map(|message| message.reply_to.clone().unwrap()).collect();
        assert!(to.iter().all(|reply_to| *reply_to == to[0]), "{to:?}");
        lab.publish(&to[0], "answer").await;
    };
    let (answer, ()) = tokio::join!(asking, answering);
    let trellis_wire::Answer::Message(answer) = answer.unwrap() else { panic!("an answer is a message") };
    assert_eq!(text(&answer), "answer");
}

/// A node's disk that has no room for what comes on `full`.
struct Picky(Arc<Embedded>);

#[async_trait]
impl Depot for Picky {
    async fn begin(&self, queue: &str, link: Link, permits: Permits) -> Result<(), LinkError> {
        self.0.begin(queue, link, permits).await
    }

    fn has(&self, queue: &str) -> bool {
        self.0.has(queue)
    }

    async fn keep(&self, queue: &str, messages: Vec<Message>, note: Bytes) -> Result<(), Trouble> {
        if messages.iter().any(|message| message.subject == "full") {
            return Err("there is no room".into());
        }
        self.0.keep(queue, messages, note).await
    }

    fn note(&self, queue: &str) -> Result<Bytes, Trouble> {
        self.0.note(queue)
    }

    async fn end(&self, link: &LinkId) {
        Depot::end(&*self.0, link).await;
    }

    fn trigger(&self, link: &LinkId) -> Option<Arc<dyn Trigger>> {
        Depot::trigger(&*self.0, link)
    }

    fn health(&self, link: &LinkId) -> Result<(), String> {
        Depot::health(&*self.0, link)
    }
}

#[tokio::test]
async fn one_subscription_that_goes_well_does_not_hide_that_another_does_not() {
    let (lab, node) = (Lab::start().await, Node::new(1));
    let options = Options { default_url: Some(lab.server.url.clone()), ..Options::default() };
    let nats = Nats::new(options).storing_in(Arc::new(Picky(lab.process.embedded.clone())));
    publisher(&nats).await;
    let link = orders("full,ok");
    nats.wake(link.clone(), node.permits(&link)).await.unwrap();
    until("all is well", || nats.health(&link.id).is_ok()).await;
    lab.publish("full", "waits").await;
    until("it is said", || nats.health(&link.id).is_err_and(|why| why.contains("there is no room"))).await;
    for n in 0..10 {
        lab.publish("ok", "ok").await;
        until("the other goes on", || node.done() > n).await;
        let health = nats.health(&link.id);
        assert!(health.as_ref().is_err_and(|why| why.contains("there is no room")), "{health:?}");
    }
}

#[tokio::test]
async fn without_a_policy_nothing_is_written() {
    let (lab, node) = (Lab::start().await, Node::new(1));
    let link = Link { delivery: Delivery { dead_bytes_max: 1, ..Delivery::default() }, ..orders("orders") };
    lab.process.wake(&link, &node).await;
    lab.publish("orders", "trap").await;
    until("it is handled", || node.done() == 1).await;
    assert!(lab.process.find(&link).is_none() && lab.process.nats.trigger(&link.id).is_none());
}

#[tokio::test]
async fn what_nodes_cannot_keep_each_for_itself_is_named() {
    type Ask = fn(&mut Delivery);
    let asks: [(&str, Ask); 5] = [
        ("order_by", |asks| asks.order_by = Some(OrderBy::Subject)),
        ("max_in_flight", |asks| asks.max_in_flight = Some(1)),
        ("rate_limit", |asks| asks.rate_limit = Some(Rate { count: 1, per: Duration::from_secs(1) })),
        ("dedupe", |asks| asks.dedupe = Some(Dedupe { key: DedupeKey::Id, window: Duration::from_secs(1) })),
        ("dead_letter", |asks| asks.dead_letter = Some("DEAD".into())),
    ];
    for (name, ask) in asks {
        let mut link = orders("orders");
        ask(&mut link.delivery);
        let LinkError::Config { key, problem } = trellis_nats::check_wake(&link).unwrap_err() else { panic!("{name}") };
        assert_eq!(key, format!("delivery.{name}"));
        assert!(problem.contains("write `stream: NAME` in the source config"), "{problem}");
    }
    let (nats, node) = (provider("nats://127.0.0.1:1"), Node::new(1));
    let refused = nats.wake(orders("orders"), node.permits(&orders("orders"))).await.unwrap_err();
    assert!(matches!(&refused, LinkError::Unsupported(why) if why.contains("`delivery`")), "a node without a disk");
    assert_eq!(trellis_nats::check_wake(&link("worker", "messaging", &[("subscriptions", "orders")])), Ok(()));
}
