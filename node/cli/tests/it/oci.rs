//! Components from an OCI registry: Debian's docker-registry, on a free port of 127.0.0.1.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::apps::{eventually, free_address, hello, image};
use crate::client;
use crate::node::{DataDir, Node};

/// `alice`, whose password is `s3cret`, as Apache's `htpasswd -B -C 4` writes her.
const ALICE: &str = "alice:$2b$04$bHnh/Cc/3xo9NUkdUagKgumNVRydgOp9QHFtphhKvTts75k8CJHDG\n";
/// The same in a request, and in Docker's `config.json`.
const ALICE_BASIC: &str = "YWxpY2U6czNjcmV0";

/// A registry. Dropping it kills the process by its id.
struct Registry {
    address: SocketAddr,
    authorization: Option<String>,
    child: Child,
    _store: TempDir,
}

impl Registry {
    fn start(for_alice_only: bool) -> Self {
        let (store, address) = (tempfile::tempdir().unwrap(), free_address());
        let folder = store.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/images}}}}\n\
             http: {{addr: '{address}'}}\n"
        );
        if for_alice_only {
            std::fs::write(store.path().join("htpasswd"), ALICE).unwrap();
            writeln!(config, "auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}").unwrap();
        }
        let config_file = store.path().join("config.yml");
        std::fs::write(&config_file, config).unwrap();
        let child = Command::new(program())
            .arg("serve")
            .arg(&config_file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|why| panic!("docker-registry cannot be run ({why}): run deploy/setup/registry.sh"));
        eventually("the registry listens", || TcpStream::connect(address).ok());
        let authorization = for_alice_only.then(|| format!("Basic {ALICE_BASIC}"));
        Self { address, authorization, child, _store: store }
    }

    /// Pushes a file as the only layer of an image. The digest of the image's manifest.
    fn push(&self, name: &str, tag: &str, layer: &[u8], media_type: &str) -> String {
        let describe = |media_type: &str, bytes: &[u8]| {
            let digest = self.push_blob(name, bytes);
            serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
        };
        let media_type_of_manifest = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type_of_manifest,
            "config": describe("application/vnd.wasm.config.v0+json", b"{}"),
            "layers": [describe(media_type, layer)],
        });
        let manifest = manifest.to_string();
        let path = format!("/v2/{name}/manifests/{tag}");
        self.ask("PUT", &path, &[("content-type", media_type_of_manifest)], manifest.as_bytes());
        digest(manifest.as_bytes())
    }

    fn push_blob(&self, name: &str, bytes: &[u8]) -> String {
        let begun = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"");
        let location = begun.header("location").unwrap();
        let path = location.find("/v2/").map(|at| &location[at..]).unwrap();
        let digest = digest(bytes);
        let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
        self.ask("PUT", &path, &[("content-type", "application/octet-stream")], bytes);
        digest
    }

    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> client::Response {
        let host = self.address.to_string();
        let mut headers = [&[("host", host.as_str())], headers].concat();
        headers.extend(self.authorization.as_deref().map(|value| ("authorization", value)));
        let response = client::send(self.address, method, path, &headers, body).unwrap();
        assert!((200..300).contains(&response.status), "{method} {path}: {response:?} {}", response.text());
        response
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, and is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where deploy/setup/registry.sh puts it.
fn program() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| std::env::home_dir().unwrap().join(".cache"));
    let program = cache.join("trellis/bin/docker-registry");
    assert!(program.exists(), "{} is missing: run deploy/setup/registry.sh", program.display());
    program
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn wasm() -> Vec<u8> {
    std::fs::read(image("hello").strip_prefix("file://").unwrap()).unwrap()
}

fn manifest(app: &str, image: &str) -> String {
    hello(app, "v1", "127.0.0.1:0", image)
}

#[test]
fn a_component_is_pulled_by_tag_and_by_digest() {
    let (registry, node) = (Registry::start(false), Node::start(&[]));
    let pushed = registry.push("shop/hello", "1", &wasm(), "application/wasm");
    let at = registry.address;
    let names =
        [format!("{at}/shop/hello:1"), format!("{at}/shop/hello@{pushed}"), format!("{at}/shop/hello:1@{pushed}")];
    for (nth, name) in names.iter().enumerate() {
        let app = format!("app{nth}");
        node.deploy(&manifest(&app, name));
        assert_eq!(client::get(node.at(&app), "/").unwrap().ok(), "hello world\n");
        assert_eq!(node.status(&app)["components"][0]["digest"], digest(&wasm()), "{name}");
    }
    drop(registry);
    let data_dir = node.kill();
    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("app0");
    assert_eq!(client::get(node.at("app0"), "/").unwrap().ok(), "hello world\n", "what was pulled is kept");
}

#[test]
fn an_image_that_cannot_be_pulled_is_named_with_the_cause() {
    let (registry, node) = (Registry::start(false), Node::start(&[]));
    registry.push("hello", "1", &wasm(), "application/wasm");
    registry.push("hello", "tar", b"no component", "application/vnd.oci.image.layer.v1.tar");
    registry.push("hello", "text", b"no component", "application/wasm");
    let at = registry.address;
    let nobody = free_address();
    let wrongs = [
        (format!("{at}/hello:1@sha256:{}", "0".repeat(64)), "manifest unknown"),
        (format!("{at}/hello:2"), "manifest unknown"),
        (format!("{at}/nothing:1"), "manifest unknown"),
        (format!("{at}/hello:tar"), "none is application/wasm"),
        (format!("{nobody}/hello:1"), "Connection refused"),
    ];
    for (name, cause) in wrongs {
        let stderr = node.try_deploy(&manifest("a", &name)).failed(1);
        assert!(stderr.contains("hello: ") && stderr.contains(&name) && stderr.contains(cause), "{name}: {stderr}");
    }
    let stderr = node.try_deploy(&manifest("a", &format!("{at}/hello:text"))).failed(1);
    assert!(stderr.contains("hello: ") && stderr.contains("is not WebAssembly"), "{stderr}");
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
}

#[test]
fn a_registry_that_asks_who_one_is_gets_what_docker_login_left() {
    let registry = Registry::start(true);
    registry.push("hello", "1", &wasm(), "application/wasm");
    let image = format!("{}/hello:1", registry.address);
    let docker = tempfile::tempdir().unwrap();
    let start = |config: &str| {
        std::fs::write(docker.path().join("config.json"), config).unwrap();
        Node::start_with(&DataDir::new(), &[], &[("DOCKER_CONFIG", docker.path().to_str().unwrap())])
    };
    let login = |auth: &str| format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.address);
    for wrong in ["{}", &login("YWxpY2U6d3Jvbmc=")] {
        let stderr = start(wrong).try_deploy(&manifest("a", &image)).failed(1);
        assert!(stderr.contains(&image) && stderr.contains("Not authorized"), "{stderr}");
    }
    let node = start(&login(ALICE_BASIC));
    node.deploy(&manifest("a", &image));
    assert_eq!(client::get(node.at("a"), "/").unwrap().ok(), "hello world\n");
}
