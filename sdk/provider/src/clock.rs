//! The machine's clock, for what other systems and people read.

use std::time::SystemTime;

/// Milliseconds since 1970; 0 where the clock is set before that.
pub fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
