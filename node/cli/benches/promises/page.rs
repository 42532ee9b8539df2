//! BENCHMARKS.md: each bench owns what stands between two comments that name it.

use std::path::{Path, PathBuf};

/// Puts a section in its place.
pub(crate) fn write(name: &str, section: &str) {
    let (before, after) = around(name);
    std::fs::write(path(), format!("{before}{}\n{after}", section.trim_end())).unwrap();
}

/// Sees that a bench has its place there, before it is waited for.
pub(crate) fn check(name: &str) {
    around(name);
}

/// What stands before and after a section.
fn around(name: &str) -> (String, String) {
    let page = std::fs::read_to_string(path()).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let cut = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = cut.unwrap_or_else(|| panic!("BENCHMARKS.md has no {begin} ... {end}"));
    (format!("{before}{begin}"), format!("{end}{after}"))
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../BENCHMARKS.md")
}
