//! The runtime that openraft has in tests: tokio, but that a simulation's seed decides what openraft draws, which is the time
//! after which a voter stands for election.
//!
//! Openraft has one `select!` that begins at a branch of chance: where a peer did not answer, between the end of the pause
//! and an event. It comes to the same either way, because after the pause all events are taken before anything is done.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use openraft_rand::{Error, RngCore};
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    /// What is drawn from in this thread's simulation.
    static DICE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// What this thread runs from now on follows from the seed.
pub(super) fn seed(seed: u64) {
    DICE.set(Some(StdRng::seed_from_u64(seed)));
}

/// The next number of this thread's simulation, where it runs one.
pub(crate) fn draw<T>() -> Option<T>
where
    StandardUniform: Distribution<T>,
{
    DICE.with_borrow_mut(|dice| dice.as_mut().map(|dice| dice.random()))
}

/// Tokio, but for what is left to chance.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seeded;

impl AsyncRuntime for Seeded {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Dice;
    type OneshotSender<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <TokioRuntime as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <TokioRuntime as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Dice {
        Dice
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        TokioRuntime::oneshot()
    }
}

/// Where openraft draws from: the simulation's dice, or where there is none, chance.
pub(crate) struct Dice;

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        draw().unwrap_or_else(rand::random)
    }

    fn next_u64(&mut self) -> u64 {
        draw().unwrap_or_else(rand::random)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| draw().unwrap_or_else(rand::random));
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
