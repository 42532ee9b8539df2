//! A link's connection to its server: driven by a task of its own, made anew whenever it breaks. That the server is away is
//! a state that `health` shows, not an error.

use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use trellis_provider::LinkError;

use crate::config::Settings;

/// Requests to the client that wait for the connection.
const REQUESTS_MAX: usize = 256;
/// The pauses between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// A connection that is kept.
pub(crate) struct Connection {
    pub(crate) client: AsyncClient,
    state: watch::Receiver<Result<(), String>>,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Begins to connect. Messages of `topic` go to `inbox`.
    pub(crate) fn open(
        settings: &Settings,
        topic: Option<String>,
        inbox: mpsc::Sender<Publish>,
    ) -> Result<Self, LinkError> {
        let (client, events) = AsyncClient::new(settings.options()?, REQUESTS_MAX);
        let shown = settings.shown();
        let (state, watched) = watch::channel(Err(format!("not connected to {shown}: connecting")));
        let driver = Driver { client: client.clone(), shown, state, topic, inbox, lost: 0 };
        Ok(Self { client, state: watched, _driver: AbortOnDropHandle::new(tokio::spawn(driver.run(events))) })
    }

    /// `not connected to URL: reason`, unless it is.
    pub(crate) fn health(&self) -> Result<(), String> {
        self.state.borrow().clone()
    }
}

/// Works off what comes from the server.
struct Driver {
    client: AsyncClient,
    shown: String,
    state: watch::Sender<Result<(), String>>,
    topic: Option<String>,
    inbox: mpsc::Sender<Publish>,
    lost: u64,
}

impl Driver {
    async fn run(mut self, mut events: EventLoop) {
        let mut pause = PAUSE_MIN;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(packet)) => {
                    pause = PAUSE_MIN;
                    self.on(packet);
                }
                Ok(Event::Outgoing(_)) => {}
                Err(why) => {
                    self.set(Err(format!("not connected to {}: {}", self.shown, told(&why.to_string()))));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    fn on(&mut self, packet: Packet) {
        match packet {
            Packet::ConnAck(_) => match self.topic.clone() {
                None => self.set(Ok(())),
                Some(topic) => {
                    if let Err(why) = self.client.try_subscribe(topic.clone(), QoS::AtMostOnce) {
                        self.set(Err(format!("{}: cannot subscribe to `{topic}`: {why}", self.shown)));
                    }
                }
            },
            Packet::SubAck(answer) => {
                let refused = answer.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                let topic = self.topic.as_deref().unwrap_or_default();
                self.set(refused.map_or(Ok(()), |code| {
                    Err(format!("{} refuses the subscription to `{topic}`: {code:?}", self.shown))
                }));
            }
            Packet::Publish(message) => self.keep(message),
            _ => {}
        }
    }

    /// Puts a message into the buffer. One that finds no room is lost: it is delivered at most once.
    fn keep(&mut self, message: Publish) {
        if self.inbox.try_send(message).is_ok() {
            return;
        }
        self.lost += 1;
        if self.lost.is_power_of_two() {
            let (server, lost) = (&self.shown, self.lost);
            tracing::warn!(server, lost, "messages were lost: they came faster than they were handled");
        }
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

/// What the library says, with the fix where there is one.
fn told(why: &str) -> String {
    if why.contains("BadUserNamePassword") || why.contains("NotAuthorized") {
        return format!("the login is refused: check `user` and `password` of the link ({why})");
    }
    if why == "Timeout" { "no answer within 5s".into() } else { why.to_owned() }
}
