//! Dead letters: a queue of them, which AMQP lets nobody look into without taking from it. So they are taken, read, and all
//! put back in their order; that is done by one at a time on a node. Two nodes that look at once may each miss what the
//! other holds.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions};
use tokio::sync::Mutex;
use trellis_provider::delivery::{DeadLetter, Ran, Reason, Trouble};
use uuid::Uuid;

use crate::connection::{Line, NOT_FOUND, Unanswered, within};
use crate::known::{Known, header, text};
use crate::source::{now_ms, publish};

/// Dead letters that are walked over in one look.
const WALK_MAX: usize = 100_000;
/// How often, and how far apart, is looked whether what was put back is there.
const PUT_BACK_LOOKS: usize = 50;
const PUT_BACK_LOOK: Duration = Duration::from_millis(20);

/// The way to the dead letters of one queue.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    walking: Mutex<Option<Arc<Channel>>>,
}

/// What stands beside a dead letter, in headers of ours.
pub(crate) fn beside(
    queue: &str,
    component: &str,
    reason: &Reason,
    ran: &Ran,
    now_ms: u64,
) -> Vec<(&'static str, String)> {
    vec![
        ("dead-id", Uuid::now_v7().to_string()),
        ("dead-reason", reason.word().into()),
        ("dead-detail", reason.to_string().chars().take(1_024).collect()),
        ("dead-queue", queue.into()),
        ("dead-component", component.into()),
        ("dead-at", now_ms.to_string()),
        ("dead-digest", ran.digest.clone()),
        ("dead-generation", ran.generation.to_string()),
        ("dead-trace", ran.trace.clone()),
    ]
}

impl Letters {
    pub(crate) async fn count(&self, line: &Line, queue: &str) -> Result<u64, Unanswered> {
        let walking = self.walking.lock().await;
        let channel = match walking.as_ref().filter(|channel| channel.status().connected()) {
            Some(channel) => channel.clone(),
            None => Arc::new(line.channel().await?),
        };
        match line.waiting(&channel, queue).await {
            Err(Unanswered::Refused(NOT_FOUND, _)) => Ok(0),
            counted => counted,
        }
    }

    /// Up to `max` of a component's after the one of this id.
    pub(crate) async fn list(
        &self,
        line: &Line,
        queue: &str,
        component: &str,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, Trouble> {
        let (mut letters, mut passed) = (Vec::new(), after.is_none());
        let walked = self.walk(line, queue, |letter| {
            if passed && letter.component == component {
                letters.push(letter);
            } else if after == Some(letter.id.as_str()) {
                passed = true;
            }
            letters.len() >= max
        });
        if let Some(last) = walked.await? {
            put_back(line, &last.channel, queue, last.passed + 1).await?;
        }
        Ok(letters)
    }

    /// Takes a component's dead letter off, and has it published to `back_to` before.
    pub(crate) async fn decide(
        &self,
        line: &Line,
        queue: &str,
        component: &str,
        id: &str,
        back_to: Option<&str>,
    ) -> Result<Option<DeadLetter>, Trouble> {
        let mut found = None;
        let is_it = |letter: &DeadLetter| letter.id == id && letter.component == component;
        let walked = self.walk(line, queue, |letter| {
            if is_it(&letter) {
                found = Some(letter);
            }
            found.is_some()
        });
        let Some(last) = walked.await? else { return Ok(None) };
        let Some(letter) = found else { return Ok(None) };
        if let Some(back_to) = back_to {
            let before = Known::read(&last.delivery, now_ms(), String::new);
            let (id, is_named, subject) = (before.id, before.is_named, before.subject);
            let since_ms = now_ms();
            let replay_of = Some(letter.id.clone());
            let anew = Known { id, is_named, subject, since_ms, replay_of, ..Known::default() };
            let properties = anew.write(&last.delivery.properties, &[]);
            let published = publish(line, back_to, &last.delivery.data, properties).await;
            if let Err(why) = published {
                put_back(line, &last.channel, queue, last.passed + 1).await?;
                return Err(why.into());
            }
        }
        within(last.delivery.acker.ack(BasicAckOptions::default())).await?;
        put_back(line, &last.channel, queue, last.passed).await?;
        Ok(Some(letter))
    }

    /// Looks at one dead letter after the other until `enough`. Returns the one that was enough, which is still held; where
    /// none was, all are put back.
    async fn walk(
        &self,
        line: &Line,
        queue: &str,
        mut enough: impl FnMut(DeadLetter) -> bool,
    ) -> Result<Option<Last<'_>>, Trouble> {
        let mut walking = self.walking.lock().await;
        if !walking.as_ref().is_some_and(|channel| channel.status().connected()) {
            *walking = Some(Arc::new(line.channel().await?));
        }
        let channel = walking.clone().expect("it was opened just now");
        let (mut last, mut passed) = (None, 0);
        for _ in 0..WALK_MAX {
            let got = within(channel.basic_get(queue.into(), BasicGetOptions::default())).await;
            let Some(message) = got.inspect_err(|_| *walking = None)? else { break };
            let letter = letter(&message.delivery);
            if enough(letter) {
                last = Some(message.delivery);
                break;
            }
            passed += 1;
        }
        match last {
            Some(delivery) => Ok(Some(Last { delivery, passed, channel, _walking: walking })),
            None => put_back(line, &channel, queue, passed).await.map(|()| None),
        }
    }
}

/// The dead letter at which a walk ended. Others must wait until all are put back.
struct Last<'a> {
    delivery: Delivery,
    /// How many were passed before it, which are held as well.
    passed: u64,
    channel: Arc<Channel>,
    _walking: tokio::sync::MutexGuard<'a, Option<Arc<Channel>>>,
}

/// Gives back all that a channel holds, which are so many, and waits for a moment until they are there again.
async fn put_back(line: &Line, channel: &Channel, queue: &str, held: u64) -> Result<(), Trouble> {
    let all = BasicNackOptions { multiple: true, requeue: true };
    within(channel.basic_nack(0, all)).await?;
    for _ in 0..PUT_BACK_LOOKS {
        if line.waiting(channel, queue).await? >= held {
            return Ok(());
        }
        tokio::time::sleep(PUT_BACK_LOOK).await;
    }
    Ok(())
}

fn letter(delivery: &Delivery) -> DeadLetter {
    let headers = delivery.properties.headers().as_ref();
    let one = |name: &str| header(headers, &format!("dead-{name}")).map(text).unwrap_or_default();
    let known = Known::read(delivery, now_ms(), String::new);
    let mut message = known.message(delivery, 0);
    message.attempt = known.attempts;
    DeadLetter {
        id: one("id"),
        queue: one("queue"),
        component: one("component"),
        message,
        attempts: known.attempts,
        faults: known.texts,
        kills: known.kills,
        reason: one("reason"),
        detail: one("detail"),
        at_ms: one("at").parse().unwrap_or_default(),
        ran: Ran {
            digest: one("digest"),
            generation: one("generation").parse().unwrap_or_default(),
            trace: one("trace"),
        },
    }
}
