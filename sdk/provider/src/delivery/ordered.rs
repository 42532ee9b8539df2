//! The loop of a link that keeps an order. One node of the lattice pulls, by lease, and holds some messages in advance, so
//! that different keys run beside each other while each key's run one after the other, wherever there are permits.
//!
//! A message stays claimed from its first attempt to its end: between attempts nothing of its key can overtake it, and
//! when this node dies everything it held comes back together. So a new holder first waits until the claims of the one
//! before have ended, unless that left in good order and says so in the ledger; then it takes all that was out, and puts it
//! in order before it runs anything.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use trellis_wire::{Error, OnDeadLetter};

use super::engine::{Engine, Turn};
use super::held::Taken;
use super::lanes::{BACK, End, LOOK_AHEAD, Lanes};
use super::ledger::{self, KEPT, PARKED, PARKS};
use super::letter::DeadLetter;
use super::pauses::{PAUSE_MAX, PAUSE_MIN, Pauses};
use super::policy::Settlement;
use super::progress::KEYS_PARKED;
use super::queue::{CLAIM, Ledger, PULL_MAX, Place, Queue, Trouble};

/// How long after another's claims ended the first message is pulled: brokers are not punctual.
const CLAIMS_OVER: Duration = Duration::from_secs(2);
/// Messages that a new holder takes over before it begins, which is more than one holder has out, and how long it waits for
/// them.
const OUT_MAX: usize = 8_192;
const OUT_WAIT_MAX: Duration = Duration::from_secs(60);
/// Messages that are given back at one time.
const GIVING_BACK_MAX: usize = 32;
/// How often it is looked whether there is room, where there was none, and whether someone decided on a parked key.
const ROOM_EVERY: Duration = Duration::from_millis(100);
const DECIDED_EVERY: Duration = Duration::from_secs(2);
/// What is not done where a key cannot be opened.
pub(super) const OPENED: &str = "that a key is open again cannot be kept";

/// A key, and what came of its message.
type Ended = (String, End);

/// What wakes the loop.
enum Woken {
    /// The link ends, or the lease is lost.
    Over,
    /// A message has ended.
    Ended(Ended),
    /// About so many may be pulled, or the broker is gone.
    Ready(Result<usize, Trouble>),
    /// It is time to look whether someone decided on what is parked.
    Look,
    /// What failed may be tried again; it may go well, if so.
    Rested(bool),
}

/// One term of a holder: from the lease's beginning to its end.
struct Term<Q: Queue> {
    engine: Arc<Engine<Q>>,
    lanes: Lanes<Taken<Q::Claim>>,
    runs: JoinSet<()>,
    ended: mpsc::Sender<Ended>,
    /// The link ends: what runs is finished, what waits is given back.
    stop: CancellationToken,
    /// The lease is lost: what runs is broken off.
    lost: CancellationToken,
    /// Either of the two.
    over: CancellationToken,
    /// How long claims of the one before may last, if it said so; and whether all that was out then is held here.
    left: Option<Duration>,
    took_over: bool,
    pauses: Pauses,
    /// Something failed: nothing is pulled before.
    rests_until: Option<Instant>,
}

impl<Q: Queue> Engine<Q> {
    pub(super) async fn pull_in_order(self: &Arc<Self>, stop: &CancellationToken) {
        let mut lease = self.permits.lease();
        while !stop.is_cancelled() {
            let token = match &mut lease {
                None => None,
                Some(lease) => tokio::select! {
                    () = stop.cancelled() => return,
                    token = lease.held() => Some(token),
                    () = self.looking() => unreachable!("it has no end"),
                },
            };
            if lease.as_ref().is_some_and(|lease| lease.token() != token) {
                // It went, perhaps for good, while it was taken.
                tokio::select! { () = stop.cancelled() => return, () = sleep(PAUSE_MIN) => continue }
            }
            let (ended, ends) = mpsc::channel(LOOK_AHEAD);
            let (lost, over) = (CancellationToken::new(), stop.child_token());
            let term = Term {
                engine: self.clone(),
                lanes: Lanes::default(),
                runs: JoinSet::new(),
                ended,
                stop: stop.clone(),
                lost: lost.clone(),
                over: over.clone(),
                left: None,
                took_over: false,
                pauses: self.pauses(),
                rests_until: None,
            };
            let loses = async {
                if let (Some(lease), Some(token)) = (&mut lease, token) {
                    lease.lost(token).await;
                    lost.cancel();
                    over.cancel();
                }
                // The term ends by that, or by the link's end.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = term.serve(ends) => {}
                () = loses => unreachable!("it has no end"),
            }
        }
    }

    /// A key that was parked is open again.
    pub(super) async fn open_key(&self, key: &str) -> Result<(), Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(()) };
        ledger.remove(&ledger::parked_key(key)).await?;
        ledger.remove(&ledger::parks_key(key)).await?;
        ledger.remove(&ledger::opens_key(key)).await.map(drop)
    }

    /// A dead letter of a key was dropped, or had been replayed before: the key is open, unless another holds it.
    pub(super) async fn open_unless_held(&self, key: &str) -> Result<(), Trouble> {
        match self.is_held(key, None).await? {
            true => Ok(()),
            false => self.open_key(key).await,
        }
    }

    /// Whether a key is parked, and has a dead letter other than this one, or one that is replayed and has not ended again.
    async fn is_held(&self, key: &str, but: Option<&str>) -> Result<bool, Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(false) };
        if ledger.read(&ledger::parked_key(key)).await?.is_none() {
            return Ok(false);
        }
        // In this order: one that is replayed is noted before it is no letter any more.
        if self.has_letter(key, but).await? {
            return Ok(true);
        }
        let own = but.map(|letter| ledger::replays_key(key, letter));
        Ok(ledger.keys(&ledger::replays_of(key)).await?.iter().any(|replay| Some(replay) != own.as_ref()))
    }

    /// A dead letter is about to be put back: what it is replayed as holds its key, from before the letter is off until it has
    /// ended. What that was noted by, if nobody else had.
    pub(super) async fn note_replay(&self, id: &str) -> Result<Option<String>, Trouble> {
        let (Some(order), OnDeadLetter::Park) = (&self.policy.order_by, self.policy.on_dead_letter) else {
            return Ok(None);
        };
        let of = self.find_letter(|letter| (letter.id == id).then(|| ledger::order_key(order, &letter.message)));
        let (Some(key), Some(ledger)) = (of.await?, self.queue.ledger()) else { return Ok(None) };
        let noted = ledger::replays_key(&key, id);
        Ok(ledger.swap(&noted, None, Some(id.as_bytes()), KEPT).await?.then_some(noted))
    }

    /// No dead letter of that name is replayed, or it has ended.
    pub(super) async fn forget_replay(&self, noted: &str) {
        let Some(ledger) = self.queue.ledger() else { return };
        let what = "that a dead letter is not replayed any more cannot be kept";
        self.persist(what, || ledger.remove(noted).boxed()).await;
    }

    /// What was replayed is about to be off, or a dead letter again.
    async fn replay_ends(&self, taken: &Taken<Q::Claim>, key: &str) {
        if let Some(letter) = &taken.place.replay_of {
            self.forget_replay(&ledger::replays_key(key, letter)).await;
        }
    }

    /// What was replayed had ended before, unless it is held as another message: it was put back twice.
    pub(super) async fn replay_had_ended(&self, taken: &Taken<Q::Claim>) {
        let is_over = taken.place.replay_of.is_some() && !taken.has_other_replay();
        let Some(key) = self.order_key(taken).filter(|_| is_over) else { return };
        self.replay_ends(taken, &key).await;
        self.persist(OPENED, || self.open_unless_held(&key).boxed()).await;
    }

    /// Whether a key that a replay would open is held by another dead letter. Its own may be there still, where a node died that
    /// replayed it. Where nobody can say, it is open: else nothing might ever open it.
    async fn stays_parked(&self, taken: &Taken<Q::Claim>, key: &str) -> bool {
        let is_held = self.is_held(key, taken.place.replay_of.as_deref()).await;
        is_held.unwrap_or_else(|why| {
            tracing::warn!(link = %self.link, key, why, "a key is opened, though it may have another dead letter");
            false
        })
    }

    /// A replay is about to be off, and the key that it opens is said to be open only afterwards: who takes over in between
    /// must know, since nothing else would ever open it.
    async fn note_opening(&self, taken: &Taken<Q::Claim>, key: &str) {
        let Some(ledger) = self.queue.ledger() else { return };
        let opens = ledger::opens_key(key);
        let noted = || note_message(ledger, &opens, &taken.place);
        self.persist("that a key is about to be opened cannot be kept", || noted().boxed()).await;
    }

    /// Whether a key that is parked was about to be opened by what is not out any more.
    async fn was_opened(&self, key: &str, out: &[Taken<Q::Claim>]) -> Result<bool, Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(false) };
        let opens = ledger.read(&ledger::opens_key(key)).await?;
        Ok(opens.is_some_and(|replay| out.iter().all(|taken| taken.place.key.as_bytes() != replay)))
    }

    /// Whether a key is parked though what parked it is no dead letter: its node died before that was written, or it could not
    /// be. Then that message is out; where it cannot be known again, there is no letter of the key, nor one that is replayed.
    async fn was_never_parked(&self, key: &str, out: &[Taken<Q::Claim>]) -> Result<bool, Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(false) };
        let Some(parks) = ledger.read(&ledger::parks_key(key)).await? else { return Ok(false) };
        let (mut replays, mut others) = (false, false);
        for taken in out {
            match taken.place.replay_of {
                Some(_) => replays |= self.order_key(taken).as_deref() == Some(key),
                None => others |= taken.place.key.as_bytes() == parks,
            }
        }
        if others || replays {
            return Ok(others);
        }
        let has_letter = self.has_letter(key, None).await.unwrap_or_else(|why| {
            tracing::warn!(link = %self.link, key, why, "a key stays parked, though it may have no dead letter");
            true
        });
        Ok(!has_letter)
    }

    fn order_key(&self, taken: &Taken<Q::Claim>) -> Option<String> {
        Some(ledger::order_key(self.policy.order_by.as_ref()?, &taken.message))
    }

    /// Whether a dead letter of this key is there, other than this one.
    async fn has_letter(&self, key: &str, but: Option<&str>) -> Result<bool, Trouble> {
        let Some(order) = &self.policy.order_by else { return Ok(false) };
        let is_of_key = |letter: &DeadLetter| ledger::order_key(order, &letter.message) == key;
        let found = self.find_letter(|letter| (but != Some(letter.id.as_str()) && is_of_key(letter)).then_some(()));
        Ok(found.await?.is_some())
    }

    /// A key is parked from before its dead letter is there for someone to decide on. Until it is, the ledger names the message
    /// beside the key: who takes over in between opens the key for it. A replay passes a parked key anyway.
    async fn park_key(&self, taken: &Taken<Q::Claim>, key: &str) {
        let (parked, parks) = (ledger::parked_key(key), ledger::parks_key(key));
        let Some(ledger) = self.queue.ledger() else { return };
        let what = "that a key is parked cannot be kept";
        // Where it is there already, it is parked.
        let park = || async {
            ledger.remove(&ledger::opens_key(key)).await?;
            if taken.place.replay_of.is_none() {
                if !note_message(ledger, &parks, &taken.place).await? {
                    return Err("another is at it".into());
                }
                // The key was open: nothing of it is replayed.
                for replay in ledger.keys(&ledger::replays_of(key)).await? {
                    ledger.remove(&replay).await?;
                }
            }
            ledger.swap(&parked, None, Some(key.as_bytes()), KEPT).await
        };
        self.persist(what, || park().boxed()).await;
    }

    /// The dead letter of a key that is parked is there.
    pub(super) async fn is_parked(&self, key: &str) {
        let Some(ledger) = self.queue.ledger() else { return };
        if let Err(why) = ledger.remove(&ledger::parks_key(key)).await {
            tracing::debug!(link = %self.link, key, why, "who takes over looks whether the dead letter is there");
        }
    }

    /// A dead letter could not be written: its message comes again, and must find its key open. Where the term ends before that
    /// is kept, who takes over finds the message out.
    async fn is_not_parked(&self, key: &str, over: &CancellationToken) {
        let open = || self.open_key(key).boxed();
        while !over.is_cancelled() && self.persist(OPENED, open).await.is_none() {}
    }

    /// Forgets what was to park a key that is open: its node died before, and the message was out, or someone opened the key
    /// and died.
    async fn forget_parking(&self) -> Result<(), Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(()) };
        for parks in ledger.keys(PARKS).await? {
            if ledger.read(&parks.replacen(PARKS, PARKED, 1)).await?.is_none() {
                ledger.remove(&parks).await?;
            }
        }
        Ok(())
    }

    /// Every key that is parked.
    async fn parked_keys(&self) -> Result<Vec<String>, Trouble> {
        let Some(ledger) = self.queue.ledger() else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        for parked in ledger.keys(PARKED).await? {
            let key = ledger.read(&parked).await?;
            keys.extend(key.map(|key| String::from_utf8_lossy(&key).into_owned()));
        }
        Ok(keys)
    }

    /// Works on one message until it is off, dead, or given back because the link ends.
    async fn see_through(self: Arc<Self>, mut taken: Taken<Q::Claim>, key: String, stop: CancellationToken) -> End {
        loop {
            let settlement = tokio::select! {
                biased;
                () = stop.cancelled() => Settlement::GiveBack { after: Duration::ZERO },
                turn = self.turn_in_order() => match turn {
                    Ok(turn) => match self.handle(turn, &taken).await {
                        Some(settlement) => settlement,
                        // It comes again once its claim has ended, which is not extended from here on.
                        None => break End::Back { due_ms: self.due_ms(CLAIM) },
                    },
                    Err(Error::ShuttingDown) => Settlement::GiveBack { after: Duration::ZERO },
                    Err(why) => {
                        self.progress.set(Some(why.to_string()));
                        Settlement::GiveBack { after: PAUSE_MAX }
                    }
                },
            };
            let wait = match &settlement {
                Settlement::Retry { after, fault } => {
                    self.progress.counts().settled(&settlement);
                    let noted = || async { self.queue.note(&taken.claim(), fault.as_deref()).await }.boxed();
                    self.persist("an attempt cannot be counted", noted).await;
                    taken.tried(fault.is_some(), *after);
                    *after
                }
                Settlement::GiveBack { after } if !stop.is_cancelled() => (*after).max(PAUSE_MIN),
                _ => break self.end_of(&taken, &key, settlement, &stop).await,
            };
            tokio::select! { () = sleep(wait) => {}, () = stop.cancelled() => {} }
        }
    }

    /// When what is given back for so long comes again, by this engine's clock.
    fn due_ms(&self, after: Duration) -> u64 {
        self.progress.now_ms().saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    }

    /// Gives messages back, each for so long. Whether all are.
    async fn give_back(&self, back: Vec<(Taken<Q::Claim>, Duration)>) -> bool {
        let given_back = back
            .into_iter()
            .map(|(taken, after)| async move { self.settle(&taken, &Settlement::GiveBack { after }).await });
        let given_back = futures::stream::iter(given_back).buffer_unordered(GIVING_BACK_MAX);
        given_back.fold(true, |all, this| std::future::ready(all && this)).await
    }

    /// All that was held is given back, and the last of it is due in so many ms: the next holder need not wait for longer.
    async fn note_left(&self, due_ms: u64) {
        let Some(ledger) = self.queue.ledger().filter(|_| !self.queue.is_of_one_node()) else { return };
        let key = ledger::left_key(&self.link);
        if let Err(why) = ledger.swap(&key, None, Some(&due_ms.to_be_bytes()), KEPT).await {
            tracing::debug!(link = %self.link, why, "the next holder waits as if this one had died");
        }
    }

    /// In how long all is due that was out, where the one before left in good order. Nobody knows that from here on.
    async fn take_left(&self) -> Result<Option<Duration>, Trouble> {
        let Some(ledger) = self.queue.ledger().filter(|_| !self.queue.is_of_one_node()) else { return Ok(None) };
        let key = ledger::left_key(&self.link);
        let Some(left) = ledger.read(&key).await? else { return Ok(None) };
        let is_ours = ledger.swap(&key, Some(&left), None, KEPT).await?;
        Ok(is_ours.then(|| Duration::from_millis(ledger::ms(&left))))
    }

    /// A turn, once the link does not pause, also not since the turn was waited for.
    async fn turn_in_order(&self) -> Result<Turn, Error> {
        loop {
            let leave = self.leave().await;
            let turn = self.turn(leave).await?;
            if self.has_leave(leave) {
                return Ok(turn);
            }
        }
    }

    /// Settles a message that is not tried again here.
    async fn end_of(
        &self,
        taken: &Taken<Q::Claim>,
        key: &str,
        settlement: Settlement,
        over: &CancellationToken,
    ) -> End {
        let dead = matches!(settlement, Settlement::DeadLetter { .. });
        let parks = dead && self.policy.on_dead_letter == OnDeadLetter::Park;
        let is_replay = taken.place.replay_of.is_some();
        let is_off = matches!(settlement, Settlement::Ack | Settlement::Drop { .. });
        if is_off || dead {
            self.replay_ends(taken, key).await;
        }
        let stays_parked = is_off && is_replay && self.stays_parked(taken, key).await;
        if parks {
            self.park_key(taken, key).await;
        } else if is_off && is_replay && !stays_parked {
            self.note_opening(taken, key).await;
        }
        let settled = self.settle(taken, &settlement).await;
        match settled {
            // Someone may have dropped another letter just before this one was there.
            true if parks && is_replay => self.park_key(taken, key).await,
            true if parks => self.is_parked(key).await,
            // What is replayed finds its key parked either way.
            false if parks && !is_replay => self.is_not_parked(key, over).await,
            _ => {}
        }
        match settlement {
            _ if !settled => End::Back { due_ms: self.due_ms(CLAIM) },
            Settlement::GiveBack { after } => End::Back { due_ms: self.due_ms(after) },
            Settlement::DeadLetter { .. } if parks => End::Park,
            Settlement::DeadLetter { .. } => End::Continue,
            _ if stays_parked => End::OffBeside,
            Settlement::Ack | Settlement::Drop { .. } | Settlement::Retry { .. } => End::Off,
        }
    }
}

/// Names a message in an entry, whatever it named before. Whether nobody else was at it.
async fn note_message(ledger: &dyn Ledger, key: &str, place: &Place) -> Result<bool, Trouble> {
    ledger.remove(key).await?;
    ledger.swap(key, None, Some(place.key.as_bytes()), KEPT).await
}

impl<Q: Queue> Term<Q> {
    async fn serve(mut self, mut ends: mpsc::Receiver<Ended>) {
        while let Err(why) = self.take_over().await {
            self.engine.progress.set(Some(why));
            let until = Instant::now() + self.pauses.next(rand::random());
            tokio::select! {
                () = self.over.cancelled() => break,
                mended = self.engine.rest(until) => if mended { self.pauses.reset() },
            }
        }
        let mut look_at = Instant::now() + DECIDED_EVERY;
        loop {
            self.begin_what_may();
            let woken = tokio::select! {
                biased;
                () = self.over.cancelled() => Woken::Over,
                Some(ended) = ends.recv() => Woken::Ended(ended),
                () = sleep_until(look_at), if self.has_to_look() => Woken::Look,
                woken = self.may_pull() => woken,
            };
            match woken {
                Woken::Over => break,
                Woken::Ended((key, end)) => self.ended(&key, end).await,
                Woken::Ready(Ok(count)) => self.pull(count).await,
                Woken::Ready(Err(why)) => self.trouble(why),
                Woken::Rested(mended) => {
                    self.rests_until = None;
                    if mended {
                        self.pauses.reset();
                    }
                }
                Woken::Look => {
                    look_at = Instant::now() + DECIDED_EVERY;
                    self.look().await;
                }
            }
        }
        self.end(ends).await;
    }

    /// Takes what was out when this term began, and puts it in order. Nothing of it is run before.
    async fn take_over(&mut self) -> Result<(), Trouble> {
        let (engine, began) = (self.engine.clone(), Instant::now());
        // Gone before anything is pulled: if this one dies, it has not left.
        self.left = engine.take_left().await?.or(self.left);
        self.until_due(began).await?;
        let mut claimed = Vec::new();
        loop {
            let missing = engine.queue.out().await?.all.saturating_sub(claimed.len() as u64);
            if missing == 0 || self.over.is_cancelled() {
                break;
            }
            if claimed.len() >= OUT_MAX || began.elapsed() > OUT_WAIT_MAX {
                tracing::warn!(link = %engine.link, missing, "messages stay out with others, and may come late");
                break;
            }
            let most = usize::try_from(missing).unwrap_or(PULL_MAX).min(PULL_MAX);
            let pulled = engine.queue.pull(most).await?;
            if pulled.is_empty() {
                sleep(PAUSE_MIN).await;
            }
            claimed.extend(engine.take(pulled).await);
        }
        // The one before may have parked some until its end.
        for key in engine.parked_keys().await? {
            let is_open = engine.was_opened(&key, &claimed).await? || engine.was_never_parked(&key, &claimed).await?;
            match is_open {
                true => engine.open_key(&key).await?,
                false => self.lanes.park(&key, true),
            }
        }
        engine.forget_parking().await?;
        engine.progress.set(None);
        self.offer(claimed).await;
        self.took_over = !self.over.is_cancelled();
        Ok(())
    }

    /// Waits until all that is out may be pulled, so that nothing new is pulled in its place. A broker that is started anew
    /// meanwhile lets claims begin anew.
    async fn until_due(&self, began: Instant) -> Result<(), Trouble> {
        let (engine, mut told) = (&self.engine, false);
        let at_most = self.left.unwrap_or(CLAIM + CLAIMS_OVER);
        while began.elapsed() < at_most && !self.over.is_cancelled() {
            let later = engine.queue.out().await?.later;
            if later == 0 {
                break;
            }
            if !std::mem::replace(&mut told, true) {
                let why = format!("{later} messages are out with others: their claims are waited for");
                engine.progress.set(Some(why));
            }
            sleep(PAUSE_MIN).await;
        }
        Ok(())
    }

    /// Waits until something may be pulled.
    async fn may_pull(&self) -> Woken {
        match self.rests_until {
            Some(until) => Woken::Rested(self.engine.rest(until).await),
            None => Woken::Ready(self.ready().await),
        }
    }

    /// Waits for something to pull while there is room for it: also while the link pauses, since what ends that may stand
    /// behind another key than those that are held.
    async fn ready(&self) -> Result<usize, Trouble> {
        let room = loop {
            match self.lanes.room(self.engine.progress.now_ms()) {
                0 => sleep(ROOM_EVERY).await,
                room => break room,
            }
        };
        Ok(self.engine.queue.ready().await?.clamp(1, room.min(PULL_MAX)))
    }

    async fn pull(&mut self, count: usize) {
        match self.engine.queue.pull(count).await {
            Ok(pulled) => {
                self.pauses.reset();
                self.tell();
                if pulled.len() < count {
                    let gone = self.lanes.ran_dry(self.engine.progress.now_ms());
                    if gone > 0 {
                        tracing::warn!(link = %self.engine.link, gone, "messages that were given back are gone from the queue");
                    }
                }
                let taken = self.engine.take(pulled).await;
                self.offer(taken).await;
            }
            Err(why) => self.trouble(why),
        }
    }

    /// Holds messages, begins what may run, and gives back what there is no room for.
    async fn offer(&mut self, mut taken: Vec<Taken<Q::Claim>>) {
        let Some(order) = &self.engine.policy.order_by else { return };
        taken.sort_by_key(|taken| taken.place.position);
        let (mut back, mut opened, now_ms) = (Vec::new(), Vec::new(), self.engine.progress.now_ms());
        for taken in taken {
            let (key, replay) = (ledger::order_key(order, &taken.message), taken.place.replay_of.is_some());
            let position = taken.place.position.unwrap_or_default();
            if self.lanes.is_parked_by(&key, position) {
                // It is no dead letter after all: its claim had ended before it was to be one.
                self.lanes.park(&key, false);
                opened.push(key.clone());
            }
            back.extend(self.lanes.offer(&key, position, replay, taken, now_ms));
        }
        for key in opened {
            self.open(&key).await;
        }
        self.begin_what_may();
        self.engine.give_back(back).await;
    }

    fn begin_what_may(&mut self) {
        while let Some((key, taken)) = self.lanes.next(self.engine.progress.now_ms()) {
            let (engine, ended) = (self.engine.clone(), self.ended.clone());
            let (lost, over) = (self.lost.clone(), self.over.clone());
            self.runs.spawn(async move {
                let end = tokio::select! {
                    biased;
                    // At once: the loop may be waiting for the broker.
                    () = lost.cancelled() => return,
                    end = engine.see_through(taken, key.clone(), over) => end,
                };
                // Whoever listens ends only with the term.
                let _ = ended.send((key, end)).await;
            });
        }
    }

    async fn ended(&mut self, key: &str, end: End) {
        let now_ms = self.engine.progress.now_ms();
        match self.lanes.ended(key, end, now_ms) {
            Some(true) => {
                let waiting = self.lanes.hand_back(key, now_ms);
                self.engine.give_back(waiting.into_iter().map(|taken| (taken, BACK)).collect()).await;
            }
            Some(false) => self.open(key).await,
            None => {}
        }
        while self.runs.try_join_next().is_some() {}
        self.tell();
    }

    /// What parked the key was replayed and is handled, or is no dead letter.
    async fn open(&self, key: &str) {
        let opened = self.engine.persist(OPENED, || self.engine.open_key(key).boxed());
        if opened.await.is_none() {
            tracing::warn!(link = %self.engine.link, key, "the key will be parked again by the next holder");
        }
    }

    /// Whether something changes without a message. What is idle and well asks the broker nothing but for messages.
    fn has_to_look(&self) -> bool {
        let progress = &self.engine.progress;
        let may_change = self.lanes.has_parked() || progress.is_troubled() || progress.paused_since_ms().is_some();
        may_change && self.rests_until.is_none()
    }

    /// Whether someone decided on a parked key.
    async fn look(&mut self) {
        if !self.lanes.has_parked() {
            self.engine.look_again().await;
            return;
        }
        match self.engine.parked_keys().await {
            Ok(still) => {
                self.tell();
                for key in self.lanes.parked().into_iter().filter(|key| !still.contains(key)) {
                    self.lanes.park(&key, false);
                }
            }
            Err(why) => self.engine.progress.set(Some(why)),
        }
    }

    /// Says what is parked, or that all is well.
    fn tell(&self) {
        let parked = self.lanes.parked().len();
        let full = if self.lanes.is_full() { "; nothing more can be held until someone decides" } else { "" };
        let told = (parked > 0)
            .then(|| format!("{parked} {KEYS_PARKED}: `trellis dead-letters list`, then replay or drop{full}"));
        self.engine.progress.set(told);
    }

    fn trouble(&mut self, why: Trouble) {
        self.engine.progress.set(Some(why));
        self.rests_until = Some(Instant::now() + self.pauses.next(rand::random()));
    }

    /// Where the link ends, what runs is finished and the rest given back. Where the lease is lost another may hold it
    /// soon: what runs is aborted, and claims are left to end.
    async fn end(mut self, mut ends: mpsc::Receiver<Ended>) {
        let engine = self.engine;
        if !self.stop.is_cancelled() {
            tracing::warn!(link = %engine.link, "the lease of an ordered link is lost; what ran is broken off");
            self.runs.shutdown().await;
            engine.queue.leave().await;
            return;
        }
        let waiting = self.lanes.take_all().into_iter().map(|taken| (taken, Duration::ZERO));
        let is_back = engine.give_back(waiting.collect()).await;
        drop(self.ended);
        while self.runs.join_next().await.is_some() {}
        let now_ms = engine.progress.now_ms();
        while let Ok((key, end)) = ends.try_recv() {
            self.lanes.ended(&key, end, now_ms);
        }
        engine.queue.leave().await;
        if is_back && self.took_over {
            engine.note_left(self.lanes.last_due_ms().unwrap_or_default().saturating_sub(now_ms)).await;
        }
    }
}
