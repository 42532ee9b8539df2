//! Instructions of one event, counted by callgrind: unlike times they come out the same on a busy machine, so that a change
//! can be compared exactly. Only the node's own instructions count, not the kernel's. Without the pool, for which callgrind
//! has no address space.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::Scale;
use crate::apps::{hello, image};
use crate::client::get;
use crate::table::{Table, count};
use crate::trellis::trellis;

const GUESTS: &[(&str, &str)] = &[("Rust, WASI 0.2", "hello"), ("Rust, WASI 0.3", "test_hello_async")];

pub(crate) fn bench(scale: Scale) -> String {
    let requests = scale.or(500, 20);
    let mut table = Table::new(&["event", "instructions of one"]);
    for (name, guest) in GUESTS.iter().take(scale.or(GUESTS.len(), 1)) {
        let node = Counted::start();
        let manifest = node.folder.path().join("app.yaml");
        std::fs::write(&manifest, hello("bench", "v1", "127.0.0.1:0", &image(guest))).unwrap();
        let admin = ["--admin", &node.admin];
        trellis(&[&["deploy", "--wait", "10m", manifest.to_str().unwrap()], &admin[..]].concat()).ok();
        let status = trellis(&[&["status", "bench", "-o", "json"], &admin[..]].concat()).ok();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let at: SocketAddr = status["links"][0]["at"].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap();
        let ask = |times: usize| (0..times).for_each(|_| drop(get(at, "/").unwrap().ok()));
        ask(20);
        node.control("--zero");
        ask(requests);
        node.control("--dump");
        table.row(&[format!("HTTP request, {name}"), count(node.counted() as f64 / requests as f64)]);
    }
    format!("The mean of {requests} requests, each on a connection of its own.\n\n{}", table.finish())
}

/// A node under callgrind.
struct Counted {
    folder: tempfile::TempDir,
    admin: String,
    child: Child,
}

impl Counted {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("callgrind.out");
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--max-threads=2000", &format!("--callgrind-out-file={}", out.display())])
            .args([env!("CARGO_BIN_EXE_trellis"), "up", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.unwrap_or_else(|why| panic!("valgrind cannot be run ({why}): install it"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let admin = lines.find_map(|line| Some(line.unwrap().strip_prefix("admin ")?.trim().to_owned()));
        let counted = Self { folder, admin: admin.expect("the node starts under valgrind"), child };
        // The pipe must not close while the node may write to it.
        std::thread::spawn(move || lines.for_each(drop));
        counted
    }

    fn control(&self, what: &str) {
        let told = Command::new("callgrind_control").args([what, &self.child.id().to_string()]).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    }

    /// What the only dump says.
    fn counted(&self) -> u64 {
        let dump = self.folder.path().join("callgrind.out.1");
        let text = std::fs::read_to_string(dump).unwrap();
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        total.expect("callgrind sums up").trim().parse().unwrap()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // It may have ended by itself, and is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
