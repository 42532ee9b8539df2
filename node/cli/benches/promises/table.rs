//! Figures that were measured several times, and tables of them in Markdown.

use std::time::Duration;

/// One figure, once for each round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    /// Adds a round.
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The middle one; of an even number the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let all = sorted(&self.0);
        let last = all.len().checked_sub(1).expect("something was measured");
        f64::midpoint(all[last / 2], all[all.len() / 2])
    }

    /// The median, with the lowest and highest in brackets.
    pub(crate) fn shown(&self, show: impl Fn(f64) -> String) -> String {
        let all = sorted(&self.0);
        match all.as_slice() {
            [] => "-".into(),
            [only] => show(*only),
            [low, .., high] => format!("{} ({} to {})", show(self.median()), show(*low), show(*high)),
        }
    }
}

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

/// Durations, for their quantiles.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Adds those that were measured elsewhere.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// `0.99`: what 99 of 100 do not exceed, in milliseconds.
    pub(crate) fn quantile_ms(&self, of: f64) -> f64 {
        let millis: Vec<f64> = self.0.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        quantile(&sorted(&millis), of)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut all = figures.to_vec();
    all.sort_by(f64::total_cmp);
    all
}

fn quantile(sorted: &[f64], of: f64) -> f64 {
    let last = sorted.len().checked_sub(1).expect("something was measured");
    sorted[(last as f64 * of).ceil() as usize]
}

/// A count, with its thousands apart.
pub(crate) fn count(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let grouped: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|three| str::from_utf8(three).unwrap()).collect();
    grouped.join(",")
}

/// Milliseconds.
pub(crate) fn ms(figure: f64) -> String {
    match figure {
        figure if figure < 10.0 => format!("{figure:.2} ms"),
        figure => format!("{figure:.0} ms"),
    }
}

/// Bytes as MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A ratio.
pub(crate) fn times(figure: f64) -> String {
    format!("{figure:.2}x")
}

/// A table, row by row.
pub(crate) struct Table(String);

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let rule = vec!["---"; columns.len()].join(" | ");
        Self(format!("| {} |\n| {rule} |\n", columns.join(" | ")))
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.0 += &format!("| {} |\n", cells.join(" | "));
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }
}
