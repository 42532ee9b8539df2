//! Manifests as they were written for wadm: what runs as it is, and what is refused by name.

use crate::apps::image;
use crate::client::{get, send};
use crate::node::Node;
use crate::trellis::fed;

/// An app of wasmCloud 1.x, with the key-value provider to choose.
fn manifest(keyvalue: &str, more: &str) -> String {
    let guest = image("test_kv");
    format!(
        "\
apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: counter
  annotations:
    version: v0.0.1
    description: A counter of wasmCloud 1.x
    wasmcloud.dev/authors: wasmCloud team
spec:
  components:
    - name: counter
      type: component
      properties:
        image: {guest}
      traits:
        - type: spreadscaler
          properties:
            instances: 100
        - type: link
          properties:
            target: kvstore
            namespace: wasi
            package: keyvalue
            interfaces: [atomics, store, batch]
            target_config:
              - name: redis-url
                properties:
                  url: redis://127.0.0.1:6379
    - name: kvstore
      type: capability
      properties:
        image: {keyvalue}
    - name: httpserver
      type: capability
      properties:
        image: ghcr.io/wasmcloud/http-server:0.27.0
      traits:
        - type: link
          properties:
            target: counter
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source_config:
              - name: default-http
                properties:
                  address: 127.0.0.1:0
{more}"
    )
}

#[test]
fn the_old_http_server_is_the_built_in_one() {
    let node = Node::start(&[]);
    node.deploy(&manifest("trellis://embedded", ""));
    let at = node.at("counter");
    for count in ["1", "2", "3"] {
        assert_eq!(send(at, "POST", "/visits", &[], b"").unwrap().ok(), count);
    }
    assert_eq!(get(at, "/visits").unwrap().ok(), "3");
}

#[test]
fn providers_that_are_not_built_yet_are_warned_of_and_refused_by_name() {
    let kafka = "    - name: stream\n      type: capability\n      properties:\n        image: ghcr.io/wasmcloud/messaging-kafka:0.1.0\n";
    let manifest = manifest("ghcr.io/wasmcloud/keyvalue-vault:0.9.0", kafka);
    let validated = fed(&["validate", "-"], manifest.as_bytes());
    assert_eq!(validated.code, 0, "{validated:#?}");
    let node = Node::start(&[]);
    let refused = node.try_deploy(&manifest).failed(1);
    for name in ["keyvalue-vault", "messaging-kafka"] {
        assert!(validated.stdout.contains(&format!("the provider `{name}` is not built yet")), "{validated:#?}");
        assert!(refused.contains(&format!("provider `{name}`")) && refused.contains("not built into"), "{refused}");
    }
    // Old keys work, and are said to be old.
    for old in ["`target_config` is deprecated", "`source_config` is deprecated"] {
        assert!(validated.stdout.contains(old), "{validated:#?}");
    }
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
}
