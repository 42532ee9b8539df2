//! A real rabbitmq-server for tests, on free ports of 127.0.0.1, with a data directory, a cookie and a port mapper of its
//! own. Compiled with the feature `testing`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it answers: an Erlang system starts in seconds on an idle machine.
const START_MAX: Duration = Duration::from_secs(120);
/// How often a start is tried: another process may take a port between the look and the start.
const TRIES_MAX: usize = 3;

/// One scheduler that does not spin, and no door to the outside.
const ERLANG: &str = "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}";

/// A running rabbitmq-server. Dropping it kills the server and removes its data.
#[derive(Debug)]
pub struct RabbitServer {
    /// Where it listens: `amqp://127.0.0.1:<port>`.
    pub url: String,
    /// Where it listens with TLS, if it is told to: `amqps://127.0.0.1:<port>`.
    pub tls_url: String,
    ports: [u16; 4],
    config: String,
    home: tempfile::TempDir,
    arguments: String,
    children: Vec<Child>,
}

impl RabbitServer {
    /// Starts a server.
    ///
    /// # Panics
    /// When there is no rabbitmq-server: the message says how to get one. A test without it would prove nothing.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with further arguments, such as `-rabbit consumer_timeout 3000`.
    ///
    /// # Panics
    /// As for [`RabbitServer::start`].
    pub fn start_with(arguments: &str) -> Self {
        Self::start_on(arguments, |_| "[]".into())
    }

    /// The same with TLS on a port besides: the Erlang terms are what `ssl_options` of the application `rabbit` is to hold, and
    /// what stands beside it.
    ///
    /// # Panics
    /// As for [`RabbitServer::start`].
    pub fn start_tls(ssl_options: &str, beside: &str) -> Self {
        let config = |port| {
            format!("{{ssl_listeners, [{{\"127.0.0.1\", {port}}}]}}, {{ssl_options, [{ssl_options}]}}, {beside}")
        };
        Self::start_on("", |port| format!("[{{rabbit, [{}]}}]", config(port)))
    }

    fn start_on(arguments: &str, config: impl Fn(u16) -> String) -> Self {
        for _ in 0..TRIES_MAX {
            let home = tempfile::tempdir().expect("a temporary directory can be made");
            let ports = free_ports();
            let [url, tls_url] =
                [("amqp", ports[0]), ("amqps", ports[3])].map(|(scheme, port)| format!("{scheme}://127.0.0.1:{port}"));
            let (config, arguments) = (config(ports[3]), arguments.into());
            let mut server = Self { url, tls_url, ports, config, home, arguments, children: Vec::new() };
            if server.spawn() {
                return server;
            }
        }
        panic!("rabbitmq-server did not start in {TRIES_MAX} tries of {START_MAX:?}")
    }

    /// Kills the server as `kill -9` does. What it stored stays for [`RabbitServer::restart`].
    pub fn kill(&mut self) {
        for mut child in self.children.drain(..) {
            // It may have died by itself, and is gone either way.
            let _ = child.kill();
            child.wait().expect("a child of ours can be waited for");
        }
    }

    /// Starts the server again on the same ports and data.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.spawn(), "rabbitmq-server did not come back: see {}", self.home.path().join("log").display());
    }

    /// Whether it greets. `false` if it ended instead.
    fn spawn(&mut self) -> bool {
        let [port, distribution, mapper, _tls] = self.ports;
        let at = |name: &str| self.home.path().join(name);
        std::fs::write(at("plugins"), "[].").expect("a file can be written");
        std::fs::write(at("rabbitmq.config"), format!("{}.", self.config)).expect("a file can be written");
        let quiet = |command: &mut Command| -> Child {
            let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let started = command.spawn();
            started.unwrap_or_else(|why| panic!("{command:?} cannot be run ({why}): run deploy/setup/brokers.sh"))
        };
        // Without one of its own the server would start the machine's, and leave it running.
        let mapper_port = mapper.to_string();
        self.children.push(quiet(Command::new("epmd").args(["-port", &mapper_port, "-address", "127.0.0.1"])));
        let mut command = Command::new(program());
        command
            .env_remove("NOTIFY_SOCKET")
            .env("HOME", self.home.path())
            .env("RABBITMQ_NODENAME", format!("trellis{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", at("data"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_LOGS", at("log").join("server.log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.config"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("ERL_EPMD_PORT", &mapper_port)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("{ERLANG} {}", self.arguments))
            // The script then becomes the server instead of waiting for it, so that it can be killed by its id.
            .env("RUNNING_UNDER_SYSTEMD", "true");
        self.children.push(quiet(&mut command));
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            let ended = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_some());
            if self.children.iter_mut().any(ended) {
                self.kill();
                return false;
            }
            if greets(port) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.kill();
        false
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server's own script: the one on the PATH of Debian insists on the user `rabbitmq`.
fn program() -> PathBuf {
    let debian = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if debian.exists() { debian } else { "rabbitmq-server".into() }
}

fn free_ports() -> [u16; 4] {
    let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound listener has an address").port())
}

/// Whether it answers to the greeting of AMQP 0.9.1.
fn greets(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 1];
    stream.set_read_timeout(Some(Duration::from_secs(1))).is_ok()
        && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut answer).is_ok()
}
