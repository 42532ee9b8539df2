//! What nothing in this crate decides: chance and the wall clock. In a simulation the seed does.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

#[cfg(test)]
use crate::tests::seeded;
/// What openraft runs on, and what it draws the time from after which a voter stands for election.
#[cfg(not(test))]
pub(crate) use openraft::TokioRuntime as Runtime;
#[cfg(test)]
pub(crate) use seeded::Seeded as Runtime;

/// An id that nothing else has.
pub(crate) fn unique_id() -> Uuid {
    #[cfg(test)]
    if let Some(id) = seeded::draw() {
        return Uuid::from_u128(id);
    }
    Uuid::now_v7()
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn wall_clock_ms() -> u64 {
    #[cfg(test)]
    if let Some(noise) = seeded::draw::<u32>() {
        return u64::from(noise);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    u64::try_from(now).unwrap_or(u64::MAX)
}
