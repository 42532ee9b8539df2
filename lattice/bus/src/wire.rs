//! What connects the ends of [`Memory`]: who listens to what, who can reach whom, and what is still under way.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trellis_wire::pattern;

use crate::faults::Dice;
use crate::{Connection, Delivered, Faults, Memory, SUBSCRIPTION_MESSAGES_MAX};

/// The longest message, as on a NATS server with its default `max_payload`.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// How the subject of an answer begins.
const INBOX: &str = "_INBOX";

/// Connects the [`Memory`] ends of several nodes in one process, and makes go wrong what the test asks for.
#[derive(Debug, Clone)]
pub struct Wire {
    shared: Arc<Mutex<State>>,
    woken: Arc<Notify>,
}

impl Default for Wire {
    fn default() -> Self {
        Self::new(Faults::default())
    }
}

impl Wire {
    /// A wire without ends.
    pub fn new(faults: Faults) -> Self {
        let state = State { faults, ..State::default() };
        Self { shared: Arc::new(Mutex::new(state)), woken: Arc::new(Notify::new()) }
    }

    /// The end of that name. Asking again gives the same end: a node that restarts comes back to its place.
    pub fn end(&self, name: &str) -> Memory {
        let mut state = self.lock();
        let end = state.ends.iter().position(|end| end.name == name).unwrap_or_else(|| {
            state.ends.push(End::new(name));
            state.ends.len() - 1
        });
        Memory::new(self.clone(), end)
    }

    /// Changes what goes wrong from now on; the dice begin again at the new seed.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.lock();
        state.faults = faults;
        state.dice.clear();
    }

    /// Shows every message from now on to `tap`, when it is sent and once for each who listens. The wire is locked
    /// meanwhile: `tap` must not use it.
    pub fn tap(&self, tap: impl FnMut(&Passing<'_>) + Send + 'static) {
        self.lock().tap = Some(Tap(Box::new(tap)));
    }

    /// Splits the wire: only ends of one group reach each other. Ends that no group names are one more group. Each
    /// end still takes itself for connected, as a node does whose own NATS server is up.
    pub fn partition(&self, groups: &[&[&str]]) {
        let mut state = self.lock();
        for end in &mut state.ends {
            end.group = groups.iter().position(|group| group.contains(&end.name.as_str()));
        }
    }

    /// Ends every partition. What was under way across one is lost.
    pub fn heal(&self) {
        self.partition(&[]);
    }

    /// Takes an end off the wire, as when its own NATS server is gone: it is told, and its calls fail.
    pub fn cut(&self, name: &str) {
        self.connect(name, Connection::Disconnected { reason: format!("`{name}` was cut off the wire") });
    }

    /// Puts an end back on the wire. Its subscriptions still stand.
    pub fn mend(&self, name: &str) {
        self.connect(name, connected());
    }

    fn connect(&self, name: &str, connection: Connection) {
        let mut state = self.lock();
        let Some(at) = state.ends.iter().position(|end| end.name == name) else { return };
        let is_connected = connection.is_connected();
        state.ends[at].connection.send_replace(connection);
        if !is_connected {
            state.break_off(at);
        }
    }

    /// Sends a message to all that listen, and returns how many do.
    pub(crate) fn send(&self, from: usize, message: Delivered) -> usize {
        let mut state = self.lock();
        let listeners = state.receivers(from, &message.subject);
        for listener in &listeners {
            state.dispatch(from, *listener, &message);
        }
        if state.parcels.is_empty() {
            return listeners.len();
        }
        if state.courier.as_ref().is_none_or(JoinHandle::is_finished) {
            state.courier = Some(tokio::spawn(carry(Arc::downgrade(&self.shared), self.woken.clone())));
        }
        self.woken.notify_one();
        listeners.len()
    }

    pub(crate) fn listen(&self, end: usize, pattern: &str, group: Option<&str>) -> Listener {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_MESSAGES_MAX);
        let mut state = self.lock();
        state.sequence += 1;
        let id = state.sequence;
        let listening = Listening { pattern: pattern.into(), end, group: group.map(Into::into), sender };
        state.index(pattern).push(id);
        state.listening.insert(id, listening);
        Listener { receiver, id, wire: Arc::downgrade(&self.shared) }
    }

    /// A subject for one answer, which no other request has.
    pub(crate) fn inbox(&self, end: usize) -> String {
        let mut state = self.lock();
        state.sequence += 1;
        format!("{INBOX}.{end}.{}", state.sequence)
    }

    pub(crate) fn connection(&self, end: usize) -> watch::Receiver<Connection> {
        self.lock().ends[end].connection.subscribe()
    }

    pub(crate) fn overflowed(&self, end: usize) -> u64 {
        self.lock().ends[end].overflowed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

impl Drop for Wire {
    /// Wakes the courier, which ends when it finds the wire gone.
    fn drop(&mut self) {
        self.woken.notify_one();
    }
}

/// A message on its way from one end to another.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Who sent it.
    pub from: &'a str,
    /// Who is to get it.
    pub to: &'a str,
    /// What it is.
    pub message: &'a Delivered,
    /// How long each copy is under way: none if it is lost, two if it is doubled.
    pub delays: &'a [Duration],
}

struct Tap(Box<dyn FnMut(&Passing<'_>) + Send>);

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// A subscription's receiving half. Dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: mpsc::Receiver<Delivered>,
    id: u64,
    wire: Weak<Mutex<State>>,
}

impl Listener {
    pub(crate) async fn next(&mut self) -> Option<Delivered> {
        self.receiver.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(shared) = self.wire.upgrade() {
            lock(&shared).forget(self.id);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    faults: Faults,
    ends: Vec<End>,
    listening: BTreeMap<u64, Listening>,
    /// Who listens to exactly this subject: most do, and so a message finds them without looking at everyone.
    literal: HashMap<String, Vec<u64>>,
    /// Who listens to a pattern with wildcards.
    wild: Vec<u64>,
    dice: HashMap<(usize, usize), Dice>,
    tap: Option<Tap>,
    /// What is under way, by when it arrives and in which order it was sent.
    parcels: BTreeMap<(Instant, u64), Parcel>,
    courier: Option<JoinHandle<()>>,
    sequence: u64,
}

#[derive(Debug)]
struct End {
    name: String,
    group: Option<usize>,
    connection: watch::Sender<Connection>,
    overflowed: u64,
}

impl End {
    fn new(name: &str) -> Self {
        Self { name: name.into(), group: None, connection: watch::Sender::new(connected()), overflowed: 0 }
    }
}

#[derive(Debug)]
struct Listening {
    pattern: String,
    end: usize,
    group: Option<String>,
    sender: mpsc::Sender<Delivered>,
}

#[derive(Debug)]
struct Parcel {
    from: usize,
    to: u64,
    message: Delivered,
}

impl State {
    /// Who gets a message: everyone who listens for himself, and one of each queue group.
    fn receivers(&mut self, from: usize, subject: &str) -> Vec<u64> {
        let literal = self.literal.get(subject).into_iter().flatten();
        let wild = self.wild.iter().filter(|id| pattern::covers(&self.listening[id].pattern, subject));
        let mut receivers = Vec::new();
        let mut groups: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for id in literal.chain(wild) {
            let listening = &self.listening[id];
            match &listening.group {
                _ if !self.reaches(from, listening.end) => {}
                None => receivers.push(*id),
                Some(group) => groups.entry(group).or_default().push(*id),
            }
        }
        for members in groups.into_values() {
            let dice = self.dice.entry((from, from)).or_insert_with(|| {
                let name = &self.ends[from].name;
                self.faults.dice(name, name)
            });
            receivers.push(members[dice.one_of(members.len())]);
        }
        receivers
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        let (from, to) = (&self.ends[from], &self.ends[to]);
        from.group == to.group && from.connection.borrow().is_connected() && to.connection.borrow().is_connected()
    }

    /// Hands a message over or puts it under way. What an end says to itself does not cross the wire.
    fn dispatch(&mut self, from: usize, to: u64, message: &Delivered) {
        let end = self.listening[&to].end;
        if from == end || self.faults.is_perfect() {
            self.show(from, end, message, &[Duration::ZERO]);
            return self.arrive(to, message.clone());
        }
        let dice = self
            .dice
            .entry((from, end))
            .or_insert_with(|| self.faults.dice(&self.ends[from].name, &self.ends[end].name));
        let delays = dice.fate(&self.faults);
        for delay in &delays {
            let due = dice.last.map_or(Instant::now() + *delay, |last| last.max(Instant::now() + *delay));
            dice.last = Some(due);
            self.sequence += 1;
            self.parcels.insert((due, self.sequence), Parcel { from, to, message: message.clone() });
        }
        self.show(from, end, message, &delays);
    }

    fn show(&mut self, from: usize, to: usize, message: &Delivered, delays: &[Duration]) {
        if let Some(Tap(tap)) = &mut self.tap {
            tap(&Passing { from: &self.ends[from].name, to: &self.ends[to].name, message, delays });
        }
    }

    /// Hands over what is due, and returns when the next is.
    fn deliver_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(parcel) = self.parcels.first_entry().filter(|next| next.key().0 <= now) {
            let Parcel { from, to, message } = parcel.remove();
            if self.listening.get(&to).is_some_and(|listening| self.reaches(from, listening.end)) {
                self.arrive(to, message);
            }
        }
        self.parcels.first_key_value().map(|((due, _), _)| *due)
    }

    fn arrive(&mut self, to: u64, message: Delivered) {
        let listening = &self.listening[&to];
        if let Err(mpsc::error::TrySendError::Full(_)) = listening.sender.try_send(message) {
            let end = &mut self.ends[listening.end];
            end.overflowed += 1;
            if end.overflowed.is_power_of_two() {
                let (subject, overflowed) = (&listening.pattern, end.overflowed);
                tracing::warn!(%subject, overflowed, "a subscription is full: its newest messages are dropped");
            }
        }
    }

    /// Ends what waits for an answer at an end that is cut off, in the order in which it asked. Those who watch the
    /// connection are woken in any order, and a simulation would not go the same way twice.
    fn break_off(&mut self, end: usize) {
        let waiting = self.listening.iter().filter(|(_, one)| one.end == end && one.pattern.starts_with(INBOX));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.forget(id);
        }
    }

    fn index(&mut self, pattern: &str) -> &mut Vec<u64> {
        if pattern::is_wild(pattern) { &mut self.wild } else { self.literal.entry(pattern.into()).or_default() }
    }

    fn forget(&mut self, id: u64) {
        let Some(Listening { pattern, .. }) = self.listening.remove(&id) else { return };
        let index = self.index(&pattern);
        index.retain(|listening| *listening != id);
        if index.is_empty() {
            self.literal.remove(&pattern);
        }
    }
}

/// Hands over what is under way when it is due. One task per wire, so that what is due at the same instant arrives in
/// the order in which it was sent, every time.
async fn carry(shared: Weak<Mutex<State>>, woken: Arc<Notify>) {
    loop {
        let next = match shared.upgrade() {
            Some(shared) => lock(&shared).deliver_due(Instant::now()),
            None => return,
        };
        match next {
            Some(due) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => {}
                () = woken.notified() => {}
            },
            None => woken.notified().await,
        }
    }
}

fn connected() -> Connection {
    Connection::Connected { server: env!("CARGO_PKG_VERSION").into() }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().expect("nothing panics while it holds the wire")
}
