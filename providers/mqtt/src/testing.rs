//! A real mosquitto for tests, on a free port of 127.0.0.1, which stores what changes at once. Compiled with the feature
//! `testing`.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it accepts.
const START_MAX: Duration = Duration::from_secs(20);
/// How many free ports are tried: another process may take one between the look and the start.
const PORTS_MAX: usize = 5;

/// The first byte of a message with QoS 1, and what is added for one that is to be left on its topic.
const PUBLISH: u8 = 0x32;
const RETAIN: u8 = 1;
/// What the server answers to what nobody has subscribed to.
const NOBODY: u8 = 0x10;

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
                 persistence_location {folder}/\nautosave_interval 1\nautosave_on_changes true\n\
                 log_dest file {folder}/log\nlog_type subscribe\nlog_type unsubscribe\n"
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
        self.try_publish(topic, &[], body).expect("the server takes it");
    }

    /// The same with headers.
    ///
    /// # Errors
    /// As of [`publish`].
    pub fn try_publish(&self, topic: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        publish(self.port, (topic, headers, body))
    }

    /// The same, and the server gives it to whoever comes later, too.
    ///
    /// # Panics
    /// When it does not take it.
    pub fn leave(&self, topic: &str, body: &[u8]) {
        match send(self.port, PUBLISH | RETAIN, (topic, &[], body)) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => panic!("the server takes it: {why}"),
            Ok(()) | Err(_) => {}
        }
    }

    /// The clients that have subscribed to a topic, and not unsubscribed since.
    ///
    /// # Panics
    /// When the server's log cannot be read.
    pub fn subscribers(&self, topic: &str) -> BTreeSet<String> {
        let log = std::fs::read_to_string(self.config.path().join("log")).expect("the server writes a log");
        let mut subscribers = BTreeSet::new();
        // `TIME: CLIENT QOS TOPIC`, and without the QoS where it unsubscribes.
        for line in log.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [_time, client, _qos, subscribed] if subscribed == topic => drop(subscribers.insert(client.to_owned())),
                [_time, client, left] if left == topic => drop(subscribers.remove(client)),
                _ => {}
            }
        }
        subscribers
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

/// Publishes to a topic, with headers and a body, by MQTT 5 with QoS 1 and on a connection of its own.
///
/// # Errors
/// There is no connection, or none any more before the server answers: it may have the message or not. It says that nobody has
/// subscribed to the topic.
pub fn publish(port: u16, message: (&str, &[(&str, &str)], &[u8])) -> io::Result<()> {
    send(port, PUBLISH, message)
}

fn send(port: u16, kind: u8, (topic, headers, body): (&str, &[(&str, &str)], &[u8])) -> io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    // CONNECT without a name, a will or properties.
    stream.write_all(b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0")?;
    expect_answer(&mut stream, 0x20, 1)?;
    let user_property = |(name, value): &(&str, &str)| [vec![0x26], text(name), text(value)].concat();
    let properties = headers.iter().flat_map(user_property).collect::<Vec<_>>();
    let rest = [text(topic), vec![0, 1], length(properties.len()), properties, body.to_vec()].concat();
    stream.write_all(&[vec![kind], length(rest.len()), rest].concat())?;
    expect_answer(&mut stream, 0x40, 2)
}

/// Reads a packet of this kind, which says at this place that all is well, or nothing there.
fn expect_answer(stream: &mut TcpStream, kind: u8, reason_at: usize) -> io::Result<()> {
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    // Its length is one byte: less than 128.
    let mut rest = vec![0; usize::from(head[1])];
    stream.read_exact(&mut rest)?;
    // From 128 on it is a refusal.
    match rest.get(reason_at) {
        Some(&NOBODY) => Err(io::Error::new(io::ErrorKind::NotFound, "nobody has subscribed to the topic")),
        Some(128..) => Err(io::Error::other(format!("refused: {rest:?}"))),
        _ if head[0] != kind => Err(io::Error::other(format!("another answer than was expected: {head:?} {rest:?}"))),
        _ => Ok(()),
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("it is a short text");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// A length as MQTT writes it: seven bits in a byte, the lowest first.
fn length(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(length % 128).expect("it is below 128");
        length /= 128;
        bytes.push(if length > 0 { low | 128 } else { low });
        if length == 0 {
            return bytes;
        }
    }
}
