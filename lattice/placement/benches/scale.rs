//! How placement grows: up to 1,000 simulated nodes and 10,000 components. What it takes to plan, to plan again when a
//! node is lost, what a change adds to the log, and how large the state is. Prints a table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trellis_placement::{Command, Entry, plan};
use trellis_wire::frame;

#[expect(dead_code, clippy::unwrap_used, reason = "it is written for tests, which use all of it and may panic")]
#[path = "../tests/placement/lattice.rs"]
mod lattice;

use lattice::{Lattice, component, facts, node_id, release, scaler};

/// Nodes and apps of one component each: both grow together, then each alone.
const SIZES: [(usize, usize); 7] =
    [(10, 100), (100, 1_000), (1_000, 10_000), (1_000, 100), (1_000, 1_000), (10, 10_000), (100, 10_000)];

/// What planning until nothing changes took.
#[derive(Default)]
struct Planned {
    whole: Duration,
    /// The longest call of the planner.
    longest: Duration,
    deltas: usize,
    log_bytes: usize,
}

/// Plans and applies until nothing changes. Only the planner's time counts.
fn settle(lattice: &mut Lattice) -> Planned {
    let mut planned = Planned::default();
    loop {
        let began = Instant::now();
        let delta = plan(&lattice.state);
        let took = began.elapsed();
        planned.whole += took;
        planned.longest = planned.longest.max(took);
        let Some(delta) = delta else { return planned };
        planned.deltas += 1;
        planned.log_bytes += put(lattice, Command::Plan(delta));
    }
}

/// Applies a command, and says what it takes in the log, in bytes.
fn put(lattice: &mut Lattice, command: Command) -> usize {
    let id = "00000000-0000-0000-0000-000000000000".parse().expect("a UUID");
    let entry = Entry { id, at_ms: 1_764_000_000_000, command };
    let bytes = entry.encoded_len();
    lattice.apply(entry.command);
    bytes
}

fn deploy(n: usize) -> Command {
    let mut release = release(&format!("app{n}"), "1");
    let scaler = match n % 4 {
        0 => scaler("none"),
        1 => scaler(&format!("20 on zone=z{}:30, any:70", n % 10)),
        2 => scaler("10"),
        _ => scaler("6 on zone=z1|z2"),
    };
    component(&mut release, "api", 1, scaler);
    Command::Deploy(Box::new(release))
}

fn of(nodes: usize, apps: usize) -> Lattice {
    let mut lattice = Lattice::default();
    for n in 0..nodes {
        let labels = BTreeMap::from([("zone".to_owned(), format!("z{}", n % 10))]);
        lattice.apply(Command::Join(facts(n, "node", 1_000, labels, false)));
    }
    for n in 0..apps {
        lattice.apply(deploy(n));
    }
    lattice
}

fn timed<T>(what: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let done = what();
    (began.elapsed(), done)
}

fn measure(nodes: usize, apps: usize) {
    let mut lattice = of(nodes, apps);
    let first = settle(&mut lattice);
    let (idle, _) = timed(|| plan(&lattice.state));
    let (deploy_took, deploy_bytes) = timed(|| put(&mut lattice, deploy(apps)));
    let deployed = settle(&mut lattice);
    let lost_bytes = put(&mut lattice, Command::Lost(node_id(nodes / 2)));
    let lost = settle(&mut lattice);
    let (share_took, share) = timed(|| lattice.state.assigned(node_id(0)));
    let (encode_took, encoded) = timed(|| frame::encode(&lattice.state));
    println!(
        "{nodes:>6} {apps:>7} | {:>9.1?} {:>9.1?} {:>6} {:>9} | {idle:>9.1?} | {:>9.1?} {:>6} {:>8} | {:>9.1?} {:>7} | {share_took:>9.1?} {:>5} | {:>10} {encode_took:>9.1?}",
        first.whole,
        first.longest,
        first.deltas,
        first.log_bytes,
        lost.whole,
        lost.deltas,
        lost_bytes + lost.log_bytes,
        deploy_took + deployed.whole,
        deploy_bytes + deployed.log_bytes,
        share.components().count(),
        encoded.len(),
    );
}

fn main() {
    println!(
        "{:>6} {:>7} | {:>9} {:>9} {:>6} {:>9} | {:>9} | {:>9} {:>6} {:>8} | {:>9} {:>7} | {:>9} {:>5} | {:>10} {:>9}",
        "nodes",
        "apps",
        "all",
        "one call",
        "deltas",
        "log B",
        "no change",
        "lost node",
        "deltas",
        "log B",
        "one app",
        "log B",
        "share",
        "held",
        "state B",
        "encode"
    );
    for (nodes, apps) in SIZES {
        measure(nodes, apps);
    }
    println!(
        "\nall: the planner's time for everything that is placed at first, over all deltas; one call: its longest call. lost \
         node: for what a lost node held. one app: deploying one more and planning it. share: what one node has to run."
    );
}
