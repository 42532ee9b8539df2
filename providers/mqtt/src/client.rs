//! One client of either version of the protocol, in words of neither. The only file that knows how the client library says
//! them; what it does with them is the same for both.

use rumqttc::mqttbytes as v3bytes;
use rumqttc::v5::mqttbytes as v5bytes;
use rumqttc::v5::mqttbytes::v5::{self as v5packets, PubAckReason};
use rumqttc::{AsyncClient, EventLoop, NetworkOptions, Outgoing, Packet, SubscribeReasonCode, v5};
use trellis_wire::Message;

use crate::config::{CONNECT_MAX_SECS, Options, Qos};

/// Requests to a client that wait for its connection.
const REQUESTS_MAX: usize = 512;

/// What is asked of a connection. It is done while the [`Events`] beside it are polled.
#[derive(Clone)]
pub(crate) enum Client {
    V5(v5::AsyncClient),
    V3(AsyncClient),
}

/// What comes of a connection. It connects when it is first polled, and is of no use after an error.
pub(crate) enum Events {
    V5(Box<v5::EventLoop>),
    V3(Box<EventLoop>),
}

/// Something that happened on a connection.
pub(crate) enum Heard {
    /// The server lets it in.
    Connected(Begins),
    /// What came of the subscription: how often a message may arrive by it.
    Subscribed(Result<Qos, String>),
    /// The subscription is over.
    Unsubscribed,
    /// A message.
    Message(Arrived),
    /// A publish went out under this number, 0 if the server says nothing to it. They go out in the order of the requests.
    Sent(u16),
    /// What the server says to the publish of this number.
    Answered(u16, Result<(), String>),
    /// The connection was asked to end, and ends.
    Ends,
    /// Nothing that matters.
    Other,
}

/// What begins with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    /// It goes on with a session that the server has kept.
    Connection,
    /// The session, too.
    Session,
}

/// A message that arrived.
pub(crate) struct Arrived {
    pub(crate) message: Message,
    /// Whether the server says that it gave it before.
    pub(crate) again: bool,
    /// Whether it was left on its topic for whoever comes, and is no new one.
    pub(crate) is_left: bool,
    /// What began since the one before it.
    pub(crate) begins: Option<Begins>,
    /// By which connection it came and under which number, where the server waits until it is acknowledged.
    receipt: Option<(Client, u16)>,
}

/// A client and its events. Nothing happens until they are polled.
pub(crate) fn open(options: &Options) -> (Client, Events) {
    match options {
        Options::V5(options) => {
            let (client, events) = v5::AsyncClient::new((**options).clone(), REQUESTS_MAX);
            (Client::V5(client), Events::V5(Box::new(events)))
        }
        Options::V3(options) => {
            let (client, mut events) = AsyncClient::new((**options).clone(), REQUESTS_MAX);
            events.set_network_options(NetworkOptions::new().set_connection_timeout(CONNECT_MAX_SECS).clone());
            (Client::V3(client), Events::V3(Box::new(events)))
        }
    }
}

impl Client {
    /// Asks for the messages of a topic, as they are published. MQTT 3.1.1 has no word against what was left there before.
    pub(crate) fn subscribe(&self, topic: &str, qos: Qos) -> Result<(), String> {
        match self {
            Self::V5(client) => {
                let mut filter = v5packets::Filter::new(topic, v5_qos(qos));
                filter.retain_forward_rule = v5packets::RetainForwardRule::Never;
                told(client.try_subscribe_many([filter]))
            }
            Self::V3(client) => told(client.try_subscribe(topic, v3_qos(qos))),
        }
    }

    /// Asks for them no more.
    pub(crate) fn unsubscribe(&self, topic: &str) -> Result<(), String> {
        match self {
            Self::V5(client) => told(client.try_unsubscribe(topic)),
            Self::V3(client) => told(client.try_unsubscribe(topic)),
        }
    }

    /// Publishes. MQTT 3.1.1 has no place for headers and where an answer is awaited.
    pub(crate) fn publish(&self, message: Message, qos: Qos) -> Result<(), String> {
        let Message { subject, body, headers, reply_to, .. } = message;
        match self {
            Self::V5(client) => {
                let properties = v5packets::PublishProperties {
                    user_properties: headers,
                    response_topic: reply_to,
                    ..Default::default()
                };
                told(client.try_publish_with_properties(subject, v5_qos(qos), false, body, properties))
            }
            Self::V3(client) => told(client.try_publish(subject, v3_qos(qos), false, body)),
        }
    }

    /// Ends the connection once what was asked before is done.
    pub(crate) fn disconnect(&self) -> Result<(), String> {
        match self {
            Self::V5(client) => told(client.try_disconnect()),
            Self::V3(client) => told(client.try_disconnect()),
        }
    }

    fn arrived(&self, number: u16, (again, is_left): (bool, bool), message: Message) -> Heard {
        let receipt = (number != 0).then(|| (self.clone(), number));
        let message = Message { attempt: 1, ..message };
        Heard::Message(Arrived { message, again, is_left, begins: None, receipt })
    }
}

impl Arrived {
    /// Whether the server gives it again if it is not acknowledged.
    pub(crate) const fn is_kept(&self) -> bool {
        self.receipt.is_some()
    }

    /// The number under which it came, where the server waits until it is acknowledged.
    pub(crate) fn number(&self) -> Option<u16> {
        self.receipt.as_ref().map(|(_, number)| *number)
    }

    /// Acknowledges it, on the connection by which it came. Where that is gone the server gives it again.
    pub(crate) async fn acknowledge(self) {
        let acknowledged = match self.receipt {
            None => return,
            Some((Client::V5(client), pkid)) => {
                let named = v5packets::Publish::new("", v5bytes::QoS::AtLeastOnce, "", None);
                told(client.ack(&v5packets::Publish { pkid, ..named }).await)
            }
            Some((Client::V3(client), pkid)) => {
                let named = rumqttc::Publish::new("", v3bytes::QoS::AtLeastOnce, "");
                told(client.ack(&rumqttc::Publish { pkid, ..named }).await)
            }
        };
        if let Err(why) = acknowledged {
            tracing::debug!(why, "a message was not acknowledged: its connection is gone");
        }
    }
}

impl Events {
    /// Waits for what happens next. Must not be dropped half-way.
    ///
    /// # Errors
    /// Why there is no connection, or no more.
    pub(crate) async fn poll(&mut self, client: &Client) -> Result<Heard, String> {
        match self {
            Self::V5(events) => events.poll().await.map(|event| v5_heard(event, client)).map_err(|why| why.to_string()),
            Self::V3(events) => events.poll().await.map(|event| v3_heard(event, client)).map_err(|why| why.to_string()),
        }
    }
}

fn v5_heard(event: v5::Event, client: &Client) -> Heard {
    use v5packets::{Packet, SubscribeReasonCode};
    match event {
        v5::Event::Incoming(Packet::ConnAck(answer)) => Heard::Connected(begins(answer.session_present)),
        v5::Event::Incoming(Packet::SubAck(answer)) => Heard::Subscribed(match answer.return_codes.first() {
            Some(SubscribeReasonCode::Success(v5bytes::QoS::AtMostOnce)) => Ok(Qos::AtMostOnce),
            Some(SubscribeReasonCode::Success(_)) => Ok(Qos::AtLeastOnce),
            refused => Err(format!("{refused:?}")),
        }),
        v5::Event::Incoming(Packet::UnsubAck(_)) => Heard::Unsubscribed,
        v5::Event::Incoming(Packet::Publish(publish)) => {
            let properties = publish.properties.unwrap_or_default();
            let message = Message {
                subject: String::from_utf8_lossy(&publish.topic).into_owned(),
                body: publish.payload,
                reply_to: properties.response_topic,
                headers: properties.user_properties,
                ..Message::default()
            };
            client.arrived(publish.pkid, (publish.dup, publish.retain), message)
        }
        v5::Event::Incoming(Packet::PubAck(answer)) => {
            // That nobody listens is for the server to know.
            let is_taken = matches!(answer.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers);
            Heard::Answered(answer.pkid, if is_taken { Ok(()) } else { Err(format!("{:?}", answer.reason)) })
        }
        v5::Event::Outgoing(outgoing) => outgone(&outgoing),
        v5::Event::Incoming(_) => Heard::Other,
    }
}

fn v3_heard(event: rumqttc::Event, client: &Client) -> Heard {
    match event {
        rumqttc::Event::Incoming(Packet::ConnAck(answer)) => Heard::Connected(begins(answer.session_present)),
        rumqttc::Event::Incoming(Packet::SubAck(answer)) => Heard::Subscribed(match answer.return_codes.first() {
            Some(SubscribeReasonCode::Success(v3bytes::QoS::AtMostOnce)) => Ok(Qos::AtMostOnce),
            Some(SubscribeReasonCode::Success(_)) => Ok(Qos::AtLeastOnce),
            Some(SubscribeReasonCode::Failure) | None => Err("over MQTT 3.1.1 it does not say why".into()),
        }),
        rumqttc::Event::Incoming(Packet::UnsubAck(_)) => Heard::Unsubscribed,
        rumqttc::Event::Incoming(Packet::Publish(publish)) => {
            let message = Message { subject: publish.topic, body: publish.payload, ..Message::default() };
            client.arrived(publish.pkid, (publish.dup, publish.retain), message)
        }
        rumqttc::Event::Incoming(Packet::PubAck(answer)) => Heard::Answered(answer.pkid, Ok(())),
        rumqttc::Event::Outgoing(outgoing) => outgone(&outgoing),
        rumqttc::Event::Incoming(_) => Heard::Other,
    }
}

const fn begins(session_present: bool) -> Begins {
    if session_present { Begins::Connection } else { Begins::Session }
}

const fn outgone(outgoing: &Outgoing) -> Heard {
    match outgoing {
        Outgoing::Publish(number) => Heard::Sent(*number),
        Outgoing::Disconnect => Heard::Ends,
        _ => Heard::Other,
    }
}

const fn v5_qos(qos: Qos) -> v5bytes::QoS {
    match qos {
        Qos::AtMostOnce => v5bytes::QoS::AtMostOnce,
        Qos::AtLeastOnce => v5bytes::QoS::AtLeastOnce,
    }
}

const fn v3_qos(qos: Qos) -> v3bytes::QoS {
    match qos {
        Qos::AtMostOnce => v3bytes::QoS::AtMostOnce,
        Qos::AtLeastOnce => v3bytes::QoS::AtLeastOnce,
    }
}

/// What the library says when a request is not taken, without the request itself.
fn told<T, E: std::fmt::Display>(asked: Result<T, E>) -> Result<(), String> {
    asked.map(drop).map_err(|why| why.to_string())
}
