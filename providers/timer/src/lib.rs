//! Timers as a provider: cron with a time zone, and `every`.
