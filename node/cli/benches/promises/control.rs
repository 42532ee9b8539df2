//! The control plane: what one more deploy costs in a lattice that has so many apps already, and what a whole pass over all
//! of them costs. All of it is pure, so it is measured in this process.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trellis_placement::{Assigned, Capacity, Command, Entry, NodeFacts, Release, State, diff, plan};
use trellis_wire::{CommandId, Digest, NodeId, NodeKey};

use crate::Scale;
use crate::density::manifest;
use crate::table::{Table, Times, ms};

const APPS: &[usize] = &[10, 100, 1_000, 10_000];

pub(crate) fn bench(scale: Scale) -> String {
    let mut table = Table::new(&[
        "apps",
        "apply a deploy",
        "plan after it",
        "apply the plan",
        "a node's share",
        "diff of shares",
        "plan all, at once",
        "snapshot",
        "snapshot, written",
    ]);
    for apps in APPS.iter().copied().take(scale.or(APPS.len(), 2)) {
        let mut row = vec![apps.to_string()];
        row.extend(measure(apps, scale.or(20, 1)));
        table.row(&row);
    }
    format!(
        "One node; half of the apps behind HTTP paths, half behind queues; medians of {} further deploys. \
         A node's share is worked out from the one before the deploy, and compared with it, as a node does.\n\n{}",
        scale.or(20, 1),
        table.finish()
    )
}

fn measure(apps: usize, deploys: usize) -> [String; 8] {
    let node: NodeId = "0a0de000-0000-7000-8000-000000000001".parse().unwrap();
    let mut lattice = Lattice::default();
    lattice.apply(Command::Join(facts(node)));
    (0..apps).for_each(|nth| lattice.apply(deploy(nth)));
    let began = Instant::now();
    while let Some(delta) = plan(&lattice.state) {
        lattice.apply(Command::Plan(delta));
    }
    let all = began.elapsed();
    let mut running: Assigned = lattice.state.assigned(node);
    let mut former = lattice.state.clone();
    let mut times: [Times; 5] = Default::default();
    for nth in apps..apps + deploys {
        // As in the state machine, somebody watches the former state.
        let before = lattice.state.clone();
        times[0].push(timed(|| lattice.apply(deploy(nth))).1);
        let (delta, took) = timed(|| plan(&lattice.state).expect("there is something to place"));
        times[1].push(took);
        times[2].push(timed(|| lattice.apply(Command::Plan(delta))).1);
        let (share, took) = timed(|| lattice.state.assigned_since(&former, node, &running));
        times[3].push(took);
        let (steps, took) = timed(|| diff(&running, &share));
        times[4].push(took);
        assert_eq!((steps.is_empty(), before == lattice.state), (false, false));
        (running, former) = (share, lattice.state.clone());
    }
    let (snapshot, took) = timed(|| postcard::to_allocvec(&lattice.state).unwrap());
    let each = times.map(|times| ms(times.quantile_ms(0.5)));
    let [apply, planned, carried, share, steps] = each;
    let size = format!("{} KiB", snapshot.len() >> 10);
    let millis = |took: Duration| ms(took.as_secs_f64() * 1e3);
    [apply, planned, carried, share, steps, millis(all), size, millis(took)]
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let done = work();
    (done, began.elapsed())
}

#[derive(Default)]
struct Lattice {
    state: State,
    commands: u64,
}

impl Lattice {
    fn apply(&mut self, command: Command) {
        self.commands += 1;
        let id = format!("00000000-0000-0000-0000-{:012x}", self.commands).parse::<CommandId>().unwrap();
        self.state.apply(&Entry { id, at_ms: self.commands, command });
    }
}

fn facts(id: NodeId) -> NodeFacts {
    let capacity = Capacity { permits: 1_000, memory_bytes: 1 << 30 };
    let key = NodeKey::new([0; 32]);
    NodeFacts { id, name: "bench".into(), labels: BTreeMap::new(), version: "1".into(), capacity, edge: false, key }
}

fn deploy(nth: usize) -> Command {
    let text = manifest(nth, "127.0.0.1:8000".parse().unwrap());
    let app = trellis_manifest::parse(&text, "bench").app.expect("the bench's manifest is valid");
    let artifacts = app.components.keys().map(|name| (name.clone(), Digest::new([7; 32]))).collect();
    let manifest = Digest::new([0; 32]);
    Command::Deploy(Box::new(Release { app, version: "v1".into(), artifacts, manifest, replace: false }))
}
