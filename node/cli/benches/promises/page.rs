//! BENCHMARKS.md: each bench owns what stands between two comments that name it.

use std::path::Path;

/// Puts a section in its place.
pub(crate) fn write(name: &str, section: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../BENCHMARKS.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let cut = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = cut.unwrap_or_else(|| panic!("BENCHMARKS.md has no {begin} ... {end}"));
    std::fs::write(&path, format!("{before}{begin}{}\n{end}{after}", section.trim_end())).unwrap();
}
