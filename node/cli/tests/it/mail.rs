//! Messages that come steadily while something happens to the nodes that handle them, and what became of each. Whoever
//! publishes them has nothing to do with Trellis, and neither has who reads the account: only nats-server must live.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::{self, Context};
use serde_json::Value;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;

use crate::apps::{app, component, eventually, link, link_from, provider_at, waking};
use crate::lattice::on;
use crate::node::Node;

/// A message takes 100 ms: so some are under way on each node at any time, and never as many as may be.
const PACE: Duration = Duration::from_millis(20);
/// How long all that is waited for may take: a claim ends 10 s after its node, and a machine may be busy.
const SETTLED_MAX: Duration = Duration::from_secs(40);
/// When what was in flight on a node that dies has begun again elsewhere: 13 s are promised, and 3 more for a busy machine.
const AGAIN_MAX: Duration = Duration::from_secs(16);
/// The component, and where it keeps its account.
const WORKER: &str = "mail/worker";
const BUCKET: &str = "ACCOUNTS";

/// An app that handles the messages of a stream, and keeps account of them.
pub(crate) struct Mail {
    runtime: Runtime,
    context: Context,
    /// Those that were published last.
    messages: Range<usize>,
}

impl Mail {
    /// Handled on the nodes with these labels, such as `2|3`.
    pub(crate) fn deploy(nats: &NatsServer, by: &Node, nodes: &str) -> Self {
        let uses = link("store", "wasi:keyvalue/store, atomics, batch");
        let wakes = link_from("worker", "trellis:messaging/handler", "mail", "{stream: MAIL, create: 'true'}");
        by.deploy(&app(
            "mail",
            &[
                component("worker", "test_account", "limits: {timeout: 30s}", &[uses, on(nodes)]),
                provider_at("store", "nats", &format!("bucket: {BUCKET}, create: 'true'")),
                waking("queue", "nats", &[wakes]),
            ],
        ));
        let runtime = Runtime::new().unwrap();
        let context = runtime.block_on(async { jetstream::new(async_nats::connect(&nats.url).await.unwrap()) });
        Self { runtime, context, messages: 0..0 }
    }

    /// Publishes while `what` happens, whose value it returns.
    pub(crate) fn during<T>(&mut self, what: impl FnOnce() -> T) -> T {
        let (first, over) = (self.messages.end, AtomicBool::new(false));
        let (came, end) = thread::scope(|scope| {
            let publishing = scope.spawn(|| {
                let mut n = first;
                while !over.load(Ordering::Relaxed) {
                    self.publish(n);
                    n += 1;
                    thread::sleep(PACE);
                }
                n
            });
            let came = what();
            over.store(true, Ordering::Relaxed);
            (came, publishing.join().unwrap())
        });
        self.messages = first..end;
        came
    }

    fn publish(&self, n: usize) {
        self.runtime.block_on(async {
            let sent = self.context.publish("MAIL", format!("nap {n}").into()).await.unwrap();
            sent.await.unwrap();
        });
    }

    /// How many permits a node has for messages.
    pub(crate) fn permits(&self, asked: &Node, node: &str) -> usize {
        let status = asked.status("mail");
        let holders = status["components"][0]["holders"].as_array().unwrap();
        let holder = holders.iter().find(|holder| holder["node"] == node);
        holder.map_or(0, |holder| usize::try_from(holder["permits"].as_u64().unwrap()).unwrap())
    }

    /// What became of those that were published last, once each is handled or that has taken too long,
    /// where something happened to a node at `at`.
    pub(crate) fn account(&self, asked: &Node, at: SystemTime) -> Account {
        let until = Instant::now() + SETTLED_MAX;
        loop {
            let account = self.account_now(asked, at);
            if account.lost.is_empty() || Instant::now() > until {
                return account;
            }
            thread::sleep(Duration::from_millis(500));
        }
    }

    fn account_now(&self, asked: &Node, at: SystemTime) -> Account {
        let bucket = self.runtime.block_on(self.context.get_key_value(BUCKET)).unwrap();
        let text = |key: String| {
            let value = self.runtime.block_on(bucket.get(key)).unwrap();
            value.map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        let number = |key: String| text(key).map_or(0, |number| number.parse::<usize>().unwrap());
        let mut account = Account { dead_letters: dead_letters(asked), ..Account::default() };
        for n in self.messages.clone() {
            let (seen, done) = (number(format!("seen/{n}")), number(format!("done/{n}")));
            match done {
                0 => account.lost.push(n),
                _ => account.handled += 1,
            }
            account.again += seen.saturating_sub(1);
            if seen > 1 {
                // A run that came to its end before, and was not heard of, has written when that one began.
                let began = text(format!("nap/{n}")).map(|nap| moment(nap.split(' ').next().unwrap()));
                account.began_again.extend(began.and_then(|began| began.duration_since(at).ok()));
            }
        }
        account
    }
}

/// A time that is given in milliseconds since 1970.
fn moment(ms: &str) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.parse().unwrap())
}

/// How many dead letters there are, once every node has said so: one may be too busy for a moment.
fn dead_letters(asked: &Node) -> usize {
    eventually("every node says which dead letters it has", || {
        let listed = asked.trellis(&["dead-letters", "list", WORKER, "-o", "json"]);
        let listed: Value = serde_json::from_str(&listed.stdout).ok()?;
        let letters = listed["dead_letters"].as_array()?.len();
        listed["problems"].as_array()?.is_empty().then_some(letters)
    })
}

/// What became of messages.
#[derive(Debug, Default)]
pub(crate) struct Account {
    handled: usize,
    /// Those that were never handled to their end.
    lost: Vec<usize>,
    /// How often one was begun beyond the first time.
    again: usize,
    /// How long after it happened each of those began for the last time.
    began_again: Vec<Duration>,
    dead_letters: usize,
}

impl Account {
    /// Whether nothing is lost, and only what was in flight on the node that something happened to was tried again.
    #[track_caller]
    pub(crate) fn check(&self, in_flight_max: usize) {
        assert!(self.handled > 100 && self.lost.is_empty() && self.dead_letters == 0, "{self:?}");
        assert!(self.again <= in_flight_max, "no more than {in_flight_max} were in flight there: {self:?}");
    }

    /// Whether what was in flight on a node that died has begun again soon.
    #[track_caller]
    pub(crate) fn check_again(&self) {
        assert!(self.began_again.iter().all(|after| *after < AGAIN_MAX), "{self:?}");
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handled, lost, again, began_again, dead_letters } = self;
        write!(f, "messages: {handled} handled, {} lost, {again} tried again", lost.len())?;
        if let Some(last) = began_again.iter().max() {
            write!(f, " (the last of them after {last:?})")?;
        }
        write!(f, ", {dead_letters} dead letters")
    }
}
