//! What a node keeps, whatever ends it, and who may tell it what to do.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::apps::{app, component, eventually, free_address, hello, http, image, link, orders_at, provider};
use crate::client;
use crate::node::{DataDir, Node};
use crate::trellis::command;

/// How often a node is killed while orders come in.
const KILLS: usize = 5;

/// Key-value over HTTP at this address.
fn keys_at(address: SocketAddr) -> String {
    let grant = link("store", "wasi:keyvalue/store, atomics, batch");
    app("keys", &[component("kv", "test_kv", "", &[grant]), provider("store", "embedded"), http("kv", "")])
        .replace("127.0.0.1:0", &address.to_string())
}

#[test]
fn what_was_deployed_and_written_survives_a_kill() {
    let node = Node::start(&[]);
    let address = free_address();
    node.deploy(&keys_at(address));
    node.trellis(&["config", "put", "colours", "sky=blue"]).ok();
    let written: BTreeSet<String> = (0..50).map(|n| format!("key{n}")).collect();
    for key in &written {
        assert_eq!(client::send(address, "PUT", &format!("/{key}"), &[], key.as_bytes()).unwrap().status, 204);
    }
    node.deploy(&hello("last", "v1", "127.0.0.1:0", &image("hello")));
    let data_dir = node.kill();

    let node = Node::start_in(&data_dir, &[]);
    node.until_ready("keys");
    node.until_ready("last");
    let kept: BTreeSet<String> = client::get(address, "/?keys").unwrap().ok().lines().map(str::to_owned).collect();
    assert_eq!(kept, written);
    assert_eq!(client::get(address, "/key7").unwrap().ok(), "key7");
    assert_eq!(node.trellis(&["config", "get", "colours"]).ok(), "sky=blue\n");
    assert_eq!(client::get(node.at("last"), "/").unwrap().ok(), "hello world\n");
}

/// Places orders until the node is gone. What was acknowledged: number and customer.
fn place_until_it_dies(address: SocketAddr, next: &AtomicU64, acknowledged: &Mutex<Vec<(u64, String)>>) {
    loop {
        let customer = format!("customer {}", next.fetch_add(1, Ordering::Relaxed));
        let order = format!(
            r#"{{"customer":"{customer}","lines":[{{"article":"tea","quantity":1,"price_cents":{}}}]}}"#,
            customer.len()
        );
        let sent = client::send(address, "POST", "/orders", &[], order.as_bytes());
        let Ok(response) = sent else { return };
        if response.status != 201 {
            return;
        }
        let placed: Value = serde_json::from_slice(&response.body).unwrap();
        acknowledged.lock().unwrap().push((placed["number"].as_u64().unwrap(), customer));
    }
}

#[test]
fn every_acknowledged_order_survives_kills_at_random_moments() {
    let address = free_address();
    let mut node = Node::start(&[]);
    node.deploy(&orders_at("app.yaml", address));
    let (next, acknowledged) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    for _ in 0..KILLS {
        let before = acknowledged.lock().unwrap().len();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let (next, acknowledged) = (next.clone(), acknowledged.clone());
                std::thread::spawn(move || place_until_it_dies(address, &next, &acknowledged))
            })
            .collect();
        eventually("orders are taken", || (acknowledged.lock().unwrap().len() > before + 10).then_some(()));
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        std::thread::sleep(Duration::from_millis(u64::from(nanos / 1_000 % 300)));
        let data_dir = node.kill();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        node = Node::start_in(&data_dir, &[]);
        node.until_ready("orders");
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    let numbers: BTreeSet<u64> = acknowledged.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), acknowledged.len(), "no number was given twice");
    let listed: Value = serde_json::from_str(&client::get(address, "/orders").unwrap().ok()).unwrap();
    let listed: BTreeSet<u64> = listed["orders"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let lost: Vec<_> = numbers.difference(&listed).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    for (number, customer) in acknowledged {
        let shown: Value =
            serde_json::from_str(&client::get(address, &format!("/orders/{number}")).unwrap().ok()).unwrap();
        assert_eq!(shown["customer"], customer);
    }
}

/// A data directory on a small file system of its own.
pub(crate) struct SmallDisk(pub(crate) DataDir);

impl SmallDisk {
    /// `None` where whoever runs the tests said that nothing can be mounted here.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        if std::env::var_os("TRELLIS_TEST_NO_MOUNT").is_some() {
            println!("skipped: TRELLIS_TEST_NO_MOUNT is set");
            return None;
        }
        let data_dir = DataDir::new();
        std::fs::create_dir(data_dir.path()).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(data_dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(data_dir)),
            other => panic!("no small disk can be mounted: run as root, or set TRELLIS_TEST_NO_MOUNT=1: {other:?}"),
        }
    }

    pub(crate) fn grow(&self, size: &str) {
        let grown =
            Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(self.0.path()).status().unwrap();
        assert!(grown.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that was killed a moment ago may still be leaving.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_is_named_and_a_store_goes_on_once_there_is_space() {
    let Some(disk) = SmallDisk::mount("12m") else { return };
    let node = Node::start_in(&disk.0, &[]);
    let address = free_address();
    node.deploy(&keys_at(address));
    let blob: Vec<u8> = (0_u32..500_000).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let put = |key: &str| client::send(address, "PUT", &format!("/{key}"), &[], &blob).unwrap();
    let mut written = Vec::new();
    let refused = loop {
        let key = format!("blob{}", written.len());
        match put(&key) {
            response if response.status == 204 => written.push(key),
            response => break response.text(),
        }
        assert!(written.len() < 24, "12 MiB hold no 24 blobs");
    };
    assert!(refused.contains("the disk is full") && refused.contains("embedded.redb"), "{refused}");
    let stderr = node.try_deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello"))).failed(1);
    assert!(stderr.contains("No space left on device"), "{stderr}");
    assert!(!node.log().contains("panicked"));

    for key in &written {
        let kept = client::get(address, &format!("/{key}")).unwrap();
        assert!(kept.status == 200 && kept.body == blob, "{key} was acknowledged and is not whole");
    }
    disk.grow("64m");
    assert_eq!(put("again").status, 204);
    node.deploy(&hello("late", "v1", "127.0.0.1:0", &image("hello")));
    assert_eq!(client::get(node.at("late"), "/").unwrap().ok(), "hello world\n");
}

#[test]
fn a_node_whose_log_cannot_be_written_stops_and_says_so() {
    let Some(disk) = SmallDisk::mount("3m") else { return };
    let node = Node::start_in(&disk.0, &[]);
    let value = format!("value={}", "x".repeat(40_000));
    let put = |node: &Node, n: usize| node.trellis(&["config", "put", &format!("config{n}"), &value]);
    let written = (0..100).take_while(|n| put(&node, *n).code == 0).count();
    assert!((1..100).contains(&written), "{written} configs of 40 kB on 3 MiB");
    assert_eq!(node.ended().code(), Some(1));
    let log = std::fs::read_to_string(disk.0.path().parent().unwrap().join("node.log")).unwrap();
    assert!(log.contains("error: the node stops: ") && log.contains("the disk is full; free some space"), "{log}");
    assert!(!log.contains("panicked"), "{log}");

    disk.grow("64m");
    let node = Node::start_in(&disk.0, &[]);
    let kept = node.trellis(&["config", "list"]).ok();
    assert!((0..written).all(|n| kept.lines().any(|name| name == format!("config{n}"))), "{written}: {kept}");
    put(&node, 100).ok();
}

#[test]
fn the_admin_api_beyond_loopback_needs_a_token() {
    let up = |args: &[&str]| {
        let data_dir: PathBuf = DataDir::new().path();
        let output = command().args(["up", "--admin", "0.0.0.0:0", "--data-dir"]).arg(data_dir).args(args).output();
        String::from_utf8(output.unwrap().stderr).unwrap()
    };
    let stderr = up(&[]);
    assert!(stderr.contains("is reachable from other machines and needs --admin-token"), "{stderr}");

    let node = Node::start(&["--admin-token", "s3cret"]);
    let stderr = node.trellis(&["apps"]).failed(1);
    assert!(stderr.contains("a bearer token is needed: --admin-token or TRELLIS_ADMIN_TOKEN"), "{stderr}");
    assert!(node.trellis(&["apps", "--admin-token", "wrong"]).failed(1).contains("the bearer token is another one"));
    assert!(node.trellis(&["apps", "--admin-token", "s3cret"]).ok().starts_with("no apps yet"));
    let admin: SocketAddr = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    assert_eq!(client::get(admin, "/healthz").unwrap().status, 200, "supervisors need no token");
    assert_eq!(client::get(admin, "/metrics").unwrap().status, 401);
}

#[test]
fn a_page_from_elsewhere_cannot_use_the_admin_api() {
    let node = Node::start(&[]);
    let admin: SocketAddr = node.admin.strip_prefix("http://").unwrap().parse().unwrap();
    let foreign = [
        ("host", "evil.example", "the Host `evil.example` is not this node's"),
        ("origin", "http://evil.example", "the Origin `http://evil.example` is not this node's"),
        ("origin", "null", "the Origin `null` is not this node's"),
    ];
    for (name, value, told) in foreign {
        for (method, path) in [("GET", "/v1/apps"), ("POST", "/v1/apps/a/undeploy"), ("DELETE", "/v1/apps/a")] {
            let refused = client::send(admin, method, path, &[(name, value)], b"").unwrap();
            assert_eq!(refused.status, 403, "{name}: {value}, {method}");
            assert!(refused.text().contains(told), "{}", refused.text());
        }
    }
    assert_eq!(client::get(admin, "/v1/apps").unwrap().status, 200);
}
