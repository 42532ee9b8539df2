//! The loop of a queue: permit -> pull -> sandbox -> settle.
//!
//! Nothing is pulled without a permit in hand, so a node holds no more messages than it can run, and an idle queue holds
//! no permit. Each message runs in a sandbox of its own beside the others; while it runs its claim is extended, and only
//! then: when the node dies, the broker gives it out again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trellis_wire::{Delivery, Error, Event, Failure, Fault, LinkId, Message, Outcome, Rate};

use super::policy::{self, Record, Settlement};
use super::queue::{Claimed, EXTEND_EVERY, PULL_MAX, Queue, Trouble};
use crate::{LinkError, Permit, Permits, Want};

/// The pauses of a link when the node or the broker is short of something.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a settlement is tried that the broker does not take. The claim is extended meanwhile.
const SETTLE_TRIES: u32 = 20;
/// How much longer than its timeout a run is waited for, since the node ends it by itself.
const RUN_GRACE: Duration = Duration::from_secs(5);

/// The engine of one link.
pub struct Engine<Q: Queue> {
    link: LinkId,
    queue: Q,
    permits: Permits,
    policy: Delivery,
    in_flight: Arc<Semaphore>,
    pace: Mutex<Pace>,
    progress: Arc<Progress>,
    runs: TaskTracker,
}

/// What others may see of an engine.
#[derive(Debug, Default)]
pub struct Progress {
    trouble: Mutex<Option<Trouble>>,
    paused_until: Mutex<Option<Instant>>,
}

impl Progress {
    /// What is not well.
    ///
    /// # Errors
    /// For people.
    pub fn health(&self) -> Result<(), String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    fn set(&self, trouble: Option<Trouble>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn pause(&self, why: Trouble, for_: Duration) {
        self.set(Some(why));
        *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + for_);
    }

    fn paused_until(&self) -> Option<Instant> {
        *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a run holds besides its permit: its place under `max_in_flight`.
struct Turn {
    permit: Permit,
    place: Option<OwnedSemaphorePermit>,
}

impl<Q: Queue> Engine<Q> {
    /// An engine for one link. Nothing happens until [`Engine::run`].
    ///
    /// # Errors
    /// The policy asks for what is not built.
    pub fn new(link: LinkId, queue: Q, permits: Permits, policy: Delivery) -> Result<Arc<Self>, LinkError> {
        check(&policy)?;
        let in_flight = policy.max_in_flight.map_or(Semaphore::MAX_PERMITS, |max| max as usize);
        Ok(Arc::new(Self {
            link,
            queue,
            permits,
            in_flight: Arc::new(Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS))),
            pace: Mutex::new(Pace::new(policy.rate_limit)),
            policy,
            progress: Arc::default(),
            runs: TaskTracker::new(),
        }))
    }

    /// How it goes.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// What it pulls from.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Runs until `stop`: then nothing more is pulled, and it returns when all that was is settled or given back.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = PAUSE_MIN;
        while !stop.is_cancelled() {
            // A round is not dropped in the middle of a pull: what it claims is run or given back.
            let trouble = match self.round(&stop).await {
                Ok(()) => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Err(Error::ShuttingDown) => break,
                Err(why) => why.to_string(),
            };
            self.progress.set(Some(trouble));
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
        self.runs.close();
        self.runs.wait().await;
    }

    /// Waits until there is something to do and leave to do it, and begins it.
    async fn round(self: &Arc<Self>, stop: &CancellationToken) -> Result<(), Error> {
        let gathered = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Error::ShuttingDown),
            gathered = self.gather() => gathered,
        };
        let mut turns = gathered?;
        let pulled = self.queue.pull(turns.len()).await.map_err(Error::Internal)?;
        self.progress.set(None);
        for claimed in pulled {
            let turn = turns.pop_front().filter(|_| !stop.is_cancelled());
            self.pace.lock().unwrap_or_else(PoisonError::into_inner).took();
            self.runs.spawn(self.clone().deliver(turn, claimed));
        }
        Ok(())
    }

    /// Permits for the messages that wait: one at least, and as many more as are free at once.
    async fn gather(&self) -> Result<VecDeque<Turn>, Error> {
        if let Some(until) = self.progress.paused_until() {
            tokio::time::sleep_until(until).await;
        }
        let waiting = self.queue.ready().await.map_err(Error::Internal)?;
        let allowed = self.allowed().await;
        let most = waiting.clamp(1, PULL_MAX.min(allowed));
        let mut turns = VecDeque::from([self.turn().await?]);
        while turns.len() < most {
            match tokio::time::timeout(Duration::ZERO, self.turn()).await {
                Ok(Ok(turn)) => turns.push_back(turn),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok(turns)
    }

    async fn turn(&self) -> Result<Turn, Error> {
        let place = match self.policy.max_in_flight {
            None => None,
            Some(_) => Some(self.in_flight.clone().acquire_owned().await.map_err(|_| Error::ShuttingDown)?),
        };
        Ok(Turn { permit: self.permits.acquire(Want::Pull).await?, place })
    }

    /// Waits until the rate limit allows one message at least, and says how many it allows.
    async fn allowed(&self) -> usize {
        loop {
            let next = self.pace.lock().unwrap_or_else(PoisonError::into_inner).allowed(Instant::now());
            match next {
                Ok(allowed) => return allowed,
                Err(at) => tokio::time::sleep_until(at).await,
            }
        }
    }

    /// Runs one message and settles it. Without a turn it is only given back.
    async fn deliver(self: Arc<Self>, turn: Option<Turn>, claimed: Claimed<Q::Claim>) {
        let Claimed { claim, message, record, .. } = claimed;
        let settlement = match (turn, policy::begin(&self.policy, &record)) {
            (None, _) => Settlement::GiveBack { after: Duration::ZERO },
            (Some(_), Some(instead)) => instead,
            (Some(Turn { permit, place }), None) => {
                let subject = message.subject.clone();
                let outcome = self.run_extended(permit, message, &claim).await;
                drop(place);
                self.note(&subject, &record, &outcome);
                policy::settle(&self.policy, &record, &outcome, rand::random())
            }
        };
        self.settle(&claim, &settlement).await;
    }

    /// The run, while its claim is kept.
    async fn run_extended(&self, permit: Permit, message: Message, claim: &Q::Claim) -> Outcome {
        let timeout = self.policy.timeout;
        let run = permit.run_within(Event::Message(message), timeout);
        let extended = async {
            let mut ticks = tokio::time::interval_at(Instant::now() + EXTEND_EVERY, EXTEND_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if let Err(why) = self.queue.extend(claim).await {
                    tracing::debug!(link = %self.link, why, "a claim was not extended");
                }
            }
        };
        tokio::select! {
            outcome = run => outcome,
            () = extended => unreachable!("extending has no end"),
            () = tokio::time::sleep(timeout.saturating_add(RUN_GRACE)) => {
                let limit_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                Err(Fault::Deadline { limit_ms }.into())
            }
        }
    }

    /// Has the broker carry it out, again while it does not. What is never carried out is given out again.
    async fn settle(&self, claim: &Q::Claim, settlement: &Settlement) {
        let mut pause = PAUSE_MIN;
        for _ in 0..SETTLE_TRIES {
            let why = match self.queue.settle(claim, settlement).await {
                Ok(()) => return,
                Err(why) => why,
            };
            self.progress.pause(format!("a message cannot be settled: {why}"), pause);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            if let Err(why) = self.queue.extend(claim).await {
                tracing::debug!(link = %self.link, why, "a claim was not extended");
            }
        }
        tracing::warn!(link = %self.link, ?settlement, "a message could not be settled; it will be given out again");
    }

    /// Says what did not end well, and lets the node recover from a shortage.
    fn note(&self, subject: &str, record: &Record, outcome: &Outcome) {
        let (link, attempt) = (&self.link, record.attempt);
        match outcome {
            Ok(_) => {}
            Err(Failure::Fault(why)) => tracing::warn!(%link, subject, attempt, "{why}"),
            Err(Failure::Error(why)) => {
                tracing::debug!(%link, subject, "a message was not run: {why}");
                self.progress.pause(why.to_string(), PAUSE_MIN);
            }
        }
    }
}

/// Refuses by name what is not built: ignored, it would break what the manifest promises.
fn check(policy: &Delivery) -> Result<(), LinkError> {
    let unsupported = |key: &str, what: &str| {
        Err(LinkError::Unsupported(format!("`delivery.{key}`: {what} is not built yet; take it out of the link")))
    };
    if policy.order_by.is_some() {
        return unsupported("order_by", "keeping an order");
    }
    if policy.dedupe.is_some() {
        return unsupported("dedupe", "handling a message only once");
    }
    Ok(())
}

/// `rate_limit`: so many messages begun in each window of time that begins with the first of them.
#[derive(Debug)]
struct Pace {
    rate: Option<Rate>,
    window_from: Option<Instant>,
    taken: u32,
}

impl Pace {
    fn new(rate: Option<Rate>) -> Self {
        Self { rate, window_from: None, taken: 0 }
    }

    /// How many may begin now; if none, when to ask again.
    fn allowed(&mut self, now: Instant) -> Result<usize, Instant> {
        let Some(Rate { count, per }) = self.rate else { return Ok(usize::MAX) };
        let end = self.window_from.map(|from| from + per);
        if end.is_none_or(|end| end <= now) {
            (self.window_from, self.taken) = (Some(now), 0);
        }
        match (count.saturating_sub(self.taken), end) {
            (0, Some(end)) => Err(end),
            (left, _) => Ok(left.max(1) as usize),
        }
    }

    fn took(&mut self) {
        self.taken = self.taken.saturating_add(1);
    }
}
