//! Secrets on a real node: read where they are opened, given to guests and providers, changed while they are used, and
//! shown by nothing.

use std::fs;
use std::path::Path;

use serde_json::Value;
use trellis_bus::testing::NatsServer;

use crate::apps::{component, eventually, http, provider};
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
    let policy = |name: &str, backend: &str| {
        format!(
            "    - {{name: {name}, type: policy.secret.wasmcloud.dev/v1alpha1, properties: {{backend: {backend}}}}}\n"
        )
    };
    format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: vault}}\nspec:\n  policies:\n{}{}  \
         components:\n{}",
        policy("files", "file"),
        policy("variables", "env"),
        [job, component("window", "test_kv", "", &[store]), http("window", ""), provider("bucket", "nats")].concat()
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

/// Everything that the admin API and the command line show.
fn shown(node: &Node) -> String {
    let admin = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let page = |path: &str| get(admin, path).unwrap().text();
    let document: Value = serde_json::from_str(&page("/openapi.json")).unwrap();
    let paths = document["paths"].as_object().unwrap().iter().filter(|(_, path)| path["get"].is_object());
    let filled = paths.map(|(path, _)| {
        path.replace("{app}", "vault")
            .replace("{component}", "job")
            .replace("{name}", "vault-bucket")
            .replace("{id}", "1")
    });
    let commands = [&["status", "vault"][..], &["apps"], &["nodes"], &["explain", "vault/job"], &["logs", "vault"]];
    let said = commands.map(|args| node.trellis(args).ok());
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

    let shown = shown(&node) + &node.log();
    for secret in [KEY, PASSWORD, CHANGED] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert_eq!(holding(&data_dir.path(), secret), Vec::<String>::new(), "{secret} is on the disk");
    }
    assert!(!holding(&data_dir.path(), "api-key").is_empty(), "references are kept, so the search finds what is there");
}

#[test]
fn a_node_opens_nothing_by_itself() {
    let node = Node::start(&[]);
    let manifest = vault(&NatsServer::start(false));
    let waits = node.deploy_with(&manifest, &["--wait", "2s"]).failed(1);
    assert!(waits.contains("opens no variables to manifests; start it with `--secrets-env-prefix PREFIX`"), "{waits}");
    assert!(waits.contains("opens no files to manifests; start it with `--secrets PATH`"), "{waits}");
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
