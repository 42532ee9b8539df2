//! Sending messages: `trellis:messaging/producer` and wasmCloud's `wasmcloud:messaging/consumer`.

use std::time::Duration;

use trellis_wire::{Answer, Call, CallError, Message};
use wasmtime::component::{HasSelf, Linker};

use self::trellis::trellis::messaging::{producer, types as our_types};
use self::wasmcloud::wasmcloud::messaging::{consumer, types as their_types};
use crate::outside::Outside;
use crate::state::State;

mod trellis {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world host { import trellis:messaging/producer@0.1.0; }",
        world: "trellis:sandbox/host",
        imports: { default: async | trappable },
    });
}

mod wasmcloud {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        inline: "package trellis:sandbox; world host { import wasmcloud:messaging/consumer@0.2.0; }",
        world: "trellis:sandbox/host",
        imports: { default: async | trappable },
    });
}

const PRODUCER: &str = "trellis:messaging/producer";
const CONSUMER: &str = "wasmcloud:messaging/consumer";

pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    our_types::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    producer::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    their_types::add_to_linker::<_, HasSelf<State>>(linker, |state| state)?;
    consumer::add_to_linker::<_, HasSelf<State>>(linker, |state| state)
}

async fn publish(outside: &dyn Outside, link: &str, message: Message) -> Result<(), CallError> {
    match outside.call(link, Call::Publish(message)).await? {
        Answer::Published => Ok(()),
        other => Err(super::wrong_answer(&other)),
    }
}

async fn request(outside: &dyn Outside, link: &str, message: Message, timeout_ms: u32) -> Result<Message, CallError> {
    let timeout = Duration::from_millis(timeout_ms.into());
    match outside.call(link, Call::Request { message, timeout }).await? {
        Answer::Message(answer) => Ok(answer),
        other => Err(super::wrong_answer(&other)),
    }
}

impl our_types::Host for State {}

impl producer::Host for State {
    async fn publish(&mut self, message: producer::OutMessage) -> wasmtime::Result<Result<(), producer::Error>> {
        Ok(publish(&*self.outside, self.links.chosen(PRODUCER), message.into()).await.map_err(Into::into))
    }

    async fn publish_to(
        &mut self,
        link: String,
        message: producer::OutMessage,
    ) -> wasmtime::Result<Result<(), producer::Error>> {
        Ok(publish(&*self.outside, &link, message.into()).await.map_err(Into::into))
    }

    async fn request(
        &mut self,
        message: producer::OutMessage,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<producer::Message, producer::Error>> {
        let answer = request(&*self.outside, self.links.chosen(PRODUCER), message.into(), timeout_ms).await;
        Ok(answer.map(Into::into).map_err(Into::into))
    }
}

impl their_types::Host for State {}

impl consumer::Host for State {
    async fn publish(&mut self, message: consumer::BrokerMessage) -> wasmtime::Result<Result<(), String>> {
        Ok(publish(&*self.outside, self.links.chosen(CONSUMER), message.into()).await.map_err(|why| why.to_string()))
    }

    async fn request(
        &mut self,
        subject: String,
        body: Vec<u8>,
        timeout_ms: u32,
    ) -> wasmtime::Result<Result<consumer::BrokerMessage, String>> {
        let message = Message { subject, body: body.into(), ..Message::default() };
        let answer = request(&*self.outside, self.links.chosen(CONSUMER), message, timeout_ms).await;
        Ok(answer.map(Into::into).map_err(|why| why.to_string()))
    }
}

impl From<producer::OutMessage> for Message {
    fn from(message: producer::OutMessage) -> Self {
        let producer::OutMessage { subject, body, headers, reply_to } = message;
        Self { subject, body: body.into(), headers, reply_to, ..Self::default() }
    }
}

impl From<Message> for producer::Message {
    fn from(message: Message) -> Self {
        Self {
            subject: message.subject,
            body: message.body.into(),
            headers: message.headers,
            reply_to: message.reply_to,
            id: message.id,
            attempt: message.attempt,
            published_ms: message.published_ms,
            source: String::new(),
        }
    }
}

impl From<consumer::BrokerMessage> for Message {
    fn from(message: consumer::BrokerMessage) -> Self {
        let consumer::BrokerMessage { subject, body, reply_to } = message;
        Self { subject, body: body.into(), reply_to, ..Self::default() }
    }
}

impl From<Message> for consumer::BrokerMessage {
    fn from(message: Message) -> Self {
        Self { subject: message.subject, body: message.body.into(), reply_to: message.reply_to }
    }
}

impl From<CallError> for producer::Error {
    fn from(why: CallError) -> Self {
        match why {
            CallError::Denied(text) => Self::Denied(text),
            CallError::NoSuch(text) => Self::NoSuch(text),
            CallError::TimedOut(text) => Self::TimedOut(text),
            CallError::Unavailable(text) => Self::Unavailable(text),
            CallError::Invalid(text) => Self::Invalid(text),
            CallError::Other(text) => Self::Other(text),
        }
    }
}
