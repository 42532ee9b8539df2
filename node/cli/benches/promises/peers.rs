//! The peers: programs that people would use instead.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::apps::free_address;

/// How long a peer may take until it answers: it compiles its component first.
const START_MAX: Duration = Duration::from_secs(300);

/// What everyone starts with.
pub(crate) const POOLING: &[&str] = &["-O", "pooling-allocator=y"];

/// The best that was found by hand for this kernel: what is kept resident is found by PAGEMAP_SCAN.
pub(crate) const TUNED: &[&str] = &[
    "-O",
    "pooling-allocator=y",
    "-O",
    "pooling-pagemap-scan=auto",
    "-O",
    "pooling-memory-keep-resident=1048576",
    "-O",
    "pooling-table-keep-resident=65536",
    "-O",
    "pooling-async-stack-keep-resident=65536",
    "-O",
    "pooling-decommit-batch-size=16",
];

/// `wasmtime serve`. Dropping it kills it.
pub(crate) struct Serve {
    pub(crate) at: SocketAddr,
    child: Child,
}

impl Serve {
    /// Serves a component, and returns once it answers.
    pub(crate) fn start(component: &str, flags: &[&str]) -> Self {
        let at = free_address();
        let child = Command::new(wasmtime())
            .arg("serve")
            .args(flags)
            .args(["-S", "cli", "--addr", &at.to_string(), component])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|why| panic!("wasmtime cannot be run ({why}): run deploy/setup/setup.sh bench"));
        let serve = Self { at, child };
        let deadline = Instant::now() + START_MAX;
        while crate::client::get(at, "/").is_err() {
            assert!(Instant::now() < deadline, "wasmtime serve does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        serve
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It may have ended by itself, and is gone either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `$WASMTIME`, else where deploy/setup/wasmtime.sh puts it.
fn wasmtime() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    std::env::var_os("WASMTIME").map_or_else(|| cache().join("trellis/peers/bin/wasmtime"), PathBuf::from)
}
