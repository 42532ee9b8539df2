//! Rules about the source that no compiler checks. Each test is one rule and says where it is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The 95th percentile of the length of functions, in lines. A function fits a screen.
const FUNCTION_LINES_P95_MAX: usize = 60;

/// Which crates a crate may depend on; providers and the SDK for guests follow rules of their own, below.
const ARROWS: &[(&str, &[&str])] = &[
    ("lattice/wire", &[]),
    ("lattice/manifest", &["lattice/wire"]),
    ("lattice/placement", &["lattice/manifest", "lattice/trust", "lattice/wire"]),
    ("lattice/trust", &["lattice/wire"]),
    ("lattice/bus", &["lattice/trust", "lattice/wire"]),
    ("lattice/raft", &["lattice/bus", "lattice/manifest", "lattice/placement", "lattice/trust", "lattice/wire"]),
    ("sdk/provider", &["lattice/wire"]),
    ("node/sandbox", &["lattice/wire"]),
    ("node/daemon", &["lattice/*", "node/sandbox", "providers/*", "sdk/provider"]),
    ("node/cli", &["lattice/*", "node/sandbox", "node/daemon"]),
    ("providers/*", &["lattice/wire", "sdk/provider"]),
];

/// Each outside technology is known by one crate per role.
const KNOWN_BY: &[(&str, &[&str])] = &[
    ("wasmtime", &["node/sandbox"]),
    ("wasmtime-wasi", &["node/sandbox"]),
    ("wasmtime-wasi-http", &["node/sandbox"]),
    ("openraft", &["lattice/raft"]),
    ("async-nats", &["lattice/bus", "providers/nats"]),
    ("redis", &["providers/redis"]),
    ("lapin", &["providers/rabbitmq"]),
    ("rumqttc", &["providers/mqtt"]),
    ("croner", &["providers/timer"]),
    ("redb", &["lattice/raft", "node/daemon", "providers/embedded"]),
    ("axum", &["node/daemon"]),
    ("oci-client", &["node/daemon"]),
    ("opentelemetry", &["node/daemon"]),
    ("clap", &["node/cli"]),
    ("ring", &["lattice/trust"]),
    ("ed25519-dalek", &["lattice/trust"]),
];

#[test]
fn every_rust_file_begins_with_a_module_doc() {
    let missing = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    assert_none(missing.map(|source| source.path), "begin without `//!`");
}

#[test]
fn lints_are_expected_with_a_reason_never_allowed() {
    let allowed = [["#[al", "low("].concat(), ["#![al", "low("].concat()];
    let broken = sources().into_iter().filter(|source| allowed.iter().any(|allow| source.text.contains(allow)));
    assert_none(broken.map(|source| source.path), "allow a lint; write `#[expect(lint, reason = \"...\")]`");
}

#[test]
fn subjects_of_the_lattice_are_spelled_in_one_file() {
    let spelled = ["trellis", ".v1"].concat();
    // Tests spell them to prove that they are refused.
    let sources = sources().into_iter().filter(|source| !source.is_test());
    let broken = sources.filter(|source| source.path != "lattice/wire/src/subject.rs");
    let broken = broken.filter(|source| source.text[..source.tests()].contains(&spelled));
    assert_none(
        broken.map(|source| source.path),
        "spell a subject of the lattice; lattice/wire/src/subject.rs does that",
    );
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let broken = crates().into_iter().flat_map(|(folder, dependencies)| {
        let allowed = ARROWS.iter().find(|(rule, _)| fits(rule, &folder)).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{folder} is new: say in ARROWS what it may depend on"));
        let ours = dependencies.into_iter().filter_map(|name| folder_of(&name));
        let wrong: Vec<_> = ours.filter(|other| !allowed.iter().any(|rule| fits(rule, other))).collect();
        wrong.into_iter().map(move |other| format!("{folder} -> {other}"))
    });
    assert_none(broken, "are arrows that the layout does not have");
}

#[test]
fn each_technology_is_known_by_its_crates() {
    let broken = crates().into_iter().flat_map(|(folder, dependencies)| {
        let foreign = KNOWN_BY.iter().filter(|(_, by)| !by.contains(&folder.as_str()));
        let wrong: Vec<_> = foreign.filter(|(technology, _)| dependencies.contains(*technology)).collect();
        wrong
            .into_iter()
            .map(|(technology, by)| format!("{folder} knows {technology}; {} may", by.join(", ")))
            .collect::<Vec<_>>()
    });
    assert_none(broken, "break the rule of one crate per technology and role");
}

#[test]
fn the_architecture_page_names_every_crate() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let missing = crates().into_keys().filter(|folder| !page.contains(folder.as_str()));
    assert_none(missing, "are not in ARCHITECTURE.md");
}

#[test]
fn the_recipe_for_handlers_that_run_twice_is_one_that_is_built() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("the file is there");
    let (page, built) = (read("sdk/provider/DELIVERY.md"), read("examples/test-guests/messages/src/lib.rs"));
    let begins = built.find("fn once(").expect("the guest has the recipe");
    let recipe = built[begins..].split_inclusive("\n}\n").next().expect("it ends");
    let shown: String = recipe.lines().map(|line| format!("    {line}\n")).collect();
    assert!(page.contains(&shown), "sdk/provider/DELIVERY.md shows another recipe than is built:\n{recipe}");
}

#[test]
fn functions_fit_a_screen() {
    let mut functions: Vec<_> = sources().iter().filter(|source| !source.is_test()).flat_map(functions).collect();
    functions.sort_by_key(|function| function.lines);
    let p95 = functions[functions.len() * 95 / 100].lines;
    let longest: Vec<_> = functions.iter().rev().take(5).map(ToString::to_string).collect();
    assert!(
        p95 <= FUNCTION_LINES_P95_MAX,
        "the 95th percentile of {} functions is {p95} lines, more than {FUNCTION_LINES_P95_MAX}; the longest:\n  {}",
        functions.len(),
        longest.join("\n  ")
    );
}

#[test]
fn functions_are_measured_as_people_count() {
    let text = "//! Doc.\n\nfn a() {\n    let brace = '{';\n    // {\n}\n\ntrait T {\n    fn b(&self, x: [u8; 2]);\n}\n\n\
                pub(crate) async fn c<'a>(\n    x: [&'a str; 2],\n) {\n    println!(\"{{ {x}\");\n}\n\n\
                #[cfg(test)]\nmod tests {\n    fn d() {\n    }\n}\n";
    let source = Source { path: "x.rs".into(), text: text.into() };
    let measured: Vec<_> = functions(&source).iter().map(ToString::to_string).collect();
    assert_eq!(measured, ["x.rs:3 a: 4 lines", "x.rs:12 c: 5 lines"]);
}

/// A Rust file of ours.
struct Source {
    /// From the root.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        ["/tests/", "/benches/", "test-guests/"].iter().any(|part| self.path.contains(part))
    }

    /// Where its unit tests begin, which end it.
    fn tests(&self) -> usize {
        self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len())
    }
}

struct Function {
    path: String,
    line: usize,
    name: String,
    lines: usize,
}

impl std::fmt::Display for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{} {}: {} lines", self.path, self.line, self.name, self.lines)
    }
}

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("this crate is two folders deep");
    root.to_owned()
}

/// Every Rust file under the top-level folders, without what was built or generated.
fn sources() -> Vec<Source> {
    let (root, mut found) = (root(), Vec::new());
    let mut folders: Vec<_> = ["lattice", "node", "providers", "sdk", "examples"].map(|name| root.join(name)).into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.expect("a folder can be read"))
        {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && name != "target" && name != "node_modules" {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
                let path = path.strip_prefix(&root).expect("it lies under the root").display().to_string();
                found.push(Source { path, text });
            }
        }
    }
    assert!(found.len() > 50, "only {} Rust files were found under {}", found.len(), root.display());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The crates of the workspace, as their folders, and what each depends on outside its tests.
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let members =
        manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).expect("it has members").0;
    let members = members.split('"').skip(1).step_by(2);
    members.map(|folder| (folder.to_owned(), dependencies(&root().join(folder).join("Cargo.toml")))).collect()
}

/// The names under `[dependencies]` and `[build-dependencies]`.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(manifest).expect("a member has a manifest");
    let (mut section, mut names) = ("", BTreeSet::new());
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
            let table = line.strip_prefix("[dependencies.").and_then(|rest| rest.strip_suffix(']'));
            names.extend(table.map(str::to_owned));
        } else if section.ends_with("dependencies]") && section != "[dev-dependencies]" {
            let end = line.find(['.', '=', ' ', '#']).unwrap_or(line.len());
            names.extend((end > 0).then(|| line[..end].to_owned()));
        }
    }
    names
}

/// The folder of one of our crates: `trellis-wire` is `lattice/wire`. `None` for others' crates.
fn folder_of(name: &str) -> Option<String> {
    let short = name.strip_prefix("trellis-")?;
    let found = crates().into_keys().find(|folder| folder.ends_with(&format!("/{short}")));
    Some(found.unwrap_or_else(|| panic!("{name} is in no folder of the workspace")))
}

fn fits(rule: &str, folder: &str) -> bool {
    rule.strip_suffix('*').map_or(rule == folder, |start| folder.starts_with(start))
}

/// Every function with a body outside `#[cfg(test)]`, with the lines from `fn` to its closing brace.
fn functions(source: &Source) -> Vec<Function> {
    let code = blanked(&source.text[..source.tests()]);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ").filter(|(at, _)| begins_a_function(&code, *at)) {
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let rest = &code[at..];
        let Some(body) = body(rest) else { continue };
        let mut depth = 0_usize;
        let closed = rest[body..].find(|c| {
            depth = if c == '{' { depth + 1 } else { depth - usize::from(c == '}') };
            depth == 0
        });
        let closed = closed.unwrap_or_else(|| panic!("{}: the braces of {name} do not close", source.path));
        let line = code[..at].matches('\n').count() + 1;
        found.push(Function {
            path: source.path.clone(),
            line,
            name,
            lines: rest[..body + closed].matches('\n').count() + 1,
        });
    }
    found
}

/// Where the body begins, if there is one. The `;` of an array type in the signature ends nothing.
fn body(function: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let end = function.find(|c| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '{' || (c == ';' && depth == 0)
    })?;
    function[end..].starts_with('{').then_some(end)
}

/// Whether only words such as `pub` and `async` stand before this `fn` on its line.
fn begins_a_function(code: &str, at: usize) -> bool {
    let line = code[..at].rsplit('\n').next().unwrap_or_default();
    let is_modifier = |word: &str| {
        matches!(word, "pub" | "async" | "const" | "unsafe" | "extern")
            || (word.starts_with("pub(") && word.ends_with(')'))
    };
    line.split_whitespace().all(is_modifier)
}

/// The text with comments, strings and characters blanked, so that only braces of the code are left. Lines stay.
fn blanked(text: &str) -> String {
    let (mut code, mut rest) = (String::with_capacity(text.len()), text);
    while !rest.is_empty() {
        let length = opaque(rest);
        if length == 0 {
            let c = rest.chars().next().expect("it is not empty");
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// How many bytes of comment, string or character the text begins with.
fn opaque(text: &str) -> usize {
    let until = |start: usize, end: &str| text[start..].find(end).map_or(text.len(), |at| start + at + end.len());
    let hashes = text.strip_prefix('r').map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    if text.starts_with("//") {
        text.find('\n').unwrap_or(text.len())
    } else if text.starts_with("/*") {
        until(2, "*/")
    } else if text.starts_with('r') && text[1 + hashes..].starts_with('"') {
        until(2 + hashes, &format!("\"{}", "#".repeat(hashes)))
    } else if text.starts_with('"') {
        escaped(text, '"')
    } else if text.starts_with("'\\") || (text.starts_with('\'') && text.chars().nth(2) == Some('\'')) {
        escaped(text, '\'')
    } else {
        0
    }
}

/// The bytes up to and with the closing quote; a backslash takes the next character with it.
fn escaped(text: &str, quote: char) -> usize {
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            chars.next();
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    text.len()
}

#[track_caller]
fn assert_none(broken: impl IntoIterator<Item = String>, rule: &str) {
    let broken: Vec<_> = broken.into_iter().collect();
    assert!(broken.is_empty(), "these {rule}:\n  {}", broken.join("\n  "));
}
