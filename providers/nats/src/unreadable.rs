//! Messages whose headers are no UTF-8. The client library cannot read one: it breaks its connection over it, and does so
//! at each redelivery. The stream's own API tells headers in base64, so what was given out is looked at there, and what is
//! unreadable becomes a dead letter, with `U+FFFD` for what is no UTF-8.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use trellis_provider::delivery::Trouble;

/// Messages that are looked at after a connection broke. Of what is beyond them one breaks the next connection.
const LOOKED_AT_MAX: usize = 1_000;

/// Asks for the next message from here on.
#[derive(Serialize)]
struct Asked<'a> {
    seq: u64,
    next_by_subj: &'a str,
}

#[derive(Deserialize)]
struct Stored {
    message: RawMessage,
}

/// What this consumer has given out and nobody can read, as it would have been delivered.
pub(crate) async fn unreadable(context: &Context, consumer: &Info) -> Result<Vec<jetstream::Message>, Trouble> {
    if consumer.num_ack_pending == 0 {
        return Ok(Vec::new());
    }
    let stream = &consumer.stream_name;
    let failed = |why: &dyn std::fmt::Display| format!("looking for unreadable messages of stream `{stream}`: {why}");
    let filter = Some(consumer.config.filter_subject.as_str()).filter(|filter| !filter.is_empty()).unwrap_or(">");
    let (mut next, last) = (consumer.ack_floor.stream_sequence + 1, consumer.delivered.stream_sequence);
    let mut found = Vec::new();
    for _ in 0..LOOKED_AT_MAX {
        let asked = Asked { seq: next, next_by_subj: filter };
        let answer = context.request(format!("STREAM.MSG.GET.{stream}"), &asked).await.map_err(|why| failed(&why))?;
        // Beyond the last the server says that there is none.
        let Response::Ok(Stored { message }) = answer else { break };
        if message.sequence > last {
            break;
        }
        next = message.sequence + 1;
        let headers = STANDARD.decode(message.headers.as_deref().unwrap_or_default()).map_err(|why| failed(&why))?;
        if std::str::from_utf8(&headers).is_err() {
            let payload = STANDARD.decode(&message.payload).map_err(|why| failed(&why))?;
            let reply = ack_subject(consumer, &message);
            let message = async_nats::Message {
                subject: message.subject.into(),
                reply: Some(reply.into()),
                length: payload.len(),
                payload: payload.into(),
                headers: Some(readable(&headers)),
                status: None,
                description: None,
            };
            found.push(jetstream::Message { message, context: context.clone() });
        }
    }
    Ok(found)
}

/// Where a delivery of this message is acknowledged. The server goes by the sequence in the stream; that it was the first
/// delivery is a guess which nothing depends on.
fn ack_subject(consumer: &Info, message: &RawMessage) -> String {
    let (stream, name, at) = (&consumer.stream_name, &consumer.name, message.time.unix_timestamp_nanos());
    format!("$JS.ACK.{stream}.{name}.1.{}.1.{at}.0", message.sequence)
}

/// What can be read of headers as they are on the wire. A name that is none for the library is left out.
fn readable(wire: &[u8]) -> HeaderMap {
    let text = String::from_utf8_lossy(wire);
    let mut headers = HeaderMap::new();
    for (name, value) in text.lines().skip(1).filter_map(|line| line.split_once(':')) {
        if let (Ok(name), Ok(value)) = (name.trim().parse::<HeaderName>(), value.trim().parse::<HeaderValue>()) {
            headers.append(name, value);
        }
    }
    headers
}
