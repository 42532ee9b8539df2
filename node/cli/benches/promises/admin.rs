//! What benches ask a node for, without a `trellis` process for each question.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::client::{get, send};
use crate::node::Node;

/// How long something may take that a bench waits for.
const WAIT_MAX: Duration = Duration::from_secs(300);

impl Node {
    /// Where its admin API is.
    pub(crate) fn api(&self) -> SocketAddr {
        self.admin.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// Uploads an artifact, which compiles it. Its digest, as the API has it.
    pub(crate) fn put(&self, wasm: &[u8]) -> String {
        let hex = Sha256::digest(wasm).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        });
        let put = send(self.api(), "PUT", &format!("/v1/artifacts/sha256:{hex}"), &[], wasm).unwrap();
        assert_eq!(put.status, 200, "{}", put.text());
        format!("sha256:{hex}")
    }

    /// Deploys a manifest whose images are named by these digests, and does not wait until it runs.
    pub(crate) fn post(&self, manifest: &str, artifacts: &BTreeMap<&str, String>) {
        let request = json!({ "manifest": manifest, "artifacts": artifacts }).to_string();
        let headers = [("content-type", "application/json")];
        let reply = send(self.api(), "POST", "/v1/deploy", &headers, request.as_bytes()).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }

    /// What the API says of an app.
    pub(crate) fn asked(&self, app: &str) -> Value {
        serde_json::from_slice(&get(self.api(), &format!("/v1/apps/{app}")).unwrap().body).unwrap()
    }

    /// What the API says of the only trigger there is.
    pub(crate) fn trigger(&self) -> Value {
        let said: Value = serde_json::from_slice(&get(self.api(), "/v1/triggers").unwrap().body).unwrap();
        said["triggers"][0].clone()
    }

    /// Waits until an app is ready, and says how long that took.
    pub(crate) fn ready(&self, app: &str, poll: Duration) -> Duration {
        let began = Instant::now();
        while self.asked(app)["state"] != "ready" {
            assert!(began.elapsed() < WAIT_MAX, "{app} is not ready: {:#}", self.asked(app));
            std::thread::sleep(poll);
        }
        began.elapsed()
    }

    /// Publishes so many messages from many threads, and returns when the node has all of them.
    pub(crate) fn publish_all(&self, subject: &str, count: usize) {
        const THREADS: usize = 32;
        let body = base64::engine::general_purpose::STANDARD.encode(BODY);
        let request = json!({ "subject": subject, "body_base64": body }).to_string();
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..count / THREADS {
                        let headers = [("content-type", "application/json")];
                        let reply = send(self.api(), "POST", "/v1/publish", &headers, request.as_bytes()).unwrap();
                        assert_eq!(reply.status, 200, "{}", reply.text());
                    }
                });
            }
        });
    }

    /// What the kernel says of its process in `/proc/PID/FILE`, in the line that begins with `key`, as a number.
    pub(crate) fn proc(&self, file: &str, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Processor time that it used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let (_, after) = text.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = after.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Its share of the memory it has in use, pages of mapped files included, in bytes. Only root may ask for the share; others get
    /// the whole of what it uses.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let may = std::fs::File::open(format!("/proc/{}/smaps_rollup", self.id())).is_ok();
        let (file, key) = if may { ("smaps_rollup", "Pss:") } else { ("status", "VmRSS:") };
        self.proc(file, key) * 1024
    }
}

/// What a message holds.
pub(crate) const BODY: &[u8] = &[b'x'; 100];
