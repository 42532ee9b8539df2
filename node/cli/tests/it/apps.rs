//! Apps of real guests on a real node: their manifests, and where they are reached once they run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::Node;
use crate::trellis::Ran;

/// How long something may take that happens by itself, on a machine that is busy with other tests.
const EVENTUALLY: Duration = Duration::from_secs(60);

/// `examples/`.
pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").canonicalize().unwrap()
}

/// The image of a built guest, as a manifest names it.
#[track_caller]
pub(crate) fn image(guest: &str) -> String {
    let path = examples().join("build").join(format!("{guest}.wasm"));
    assert!(path.exists(), "{} is missing; run examples/build.sh", path.display());
    format!("file://{}", path.display())
}

/// A manifest with these entries of `components:`.
pub(crate) fn app(name: &str, entries: &[String]) -> String {
    format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: {name}}}\nspec:\n  components:\n{}",
        entries.concat()
    )
}

/// An HTTP server in front of a component. `listen` follows `address:` with a port of the system's choice.
pub(crate) fn http(target: &str, listen: &str) -> String {
    format!(
        "
    - name: http
      type: capability
      properties: {{image: trellis://http}}
      traits:
        - type: link
          properties:
            target: {target}
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source: {{config: [{{name: listen, properties: {{address: '127.0.0.1:0', {listen}}}}}]}}
"
    )
}

/// A provider that wakes nothing by itself.
pub(crate) fn provider(name: &str, tech: &str) -> String {
    format!(
        "
    - name: {name}
      type: capability
      properties: {{image: 'trellis://{tech}'}}
"
    )
}

/// A provider with config of its own, such as `url: '...'`.
pub(crate) fn provider_at(name: &str, tech: &str, config: &str) -> String {
    let image = format!("{{image: 'trellis://{tech}'}}");
    let configured = format!("{{image: 'trellis://{tech}', config: [{{name: {name}-own, properties: {{{config}}}}}]}}");
    provider(name, tech).replace(&image, if config.is_empty() { &image } else { &configured })
}

/// A component. `more` are further lines of its entry, such as `limits: {memory: 1MiB}`; `traits` are its traits.
pub(crate) fn component(name: &str, guest: &str, more: &str, traits: &[String]) -> String {
    let traits: String = traits.iter().map(|one| format!("        - {one}\n")).collect();
    let traits = if traits.is_empty() { String::new() } else { format!("      traits:\n{traits}") };
    format!(
        "
    - name: {name}
      type: component
      {more}
      properties: {{image: '{}'}}
{traits}",
        image(guest)
    )
}

/// A link trait. `target` is a name or `{name: ..., config: ...}`, `interface` is `wasi:keyvalue/store, atomics`.
pub(crate) fn link(target: &str, interface: &str) -> String {
    let (namespace, rest) = interface.split_once(':').unwrap();
    let (package, interfaces) = rest.split_once('/').unwrap();
    format!(
        "{{type: link, properties: {{target: {target}, namespace: {namespace}, package: {package}, \
         interfaces: [{interfaces}]}}}}"
    )
}

/// A link trait with the source's config, in braces.
pub(crate) fn link_from(target: &str, interface: &str, name: &str, config: &str) -> String {
    let source = format!(", source: {{config: [{{name: {name}, properties: {config}}}]}}}}}}");
    link(target, interface).strip_suffix("}}").unwrap().to_owned() + &source
}

/// A provider with links to what it wakes.
pub(crate) fn waking(name: &str, tech: &str, links: &[String]) -> String {
    waking_at(name, tech, "", links)
}

/// The same with config of its own.
pub(crate) fn waking_at(name: &str, tech: &str, config: &str, links: &[String]) -> String {
    let links: String = links.iter().map(|one| format!("        - {one}\n")).collect();
    format!("{}      traits:\n{links}", provider_at(name, tech, config))
}

impl Node {
    /// Deploys a manifest and waits until it runs.
    #[track_caller]
    pub(crate) fn deploy(&self, manifest: &str) {
        self.try_deploy(manifest).ok();
    }

    /// Tries to deploy a manifest.
    pub(crate) fn try_deploy(&self, manifest: &str) -> Ran {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.trellis(&["deploy", "--wait", "2m", file.path().to_str().unwrap()])
    }

    /// What `trellis status` says, as JSON.
    #[track_caller]
    pub(crate) fn status(&self, app: &str) -> Value {
        serde_json::from_str(&self.trellis(&["status", app, "-o", "json"]).ok()).unwrap()
    }

    /// The dead letters of an app, or of one component, that these options choose. Every node says what it has.
    #[track_caller]
    pub(crate) fn dead_letters(&self, of: &str, more: &[&str]) -> Vec<Value> {
        let listed = self.trellis(&[&["dead-letters", "list", of, "-o", "json"], more].concat()).ok();
        let mut listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed["problems"], Value::Array(Vec::new()), "{listed:#}");
        serde_json::from_value(listed["dead_letters"].take()).unwrap()
    }

    /// Where an app's HTTP server listens.
    #[track_caller]
    pub(crate) fn at(&self, app: &str) -> SocketAddr {
        // A node that was started again listens a moment after it answers.
        let at = eventually(&format!("{app} is reached somewhere"), || {
            let status = self.status(app);
            let mut links = status["links"].as_array().unwrap().iter();
            links.find_map(|link| link["at"].as_str()).map(str::to_owned)
        });
        at.split_once("://").unwrap().1.parse().unwrap()
    }

    /// A number that the only holder of the app's first component reports: `running`, `events`, `faults`.
    #[track_caller]
    pub(crate) fn count(&self, app: &str, what: &str) -> u64 {
        self.status(app)["components"][0]["holders"][0][what].as_u64().unwrap()
    }

    /// Waits until this many sandboxes of the app's first component run.
    #[track_caller]
    pub(crate) fn until_running(&self, app: &str, count: u64) {
        eventually(&format!("{count} sandboxes of {app} run"), || (self.count(app, "running") == count).then_some(()));
    }

    /// The lines of an app's log, as JSON.
    #[track_caller]
    pub(crate) fn logs(&self, app: &str) -> Vec<Value> {
        let lines = self.trellis(&["logs", app, "-o", "json", "--lines", "1000"]).ok();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Asks again until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The version of an app that is `hello`, of this image, behind an HTTP server at this address.
pub(crate) fn hello(name: &str, version: &str, address: impl std::fmt::Display, image: &str) -> String {
    format!(
        "apiVersion: core.oam.dev/v1beta1
kind: Application
metadata:
  name: {name}
  annotations: {{version: {version}}}
spec:
  components:
    - name: hello
      type: component
      properties:
        image: '{image}'
    - name: http
      type: capability
      properties: {{image: trellis://http}}
      traits:
        - type: link
          properties:
            target: hello
            namespace: wasi
            package: http
            interfaces: [incoming-handler]
            source: {{config: [{{name: listen, properties: {{address: '{address}'}}}}]}}
"
    )
}

/// A manifest of `examples/orders`, listening at this address.
pub(crate) fn orders_at(file: &str, address: impl std::fmt::Display) -> String {
    let text = std::fs::read_to_string(examples().join("orders").join(file)).unwrap();
    let build = examples().join("build");
    assert!(build.join("orders_api.wasm").exists(), "the guests are missing; run examples/build.sh");
    let text = text.replace("file://../build", &format!("file://{}", build.display()));
    text.replace("127.0.0.1:8080", &address.to_string())
}

/// An address of this machine that nobody listens at now. Another process may take it; so may the system, rarely.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Node {
    /// Tries to deploy a manifest with further arguments of `trellis deploy`.
    pub(crate) fn deploy_with(&self, manifest: &str, args: &[&str]) -> Ran {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.trellis(&[&["deploy", file.path().to_str().unwrap()], args].concat())
    }

    /// Waits until everything of an app runs.
    #[track_caller]
    pub(crate) fn until_ready(&self, app: &str) {
        eventually(&format!("{app} is ready"), || (self.status(app)["state"] == "ready").then_some(()));
    }
}
