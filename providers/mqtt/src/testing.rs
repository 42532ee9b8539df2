//! A real mosquitto for tests, on a free port of 127.0.0.1, which stores what changes at once. Compiled with the feature
//! `testing`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it accepts.
const START_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried: another process may take one between the look and the start.
const PORTS_MAX: usize = 5;

/// A running mosquitto. Dropping it kills the server.
#[derive(Debug)]
pub struct Mosquitto {
    /// Where it listens: `mqtt://127.0.0.1:<port>`.
    pub url: String,
    /// The same port as a number.
    pub port: u16,
    config: tempfile::TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    /// Starts a server that lets everybody in, or nobody.
    ///
    /// # Panics
    /// When there is no mosquitto: the message says how to get one. A test without it would prove nothing.
    pub fn start(allow_anonymous: bool) -> Self {
        Self::start_with(&format!("allow_anonymous {allow_anonymous}"))
    }

    /// Starts a server with this line in its configuration.
    ///
    /// # Panics
    /// As for [`Mosquitto::start`].
    pub fn start_with(line: &str) -> Self {
        let config = tempfile::tempdir().expect("a temporary directory can be made");
        let mut server = Self { url: String::new(), port: 0, config, child: None };
        for _ in 0..PORTS_MAX {
            server.port = free_port();
            server.url = format!("mqtt://127.0.0.1:{}", server.port);
            let (port, folder) = (server.port, server.config.path().display());
            // Started by root it would become another user, who may not write there.
            let text = format!(
                "listener {port} 127.0.0.1\n{line}\nuser root\npersistence true\n\
                 persistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n"
            );
            std::fs::write(server.config.path().join("conf"), text).expect("a file can be written");
            if server.spawn() {
                return server;
            }
        }
        panic!("mosquitto did not start on any of {PORTS_MAX} ports")
    }

    /// Publishes with QoS 1, as a client that has nothing to do with Trellis, and returns when the server has the message.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn publish(&self, topic: &str, body: &[u8]) {
        let mut answer = [0; 4];
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        stream.write_all(b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\0").expect("the server reads");
        stream.read_exact(&mut answer).expect("the server answers");
        assert_eq!(answer, [0x20, 2, 0, 0], "it lets everybody in");
        let length = u8::try_from(topic.len()).expect("it is a short topic");
        let publish = [&[0, length], topic.as_bytes(), &[0, 1], body].concat();
        let mut head = vec![0x32];
        let mut rest = publish.len();
        while rest > 127 {
            head.push(u8::try_from(rest % 128 + 128).expect("it is below 256"));
            rest /= 128;
        }
        head.push(u8::try_from(rest).expect("it is below 128"));
        stream.write_all(&[head, publish].concat()).expect("the server reads");
        stream.read_exact(&mut answer).expect("the server answers");
        assert_eq!(answer, [0x40, 2, 0, 1], "it has the message");
    }

    /// Kills the server as `kill -9` does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have died by itself, and is gone either way.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Has the server end by itself, with all that it has stored.
    ///
    /// # Panics
    /// When it cannot be told to.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let told = Command::new("kill").arg(child.id().to_string()).status().expect("kill can be run");
            assert!(told.success(), "mosquitto cannot be told to end");
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Starts the server again on the same port, as it was stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "mosquitto did not come back on port {}", self.port);
    }

    /// Whether it accepts. `false` if it ended instead.
    fn spawn(&mut self) -> bool {
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(self.config.path().join("conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|why| panic!("mosquitto cannot be run ({why}): run deploy/setup/brokers.sh"));
        self.child = Some(child);
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            if self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_some())) {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
