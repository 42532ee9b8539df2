//! `trellis validate`: exit codes, findings for people and for programs.

use serde_json::Value;

use crate::trellis::{ORDERS, fed, orders, trellis};

#[test]
fn a_valid_manifest_is_said_to_be_valid() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), b"");
    let stdout = trellis(&["validate", manifest.to_str().unwrap()]).ok();
    assert!(stdout.trim_end().ends_with("app.yaml: valid"), "{stdout}");
    assert!(fed(&["validate", "-"], ORDERS.as_bytes()).ok().contains("<stdin>: valid"));
}

#[test]
fn of_each_queue_it_says_after_how_long_it_gives_up() {
    const SHOP: &str = "
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata: {name: shop}
spec:
  components:
    - {name: worker, type: component, properties: {image: 'file://worker.wasm'}}
    - name: queues
      type: capability
      properties: {image: 'trellis://embedded'}
      traits:
        - {type: link, properties: {target: worker, name: one, namespace: trellis, package: messaging,
            interfaces: [handler], source: {config: [{name: one, properties: {queue: one}}]}}}
        - {type: link, properties: {target: worker, name: two, namespace: trellis, package: messaging,
            interfaces: [handler], source: {config: [{name: two, properties: {queue: two, delivery.max_attempts: '1'}}]}}}
        - {type: link, properties: {target: worker, name: three, namespace: trellis, package: messaging,
            interfaces: [handler], source: {config: [{name: three, properties: {subject: three}}]}}}
";
    let said = fed(&["validate", "-"], SHOP.as_bytes()).ok();
    let (_, queues) = said.split_once("<stdin>: valid\n").unwrap_or_else(|| panic!("{said}"));
    let expected = "  queues -> worker `one`: a message that is always refused is given up after 58m 31s (20 attempts at most)\n  \
                    queues -> worker `two`: a message that is refused is given up at once\n";
    assert_eq!(queues, expected);

    let wrong = fed(&["validate", "-"], SHOP.replace("max_attempts: '1'", "max_attempts: '0'").as_bytes());
    let shown = ["<stdin>:15:", "`delivery.max_attempts: 0` does not fit"];
    assert!(wrong.code == 1 && shown.iter().all(|part| wrong.stdout.contains(part)), "{wrong:#?}");
}

#[test]
fn every_error_is_shown_with_its_line() {
    let wrong = ORDERS.replace("version: v1", "version: latest").replace("image:", "imaeg:");
    let ran = fed(&["validate", "-"], wrong.as_bytes());
    assert_eq!(ran.code, 1, "{ran:#?}");
    for shown in ["<stdin>:6:", "latest", "<stdin>:12:", "imaeg", "not valid, "] {
        assert!(ran.stdout.contains(shown), "{shown} is missing in:\n{}", ran.stdout);
    }
}

#[test]
fn programs_get_json_also_for_several_files() {
    let dir = tempfile::tempdir().unwrap();
    let good = orders(dir.path(), b"");
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, "kind: Application\n").unwrap();
    let ran = trellis(&["validate", good.to_str().unwrap(), bad.to_str().unwrap(), "-o", "json"]);
    assert_eq!(ran.code, 1);
    let files: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&files[0]["valid"], &files[1]["valid"]), (&Value::Bool(true), &Value::Bool(false)));
    let finding = &files[1]["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert!(finding["line"].is_u64() && finding["column"].is_u64(), "{finding}");
    assert!(finding["rendered"].as_str().unwrap().contains("bad.yaml"), "{finding}");
}

#[test]
fn what_cannot_be_read_is_usage() {
    assert!(trellis(&["validate", "/nowhere/app.yaml"]).failed(2).contains("cannot read /nowhere/app.yaml"));
    assert!(trellis(&["validate"]).failed(2).contains("FILE"));
}

#[test]
fn the_schema_is_json_schema() {
    let schema: Value = serde_json::from_str(&trellis(&["validate", "--schema"]).ok()).unwrap();
    assert!(schema["$schema"].as_str().unwrap().contains("json-schema.org"), "{schema}");
    assert!(schema["properties"]["metadata"].is_object(), "{schema}");
}
