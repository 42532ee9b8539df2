//! When a timer ticks. Pure: the wall clock comes in as a number, in milliseconds since 1970.
//!
//! A cron schedule is meant in a time zone. Where clocks go forward, a time that does not exist is the first moment
//! after the gap, once; where they go back, a time of day that comes twice is the first of both, while `*` and steps
//! go on through both hours, as in Vixie cron.

use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::cron;

/// The shortest `every`, and what the ticks of a cron schedule are apart at least.
pub(crate) const EVERY_MIN: Duration = Duration::from_secs(1);
/// The longest `every`: 366 days.
pub(crate) const EVERY_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The longest cron expression, in bytes.
const CRON_BYTES_MAX: usize = 256;

/// When a timer ticks.
#[derive(Debug, Clone)]
pub(crate) enum Schedule {
    /// `cron`, in a time zone.
    Cron(Box<Cron>, TimeZone),
    /// `every`, counted from 1970, so that every node ticks at the same moments.
    Every {
        /// The period, in milliseconds.
        period_ms: u64,
    },
}

impl Schedule {
    /// A cron expression, and the name of a time zone.
    ///
    /// # Errors
    /// What is wrong with which of the two.
    pub(crate) fn cron(text: &str, zone: &str) -> Result<Self, Wrong> {
        if text.len() > CRON_BYTES_MAX {
            return Err(Wrong::Cron(format!("it has {} bytes; at most {CRON_BYTES_MAX} are taken", text.len())));
        }
        let cron = cron::parse(text).map_err(Wrong::Cron)?;
        let zone = TimeZone::get(zone).map_err(|_| Wrong::Zone)?;
        let schedule = Self::Cron(Box::new(cron), zone);
        match schedule.after(0) {
            Some(_) => Ok(schedule),
            None => Err(Wrong::Cron("no moment fits it".into())),
        }
    }

    /// The first tick after a moment; `None`: there is none any more.
    pub(crate) fn after(&self, ms: u64) -> Option<u64> {
        match self {
            Self::Cron(cron, zone) => millis(&cron.find_next_occurrence(&zoned(ms, zone)?, false).ok()?),
            Self::Every { period_ms } => (ms / period_ms).checked_add(1)?.checked_mul(*period_ms),
        }
    }

    /// The last tick that is not after a moment.
    fn until(&self, ms: u64) -> Option<u64> {
        match self {
            Self::Cron(cron, zone) => millis(&cron.find_previous_occurrence(&zoned(ms, zone)?, true).ok()?),
            Self::Every { period_ms } => Some(ms / period_ms * period_ms),
        }
    }

    /// The newest ticks after `from` and not after `to`, at most so many, the oldest of them first.
    pub(crate) fn between(&self, from: u64, to: u64, most: usize) -> Vec<u64> {
        let mut ticks = Vec::new();
        let mut end = Some(to);
        while let Some(tick) = end.and_then(|end| self.until(end)).filter(|tick| *tick > from && ticks.len() < most) {
            ticks.push(tick);
            end = tick.checked_sub(1);
        }
        ticks.reverse();
        ticks
    }
}

/// What is wrong with a schedule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Cron(String),
    Zone,
}

/// A tick's time as people and guests read it: `2026-11-26T14:00:00Z`.
pub(crate) fn shown(ms: u64) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| format!("{ms} ms after 1970"), |timestamp| timestamp.to_string())
}

fn zoned(ms: u64, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?.to_zoned(zone.clone()))
}

fn millis(zoned: &Zoned) -> Option<u64> {
    u64::try_from(zoned.timestamp().as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticks after `from`, in the time of the zone.
    fn told(cron: &str, zone: &str, from: &str, count: usize) -> String {
        let schedule = Schedule::cron(cron, zone).unwrap();
        let Schedule::Cron(_, zone) = &schedule else { unreachable!() };
        let mut at = u64::try_from(from.parse::<Timestamp>().unwrap().as_millisecond()).unwrap();
        let mut told = String::new();
        for _ in 0..count {
            at = schedule.after(at).unwrap();
            let local = zoned(at, zone).unwrap();
            told += &format!("{}\n", local.strftime("%F %T %Z"));
        }
        // Looked at backwards, and between two seconds, they are the same.
        let first = u64::try_from(from.parse::<Timestamp>().unwrap().as_millisecond()).unwrap();
        assert_eq!(schedule.between(first, at + 999, 1_000).len(), count, "{cron} {from}");
        told
    }

    #[test]
    fn a_time_that_a_clock_change_leaves_out_is_the_moment_after_it() {
        // Clocks in Berlin go from 02:00 CET to 03:00 CEST on 29 March 2026.
        let daily = told("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(daily, "2026-03-28 02:30:00 CET\n2026-03-29 03:00:00 CEST\n2026-03-30 02:30:00 CEST\n");
        let steps = told("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:29:00Z", 3);
        assert_eq!(steps, "2026-03-29 01:30:00 CET\n2026-03-29 03:00:00 CEST\n2026-03-29 03:30:00 CEST\n");
    }

    #[test]
    fn a_time_that_comes_twice_is_the_first_and_steps_go_through_both_hours() {
        // They go back from 03:00 CEST to 02:00 CET on 25 October 2026.
        let daily = told("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(daily, "2026-10-25 02:30:00 CEST\n2026-10-26 02:30:00 CET\n");
        let steps = told("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:00Z", 5);
        assert_eq!(
            steps,
            "2026-10-25 02:00:00 CEST\n2026-10-25 02:30:00 CEST\n2026-10-25 02:00:00 CET\n2026-10-25 02:30:00 CET\n\
             2026-10-25 03:00:00 CET\n"
        );
    }

    #[test]
    fn seconds_names_and_the_calendar_are_understood() {
        assert_eq!(
            told("*/20 0 9 * * *", "UTC", "2026-01-01T00:00:00Z", 3),
            "2026-01-01 09:00:00 UTC\n2026-01-01 09:00:20 UTC\n2026-01-01 09:00:40 UTC\n"
        );
        assert_eq!(told("@monthly", "UTC", "2026-01-15T00:00:00Z", 1), "2026-02-01 00:00:00 UTC\n");
        assert_eq!(told("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 1), "2028-02-29 00:00:00 UTC\n");
        assert_eq!(told("0 9 * * MON-FRI", "UTC", "2026-11-27T12:00:00Z", 1), "2026-11-30 09:00:00 UTC\n");
    }

    #[test]
    fn what_is_no_schedule_is_said() {
        for wrong in ["", "x", "61 * * * *", "* * * *", "0 0 31 2 *", &"*/1,".repeat(100)] {
            assert!(matches!(Schedule::cron(wrong, "UTC"), Err(Wrong::Cron(_))), "{wrong}");
        }
        assert_eq!(Schedule::cron("* * * * *", "Europe/Nowhere").unwrap_err(), Wrong::Zone);
    }

    #[test]
    fn every_counts_from_1970_and_only_the_newest_ticks_are_listed() {
        let every = Schedule::Every { period_ms: 7_000 };
        assert_eq!((every.after(0), every.after(6_999), every.after(7_000)), (Some(7_000), Some(7_000), Some(14_000)));
        assert_eq!(every.between(7_000, 28_000, 10), [14_000, 21_000, 28_000]);
        assert_eq!(every.between(7_000, 28_000, 2), [21_000, 28_000]);
        assert_eq!(every.between(28_000, 28_999, 10), [0; 0]);
        assert_eq!(shown(1_795_701_600_000), "2026-11-26T14:00:00Z");
    }
}
