//! The loop of a queue: permit -> pull -> sandbox -> settle.
//!
//! Nothing is pulled without a permit in hand, so a node holds no more messages than it can run, and an idle queue holds
//! no permit. Each message runs in a sandbox of its own beside the others; while it runs its claim is extended, and only
//! then: when the node dies, the broker gives it out again. An ordered link is pulled by `ordered` instead.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use trellis_wire::{Delivery, Error, LinkId};

use super::breaker::Leave;
use super::held::{Held, Taken};
use super::ledger::{self, KEPT};
use super::pauses::{PAUSE_MAX, PAUSE_MIN, Pauses};
use super::policy::Settlement;
use super::progress::{Progress, lock};
use super::queue::{CLAIM, Claimed, PULL_MAX, Place, Queue, Trouble};
use crate::{Begun, Caps, LinkError, Permit, Permits, Share, Want};

/// Messages that a link settles beside those that it runs, if it runs fewer.
const SETTLING_MIN: usize = 64;
/// How often a settlement is tried that the broker does not take. The claim is extended meanwhile.
const SETTLE_TRIES: u32 = 20;

/// The engine of one link.
pub struct Engine<Q: Queue> {
    pub(super) link: LinkId,
    pub(super) queue: Q,
    pub(super) permits: Permits,
    pub(super) policy: Delivery,
    pub(super) share: Arc<Share>,
    pub(super) held: Arc<Held<Q::Claim>>,
    pub(super) progress: Arc<Progress>,
    /// The pause of the link that the ledger keeps, as far as this engine knows.
    pub(super) kept_pause: Mutex<Option<u64>>,
    /// When other nodes were told last how first attempts ended.
    pub(super) told_at: tokio::sync::Mutex<Instant>,
    /// A version that was on trial, and code that ran beside it.
    pub(super) beside: Mutex<Option<(String, String)>>,
    pub(super) runs: TaskTracker,
    /// Messages that were run and are being settled, and told when they are fewer.
    settling: AtomicUsize,
    settled: Notify,
}

/// What a run needs: leave to begin it, its place under the caps, and its permit.
pub(super) struct Turn {
    pub(super) leave: Leave,
    pub(super) begun: Begun,
    pub(super) permit: Permit,
}

impl<Q: Queue> Engine<Q> {
    /// An engine for one link. Nothing happens until [`Engine::run`].
    ///
    /// # Errors
    /// The policy asks for what the broker cannot keep.
    pub fn new(link: LinkId, queue: Q, permits: Permits, policy: Delivery) -> Result<Arc<Self>, LinkError> {
        check(&policy, &queue, &permits)?;
        let share = permits.share(&link, Caps { in_flight: policy.max_in_flight, rate: policy.rate_limit });
        Ok(Arc::new(Self {
            link,
            queue,
            permits,
            policy,
            share,
            held: Arc::default(),
            progress: Arc::default(),
            kept_pause: Mutex::default(),
            told_at: tokio::sync::Mutex::new(Instant::now()),
            beside: Mutex::default(),
            runs: TaskTracker::new(),
            settling: AtomicUsize::new(0),
            settled: Notify::new(),
        }))
    }

    /// How it goes.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Its queue was not found yet, or is not there: that is said until it is.
    pub fn looks_for(&self, why: impl Into<Trouble>) {
        self.progress.set(Some(why.into()));
    }

    /// What it pulls from.
    pub const fn queue(&self) -> &Q {
        &self.queue
    }

    /// Runs until `stop`: then nothing more is pulled, and it returns when all that was is settled or given back.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let pulled = async {
            stop.run_until_cancelled(self.look_again()).await;
            stop.run_until_cancelled(self.join_pause()).await;
            match self.policy.order_by {
                None => self.pull_all(&stop).await,
                Some(_) => self.pull_in_order(&stop).await,
            }
            self.runs.close();
            self.runs.wait().await;
        };
        // Guests may hold up the threads that they are on for longer than a claim lasts.
        let extending = {
            let this = self.clone();
            async move { this.held.extend(&this.queue, &this.link).await }
        };
        let mut extending = AbortOnDropHandle::new(self.permits.threads().spawn(extending));
        tokio::select! {
            () = pulled => {}
            // A link whose claims nobody extends must not go on.
            Err(why) = &mut extending => match why.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        }
        extending.abort();
        // What it has of the queue is free when this returns.
        let _ = extending.await;
    }

    async fn pull_all(self: &Arc<Self>, stop: &CancellationToken) {
        let mut pauses = self.pauses();
        while let Some(gathered) = stop.run_until_cancelled(self.gather()).await {
            let pulled = match gathered {
                // Not broken off: what it claims is run or given back.
                Ok(turns) => self.pull(turns, stop).await,
                Err(Error::ShuttingDown) => return,
                Err(why) => {
                    // What the broker says is internal. Nobody says when there are permits again.
                    if !matches!(why, Error::Internal(_)) {
                        pauses.shorten();
                    }
                    Err(why.to_string())
                }
            };
            match pulled {
                Ok(()) => pauses.reset(),
                Err(why) => {
                    if !self.held_off(why, &mut pauses, stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// Says why nothing is pulled, and waits. `false`: the link ends.
    async fn held_off(&self, why: Trouble, pauses: &mut Pauses, stop: &CancellationToken) -> bool {
        self.progress.set(Some(why));
        let until = Instant::now() + pauses.next(rand::random());
        let rested = stop.run_until_cancelled(self.rest(until)).await;
        if rested == Some(true) {
            pauses.reset();
        }
        rested.is_some()
    }

    pub(super) fn pauses(&self) -> Pauses {
        Pauses::new(self.queue.mends().is_some())
    }

    /// Waits until then, or until what failed may go well again. Whether it may.
    pub(super) async fn rest(&self, until: Instant) -> bool {
        let Some(mends) = self.queue.mends() else {
            tokio::time::sleep_until(until).await;
            return false;
        };
        tokio::select! {
            () = mends => true,
            () = tokio::time::sleep_until(until) => false,
        }
    }

    /// A queue that has nothing to pull shows in no other way that it is there again. What the link pauses for is not that.
    pub(super) async fn look_again(&self) {
        let pauses = self.progress.paused_until().is_some_and(|until| until > Instant::now());
        if self.progress.is_troubled() && !pauses && self.queue.standing().await.is_ok() {
            self.progress.set(None);
        }
    }

    /// Looks whether what was not well is well again, until it is. Has no end.
    pub(super) async fn looking(&self) {
        let mut pauses = self.pauses();
        while self.progress.is_troubled() {
            tokio::time::sleep(pauses.next(rand::random())).await;
            self.look_again().await;
        }
        std::future::pending().await
    }

    /// Waits until there is something to pull, and meanwhile looks.
    async fn ready(&self) -> Result<usize, Trouble> {
        tokio::select! {
            ready = self.queue.ready() => ready,
            () = self.looking() => unreachable!("it has no end"),
        }
    }

    /// Pulls a message for each turn, and has it delivered.
    async fn pull(self: &Arc<Self>, mut turns: VecDeque<Turn>, stop: &CancellationToken) -> Result<(), Trouble> {
        let pulled = self.queue.pull(turns.len()).await;
        let trouble = pulled.as_ref().err().cloned();
        if trouble.is_none() {
            self.progress.set(None);
        }
        for taken in self.take(pulled.unwrap_or_default()).await {
            let turn = turns.pop_front().filter(|_| !stop.is_cancelled());
            self.runs.spawn(self.clone().deliver(turn, taken));
        }
        trouble.map_or(Ok(()), Err)
    }

    /// Holds what was pulled. Two are taken off unseen, since a node died in the middle: of a dead letter that was put back twice
    /// the second, and what is a dead letter already.
    pub(super) async fn take(&self, pulled: Vec<Claimed<Q::Claim>>) -> Vec<Taken<Q::Claim>> {
        // Held before anything is looked up, so that no claim ends meanwhile; looked up all at once, since a ledger that is away
        // keeps each of them waiting.
        let held: Vec<_> = pulled.into_iter().filter_map(|claimed| self.held.take(claimed)).collect();
        if held.iter().all(|taken| taken.place.once.is_none() && !taken.place.again) {
            return held;
        }
        let looked_up = join_all(held.into_iter().map(|taken| self.unless_ended(taken))).await;
        looked_up.into_iter().flatten().collect()
    }

    /// A message, unless it has ended before; then it is taken off.
    async fn unless_ended(&self, taken: Taken<Q::Claim>) -> Option<Taken<Q::Claim>> {
        let counts = || self.is_the_replay(&taken.place).boxed();
        match self.persist("whether it was replayed before cannot be known", counts).await {
            Some(true) if !self.was_buried(&taken).await => return Some(taken),
            Some(is_letter) => {
                if self.settle(&taken, &Settlement::Ack).await {
                    if is_letter {
                        self.forget_burying(&taken).await;
                    }
                    self.replay_had_ended(&taken).await;
                }
            }
            None => drop(self.settle(&taken, &Settlement::GiveBack { after: PAUSE_MAX }).await),
        }
        None
    }

    /// Whether a message is the one that its dead letter is replayed as: the first that was pulled of those that may be it.
    async fn is_the_replay(&self, place: &Place) -> Result<bool, Trouble> {
        let (Some(once), Some(ledger)) = (&place.once, self.queue.ledger()) else { return Ok(true) };
        let key = ledger::replayed_key(once);
        if ledger.swap(&key, None, Some(place.key.as_bytes()), KEPT).await? {
            return Ok(true);
        }
        let first = ledger.read(&key).await?;
        Ok(first.is_none_or(|first| *first == *place.key.as_bytes()))
    }

    /// Permits for the messages that wait: one at least, and as many more as are free at once.
    async fn gather(&self) -> Result<VecDeque<Turn>, Error> {
        self.settled_some().await;
        loop {
            let leave = self.leave().await;
            let waiting = self.ready().await.map_err(Error::Internal)?;
            let most = if leave.is_probe() { 1 } else { waiting.clamp(1, PULL_MAX) };
            let mut turns = VecDeque::from([self.turn(leave).await?]);
            if most > 1 {
                // Runs that are about to end have their next messages by the same pull, in place of one for each.
                tokio::task::yield_now().await;
            }
            while turns.len() < most {
                // Looked at once: even the shortest of timers would wait for its tick.
                match self.turn(leave).now_or_never() {
                    Some(Ok(turn)) => turns.push_back(turn),
                    Some(Err(_)) | None => break,
                }
            }
            if self.has_leave(leave) {
                return Ok(turns);
            }
            // The link began to pause, or goes on, while they were waited for.
        }
    }

    /// Waits while more messages are being settled than are run.
    async fn settled_some(&self) {
        let too_many = || {
            let running = usize::try_from(self.progress.counts().in_flight.load(Ordering::Relaxed)).unwrap_or_default();
            self.settling.load(Ordering::Relaxed) > running.max(SETTLING_MIN)
        };
        while too_many() {
            self.settled.notified().await;
        }
    }

    /// Whether what this leave is for may still begin.
    pub(super) fn has_leave(&self, leave: Leave) -> bool {
        lock(&self.progress.breaker).holds(leave)
    }

    /// Waits while the link pauses, until a message may be begun.
    pub(super) async fn leave(&self) -> Leave {
        if let Some(until) = self.progress.paused_until() {
            tokio::time::sleep_until(until).await;
        }
        loop {
            let now_ms = self.progress.wall_ms();
            let leave = lock(&self.progress.breaker).leave(now_ms);
            match leave {
                Ok(leave) if leave.is_probe() => {
                    if self.may_probe().await {
                        return leave;
                    }
                }
                Ok(leave) => {
                    // A person may have ended the pause.
                    self.forget_pause().await;
                    return leave;
                }
                // A person may end the pause meanwhile.
                Err(left) => tokio::time::sleep(Duration::from_millis(left.min(1_000))).await,
            }
        }
    }

    /// Waits for a place under the caps, then for a permit.
    pub(super) async fn turn(&self, leave: Leave) -> Result<Turn, Error> {
        let begun = self.share.begin().await;
        let asked = Instant::now();
        let permit = self.permits.acquire(Want::Pull).await?;
        self.progress.counts().permit_wait.record(asked.elapsed());
        Ok(Turn { leave, begun, permit })
    }

    /// Runs one message and settles it. Without a turn, or the leave for it, it is only given back.
    async fn deliver(self: Arc<Self>, turn: Option<Turn>, taken: Taken<Q::Claim>) {
        let settlement = match turn {
            Some(turn) if self.has_leave(turn.leave) => self.handle(turn, &taken).await,
            _ => Some(Settlement::GiveBack { after: Duration::ZERO }),
        };
        let Some(settlement) = settlement else { return };
        // Its permit is free: the next message runs while this one is settled.
        self.settling.fetch_add(1, Ordering::Relaxed);
        self.settle(&taken, &settlement).await;
        self.settling.fetch_sub(1, Ordering::Relaxed);
        self.settled.notify_one();
    }

    /// Has the broker carry it out, again while it does not. What is never carried out is given out again.
    pub(super) async fn settle(&self, taken: &Taken<Q::Claim>, settlement: &Settlement) -> bool {
        self.progress.counts().settled(settlement);
        if matches!(settlement, Settlement::Retry { .. } | Settlement::GiveBack { .. }) {
            taken.release();
        }
        let is_given_up = matches!(settlement, Settlement::DeadLetter { .. });
        if is_given_up {
            self.persist("that a message is given up cannot be kept", || self.note_burying(taken).boxed()).await;
        }
        let settle = || async { self.queue.settle(&taken.claim(), settlement).await }.boxed();
        let is_settled = self.persist("a message cannot be settled", settle).await.is_some();
        if !is_settled {
            tracing::warn!(link = %self.link, ?settlement, "a message could not be settled; it will be given out again");
        } else if is_given_up || *settlement == Settlement::Ack {
            // A dead letter that is replayed is handled anew.
            self.forget_outbox(taken).await;
        }
        if is_settled && is_given_up {
            self.forget_burying(taken).await;
        }
        is_settled
    }

    /// Does something of the broker's, again while it fails, and says why. The link pauses meanwhile, unless it fails for one
    /// message alone.
    pub(super) async fn persist<'a, T>(
        &self,
        what: &str,
        mut act: impl FnMut() -> BoxFuture<'a, Result<T, Trouble>>,
    ) -> Option<T> {
        let mut pause = PAUSE_MIN;
        for tried in 0..SETTLE_TRIES {
            match act().await {
                Ok(done) => {
                    // Who has nothing to pull would say for ever that it could not be done.
                    if tried > 0 {
                        self.progress.set(None);
                    }
                    return Some(done);
                }
                Err(why) if self.queue.is_of_one(&why) => {
                    // Until it is tried again, here or after its claim has ended.
                    self.progress.say_of_one(format!("{what}: {why}"), CLAIM + PAUSE_MAX);
                }
                Err(why) => self.progress.pause(format!("{what}: {why}"), pause),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        None
    }
}

/// Refuses by name what the broker or the node cannot keep: ignored, it would break what the manifest promises.
fn check(policy: &Delivery, queue: &impl Queue, permits: &Permits) -> Result<(), LinkError> {
    let unsupported = |key: &str, what: &str| {
        Err(LinkError::Unsupported(format!("`delivery.{key}`: this broker {what}; take it out of the link")))
    };
    if policy.order_by.is_some() && !(queue.keeps_order() && queue.ledger().is_some()) {
        return unsupported("order_by", "does not say in which order its messages stand");
    }
    if policy.order_by.is_some() && !queue.is_of_one_node() && permits.lease().is_none() {
        let problem = "`delivery.order_by`: every node pulls from this broker, so that only one may, by a lease, and this \
                       link has none; take it out of the link";
        return Err(LinkError::Unsupported(problem.into()));
    }
    if policy.dedupe.is_some() && queue.ledger().is_none() {
        return unsupported("dedupe", "has no place to keep marks of what was handled");
    }
    Ok(())
}
