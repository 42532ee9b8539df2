//! Load: `wrk`, which keeps so many connections busy and takes its figures by itself.

use std::net::SocketAddr;
use std::process::Command;

/// What one run of `wrk` came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ran {
    /// Replies with 2xx, per second.
    pub(crate) good_per_s: f64,
    /// Replies with another status, and requests without one.
    pub(crate) bad: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Has one thread of `wrk` ask for `path` over so many connections.
pub(crate) fn wrk(at: SocketAddr, path: &str, connections: u32, seconds: u32) -> Ran {
    // Latencies of replies that are not 2xx are taken by wrk as well; where there are any, they say little.
    let output = Command::new("wrk")
        .args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("http://{at}{path}"))
        .output()
        .unwrap_or_else(|why| panic!("wrk cannot be run ({why}): deploy/setup/setup.sh bench installs it"));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    read(&said).unwrap_or_else(|| panic!("wrk said something new:\n{said}"))
}

fn read(said: &str) -> Option<Ran> {
    let after = |mark: &str| said.lines().find_map(|line| Some(line.trim().strip_prefix(mark)?.trim()));
    let (requests, rest) =
        said.lines().find(|line| line.contains(" requests in "))?.trim().split_once(" requests in ")?;
    let seconds = millis(rest.split(',').next()?)? / 1e3;
    let not_good: u64 = after("Non-2xx or 3xx responses:").map_or(Some(0), |text| text.parse().ok())?;
    let broken: u64 = after("Socket errors:")
        .into_iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_digit()))
        .filter_map(|count| count.parse::<u64>().ok())
        .sum();
    let good = requests.parse::<u64>().ok()?.saturating_sub(not_good);
    Some(Ran {
        good_per_s: good as f64 / seconds,
        bad: not_good + broken,
        p50_ms: millis(after("50%")?)?,
        p99_ms: millis(after("99%")?)?,
    })
}

/// `1.20ms`, `830.00us`, `5.01s` or `1.00m`.
fn millis(text: &str) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let factor = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}
