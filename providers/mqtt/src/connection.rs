//! A link's connection to its server: driven by a task of its own, made anew whenever it breaks. That the server is away is
//! a state that `health` shows, not an error.
//!
//! Each connection has a client of its own, so that nothing of a broken one is left in the next: the server gives again
//! what was not acknowledged, and a publisher hears that its message may be lost.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::{LinkError, explained};
use trellis_wire::{CallError, Message};

use crate::client::{self, Arrived, Begins, Client, Heard};
use crate::config::{Options, PACKET_BYTES_MAX, Qos, Session, Settings};

/// What waits to be asked of a connection.
const ASKS_MAX: usize = 256;
/// How long the server may take for what it is asked.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The pauses between two attempts to connect. After a connection that lasted longer than the longest, the shortest is next.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How long the server may be held up by a full buffer: less than it waits for a sign of life.
const ROOM_MAX: Duration = Duration::from_secs(2);

/// What a connection listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) topic: String,
    pub(crate) qos: Qos,
    /// Whether the session has it from before, or else is to go without.
    pub(crate) is_former: bool,
}

/// A connection that is kept.
pub(crate) struct Connection {
    shown: String,
    asks: mpsc::Sender<Ask>,
    state: watch::Receiver<Result<(), String>>,
    _driver: AbortOnDropHandle<()>,
}

/// What is asked of a connection.
enum Ask {
    Publish(Box<Message>, Qos, Answer),
    Unsubscribe(Answer),
    Close(Answer),
}

/// Who waits for what the server says.
type Answer = oneshot::Sender<Result<(), String>>;

impl Connection {
    /// Begins to connect. Messages of the subscription go to `inbox`.
    pub(crate) fn open(
        settings: &Settings,
        session: &Session,
        subscription: Option<Subscription>,
        inbox: mpsc::Sender<Arrived>,
    ) -> Result<Self, LinkError> {
        let (options, shown) = (settings.options(session)?, settings.shown());
        let (state, watched) = watch::channel(Err(format!("not connected to {shown}: connecting")));
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let driver = Driver { options, shown: shown.clone(), state, subscription, inbox, begins: None, lost: 0 };
        Ok(Self { shown, asks, state: watched, _driver: AbortOnDropHandle::new(tokio::spawn(driver.run(asked))) })
    }

    /// `not connected to URL: reason`, unless it is.
    pub(crate) fn health(&self) -> Result<(), String> {
        self.state.borrow().clone()
    }

    /// Publishes, and returns when the server has the message, or was sent it where it says nothing to it.
    pub(crate) async fn publish(&self, message: Message, qos: Qos) -> Result<(), CallError> {
        self.health().map_err(CallError::Unavailable)?;
        let published = self.ask(|answer| Ask::Publish(Box::new(message), qos, answer)).await;
        published.map_err(|why| CallError::Unavailable(format!("{}: {why}", self.shown)))
    }

    /// Gives the subscription up for good.
    pub(crate) async fn unsubscribe(&self) -> Result<(), String> {
        self.ask(Ask::Unsubscribe).await
    }

    /// Ends the connection once what was acknowledged is on its way. The server is not waited for longer than it may take
    /// for anything.
    pub(crate) async fn close(&self) {
        if let Err(why) = self.ask(Ask::Close).await {
            tracing::debug!(server = self.shown, why, "a connection ended without a farewell");
        }
    }

    async fn ask(&self, ask: impl FnOnce(Answer) -> Ask) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.asks.send(ask(answer)).await.map_err(|_| "the connection has ended".to_owned())?;
            answered.await.unwrap_or_else(|_| Err("the connection broke before the server answered".into()))
        };
        timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_MAX:?}")))
    }
}

/// Works off what comes from the server.
struct Driver {
    options: Options,
    shown: String,
    state: watch::Sender<Result<(), String>>,
    subscription: Option<Subscription>,
    inbox: mpsc::Sender<Arrived>,
    /// What began of which nothing has come yet.
    begins: Option<Begins>,
    lost: u64,
}

/// What belongs to one connection.
struct Line {
    client: Client,
    is_up: bool,
    /// Publishes that are handed to the client and not sent yet, in their order.
    handed: VecDeque<Answer>,
    /// Those that the server is to answer, by their numbers.
    sent: HashMap<u16, Answer>,
    unsubscribes: Option<Answer>,
    closes: Option<Answer>,
}

impl Driver {
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let mut pause = PAUSE_MIN;
        loop {
            let began = Instant::now();
            let Err(why) = self.connection(&mut asks).await else { return };
            self.set(Err(format!("not connected to {}: {why}", self.shown)));
            if began.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            self.until_empty().await;
        }
    }

    /// Waits until what came by the last connection is stored: until then the server would give it once more.
    async fn until_empty(&self) {
        let is_kept = self.subscription.as_ref().is_some_and(|subscription| subscription.qos == Qos::AtLeastOnce);
        while is_kept && !self.inbox.is_closed() && self.inbox.capacity() < self.inbox.max_capacity() {
            sleep(PAUSE_MIN).await;
        }
    }

    /// One connection: until it was asked to end, or breaks, which is the error.
    async fn connection(&mut self, asks: &mut mpsc::Receiver<Ask>) -> Result<(), String> {
        let (client, mut events) = client::open(&self.options);
        let mut line = Line::new(client);
        loop {
            let client = line.client.clone();
            let mut polled = pin!(events.poll(&client));
            // It is polled to its end whatever is asked meanwhile: half a packet may be on its way.
            let heard = loop {
                tokio::select! {
                    heard = &mut polled => break heard,
                    ask = asks.recv() => match ask {
                        Some(ask) => self.asked(ask, &mut line),
                        None => return Ok(()),
                    },
                }
            };
            match heard {
                Ok(Heard::Ends) => break,
                // It was about to be ended.
                Err(_) if line.closes.is_some() => break,
                Ok(heard) => self.on(heard, &mut line).await?,
                Err(why) if line.is_up => return Err(why),
                Err(why) => return Err(told(&why, &self.options)),
            }
        }
        line.closed();
        Ok(())
    }

    fn asked(&mut self, ask: Ask, line: &mut Line) {
        let topic = self.subscription.as_ref().map(|subscription| subscription.topic.as_str());
        match ask {
            // Who asked may have given up waiting, and been told so.
            Ask::Publish(_, _, answer) if answer.is_closed() => {}
            Ask::Publish(message, qos, answer) => line.publish(*message, qos, answer),
            Ask::Unsubscribe(answer) => line.unsubscribe(topic, answer),
            Ask::Close(answer) => line.begin_close(answer),
        }
    }

    async fn on(&mut self, heard: Heard, line: &mut Line) -> Result<(), String> {
        match heard {
            Heard::Connected(begins) => {
                line.is_up = true;
                if self.begins != Some(Begins::Session) {
                    self.begins = Some(begins);
                }
                match &self.subscription {
                    None | Some(Subscription { is_former: true, .. }) => self.set(Ok(())),
                    Some(Subscription { topic, qos, .. }) => line.client.subscribe(topic, *qos)?,
                }
            }
            Heard::Subscribed(said) => self.subscribed(said),
            Heard::Unsubscribed => {
                self.subscription = None;
                if let Some(answer) = line.unsubscribes.take() {
                    tell(answer, Ok(()));
                }
            }
            Heard::Message(arrived) => self.keep(arrived).await?,
            Heard::Sent(number) => line.sent(number),
            Heard::Answered(number, said) => {
                if let Some(answer) = line.sent.remove(&number) {
                    tell(answer, said);
                }
            }
            Heard::Ends | Heard::Other => {}
        }
        Ok(())
    }

    fn subscribed(&self, said: Result<Qos, String>) {
        let Some(Subscription { topic, qos, .. }) = &self.subscription else { return };
        let refused = match said {
            Ok(given) if given == *qos => return self.set(Ok(())),
            Ok(_) => "it delivers at most once: write `qos: \"0\"` if that will do".into(),
            Err(why) => why,
        };
        self.set(Err(format!("{} refuses the subscription to `{topic}`: {refused}", self.shown)));
    }

    /// Takes a message, but one that is too large, and one that was left on its topic before, which says nothing new.
    async fn keep(&mut self, arrived: Arrived) -> Result<(), String> {
        let bytes = arrived.message.body.len();
        if bytes > PACKET_BYTES_MAX as usize {
            let (server, topic) = (&self.shown, &arrived.message.subject);
            tracing::error!(server, topic, bytes, "a message of more than {PACKET_BYTES_MAX} bytes is put aside");
        } else if !arrived.is_left {
            return self.put(arrived).await;
        }
        tokio::spawn(arrived.acknowledge());
        Ok(())
    }

    /// Puts a message into the buffer. One that finds no room is lost, unless the server keeps it until it is acknowledged:
    /// then there is a wait, in which the server can send no more (mosquitto 2.0 sends more than it was told it may), and
    /// in the end a new connection, on which the server gives it again: the error.
    async fn put(&mut self, mut arrived: Arrived) -> Result<(), String> {
        arrived.begins = self.begins;
        let is_put = match self.inbox.try_send(arrived) {
            Err(mpsc::error::TrySendError::Full(arrived)) if arrived.is_kept() => {
                let put = timeout(ROOM_MAX, self.inbox.send(arrived)).await;
                let too_fast = "messages came faster than they could be stored; the server gives them again";
                put.ok().and_then(Result::ok).ok_or(too_fast)?;
                true
            }
            put => put.is_ok(),
        };
        if is_put {
            self.begins = None;
            return Ok(());
        }
        self.lost += 1;
        if self.lost.is_power_of_two() {
            let (server, lost) = (&self.shown, self.lost);
            tracing::warn!(server, lost, "messages were lost: they came faster than they were handled");
        }
        Ok(())
    }

    fn set(&self, state: Result<(), String>) {
        let changed = self.state.send_if_modified(|before| {
            let changed = *before != state;
            before.clone_from(&state);
            changed
        });
        match state {
            Err(why) if changed => tracing::warn!("{why}"),
            _ => {}
        }
    }
}

impl Line {
    fn new(client: Client) -> Self {
        let (handed, sent, unsubscribes, closes) = Default::default();
        Self { client, is_up: false, handed, sent, unsubscribes, closes }
    }

    fn publish(&mut self, message: Message, qos: Qos, answer: Answer) {
        let handed = if self.is_up { self.client.publish(message, qos) } else { Err("not connected".into()) };
        match handed {
            Ok(()) => self.handed.push_back(answer),
            Err(why) => tell(answer, Err(why)),
        }
    }

    fn sent(&mut self, number: u16) {
        let Some(answer) = self.handed.pop_front() else { return };
        if number == 0 {
            return tell(answer, Ok(()));
        }
        self.sent.insert(number, answer);
    }

    fn unsubscribe(&mut self, topic: Option<&str>, answer: Answer) {
        match topic {
            None => tell(answer, Ok(())),
            Some(_) if !self.is_up => tell(answer, Err("not connected".into())),
            Some(topic) => match self.client.unsubscribe(topic) {
                Ok(()) => self.unsubscribes = Some(answer),
                Err(why) => tell(answer, Err(why)),
            },
        }
    }

    fn begin_close(&mut self, answer: Answer) {
        if !self.is_up || self.client.disconnect().is_err() {
            return tell(answer, Err("not connected".into()));
        }
        self.closes = Some(answer);
    }

    fn closed(self) {
        if let Some(answer) = self.closes {
            tell(answer, Ok(()));
        }
    }
}

/// Who asked may have given up waiting.
fn tell(answer: Answer, said: Result<(), String>) {
    drop(answer.send(said));
}

/// What the library says of a server that let nobody in, with the fix where there is one.
fn told(why: &str, options: &Options) -> String {
    if why.contains("BadUserNamePassword") || why.contains("NotAuthorized") {
        return format!("the login is refused: check `user` and `password` of the link ({why})");
    }
    let is_closed = why.contains("closed by peer") || why.contains("ProtocolVersion");
    if is_closed && matches!(options, Options::V5(_)) {
        return format!("{why}; if it speaks MQTT 3.1.1 only, write `protocol: \"3.1.1\"` in the link's config");
    }
    if why == "Timeout" || why == "Network timeout" {
        return "no answer within 5s".into();
    }
    explained(why).into_owned()
}
