//! Artifacts: what is refused, and what is kept of those that are not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use trellis_sandbox::{ComponentError, Engine, Options, Wake};

use crate::lab::{Lab, artifact, digest};

fn engine(dir: &Path, wasi_p3: bool) -> std::sync::Arc<Engine> {
    let cache_dir = dir.join("compiled");
    Engine::new(Options { cache_dir, sandboxes_max: 2, memory_bytes_max: 1 << 30, wasi_p3 }).unwrap()
}

/// The least that can be run.
const LEAST: &str = r#"(component
    (core module $m (func (export "run") (result i32) (i32.const 0)))
    (core instance $i (instantiate $m))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $export (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $export)))"#;

#[test]
fn what_is_no_component_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), true);
    let refusal = |wasm: &[u8]| {
        let why = engine.compile(digest(wasm), wasm).unwrap_err();
        assert!(why.is_of_the_artifact(), "{why}");
        why.to_string()
    };
    assert!(refusal(&wat::parse_str("(module)").unwrap()).contains("build with `--target wasm32-wasip2`"));
    assert!(refusal(b"").contains("is not WebAssembly"));
    assert!(refusal(b"#!/bin/sh\necho hello").contains("is not WebAssembly"));
    let whole = wat::parse_str(LEAST).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("compiled")).unwrap().count(), 0, "nothing of it is kept");
    for cut in 1..whole.len() {
        // Cut between two sections it is a component, if of less.
        if let Err(why) = engine.compile(digest(&whole[..cut]), &whole[..cut]) {
            assert!(why.is_of_the_artifact(), "cut at {cut}: {why}");
        }
    }
}

#[test]
fn what_can_never_run_here_is_refused_when_it_is_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), true);
    let cases = [
        (r#"(component (import "wasi:keyvalue/store@0.2.0-draft2" (instance)))"#, "0.2.0-draft"),
        (
            r#"(component (import "shop:stock/levels" (instance (export "r" (type (sub resource))))))"#,
            "shop:stock/levels",
        ),
        (r#"(component (import "wasi:cli/exit@0.2.0" (instance (export "no-such" (func)))))"#, "no-such"),
        ("(component (core module $m (table 200000 funcref)) (core instance (instantiate $m)))", "table"),
    ];
    for (text, part) in cases {
        let wasm = wat::parse_str(text).unwrap();
        let why = engine.compile(digest(&wasm), &wasm).unwrap_err();
        assert!(why.is_of_the_artifact() && why.to_string().contains(part), "{why}");
        assert!(!engine.is_compiled(digest(&wasm)));
    }
}

#[test]
fn compiled_code_is_private_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let compiled = dir.path().join("compiled");
    fs::create_dir(&compiled).unwrap();
    fs::write(compiled.join(format!("{}-0000000000000000.cwasm", "0".repeat(64))), "of another engine").unwrap();
    let first = engine(dir.path(), true);
    let wasm = wat::parse_str(LEAST).unwrap();
    assert!(!first.is_compiled(digest(&wasm)));
    first.compile(digest(&wasm), &wasm).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let files: Vec<_> = fs::read_dir(&compiled).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!((mode(&compiled), files.len(), mode(&files[0])), (0o700, 1, 0o600));
    // Another start of the same node finds it.
    let second = engine(dir.path(), true);
    assert!(second.is_compiled(digest(&wasm)));
    let component = second.load(digest(&wasm)).unwrap();
    assert_eq!((component.wakes(), component.digest()), (&[Wake::RunP2][..], digest(&wasm)));
    second.forget(digest(&wasm)).unwrap();
    assert!(!second.is_compiled(digest(&wasm)));
}

#[test]
fn what_needs_no_wasi_0_3_is_compiled_to_run_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let both = engine(dir.path(), true);
    let [least, modern] = [wat::parse_str(LEAST).unwrap(), artifact("modern")];
    for wasm in [&least, &modern] {
        both.compile(digest(wasm), wasm).unwrap();
        both.load(digest(wasm)).unwrap();
    }
    // It finds what was compiled for it, and removes what was not.
    let without = engine(dir.path(), false);
    assert!(without.is_compiled(digest(&least)));
    without.load(digest(&least)).unwrap();
    assert!(!both.is_compiled(digest(&modern)));
}

#[test]
fn compiled_code_that_is_not_whole_or_not_ours_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), true);
    let wasm = wat::parse_str(LEAST).unwrap();
    engine.compile(digest(&wasm), &wasm).unwrap();
    let file = fs::read_dir(dir.path().join("compiled")).unwrap().next().unwrap().unwrap().path();
    let code = fs::read(&file).unwrap();
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::write(&file, &code[..code.len() / 2]).unwrap(),
        &|| fs::write(&file, b"").unwrap(),
        &|| fs::write(&file, b"\x7fELF something else").unwrap(),
        &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap(),
    ];
    for spoil in spoil {
        spoil();
        assert!(matches!(engine.load(digest(&wasm)), Err(ComponentError::NotCompiled(_))));
        engine.compile(digest(&wasm), &wasm).unwrap();
        engine.load(digest(&wasm)).unwrap();
    }
}

#[test]
fn guests_are_seen_as_what_they_are() {
    let lab = Lab::new();
    let seen = |guest| lab.engine.inspect(&artifact(guest)).unwrap();
    assert_eq!(seen("classic").wakes, [Wake::HttpP2, Wake::MessageTrellis, Wake::RunP2]);
    let needs: Vec<_> = seen("classic").needs.into_iter().map(|need| (need.package, need.interfaces)).collect();
    assert_eq!(needs[0].0, "messaging");
    assert_eq!(needs[1].0, "keyvalue");
    assert_eq!(needs[1].1.len(), 3, "{needs:?}");
    assert_eq!(seen("classic").warns[0].interfaces, ["outgoing-handler"]);
    let modern = seen("modern");
    assert!(modern.wakes.contains(&Wake::HttpP3) && modern.wakes.contains(&Wake::RunP3), "{:?}", modern.wakes);
    assert_eq!(seen("wasmcloud").wakes, [Wake::MessageWasmcloud]);
}

#[tokio::test]
async fn wasi_0_3_can_be_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new();
    lab.engine = engine(dir.path(), false);
    let why = lab.engine.inspect(&artifact("modern")).unwrap_err();
    assert!(why.to_string().contains("WASI 0.3 is switched off"), "{why}");
    for path in ["/hello", "/keys", "/outgoing", "/publish"] {
        let said = lab.text("classic", path).await;
        assert!(!said.contains("Err"), "{path}: {said}");
    }
    lab.all_gone().await;
}
