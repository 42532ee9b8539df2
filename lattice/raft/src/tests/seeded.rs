//! The runtime that openraft has in tests. In a simulation all that it leaves to chance follows from the seed.
//!
//! Two things are left to chance. One is what openraft draws, the time after which a voter stands for election. The other
//! is which branch of a `select!` runs where more than one could, which tokio draws from a generator that only
//! its unstable builds let one seed. In the tasks of openraft those are a sleep and a channel, so there the order is
//! fixed here: a sleep ends only once nothing else in its task goes on.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use openraft_rand::{Error, RngCore};
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    /// What is drawn from in this thread's simulation.
    static DICE: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    /// How many sleeps may end now.
    static SLEEPS: Cell<Sleeps> = const { Cell::new(Sleeps::All) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleeps {
    All,
    One,
    None,
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
    type Sleep = Sleep;
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
        TokioRuntime::spawn(Orderly(Box::pin(future)))
    }

    fn sleep(duration: Duration) -> Sleep {
        Sleep(Box::pin(TokioRuntime::sleep(duration)))
    }

    fn sleep_until(deadline: Self::Instant) -> Sleep {
        Sleep(Box::pin(TokioRuntime::sleep_until(deadline)))
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

/// A task in which no sleep ends while anything else goes on.
struct Orderly<F>(Pin<Box<F>>);

impl<F: Future> Future for Orderly<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            for sleeps in [Sleeps::None, Sleeps::One] {
                SLEEPS.set(sleeps);
                if let Poll::Ready(done) = self.0.as_mut().poll(cx) {
                    SLEEPS.set(Sleeps::All);
                    return Poll::Ready(done);
                }
            }
            // After a sleep has ended, something else may go on.
            if SLEEPS.replace(Sleeps::All) == Sleeps::One {
                return Poll::Pending;
            }
        }
    }
}

/// A sleep that may have to wait for its turn.
pub(crate) struct Sleep(Pin<Box<tokio::time::Sleep>>);

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Polled in any case, so that it wakes the task.
        let over = self.0.as_mut().poll(cx);
        match SLEEPS.get() {
            Sleeps::None => return Poll::Pending,
            Sleeps::One if over.is_ready() => SLEEPS.set(Sleeps::None),
            Sleeps::One | Sleeps::All => {}
        }
        over
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
