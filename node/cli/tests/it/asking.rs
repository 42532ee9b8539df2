//! Commands that ask a node, against a scripted one: what goes over the wire and what is made of the answer.

use serde_json::{Value, json};

use crate::scripted::{Answer, Asked, Scripted};
use crate::trellis::{ORDERS, command, fed, orders, trellis};

const IMAGE: &[u8] = b"no component, but the scripted node does not mind";

fn refused(status: u16, error: &str) -> Answer {
    (status, json!({ "error": error, "code": "refused" }).to_string())
}

/// `GET /v1/apps/orders` with one holder and one link.
fn status(state: &str, holder: &str, problem: Option<&str>) -> Answer {
    let status = json!({
        "app": "orders", "version": "v1", "state": state, "generation": 3, "problems": [], "versions": ["v1"],
        "components": [{
            "name": "api", "digest": "sha256:00", "asked": "one holder", "problem": null,
            "holders": [{
                "node": "n", "name": "laptop", "permits": 10, "state": holder, "running": 0, "events": 7, "faults": 1,
                "problem": problem,
            }],
        }],
        "links": [{
            "source": "http", "target": "api", "name": "default", "interfaces": "wasi:http/incoming-handler",
            "state": "ready", "at": "http://127.0.0.1:8000", "problem": null,
        }],
    });
    (200, status.to_string())
}

fn deployed(changes: &[&str]) -> Answer {
    let reply = json!({
        "app": "orders", "version": "v1", "outcome": "deployed", "changes": changes,
        "moves": ["api: laptop 0 -> 10 permits"], "findings": [],
    });
    (200, reply.to_string())
}

/// A node that lacks the artifact and is ready the second time it is asked.
fn obliging(asked: &Asked, before: usize) -> Answer {
    match asked.line.split_once('/').unwrap() {
        ("HEAD ", _) => (404, String::new()),
        ("PUT ", _) => (200, json!({ "digest": "sha256:00", "bytes": 3, "compiled": true }).to_string()),
        ("POST ", _) => deployed(&["+ component api"]),
        _ if before == 0 => status("deploying", "starting", Some("compiling")),
        _ => status("ready", "ready", None),
    }
}

#[test]
fn deploy_uploads_what_is_missing_and_waits_until_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let node = Scripted::start(obliging);
    let ran = trellis(&["deploy", manifest.to_str().unwrap(), "--admin", &node.url]);
    assert!(!ran.stderr.contains("waiting"), "a deploy that is quick has nothing to explain: {ran:#?}");
    assert!(ran.stderr.contains("uploading api") && ran.stderr.contains("49 B"), "{ran:#?}");
    let stdout = ran.ok();
    for shown in ["+ component api", "api: laptop 0 -> 10 permits", "is ready", "reach it at http://127.0.0.1:8000"] {
        assert!(stdout.contains(shown), "{shown} is missing in:\n{stdout}");
    }

    let asked = node.asked();
    let digest = asked[0].line.strip_prefix("HEAD /v1/artifacts/").unwrap().to_owned();
    let lines = ["PUT /v1/artifacts/", "POST /v1/deploy", "GET /v1/apps/orders", "GET /v1/apps/orders"];
    assert!(asked[1..].iter().map(|asked| &asked.line).zip(lines).all(|(line, start)| line.starts_with(start)));
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[1].body, IMAGE);
    let request: Value = serde_json::from_slice(&asked[2].body).unwrap();
    assert_eq!(request["manifest"], ORDERS);
    assert_eq!(request["artifacts"]["api"], digest.as_str());
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
}

#[test]
fn what_the_node_has_is_not_uploaded_and_a_dry_run_uploads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let node = Scripted::start(|asked, before| match &asked.line[..4] {
        "HEAD" => (200, String::new()),
        _ => obliging(asked, before + 1),
    });
    trellis(&["deploy", manifest.to_str().unwrap(), "--admin", &node.url]).ok();
    assert!(!node.lines().iter().any(|line| line.starts_with("PUT")), "{:?}", node.lines());

    let node = Scripted::start(obliging);
    trellis(&["deploy", manifest.to_str().unwrap(), "--dry-run", "--admin", &node.url]).ok();
    assert_eq!(node.lines(), ["POST /v1/deploy"]);
    let request: Value = serde_json::from_slice(&node.asked()[0].body).unwrap();
    assert_eq!(request["dry_run"], true);
}

#[test]
fn a_deploy_that_is_not_ready_in_time_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let node = Scripted::start(|asked, _| obliging(asked, 0));
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--wait", "2500ms", "--admin", &node.url]).failed(1);
    assert_eq!(stderr.matches("waiting: component api on laptop is starting: compiling\n").count(), 1, "{stderr}");
    assert!(stderr.contains("error: orders v1 is deployed but not ready after 2.5s:\n"), "{stderr}");
    assert!(stderr.ends_with("\n  component api on laptop is starting: compiling\n"), "{stderr}");
}

#[test]
fn a_deploy_that_waits_is_not_said_to_be_deployed() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let node = Scripted::start(|asked, before| match &asked.line[..4] {
        "GET " => status("waiting", "starting", Some("config `mine` does not exist yet")),
        _ => obliging(asked, before),
    });
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--wait", "1ms", "--admin", &node.url]).failed(1);
    assert!(stderr.contains("error: orders v1 is accepted but not ready after 1ms:\n"), "{stderr}");
}

#[test]
fn a_deploy_that_failed_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let node = Scripted::start(|asked, before| match &asked.line[..4] {
        "GET " => status("failed", "failed", Some("its artifact does not compile")),
        _ => obliging(asked, before),
    });
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--wait", "10m", "--admin", &node.url]).failed(1);
    assert!(stderr.contains("component api on laptop is failed: its artifact does not compile"), "{stderr}");
}

#[test]
fn a_node_that_refuses_is_quoted_with_its_findings() {
    let node = Scripted::start(|_, _| {
        let finding = json!({
            "severity": "error", "line": 9, "column": 7, "message": "no link",
            "rendered": "error: api imports wasi:keyvalue/store and has no link for it",
        });
        let problem = json!({ "error": "app.yaml is refused", "code": "invalid_manifest", "findings": [finding] });
        (400, problem.to_string())
    });
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--dry-run", "--admin", &node.url]).failed(1);
    assert!(stderr.contains("has no link for it\nerror: app.yaml is refused\n"), "{stderr}");
}

#[test]
fn an_upload_that_is_refused_names_component_and_file() {
    let node = Scripted::start(|asked, _| match &asked.line[..4] {
        "HEAD" => (404, String::new()),
        _ => refused(400, "the artifact is a core module"),
    });
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--admin", &node.url]).failed(1);
    assert!(stderr.contains("component `api`: ") && stderr.contains("api.wasm: the artifact is a core"), "{stderr}");
}

#[test]
fn an_invalid_manifest_or_a_missing_image_is_not_sent() {
    let node = Scripted::start(obliging);
    let stderr = fed(&["deploy", "-", "--admin", &node.url], ORDERS.replace("v1\n", "latest\n").as_bytes()).failed(1);
    assert!(stderr.contains("<stdin> is not valid; nothing was sent"), "{stderr}");
    let stderr =
        fed(&["deploy", "-", "--admin", &node.url], ORDERS.replace("api.wasm", "gone.wasm").as_bytes()).failed(1);
    assert!(stderr.contains("component `api`: cannot read its image ./gone.wasm"), "{stderr}");
    let pinned = ORDERS.replace("api.wasm", &format!("api.wasm@sha256:{}", "0".repeat(64)));
    let dir = tempfile::tempdir().unwrap();
    let manifest = orders(dir.path(), IMAGE);
    std::fs::write(&manifest, pinned).unwrap();
    let stderr = trellis(&["deploy", manifest.to_str().unwrap(), "--admin", &node.url]).failed(1);
    assert!(stderr.contains("but the manifest asks for sha256:0000"), "{stderr}");
    assert_eq!(node.lines(), [""; 0]);
}

#[test]
fn invoke_passes_bytes_arguments_and_the_outcome_on() {
    let node = Scripted::start(|asked, _| {
        let ok = !String::from_utf8_lossy(&asked.body).contains("--fail");
        (200, json!({ "ok": ok, "stdout_base64": "aGk=", "stderr_base64": "aG8=" }).to_string())
    });
    let ran = trellis(&["invoke", "--admin", &node.url, "orders/the report", "--since", "now"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "hi", "ho"));
    let ran = trellis(&["invoke", "--admin", &node.url, "orders/report", "--fail"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, "hi"));
    assert_eq!(node.lines()[0], "POST /v1/apps/orders/components/the%20report/invoke");
    let request: Value = serde_json::from_slice(&node.asked()[0].body).unwrap();
    assert_eq!(request["args"], json!(["--since", "now"]));
}

#[test]
fn publish_sends_bytes_and_headers() {
    let node = Scripted::start(|_, _| (200, json!({ "via": "embedded", "receivers": 0 }).to_string()));
    let stdout = fed(&["publish", "orders.placed", "-", "--header", "k=v", "--admin", &node.url], b"\xff\x00").ok();
    assert_eq!(stdout, "published to orders.placed via embedded; no link subscribes to it\n");
    let request: Value = serde_json::from_slice(&node.asked()[0].body).unwrap();
    assert_eq!(request, json!({ "subject": "orders.placed", "body_base64": "/wA=", "headers": [["k", "v"]] }));
}

#[test]
fn logs_are_lines_for_people_and_json_for_programs() {
    let line = json!({
        "at_ms": 1_795_356_476_123_u64, "node": "n", "app": "orders", "component": "invoice", "event": "e",
        "level": "info", "context": "stdout", "message": "one\ntwo\n",
    });
    let body = format!("{line}\n\n{line}");
    let node = Scripted::start(move |_, _| (200, body.clone()));
    let args = ["logs", "orders/invoice", "--lines", "5", "--admin", &node.url];
    let shown = "2026-11-22T14:07:56.123Z INFO     orders/invoice e [stdout] one\n    two\n";
    assert_eq!(trellis(&args).ok(), shown.repeat(2));
    assert_eq!(node.lines(), ["GET /v1/logs?follow=false&lines=5&app=orders&component=invoice"]);
    let stdout = trellis(&[&args[..], &["-o", "json"]].concat()).ok();
    assert_eq!(stdout, format!("{line}\n{line}\n"));
}

#[test]
fn status_shows_holders_links_and_what_is_not_well() {
    let node = Scripted::start(|_, _| status("deploying", "failed", Some("out of disk")));
    let stdout = trellis(&["status", "orders", "--admin", &node.url]).ok();
    for shown in [
        "orders v1 is deploying\n",
        "api        one holder  laptop  10       failed  0        7       1\n",
        "http -> api  wasi:http/incoming-handler  ready  http://127.0.0.1:8000\n",
        "not well:\n  component api on laptop is failed: out of disk\n",
    ] {
        assert!(stdout.contains(shown), "{shown} is missing in:\n{stdout}");
    }
    let stdout = trellis(&["status", "orders", "-o", "json", "--admin", &node.url]).ok();
    let status: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(status["components"][0]["holders"][0]["problem"], "out of disk");
}

#[test]
fn status_without_an_app_is_of_the_lattice_and_of_all_apps() {
    let node = Scripted::start(|asked, _| match asked.line.as_str() {
        "GET /v1/lattice" => (200, lattice(&["bus: not connected to nats://hub: refused"]).to_string()),
        "GET /v1/nodes" => (200, json!([member("cellar", "ready", 300), member("attic", "lost", 9_700)]).to_string()),
        _ => (200, json!([summary("orders", "ready"), summary("shop", "failed")]).to_string()),
    });
    let stdout = trellis(&["status", "--admin", &node.url]).ok();
    let expected = "lattice home: 1 of 2 nodes ready\n\n\
                    APP     VERSION  STATE\norders  v1       ready\nshop    v1       failed\n\n\
                    not well:\n  bus: not connected to nats://hub: refused\n  \
                    node attic (id-of-attic) is lost, last heard 9 s ago\n";
    assert_eq!(stdout, expected);
    let stdout = trellis(&["status", "-o", "json", "--admin", &node.url]).ok();
    let all: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&all["apps"][1]["state"], &all["nodes"][1]["state"]), (&json!("failed"), &json!("lost")));
    assert_eq!(all["lattice"]["name"], "home");
}

fn lattice(problems: &[&str]) -> Value {
    json!({
        "name": "home", "id": "l", "node": "n", "leader": null, "bus": "embedded", "version": "0.1.0", "generation": 1,
        "trust": "this node alone", "problems": problems,
    })
}

fn member(name: &str, state: &str, last_seen_ms: u64) -> Value {
    json!({
        "id": format!("id-of-{name}"), "name": name, "key": "N", "role": "voter", "leader": false, "state": state,
        "labels": {}, "version": "0.1.0", "last_seen_ms": last_seen_ms, "running": 0,
    })
}

fn summary(app: &str, state: &str) -> Value {
    json!({ "app": app, "version": "v1", "state": state, "components": 1, "providers": 1, "description": null })
}

#[test]
fn events_that_went_the_same_way_are_told_once() {
    let went = |at_ms: u64, to: &str| json!({ "at_ms": at_ms, "component": "api", "to": to, "why": "it is far" });
    let routed: Vec<_> = (0..64).map(|n| went(1_795_356_476_123 + n, "cellar")).chain([went(1_000, "attic")]).collect();
    let body = json!({ "app": "orders", "notes": [], "components": [], "routed": routed }).to_string();
    let node = Scripted::start(move |_, _| (200, body.clone()));
    let stdout = trellis(&["explain", "orders", "--admin", &node.url]).ok();
    let rows: Vec<_> = stdout.lines().filter(|line| line.contains("it is far")).collect();
    assert_eq!(
        rows,
        [
            "1970-01-01T00:00:01.000Z  1       api        attic   it is far",
            "2026-11-22T14:07:56.186Z  64      api        cellar  it is far",
        ]
    );
}

#[test]
fn a_thaw_says_whom_it_gave_up_or_that_nothing_was_frozen() {
    let node = Scripted::start(|_, before| match before {
        0 => (200, json!({ "nodes": [] }).to_string()),
        _ => (200, json!({ "nodes": ["cellar (n)", "attic (m)"] }).to_string()),
    });
    let thaw = || trellis(&["nodes", "thaw", "--admin", &node.url]).ok();
    assert_eq!(thaw(), "nothing was frozen, and nothing is changed\n");
    assert_eq!(thaw(), "what these nodes held is placed anew: cellar (n), attic (m)\n");
}

#[test]
fn config_is_put_got_listed_and_deleted() {
    let node = Scripted::start(|asked, _| match asked.line.as_str() {
        "GET /v1/config" => (200, r#"["redis","smtp"]"#.into()),
        "GET /v1/config/redis" => (200, r#"{"values":{"prefix":"shop","url":"redis://x"}}"#.into()),
        _ => (200, "{}".into()),
    });
    let run = |args: &[&str]| trellis(&[&["config"][..], args, &["--admin", &node.url]].concat()).ok();
    run(&["put", "redis", "url=redis://x", "prefix=shop"]);
    assert_eq!(run(&["get", "redis"]), "prefix=shop\nurl=redis://x\n");
    assert_eq!(run(&["list"]), "redis\nsmtp\n");
    run(&["del", "redis"]);
    assert_eq!(node.asked()[0].body, br#"{"values":{"prefix":"shop","url":"redis://x"}}"#);
    assert_eq!(node.lines()[0], "PUT /v1/config/redis");
    assert_eq!(node.lines()[3], "DELETE /v1/config/redis");
}

#[test]
fn undeploy_and_delete_ask_for_what_they_say() {
    let node = Scripted::start(|_, _| (200, "{}".into()));
    assert!(trellis(&["undeploy", "orders", "--admin", &node.url]).ok().contains("orders undeployed"));
    assert!(trellis(&["delete", "orders", "--admin", &node.url]).ok().contains("orders deleted"));
    assert_eq!(node.lines(), ["POST /v1/apps/orders/undeploy", "DELETE /v1/apps/orders"]);
}

#[test]
fn the_token_goes_with_each_request() {
    let node = Scripted::start(|asked, _| {
        let known = asked.headers.iter().any(|header| header == "authorization: Bearer s3cret");
        if known { (200, "[]".into()) } else { refused(401, "the admin API asks for a token: give --admin-token") }
    });
    let stderr = trellis(&["apps", "--admin", &node.url]).failed(1);
    assert_eq!(stderr, "error: the admin API asks for a token: give --admin-token\n");
    let output = command().args(["apps", "--admin", &node.url]).env("TRELLIS_ADMIN_TOKEN", "s3cret").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("no apps yet"));
}

#[test]
fn something_else_at_the_address_is_recognised() {
    let node = Scripted::start(|_, _| (404, "<html>nginx</html>".into()));
    let stderr = trellis(&["nodes", "--admin", &node.url]).failed(1);
    assert!(stderr.contains("404") && stderr.contains("is --admin right?"), "{stderr}");
    let node = Scripted::start(|_, _| (200, "<html>".into()));
    let stderr = trellis(&["nodes", "--admin", &node.url]).failed(1);
    assert!(stderr.contains("is --admin right?"), "{stderr}");
}
