//! What goes wrong on a simulated wire, decided by a seed.

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What may happen to a message between two different ends of a [`Wire`](crate::Wire). The default is a perfect wire.
///
/// Each direction between two ends draws from a generator of its own, so the fate of the n-th message from a to b
/// depends on the seed alone and not on what other ends do meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Decides everything below.
    pub seed: u64,
    /// How long a message is under way. From one end to another messages never overtake each other.
    pub delay: RangeInclusive<Duration>,
    /// The part of the messages that is lost, from 0 to 1.
    pub loss: f64,
    /// The part of the messages that arrives twice, from 0 to 1.
    pub duplication: f64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { seed: 0, delay: Duration::ZERO..=Duration::ZERO, loss: 0.0, duplication: 0.0 }
    }
}

impl Faults {
    /// Whether nothing goes wrong at all, so that messages can be handed over at once.
    pub(crate) fn is_perfect(&self) -> bool {
        self.loss <= 0.0 && self.duplication <= 0.0 && self.delay.end().is_zero()
    }

    /// The generator of one direction between two ends.
    pub(crate) fn dice(&self, from: &str, to: &str) -> Dice {
        let route = fnv(fnv(FNV_BASIS, from.as_bytes()), to.as_bytes());
        Dice { rng: StdRng::seed_from_u64(self.seed ^ route), last: None }
    }
}

/// Draws the fate of each message that goes from one end to another.
#[derive(Debug)]
pub(crate) struct Dice {
    rng: StdRng,
    /// When the last message arrives: no later one may arrive before it.
    pub(crate) last: Option<tokio::time::Instant>,
}

impl Dice {
    /// How long each copy of the next message is under way: no copy if it is lost, two if it is doubled.
    ///
    /// The same number of values is drawn whatever their outcome, so that the fates of later messages do not move.
    pub(crate) fn fate(&mut self, faults: &Faults) -> Vec<Duration> {
        let (lost, doubled) = (self.chance(faults.loss), self.chance(faults.duplication));
        let delays = [self.delay(&faults.delay), self.delay(&faults.delay)];
        let copies = match (lost, doubled) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        delays[..copies].to_vec()
    }

    /// One of `n`, evenly.
    pub(crate) fn one_of(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn chance(&mut self, part: f64) -> bool {
        self.rng.random::<f64>() < part
    }

    fn delay(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let spread = range.end().saturating_sub(*range.start());
        *range.start() + spread.mul_f64(self.rng.random::<f64>())
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, chosen because its value never changes between builds; a zero byte ends each text.
fn fnv(hash: u64, text: &[u8]) -> u64 {
    text.iter().chain(&[0]).fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
