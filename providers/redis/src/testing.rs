//! A real redis-server for tests, on a free port of 127.0.0.1. Compiled with the feature `testing`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers.
const START_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried: another process may take one between the look and the start.
const PORTS_MAX: usize = 5;

/// A running redis-server that writes everything to disk at once. Dropping it kills the server and removes its data.
#[derive(Debug)]
pub struct RedisServer {
    /// Where it listens: `redis://127.0.0.1:<port>`.
    pub url: String,
    /// Where it listens with TLS, if it does: `rediss://127.0.0.1:<port>`.
    pub tls_url: Option<String>,
    port: u16,
    args: Vec<String>,
    data: tempfile::TempDir,
    child: Option<Child>,
}

impl RedisServer {
    /// Starts a server.
    ///
    /// # Panics
    /// When there is no redis-server: the message says how to get one. A test without it would prove nothing.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments, such as `--requirepass`, `s3cret`.
    ///
    /// # Panics
    /// As for [`RedisServer::start`].
    pub fn start_with(args: &[&str]) -> Self {
        Self::start_on(false, args)
    }

    /// The same with a port for TLS besides: the arguments are to say with which certificate, such as `--tls-cert-file`.
    ///
    /// # Panics
    /// As for [`RedisServer::start`].
    pub fn start_tls(args: &[&str]) -> Self {
        Self::start_on(true, args)
    }

    fn start_on(has_tls: bool, args: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary directory can be made");
        let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        let mut server = Self { url: String::new(), tls_url: None, port: 0, args: args.clone(), data, child: None };
        for _ in 0..PORTS_MAX {
            server.port = free_port();
            server.url = format!("redis://127.0.0.1:{}", server.port);
            if has_tls {
                let port = free_port().to_string();
                server.tls_url = Some(format!("rediss://127.0.0.1:{port}"));
                server.args = [args.clone(), vec!["--tls-port".into(), port]].concat();
            }
            if server.spawn() {
                return server;
            }
        }
        panic!("redis-server did not start on any of {PORTS_MAX} ports: see {}", server.log().display())
    }

    /// Kills the server as `kill -9` does. What it stored stays for [`RedisServer::restart`].
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died by itself, and is gone either way.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Starts the server again on the same port and data.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "redis-server did not come back on port {}: see {}", self.port, self.log().display());
    }

    /// Stops it from answering, and lets it go on, by signals: it accepts connections all the while.
    ///
    /// # Panics
    /// When it is not running.
    pub fn freeze(&self, frozen: bool) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill can be run");
        assert!(sent.success(), "kill {signal} {pid} failed");
    }

    /// Whether it answers. `false` if it ended instead.
    fn spawn(&mut self) -> bool {
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--dir", &self.data.path().display().to_string(), "--logfile", &self.log().display().to_string()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child =
            child.unwrap_or_else(|why| panic!("redis-server cannot be run ({why}): run deploy/setup/brokers.sh"));
        self.child = Some(child);
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            if self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_some())) {
                return false;
            }
            if answers(self.port) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> PathBuf {
        self.data.path().join("redis.log")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

/// Whether it says anything but that it is still loading. A server that wants a password says that.
fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 8];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(b"PING\r\n").is_ok()
        && stream.read(&mut answer).is_ok_and(|read| read > 0)
        && !answer.starts_with(b"-LOADING")
}
