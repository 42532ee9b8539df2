//! Durable queues, as a node sees them: what is lost is nothing, whatever a handler says and whenever a process dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trellis_embedded::Embedded;
use trellis_provider::delivery::{DeadLetter, Fate, Trigger};
use trellis_provider::{LinkError, Permit, PermitSource, Permits, Provider, Run, Want};
use trellis_wire::{Backoff, ComponentKey, Delivery, Error, Event, Fault, Link, Message, Outcome, Rate, Reply, Settle};

use super::{link, message, open};

const PATIENCE: Duration = Duration::from_secs(30);

/// A policy that does not keep a test waiting.
fn soon() -> Delivery {
    let backoff = Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(20), ..Backoff::default() };
    Delivery { backoff, max_attempts: 4, ..Delivery::default() }
}

fn queue(name: &str) -> Link {
    Link { delivery: soon(), ..link("shop", "worker", "messaging", &[("queue", name)]) }
}

/// A node that handles each message by the first word of its body, and notes what it was woken with.
struct Worker {
    permits: Arc<Semaphore>,
    woken: Mutex<Vec<Message>>,
    /// Handled, by body.
    handled: Mutex<BTreeMap<String, usize>>,
    busy_times: AtomicUsize,
    running: AtomicUsize,
    running_most: AtomicUsize,
    this: std::sync::Weak<Self>,
}

impl Worker {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            permits: Arc::new(Semaphore::new(permits)),
            woken: Mutex::default(),
            handled: Mutex::default(),
            busy_times: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            running_most: AtomicUsize::new(0),
            this: this.clone(),
        })
    }

    async fn wake(self: &Arc<Self>, provider: &Embedded, link: Link) {
        let permits = Permits::new(link.component.clone(), self.clone());
        provider.wake(link, permits).await.unwrap();
    }

    fn handled(&self) -> BTreeMap<String, usize> {
        self.handled.lock().unwrap().clone()
    }

    fn attempts(&self, body: &str) -> Vec<u32> {
        let woken = self.woken.lock().unwrap();
        woken.iter().filter(|message| text(message) == body).map(|message| message.attempt).collect()
    }

    async fn act(&self, message: &Message) -> Outcome {
        let body = text(message);
        match body.split(' ').next().unwrap_or_default() {
            "retry" => return Ok(Reply::Settle(Settle::Retry { after: None, reason: "as asked".into() })),
            "retry-twice" if message.attempt <= 2 => {
                return Ok(Reply::Settle(Settle::Retry { after: Some(Duration::ZERO), reason: "not yet".into() }));
            }
            "dead" => return Ok(Reply::Settle(Settle::DeadLetter("as asked".into()))),
            "drop" => return Ok(Reply::Settle(Settle::Drop("as asked".into()))),
            "trap" => return Err(Fault::Trap(format!("unreachable at attempt {}", message.attempt)).into()),
            "trap-once" if message.attempt == 1 => return Err(Fault::NoReply.into()),
            "busy-once" if self.busy_times.fetch_add(1, Ordering::SeqCst) == 0 => {
                return Err(Error::Busy("no sandbox".into()).into());
            }
            "hang" if message.attempt == 1 => std::future::pending::<()>().await,
            "slow" => tokio::time::sleep(Duration::from_millis(200)).await,
            _ => {}
        }
        *self.handled.lock().unwrap().entry(body).or_default() += 1;
        Ok(Reply::Settle(Settle::Ack))
    }
}

fn text(message: &Message) -> String {
    String::from_utf8(message.body.to_vec()).unwrap()
}

#[async_trait]
impl PermitSource for Worker {
    async fn acquire(&self, _: &ComponentKey, want: Want) -> Result<Permit, Error> {
        assert_eq!(want, Want::Pull);
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?;
        Ok(Permit::new(Turn { worker: self.this.upgrade().unwrap(), _permit: permit }))
    }
}

struct Turn {
    worker: Arc<Worker>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Run for Turn {
    async fn run(self: Box<Self>, event: Event) -> Outcome {
        let Event::Message(message) = event else { panic!("{event:?}") };
        assert!(message.published_ms.is_some() && !message.id.is_empty());
        let running = self.worker.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.worker.running_most.fetch_max(running, Ordering::SeqCst);
        self.worker.woken.lock().unwrap().push(message.clone());
        let outcome = self.worker.act(&message).await;
        self.worker.running.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn trigger(provider: &Embedded) -> Arc<dyn Trigger> {
    provider.trigger(&queue("orders").id).unwrap()
}

fn letters(provider: &Embedded) -> Vec<DeadLetter> {
    // A look at the file, which waits for nothing.
    trigger(provider).letters(None, 1_000).now_or_never().unwrap().unwrap()
}

/// What one process does with the file, until it is dropped in the middle of whatever it does.
fn process(work: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work());
}

#[tokio::test]
async fn each_word_of_a_handler_has_its_consequence() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, worker) = (open(dir.path()), Worker::new(8));
    worker.wake(&provider, queue("orders")).await;
    for body in ["ok", "retry", "retry-twice", "dead", "drop", "trap", "trap-once", "busy-once"] {
        assert_eq!(provider.publish(message("orders", body)).await, Ok(1));
    }
    until("three are dead", || letters(&provider).len() == 3).await;
    until("all others are handled", || worker.handled().len() == 4).await;
    until("the dropped one came", || worker.attempts("drop") == [1]).await;

    assert_eq!(worker.attempts("retry"), [1, 2, 3, 4], "max_attempts");
    assert_eq!(worker.attempts("retry-twice"), [1, 2, 3]);
    assert_eq!(worker.attempts("trap"), [1, 2, 3], "max_faults");
    assert_eq!(worker.attempts("trap-once"), [1, 2]);
    assert_eq!(worker.attempts("busy-once"), [1, 1], "what was not run is no attempt");
    let by_body: BTreeMap<_, _> =
        letters(&provider).into_iter().map(|letter| (text(&letter.message), letter)).collect();
    assert_eq!(by_body["dead"].reason, "refused");
    assert!(by_body["dead"].detail.contains("as asked"));
    assert_eq!((by_body["retry"].reason.as_str(), by_body["retry"].attempts), ("max-attempts", 4));
    let trap = &by_body["trap"];
    assert_eq!((trap.reason.as_str(), trap.component.as_str(), trap.attempts), ("max-faults", "shop/worker", 3));
    assert_eq!(trap.faults.len(), 3);
    assert!(trap.faults[2].contains("unreachable at attempt 3"), "{:?}", trap.faults);
}

#[tokio::test]
async fn a_dead_letter_is_replayed_once_or_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, worker) = (open(dir.path()), Worker::new(2));
    worker.wake(&provider, queue("orders")).await;
    let body = Message { headers: vec![("trace".into(), "7".into())], ..message("orders", "dead") };
    provider.publish(body).await.unwrap();
    until("it is dead", || letters(&provider).len() == 1).await;
    let first = letters(&provider).remove(0);
    assert_eq!(first.message.headers, [("trace".to_owned(), "7".to_owned())]);

    let decide = async |id: &str, fate| trigger(&provider).decide(id, fate).await.unwrap().is_some();
    assert!(decide(&first.id, Fate::Replay).await);
    assert!(!decide(&first.id, Fate::Replay).await, "a second replay does nothing");
    until("it came again and is dead again", || letters(&provider).len() == 1).await;
    assert_eq!(worker.attempts("dead"), [1, 1]);
    let second = letters(&provider).remove(0);
    assert_ne!(first.id, second.id);
    assert!(decide(&second.id, Fate::Drop).await);
    assert!(letters(&provider).is_empty());
    assert!(!decide("orders-99", Fate::Drop).await && !decide("nothing", Fate::Drop).await);
}

#[test]
fn what_is_published_is_kept_without_a_link_and_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(0));
        let link =
            Link { config: [("queue", "orders"), ("subject", "eu.*.orders")].into_iter().collect(), ..queue("x") };
        worker.wake(&provider, link.clone()).await;
        provider.remove(&link.id).await;
        assert_eq!(provider.publish(message("orders", "1")).await, Ok(1));
        assert_eq!(provider.publish(message("eu.de.orders", "2")).await, Ok(1));
        assert_eq!(provider.publish(message("us.orders", "lost")).await, Ok(0), "no queue takes it");
    });
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(1));
        assert_eq!(provider.publish(message("eu.fr.orders", "3")).await, Ok(1), "its filter is remembered");
        let link =
            Link { config: [("queue", "orders"), ("subject", "eu.*.orders")].into_iter().collect(), ..queue("x") };
        worker.wake(&provider, link).await;
        until("all are handled", || worker.handled().len() == 3).await;
        let order: Vec<_> = worker.woken.lock().unwrap().iter().map(text).collect();
        assert_eq!(order, ["1", "2", "3"]);
    });
}

#[test]
fn attempts_faults_waits_and_dead_letters_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let patient = Link {
        delivery: Delivery {
            backoff: Backoff { initial: Duration::from_millis(1_500), ..Backoff::default() },
            ..soon()
        },
        ..queue("orders")
    };
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(8));
        worker.wake(&provider, patient.clone()).await;
        for body in ["dead", "trap", "hang"] {
            provider.publish(message("orders", body)).await.unwrap();
        }
        until("all were tried once", || worker.woken.lock().unwrap().len() == 3).await;
        until("one is dead", || letters(&provider).len() == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    });
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(8));
        worker.wake(&provider, Link { delivery: soon(), ..patient }).await;
        assert_eq!(letters(&provider).len(), 1);
        // What was worked on when the process died comes at once; what waits for its next try keeps waiting.
        until("the one that hung is handled", || worker.handled().contains_key("hang")).await;
        assert_eq!(worker.attempts("hang"), [2]);
        until("the third fault kills the other", || letters(&provider).len() == 2).await;
        assert_eq!(worker.attempts("trap"), [2, 3]);
        let trap = letters(&provider).into_iter().find(|letter| text(&letter.message) == "trap").unwrap();
        assert!(trap.faults[0].contains("attempt 1"), "the fault before the restart is kept: {:?}", trap.faults);
    });
}

#[tokio::test]
async fn dead_letters_hold_no_more_than_the_links_part() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, worker) = (open(dir.path()), Worker::new(1));
    let link = Link { delivery: Delivery { dead_bytes_max: 4_000, ..soon() }, ..queue("orders") };
    worker.wake(&provider, link.clone()).await;
    for i in 0..3 {
        provider.publish(message("orders", &format!("dead {i} {}", "x".repeat(1_500)))).await.unwrap();
    }
    until("that there is no room is said", || provider.health(&link.id).is_err_and(|why| why.contains("4000 bytes")))
        .await;
    assert_eq!(letters(&provider).len(), 2);
}

#[test]
fn what_kills_its_node_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    for attempt in 1..=3 {
        process(async || {
            let (provider, worker) = (open(dir.path()), Worker::new(1));
            if attempt == 1 {
                worker.wake(&provider, queue("orders")).await;
                provider.publish(message("orders", "slow")).await.unwrap();
            } else {
                worker.wake(&provider, queue("orders")).await;
            }
            until("it is worked on", || worker.attempts("slow") == [attempt]).await;
        });
    }
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(1));
        worker.wake(&provider, queue("orders")).await;
        until("it is dead", || letters(&provider).len() == 1).await;
        let letter = letters(&provider).remove(0);
        assert_eq!((letter.reason.as_str(), letter.kills), ("killed-its-node", 3));
        assert!(worker.woken.lock().unwrap().is_empty(), "it was not run again");
    });
}

/// What was noted beside the store and not yet written to its disk goes with the machine.
#[test]
fn a_machine_that_dies_takes_only_what_was_given_out_since_the_last_commit() {
    let dir = tempfile::tempdir().unwrap();
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(3));
        worker.wake(&provider, queue("orders")).await;
        for body in ["hang before", "ok", "hang after"] {
            provider.publish(message("orders", body)).await.unwrap();
            until("it is worked on", || worker.attempts(body) == [1]).await;
            if body == "ok" {
                until("it is settled", || trigger(&provider).standing().now_or_never().unwrap().unwrap().claimed == 1)
                    .await;
            }
        }
    });
    std::fs::remove_file(dir.path().join("embedded.given")).unwrap();
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(3));
        worker.wake(&provider, queue("orders")).await;
        until("both come again", || worker.woken.lock().unwrap().len() == 2).await;
        assert_eq!((worker.attempts("hang before"), worker.attempts("hang after")), (vec![2], vec![1]));
    });
}

#[tokio::test]
async fn the_end_of_a_link_gives_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, worker) = (open(dir.path()), Worker::new(2));
    worker.wake(&provider, queue("orders")).await;
    let bodies: Vec<_> = (0..6).map(|i| format!("slow {i}")).collect();
    for body in &bodies {
        provider.publish(message("orders", body)).await.unwrap();
    }
    until("two run", || worker.woken.lock().unwrap().len() == 2).await;
    provider.remove(&queue("orders").id).await;
    let handled = worker.handled().len();
    assert!((2..6).contains(&handled), "what ran has ended, the rest waits: {handled}");
    worker.wake(&provider, queue("orders")).await;
    until("all are handled", || worker.handled().len() == 6).await;
    assert!(worker.handled().values().all(|times| *times == 1), "{:?}", worker.handled());
    assert!(bodies.iter().all(|body| worker.attempts(body) == [1]), "a drain is no attempt");
}

#[tokio::test]
async fn no_more_is_taken_than_there_are_permits_or_the_link_allows() {
    let dir = tempfile::tempdir().unwrap();
    let provider = open(dir.path());
    for (name, permits, most, delivery) in
        [("few", 2, 2, soon()), ("capped", 50, 3, Delivery { max_in_flight: Some(3), ..soon() })]
    {
        let worker = Worker::new(permits);
        let mut capped = queue(name);
        capped.delivery = delivery;
        worker.wake(&provider, capped.clone()).await;
        join_all((0..12).map(|i| provider.publish(message(name, &format!("slow {i}"))))).await;
        until("all are handled", || worker.handled().len() == 12).await;
        assert_eq!(worker.running_most.load(Ordering::SeqCst), most, "{name}");
        provider.remove(&capped.id).await;
    }
    let worker = Worker::new(50);
    let rate = Rate { count: 5, per: Duration::from_millis(400) };
    let paced = Link { delivery: Delivery { rate_limit: Some(rate), ..soon() }, ..queue("paced") };
    worker.wake(&provider, paced).await;
    let began = std::time::Instant::now();
    join_all((0..15).map(|i| provider.publish(message("paced", &i.to_string())))).await;
    until("all are handled", || worker.handled().len() == 15).await;
    assert!(began.elapsed() >= Duration::from_millis(750), "three windows: {:?}", began.elapsed());
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (provider, worker) = (open(dir.path()), Worker::new(1));
    let refused = async |link: Link| {
        let permits = Permits::new(link.component.clone(), worker.clone());
        provider.wake(link, permits).await.unwrap_err()
    };
    let elsewhere = Delivery { dead_letter: Some("dead".into()), ..soon() };
    let why = refused(Link { delivery: elsewhere, ..queue("orders") }).await;
    assert!(matches!(&why, LinkError::Config { key, .. } if key == "delivery.dead_letter"), "{why}");
    let in_memory = Link { delivery: soon(), ..link("shop", "worker", "messaging", &[("subject", "orders")]) };
    let why = refused(in_memory).await.to_string();
    assert!(why.contains("`queue: NAME`"), "{why}");
}

/// 500 messages from five publishers, through a queue whose process dies twice on the way.
#[test]
fn torture_every_message_is_accounted_for() {
    const MESSAGES: usize = 500;
    // Fewer than half fail on their first attempt: else the trigger would pause by itself.
    const WORDS: [&str; 13] =
        ["ok", "retry", "ok", "retry-twice", "ok", "dead", "ok", "drop", "ok", "trap", "ok", "trap-once", "ok"];
    let dir = tempfile::tempdir().unwrap();
    let body = |i: usize| format!("{} {i}", WORDS[i % WORDS.len()]);
    let handled: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let dropped: Mutex<BTreeSet<String>> = Mutex::default();
    let note = |worker: &Worker| {
        for (body, times) in worker.handled() {
            *handled.lock().unwrap().entry(body).or_default() += times;
        }
        let woken = worker.woken.lock().unwrap();
        dropped.lock().unwrap().extend(woken.iter().map(text).filter(|body| body.starts_with("drop ")));
    };
    // Looked at when their processes are gone: what is handled up to the very end counts.
    let workers: Mutex<Vec<Arc<Worker>>> = Mutex::default();
    for life in 0..2 {
        process(async || {
            let (provider, worker) = (open(dir.path()), Worker::new(16));
            workers.lock().unwrap().push(worker.clone());
            worker.wake(&provider, queue("orders")).await;
            let half = (0..MESSAGES).filter(|i| i % 2 == life);
            let publishers = (0..5).map(|publisher| {
                let mine: Vec<_> = half.clone().filter(|i| i / 2 % 5 == publisher).collect();
                let provider = &provider;
                async move {
                    for i in mine {
                        provider.publish(message("orders", &body(i))).await.unwrap();
                    }
                }
            });
            // Whatever runs when the last is published dies with the process.
            join_all(publishers).await;
        });
    }
    for worker in workers.lock().unwrap().iter() {
        note(worker);
    }
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(16));
        worker.wake(&provider, queue("orders")).await;
        let wanted = |words: &[&str]| -> BTreeSet<String> {
            (0..MESSAGES).filter(|i| words.contains(&WORDS[i % WORDS.len()])).map(body).collect()
        };
        let dead = wanted(&["dead", "retry", "trap"]);
        until("all that must die is dead", || letters(&provider).len() == dead.len()).await;
        until("no message waits or is worked on", || {
            let standing = trigger(&provider).standing().now_or_never().unwrap().unwrap();
            (standing.waiting, standing.claimed) == (0, 0)
        })
        .await;
        note(&worker);
        let found: BTreeSet<_> = letters(&provider).iter().map(|letter| text(&letter.message)).collect();
        assert_eq!(found, dead);
        let handled = handled.lock().unwrap();
        assert_eq!(handled.keys().cloned().collect::<BTreeSet<_>>(), wanted(&["ok", "retry-twice", "trap-once"]));
        assert_eq!(*dropped.lock().unwrap(), wanted(&["drop"]));
        let twice = handled.values().filter(|times| **times > 1).count();
        assert!(twice <= 32, "only what was in flight at a death may come twice: {twice}");
    });
}

const CHILD_DIR: &str = "TRELLIS_TEST_QUEUE_DIR";

/// Not a test: the process that [`kill_9_loses_nothing_that_was_answered`] kills.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    process(async || {
        let (provider, worker) = (open(Path::new(&dir)), Worker::new(8));
        worker.wake(&provider, queue("orders")).await;
        for i in 0.. {
            let body = if i % 50 == 7 { format!("hang {i}") } else { format!("ok {i}") };
            provider.publish(message("orders", &body)).await.unwrap();
            // One write: a line that is cut by the kill is not there at all.
            std::io::stdout().write_all(format!("\npublished {body}\n").as_bytes()).unwrap();
        }
    });
}

#[test]
fn kill_9_loses_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "queue::child_that_is_killed", "--ignored", "--nocapture"])
        .env(CHILD_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut published = BTreeSet::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Ok(line) = line else { break };
        published.extend(line.strip_prefix("published ").map(str::to_owned));
        if published.len() == 300 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(published.len() >= 300, "the child published {}", published.len());
    process(async || {
        let (provider, worker) = (open(dir.path()), Worker::new(8));
        worker.wake(&provider, queue("orders")).await;
        let hung: Vec<_> = published.iter().filter(|body| body.starts_with("hang ")).collect();
        assert!(hung.len() >= 6);
        for body in hung {
            until(&format!("{body} is handled"), || worker.handled().contains_key(body)).await;
            assert_eq!(worker.attempts(body), [2], "it was worked on when the process died");
        }
        // A sentinel behind all others: when it is handled, they are.
        provider.publish(message("orders", "ok last")).await.unwrap();
        until("the last is handled", || worker.handled().contains_key("ok last")).await;
        assert!(letters(&provider).is_empty());
    });
}
