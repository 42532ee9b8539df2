//! Durations, rates and sizes as people write them.

use std::time::Duration;

use crate::Rate;

/// What a text should have been.
pub(crate) const DURATION: &str = "a number with a unit: `500ms`, `1s`, `5m`, `2h` or `1d`";
/// What a text should have been.
pub(crate) const RATE: &str = "a number per time: `100/s`, `30/m` or `5/10s`";
/// What a text should have been.
pub(crate) const BYTES: &str = "bytes, with or without a unit: `67108864`, `64MiB`, `64Mi` or `1GiB`";

/// `500ms`, `1s`, `5m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `100/s`, `5/10s`; neither of the two is 0.
pub(crate) fn rate(text: &str) -> Option<Rate> {
    let (count, per) = text.split_once('/')?;
    let count = count.trim().parse().ok().filter(|count| *count > 0)?;
    let per = per.trim();
    let per = duration(per).or_else(|| duration(&format!("1{per}"))).filter(|per| !per.is_zero())?;
    Some(Rate { count, per })
}

/// `67108864`, `64MiB`, `64Mi`, `64MB`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "k" | "kB" | "KB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// A number and what follows it.
fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_written_or_not_at_all() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2 h"), Some(Duration::from_secs(7_200)));
        for wrong in ["", "5", "s", "-1s", "1.5s", "1m30s", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        assert_eq!(rate("100/s"), Some(Rate { count: 100, per: Duration::from_secs(1) }));
        assert_eq!(rate("5 / 10s"), Some(Rate { count: 5, per: Duration::from_secs(10) }));
        for wrong in ["", "100", "0/s", "1/0s", "1/x", "/s", "5000000000/s"] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
        for text in ["67108864", "64MiB", "64Mi", "65536 KiB"] {
            assert_eq!(bytes(text), Some(64 << 20), "{text}");
        }
        assert_eq!(bytes("64MB"), Some(64_000_000));
        for wrong in ["", "MiB", "64mib", "-1", "1.5Gi", "18446744073709551615Gi"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
