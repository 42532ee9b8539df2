//! What a command prints: text for people, JSON for programs. Data goes to standard output, everything said about it
//! to standard error.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// `-o text|json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs: the admin API's own JSON
    Json,
}

/// The option itself, for every command that prints data.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// How to print what was asked for
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub(crate) format: Format,
}

impl Output {
    /// Prints `data` as JSON, or the text that `render` makes of it.
    pub(crate) fn print<T: Serialize>(&self, data: &T, render: impl FnOnce(&T) -> String) -> io::Result<()> {
        match self.format {
            Format::Text => print(&render(data)),
            Format::Json => print(&json(data)),
        }
    }

    /// Whether a program reads.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

/// Writes text and one line end to standard output; nothing at all for no text.
pub(crate) fn print(text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.trim_end_matches('\n').as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Indented JSON.
pub(crate) fn json<T: Serialize>(data: &T) -> String {
    serde_json::to_string_pretty(data).expect("what is printed has text keys and no value that JSON lacks")
}

/// A table without lines: a heading and columns, two spaces apart, each row on one line whatever its width.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(heading.map(str::to_owned));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// `1.2 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    STEPS.iter().find(|(step, _)| bytes >= *step).map_or_else(
        || format!("{bytes} B"),
        |(step, unit)| {
            // The rest is below 2^30, so ten times it still fits.
            format!("{}.{} {unit}", bytes / step, bytes % step * 10 / step)
        },
    )
}

/// `2026-11-22T14:07:56.123Z`, from milliseconds since 1970.
pub(crate) fn time(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

/// Year, month and day of a day counted from 1970-01-01: the proleptic Gregorian calendar in years that begin in
/// March, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let since_era = days + 719_468; // from 0000-03-01
    let (era, of_era) = (since_era / 146_097, since_era % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(time(1_735_689_599_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(time(1_795_356_476_123), "2026-11-22T14:07:56.123Z");
    }

    #[test]
    fn sizes_have_one_digit() {
        assert_eq!(size(12), "12 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1_300_000), "1.2 MiB");
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = table(["NAME", "STATE"], [["orders".into(), "ready".into()], ["a".into(), String::new()]]);
        assert_eq!(text, "NAME    STATE\norders  ready\na");
    }
}
