//! The queue that a link asks for: made, or adopted if it loses nothing that the link's policy promises.
//!
//! AMQP has no question for the arguments of a queue. But who declares it with others is told one that differs and what it
//! is instead, so that declaring again and again finds them all. What an operator sets by a policy of the server cannot be
//! seen so.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use trellis_provider::delivery::KILLS_MAX;
use trellis_provider::{LinkError, flag, need_queue};
use trellis_wire::{Delivery, Link};

use crate::connection::{Line, NOT_FOUND, PRECONDITION_FAILED, Unanswered, check_name, close, within};
use crate::delays::{Delays, passes_on};
use crate::known::text;
use crate::young::Young;

/// Longest name of a queue, in bytes: those of its delay queues are longer.
const NAME_BYTES_MAX: usize = 200;
/// Arguments of one queue that are looked for.
const ARGUMENTS_MAX: usize = 30;
/// How long dead letters are kept in a queue made by us: 14 days, in milliseconds.
const DEAD_KEPT_MS: i64 = 14 * 24 * 60 * 60 * 1_000;
/// Times that a message may be put back, in a queue made by us: RabbitMQ 4 throws away what is put back 20 times, unless told.
pub(crate) const LOOKS_MAX: i64 = 1_000_000_000;

/// When what is replayed goes to the end of the queue after all, since no link keeps the order any more: 10 minutes, in
/// milliseconds.
const REPLAY_WAITS_MS: i64 = 10 * 60 * 1_000;
/// Returns of a message that the queue of an ordered link must stand, at least: all that it holds goes back whenever it changes
/// hands.
const ORDERED_RETURNS_MIN: u64 = 1_000_000;

/// What a link's configuration asks for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) queue: String,
    pub(crate) dead: String,
    pub(crate) delays: Delays,
    /// Where an ordered link finds what is replayed: at the end of its queue, behind what waits for that very replay, it would
    /// never be found.
    pub(crate) replays: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    create: bool,
    policy: Delivery,
}

impl Wanted {
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        let config = &link.config;
        let (key, queue) = need_queue(config, "queue")?;
        let queue = check_name(key, queue, NAME_BYTES_MAX)?;
        let exchange = config.get("exchange").map(|name| check_name("exchange", name, 255)).transpose()?;
        let routing_key = config.get("routing_key").map(|key| check_name("routing_key", key, 255)).transpose()?;
        if routing_key.is_some() && exchange.is_none() {
            return Err(LinkError::config("exchange", "is needed beside `routing_key`: what the queue is bound to"));
        }
        let dead = match &link.delivery.dead_letter {
            Some(dead) => check_name("delivery.dead_letter", dead, 255)?,
            None => format!("{queue}.dead"),
        };
        if dead == queue {
            return Err(LinkError::config("delivery.dead_letter", "is the queue itself: name another"));
        }
        let (create, policy) = (flag(config, "create")?, link.delivery.clone());
        let delays = Delays::new(&queue, &policy);
        let replays = policy.order_by.is_some().then(|| format!("{queue}.trellis.replay"));
        Ok(Self { queue, dead, delays, replays, exchange, routing_key, create, policy })
    }

    /// Makes sure that the queue is there and can be used, and that delays and dead letters have their places.
    pub(crate) async fn find(&self, line: &Line, young: &Young) -> Result<(), String> {
        let name = &self.queue;
        let failed = |queue: &str, why| format!("queue `{queue}`: {why}");
        if is_there(line, name).await.map_err(|why| failed(name, why))? {
            let arguments = arguments(line, name).await?;
            if let Some(differs) = differs(&arguments, &self.policy) {
                return Err(format!("queue `{name}` {differs}; make another, or change it"));
            }
        } else if self.create {
            let made = make(line, name, quorum(&[("x-delivery-limit", long(LOOKS_MAX))]), young).await;
            made.map_err(|why| format!("queue `{name}` cannot be made: {why}"))?;
        } else {
            let problem = "does not exist; make it, or write `create: \"true\"` in the link's config";
            return Err(format!("queue `{name}` {problem}"));
        }
        self.bind(line).await?;
        let dead = &self.dead;
        if !is_there(line, dead).await.map_err(|why| failed(dead, why))? {
            let kept = [
                ("x-message-ttl", long(DEAD_KEPT_MS)),
                ("x-max-length-bytes", long(self.policy.dead_bytes_max.cast_signed())),
                ("x-delivery-limit", long(LOOKS_MAX)),
                ("x-overflow", word("reject-publish")),
            ];
            let made = make(line, dead, quorum(&kept), young).await;
            made.map_err(|why| format!("queue `{dead}` for dead letters cannot be made: {why}"))?;
        }
        match &self.replays {
            None => self.delays.find(line, young).await,
            // What keeps its order waits on its channel.
            Some(replays) => {
                let waits = [("x-message-ttl", long(REPLAY_WAITS_MS))];
                passes_on(line, young, (replays, name), &waits).await
            }
        }
    }

    /// Binds the queue to the exchange that the link names, which is made if the link may.
    async fn bind(&self, line: &Line) -> Result<(), String> {
        let Some(exchange) = &self.exchange else { return Ok(()) };
        let channel = line.channel().await?;
        let failed = |why: Unanswered| match why {
            Unanswered::Refused(NOT_FOUND, _) => format!(
                "exchange `{exchange}` does not exist; make it, or write `create: \"true\"` in the link's config"
            ),
            why => format!("queue `{}` cannot be bound to exchange `{exchange}`: {why}", self.queue),
        };
        let there = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let none = FieldTable::default();
        let looked = channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, there, none.clone());
        let channel = match within(looked).await {
            Ok(()) => channel,
            Err(Unanswered::Refused(NOT_FOUND, _)) if self.create => {
                let channel = line.channel().await?;
                let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                let made =
                    channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, none.clone());
                within(made).await.map_err(failed)?;
                channel
            }
            Err(why) => return Err(failed(why)),
        };
        let key = self.routing_key.as_deref().unwrap_or(&self.queue);
        let bound = channel.queue_bind(
            self.queue.as_str().into(),
            exchange.as_str().into(),
            key.into(),
            QueueBindOptions::default(),
            none,
        );
        within(bound).await.map_err(failed)?;
        close(&channel).await;
        Ok(())
    }
}

pub(crate) async fn is_there(line: &Line, queue: &str) -> Result<bool, Unanswered> {
    let channel = line.channel().await?;
    match line.waiting(&channel, queue).await {
        Ok(_) => {
            close(&channel).await;
            Ok(true)
        }
        Err(Unanswered::Refused(NOT_FOUND, _)) => Ok(false),
        Err(why) => Err(why),
    }
}

/// Makes a queue that is not there.
pub(crate) async fn make(line: &Line, queue: &str, arguments: FieldTable, young: &Young) -> Result<(), Unanswered> {
    // Said before as well: it may be made though nobody waits for the answer any more.
    young.made();
    let made = line.declare(queue, arguments).await;
    young.made();
    made
}

/// Every argument of a queue that is there.
async fn arguments(line: &Line, queue: &str) -> Result<FieldTable, String> {
    let mut known = FieldTable::default();
    for _ in 0..ARGUMENTS_MAX {
        match line.declare(queue, known.clone()).await {
            Ok(()) => return Ok(known),
            Err(Unanswered::Refused(PRECONDITION_FAILED, why)) => match differing(&why) {
                Some((name, value)) if name.starts_with("x-") && !known.contains_key(&name) => {
                    known.insert(name.as_str().into(), value);
                }
                Some((name, value)) => {
                    let is = text(&value);
                    return Err(format!("queue `{queue}` has `{name}` {is}, and loses messages so; name another"));
                }
                None => return Err(format!("queue `{queue}`: {why}")),
            },
            Err(why) => return Err(format!("queue `{queue}`: {why}")),
        }
    }
    Err(format!("queue `{queue}` has more than {ARGUMENTS_MAX} arguments"))
}

/// What a refused declaration says of the argument that differs. Source: `rabbit_misc:assert_args_equivalence` of the
/// server, whose text has been the same since 2.8.
fn differing(why: &str) -> Option<(String, AMQPValue)> {
    let quoted = |after: &str| why.split_once(after)?.1.split_once('\'').map(|(quoted, _)| quoted.to_owned());
    let name = quoted("inequivalent arg '")?;
    let value = quoted("current is the value '").or_else(|| quoted("current is '"))?;
    let value = match quoted("of type '").as_deref() {
        Some("longstr") | None => word(&value),
        Some("bool") => AMQPValue::Boolean(value == "true"),
        Some(_) => long(value.parse().ok()?),
    };
    Some((name, value))
}

/// Why a queue with these arguments would lose what the policy promises: what it has, and what is needed.
fn differs(arguments: &FieldTable, policy: &Delivery) -> Option<String> {
    let value = |name: &str| arguments.inner().get(name).map(text);
    let number = |name: &str| value(name).and_then(|value| value.parse::<u64>().ok());
    let lasts_ms = u64::try_from(policy.gives_up_after().as_millis()).unwrap_or(u64::MAX);
    if value("x-queue-type").as_deref() == Some("stream") {
        return Some("is a stream, which takes nothing off; a quorum or classic queue is needed".into());
    }
    if let Some(ttl_ms) = number("x-message-ttl").filter(|ttl_ms| *ttl_ms < lasts_ms) {
        let dies = if value("x-dead-letter-exchange").is_some() { "moves" } else { "drops" };
        return Some(format!(
            "{dies} messages after {ttl_ms} ms (x-message-ttl); the policy of the link tries for {lasts_ms} ms"
        ));
    }
    let returns = if policy.order_by.is_some() { ORDERED_RETURNS_MIN } else { u64::from(KILLS_MAX) };
    if let Some(limit) = number("x-delivery-limit").filter(|limit| *limit < returns) {
        return Some(format!("gives up after {limit} returns (x-delivery-limit); at least {returns} are needed"));
    }
    if let Some(most) = value("x-max-priority").filter(|_| policy.order_by.is_some()) {
        return Some(format!("has priorities up to {most} (x-max-priority); to keep an order it must have none"));
    }
    if let Some(expires_ms) = number("x-expires") {
        return Some(format!("deletes itself after {expires_ms} ms without a consumer (x-expires); none is needed"));
    }
    let rejects = value("x-overflow").is_some_and(|overflow| overflow.starts_with("reject-publish"));
    for limit in ["x-max-length", "x-max-length-bytes"] {
        if let Some(most) = number(limit).filter(|_| !rejects) {
            return Some(format!(
                "drops its oldest messages at {most} ({limit}); no limit, or x-overflow `reject-publish`, is needed"
            ));
        }
    }
    None
}

/// The arguments of a replicated queue, which survives the death of its server whole.
pub(crate) fn quorum(more: &[(&str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), word("quorum"));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

pub(crate) fn word(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(crate) const fn long(number: i64) -> AMQPValue {
    AMQPValue::LongLongInt(number)
}

#[cfg(test)]
mod tests {
    use trellis_wire::OrderBy;

    use super::*;

    #[test]
    fn what_differs_is_read_from_what_the_server_says() {
        let why = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received none but \
                   current is the value '1000' of type 'signedint'";
        assert_eq!(differing(why), Some(("x-message-ttl".into(), long(1_000))));
        let why = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received none but \
                   current is the value 'quorum' of type 'longstr'";
        assert_eq!(differing(why), Some(("x-queue-type".into(), word("quorum"))));
        let why = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but \
                   current is 'false'";
        assert_eq!(differing(why), Some(("durable".into(), word("false"))));
        assert_eq!(differing("RESOURCE_LOCKED"), None);
    }

    #[test]
    fn a_queue_that_would_lose_messages_is_named_with_both_figures() {
        let says = |arguments: &[(&str, AMQPValue)]| differs(&quorum(arguments), &Delivery::default());
        assert_eq!(says(&[]), None);
        assert_eq!(says(&[("x-max-length", long(5)), ("x-overflow", word("reject-publish"))]), None);
        let three = [("x-delivery-limit", long(3)), ("x-dead-letter-exchange", word("dlx"))];
        assert_eq!(says(&three), None);
        let ordered = Delivery { order_by: Some(OrderBy::Subject), ..Delivery::default() };
        let says_ordered = |arguments: &[(&str, AMQPValue)]| differs(&quorum(arguments), &ordered);
        assert_eq!(says_ordered(&[("x-delivery-limit", long(LOOKS_MAX))]), None);
        assert!(says_ordered(&three).is_some_and(|why| why.contains("after 3 returns")));
        assert!(says_ordered(&[("x-max-priority", long(5))]).is_some_and(|why| why.contains("priorities up to 5")));
        for (arguments, both) in [
            (vec![("x-message-ttl", long(1_000))], ["drops messages after 1000 ms", "tries for 3511000 ms"]),
            (vec![("x-delivery-limit", long(1))], ["after 1 returns", "at least 3"]),
            (vec![("x-expires", long(60_000))], ["60000 ms", "none is needed"]),
            (vec![("x-max-length", long(5))], ["at 5 (x-max-length)", "no limit"]),
            (vec![("x-queue-type", word("stream"))], ["is a stream", "quorum or classic"]),
        ] {
            let why = says(&arguments).unwrap();
            assert!(both.iter().all(|figure| why.contains(figure)), "{why}");
        }
    }
}
