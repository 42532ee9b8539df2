//! Dead letters: a queue of them, which is walked over to look at them. What a walk found is kept for a moment, so that
//! reading on, a page after the other, does not begin anew each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::message::Delivery;
use tokio::time::Instant;
use trellis_provider::delivery::{DeadLetter, Fate, Ran, Reason, Trouble};
use trellis_provider::now_ms;
use uuid::Uuid;

use crate::base::publish;
use crate::connection::{Line, NOT_FOUND, Unanswered};
use crate::known::{Known, header, text};
use crate::walk::Walk;

/// How long what a walk found is read on from.
const FOUND_KEPT: Duration = Duration::from_secs(10);
/// Bytes of bodies and faults that one walk keeps; reading on behind them walks once more.
const FOUND_BYTES_MAX: usize = 16 << 20;
/// Room for what else a dead letter is, in bytes.
const LETTER_BYTES: usize = 1 << 10;

/// The dead letters of one link.
#[derive(Debug)]
pub(crate) struct Letters {
    dead: String,
    component: String,
    found: Mutex<Option<Found>>,
    /// How many there are of all components; while somebody walks, as there were before.
    counted: AtomicU64,
}

/// What a walk found of a component's.
#[derive(Debug)]
struct Found {
    letters: Vec<DeadLetter>,
    /// Whether there are more behind them.
    more: bool,
    at: Instant,
}

impl Found {
    fn nothing_yet() -> Self {
        Self { letters: Vec::new(), more: false, at: Instant::now() }
    }

    /// Up to `max` after the one of this id; `None`: they are not known from here.
    fn page(&self, after: &str, max: usize) -> Option<Vec<DeadLetter>> {
        let fresh = self.at.elapsed() < FOUND_KEPT;
        let known = self.letters.iter().position(|letter| fresh && letter.id == after)?;
        let rest = &self.letters[known + 1..];
        (!rest.is_empty() || !self.more).then(|| rest.iter().take(max).cloned().collect())
    }
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
    /// Those of a component in the queue `dead`.
    pub(crate) fn new(dead: &str, component: &str) -> Self {
        let (dead, component) = (dead.to_owned(), component.to_owned());
        Self { dead, component, found: Mutex::default(), counted: AtomicU64::default() }
    }

    pub(crate) async fn count(&self, line: &Line) -> Result<u64, Unanswered> {
        // Who walks holds them, and they are not counted then.
        let walk = line.walk(&self.dead);
        let Ok(_nobody_walks) = walk.try_lock() else { return Ok(self.counted.load(Ordering::Relaxed)) };
        let counted = match line.waiting(&line.channel().await?, &self.dead).await {
            Err(Unanswered::Refused(NOT_FOUND, _)) => 0,
            counted => counted?,
        };
        self.counted.store(counted, Ordering::Relaxed);
        Ok(counted)
    }

    /// Up to `max` after the one of this id.
    pub(crate) async fn list(
        &self,
        line: &Arc<Line>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Vec<DeadLetter>, Trouble> {
        let known = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = after.and_then(|after| known().as_ref()?.page(after, max)) {
            if page.is_empty() {
                *known() = None;
            }
            return Ok(page);
        }
        let (line, dead, component) = (line.clone(), self.dead.clone(), self.component.clone());
        let after = after.map(str::to_owned);
        let found = to_its_end(async move { look(line, &dead, &component, after.as_deref()).await }).await?;
        let page = found.letters.iter().take(max).cloned().collect();
        *known() = Some(found);
        Ok(page)
    }

    /// Takes a dead letter off, and has it published to the queue `back_to` before, if it is to be replayed.
    pub(crate) async fn decide(
        &self,
        line: &Arc<Line>,
        id: &str,
        (fate, back_to): (Fate, &str),
    ) -> Result<Option<DeadLetter>, Trouble> {
        let (line, dead, component) = (line.clone(), self.dead.clone(), self.component.clone());
        let (id, back_to) = (id.to_owned(), (fate == Fate::Replay).then(|| back_to.to_owned()));
        to_its_end(async move {
            let Some(mut walk) = Walk::begin(line.clone(), &dead).await? else { return Ok(None) };
            let decided = decide(&line, &mut walk, (&component, &id), back_to.as_deref()).await;
            let ended = walk.end().await;
            let decided = decided?;
            ended.map(|()| decided)
        })
        .await
    }
}

/// Does it whole, also where nobody waits for it any more: who stops in the middle would hold what is to be put back.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Trouble>> + Send + 'static,
) -> Result<T, Trouble> {
    tokio::spawn(work).await.map_err(|why| format!("the dead letters were not read: {why}"))?
}

/// Walks until as many of a component's after the one of this id are found as may be kept.
async fn look(line: Arc<Line>, dead: &str, component: &str, after: Option<&str>) -> Result<Found, Trouble> {
    let Some(mut walk) = Walk::begin(line, dead).await? else { return Ok(Found::nothing_yet()) };
    let found = read(&mut walk, component, after).await;
    let ended = walk.end().await;
    let found = found?;
    ended.map(|()| found)
}

async fn read(walk: &mut Walk, component: &str, after: Option<&str>) -> Result<Found, Trouble> {
    let (mut found, mut passed, mut bytes) = (Found::nothing_yet(), after.is_none(), 0);
    while let Some(delivery) = walk.next().await? {
        let letter = letter(&delivery);
        if passed && letter.component == component {
            bytes += LETTER_BYTES + letter.message.body.len() + letter.faults.iter().map(String::len).sum::<usize>();
            found.letters.push(letter);
        } else if after == Some(letter.id.as_str()) {
            passed = true;
        }
        if bytes >= FOUND_BYTES_MAX {
            found.more = true;
            break;
        }
    }
    Ok(found)
}

async fn decide(
    line: &Line,
    walk: &mut Walk,
    (component, id): (&str, &str),
    back_to: Option<&str>,
) -> Result<Option<DeadLetter>, Trouble> {
    while let Some(delivery) = walk.next().await? {
        let letter = letter(&delivery);
        if letter.id != id || letter.component != component {
            continue;
        }
        if let Some(back_to) = back_to {
            let (before, since_ms) = (Known::read(&delivery, now_ms(), String::new), now_ms());
            let (id, is_named, subject) = (before.id, before.is_named, before.subject);
            // Who dies before the letter is off leaves it, and it may be replayed again.
            let replay_of = Some(format!("{}/{}", letter.id, Uuid::now_v7()));
            let anew = Known { id, is_named, subject, since_ms, replay_of, ..Known::default() };
            publish(line, back_to, &delivery.data, anew.write(&delivery.properties, &[])).await?;
        }
        walk.take_off(&delivery).await?;
        return Ok(Some(letter));
    }
    Ok(None)
}

fn letter(delivery: &Delivery) -> DeadLetter {
    let headers = delivery.properties.headers().as_ref();
    let one = |name: &str| header(headers, &format!("dead-{name}")).map(text).unwrap_or_default();
    let known = Known::read(delivery, now_ms(), String::new);
    let mut message = known.message(delivery, delivery.data.clone().into(), 0);
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
