//! What a link says of its timer.
//!
//! | key | holds |
//! | --- | --- |
//! | `cron` | `m h dom mon dow`, with seconds in front if you like, and a year behind those; `@hourly` and the like |
//! | `timezone` | where that is meant: `Europe/Berlin`; `UTC` unless said |
//! | `every` | instead of `cron`: `10s`, `5m`, `1h 30m`; counted from 1970 |
//! | `missed` | `skip`, `once` (unless said), or `all`: ticks that came while no node was there |
//! | `missed_max` | with `missed: all`, how many at most: 100 unless said, 1,000 at most |
//! | `overlap` | `skip` (unless said), `queue` or `allow`: a tick that comes while an earlier one is not done |
//! | `jitter` | each tick starts up to so much later, by a delay of its own |
//! | `subject`, `body` | of the message that wakes a handler: `timer` and nothing unless said |
//! | `args` | the arguments of a run, divided at blanks; `{time}` and `{attempt}` are filled in |

use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use trellis_provider::LinkError;
use trellis_wire::{Config, Delivery, Link, pattern, subject};

use crate::marks::{Missed, Overlap, PENDING_MAX, Rules};
use crate::schedule::{EVERY_MAX, EVERY_MIN, Schedule, Wrong};

/// How many missed ticks run, unless `missed_max` says otherwise.
const MISSED_MAX_DEFAULT: usize = 100;
/// The longest `jitter`.
const JITTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest `body`, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// A link that wakes its component by the clock.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) rules: Rules,
    pub(crate) wakes: Wakes,
}

/// What a tick is to its component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wakes {
    /// A message, for a handler of messages.
    Message { subject: String, body: String },
    /// A run of `wasi:cli/run`, with these arguments.
    Run { args: Vec<String> },
}

impl Wanted {
    /// Reads a link.
    ///
    /// # Errors
    /// Names the key and what to write.
    pub(crate) fn read(link: &Link) -> Result<Self, LinkError> {
        let config = &link.config;
        check_delivery(&link.delivery)?;
        let (schedule, written) = schedule(config)?;
        let missed = missed(config)?;
        let rules = Rules {
            schedule,
            written,
            missed,
            overlap: overlap(config, missed)?,
            jitter_ms: config
                .get("jitter")
                .map_or(Ok(0), |text| period_ms("jitter", text, Duration::ZERO, JITTER_MAX))?,
            salt: link.id.to_string(),
        };
        Ok(Self { rules, wakes: wakes(link)? })
    }
}

/// Refuses by name what a timer would ignore.
fn check_delivery(asked: &Delivery) -> Result<(), LinkError> {
    let once = "a timer hands out each tick once and keeps no order; take it out";
    let letters =
        "the newest 50 dead letters of a timer stay beside its marks, for `trellis dead-letters`; take it out";
    let refused = [
        ("delivery.order_by", asked.order_by.is_some(), once),
        ("delivery.dedupe", asked.dedupe.is_some(), once),
        ("delivery.dead_letter", asked.dead_letter.is_some(), letters),
    ];
    match refused.into_iter().find(|(_, is_asked, _)| *is_asked) {
        Some((key, _, problem)) => Err(LinkError::config(key, problem)),
        None => Ok(()),
    }
}

fn schedule(config: &Config) -> Result<(Schedule, String), LinkError> {
    let zone = config.get("timezone");
    match (config.get("cron"), config.get("every")) {
        (Some(cron), None) => {
            let zone = zone.unwrap_or("UTC");
            let schedule = Schedule::cron(cron, zone).map_err(|why| match why {
                Wrong::Cron(why) => LinkError::config("cron", format!("`{cron}`: {why}")),
                Wrong::Zone => LinkError::config(
                    "timezone",
                    format!("`{zone}` is no time zone; write one such as `Europe/Berlin`"),
                ),
            })?;
            Ok((schedule, format!("cron {cron} {zone}")))
        }
        (None, Some(_)) if zone.is_some() => {
            Err(LinkError::config("timezone", "means nothing beside `every`; take it out"))
        }
        (None, Some(every)) => {
            let period_ms = period_ms("every", every, EVERY_MIN, EVERY_MAX)?;
            Ok((Schedule::Every { period_ms }, format!("every {period_ms}")))
        }
        (None, None) => Err(LinkError::config("cron", "is missing; write `cron: \"0 9 * * *\"` or `every: 10s`")),
        (Some(_), Some(_)) => Err(LinkError::config("every", "stands beside `cron`; write one of them")),
    }
}

fn missed(config: &Config) -> Result<Missed, LinkError> {
    let most = config.get("missed_max");
    let missed = match config.get("missed") {
        None | Some("once") => Missed::Once,
        Some("skip") => Missed::Skip,
        Some("all") => Missed::All(match most.map_or(Ok(MISSED_MAX_DEFAULT), str::parse) {
            Ok(most @ 1..=PENDING_MAX) => most,
            _ => return Err(LinkError::config("missed_max", format!("a number from 1 to {PENDING_MAX} is expected"))),
        }),
        Some(other) => {
            let problem = format!("`{other}` is none of them; write `skip`, `once` or `all`");
            return Err(LinkError::config("missed", problem));
        }
    };
    match (missed, most) {
        (Missed::Skip | Missed::Once, Some(_)) => {
            Err(LinkError::config("missed_max", "means nothing without `missed: all`; take it out"))
        }
        _ => Ok(missed),
    }
}

/// Ticks that are made up for come at once, so they would be left out as too early.
fn overlap(config: &Config, missed: Missed) -> Result<Overlap, LinkError> {
    match (config.get("overlap"), missed) {
        (Some("skip"), Missed::All(_)) => {
            Err(LinkError::config("overlap", "`skip` would leave out what `missed: all` makes up for; write `queue`"))
        }
        (None, Missed::All(_)) | (Some("queue"), _) => Ok(Overlap::Queue),
        (None | Some("skip"), _) => Ok(Overlap::Skip),
        (Some("allow"), _) => Ok(Overlap::Allow),
        (Some(other), _) => {
            let problem = format!("`{other}` is none of them; write `skip`, `queue` or `allow`");
            Err(LinkError::config("overlap", problem))
        }
    }
}

fn wakes(link: &Link) -> Result<Wakes, LinkError> {
    let config = &link.config;
    let names = |interface: &str| link.interfaces.iter().any(|named| named == interface);
    match link.package.as_str() {
        "messaging" if names("handler") => {
            let subject = config.get("subject").unwrap_or("timer").to_owned();
            pattern::check_literal(&subject).map_err(|why| LinkError::config("subject", why.to_string()))?;
            if !subject::is_free(&subject) {
                return Err(LinkError::config("subject", format!("`{subject}` is a subject of the lattice's own")));
            }
            let body = config.get("body").unwrap_or_default().to_owned();
            if body.len() > BODY_BYTES_MAX {
                return Err(LinkError::config("body", format!("at most {BODY_BYTES_MAX} bytes are taken")));
            }
            Ok(Wakes::Message { subject, body })
        }
        "cli" if names("run") => {
            let args = config.get("args").unwrap_or_default();
            Ok(Wakes::Run { args: args.split_whitespace().map(Into::into).collect() })
        }
        _ => Err(LinkError::Unsupported(format!(
            "trellis://timer wakes a component by `trellis:messaging/handler`, `wasmcloud:messaging/handler` or \
             `wasi:cli/run`, not by `{}:{}/{}`",
            link.namespace,
            link.package,
            link.interfaces.join(",")
        ))),
    }
}

fn period_ms(key: &str, text: &str, min: Duration, max: Duration) -> Result<u64, LinkError> {
    let days = SpanRelativeTo::days_are_24_hours();
    let period = text.parse::<Span>().ok().and_then(|span| Duration::try_from(span.to_duration(days).ok()?).ok());
    match period {
        Some(period) if (min..=max).contains(&period) => {
            Ok(u64::try_from(period.as_millis()).expect("it is at most a year"))
        }
        Some(_) => {
            let (min, max) = (min.as_secs(), max.as_secs());
            Err(LinkError::config(key, format!("`{text}` is not from {min} s to {max} s")))
        }
        None => Err(LinkError::config(key, format!("`{text}` is no time; write one such as `10s`, `5m` or `1h 30m`"))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use trellis_wire::{LinkId, LinkName};

    use super::*;

    /// A link with this config.
    pub(crate) fn link(package: &str, interface: &str, config: &[(&str, &str)]) -> Link {
        let (component, provider) = ("shop/worker".parse().unwrap(), "shop/timer".parse().unwrap());
        let interfaces = vec![interface.to_owned()];
        Link {
            id: LinkId::new(&provider, &component, &LinkName::default(), "trellis", package, &interfaces),
            component,
            name: LinkName::default(),
            namespace: "trellis".into(),
            package: package.into(),
            interfaces,
            config: config.iter().copied().collect(),
            delivery: Default::default(),
            secrets: Default::default(),
            part: Default::default(),
        }
    }

    fn read(config: &[(&str, &str)]) -> Result<Wanted, String> {
        Wanted::read(&link("messaging", "handler", config)).map_err(|why| why.to_string())
    }

    #[test]
    fn what_is_not_said_is_the_careful_choice() {
        let wanted = read(&[("every", "1h 30m")]).unwrap();
        assert!(matches!(wanted.rules.schedule, Schedule::Every { period_ms: 5_400_000 }));
        assert_eq!(
            (wanted.rules.missed, wanted.rules.overlap, wanted.rules.jitter_ms),
            (Missed::Once, Overlap::Skip, 0)
        );
        assert_eq!(wanted.wakes, Wakes::Message { subject: "timer".into(), body: String::new() });
        let all = read(&[("cron", "@daily"), ("missed", "all"), ("jitter", "5m")]).unwrap();
        assert_eq!((all.rules.missed, all.rules.overlap), (Missed::All(100), Overlap::Queue));
        let run = Wanted::read(&link("cli", "run", &[("every", "10s"), ("args", "--top 3  {time}")])).unwrap();
        assert_eq!(run.wakes, Wakes::Run { args: vec!["--top".into(), "3".into(), "{time}".into()] });
    }

    /// A link's config, how its error begins, and what it advises.
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);

    #[test]
    fn every_error_names_the_key_and_what_to_write() {
        let cases: &[Case] = &[
            (&[], "config `cron`: is missing", "`every: 10s`"),
            (&[("cron", "* * *")], "config `cron`: `* * *`: five fields are", "`0 9 * * MON-FRI`"),
            (&[("cron", "@daily"), ("timezone", "Mars")], "config `timezone`: `Mars`", "`Europe/Berlin`"),
            (&[("cron", "@daily"), ("every", "1s")], "config `every`", "one of them"),
            (&[("every", "1s"), ("timezone", "UTC")], "config `timezone`", "take it out"),
            (&[("every", "1")], "config `every`: `1`", "`10s`"),
            (&[("every", "10ms")], "config `every`: `10ms`", "1 s to"),
            (&[("every", "-5s")], "config `every`: `-5s`", "`10s`"),
            (&[("every", "1s"), ("missed", "some")], "config `missed`: `some`", "`once`"),
            (&[("every", "1s"), ("missed_max", "5")], "config `missed_max`", "`missed: all`"),
            (&[("every", "1s"), ("missed", "all"), ("missed_max", "0")], "config `missed_max`", "1 to 1000"),
            (&[("every", "1s"), ("missed", "all"), ("overlap", "skip")], "config `overlap`", "`queue`"),
            (&[("every", "1s"), ("overlap", "no")], "config `overlap`: `no`", "`allow`"),
            (&[("every", "1s"), ("jitter", "2d")], "config `jitter`: `2d`", "86400 s"),
            (&[("every", "1s"), ("subject", "a.>")], "config `subject`", "a.>"),
            (&[("every", "1s"), ("subject", "$JS.x")], "config `subject`", "lattice's own"),
        ];
        for (config, beginning, hint) in cases {
            let error = read(config).unwrap_err();
            assert!(error.starts_with(beginning) && error.contains(hint), "{error}");
        }
        for (delivery, said) in [
            (Delivery { order_by: Some(trellis_wire::OrderBy::Subject), ..Delivery::default() }, "order_by`: a timer"),
            (
                Delivery { dead_letter: Some("x".into()), ..Delivery::default() },
                "dead_letter`: the newest 50 dead letters",
            ),
        ] {
            let ignored = Link { delivery, ..link("messaging", "handler", &[("every", "1s")]) };
            let error = Wanted::read(&ignored).unwrap_err().to_string();
            assert!(error.starts_with("config `delivery.") && error.contains(said), "{error}");
        }
        let wrong = Wanted::read(&link("http", "incoming-handler", &[("every", "1s")])).unwrap_err().to_string();
        assert!(wrong.contains("`wasi:cli/run`, not by `trellis:http/incoming-handler`"), "{wrong}");
    }
}
