//! A pool of permits with two queues: whoever waits for an answer goes before the next pull. The pool can be resized
//! while it is in use: shrinking takes effect as permits come back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;
use tokio::time::Instant;
use trellis_provider::{WAITING_MAX, Want};
use trellis_wire::Error;

/// How many pulls there is room for at least, once one waits.
const PULLS_MIN: usize = 16;

/// The permits of one component on this node, or of the node as a whole.
pub(crate) struct Pool {
    what: String,
    state: Mutex<State>,
}

struct State {
    size: usize,
    /// Nobody gets a permit: the component is no longer held.
    closed: bool,
    taken: usize,
    /// How many came back, ever.
    returned: u64,
    answers: VecDeque<oneshot::Sender<Slot>>,
    pulls: VecDeque<oneshot::Sender<Slot>>,
}

/// One permit of a [`Pool`]. It goes back when it is dropped.
pub(crate) struct Slot(Option<Arc<Pool>>);

impl Pool {
    /// A pool of `size` permits; `what` names it in messages.
    pub(crate) fn new(what: String, size: usize) -> Arc<Self> {
        let state =
            State { size, closed: false, taken: 0, returned: 0, answers: VecDeque::new(), pulls: VecDeque::new() };
        Arc::new(Self { what, state: Mutex::new(state) })
    }

    /// Opens the pool, or gives it another size. Permits beyond it end as they come back.
    pub(crate) fn open(self: &Arc<Self>, size: usize) {
        {
            let mut state = self.lock();
            (state.size, state.closed) = (size, false);
        }
        self.hand_out();
    }

    /// Hands out no more: whoever waits is told that the component is not held. Permits that are out stay out.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.answers.clear();
        state.pulls.clear();
    }

    /// A permit if one is free now and nobody waits for it.
    fn try_acquire(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        let free = !state.closed && state.taken < state.size;
        state.taken += usize::from(free);
        free.then(|| Slot(Some(self.clone())))
    }

    /// Permits taken now.
    pub(crate) fn taken(&self) -> usize {
        self.lock().taken
    }

    /// How many permits ever came back, if none is out: as long as that stays the same, nothing ran.
    pub(crate) fn at_rest(&self) -> Option<u64> {
        let state = self.lock();
        (state.taken == 0).then_some(state.returned)
    }

    /// Whether no more permits are out than there are.
    pub(crate) fn is_within(&self) -> bool {
        let state = self.lock();
        state.taken <= state.size
    }

    /// Requests that wait for a permit now.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().answers.iter().filter(|waiting| !waiting.is_closed()).count()
    }

    /// Waits for a permit: a request in a bounded queue and for a bounded time, a pull for as long as it takes.
    pub(crate) async fn acquire(self: &Arc<Self>, want: Want) -> Result<Slot, Error> {
        let turn = {
            let mut state = self.lock();
            if state.closed {
                return Err(Error::NotHeld(self.what.clone()));
            }
            if state.taken < state.size {
                state.taken += 1;
                return Ok(Slot(Some(self.clone())));
            }
            let (ready, turn) = oneshot::channel();
            match want {
                Want::Pull => state.queue_pull(ready),
                // Even the shortest of timers would wait for its tick.
                Want::Answer { at_most } if at_most.is_zero() => {
                    return Err(Error::Busy(format!("no permit of {} is free now", self.what)));
                }
                Want::Answer { .. } => {
                    if state.answers.len() >= WAITING_MAX {
                        state.answers.retain(|waiting| !waiting.is_closed());
                    }
                    if state.answers.len() >= WAITING_MAX {
                        return Err(Error::Busy(format!("{WAITING_MAX} requests wait for {} already", self.what)));
                    }
                    state.answers.push_back(ready);
                }
            }
            turn
        };
        let closed = || Error::NotHeld(self.what.clone());
        match want {
            Want::Pull => turn.await.map_err(|_| closed()),
            Want::Answer { at_most } => match tokio::time::timeout(at_most, turn).await {
                Ok(slot) => slot.map_err(|_| closed()),
                Err(_) => Err(Error::Busy(format!("no permit of {} came free within {at_most:?}", self.what))),
            },
        }
    }

    /// Gives free permits to those who wait.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                if state.closed || state.taken >= state.size {
                    return;
                }
                let next = state.answers.pop_front().or_else(|| state.pulls.pop_front());
                state.taken += usize::from(next.is_some());
                next
            };
            let Some(next) = next else { return };
            if let Err(mut unwanted) = next.send(Slot(Some(self.clone()))) {
                // Whoever waited has left. Taking the slot apart here, instead of dropping it, keeps this a loop.
                unwanted.0 = None;
                self.lock().taken -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    /// Pulls that were given up, since their source found a permit elsewhere, go before the queue would grow for them.
    fn queue_pull(&mut self, pull: oneshot::Sender<Slot>) {
        if self.pulls.len() == self.pulls.capacity() {
            self.pulls.retain(|waiting| !waiting.is_closed());
            // Room for as many again, so that those who stay are not looked at for each one that comes.
            self.pulls.reserve(self.pulls.len().max(PULLS_MIN));
        }
        self.pulls.push_back(pull);
    }
}

/// A permit of the component and one of the node. A request waits for both in turn, within one deadline. A pull keeps
/// neither while it waits for the other: requests of the same component go before it.
pub(crate) async fn acquire_both(component: &Arc<Pool>, node: &Arc<Pool>, want: Want) -> Result<(Slot, Slot), Error> {
    if let Want::Answer { at_most } = want {
        let deadline = Instant::now() + at_most;
        let of_component = component.acquire(want).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        return Ok((of_component, node.acquire(Want::Answer { at_most: left }).await?));
    }
    loop {
        let of_component = component.acquire(want).await?;
        if let Some(of_node) = node.try_acquire() {
            return Ok((of_component, of_node));
        }
        drop(of_component);
        let of_node = node.acquire(want).await?;
        if let Some(of_component) = component.try_acquire() {
            return Ok((of_component, of_node));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            {
                let mut state = pool.lock();
                state.taken -= 1;
                state.returned += 1;
                if state.answers.is_empty() && state.pulls.is_empty() {
                    return;
                }
            }
            pool.hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Want = Want::Answer { at_most: Duration::from_secs(5) };

    #[tokio::test(start_paused = true)]
    async fn a_request_goes_before_a_pull_that_waited_longer() {
        let pool = Pool::new("test".into(), 1);
        let first = pool.acquire(Want::Pull).await.unwrap();
        let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
        for (name, want) in [("pull", Want::Pull), ("request", SOON)] {
            let (pool, done) = (pool.clone(), done.clone());
            tokio::spawn(async move {
                let slot = pool.acquire(want).await.unwrap();
                done.send(name).unwrap();
                drop(slot);
            });
            tokio::task::yield_now().await;
        }
        drop(first);
        assert_eq!(order.recv().await, Some("request"));
        assert_eq!(order.recv().await, Some("pull"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_in_busy_and_its_permit_is_not_lost() {
        let pool = Pool::new("test".into(), 1);
        let first = pool.acquire(SOON).await.unwrap();
        assert!(matches!(pool.acquire(SOON).await, Err(Error::Busy(_))));
        drop(first);
        assert_eq!(pool.taken(), 0);
        assert!(pool.acquire(SOON).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_of_requests_is_bounded() {
        let pool = Pool::new("test".into(), 0);
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.acquire(SOON).await.map(drop) })
            })
            .collect();
        while pool.waiting() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let refused = pool.acquire(SOON).await.err().unwrap();
        assert!(refused.to_string().contains("1024 requests wait for test"), "{refused}");
        pool.open(1);
        for one in waiting {
            assert_eq!(one.await.unwrap(), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_waits_for_the_node_keeps_no_request_of_its_component_waiting() {
        let (component, node) = (Pool::new("test".into(), 1), Pool::new("node".into(), 1));
        let busy = node.acquire(SOON).await.unwrap();
        let pull = tokio::spawn({
            let (component, node) = (component.clone(), node.clone());
            async move { acquire_both(&component, &node, Want::Pull).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(component.taken(), 0, "the pull waits for the node alone");
        let request = tokio::spawn({
            let (component, node) = (component.clone(), node.clone());
            async move { acquire_both(&component, &node, SOON).await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(busy);
        assert_eq!(request.await.unwrap(), Ok(()));
        assert_eq!(pull.await.unwrap(), Ok(()));
        assert_eq!((component.taken(), node.taken()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn pulls_that_were_given_up_do_not_pile_up() {
        let pool = Pool::new("test".into(), 1);
        let out = pool.acquire(SOON).await.unwrap();
        let mut stays = Box::pin(pool.acquire(Want::Pull));
        assert!(futures::poll!(&mut stays).is_pending());
        for _ in 0..10_000 {
            assert!(futures::poll!(Box::pin(pool.acquire(Want::Pull))).is_pending());
        }
        let waiting = pool.lock().pulls.len();
        assert!(waiting <= 2 * PULLS_MIN, "{waiting} are kept of which one waits");
        drop(out);
        assert!(stays.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_pool_tells_those_who_wait_and_keeps_count_of_what_is_out() {
        let pool = Pool::new("test".into(), 1);
        let out = pool.acquire(SOON).await.unwrap();
        let waits = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire(Want::Pull).await.map(drop) }
        });
        tokio::task::yield_now().await;
        pool.close();
        assert_eq!(waits.await.unwrap(), Err(Error::NotHeld("test".into())));
        assert!(matches!(pool.acquire(SOON).await, Err(Error::NotHeld(_))));
        pool.open(1);
        assert!(matches!(pool.acquire(SOON).await, Err(Error::Busy(_))), "the permit that is out counts");
        drop(out);
        assert!(pool.acquire(SOON).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn shrinking_takes_effect_as_permits_come_back() {
        let pool = Pool::new("test".into(), 2);
        let (a, b) = (pool.acquire(SOON).await.unwrap(), pool.acquire(SOON).await.unwrap());
        pool.open(1);
        drop(a);
        assert!(pool.acquire(SOON).await.is_err(), "one is still out and the pool holds one");
        drop(b);
        assert!(pool.acquire(SOON).await.is_ok());
    }
}
