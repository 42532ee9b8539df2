//! A real node: the built `trellis up`, on free ports of 127.0.0.1, with a data directory of its own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::trellis::{Ran, command, trellis};

/// How long a node may take until it serves, on a machine that is busy with other tests.
const START_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end after it was asked to; its own limit for events under way is 30 s.
const STOP_MAX: Duration = Duration::from_secs(45);

/// A node. Dropping it kills the process by its id.
pub(crate) struct Node {
    /// `http://127.0.0.1:PORT`.
    pub(crate) admin: String,
    /// What `up` said before it served, line by line.
    pub(crate) banner: Vec<String>,
    /// Where it keeps everything; it goes with the last node that uses it.
    data_dir: DataDir,
    child: Child,
}

/// A data directory that outlives one node, so that another can go on with it.
#[derive(Clone)]
pub(crate) struct DataDir(std::sync::Arc<TempDir>);

impl DataDir {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(std::sync::Arc::new(tempfile::tempdir().unwrap()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// A copy, as it is now.
    pub(crate) fn copied(&self) -> Self {
        let copy = Self::new();
        let copied = Command::new("cp").arg("-r").args([self.path(), copy.path()]).status().unwrap();
        assert!(copied.success());
        copy
    }

    /// What the nodes that had it wrote to standard error.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.path().join("node.log")
    }
}

impl Node {
    /// Starts a node with a new data directory. `args` follow `trellis up --data-dir ... --admin 127.0.0.1:0`.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(&DataDir::new(), args)
    }

    /// Starts a node that goes on with a data directory.
    pub(crate) fn start_in(data_dir: &DataDir, args: &[&str]) -> Self {
        Self::start_with(data_dir, args, &[])
    }

    /// The same with something in its environment.
    pub(crate) fn start_with(data_dir: &DataDir, args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_by(command(), data_dir, args, environment)
    }

    /// The same by another command, which is followed by `up ...`: another binary, or one that runs ours.
    pub(crate) fn start_by(mut by: Command, data_dir: &DataDir, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let log = File::options().create(true).append(true).open(data_dir.log()).unwrap();
        let mut child = by
            .args(["up", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir.path())
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let banner = banner(child.stdout.take().unwrap());
        let mut node = Self { admin: String::new(), banner, data_dir: data_dir.clone(), child };
        let admin = node.banner.iter().find_map(|line| line.strip_prefix("admin "));
        match admin {
            Some(admin) => node.admin = admin.trim().into(),
            None => panic!("the node did not start:\n{}", node.log()),
        }
        node
    }

    /// Its data directory, for another node to go on with.
    pub(crate) fn data_dir(&self) -> &DataDir {
        &self.data_dir
    }

    /// Everything that it wrote to standard error.
    pub(crate) fn log(&self) -> String {
        let mut log = String::new();
        File::open(self.data_dir.log()).unwrap().read_to_string(&mut log).unwrap();
        log
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// From now on, only what it has in use from now on counts as its most. How much that is now, in bytes.
    pub(crate) fn forget_peak(&self) -> u64 {
        match std::fs::write(format!("/proc/{}/clear_refs", self.id()), "5") {
            // Only root may ask that of a node. What it needed before counts for others, too.
            Err(why) if why.kind() == std::io::ErrorKind::PermissionDenied => {}
            cleared => cleared.unwrap(),
        }
        self.peak_bytes()
    }

    /// The most memory that the process had in use since it started, or since [`Self::forget_peak`], in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Runs a command of the CLI that asks this node.
    pub(crate) fn trellis(&self, args: &[&str]) -> Ran {
        let (command, rest) = args.split_at(1);
        // `config` has commands of its own, which take the option.
        let (subcommand, rest) = if command == ["config"] { rest.split_at(1) } else { (&[][..], rest) };
        trellis(&[command, subcommand, &["--admin", &self.admin], rest].concat())
    }

    /// Ends the process at once, as a power cut would. What it kept can be gone on with.
    pub(crate) fn kill(mut self) -> DataDir {
        self.end();
        self.data_dir.clone()
    }

    /// Asks it to end, as systemd does, and waits for that.
    pub(crate) fn stop(self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let (signal, pid) = (format!("-{name}"), self.child.id().to_string());
        assert!(Command::new("kill").args([&signal, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended by itself, or because it was asked to.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(asked.elapsed() < STOP_MAX, "the node does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(&mut self) {
        // A process that has ended already cannot be killed, and need not be.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("the log of {}:\n{}", self.admin, self.log());
        }
    }
}

/// The lines up to the last of the banner. What follows is read and dropped, so that the pipe never fills.
fn banner(stdout: ChildStdout) -> Vec<String> {
    let (said, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody listens once the banner is complete.
            let _ = said.send(line);
        }
    });
    let deadline = Instant::now() + START_MAX;
    let mut banner = Vec::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let is_last = line.starts_with("data ");
        banner.push(line);
        if is_last {
            break;
        }
    }
    banner
}
