//! The corpus of trellis-manifest through wadm's own parser and validation (wadm-types 0.8.3, as of wadm 0.21), and
//! through ours: both take the same manifests, but for the differences in one table.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

use wadm_types::validation::{ValidationOutput, validate_manifest_bytes};

/// A difference: a file of `tests/corpus/differing`, and why.
struct Difference {
    file: &'static str,
    what: &'static str,
    why: &'static str,
}

const fn difference(file: &'static str, what: &'static str, why: &'static str) -> Difference {
    Difference { file, what, why }
}

/// What Trellis takes and wadm refuses.
const TAKEN: &[Difference] = &[
    difference(
        "no-annotations",
        "`metadata.annotations` left out",
        "nothing in it is needed: a version is made at each deploy",
    ),
    difference(
        "config-number",
        "numbers and truth values as config values: `port: 8080`",
        "they are taken as they are written",
    ),
    difference("no-instances", "`instances` left out in a scaler", "as many as the nodes allow"),
    difference("null-list", "an optional list without a value: `config:`", "nothing is an empty list"),
    difference("merge-key", "YAML merge keys, `<<: *anchor`", "they are expanded; to wadm `<<` is a key like others"),
];

/// What wadm takes and Trellis refuses.
const REFUSED: &[Difference] = &[
    difference("api-version", "another `apiVersion` or `kind`", "it is another schema; wadm's parser looks at neither"),
    difference("two-scalers", "two scalers on one component", "wadm runs both, and they undo each other"),
    difference(
        "name-with-slash",
        "component names with `/` or control characters, or of more than 253 bytes",
        "`APP/COMPONENT` must name one component",
    ),
    difference("long-name", "app names of more than 253 bytes", "every name has a bound"),
    difference(
        "same-generated-ids",
        "two components whose generated ids are the same: `api-v1` and `api_v1`",
        "wadm compares only ids that are written out, and then runs both under one",
    ),
    difference(
        "id-with-spaces",
        "an `id` that is empty, has spaces or more than 253 bytes",
        "it names a NATS queue group",
    ),
    difference("image-scheme", "an image with a scheme other than `file://`", "no registry's reference has one"),
    difference("image-digest", "an image with `@sha` and no SHA-256 after it", "the digest is checked"),
    difference(
        "unknown-trellis-provider",
        "`trellis://<name>` that is no provider of ours",
        "a typing error; other images are never refused",
    ),
    difference(
        "scaler-with-link-fields",
        "a scaler with the fields of a link",
        "wadm reads it as a link and then passes it over",
    ),
    difference(
        "wrpc-beside-wasi",
        "two links that differ only in `wrpc` and `wasi`",
        "both names mean the same here, so it is a duplicate link",
    ),
    difference("limits", "`limits` beside a component's properties that do not fit", "wadm passes over the key"),
    difference("delivery", "`delivery` in a link's properties that does not fit", "wadm passes over the key"),
    difference(
        "url-password",
        "a config value that is a URL with a password, or with a NATS server's token; so is an address without a scheme, and a \
         query, under a key that holds addresses",
        "the lattice would keep and show it; it belongs into `secrets`",
    ),
    difference(
        "plain-credential",
        "`password`, `token`, `creds`, or a private key itself, in the config of a built-in provider",
        "the lattice would keep and show it; it belongs into `secrets`",
    ),
    difference(
        "secret-version",
        "`version` of a secret whose policy names our backend `env` or `file`, and `field` with `env`",
        "they have none",
    ),
];

/// What neither the table nor the corpus of manifests can show as a difference of verdicts.
const NOTES: &str = "\
A manifest that makes wadm's parser panic counts as refused by it: a link whose fields are a scaler's, a namespace that is
no text. Unknown keys are refused where wadm refuses them; where wadm passes over them, so do we, with a warning. At most
1 MiB of YAML with 50,000 values, 32 deep, is read, aliases replaced; instances and weights go to 4294967295.
";

fn corpus(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut samples: Vec<_> = paths.map(|path| (stem(&path), fs::read_to_string(path).unwrap())).collect();
    samples.sort();
    samples
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

/// wadm's verdict: `None` if it takes the manifest, else why not.
fn wadm(yaml: &str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let validated = panic::catch_unwind(|| runtime.block_on(validate_manifest_bytes(yaml)));
    match validated {
        Err(_) => Some("it panics".into()),
        Ok(Err(error)) => Some(format!("{error:#}")),
        Ok(Ok((_, failures))) => failures.errors().first().map(|failure| failure.msg.clone()),
    }
}

/// Our verdict, in the same form.
fn ours(yaml: &str) -> Option<String> {
    let parsed = trellis_manifest::parse(yaml, "app.yaml");
    let error = parsed.findings.iter().find(|finding| finding.is_error()).map(|finding| finding.message.clone());
    assert_eq!(parsed.app.is_none(), error.is_some());
    error
}

#[test]
fn what_wadm_takes_is_taken() {
    for (file, yaml) in corpus("accepted") {
        assert_eq!(wadm(&yaml), None, "{file}: wadm");
        assert_eq!(ours(&yaml), None, "{file}: ours");
    }
}

#[test]
fn what_wadm_refuses_is_refused() {
    for (file, yaml) in corpus("refused") {
        assert!(wadm(&yaml).is_some(), "{file}: wadm takes it");
        assert!(ours(&yaml).is_some(), "{file}: we take it");
    }
}

#[test]
fn every_difference_is_one_and_none_is_missing() {
    for (file, yaml) in corpus("differing") {
        let taken = TAKEN.iter().any(|difference| difference.file == file);
        let refused = REFUSED.iter().any(|difference| difference.file == file);
        assert!(taken || refused, "{file} is in no table");
        assert_eq!(ours(&yaml).is_none(), taken, "{file}: ours: {:?}", ours(&yaml));
        assert_eq!(wadm(&yaml).is_none(), refused, "{file}: wadm: {:?}", wadm(&yaml));
    }
    let files: Vec<_> = corpus("differing").into_iter().map(|(file, _)| file).collect();
    for difference in TAKEN.iter().chain(REFUSED) {
        assert!(files.iter().any(|file| file == difference.file), "{} has no file", difference.file);
    }
}

fn table(differences: &[Difference]) -> String {
    let row = |d: &Difference| format!("| {} | {} | `{}` |\n", d.what.replace('|', "\\|"), d.why, d.file);
    format!("| what | why | shown by |\n| --- | --- | --- |\n{}", differences.iter().map(row).collect::<String>())
}

/// `TRELLIS_UPDATE=1` writes the page anew.
#[test]
fn the_page_of_differences_is_these_tables() {
    let page = format!(
        "# Differences from wadm\n\nWhat wadm 0.21 (wadm-types 0.8.3) accepts in a manifest is accepted here with the same \
         meaning, and what it refuses is refused,\nwith these exceptions. Each is shown by a manifest in \
         `tests/corpus/differing`; `compare/tests/wadm.rs` runs them through both parsers\nand writes this page \
         (`TRELLIS_UPDATE=1`).\n\n## Taken here, refused by wadm\n\n{}\n## Refused here, taken by wadm\n\n{}\n## Besides\n\n{NOTES}",
        table(TAKEN),
        table(REFUSED),
    );
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../DIFFERENCES.md");
    if std::env::var_os("TRELLIS_UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), page, "run this test with TRELLIS_UPDATE=1");
}
