//! One delivery: what is done with a message between its claim and its settlement.
//!
//! A message that was given out before may have an outbox in the ledger: its handler said ok, and a node died before all
//! was sent. Then the rest is sent, and the handler is not run again. Else, where the link has `dedupe`, a mark says whether
//! the same was handled before, or is being handled now; then it is run, what it published is stored, sent, and the mark is
//! set. Only after all of that is the message settled. While what it published cannot be sent, its twins wait.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;
use trellis_wire::{CallError, Event, Failure, Fault, Outcome};

use super::breaker::Leave;
use super::engine::{Engine, Turn};
use super::held::Taken;
use super::ledger::{self, DONE, KEPT};
use super::pause::{TELL_EVERY, TELL_WELL_EVERY};
use super::pauses::PAUSE_MIN;
use super::policy::{self, Reason, Record, Settlement};
use super::progress::{Counts, lock};
use super::queue::{Ledger, Queue, Trouble};
use crate::{Delivered, Outgoing, Permit};

/// How much longer than its timeout a run is waited for, since the node ends it by itself.
const RUN_GRACE: Duration = Duration::from_secs(5);
/// When a message is given out again whose twin is being handled, whose outbox could not be sent, or of which the ledger does
/// not say whether it is to be given up.
const SOON: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(5);
/// When a message is given out again that would have been given up while the link pauses.
const PAUSED: Duration = Duration::from_secs(60);

/// What the ledger knows of a message's twins.
enum Mark {
    /// Nothing is kept of it.
    None,
    /// This delivery handles it: the key of the mark.
    Ours(String),
    /// It was handled.
    Done,
    /// Another is being handled.
    Theirs,
}

impl<Q: Queue> Engine<Q> {
    /// Handles one message and says what is to become of it. `None`: that is for the broker to say once its claim has ended,
    /// since the node that ran it is gone.
    pub(super) async fn handle(&self, turn: Turn, taken: &Taken<Q::Claim>) -> Option<Settlement> {
        let Turn { leave, mut begun, permit } = turn;
        let known = self.known(taken).await.unwrap_or_else(|why| {
            self.progress.pause(why, PAUSE_MIN);
            Known::Settled(Settlement::GiveBack { after: SOON })
        });
        let mark = match known {
            Known::Mark(mark) => mark,
            Known::Settled(settlement) => {
                drop(begun);
                return Some(self.unless_paused(settlement).await);
            }
        };
        let on_trial = self.permits.on_trial("");
        begun.begins();
        let Delivered { outcome, sends, ran, lost } = self.run_once(permit, taken).await;
        drop(begun);
        self.note_outcome(taken, &outcome, lost);
        if lost {
            return None;
        }
        self.survived(taken).await;
        let refunded = self.refunded(taken).await;
        let (record, said) = self.said(taken, refunded, &outcome);
        let (is_ok, ran_well) = (said == Settlement::Ack, ended_well(&said));
        let settlement = match self.unless_on_trial(taken, &record, said, (on_trial, &ran.digest)).await {
            Settlement::Ack if !sends.is_empty() => self.publish(taken, sends).await,
            settlement => settlement,
        };
        // What it published and nobody takes is a failure too; what is to be sent later says nothing of that.
        if let Some(well) = ran_well {
            self.count(leave, taken, well && ended_well(&settlement) != Some(false)).await;
        }
        let settlement = match settlement {
            Settlement::DeadLetter { reason, fault, .. } => Settlement::DeadLetter { reason, fault, ran },
            settlement => settlement,
        };
        if let Mark::Ours(key) = mark {
            self.marked(taken, &key, &settlement, is_ok).await;
        }
        Some(self.unless_paused(settlement).await)
    }

    /// What the ledger knows of a message before it is run.
    async fn known(&self, taken: &Taken<Q::Claim>) -> Result<Known, Trouble> {
        // Before all else: its handler has said ok.
        if taken.place.again
            && let Some(sends) = self.stored_outbox(taken).await?
        {
            let settlement = self.send_all(sends).await;
            if let Some(key) = self.mark_key(taken) {
                self.marked(taken, &key, &settlement, true).await;
            }
            return Ok(Known::Settled(settlement));
        }
        let record = Record { kills: self.kills(taken).await?, ..taken.record };
        if let Some(instead) = policy::begin(&self.policy, &record) {
            return Ok(Known::Settled(instead));
        }
        match self.mark(taken).await? {
            Mark::Done => Ok(Known::Settled(Settlement::Ack)),
            Mark::Theirs => Ok(Known::Settled(Settlement::GiveBack { after: SOON })),
            mark => {
                self.note_begun(taken, |begun| begun.saturating_add(1)).await?;
                Ok(Known::Mark(mark))
            }
        }
    }

    /// How often a node died while it worked on a message. One that an ordered link only held in advance was not worked on
    /// then: from its first kill on the ledger counts how often it was begun and did not end, and no more kills count than
    /// that allows.
    async fn kills(&self, taken: &Taken<Q::Claim>) -> Result<u32, Trouble> {
        let kills = taken.record.kills;
        let Some(ledger) = self.counts_begun(taken) else { return Ok(kills) };
        let held = ledger.read(&ledger::begun_key(&taken.place)).await?;
        // At its first kill nobody counted yet.
        Ok(kills.min(held.as_deref().map_or(0, ledger::count).saturating_add(1)))
    }

    /// Where it is counted how often a message was begun, if it is.
    fn counts_begun(&self, taken: &Taken<Q::Claim>) -> Option<&dyn Ledger> {
        let counts = taken.record.kills > 0 && self.policy.order_by.is_some();
        self.queue.ledger().filter(|_| counts)
    }

    async fn note_begun(&self, taken: &Taken<Q::Claim>, change: fn(u32) -> u32) -> Result<(), Trouble> {
        let Some(ledger) = self.counts_begun(taken) else { return Ok(()) };
        let key = ledger::begun_key(&taken.place);
        let held = ledger.read(&key).await?;
        let begun = change(held.as_deref().map_or(0, ledger::count));
        let new = (begun > 0).then(|| begun.to_be_bytes());
        ledger.swap(&key, held.as_deref(), new.as_ref().map(<[u8; 4]>::as_slice), KEPT).await.map(drop)
    }

    /// A run has ended, and no node died of it.
    async fn survived(&self, taken: &Taken<Q::Claim>) {
        if let Err(why) = self.note_begun(taken, |begun| begun.saturating_sub(1)).await {
            tracing::debug!(link = %self.link, why, "a run that ended will count as one that a node died of");
        }
    }

    /// What follows from how a run ended, and from what is known of its message. Where it cannot be read which attempts count,
    /// nothing is given up for their number.
    fn said(
        &self,
        taken: &Taken<Q::Claim>,
        refunded: Result<Record, Trouble>,
        outcome: &Outcome,
    ) -> (Record, Settlement) {
        let settle = |record: &Record| policy::settle(&self.policy, record, outcome, rand::random());
        match refunded {
            Ok(record) => (record, settle(&record)),
            Err(why) => match settle(&taken.record) {
                settlement if settlement.is_for_attempts() => {
                    self.progress.pause(format!("which attempts count cannot be read: {why}"), PAUSE_MIN);
                    (taken.record, Settlement::GiveBack { after: AGAIN })
                }
                settlement => (taken.record, settlement),
            },
        }
    }

    /// What is known of a message without the attempts of versions that were taken back.
    async fn refunded(&self, taken: &Taken<Q::Claim>) -> Result<Record, Trouble> {
        let record = taken.record;
        let (Some(ledger), 2..) = (self.queue.ledger(), record.attempt) else { return Ok(record) };
        let kept = ledger.read(&ledger::tried_key(&taken.place)).await?;
        let tried = ledger::tried(kept.as_deref()).into_iter();
        let taken_back = tried.filter(|tried| self.permits.is_taken_back(&tried.version));
        let (attempts, faults) = taken_back
            .fold((0u32, 0u32), |(attempts, faults), tried| (attempts + tried.attempts, faults + tried.faults));
        let attempt = record.attempt.saturating_sub(attempts).max(1);
        Ok(Record { attempt, faults: record.faults.saturating_sub(faults), ..record })
    }

    /// The version whose attempt a run of this code was: the one that is on trial; or the one that was when the run began, and
    /// was taken back since. What is known to have run beside that one is another's code.
    fn tried(&self, began_under: Option<String>, code: &str) -> Option<String> {
        if let Some(version) = self.permits.on_trial(code) {
            return Some(version);
        }
        let version = began_under?;
        let mut beside = lock(&self.beside);
        if self.permits.on_trial("").as_ref() == Some(&version) {
            *beside = Some((version, code.to_owned()));
            return None;
        }
        let is_another = beside.as_ref().is_some_and(|(of, known)| *of == version && known == code);
        (!is_another && self.permits.is_taken_back(&version)).then_some(version)
    }

    /// What fails while a version is on trial may be that version's failure: the attempt is remembered as its, and no
    /// message is given up for it. Where that cannot be kept, it was none.
    async fn unless_on_trial(
        &self,
        taken: &Taken<Q::Claim>,
        record: &Record,
        settlement: Settlement,
        (began_under, code): (Option<String>, &str),
    ) -> Settlement {
        // Beside a trial it is worth knowing what code runs, also where it runs well.
        if began_under.is_none() && ended_well(&settlement) != Some(false) {
            return settlement;
        }
        let Some(version) = self.tried(began_under, code) else { return settlement };
        let settlement = policy::on_trial(&self.policy, record, settlement, rand::random());
        let Settlement::Retry { after, fault } = settlement else { return settlement };
        match self.note_tried(taken, &version, fault.is_some()).await {
            Ok(()) => Settlement::Retry { after, fault },
            Err(why) => {
                tracing::debug!(link = %self.link, why, "an attempt would count even if its version is taken back");
                Settlement::GiveBack { after }
            }
        }
    }

    async fn note_tried(&self, taken: &Taken<Q::Claim>, version: &str, faulted: bool) -> Result<(), Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(()) };
        let key = ledger::tried_key(&taken.place);
        let kept = ledger.read(&key).await?;
        let tried = ledger::tried_again(ledger::tried(kept.as_deref()), version, faulted);
        match ledger.swap(&key, kept.as_deref(), Some(&tried), KEPT).await? {
            true => Ok(()),
            false => Err("another delivery of the message is at it".into()),
        }
    }

    async fn run_once(&self, permit: Permit, taken: &Taken<Q::Claim>) -> Delivered {
        let (counts, timeout) = (self.progress.counts(), self.policy.timeout);
        if taken.record.attempt == 1 && taken.message.published_ms.is_some() {
            counts.in_queue.record(taken.record.age);
        }
        counts.attempts.fetch_add(1, Ordering::Relaxed);
        let _in_flight = InFlight::count(counts);
        let began = Instant::now();
        let run = permit.deliver(Event::Message(taken.message.clone()), timeout);
        let delivered = match tokio::time::timeout(timeout.saturating_add(RUN_GRACE), run).await {
            Ok(delivered) => delivered,
            Err(_) => {
                let limit_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                Outcome::Err(Fault::Deadline { limit_ms }.into()).into()
            }
        };
        counts.run.record(began.elapsed());
        delivered
    }

    /// Says what did not end well, and lets the node recover from a shortage.
    fn note_outcome(&self, taken: &Taken<Q::Claim>, outcome: &Outcome, lost: bool) {
        let (link, subject, attempt) = (&self.link, &taken.message.subject, taken.record.attempt);
        match outcome {
            Ok(_) => {}
            Err(why) if lost => tracing::warn!(%link, subject, attempt, "{why}"),
            Err(Failure::Fault(why)) => tracing::warn!(%link, subject, attempt, "{why}"),
            Err(Failure::Error(why)) => {
                tracing::debug!(%link, subject, "a message was not run: {why}");
                self.progress.pause(why.to_string(), PAUSE_MIN);
            }
        }
    }

    /// Has the breaker count how a run ended.
    async fn count(&self, leave: Leave, taken: &Taken<Q::Claim>, well: bool) {
        let (failed, now_ms) = (!well, self.progress.wall_ms());
        let changed = lock(&self.progress.breaker).ran(leave, taken.record.attempt, failed, now_ms);
        match changed {
            None => self.compare(if failed { TELL_EVERY } else { TELL_WELL_EVERY }).await,
            Some(change) => self.changed(change).await,
        }
    }

    /// While the link pauses, here or elsewhere, nothing is given up but what the component answered so.
    async fn unless_paused(&self, settlement: Settlement) -> Settlement {
        let is_given_up = matches!(settlement, Settlement::DeadLetter { .. }) && ended_well(&settlement) == Some(false);
        if !is_given_up {
            return settlement;
        }
        if self.progress.paused_since_ms().is_none() {
            // One that the ledger keeps was ended by a person, or by a probe.
            if !self.forget_pause().await {
                self.join_pause().await;
                self.compare(Duration::ZERO).await;
            }
        }
        match self.progress.paused_since_ms() {
            Some(_) => Settlement::GiveBack { after: PAUSED },
            None => settlement,
        }
    }
}

/// Whether it ended well by what is to become of it; `None`: that says nothing. A component that wants a message among the
/// dead letters has answered, as one that drops it.
const fn ended_well(settlement: &Settlement) -> Option<bool> {
    match settlement {
        Settlement::GiveBack { .. } => None,
        Settlement::Ack | Settlement::Drop { .. } => Some(true),
        Settlement::DeadLetter { reason: Reason::Refused(_), .. } => Some(true),
        Settlement::Retry { .. } | Settlement::DeadLetter { .. } => Some(false),
    }
}

/// A message in a handler, counted until dropped: also where the run is broken off.
struct InFlight<'a>(&'a Counts);

impl<'a> InFlight<'a> {
    fn count(counts: &'a Counts) -> Self {
        counts.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of a message before it is run.
enum Known {
    /// It is to be run.
    Mark(Mark),
    /// It is not.
    Settled(Settlement),
}

/// The outbox.
impl<Q: Queue> Engine<Q> {
    /// Stores what a handler published, so that it cannot be forgotten any more, then sends it.
    async fn publish(&self, taken: &Taken<Q::Claim>, sends: Vec<Outgoing>) -> Settlement {
        if let Some(ledger) = self.queue.ledger() {
            let what = "what a handler published cannot be stored";
            let stored = self.persist(what, || store_outbox(ledger, taken, &sends).boxed());
            if stored.await.is_none() {
                // Nothing was sent: its handler is run again.
                return Settlement::GiveBack { after: AGAIN };
            }
        }
        self.send_all(sends).await
    }

    /// Sends in order, until one cannot be sent: that decides what becomes of the message.
    async fn send_all(&self, sends: Vec<Outgoing>) -> Settlement {
        let all = sends.len();
        for (sent, outgoing) in sends.into_iter().enumerate() {
            let subject = outgoing.message.subject.clone();
            let Err(why) = self.permits.send(outgoing).await else { continue };
            let reason = format!("what it published on `{subject}` could not be sent ({sent} of {all} were): {why}");
            return match why {
                CallError::Unavailable(_) | CallError::TimedOut(_) => {
                    self.progress.pause(reason, PAUSE_MIN);
                    Settlement::GiveBack { after: AGAIN }
                }
                _ => {
                    let (reason, ran) = (Reason::Unsent(reason), Default::default());
                    Settlement::DeadLetter { reason, fault: None, ran }
                }
            };
        }
        Settlement::Ack
    }

    async fn stored_outbox(&self, taken: &Taken<Q::Claim>) -> Result<Option<Vec<Outgoing>>, Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(None) };
        let Some(first) = ledger.read(&ledger::outbox_key(&taken.place, 0)).await? else { return Ok(None) };
        let Some(count) = ledger::parts_of(&first) else { return Ok(None) };
        let mut parts = vec![first];
        for part in 1..count {
            let Some(next) = ledger.read(&ledger::outbox_key(&taken.place, part)).await? else { return Ok(None) };
            parts.push(next);
        }
        Ok(ledger::outbox(&parts))
    }

    /// The message is off: what was stored of its outbox is of no use any more. What stays goes by itself.
    pub(super) async fn forget_outbox(&self, taken: &Taken<Q::Claim>) {
        if !taken.has_outbox() {
            return;
        }
        let Some(ledger) = self.queue.ledger() else { return };
        for part in 0.. {
            let key = ledger::outbox_key(&taken.place, part);
            let removed = async {
                match ledger.read(&key).await? {
                    Some(stored) => ledger.swap(&key, Some(&stored), None, KEPT).await,
                    None => Ok(false),
                }
            };
            if !matches!(removed.await, Ok(true)) {
                return;
            }
        }
    }
}

/// The first part goes last: with it the outbox counts.
async fn store_outbox<C>(ledger: &dyn Ledger, taken: &Taken<C>, sends: &[Outgoing]) -> Result<(), Trouble> {
    taken.expect_outbox();
    for (part, bytes) in ledger::outbox_parts(sends).iter().enumerate().rev() {
        let key = ledger::outbox_key(&taken.place, part);
        let before = ledger.read(&key).await?;
        if before.as_deref() != Some(bytes) && !ledger.swap(&key, before.as_deref(), Some(bytes), KEPT).await? {
            return Err("another delivery of the message is at it".into());
        }
    }
    Ok(())
}

/// Marks.
impl<Q: Queue> Engine<Q> {
    /// Marks a message as being handled, unless it was or is.
    async fn mark(&self, taken: &Taken<Q::Claim>) -> Result<Mark, Trouble> {
        let (Some(key), Some(ledger)) = (self.mark_key(taken), self.queue.ledger()) else { return Ok(Mark::None) };
        let (ours, keep) = (ledger::running(&taken.place), self.runs_at_most());
        if ledger.swap(&key, None, Some(&ours), keep).await? {
            return Ok(Mark::Ours(key));
        }
        match ledger.read(&key).await? {
            Some(held) if *held == *ours && !taken.place.has_twins => {
                ledger.swap(&key, Some(&ours), Some(&ours), keep).await?;
                Ok(Mark::Ours(key))
            }
            Some(held) if *held == *DONE => Ok(Mark::Done),
            // It ended between the two looks, or is another's.
            _ => Ok(Mark::Theirs),
        }
    }

    fn mark_key(&self, taken: &Taken<Q::Claim>) -> Option<String> {
        ledger::mark_key(self.policy.dedupe.as_ref()?, &taken.message, &taken.place)
    }

    /// As long as a run may take: where a node dies, a twin waits for so long.
    fn runs_at_most(&self) -> Duration {
        self.policy.timeout + RUN_GRACE + super::queue::CLAIM
    }

    /// The run is over. The mark stays for the window, or for as long as a run takes where the component said ok and what it
    /// published is still to be sent, or goes.
    async fn marked(&self, taken: &Taken<Q::Claim>, key: &str, settlement: &Settlement, is_ok: bool) {
        let (Some(dedupe), Some(ledger)) = (&self.policy.dedupe, self.queue.ledger()) else { return };
        let ours = ledger::running(&taken.place);
        let (new, keep) = match settlement {
            Settlement::Ack => (Some(DONE), dedupe.window),
            Settlement::GiveBack { .. } if is_ok => (Some(&*ours), self.runs_at_most()),
            _ => (None, Duration::ZERO),
        };
        let what = "that a message was handled cannot be marked";
        let written = self.persist(what, || write_mark(ledger, key, &ours, new, keep).boxed());
        if written.await.is_none() {
            tracing::warn!(link = %self.link, "a twin of a message that was handled may be handled as well");
        }
    }
}

/// Only what was handled takes the place of a twin's mark.
async fn write_mark(
    ledger: &dyn Ledger,
    key: &str,
    ours: &[u8],
    new: Option<&[u8]>,
    keep: Duration,
) -> Result<(), Trouble> {
    let held = ledger.read(key).await?;
    let is_theirs = held.as_deref().is_some_and(|held| held != ours);
    let stays = if is_theirs { new != Some(DONE) } else { held.is_none() && new.is_none() };
    match stays || ledger.swap(key, held.as_deref(), new, keep).await? {
        true => Ok(()),
        false => Err("someone else is at the mark".into()),
    }
}
