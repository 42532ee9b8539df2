//! Every finding of every manifest of the corpus, as people see it. `INSTA_UPDATE=always` writes the transcripts anew.

use trellis_manifest::parse;

use crate::corpus;

/// The findings of a folder's manifests, each under its name; those without any are left out.
fn transcript(folder: &str, taken: impl Fn(&str) -> Option<bool>) -> String {
    let mut transcript = String::new();
    for sample in corpus(folder) {
        let parsed = parse(&sample.yaml, &sample.name);
        assert_eq!(parsed.app.is_some(), !parsed.findings.iter().any(|finding| finding.is_error()));
        if let Some(taken) = taken(&sample.name) {
            assert_eq!(parsed.app.is_some(), taken, "{}: {:#?}", sample.name, parsed.findings);
        }
        if !parsed.findings.is_empty() {
            transcript += &format!("== {}\n", sample.name);
        }
        for finding in &parsed.findings {
            transcript += &format!("{finding}\n\n");
        }
    }
    transcript
}

#[test]
fn refused() {
    insta::assert_snapshot!(transcript("refused", |_| Some(false)));
}

#[test]
fn accepted_with_warnings() {
    insta::assert_snapshot!(transcript("accepted", |_| Some(true)));
}

#[test]
fn what_only_trellis_knows() {
    insta::assert_snapshot!(transcript("ours", |name| Some(matches!(
        name,
        "delivery.yaml" | "doubtful.yaml" | "secrets.yaml"
    ))));
}

#[test]
fn differing_from_wadm() {
    insta::assert_snapshot!(transcript("differing", |_| None));
}

#[test]
fn every_finding_has_a_place_in_its_manifest() {
    for sample in ["accepted", "refused", "ours", "differing"].iter().flat_map(|folder| corpus(folder)) {
        for finding in parse(&sample.yaml, &sample.name).findings {
            let line = (finding.line as usize).checked_sub(1).map(|index| sample.yaml.lines().nth(index));
            let columns = line.map(|line| line.unwrap_or_default().chars().count() + 1);
            assert!(columns.is_none_or(|columns| (1..=columns).contains(&(finding.column as usize))), "{finding}");
        }
    }
}
