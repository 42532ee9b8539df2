//! "did you mean".

/// The candidate that `text` was probably meant to be: at most a third of it is different.
pub(crate) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let text: Vec<char> = text.chars().take(LENGTH_MAX).flat_map(char::to_lowercase).collect();
    let near = (text.len() / 3).max(1);
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .map(|candidate| (distance(&text, candidate), candidate))
        .filter(|(distance, _)| *distance <= near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean `x`?", or what to write where nothing is near.
pub(crate) fn did_you_mean<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>, else_: &str) -> String {
    match nearest(text, candidates) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => else_.into(),
    }
}

/// Nobody means a key by a text that is longer; the distance is quadratic.
const LENGTH_MAX: usize = 32;
/// Names of a manifest may be candidates, and a manifest may have very many.
const CANDIDATES_MAX: usize = 100;

/// The number of insertions, removals, replacements and swaps of neighbours between two texts (optimal string
/// alignment), letter case aside.
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().take(LENGTH_MAX).flat_map(char::to_lowercase).collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_named_and_what_is_not_is_not() {
        assert_eq!(nearest("imgae", ["id", "image", "config"]), Some("image"));
        assert_eq!(nearest("SpreadScaler", ["link", "spreadscaler"]), Some("spreadscaler"));
        assert_eq!(nearest("volume", ["id", "image", "config"]), None);
        assert_eq!(nearest("", ["a"]), Some("a"));
        assert_eq!(did_you_mean("x", ["interfaces"], "known: interfaces"), "known: interfaces");
    }
}
