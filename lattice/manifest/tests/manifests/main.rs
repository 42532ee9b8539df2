//! What the crate does with whole manifests: those of `tests/corpus`.

#![expect(clippy::unwrap_used, reason = "a test says by failing that its corpus is not as it should be")]

mod apps;
mod schema;
mod transcripts;

use std::fs;
use std::path::Path;

/// A file of the corpus.
struct Sample {
    name: String,
    yaml: String,
}

/// The files of a folder of the corpus, by name.
fn corpus(folder: &str) -> Vec<Sample> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut samples: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| Sample {
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            yaml: fs::read_to_string(path).unwrap(),
        })
        .collect();
    samples.sort_by(|a, b| a.name.cmp(&b.name));
    samples
}
