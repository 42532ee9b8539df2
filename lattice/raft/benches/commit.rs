//! What agreement costs: three nodes on one machine, over a real nats-server, each with its log on disk and fsync on.
//! Prints a table, with the disk's own fsync and the server's own round trip beside it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use trellis_bus::testing::NatsServer;
use trellis_bus::{Bus, Nats, Options as BusOptions, members};
use trellis_placement::{Command, Entry};
use trellis_raft::{Member, Options, Raft, Timing, open};
use trellis_wire::{CommandId, Config, LatticeId, NodeId};
use uuid::Uuid;

/// How many commands are committed one after the other.
const COMMITS: u128 = 1_000;
/// How many at once, and how many in all then.
const AT_ONCE: usize = 32;
const TOGETHER: u128 = 3_000;
/// What a small change of the plan takes, in bytes.
const COMMAND_BYTES: usize = 200;

fn node(n: u128) -> NodeId {
    NodeId::new(Uuid::from_u128(n))
}

fn lattice_id() -> LatticeId {
    LatticeId::new(Uuid::from_u128(7))
}

fn entry(n: u128) -> Entry {
    let values = Config::from_iter([("value", "v".repeat(COMMAND_BYTES).as_str())]);
    let command = Command::PutConfig { name: format!("bench-{}", n % 100), values };
    let command = match n % 2 {
        // Each time another value, so that it is a change.
        0 => command,
        _ => Command::PutConfig {
            name: format!("bench-{}", n % 100),
            values: Config::from_iter([("n", n.to_string().as_str())]),
        },
    };
    Entry { id: CommandId::new(Uuid::from_u128(n | 1 << 100)), at_ms: 0, command }
}

async fn bus(server: &NatsServer) -> Bus {
    let nats = Nats::connect(&BusOptions::urls([server.url.as_str()])).await.expect("the options are sound");
    let bus = Bus::Nats(nats);
    bus.connection().wait_for(trellis_bus::Connection::is_connected).await.expect("the server is up");
    bus
}

async fn start(server: &NatsServer, dir: &Path, n: u128) -> Raft {
    let sealed = members::start(node(n), "bench".parse().expect("a name"), bus(server).await);
    (1..=3).for_each(|other| sealed.seal().introduce(node(other), members::secret(node(other)).key()));
    let (data_dir, host) = (dir.join(n.to_string()), format!("host-{n}"));
    let options = Options { data_dir, host, lattice_id: Some(lattice_id()), sealed, timing: Timing::default() };
    open(options).await.expect("a new data directory")
}

/// Three voters, the first of which leads.
async fn lattice(server: &NatsServer, dir: &Path) -> Vec<Raft> {
    let mut rafts = Vec::new();
    for n in 1..=3 {
        rafts.push(start(server, dir, n).await);
    }
    rafts[0].bootstrap(lattice_id()).await.expect("nobody else is there");
    for n in 2..=3 {
        rafts[0].add_learner(node(n), Member::default()).await.expect("it leads");
    }
    rafts[0].change_voters((1..=3).map(node).collect::<BTreeSet<_>>()).await.expect("they are up");
    rafts
}

async fn one_by_one(what: &str, raft: &Raft, numbers: std::ops::Range<u128>) {
    let mut times = Vec::new();
    for n in numbers {
        let began = Instant::now();
        raft.propose(entry(n)).await.expect("everyone is up");
        times.push(began.elapsed());
    }
    print(what, times);
}

async fn together(what: &str, raft: &Raft, first: u128) {
    let began = Instant::now();
    let clients: Vec<_> = (0..AT_ONCE)
        .map(|client| {
            let raft = raft.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0..TOGETHER / AT_ONCE as u128 {
                    let began = Instant::now();
                    raft.propose(entry(first + n * AT_ONCE as u128 + client as u128)).await.expect("everyone is up");
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.expect("no client panics"));
    }
    let each = times.len() as f64 / began.elapsed().as_secs_f64();
    print(&format!("{what}, {each:.0}/s"), times);
}

async fn barriers(raft: &Raft) {
    let mut times = Vec::new();
    for _ in 0..COMMITS {
        let began = Instant::now();
        raft.read_barrier().await.expect("everyone is up");
        times.push(began.elapsed());
    }
    print("read barrier, through a follower", times);
}

/// The disk's own time for as little as a commit writes.
fn fsync(dir: &Path) {
    let mut file = File::create(dir.join("fsync")).expect("the directory is there");
    let mut times = Vec::new();
    for _ in 0..COMMITS {
        let began = Instant::now();
        file.write_all(&[7; 4096]).and_then(|()| file.sync_data()).expect("there is room");
        times.push(began.elapsed());
    }
    print("peer: write 4 KiB and fsync", times);
}

/// The server's own time for a question and an answer.
async fn round_trip(server: &NatsServer) {
    let (here, there) = (bus(server).await, bus(server).await);
    let mut asked = there.subscribe("bench.echo", None).await.expect("a sound subject");
    tokio::spawn(async move {
        while let Some(question) = asked.next().await {
            let reply = question.reply.expect("a request");
            there.publish(&reply, &[], question.payload).await.expect("connected");
        }
    });
    let mut times = Vec::new();
    for _ in 0..COMMITS {
        let began = Instant::now();
        let payload = vec![7; COMMAND_BYTES].into();
        here.request("bench.echo", &[], payload, Duration::from_secs(5)).await.expect("somebody listens");
        times.push(began.elapsed());
    }
    print("peer: NATS request and reply", times);
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what:<44} {:>8} {:>10.2?} {:>10.2?} {:>10.2?}", times.len(), at(50), at(99), at(100));
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() {
    // Beside the build and not in /tmp, which may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target directory is there");
    let server = NatsServer::start(false);
    println!("{:<44} {:>8} {:>10} {:>10} {:>10}", "three voters, fsync on", "times", "p50", "p99", "most");
    fsync(dir.path());
    round_trip(&server).await;
    let rafts = lattice(&server, dir.path()).await;
    one_by_one("commit, through the leader", &rafts[0], 0..COMMITS).await;
    one_by_one("commit, through a follower", &rafts[1], COMMITS..2 * COMMITS).await;
    together(&format!("commit, {AT_ONCE} at once"), &rafts[0], 10 * COMMITS).await;
    barriers(&rafts[2]).await;
    for raft in rafts {
        raft.shutdown().await;
    }
}
