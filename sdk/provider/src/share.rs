//! A node's share of a cap: how many may be under way at one time, and how many may begin in a time. The cap belongs to
//! the whole lattice; what this node may use of it is set from outside and changes while it is used.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use trellis_wire::Rate;

/// A cap, or a part of one. `None`: as many as one likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// How many may be under way at one time.
    pub in_flight: Option<u32>,
    /// How many may begin in which time.
    pub rate: Option<Rate>,
}

impl Caps {
    /// Whether nothing is capped.
    pub const fn is_none(&self) -> bool {
        self.in_flight.is_none() && self.rate.is_none()
    }
}

/// What a node may use of a cap.
#[derive(Debug)]
pub struct Share {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    caps: Caps,
    in_use: u32,
    waiting: u32,
    /// Those in use that may begin and have not: each has its turn, which counts against the rate from when it begins.
    unbegun: u32,
    /// When those began that still count against the rate, oldest first: with those that may, at most as many as the cap allows.
    begun: VecDeque<Instant>,
}

/// How a share is used now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Under way.
    pub in_use: u32,
    /// Waiting to begin.
    pub waiting: u32,
}

/// One that may begin, or is under way. Its place goes back when this is dropped; what has not begun by then counts against no
/// rate.
#[derive(Debug)]
pub struct Begun {
    share: Arc<Share>,
    has_begun: bool,
}

impl Share {
    /// A share to begin with.
    pub fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { caps, ..State::default() }), changed: Notify::new() })
    }

    /// From now on it is this. What is under way beyond it ends by itself.
    pub fn set(&self, caps: Caps) {
        self.state().caps = caps;
        self.changed.notify_waiters();
    }

    /// What it is.
    pub fn caps(&self) -> Caps {
        self.state().caps
    }

    /// How it is used.
    pub fn used(&self) -> Use {
        let state = self.state();
        Use { in_use: state.in_use, waiting: state.waiting }
    }

    /// A place for one, as soon as it may begin. What waits is counted as demand; it may be dropped.
    pub async fn begin(self: &Arc<Self>) -> Begun {
        if let Ok(place) = self.try_begin() {
            return place;
        }
        let _waiting = Waiting::count(self);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Heard from before the look, so that nothing comes in between unseen.
            changed.as_mut().enable();
            match self.try_begin() {
                Ok(place) => return place,
                Err(Some(at)) => tokio::select! { () = sleep_until(at) => {}, () = changed => {} },
                Err(None) => changed.await,
            }
        }
    }

    /// A place for one, if it may begin now.
    ///
    /// # Errors
    /// When to ask again; `None`: when something changes.
    pub fn try_begin(self: &Arc<Self>) -> Result<Begun, Option<Instant>> {
        let mut state = self.state();
        if state.caps.in_flight.is_some_and(|most| state.in_use >= most) {
            return Err(None);
        }
        state.turn(Instant::now())?;
        state.in_use += 1;
        state.unbegun += 1;
        Ok(Begun { share: self.clone(), has_begun: false })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether one more may begin, whenever it does. In no span of the rate's time do more begin than it says, wherever the
    /// span lies.
    fn turn(&mut self, now: Instant) -> Result<(), Option<Instant>> {
        let Some(Rate { count, per }) = self.caps.rate else { return Ok(()) };
        while self.begun.front().is_some_and(|begun| *begun + per <= now) {
            self.begun.pop_front();
        }
        let (most, taken) = (u64::from(count), self.begun.len() as u64 + u64::from(self.unbegun));
        if taken < most {
            return Ok(());
        }
        // The share may have shrunk: then several must be over first. Where those are not enough, some that may begin must.
        let over = usize::try_from(taken - most).unwrap_or(usize::MAX);
        Err(self.begun.get(over).map(|begun| *begun + per))
    }
}

impl Begun {
    /// It begins now.
    pub fn begins(&mut self) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let has_rate = {
            let mut state = self.share.state();
            state.unbegun -= 1;
            let has_rate = state.caps.rate.is_some();
            if has_rate {
                state.begun.push_back(Instant::now());
            }
            has_rate
        };
        if has_rate {
            // Who waits knows now until when.
            self.share.changed.notify_waiters();
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        {
            let mut state = self.share.state();
            state.in_use -= 1;
            state.unbegun -= u32::from(!self.has_begun);
        }
        self.share.changed.notify_waiters();
    }
}

/// One who waits, counted until dropped: also where the wait is given up.
struct Waiting<'a>(&'a Share);

impl<'a> Waiting<'a> {
    fn count(share: &'a Share) -> Self {
        share.state().waiting += 1;
        Self(share)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rate(count: u32, ms: u64) -> Caps {
        Caps { rate: Some(Rate { count, per: Duration::from_millis(ms) }), in_flight: None }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_under_way_than_the_share_allows_also_when_it_shrinks() {
        let share = Share::new(Caps { in_flight: Some(2), rate: None });
        let (first, second) = (share.begin().await, share.begin().await);
        assert!(share.try_begin().is_err());
        share.set(Caps { in_flight: Some(1), rate: None });
        drop(first);
        assert!(share.try_begin().is_err(), "one is still under way, and one is all there is");
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.begin().await }
        });
        tokio::task::yield_now().await;
        assert_eq!(share.used(), Use { in_use: 1, waiting: 1 });
        share.set(Caps { in_flight: Some(2), rate: None });
        drop(waiting.await.unwrap());
        drop(second);
        assert_eq!(share.used(), Use::default());
    }

    #[tokio::test(start_paused = true)]
    async fn in_no_span_of_time_do_more_begin_than_the_rate_says() {
        let share = Share::new(rate(3, 1_000));
        let began = Instant::now();
        let mut at = Vec::new();
        for i in 0..10 {
            share.begin().await.begins();
            at.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(i * 40)).await;
        }
        for (i, from) in at.iter().enumerate() {
            let within = at[i..].iter().filter(|other| **other - *from < Duration::from_secs(1)).count();
            assert!(within <= 3, "{at:?}");
        }
        assert!(at[3] >= Duration::from_secs(1) && at[9] < Duration::from_millis(4_500), "{at:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_begin_and_waits_for_something_else_counts_from_when_it_begins() {
        let (share, began) = (Share::new(rate(2, 1_000)), Instant::now());
        let (mut first, mut second) = (share.begin().await, share.begin().await);
        tokio::time::sleep(Duration::from_millis(900)).await;
        first.begins();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(share.try_begin().map(drop), Err(Some(began + Duration::from_millis(1_900))));
        second.begins();
        drop((first, second));
        let mut third = share.begin().await;
        third.begins();
        assert_eq!(began.elapsed(), Duration::from_millis(1_900));
        assert!(share.try_begin().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_not_begin_counts_against_no_rate() {
        let share = Share::new(rate(1, 1_000));
        let first = share.begin().await;
        assert!(share.try_begin().is_err(), "it may begin");
        drop(first);
        share.try_begin().unwrap().begins();
        assert!(share.try_begin().is_err());
        share.set(rate(0, 1_000));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(share.try_begin().is_err(), "no share, no turn");
    }
}
