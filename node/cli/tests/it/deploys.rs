//! Deploys on a real node: what is refused and how it is told, what is waited for, and what a new version costs those
//! who use the old one.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::apps::{app, component, eventually, free_address, hello, http, image, link, provider};
use crate::client;
use crate::node::Node;

/// A port of the system's choice.
const ANY: &str = "127.0.0.1:0";

#[test]
fn a_wrong_manifest_is_refused_with_its_line() {
    let node = Node::start(&[]);
    let right = hello("a", "v1", ANY, &image("hello"));
    let wrongs = [
        ("not: [yaml".to_owned(), "this is not YAML", ".yaml:1:6"),
        (right.replace("kind: Application", "kind: Deployment"), "write `kind: Application`", ".yaml:2:7"),
        (
            right.replace("        image: '", "        imagee: x\n        image: '"),
            "did you mean `image`?",
            ".yaml:11:9",
        ),
    ];
    for (wrong, told, at) in wrongs {
        let stderr = node.try_deploy(&wrong).failed(1);
        assert!(stderr.contains(told) && stderr.contains(at) && stderr.contains("nothing was sent"), "{stderr}");
    }
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
}

#[test]
fn an_image_that_is_no_component_is_refused_by_name() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(image("hello").strip_prefix("file://").unwrap()).unwrap();
    let images: [(&str, Option<&[u8]>, &str); 5] = [
        ("gone", None, "cannot read its image"),
        ("empty", Some(b""), "not WebAssembly: it is empty"),
        ("half", Some(&whole[..whole.len() / 2]), "cut short"),
        ("core", Some(b"\0asm\x01\0\0\0"), "a core module, not a component"),
        ("text", Some(b"hello"), "not WebAssembly"),
    ];
    for (name, bytes, told) in images {
        let path = dir.path().join(format!("{name}.wasm"));
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let stderr = node.try_deploy(&hello("a", "v1", ANY, path.to_str().unwrap())).failed(1);
        assert!(stderr.contains("component `hello`: ") && stderr.contains(&format!("{name}.wasm")), "{stderr}");
        assert!(stderr.contains(told), "{name}: {stderr}");
    }
    let pinned = format!("{}@sha256:{}", image("hello"), "0".repeat(64));
    let stderr = node.try_deploy(&hello("a", "v1", ANY, &pinned)).failed(1);
    assert!(stderr.contains(&format!("but the manifest asks for sha256:{}", "0".repeat(64))), "{stderr}");
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
}

#[test]
fn the_link_that_is_missing_is_shown_and_pasting_it_deploys() {
    let node = Node::start(&[]);
    let shop = |traits: &[String]| {
        app("shop", &[component("kv", "test_kv", "", traits), provider("store", "embedded"), http("kv", "")])
    };
    let stderr = node.try_deploy(&shop(&[])).failed(1);
    assert!(stderr.contains("kv imports wasi:keyvalue/{store, atomics, batch}, which no link grants"), "{stderr}");
    let (_, add) = stderr.split_once("add to its traits: ").unwrap();
    node.deploy(&shop(&[add.lines().next().unwrap().to_owned()]));
    let at = node.at("shop");
    assert_eq!(client::send(at, "PUT", "/tea", &[], b"4").unwrap().status, 204);
    assert_eq!(client::get(at, "/tea").unwrap().ok(), "4");

    let orders = app("orders", &[component("api", "orders_api", "", &[]), http("api", "")]);
    let stderr = node.try_deploy(&orders).failed(1);
    for shown in ["trellis:messaging/{producer}, which no link", "name: MESSAGING_PROVIDER", "name: KEYVALUE_PROVIDER"]
    {
        assert!(stderr.contains(shown), "{shown} is missing in:\n{stderr}");
    }
}

#[test]
fn an_interface_of_ones_own_needs_a_link_too() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let sums = dir.path().join("sums.wasm");
    let text = r#"(component (import "acme:tools/sums@1.0.0" (instance (export "add" (func (param "a" u32))))))"#;
    std::fs::write(&sums, wat::parse_str(text).unwrap()).unwrap();
    let manifest = app("sums", &[component("sums", "hello", "", &[])]);
    let manifest = manifest.replace(&image("hello"), sums.to_str().unwrap());
    let stderr = node.try_deploy(&manifest).failed(1);
    assert!(stderr.contains("sums imports acme:tools/{sums}, which no link grants"), "{stderr}");
    assert!(stderr.contains("namespace: acme, package: tools, interfaces: [sums]"), "{stderr}");
}

#[test]
fn nothing_is_ready_where_nothing_is_asked_for() {
    let node = Node::start(&[]);
    let none = |what: &str| format!("{{type: {what}, properties: {{instances: 0}}}}");
    node.deploy(&app("none", &[component("api", "hello", "", &[none("spreadscaler")]), http("api", "")]));
    assert_eq!(node.status("none")["problems"], serde_json::json!([]));
    let explained = node.trellis(&["explain", "none/api"]).ok();
    assert!(explained.contains("0 instances are asked for"), "{explained}");
    node.deploy(&app("none", &[component("api", "hello", "", &[none("daemonscaler")]), http("api", "")]));
}

#[test]
fn nothing_is_ready_whose_provider_runs_nowhere() {
    let node = Node::start(&[]);
    let moon = "{type: spreadscaler, properties: {instances: 1, spread: [{name: far, requirements: {zone: moon}}]}}";
    let api = component("api", "test_kv", "", &[link("kv", "wasi:keyvalue/store, atomics, batch")]);
    let kv = format!("{}      traits:\n        - {moon}\n", provider("kv", "embedded"));
    let manifest = app("kvo", &[api, http("api", ""), kv]);
    let stderr = node.deploy_with(&manifest, &["--wait", "3s"]).failed(1);
    let told = "kvo/kv: 0 of 1 placed for spread `far`: no node fits";
    let helps = ["is deployed but not ready after 3s", told, "zone=moon`, or deploy it with a spread that fits"];
    assert!(helps.iter().all(|part| stderr.contains(part)), "{stderr}");
    let (_, at_last) = stderr.split_once("error:").unwrap();
    assert_eq!(at_last.matches(told).count(), 1, "{stderr}");
    let is_missed = || {
        let status = node.status("kvo");
        let links = status["links"].as_array().unwrap();
        let link = links.iter().find(|link| link["target"] == "kv").unwrap();
        let why = link["problem"].as_str().unwrap_or_default();
        (status["state"] == "deploying" && link["state"] == "starting" && why.starts_with(told)).then_some(())
    };
    assert_eq!(is_missed(), Some(()), "{}", node.status("kvo"));

    let name = node.trellis(&["nodes", "-o", "json"]).ok();
    let nodes: serde_json::Value = serde_json::from_str(&name).unwrap();
    let id = nodes[0]["id"].as_str().unwrap();
    node.trellis(&["label", id, "zone=moon"]).ok();
    node.until_ready("kvo");
    assert_eq!(client::send(node.at("kvo"), "PUT", "/tea", &[], b"4").unwrap().status, 204);
    node.trellis(&["label", id, "zone-"]).ok();
    eventually("it is said that the provider runs nowhere any more", is_missed);
}

#[test]
fn a_deploy_that_another_one_overtakes_ends_at_once_and_is_not_gone_back_to() {
    let node = Node::start(&["--watch-for", "1s"]);
    let at = free_address();
    // Something has the address of the second version, which therefore never gets ready.
    let other = TcpListener::bind(ANY).unwrap();
    let versions = [("v1", at), ("v2", other.local_addr().unwrap()), ("v3", at)];
    let [first, second, third] = versions.map(|(version, at)| hello("a", version, at, &image("hello")));
    let overtaken = |by: &dyn Fn()| {
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| (node.try_deploy(&second).failed(1), std::time::Instant::now()));
            eventually("the second version is rolled out", || {
                let history = node.status("a")["history"].as_array().unwrap().clone();
                history.iter().any(|past| past["version"] == "v2" && past["state"] == "rolling-out").then_some(())
            });
            by();
            let done = std::time::Instant::now();
            let (stderr, ended) = waits.join().unwrap();
            assert!(ended.saturating_duration_since(done) < std::time::Duration::from_secs(20), "{stderr}");
            stderr
        })
    };
    node.deploy(&first);
    let stderr = overtaken(&|| node.deploy(&third));
    assert!(stderr.contains("a v2 was replaced by v3"), "{stderr}");
    let of_second = |key: &str| {
        let history = node.status("a")["history"].as_array().unwrap().clone();
        history.into_iter().find(|past| past["version"] == "v2").unwrap()[key].clone()
    };
    assert_eq!(
        [of_second("state"), of_second("deployed_ms")],
        [serde_json::json!("overtaken"), serde_json::Value::Null]
    );

    // The way back is to what ran, not to what never did, nor then to what was left.
    let watched_no_more =
        || eventually("it is watched no more", || node.status("a")["rollout"].is_null().then_some(()));
    watched_no_more();
    let told = node.trellis(&["rollback", "a"]).ok();
    assert!(told.contains("a goes back to v1"), "{told}");
    watched_no_more();
    let refused = node.trellis(&["rollback", "a"]).failed(1);
    assert!(refused.contains("app a has no version before this one that ran well"), "{refused}");
    let told = node.trellis(&["rollback", "a", "v1"]).ok();
    assert!(told.contains("a v1 runs already; nothing changed"), "{told}");
    let stderr = overtaken(&|| drop(node.trellis(&["undeploy", "a"]).ok()));
    assert!(stderr.contains("a v2 was"), "{stderr}");
}

#[test]
fn an_address_belongs_to_one_app() {
    let node = Node::start(&[]);
    let address = free_address();
    node.deploy(&hello("one", "v1", address, &image("hello")));
    let stderr = node.try_deploy(&hello("two", "v1", address, &image("hello"))).failed(1);
    assert!(stderr.contains("two/hello cannot listen") && stderr.contains("one/hello has"), "{stderr}");
    assert!(node.trellis(&["status", "two"]).failed(1).contains("there is no app `two`"));
    node.trellis(&["undeploy", "one"]).ok();
    node.deploy(&hello("two", "v1", address, &image("hello")));
    assert_eq!(client::get(address, "/?name=two").unwrap().ok(), "hello two\n");
    let stderr = node.try_deploy(&hello("one", "v1", address, &image("hello"))).failed(1);
    assert!(stderr.contains("two/hello has"), "{stderr}");
}

#[test]
fn an_address_of_another_process_is_told_and_taken_once_it_is_free() {
    let node = Node::start(&[]);
    let other = TcpListener::bind(ANY).unwrap();
    let address = other.local_addr().unwrap();
    let stderr = node.try_deploy(&hello("late", "v1", address, &image("hello"))).failed(1);
    assert!(stderr.contains(&format!("address {address}: in use by another process")), "{stderr}");
    assert_eq!(node.status("late")["state"], "failed");
    drop(other);
    node.until_ready("late");
    assert_eq!(client::get(address, "/").unwrap().ok(), "hello world\n");
}

#[test]
fn a_version_is_its_content() {
    let node = Node::start(&[]);
    let first = hello("a", "v1", ANY, &image("hello"));
    let ran = node.deploy_with(&first, &["--dry-run"]);
    assert!(ran.stderr.contains("hello is not on the node yet; its imports are checked when it is"), "{ran:#?}");
    let stdout = ran.ok();
    for shown in ["would be deployed; nothing was changed", "+ component hello", "hello: node ", "0 -> all permits"] {
        assert!(stdout.contains(shown), "{shown} is missing in:\n{stdout}");
    }
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"), "a dry run deploys nothing");

    node.deploy(&first);
    assert!(node.try_deploy(&first).ok().contains("a v1 is deployed already; nothing changed"));
    let before = node.status("a");
    let other = first.replace("{address: '127.0.0.1:0'}", "{address: '127.0.0.1:0', timeout_ms: '5000'}");
    let stderr = node.try_deploy(&other).failed(1);
    assert!(stderr.contains("version v1 of app a was deployed with other content"), "{stderr}");
    assert!(stderr.contains("--replace"), "{stderr}");
    let stdout = node.deploy_with(&other, &["--replace", "--dry-run"]).ok();
    assert!(stdout.contains("nothing was changed") && stdout.contains("~ config a-listen"), "{stdout}");
    assert_eq!(node.status("a"), before, "neither a refusal nor a dry run changes anything");
    assert!(node.deploy_with(&other, &["--replace"]).ok().contains("~ config a-listen"));
    assert!(node.try_deploy(&other).ok().contains("nothing changed"));
    assert_eq!(client::get(node.at("a"), "/").unwrap().ok(), "hello world\n");
}

/// `hello` behind two servers: `public` is configured by name, `private` in the manifest.
fn twice() -> String {
    let server = |name: &str, config: &str| {
        let link = format!(
            "{{type: link, properties: {{target: hello, name: {name}, namespace: wasi, package: http, \
             interfaces: [incoming-handler], source: {{config: [{config}]}}}}}}"
        );
        format!("{}      traits:\n        - {link}\n", provider(name, "http"))
    };
    let private = server("private", "{name: inside, properties: {address: '127.0.0.1:0'}}");
    app("twice", &[component("hello", "hello", "", &[]), server("public", "{name: web}"), private])
}

#[test]
fn a_named_config_is_waited_for_and_its_change_touches_nothing_else() {
    let node = Node::start(&[]);
    let stderr = node.deploy_with(&twice(), &["--wait", "1s"]).failed(1);
    let told = "config `web` does not exist yet: `trellis config put web KEY=VALUE`";
    assert!(stderr.contains(told), "{stderr}");
    assert_eq!(node.status("twice")["state"], "waiting");

    let put = |address: SocketAddr| node.trellis(&["config", "put", "web", &format!("address={address}")]).ok();
    let (first, second) = (free_address(), free_address());
    put(first);
    node.until_ready("twice");
    assert_eq!(client::get(first, "/").unwrap().ok(), "hello world\n");
    let private = || {
        let status = node.status("twice");
        let links = status["links"].as_array().unwrap();
        links.iter().find(|link| link["source"] == "private").unwrap()["at"].clone()
    };
    let before = private();
    put(second);
    eventually("the new address answers", || TcpStream::connect(second).ok());
    eventually("nobody listens at the old one", || TcpStream::connect(first).err());
    assert_eq!(client::get(second, "/").unwrap().ok(), "hello world\n");
    assert_eq!(private(), before, "a link whose config did not change keeps its port");
    assert_eq!(node.log().matches("listening address=").count(), 3, "{}", node.log());
    let stderr = node.trellis(&["config", "del", "web"]).failed(1);
    assert!(stderr.contains("config `web` is used by app twice"), "{stderr}");
}

#[test]
fn a_version_that_waits_leaves_the_one_before_it_running() {
    let node = Node::start(&[]);
    let address = free_address();
    let first = hello("a", "v1", address, &image("hello"));
    node.deploy(&first);
    let second = first.replace("version: v1", "version: v2").replace(
        &format!("        image: '{}'\n", image("hello")),
        &format!("        image: '{}'\n        config: [{{name: words}}]\n", image("hello")),
    );
    let stderr = node.deploy_with(&second, &["--wait", "1s"]).failed(1);
    assert!(stderr.contains("config `words` does not exist yet"), "{stderr}");
    assert_eq!(node.status("a")["version"], "v1");
    assert_eq!(client::get(address, "/").unwrap().ok(), "hello world\n");
    node.trellis(&["config", "put", "words", "greeting=hi"]).ok();
    eventually("v2 runs", || (node.status("a")["version"] == "v2").then_some(()));
    node.until_ready("a");
    assert_eq!(client::get(address, "/").unwrap().ok(), "hello world\n");
}

#[test]
fn undeploy_keeps_the_versions_and_delete_forgets_them() {
    let node = Node::start(&[]);
    let manifest = hello("a", "v1", ANY, &image("hello"));
    node.deploy(&manifest);
    let address = node.at("a");
    node.trellis(&["undeploy", "a"]).ok();
    eventually("nobody listens any more", || TcpStream::connect(address).err());
    assert_eq!(node.status("a")["state"], "undeployed");
    assert_eq!(node.status("a")["versions"][0], "v1");
    node.deploy(&manifest);
    assert_eq!(client::get(node.at("a"), "/").unwrap().ok(), "hello world\n");
    node.trellis(&["delete", "a"]).ok();
    assert!(node.trellis(&["status", "a"]).failed(1).contains("there is no app `a`"));
    for command in ["delete", "undeploy"] {
        assert!(node.trellis(&[command, "a"]).failed(1).contains("app a is not known"));
    }
}

#[test]
fn what_was_deleted_leaves_nothing_behind() {
    let node = Node::start(&[]);
    let metrics = || {
        let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
        client::send(admin, "GET", "/metrics", &[("host", "localhost")], b"").unwrap().ok()
    };
    for _ in 0..3 {
        let apps = ["one", "two", "three"];
        apps.iter().for_each(|app| node.deploy(&hello(app, "v1", ANY, &image("hello"))));
        assert!(apps.iter().all(|app| client::get(node.at(app), "/").unwrap().status == 200));
        let page = metrics();
        assert!(apps.iter().all(|app| page.contains(&format!("faas_invocations_total{{app=\"{app}\""))), "{page}");
        apps.iter().for_each(|app| drop(node.trellis(&["delete", app]).ok()));
        eventually("no component is held", || (!metrics().contains("app=\"")).then_some(()));
    }
    assert!(metrics().contains("trellis_sandboxes_running 0"), "{}", metrics());
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
    assert_eq!(node.trellis(&["config", "list"]).ok(), "", "config of deleted apps is gone");
}

#[test]
fn a_manifest_of_more_than_a_mebibyte_is_refused_by_name() {
    let node = Node::start(&[]);
    let values: String = (0..800).map(|n| format!("k{n}: '{}', ", "x".repeat(1_400))).collect();
    let image_line = format!("        image: '{}'\n", image("hello"));
    let config = format!("{image_line}        config: [{{name: lots, properties: {{{values}}}}}]\n");
    let manifest = hello("big", "v1", ANY, &image("hello")).replace(&image_line, &config);
    let stderr = node.try_deploy(&manifest).failed(1);
    assert!(stderr.contains("bytes, more than 1048576"), "{stderr}");
    assert!(node.trellis(&["apps"]).ok().starts_with("no apps yet"));
    node.deploy(&hello("big", "v1", ANY, &image("hello")));
}

/// Clients that ask as fast as they are answered, each time over a new connection, until they are told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(address: SocketAddr) -> Self {
        let (stop, answered, failed) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<Mutex<Vec<String>>>)>::default();
        let ask = || {
            let (stop, answered, failed) = (stop.clone(), answered.clone(), failed.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match once(address) {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => failed.lock().unwrap().push(why),
                    }
                }
            })
        };
        let threads = (0..4).map(|_| ask()).collect();
        Self { stop, answered, failed, threads }
    }

    /// Waits until they were answered some more.
    fn go_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("requests are answered", || (self.answered.load(Ordering::Relaxed) > before + 40).then_some(()));
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.failed.lock().unwrap().clone()
    }
}

fn once(address: SocketAddr) -> Result<(), String> {
    match client::get(address, "/") {
        Ok(response) if response.status == 200 => Ok(()),
        Ok(response) => Err(format!("{}: {}", response.status, response.text())),
        Err(why) => Err(why.to_string()),
    }
}

#[test]
fn a_new_version_takes_over_while_requests_are_under_way() {
    let node = Node::start(&[]);
    let (address, dir) = (free_address(), tempfile::tempdir().unwrap());
    let first = hello("roll", "v1", address, &image("hello"));
    // The same component with a custom section more: other bytes, another digest.
    let other = dir.path().join("hello.wasm");
    let mut bytes = std::fs::read(image("hello").strip_prefix("file://").unwrap()).unwrap();
    bytes.extend(b"\0\x05\x04more");
    std::fs::write(&other, bytes).unwrap();
    let versions = [
        ("v2", first.replace("      type: component\n", "      type: component\n      limits: {memory: 64MiB}\n")),
        ("v3", first.replace(&image("hello"), other.to_str().unwrap())),
        ("v4", first.replace("'}}]", "', timeout_ms: '5000'}}]")),
        ("v5", first.replace("name: hello", "name: greeter").replace("target: hello", "target: greeter")),
    ];

    node.deploy(&first);
    let clients = Clients::start(address);
    clients.go_on();
    for (version, manifest) in versions {
        assert_ne!(manifest, first, "{version} differs");
        node.deploy(&manifest.replace("version: v1", &format!("version: {version}")));
        assert_eq!(node.status("roll")["version"], version);
        clients.go_on();
        let failed = clients.failed.lock().unwrap().clone();
        assert_eq!(failed, [""; 0], "{version}: {} answered", clients.answered.load(Ordering::Relaxed));
    }
    assert_eq!(clients.stop(), [""; 0]);
    assert_eq!(node.trellis(&["logs", "roll"]).ok(), "");
}

#[test]
fn a_link_that_is_not_wanted_any_more_grants_nothing() {
    let node = Node::start(&[]);
    let shop = |version: &str, guest: &str, traits: &[String]| {
        let parts = [component("kv", guest, "", traits), provider("store", "embedded"), http("kv", "")];
        app("shop", &parts).replace("{name: shop}", &format!("{{name: shop, annotations: {{version: {version}}}}}"))
    };
    node.deploy(&shop("v1", "test_kv", &[link("store", "wasi:keyvalue/store, atomics, batch")]));
    let stderr = node.try_deploy(&shop("v2", "test_kv", &[])).failed(1);
    assert!(stderr.contains("which no link grants"), "{stderr}");
    assert_eq!(node.status("shop")["version"], "v1", "what is refused replaces nothing");
    node.deploy(&shop("v3", "hello", &[]));
    assert_eq!(client::get(node.at("shop"), "/").unwrap().ok(), "hello world\n");
}

#[test]
fn a_changed_config_reaches_what_runs_and_touches_nothing_else() {
    let node = Node::start(&[]);
    node.trellis(&["config", "put", "words", "greeting=one"]).ok();
    let reads = component("changing", "test_misbehave", "", &[]);
    let reads = reads.replace("test_misbehave.wasm'}", "test_misbehave.wasm', config: [{name: words}]}");
    let still = http("still", "").replace("name: http", "name: web").replace("name: listen", "name: elsewhere");
    let entries = [reads, component("still", "test_misbehave", "", &[]), http("changing", ""), still];
    node.deploy(&app("both", &entries));
    let at = |provider: &str| -> SocketAddr {
        let links = node.status("both")["links"].as_array().unwrap().clone();
        let link = links.iter().find(|link| link["source"] == provider).unwrap();
        link["at"].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap()
    };
    let (changing, still) = (at("http"), at("web"));
    assert_eq!(client::get(changing, "/config").unwrap().ok(), "greeting=one\n");
    assert_eq!(client::get(still, "/").unwrap().status, 200);
    let cold = || {
        let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
        let page = client::send(admin, "GET", "/metrics", &[("host", "localhost")], b"").unwrap().ok();
        page.lines().filter(|line| line.starts_with("faas_coldstarts_total")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = cold();

    let under_way = std::thread::spawn(move || client::get(still, "/slow?ms=3000").unwrap().status);
    node.trellis(&["config", "put", "words", "greeting=two"]).ok();
    eventually("the change is here", || {
        (client::get(changing, "/config").unwrap().ok() == "greeting=two\n").then_some(())
    });
    assert_eq!((at("http"), at("web")), (changing, still), "nobody listens anew");
    assert_eq!(under_way.join().unwrap(), 200);
    assert_eq!(cold(), before, "no code is loaded anew");
    assert_eq!(node.status("both")["rollout"], serde_json::Value::Null, "a config is no version");
}

#[test]
fn what_nobody_else_can_hold_is_named_when_its_node_is_drained() {
    let node = Node::start(&[]);
    node.deploy(&hello("alone", "v1", ANY, &image("hello")));
    let id = crate::lattice::id(&node);
    let drained = node.trellis(&["drain", &id]);
    let missing =
        "warning: no other node can hold all of alone/hello: 0 of 1 placed for spread `default`: no node fits";
    assert!(drained.stderr.starts_with(missing), "{drained:?}");
    drained.ok();
    assert_eq!(node.trellis(&["drain", &id]).stderr, "", "it holds nothing any more");
    node.trellis(&["undrain", &id]).ok();
    node.until_ready("alone");

    let labelled = node.trellis(&["label", &id, "os=plan9", "zone=eu"]);
    assert!(labelled.stderr.starts_with("warning: `os` is a label that each node gives itself"), "{labelled:?}");
    assert_eq!(labelled.stderr.lines().count(), 1);
    eventually("it is told", || {
        let told = node.trellis(&["events", "-o", "json"]).ok();
        told.lines().find(|line| line.contains("trellis.node.labelled")).map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["data"]["labels"], serde_json::json!({ "os": "plan9", "zone": "eu" }));
        })
    });
}
