//! A real nats-server for tests, on a free port of 127.0.0.1.

use std::env;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it greets.
const START_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried: another process may take one between the look and the start.
const PORTS_MAX: usize = 5;

/// A running nats-server with a store of its own. Dropping it kills the server and removes the store.
#[derive(Debug)]
pub struct NatsServer {
    /// Where it listens: `nats://127.0.0.1:<port>`, or at the host it was started at.
    pub url: String,
    host: String,
    port: u16,
    args: Vec<String>,
    store: tempfile::TempDir,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server, with JetStream or without.
    ///
    /// # Panics
    /// When there is no nats-server: the message says how to get one. A test without it would prove nothing.
    pub fn start(jetstream: bool) -> Self {
        Self::start_with(jetstream, &[])
    }

    /// Starts a server with further command line arguments, such as `--auth`, `s3cret`.
    ///
    /// # Panics
    /// As for [`NatsServer::start`].
    pub fn start_with(jetstream: bool, args: &[&str]) -> Self {
        Self::start_at("127.0.0.1", jetstream, args)
    }

    /// Starts a server at another address of this machine.
    ///
    /// # Panics
    /// As for [`NatsServer::start`].
    pub fn start_at(host: &str, jetstream: bool, args: &[&str]) -> Self {
        let store = tempfile::tempdir().expect("a temporary directory can be made");
        let mut args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        if jetstream {
            args.extend(["--jetstream".into(), "--store_dir".into(), store.path().display().to_string()]);
        }
        let mut server = Self { url: String::new(), host: host.into(), port: 0, args, store, child: None };
        for _ in 0..PORTS_MAX {
            server.port = free_port(host);
            server.url = format!("nats://{host}:{}", server.port);
            if server.spawn() {
                return server;
            }
        }
        panic!("nats-server did not start on any of {PORTS_MAX} ports: see {}", server.log().display())
    }

    /// Kills the server as `kill -9` does. What it stored stays for [`NatsServer::restart`].
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died by itself, and is gone either way.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Sends the server a signal, such as `STOP`.
    ///
    /// # Panics
    /// It does not run.
    pub fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("the server runs");
        let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
        assert!(sent.is_ok_and(|sent| sent.success()), "the server takes no signal");
    }

    /// Starts the server again on the same port and store.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "nats-server did not come back on port {}: see {}", self.port, self.log().display());
    }

    /// Whether it greets. `false` if it ended instead.
    fn spawn(&mut self) -> bool {
        let program = program();
        let child = Command::new(&program)
            .args(["--addr", &self.host, "--port", &self.port.to_string(), "--log", &self.log().display().to_string()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|why| {
            panic!("nats-server at {} cannot be run ({why}): run deploy/setup/nats-server.sh", program.display())
        });
        self.child = Some(child);
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            if self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_some())) {
                return false;
            }
            if greets(&self.host, self.port) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// What JetStream keeps of a stream, in the account that needs no name.
    pub fn stream_dir(&self, stream: &str) -> PathBuf {
        self.store.path().join("jetstream/$G/streams").join(stream)
    }

    fn log(&self) -> PathBuf {
        self.store.path().join("nats-server.log")
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `$NATS_SERVER`, else where deploy/setup/nats-server.sh puts it. Never what happens to be on the PATH.
pub fn program() -> PathBuf {
    if let Some(program) = env::var_os("NATS_SERVER") {
        return program.into();
    }
    let cache = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.unwrap_or_default().join("trellis/bin/nats-server")
}

fn free_port(host: &str) -> u16 {
    let listener = TcpListener::bind((host, 0)).expect("the address is this machine's, and has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn greets(host: &str, port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    let mut greeting = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.read_exact(&mut greeting).is_ok()
        && &greeting == b"INFO"
}
