//! Quantities as people write them: `30s`, `2GiB`, `key=value`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// Bytes of memory, written `2GiB`, `512MiB`, `1GB` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct MemoryBytes(pub(crate) u64);

impl FromStr for MemoryBytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 8] = [
            ("", 1),
            ("b", 1),
            ("kib", 1 << 10),
            ("mib", 1 << 20),
            ("gib", 1 << 30),
            ("kb", 1_000),
            ("mb", 1_000_000),
            ("gb", 1_000_000_000),
        ];
        let (number, unit) = split(text);
        let unit = unit.to_ascii_lowercase();
        let bytes = UNITS.iter().find(|(name, _)| *name == unit).and_then(|(_, factor)| number?.checked_mul(*factor));
        bytes.map(Self).ok_or_else(|| format!("`{text}` is no size: write 512MiB or 2GiB"))
    }
}

impl TryFrom<String> for MemoryBytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A time, written as [`duration`] reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Time(pub(crate) Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        duration(text).map(Self)
    }
}

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Reads `500ms`, `30s`, `2m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let ms_per_unit = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" | "min" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let ms = number.zip(ms_per_unit).and_then(|(number, factor)| number.checked_mul(factor));
    ms.map(Duration::from_millis).ok_or_else(|| format!("`{text}` is no time: write 500ms, 30s, 2m or 1h"))
}

/// `58m 31s`: the two largest units that something lasts for.
pub(crate) fn lasting(time: Duration) -> String {
    const UNITS: [(u128, &str); 5] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let mut left = time.as_millis();
    let parts = UNITS.iter().filter_map(|(ms, unit)| {
        let whole = left / ms;
        left %= ms;
        (whole > 0).then(|| format!("{whole}{unit}"))
    });
    let parts: Vec<String> = parts.take(2).collect();
    if parts.is_empty() { "0s".into() } else { parts.join(" ") }
}

/// The number that a text begins with, and what follows it.
fn split(text: &str) -> (Option<u64>, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().ok(), text[end..].trim())
}

/// A `key=value` pair: a label, a header, a line of config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => Ok(Self { key: key.trim().into(), value: value.into() }),
            _ => Err(format!("`{text}` is no pair: write key=value")),
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_in_two_units() {
        let said = |ms| lasting(Duration::from_millis(ms));
        assert_eq!([said(0), said(250), said(3_511_000)], ["0s", "250ms", "58m 31s"]);
        assert_eq!([said(60_000), said(90_061_001)], ["1m", "1d 1h"]);
    }

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!("2GiB".parse(), Ok(MemoryBytes(2 << 30)));
        assert_eq!("512 mib".parse(), Ok(MemoryBytes(512 << 20)));
        assert_eq!("1024".parse(), Ok(MemoryBytes(1024)));
        assert!("2 gigs".parse::<MemoryBytes>().unwrap_err().contains("512MiB"));
        assert!("99999999999GiB".parse::<MemoryBytes>().is_err(), "more than 64 bits hold");
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("30").is_err(), "a number without a unit could mean anything");
    }

    #[test]
    fn a_pair_needs_a_key() {
        assert_eq!("a=b=c".parse(), Ok(Pair { key: "a".into(), value: "b=c".into() }));
        assert_eq!("a=".parse(), Ok(Pair { key: "a".into(), value: String::new() }));
        assert!("=b".parse::<Pair>().is_err());
        assert!("ab".parse::<Pair>().is_err());
    }
}
