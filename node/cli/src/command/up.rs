//! `trellis up`: one node, in the foreground, until it is asked to end.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use trellis_daemon::{Options, Running};

use crate::admin::Connection;
use crate::failure::Failure;
use crate::output::print;
use crate::settings::{LogFormat, Settings};

/// Everything from info on, of others only what is wrong. That a member does not answer, openraft would say with every try, and
/// we say it once.
const LOG_DEFAULT: &str = "info,openraft=error,openraft::replication=off,openraft::engine::handler::replication_handler=off,\
                           async_nats=warn,cranelift=warn,wasmtime=warn,hyper=warn,h2=warn,lapin=off";

/// Start a node on this machine
///
/// Alone it needs nothing installed. With --nats it starts or joins a lattice of many nodes. Each option can also be
/// set in the environment (TRELLIS_..., as shown) or in the --config file; flags win over the environment, the
/// environment over the file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  trellis up
  trellis up --nats nats://10.0.0.2:4222 --bootstrap --join-token-file /etc/trellis/join-token
  trellis up --nats nats://10.0.0.2:4222 --join-token-file /etc/trellis/join-token --label zone=cellar
  trellis up --config /etc/trellis/node.yaml

The config file has the same keys as the flags:
  lattice: home
  nats: [nats://10.0.0.2:4222, nats://10.0.0.3:4222]
  nats-creds: /etc/trellis/node.creds
  label: {zone: cellar}
  sandbox-memory: 2GiB")]
pub(crate) struct Up {
    /// YAML file with the same keys as the flags
    #[arg(long, env = "TRELLIS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Up {
    pub(crate) async fn run(self, connection: &Connection) -> Result<(), Failure> {
        keep_to_itself();
        let file = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        let settings = self.settings.listening_at(connection).over(file);
        log(settings.logging())?;
        let options = settings.options()?;
        let told = options.clone();
        // Before the node starts, so that a signal during the start is not lost.
        let shutdown = shutdown()?;
        let mut shutdown = std::pin::pin!(shutdown);
        let running = tokio::select! {
            started = trellis_daemon::start(options) => {
                started.map_err(|error| Failure::Failed(error.to_string()))?
            }
            // A node may wait for its lattice for as long as it takes.
            () = &mut shutdown => return Ok(()),
        };
        print(&banner(&told, &running))?;
        if told.nats.is_some() && running.is_open() {
            eprintln!(
                "warning: lattice {} has no join token: every node that its NATS account lets in can join it",
                told.lattice
            );
        }
        running.run(shutdown).await.map_err(|error| Failure::Failed(error.to_string()))
    }
}

/// The memory of a node holds secrets: no core of it is written, and only root may look into it.
fn keep_to_itself() {
    #[cfg(target_os = "linux")]
    if let Err(why) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        eprintln!("warning: a core of this process would hold its secrets: {why}");
    }
}

/// The first lines on standard output. Scripts read `admin`, because port 0 takes a free one.
fn banner(options: &Options, running: &Running) -> String {
    let bus = match &options.nats {
        Some(nats) => nats.urls.join(", "),
        None => "embedded (this node alone; --nats makes it a lattice of many)".into(),
    };
    format!(
        "trellis  {}\nnode     {}\nkey      {}\nlattice  {}\ntrust    {}\nadmin    {}\nbus      {bus}\ndata     {}",
        env!("CARGO_PKG_VERSION"),
        running.node(),
        running.key(),
        options.lattice,
        running.trust(),
        running.url(),
        options.data_dir.display()
    )
}

/// Logs go to standard error, so that standard output stays for what was asked for.
fn log((format, filter): (LogFormat, Option<&str>)) -> Result<(), Failure> {
    let filter = filter.unwrap_or(LOG_DEFAULT);
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        Failure::Usage(format!("`{filter}` is no log filter: {error}; write info or trellis_raft=debug"))
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

/// Resolves at the first Ctrl-C or SIGTERM. A second one ends the process at once, for those who cannot wait.
fn shutdown() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (asked, shutdown) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        eprintln!("shutting down: events under way are finished first; once more ends at once");
        // Where nobody waits for it any more, the node has ended already.
        let _ = asked.send(());
        next().await;
        std::process::exit(130);
    });
    Ok(async {
        // An error means that the task above is gone, and with it every way to ask; ending is the safe answer.
        let _ = shutdown.await;
    })
}
