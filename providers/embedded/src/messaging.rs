//! Messages in memory: who is woken by a subject, and a bounded buffer in front of each.
//!
//! At most once: what is in a buffer is lost with the node, and what a component refuses or faults on is gone and
//! logged. A message is published whole or not at all: when the buffer of one link is full nobody gets it, so that the
//! publisher can try again without making duplicates.
//!
//! A link that names a queue group (`orders.*|billing`) shares its messages with the other links of that group: each
//! goes to one of them. Every other link gets each message that it matches, once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_provider::{LinkError, Permit, Permits, Want, foreign_word, now_ms};
use trellis_wire::{CallError, Config, Delivery, Error, Event, Failure, Link, LinkId, Message, Outcome, Reply, Settle};

use crate::subject::{self, Filter};

/// Messages that may wait in front of one link.
pub const BUFFER_MESSAGES_MAX: usize = 1_024;
/// Bytes that may wait in front of one link: 64 MiB.
pub const BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest message, headers included, in bytes: NATS's default, so that an app can move.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Requests that may await an answer at one time.
pub const INBOXES_MAX: usize = 10_000;
/// How long a link pauses when the node can run nothing just now; doubled while the same message is tried again.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often a message is run when our side is short of something, until it is gone and those behind it have their turn.
const TRIES_MAX: u32 = 6;
/// How long a removed link goes on with what waits.
const TAIL_MAX: Duration = Duration::from_secs(30);

/// Everything that is subscribed or awaited on this node. Dropping it ends every link.
#[derive(Default)]
pub(crate) struct Messaging {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    triggers: BTreeMap<LinkId, Arc<Trigger>>,
    inboxes: HashMap<String, oneshot::Sender<Message>>,
    /// Whose turn it is in every queue group.
    turn: usize,
}

impl Messaging {
    /// Begins to wake the link's component.
    pub(crate) fn wake(&self, link: Link, permits: Permits) -> Result<(), LinkError> {
        check_wake(&link)?;
        let trigger = Arc::new(Trigger::new(link.id.clone(), subscriptions(&link.config)?));
        trigger.tasks.spawn(trigger.clone().pull(permits));
        let replaced = self.state().triggers.insert(link.id, trigger);
        if let Some(replaced) = replaced {
            tokio::spawn(async move { replaced.work_off().await });
        }
        Ok(())
    }

    /// Ends a link: nothing new comes, what waits is run for at most [`TAIL_MAX`], and what runs is awaited.
    pub(crate) async fn remove(&self, link: &LinkId) {
        let removed = self.state().triggers.remove(link);
        if let Some(trigger) = removed {
            trigger.work_off().await;
        }
    }

    /// Takes no more messages, and returns when those that wait and those that run are done.
    pub(crate) async fn drain(&self) {
        let triggers: Vec<_> = self.state().triggers.values().cloned().collect();
        for trigger in &triggers {
            trigger.close();
        }
        for trigger in triggers {
            trigger.ended().await;
        }
    }

    /// How a wakes-link is.
    pub(crate) fn health(&self, link: &LinkId) -> Result<(), String> {
        let trigger = self.state().triggers.get(link).cloned();
        trigger.map_or_else(|| Err(format!("trellis://embedded does not hold the link {link}")), |t| t.health())
    }

    /// Publishes: gives the message to every link it wakes. Returns to how many.
    pub(crate) fn publish(&self, message: Message) -> Result<usize, CallError> {
        check(&message)?;
        if subject::is_inbox(&message.subject) {
            return self.answer(message).map(|()| 1);
        }
        let message = Message { attempt: 1, published_ms: Some(now_ms()), ..message };
        let mut state = self.state();
        let targets = state.targets(&message)?;
        // Only this function fills buffers, and it holds the state: there is still room in each.
        for target in &targets {
            target.push(message.clone());
        }
        Ok(targets.len())
    }

    /// Publishes and waits for the first answer.
    pub(crate) async fn request(&self, message: Message, timeout: Duration) -> Result<Message, CallError> {
        let (inbox, answer) = self.open_inbox()?;
        let subject = message.subject.clone();
        if self.publish(Message { reply_to: Some(inbox.subject.clone()), ..message })? == 0 {
            return Err(CallError::Unavailable(format!("no link is woken by `{subject}`, so nobody can answer")));
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(answer) => answer.map_err(|_| CallError::Unavailable("the provider is closing".into())),
            Err(_) => Err(CallError::TimedOut(format!("no answer to `{subject}` within {} ms", timeout.as_millis()))),
        }
    }

    /// Hands an answer to whoever waits for it; the first one wins.
    fn answer(&self, message: Message) -> Result<(), CallError> {
        let nobody = |subject: &str| CallError::NoSuch(format!("a request that waits on `{subject}`"));
        let waiting = self.state().inboxes.remove(&message.subject).ok_or_else(|| nobody(&message.subject))?;
        waiting.send(message).map_err(|message| nobody(&message.subject))
    }

    fn open_inbox(&self) -> Result<(Inbox<'_>, oneshot::Receiver<Message>), CallError> {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state();
        if state.inboxes.len() >= INBOXES_MAX {
            return Err(CallError::Unavailable(format!("{INBOXES_MAX} requests already await an answer on this node")));
        }
        let subject = subject::fresh_inbox();
        state.inboxes.insert(subject.clone(), sender);
        Ok((Inbox { messaging: self, subject }, answer))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Messaging {
    fn drop(&mut self) {
        for trigger in self.state().triggers.values() {
            trigger.stop.cancel();
        }
    }
}

impl State {
    /// The links that this message wakes, each of which has room for it.
    fn targets(&mut self, message: &Message) -> Result<Vec<Arc<Trigger>>, CallError> {
        let mut targets: Vec<Arc<Trigger>> = Vec::new();
        let mut groups: BTreeMap<&str, Vec<&Arc<Trigger>>> = BTreeMap::new();
        for trigger in self.triggers.values() {
            let matching = || trigger.subscriptions.iter().filter(|s| s.filter.matches(&message.subject));
            if matching().any(|subscription| subscription.group.is_none()) {
                trigger.check_room(message)?;
                targets.push(trigger.clone());
                continue;
            }
            for group in matching().filter_map(|subscription| subscription.group.as_deref()) {
                let members = groups.entry(group).or_default();
                if !members.last().is_some_and(|last| Arc::ptr_eq(last, trigger)) {
                    members.push(trigger);
                }
            }
        }
        for members in groups.into_values() {
            let chosen = choose(&members, self.turn, message)?;
            if !targets.iter().any(|target| Arc::ptr_eq(target, chosen)) {
                targets.push(chosen.clone());
            }
        }
        self.turn = self.turn.wrapping_add(1);
        Ok(targets)
    }
}

/// The member of a group whose turn it is, or the next one that has room.
fn choose<'a>(members: &[&'a Arc<Trigger>], turn: usize, message: &Message) -> Result<&'a Arc<Trigger>, CallError> {
    let mut full = None;
    for i in 0..members.len() {
        let member = members[turn.wrapping_add(i) % members.len()];
        match member.check_room(message) {
            Ok(()) => return Ok(member),
            Err(why) => full = Some(why),
        }
    }
    Err(full.expect("a group has at least one member"))
}

/// One awaited answer; closed when it is dropped, also when the sandbox that waits is aborted.
struct Inbox<'a> {
    messaging: &'a Messaging,
    subject: String,
}

impl Drop for Inbox<'_> {
    fn drop(&mut self) {
        self.messaging.state().inboxes.remove(&self.subject);
    }
}

/// One entry of `subscriptions`.
#[derive(Debug, PartialEq, Eq)]
struct Subscription {
    filter: Filter,
    group: Option<String>,
}

/// Whether a wakes-link is woken by a subject.
pub(crate) fn takes(config: &Config, subject: &str) -> bool {
    let subscribed = subscriptions(config);
    subscribed.is_ok_and(|all| all.iter().any(|subscription| subscription.filter.matches(subject)))
}

/// Whether a link says rightly which subjects wake its component.
pub(crate) fn check_wake(link: &Link) -> Result<(), LinkError> {
    if link.delivery != Delivery::default() {
        return Err(LinkError::Unsupported(
            "`delivery`: a subject of trellis://embedded lives in memory and delivers once; write `queue: NAME` in the \
             source config, which keeps messages and takes the same subjects, or take `delivery` out"
                .into(),
        ));
    }
    subscriptions(&link.config).map(drop)
}

/// Reads what a wakes-link subscribes to: `subject`, or the list `subscriptions`.
fn subscriptions(config: &Config) -> Result<Vec<Subscription>, LinkError> {
    let (key, list) = match (config.get("subject"), config.get("subscriptions")) {
        (Some(subject), None) => ("subject", subject),
        (None, Some(list)) => ("subscriptions", list),
        (Some(_), Some(_)) => {
            return Err(LinkError::config("subject", "stands beside `subscriptions`; keep one of the two"));
        }
        (None, None) => {
            let problem = "is missing; write the subject that wakes the component, such as `subject: orders.placed`";
            return Err(foreign_word(config, "queue").unwrap_or_else(|| LinkError::config("subject", problem)));
        }
    };
    list.split(',').map(|entry| subscription(entry).map_err(|why| LinkError::config(key, why))).collect()
}

/// Reads `orders.*` or `orders.*|billing`.
fn subscription(entry: &str) -> Result<Subscription, String> {
    let (filter, group) = match entry.split_once('|') {
        None => (entry, None),
        Some((filter, group)) if !group.trim().is_empty() => (filter, Some(group.trim().to_owned())),
        Some(_) => return Err(format!("`{}` names no queue group after `|`", entry.trim())),
    };
    Ok(Subscription { filter: Filter::parse(filter.trim())?, group })
}

/// A wakes-link: what it subscribes to, and what waits in front of it.
struct Trigger {
    link: LinkId,
    subscriptions: Vec<Subscription>,
    buffer: Mutex<Buffer>,
    /// The buffer changed: something to take, or nothing to come any more.
    changed: Notify,
    /// Cancelled when a removed link's time is up: nothing more is taken.
    stop: CancellationToken,
    /// The pull loop and the runs.
    tasks: TaskTracker,
}

#[derive(Default)]
struct Buffer {
    messages: VecDeque<Waiting>,
    bytes: usize,
    /// Messages that are gone because our side was short of something at every try.
    dropped: u64,
    /// Runs under way; each may still give its message back.
    running: usize,
    /// No more messages are accepted.
    closed: bool,
    /// The pull loop is over: nobody takes what is given back.
    ended: bool,
    /// When to go on after the node was short of something.
    paused_until: Option<Instant>,
    /// What is not well, for people.
    problem: Option<String>,
}

/// A message that waits, and how often it has been run.
struct Waiting {
    message: Message,
    tries: u32,
}

/// What the pull loop does next.
enum Next {
    Acquire,
    WaitUntil(Option<Instant>),
    End,
}

impl Trigger {
    fn new(link: LinkId, subscriptions: Vec<Subscription>) -> Self {
        Self {
            link,
            subscriptions,
            buffer: Mutex::default(),
            changed: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// The loop of the link. A message waits first and the permit is acquired after, so that an idle link holds none;
    /// the message is taken only with the permit in hand.
    async fn pull(self: Arc<Self>, permits: Permits) {
        while let Some(permit) = self.next_permit(&permits).await {
            if let Some(waiting) = self.take() {
                self.tasks.spawn(self.clone().run(permit, waiting));
            }
        }
        let lost = {
            let mut buffer = self.buffer();
            (buffer.closed, buffer.ended) = (true, true);
            std::mem::take(&mut buffer.messages).len()
        };
        if lost > 0 {
            tracing::warn!(link = %self.link, lost, "what still waited is gone: embedded subjects live in memory");
        }
    }

    /// Waits until there is a message and a permit for it; `None` when the link ends.
    async fn next_permit(&self, permits: &Permits) -> Option<Permit> {
        loop {
            match self.next() {
                Next::End => return None,
                Next::WaitUntil(when) => self.wait(when).await,
                Next::Acquire => {
                    let acquired = tokio::select! {
                        () = self.stop.cancelled() => return None,
                        acquired = permits.acquire(Want::Pull) => acquired,
                    };
                    match acquired {
                        // While this waited, a run may have found the node short: then the permit goes back.
                        Ok(permit) if matches!(self.next(), Next::Acquire) => return Some(permit),
                        Ok(_unused) => {}
                        Err(Error::ShuttingDown) => return None,
                        // An ended link waits for what is short, but not for a component that is gone.
                        Err(why) if self.buffer().closed && !matches!(why, Error::Busy(_)) => return None,
                        Err(why) => self.pause(&why, PAUSE),
                    }
                }
            }
        }
    }

    fn next(&self) -> Next {
        let mut buffer = self.buffer();
        if self.stop.is_cancelled() || (buffer.closed && buffer.messages.is_empty() && buffer.running == 0) {
            return Next::End;
        }
        if let Some(until) = buffer.paused_until.filter(|until| *until > Instant::now()) {
            return Next::WaitUntil(Some(until));
        }
        buffer.paused_until = None;
        if buffer.messages.is_empty() { Next::WaitUntil(None) } else { Next::Acquire }
    }

    async fn wait(&self, until: Option<Instant>) {
        let pause = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => self.changed.notified().await,
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = pause => {}
        }
    }

    /// Runs one message in one sandbox.
    async fn run(self: Arc<Self>, permit: Permit, waiting: Waiting) {
        let Waiting { message, tries } = waiting;
        match permit.run(Event::Message(message.clone())).await {
            // Our shortage, not the component's doing: it was not run.
            Err(Failure::Error(why)) if why.is_retryable() => self.give_back(message, tries + 1, why),
            outcome => {
                self.buffer().problem = None;
                report(&self.link, &message, outcome);
            }
        }
        self.buffer().running -= 1;
        self.changed.notify_one();
    }

    /// Puts a message that was not run before all others, unless the link has ended meanwhile or it was tried enough.
    fn give_back(&self, message: Message, tries: u32, why: Error) {
        self.pause(&why, PAUSE.saturating_mul(1 << (tries - 1).min(8)).min(PAUSE_MAX));
        let mut buffer = self.buffer();
        if buffer.ended || tries >= TRIES_MAX {
            buffer.dropped += 1;
            let dropped = buffer.dropped;
            drop(buffer);
            tracing::warn!(link = %self.link, tries, dropped, "a message is given up: the node could not run it");
            return report(&self.link, &message, Err(why.into()));
        }
        buffer.bytes += size(&message);
        buffer.messages.push_front(Waiting { message, tries });
    }

    /// Takes the oldest message, whose run begins now.
    fn take(&self) -> Option<Waiting> {
        let mut buffer = self.buffer();
        let waiting = buffer.messages.pop_front()?;
        buffer.bytes -= size(&waiting.message);
        buffer.running += 1;
        Some(waiting)
    }

    fn check_room(&self, message: &Message) -> Result<(), CallError> {
        let buffer = self.buffer();
        if buffer.closed {
            return Err(CallError::Unavailable(format!("{} is closing", self.link)));
        }
        if buffer.messages.len() < BUFFER_MESSAGES_MAX && buffer.bytes + size(message) <= BUFFER_BYTES_MAX {
            return Ok(());
        }
        Err(CallError::Unavailable(format!(
            "the buffer of {} is full: {} messages, {} bytes wait; nothing was published, try again later",
            self.link,
            buffer.messages.len(),
            buffer.bytes
        )))
    }

    fn push(&self, message: Message) {
        let mut buffer = self.buffer();
        buffer.bytes += size(&message);
        buffer.messages.push_back(Waiting { message, tries: 0 });
        drop(buffer);
        self.changed.notify_one();
    }

    fn pause(&self, why: &Error, pause: Duration) {
        let mut buffer = self.buffer();
        buffer.paused_until = Some(Instant::now() + pause);
        buffer.problem = Some(why.to_string());
    }

    fn close(&self) {
        self.buffer().closed = true;
        self.changed.notify_one();
    }

    /// Takes no more messages, and returns when those that wait and those that run are done, or the time is up.
    async fn work_off(&self) {
        self.close();
        if tokio::time::timeout(TAIL_MAX, self.ended()).await.is_err() {
            self.stop.cancel();
            self.ended().await;
        }
    }

    async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn health(&self) -> Result<(), String> {
        let buffer = self.buffer();
        let (waiting, dropped) = (buffer.messages.len(), buffer.dropped);
        let Some(problem) = &buffer.problem else { return Ok(()) };
        Err(format!("{problem}; {waiting} messages wait, {dropped} were given up so far"))
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settles a message whose run has ended. There is nothing to give it back to, so whatever is not ok is only said.
fn report(link: &LinkId, message: &Message, outcome: Outcome) {
    let why = match outcome {
        Ok(Reply::Settle(Settle::Ack)) => return,
        Ok(Reply::Settle(Settle::Retry { reason, .. })) => format!("the component asked for another try: {reason}"),
        Ok(Reply::Settle(Settle::DeadLetter(reason))) => format!("the component gave up on it: {reason}"),
        Ok(Reply::Settle(Settle::Drop(reason))) => {
            tracing::info!(%link, subject = message.subject, "the component dropped a message: {reason}");
            return;
        }
        Ok(_) => "the component gave an answer that settles nothing".into(),
        Err(failure) => failure.to_string(),
    };
    tracing::warn!(%link, subject = message.subject, "a message is gone, since embedded subjects deliver once: {why}");
}

/// Whether a message can be published at all.
pub(crate) fn check(message: &Message) -> Result<(), CallError> {
    check_size(message)?;
    if subject::is_inbox(&message.subject) { Ok(()) } else { subject::check_publish(&message.subject) }
}

fn check_size(message: &Message) -> Result<(), CallError> {
    let bytes = size(message);
    if bytes <= MESSAGE_BYTES_MAX {
        return Ok(());
    }
    Err(CallError::Invalid(format!(
        "a message of {bytes} bytes is too large; at most {MESSAGE_BYTES_MAX} are taken: store it and publish its key"
    )))
}

fn size(message: &Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    message.subject.len() + message.body.len() + message.reply_to.as_ref().map_or(0, String::len) + headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_subscribes_to_is_read_as_wadm_writes_it() {
        let read = |key: &str, text: &str| subscriptions(&Config::from_iter([(key, text)]));
        let subscription = |filter: &str, group: Option<&str>| Subscription {
            filter: Filter::parse(filter).unwrap(),
            group: group.map(str::to_owned),
        };
        assert_eq!(read("subject", "orders.placed"), Ok(vec![subscription("orders.placed", None)]));
        assert_eq!(
            read("subscriptions", "orders.> , returns.*|billing"),
            Ok(vec![subscription("orders.>", None), subscription("returns.*", Some("billing"))])
        );
    }

    #[test]
    fn a_wrong_subscription_names_the_key_and_what_to_write() {
        let why =
            |pairs: &[(&str, &str)]| subscriptions(&Config::from_iter(pairs.iter().copied())).unwrap_err().to_string();
        assert!(why(&[]).contains("`subject: orders.placed`"));
        assert!(why(&[("subject", "a"), ("subscriptions", "b")]).contains("keep one"));
        assert!(why(&[("subscriptions", "a|")]).contains("names no queue group"));
        assert!(why(&[("subscriptions", "a,,b")]).contains("config `subscriptions`"));
        assert!(why(&[("subject", "$JS.API.>")]).contains("reserved"));
    }
}
