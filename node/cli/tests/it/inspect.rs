//! `trellis inspect`: what it says of a component, and that what it offers to paste is a valid manifest.

use std::path::Path;

use serde_json::Value;

use crate::trellis::{fed, trellis};

const SHOP: &str = r#"(component
    (import "wasi:keyvalue/store@0.2.0-draft" (instance))
    (import "wasi:keyvalue/atomics@0.2.0-draft" (instance))
    (import "wasi:http/outgoing-handler@0.2.1" (instance))
    (instance $i)
    (export "wasi:http/incoming-handler@0.2.3" (instance $i))
    (export "trellis:messaging/handler@0.1.0" (instance $i))
    (export "wasi:cli/run@0.2.3" (instance $i)))"#;

fn wasm(folder: &Path, wat: &str) -> String {
    let path = folder.join("my_shop.wasm");
    std::fs::write(&path, wat::parse_str(wat).unwrap()).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn it_says_what_wakes_a_component_and_which_links_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let stdout = trellis(&["inspect", &wasm(dir.path(), SHOP)]).ok();
    for shown in [
        "sha256:",
        "wasi:keyvalue/store@0.2.0-draft",
        "an HTTP request (wasi:http/incoming-handler of WASI 0.2)",
        "a message (trellis:messaging/handler)",
        "`trellis invoke` (wasi:cli/run)",
        "wasi:keyvalue/store,atomics  (without it, a deploy is refused)",
        "wasi:http/outgoing-handler  (without it, calls are denied)",
    ] {
        assert!(stdout.contains(shown), "{shown} is missing in:\n{stdout}");
    }
}

#[test]
fn what_it_offers_to_paste_is_valid() {
    let dir = tempfile::tempdir().unwrap();
    let stdout = trellis(&["inspect", &wasm(dir.path(), SHOP), "-o", "json"]).ok();
    let inspected: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(inspected["woken_by"], serde_json::json!(["http", "message", "run"]));
    let entries = inspected["manifest"].as_str().unwrap();
    let manifest = format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: shop\nspec:\n  components:\n{entries}"
    );
    let stdout = fed(&["validate", "-"], manifest.as_bytes()).ok();
    assert!(stdout.contains("<stdin>: valid"), "{manifest}\n{stdout}");
    assert!(entries.contains("name: my-shop") && entries.contains("interfaces: [store, atomics]"), "{entries}");
}

#[test]
fn what_is_no_component_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let stderr = trellis(&["inspect", &wasm(dir.path(), "(module)")]).failed(1);
    assert!(stderr.contains("my_shop.wasm") && stderr.contains("core module"), "{stderr}");
    assert!(trellis(&["inspect", "/nowhere.wasm"]).failed(2).contains("cannot read /nowhere.wasm"));
}
