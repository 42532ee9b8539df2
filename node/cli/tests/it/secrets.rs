//! Secrets on a real node: read where they are opened, given to guests and providers, changed while they are used, and
//! shown by nothing.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use trellis_bus::testing::NatsServer;
use trellis_provider::testing::certificates::{self, CA, Certificates};

use crate::apps::{component, eventually, http, link, link_from, provider};
use crate::client::get;
use crate::node::{DataDir, Node};
use crate::trellis::trellis;

const KEY: &str = "hunter2-of-the-api";
const PASSWORD: &str = "hunter2-of-nats";
const CHANGED: &str = "hunter3-of-nats";

/// A component with a secret of each backend, an HTTP server whose port would show a restart, and a bucket of a NATS
/// server that asks for a password.
fn vault(nats: &NatsServer) -> String {
    let store = format!(
        "{{type: link, properties: {{namespace: wasi, package: keyvalue, interfaces: [store, atomics, batch], target: \
         {{name: bucket, config: [{{name: bucket, properties:\n            {{url: '{}', user: shop, bucket: kept, create: 'true'}}}}], \
         secrets: [{{name: password, properties: {{policy: files, key: nats, field: password}}}}]}}}}}}",
        nats.url
    );
    let secrets = "secrets: [{name: api, properties: {policy: variables, key: api-key}}, \
                   {name: pass, properties: {policy: files, key: nats, field: password}}]";
    let job = component("job", "test_run", "", &[]);
    let job = job.trim_end().strip_suffix('}').unwrap().to_owned() + &format!(", {secrets}}}\n");
    app(&[job, component("window", "test_kv", "", &[store]), http("window", ""), provider("bucket", "nats")])
}

/// An app of these entries that may name secrets of both backends.
fn app(entries: &[String]) -> String {
    let policies = [("files", "file"), ("variables", "env")].map(|(name, backend)| {
        format!(
            "    - {{name: {name}, type: policy.secret.wasmcloud.dev/v1alpha1, properties: {{backend: {backend}}}}}\n"
        )
    });
    format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: vault}}\nspec:\n  policies:\n{}  \
         components:\n{}",
        policies.concat(),
        entries.concat()
    )
}

/// A secret as the component sees it.
fn seen(node: &Node, name: &str) -> String {
    let backwards = node.trellis(&["invoke", "vault/job", "--secret", name]).ok();
    backwards.trim().chars().rev().collect()
}

/// Everything in a folder that holds a text.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(holding(&entry.path(), text));
        } else if fs::read(entry.path()).unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes()) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

/// Everything that the admin API and the command line show, of the app and of this config of it.
fn shown(node: &Node, config: &str) -> String {
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let page = |path: &str| get(admin, path).unwrap().text();
    let document: Value = serde_json::from_str(&page("/openapi.json")).unwrap();
    let paths = document["paths"].as_object().unwrap().iter().filter(|(_, path)| path["get"].is_object());
    let filled = paths.map(|(path, _)| {
        path.replace("{app}", "vault").replace("{component}", "job").replace("{name}", config).replace("{id}", "1")
    });
    let commands = [
        "status vault",
        "apps",
        "nodes",
        "explain vault/job",
        "logs vault",
        "triggers vault",
        "history vault",
        "config list",
    ];
    let said = commands.map(|command| node.trellis(&command.split(' ').collect::<Vec<_>>()).ok());
    filled.map(|path| page(&path)).collect::<String>() + &said.concat()
}

#[test]
fn secrets_are_read_changed_and_shown_by_nothing() {
    let (data_dir, files) = (DataDir::new(), tempfile::tempdir().unwrap());
    let nats = NatsServer::start_with(true, &["--user", "shop", "--pass", PASSWORD]);
    let args = ["--secrets", files.path().to_str().unwrap(), "--secrets-env-prefix", "TRELLIS_SECRET_"];
    let node = Node::start_with(&data_dir, &args, &[("TRELLIS_SECRET_API_KEY", KEY)]);

    let waits = node.deploy_with(&vault(&nats), &["--wait", "2s"]).failed(1);
    for told in ["waits for the secret `password` on node ", "nats/password: entity not found", "link window -> bucket"]
    {
        assert!(waits.contains(told), "{told} is missing in {waits}");
    }
    fs::create_dir(files.path().join("nats")).unwrap();
    fs::write(files.path().join("nats/password"), format!("{PASSWORD}\n")).unwrap();
    node.until_ready("vault");
    assert_eq!((seen(&node, "api").as_str(), seen(&node, "pass").as_str()), (KEY, PASSWORD));
    let at = node.at("vault");
    assert_eq!(get(at, "/?keys").unwrap().ok(), "", "the bucket is reached with the password");

    drop(nats);
    let nats = NatsServer::start_with(true, &["--user", "shop", "--pass", CHANGED]);
    let kept_out = node.deploy_with(&vault(&nats), &["--wait", "2s"]).failed(1);
    assert!(kept_out.contains("not connected to nats://"), "{kept_out}");
    fs::write(files.path().join("nats/password"), CHANGED).unwrap();
    eventually("the changed secret is with the guest", || (seen(&node, "pass") == CHANGED).then_some(()));
    eventually("and with the provider", || (get(at, "/?keys").ok()?.status == 200).then_some(()));
    assert_eq!(node.at("vault"), at, "what did not change was not started anew");

    fs::remove_file(files.path().join("nats/password")).unwrap();
    eventually("that it is gone is told", || node.log().contains("cannot be read again").then_some(()));
    assert_eq!(seen(&node, "pass"), CHANGED, "what runs keeps what it has");

    let shown = shown(&node, "vault-bucket") + &node.log();
    for secret in [KEY, PASSWORD, CHANGED] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert_eq!(holding(&data_dir.path(), secret), Vec::<String>::new(), "{secret} is on the disk");
    }
    assert!(!holding(&data_dir.path(), "api-key").is_empty(), "references are kept, so the search finds what is there");
}

/// A server that asks for TLS, the client's certificate and a login.
fn guarded(made: &Certificates) -> NatsServer {
    let [ca, certificate, key] = [CA, "server.pem", "server.key"].map(|name| made.path(name));
    let tls = ["--tlscert", &certificate, "--tlskey", &key, "--tlscacert", &ca, "--tlsverify"];
    let login = ["--user", certificates::USER, "--pass", certificates::PASSWORD];
    NatsServer::start_with(true, &[&tls[..], &login].concat())
}

/// A handler behind a queue of that server, which writes what came to a bucket there. All that lets it in is secret.
fn courier(server: &NatsServer) -> String {
    let secret = |name: &str| format!("{{name: {name}, properties: {{policy: files, key: broker, field: {name}}}}}");
    let secrets = ["user", "password", "tls_ca", "tls_cert", "tls_key"].map(secret).join(", ");
    let url = server.url.replace("nats://", "tls://");
    let config = format!("{{name: broker-own, properties: {{url: '{url}', bucket: seen, create: 'true'}}}}");
    let broker = provider("broker", "nats").replace("'}", &format!("', config: [{config}], secrets: [{secrets}]}}"));
    let wakes = link_from("job", "trellis:messaging/handler", "orders", "{queue: ORDERS}");
    let uses = [link("broker", "wasi:keyvalue/store, atomics, batch"), link("broker", "trellis:messaging/producer")];
    app(&[component("job", "test_messages", "", &uses), format!("{broker}      traits:\n        - {wakes}\n")])
}

/// What a client that has nothing to do with Trellis sends and finds there.
async fn sent_and_seen(server: &NatsServer, made: &Certificates) -> Vec<u8> {
    let login = (certificates::USER.to_owned(), certificates::PASSWORD.to_owned());
    let options = async_nats::ConnectOptions::with_user_and_password(login.0, login.1)
        .add_root_certificates(made.path(CA).into())
        .add_client_certificate(made.path("client.pem").into(), made.path("client.key").into());
    let client = options.require_tls(true).connect(&server.url).await.unwrap();
    let context = async_nats::jetstream::new(client);
    context.publish("ORDERS", "tea".into()).await.unwrap().await.unwrap();
    // The node makes it when the handler first asks for it.
    let bucket = loop {
        match context.get_key_value("seen").await {
            Ok(bucket) => break bucket,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let mut written = bucket.watch_with_history("last/tea").await.unwrap();
    futures::StreamExt::next(&mut written).await.unwrap().unwrap().value.to_vec()
}

#[test]
fn a_queue_over_tls_is_reached_by_a_mounted_directory_of_which_nothing_is_shown() {
    let (data_dir, mounted, made) = (DataDir::new(), tempfile::tempdir().unwrap(), Certificates::make());
    let server = guarded(&made);
    let folder = mounted.path().join("broker");
    fs::create_dir(&folder).unwrap();
    let (login, key) = ([("user", certificates::USER), ("password", certificates::PASSWORD)], made.text("client.key"));
    let files = [("tls_ca", made.text(CA)), ("tls_cert", made.text("client.pem")), ("tls_key", key.clone())];
    let files = login.map(|(name, text)| (name, text.to_owned())).into_iter().chain(files);
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
    let environment =
        [("TRELLIS_LOG", "debug,async_nats=trace,rustls=trace,trellis_nats=trace,trellis_provider=trace")];
    let node = Node::start_with(&data_dir, &["--secrets", mounted.path().to_str().unwrap()], &environment);
    node.deploy(&courier(&server));
    let seen = Runtime::new().unwrap().block_on(sent_and_seen(&server, &made));
    assert_eq!(String::from_utf8_lossy(&seen), "ORDERS attempt=1", "it was handled");

    let backup = mounted.path().join("backup");
    node.trellis(&["backup", backup.to_str().unwrap()]).ok();
    let shown = shown(&node, "vault-broker-own") + &node.log() + &String::from_utf8_lossy(&fs::read(&backup).unwrap());
    assert!(shown.contains("tls_key"), "the names of secrets are shown, so the search finds what is there");
    for secret in [certificates::PASSWORD, key.lines().nth(1).unwrap()] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert_eq!(holding(&data_dir.path(), secret), Vec::<String>::new(), "{secret} is on the disk");
    }
}

#[test]
fn a_node_opens_nothing_by_itself() {
    let node = Node::start(&[]);
    let manifest = vault(&NatsServer::start(false));
    node.deploy_with(&manifest, &["--wait", "2s"]).failed(1);
    // What one part waits for is known a moment before what another does.
    for what in [
        "variables to manifests; start it with `--secrets-env-prefix PREFIX`",
        "files to manifests; start it with `--secrets PATH`",
    ] {
        let waits = || node.trellis(&["status", "vault"]).stdout.contains(&format!("opens no {what}"));
        eventually(what, || waits().then_some(()));
    }
    let opens_own = trellis(&["up", "--secrets-env-prefix", "TRELLIS_NATS_"]).failed(2);
    assert!(opens_own.contains("opens the node's own variables"), "{opens_own}");
}

#[test]
fn a_password_in_a_url_is_refused_where_it_stands_and_not_shown() {
    let node = Node::start(&[]);
    let nats = NatsServer::start(false);
    let with_password = nats.url.replace("nats://", "nats://shop:hunter2@");
    let manifest = vault(&nats).replace(&nats.url, &with_password);
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    fs::write(file.path(), &manifest).unwrap();
    let line = manifest.lines().position(|line| line.contains("hunter2")).unwrap() + 1;
    let validated = trellis(&["validate", file.path().to_str().unwrap()]);
    for refused in [node.try_deploy(&manifest), validated] {
        assert_ne!(refused.code, 0);
        let said = refused.stdout + &refused.stderr;
        assert!(said.contains("`url` holds a password") && said.contains("below `secrets:`"), "{said}");
        assert!(said.contains(&format!(":{line}:")) && said.contains("nats://shop:*******@"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    for url in ["redis://:hunter2@db", "u:hunter2@127.0.0.1:5844", "redis://h/?password=hunter2"] {
        let put = node.trellis(&["config", "put", "c", &format!("url={url}")]).failed(1);
        assert!(put.contains("`url` holds a password") && !put.contains("hunter2"), "{put}");
    }
}

#[test]
fn a_credential_in_config_is_refused_where_it_stands_and_not_shown() {
    let node = Node::start(&[]);
    let manifest = vault(&NatsServer::start(false)).replace("user: shop", "user: shop, password: hunter2");
    let said = node.try_deploy(&manifest).failed(1);
    assert!(said.contains("`password` is a credential") && said.contains("below `secrets:`"), "{said}");
    assert!(said.contains("password: *******") && !said.contains("hunter2"), "{said}");
    let put = node.trellis(&["config", "put", "c", "password=hunter2"]).failed(1);
    assert!(put.contains("`password` is a credential") && !put.contains("hunter2"), "{put}");
    let taken = node.trellis(&["config", "put", "c", "client_seed=SUA"]);
    assert!(taken.stderr.contains("`client_seed` is a credential, which the lattice keeps"), "{}", taken.stderr);
    taken.ok();
}

/// What a node has read of secrets is in its memory.
#[test]
fn a_node_that_crashes_leaves_no_core() {
    let (data_dir, folder) = (DataDir::new(), tempfile::tempdir().unwrap());
    let mut with_cores = Command::new("sh");
    with_cores.args(["-c", "ulimit -c \"$(ulimit -H -c)\"; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_trellis")]);
    with_cores.current_dir(folder.path());
    let node = Node::start_by(with_cores, &data_dir, &[], &[]);
    node.signal("ABRT");
    let ended = node.ended();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
